//! The device that a command computes on.

#[cfg(feature = "cuda")]
mod cuda;

use crate::compute::backend::Inspect;
use crate::compute::cpu::Cpu;
use crate::compute::{Backend, DeviceChoice};
use crate::model::{Compute, Model};
use crate::rollout::Rollout;
use crate::run::progress::say;
use anyhow::Result;

/// What the commands need of a device.
pub trait Device: Rollout + Inspect {
    /// The most memory of the device that was taken so far, in MiB; none where it is the process's own.
    fn peak_memory_mib(&self) -> Option<f64>;
    /// Returns when everything that the device was given to do is done: what is timed must not be under way any more. Errors: the
    /// device's first failure.
    fn wait(&self) -> Result<()>;
}

impl Device for Cpu {
    fn peak_memory_mib(&self) -> Option<f64> {
        None
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

/// A device that is open.
#[derive(Debug)]
pub enum Opened {
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(crate::compute::cuda::backend::Cuda),
}

/// Opens the device that was asked for, to multiply in `compute`. Says what is not as it was asked: a CPU without bf16, the CPU for
/// `auto`.
pub fn open(choice: DeviceChoice, compute: Compute) -> Result<Opened> {
    match choice {
        DeviceChoice::Cpu => Ok(Opened::Cpu(cpu(compute))),
        #[cfg(feature = "cuda")]
        DeviceChoice::Auto | DeviceChoice::Cuda(_) => cuda::open(choice, compute),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Auto => {
            say("device = \"auto\" is the CPU: this bupo was built without CUDA");
            Ok(Opened::Cpu(cpu(compute)))
        }
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda(_) => anyhow::bail!(
            "device = \"{choice}\", but this bupo was built without CUDA: take device = \"cpu\", or build it with \
             `cargo build --release --features cuda` (docs/CUDA.md)"
        ),
    }
}

/// The CPU, computing as asked where this machine can.
fn cpu(compute: Compute) -> Cpu {
    if compute.here() != compute {
        say("this machine has no AVX512-BF16: compute = \"bf16\" becomes f32, which is slower and more exact");
    }
    Cpu { compute: compute.here() }
}

/// Runs `$body` for whichever device was opened, with `$backend` as it.
macro_rules! on_device {
    ($opened:expr, $backend:ident => $body:expr) => {
        match $opened {
            $crate::commands::device::Opened::Cpu($backend) => $body,
            #[cfg(feature = "cuda")]
            $crate::commands::device::Opened::Cuda($backend) => $body,
        }
    };
}
pub(crate) use on_device;

/// Changes a model in ways that only the host knows.
pub fn on_host<B: Backend>(model: Model<B>, change: impl FnOnce(&mut Model) -> Result<()>) -> Result<Model<B>> {
    let backend = model.backend.clone();
    let mut host = model.into_host();
    change(&mut host)?;
    Ok(host.on(backend))
}

//! The device that a command computes on.

#[cfg(feature = "cuda")]
mod cuda;

use crate::compute::backend::Inspect;
use crate::compute::cpu::Cpu;
use crate::compute::{Backend, DeviceChoice};
use crate::model::weights::TensorReader;
use crate::model::{Compute, Model, Tap};
use crate::rollout::Rollout;
use crate::run::progress::say;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::ops::Range;

/// More memory than any device has.
pub const BOUNDLESS: usize = 1 << 50;

/// A device's memory as this process uses it, in bytes.
pub trait MemoryUse {
    /// In use now.
    fn used(&self) -> usize;
    /// That can be used.
    fn size(&self) -> usize;
    /// The most that was in use since [`MemoryUse::forget_peak`].
    fn peak(&self) -> usize;
    fn forget_peak(&self);
}

/// What the commands need of a device.
pub trait Device: Rollout + Inspect {
    /// A checkpoint's model of which nothing is wanted but samples, of policies that lie no higher than `until`. `look` is shown the flat
    /// array, or one part of it after the other where they are never all there.
    fn read_for_sampling(
        self,
        weights: TensorReader,
        until: Tap,
        mut look: impl FnMut(&[f32], Range<usize>),
    ) -> Result<Model<Self>> {
        let model = Model::read(weights)?;
        look(&model.params, 0..model.params.len());
        Ok(model.on(self).for_sampling(until))
    }
    /// Its memory; none where that is the host's.
    fn memory(&self) -> Option<&dyn MemoryUse>;
    /// A device like this one that only counts what is taken of so many bytes, where there is memory to count.
    fn rehearsal(&self, bytes: usize) -> Option<Self>;
    /// With the optimizer's moments in the host's memory, where there is a difference.
    fn offloading(self, offload: bool) -> Self;
    /// Looking at so many bytes of logits at a time, where there is a difference.
    fn looking_at(self, bytes: usize) -> Self;
    /// Where its time went since it was asked last, as JSON, if it was opened for that.
    fn profile(&self) -> Option<Value>;
    /// Returns when everything that the device was given to do is done: what is timed must not be under way any more. Errors: the
    /// device's first failure.
    fn wait(&self) -> Result<()>;
}

impl Device for Cpu {
    fn read_for_sampling(
        self,
        weights: TensorReader,
        until: Tap,
        look: impl FnMut(&[f32], Range<usize>),
    ) -> Result<Model> {
        Model::read_for_sampling(weights, self, until, look)
    }

    fn memory(&self) -> Option<&dyn MemoryUse> {
        None
    }

    fn rehearsal(&self, _: usize) -> Option<Cpu> {
        None
    }

    fn offloading(self, _: bool) -> Cpu {
        self
    }

    fn looking_at(self, _: usize) -> Cpu {
        self
    }

    fn profile(&self) -> Option<Value> {
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

impl Opened {
    /// [`Device::offloading`], whichever it is.
    pub fn offloading(self, offload: bool) -> Opened {
        match self {
            Opened::Cpu(backend) => Opened::Cpu(backend.offloading(offload)),
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => Opened::Cuda(backend.offloading(offload)),
        }
    }
}

/// Opens the device that was asked for, to multiply in `compute`. Says what is not as it was asked: a CPU without bf16, the CPU for
/// `auto`.
pub fn open(choice: DeviceChoice, compute: Compute) -> Result<Opened> {
    open_for(choice, compute, false)
}

/// Opens a GPU that follows where its time goes, which takes some of it.
pub fn open_profiled(choice: DeviceChoice, compute: Compute) -> Result<Opened> {
    let opened = open_for(choice, compute, true)?;
    ensure!(
        !matches!(opened, Opened::Cpu(_)),
        "--profile is of a GPU's work (--device cuda); on the CPU `perf record` has where the time goes"
    );
    Ok(opened)
}

#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
fn open_for(choice: DeviceChoice, compute: Compute, profiled: bool) -> Result<Opened> {
    match choice {
        DeviceChoice::Cpu => Ok(Opened::Cpu(cpu(compute))),
        #[cfg(feature = "cuda")]
        DeviceChoice::Auto | DeviceChoice::Cuda(_) => cuda::open(choice, compute, profiled),
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

/// A GPU of no machine in particular that only counts what memory is taken.
#[cfg(feature = "cuda")]
pub use cuda::counting;

/// Only the backend for GPUs knows what it would take.
#[cfg(not(feature = "cuda"))]
pub fn counting(_: Compute) -> Result<Cpu> {
    anyhow::bail!(
        "this bupo was built without CUDA: `cargo build --release --features cuda` (docs/CUDA.md); no GPU is needed"
    )
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

//! Opening a GPU.

use super::{BOUNDLESS, Device, MemoryUse, Opened, cpu};
use crate::commands::kernel_folder::KernelFolder;
use crate::compute::DeviceChoice;
use crate::compute::cuda::Capability;
use crate::compute::cuda::arena::Arena;
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::device::{Chosen, DeviceInfo};
use crate::compute::cuda::driver::{Gpu, Store};
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::libraries::Search;
use crate::compute::cuda::profile::Profiler;
use crate::compute::cuda::rehearsal::Rehearsal;
use crate::compute::cuda::runtime::Runtime;
use crate::model::Compute;
use crate::run::progress::say;
use anyhow::Result;
use serde_json::Value;
use std::sync::Arc;

impl Device for Cuda {
    fn memory(&self) -> Option<&dyn MemoryUse> {
        Some(self.arena().as_ref())
    }

    fn rehearsal(&self, bytes: usize) -> Option<Cuda> {
        self.rehearsing(bytes).ok()
    }

    fn offloading(self, offload: bool) -> Cuda {
        self.with_offload(offload)
    }

    fn looking_at(self, bytes: usize) -> Cuda {
        self.with_head_tile(bytes / size_of::<f32>())
    }

    fn profile(&self) -> Option<Value> {
        self.runtime().profile().and_then(|profile| serde_json::to_value(profile).ok())
    }

    fn wait(&self) -> Result<()> {
        Ok(self.runtime().synchronize()?)
    }
}

/// A backend like that of any GPU, on a device that only counts.
pub fn counting(compute: Compute) -> Result<Cuda> {
    let info = DeviceInfo {
        index: 0,
        name: "a GPU".to_string(),
        capability: Capability { major: 9, minor: 0 },
        memory_bytes: BOUNDLESS,
        shared_bytes: BOUNDLESS,
    };
    Ok(Cuda::new(Arc::new(Rehearsal::new(info)), BOUNDLESS, real(compute))?)
}

fn real(compute: Compute) -> Real {
    if compute == Compute::Bf16 { Real::Bf16 } else { Real::F32 }
}

impl MemoryUse for Arena {
    fn used(&self) -> usize {
        self.usage().0
    }

    fn size(&self) -> usize {
        self.usage().1
    }

    fn peak(&self) -> usize {
        Arena::peak(self)
    }

    fn forget_peak(&self) {
        Arena::forget_peak(self);
    }
}

/// A GPU, or the CPU where `auto` finds none. It takes most of the GPU's free memory at once, so that a run has it to its end.
pub(super) fn open(choice: DeviceChoice, compute: Compute, profiled: bool) -> Result<Opened> {
    /// Of the free memory: the rest is for the driver, compiled kernels and the products' workspace.
    const SHARE: f64 = 0.92;
    /// What is taken is so many bytes or a multiple of them: how much of a cache there is for sampling depends on it, and with that the
    /// exact bytes of a run, which are not to depend on a few bytes of the driver's.
    const UNIT: usize = 256 << 20;
    let search = Search::from_env();
    let device = match choice.open(&search)? {
        Chosen::Cuda(device) => device,
        Chosen::Cpu { reason } => {
            say(&format!("device = \"auto\" is the CPU: {}", reason.unwrap_or_default()));
            return Ok(Opened::Cpu(cpu(compute)));
        }
    };
    let store = KernelFolder::of_user().map(|folder| Arc::new(folder) as Store);
    let real = real(compute);
    let gpu = Gpu::new(device, &search, store)?;
    say(&format!("computing on {}", gpu.info()));
    gpu.load(&[real])?;
    let memory = (gpu.memory()?.free as f64 * SHARE) as usize;
    let memory = if memory > UNIT { memory / UNIT * UNIT } else { memory };
    let gpu: Arc<dyn Runtime> = if profiled { Arc::new(Profiler::new(Arc::new(gpu))) } else { Arc::new(gpu) };
    Ok(Opened::Cuda(Cuda::new(gpu, memory, real)?))
}

//! Opening a GPU.

use super::{Device, MemoryUse, Opened, cpu};
use crate::commands::kernel_folder::KernelFolder;
use crate::compute::DeviceChoice;
use crate::compute::cuda::arena::Arena;
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::device::Chosen;
use crate::compute::cuda::driver::{Gpu, Store};
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::libraries::Search;
use crate::compute::cuda::profile::Profiler;
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

    fn rehearsal(&self) -> Option<Cuda> {
        self.rehearsing().ok()
    }

    fn offloading(self, offload: bool) -> Cuda {
        self.with_offload(offload)
    }

    fn profile(&self) -> Option<Value> {
        self.runtime().profile().and_then(|profile| serde_json::to_value(profile).ok())
    }

    fn wait(&self) -> Result<()> {
        Ok(self.runtime().synchronize()?)
    }
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
    let search = Search::from_env();
    let device = match choice.open(&search)? {
        Chosen::Cuda(device) => device,
        Chosen::Cpu { reason } => {
            say(&format!("device = \"auto\" is the CPU: {}", reason.unwrap_or_default()));
            return Ok(Opened::Cpu(cpu(compute)));
        }
    };
    let store = KernelFolder::of_user().map(|folder| Arc::new(folder) as Store);
    let real = if compute == Compute::Bf16 { Real::Bf16 } else { Real::F32 };
    let gpu = Gpu::new(device, &search, store)?;
    say(&format!("computing on {}", gpu.info()));
    gpu.load(&[real])?;
    let memory = (gpu.memory()?.free as f64 * SHARE) as usize;
    let gpu: Arc<dyn Runtime> = if profiled { Arc::new(Profiler::new(Arc::new(gpu))) } else { Arc::new(gpu) };
    Ok(Opened::Cuda(Cuda::new(gpu, memory, real)?))
}

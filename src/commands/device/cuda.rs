//! Opening a GPU.

use super::{Device, Opened, cpu};
use crate::commands::kernel_folder::KernelFolder;
use crate::compute::DeviceChoice;
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::device::Chosen;
use crate::compute::cuda::driver::{Gpu, Store};
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::libraries::Search;
use crate::compute::cuda::runtime::Runtime;
use crate::model::Compute;
use crate::run::progress::say;
use anyhow::Result;
use std::sync::Arc;

impl Device for Cuda {
    fn peak_memory_mib(&self) -> Option<f64> {
        Some(self.arena().peak() as f64 / f64::from(1 << 20))
    }

    fn wait(&self) -> Result<()> {
        Ok(self.runtime().synchronize()?)
    }
}

/// A GPU, or the CPU where `auto` finds none. It takes most of the GPU's free memory at once, so that a run has it to its end.
pub(super) fn open(choice: DeviceChoice, compute: Compute) -> Result<Opened> {
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
    Ok(Opened::Cuda(Cuda::new(Arc::new(gpu), memory, real)?))
}

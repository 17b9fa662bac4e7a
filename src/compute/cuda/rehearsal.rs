//! A device on which nothing is done: what a run would take of a GPU's memory, from the very code that will run.
//!
//! Memory is addresses without anything behind them, work is dropped, and what comes to the host is zeros. An [`super::arena::Arena`]
//! over it finds the pieces that the run's would, and knows the most that were in use at a time.

use super::device::DeviceInfo;
use super::runtime::{ALIGNMENT, Address, CudaError, DeviceMemory, Graph, Launch, Mark, Product, Runtime, Sticky};
use std::sync::atomic::{AtomicU64, Ordering};

/// A device that only counts.
#[derive(Debug)]
pub struct Rehearsal {
    info: DeviceInfo,
    sticky: Sticky,
    next: AtomicU64,
}

impl Rehearsal {
    /// In place of the device that this describes.
    pub fn new(info: DeviceInfo) -> Rehearsal {
        Rehearsal { info, sticky: Sticky::default(), next: AtomicU64::new(ALIGNMENT as u64) }
    }
}

impl Runtime for Rehearsal {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<DeviceMemory, CudaError> {
        Ok(DeviceMemory { free: self.info.memory_bytes, total: self.info.memory_bytes })
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        self.status()?;
        Ok(Address(self.next.fetch_add(bytes.next_multiple_of(ALIGNMENT) as u64, Ordering::Relaxed)))
    }

    fn free(&self, _: Address) {}

    fn allocate_host(&self, bytes: usize) -> Result<Address, CudaError> {
        self.allocate(bytes)
    }

    fn free_host(&self, _: Address) {}

    fn upload(&self, _: &[u8], _: Address) {}

    fn download(&self, _: Address, to: &mut [u8]) -> Result<(), CudaError> {
        to.fill(0);
        self.status()
    }

    fn copy(&self, _: Address, _: Address, _: usize) {}

    fn zero(&self, _: Address, _: usize) {}

    unsafe fn launch(&self, _: Launch<'_>) {}

    fn product(&self, _: &Product) {}

    fn synchronize(&self) -> Result<(), CudaError> {
        self.status()
    }

    fn status(&self) -> Result<(), CudaError> {
        self.sticky.status()
    }

    fn fail(&self, error: CudaError) {
        self.sticky.keep(error);
    }

    fn begin_capture(&self) {}

    fn end_capture(&self) -> Result<Box<dyn Graph>, CudaError> {
        Ok(Box::new(Nothing))
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        Ok(Mark(Box::new(())))
    }

    fn seconds(&self, _: &Mark, _: &Mark) -> Result<f64, CudaError> {
        Ok(0.0)
    }
}

#[derive(Debug)]
struct Nothing;

impl Graph for Nothing {
    fn replay(&self) {}
}

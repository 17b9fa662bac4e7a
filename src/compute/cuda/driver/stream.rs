//! A GPU's context and the one stream on which its work is put; the first failure of that work.

use crate::compute::cuda::api::{Cuda, Handle, NON_BLOCKING, Object};
use crate::compute::cuda::device::{Device, DeviceInfo};
use crate::compute::cuda::runtime::{Address, CudaError, Sticky};
use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub(super) struct Stream {
    device: Device,
    stream: Object,
    sticky: Sticky,
    capturing: AtomicBool,
}

impl Stream {
    pub fn new(device: Device) -> Result<Stream, CudaError> {
        let stream = Object(ptr::null_mut());
        let mut made = Stream { device, stream, sticky: Sticky::default(), capturing: AtomicBool::new(false) };
        let cuda = made.enter()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the place lives through the call.
        let created = unsafe { (cuda.create_stream)(&mut handle, NON_BLOCKING) };
        made.checked(created, || "make a stream".to_string())?;
        made.stream = Object(handle);
        Ok(made)
    }

    /// The driver's functions, with this GPU's context as the calling thread's.
    pub fn enter(&self) -> Result<Cuda, CudaError> {
        Ok(self.device.enter()?)
    }

    pub fn handle(&self) -> Handle {
        self.stream.0
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.device.info
    }

    /// What the driver answered, as what it was asked for.
    pub fn checked(&self, result: c_int, what: impl FnOnce() -> String) -> Result<(), CudaError> {
        if result == 0 {
            return Ok(());
        }
        let next = "where a kernel failed, it is one that was launched before: `compute-sanitizer` and CUDA_LAUNCH_BLOCKING=1 \
                    find it; `nvidia-smi` and the system's log show a GPU that is broken";
        Err(self.failed(what(), self.device.reason(result), next))
    }

    pub fn failed(&self, what: String, reason: String, next: &str) -> CudaError {
        CudaError::Failed { device: self.info().to_string(), what, reason, next: next.to_string() }
    }

    pub fn zero(&self, at: Address, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let cuda = self.enter()?;
        // SAFETY: the driver looks at the address itself.
        let filled = unsafe { (cuda.fill)(at.0, 0, bytes, self.handle()) };
        self.checked(filled, || format!("set {bytes} bytes to zero"))
    }

    /// Waits for all work.
    pub fn wait(&self) -> Result<(), CudaError> {
        let cuda = self.enter()?;
        // SAFETY: the stream is this one's.
        let waited = unsafe { (cuda.synchronize)(self.handle()) };
        self.checked(waited, || "finish its work".to_string())
    }

    pub fn attempt(&self, work: impl FnOnce() -> Result<(), CudaError>) {
        self.sticky.attempt(work);
    }

    pub fn status(&self) -> Result<(), CudaError> {
        self.sticky.status()
    }

    pub fn fail(&self, error: CudaError) {
        self.sticky.keep(error);
    }

    pub fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed)
    }

    /// Returns what was before.
    pub fn set_capturing(&self, capturing: bool) -> bool {
        self.capturing.swap(capturing, Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (false, Ok(cuda)) = (self.stream.0.is_null(), self.enter()) {
            // SAFETY: made by `new`, destroyed once; the driver does so when its work is done.
            unsafe { (cuda.destroy_stream)(self.stream.0) };
        }
    }
}

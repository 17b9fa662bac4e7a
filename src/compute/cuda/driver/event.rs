//! A point on a GPU's stream.

use super::stream::Stream;
use crate::compute::cuda::api::Object;
use crate::compute::cuda::runtime::CudaError;
use std::ffi::c_uint;
use std::ptr;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Event {
    stream: Arc<Stream>,
    handle: Object,
}

impl Event {
    /// Not recorded yet. `flags`: whether it takes the time.
    pub fn new(stream: Arc<Stream>, flags: c_uint) -> Result<Event, CudaError> {
        let cuda = stream.enter()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the place lives through the call.
        let created = unsafe { (cuda.create_event)(&mut handle, flags) };
        stream.checked(created, || "make an event".to_string())?;
        Ok(Event { stream, handle: Object(handle) })
    }

    /// Behind all work so far.
    pub fn record(&self) -> Result<(), CudaError> {
        let cuda = self.stream.enter()?;
        // SAFETY: event and stream live as long as this.
        let recorded = unsafe { (cuda.record_event)(self.handle.0, self.stream.handle()) };
        self.stream.checked(recorded, || "record an event".to_string())
    }

    /// Waits for the work before it; for nothing if it was never recorded.
    pub fn wait(&self) -> Result<(), CudaError> {
        let cuda = self.stream.enter()?;
        // SAFETY: the event lives as long as this.
        let waited = unsafe { (cuda.wait_event)(self.handle.0) };
        self.stream.checked(waited, || "finish its work".to_string())
    }

    /// Waits for this one, which comes after the other on the same stream.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64, CudaError> {
        self.wait()?;
        let cuda = self.stream.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are recorded and done, and the place lives through the call.
        let told = unsafe { (cuda.elapsed)(&mut milliseconds, earlier.handle.0, self.handle.0) };
        self.stream.checked(told, || "tell the time between two events".to_string())?;
        Ok(1e-3 * f64::from(milliseconds))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(cuda) = self.stream.enter() {
            // SAFETY: made by `new`, destroyed once.
            unsafe { (cuda.destroy_event)(self.handle.0) };
        }
    }
}

//! Copies to the device through memory that it reads by itself, so that the host's bytes may change as soon as a copy was asked for.

use super::event::Event;
use super::stream::Stream;
use crate::compute::cuda::api::{NO_TIMING, Object};
use crate::compute::cuda::runtime::{Address, CudaError};
use std::ptr;
use std::sync::Arc;

/// Bytes of one of the two halves. One is filled while the other may still be read.
const HALF: usize = 8 << 20;

/// Pinned memory in two halves. Nothing waits until both are full.
#[derive(Debug)]
pub(super) struct Staging {
    stream: Arc<Stream>,
    memory: Object,
    /// Recorded behind the last copy out of each half.
    events: [Event; 2],
    half: usize,
    /// Bytes of the half that are taken.
    taken: usize,
}

impl Staging {
    pub fn new(stream: Arc<Stream>) -> Result<Staging, CudaError> {
        let cuda = stream.enter()?;
        let mut memory = ptr::null_mut();
        // SAFETY: the place lives through the call.
        let allocated = unsafe { (cuda.allocate_host)(&mut memory, 2 * HALF, 0) };
        stream.checked(allocated, || format!("give {} bytes of pinned host memory", 2 * HALF))?;
        let memory = Object(memory);
        let event = || Event::new(Arc::clone(&stream), NO_TIMING);
        let events = event().and_then(|first| Ok([first, event()?])).inspect_err(|_| {
            // SAFETY: just allocated, freed once.
            unsafe { (cuda.free_host)(memory.0) };
        })?;
        Ok(Staging { stream, memory, events, half: 0, taken: 0 })
    }

    pub fn upload(&mut self, mut from: &[u8], mut to: Address) -> Result<(), CudaError> {
        let stream = Arc::clone(&self.stream);
        let cuda = stream.enter()?;
        while !from.is_empty() {
            if self.taken == HALF {
                self.events[self.half].record()?;
                self.half = 1 - self.half;
                self.events[self.half].wait()?;
                self.taken = 0;
            }
            let (part, rest) = from.split_at(from.len().min(HALF - self.taken));
            // SAFETY: the place lies within the half, and what was copied out of it before is done.
            let place = unsafe { self.memory.0.cast::<u8>().add(self.half * HALF + self.taken) };
            // SAFETY: there is room for the part, and pinned memory is nobody else's.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), place, part.len()) };
            // SAFETY: the place is not written again before the half's event; the driver looks at the device's address itself.
            let copied = unsafe { (cuda.upload)(to.0, place.cast(), part.len(), stream.handle()) };
            stream.checked(copied, || format!("take {} bytes from the host", part.len()))?;
            self.taken += part.len();
            to = to.offset(part.len());
            from = rest;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.stream.wait().ok();
        let Ok(cuda) = self.stream.enter() else { return };
        // SAFETY: allocated by `new`, freed once, and no copy runs.
        unsafe { (cuda.free_host)(self.memory.0) };
    }
}

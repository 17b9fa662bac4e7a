//! One mutable slice, written by several tasks at places that do not overlap.

use std::marker::PhantomData;

/// A `&mut [f32]` that tasks of one parallel loop may write through, each at rows or columns of its own.
#[derive(Clone, Copy)]
pub struct SharedMut<'a> {
    data: *mut f32,
    len: usize,
    _life: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a unique borrow that outlives the value; `slice` passes the duty of not overlapping
// on to its callers.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub fn new(data: &'a mut [f32]) -> SharedMut<'a> {
        SharedMut { data: data.as_mut_ptr(), len: data.len(), _life: PhantomData }
    }

    /// Pointer to element `start`, for writes in strides; what it writes must not overlap with anything else's.
    pub fn at(&self, start: usize) -> *mut f32 {
        assert!(start <= self.len, "element {start} of {}", self.len);
        self.data.wrapping_add(start)
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No other live slice taken from this value may overlap with the range.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "range {start}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

//! One mutable slice, written by several tasks at places that do not overlap.

use std::marker::PhantomData;

/// A `&mut [E]` that tasks of one parallel loop may write through, each at rows or columns of its own.
#[derive(Clone, Copy)]
pub struct SharedMut<'a, E = f32> {
    data: *mut E,
    len: usize,
    _life: PhantomData<&'a mut [E]>,
}

// SAFETY: the pointer comes from a unique borrow that outlives the value; `slice` passes the duty of not overlapping
// on to its callers.
unsafe impl<E: Send> Send for SharedMut<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for SharedMut<'_, E> {}

impl<'a, E> SharedMut<'a, E> {
    pub fn new(data: &'a mut [E]) -> SharedMut<'a, E> {
        SharedMut { data: data.as_mut_ptr(), len: data.len(), _life: PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No other live slice taken from this value may overlap with the range.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [E] {
        assert!(start <= self.len && len <= self.len - start, "range {start}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

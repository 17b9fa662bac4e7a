//! Typed arrays in a device's memory.

use super::arena::{Arena, Piece};
use super::runtime::{Address, Arg, CudaError, Runtime};
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// An array that is owned: its memory goes back to the arena when it is dropped. `T`: f32, bf16, u32, u64, f64.
///
/// Where the arena has no room, the device's work has failed ([`Runtime::fail`]): the array is there but of no memory, and nothing is
/// done any more that would use it.
#[derive(Debug)]
pub struct DeviceArray<T> {
    piece: Piece,
    len: usize,
    element: PhantomData<T>,
}

/// A part of an array.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice<'a, T> {
    at: Address,
    len: usize,
    array: PhantomData<&'a DeviceArray<T>>,
}

impl<T: Pod> DeviceArray<T> {
    /// `len` elements that hold nothing in particular.
    pub fn new(arena: &Arc<Arena>, len: usize) -> DeviceArray<T> {
        DeviceArray { piece: piece_for::<T>(arena, len), len, element: PhantomData }
    }

    /// `len` elements of zero bits.
    pub fn zeros(arena: &Arc<Arena>, len: usize) -> DeviceArray<T> {
        let array = DeviceArray::new(arena, len);
        array.zero();
        array
    }

    pub fn from_host(arena: &Arc<Arena>, values: &[T]) -> DeviceArray<T> {
        let array = DeviceArray::new(arena, values.len());
        array.upload(0, values);
        array
    }

    /// All elements, once all work before is done; or why that failed.
    pub fn to_host(&self) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        self.download(0, &mut values)?;
        Ok(values)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements that it can have without moving.
    pub fn capacity(&self) -> usize {
        self.piece.bytes() / size_of::<T>()
    }

    /// Another length. Within the capacity elements stay where they are; beyond it the array moves and holds nothing in particular.
    pub fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            // First the old piece: an arena that holds one of them need not hold both.
            let arena = Arc::clone(self.piece.arena());
            self.piece = Piece::of_nothing(&arena);
            self.piece = piece_for::<T>(&arena, len);
        }
        self.len = len;
    }

    pub fn address(&self) -> Address {
        self.piece.address()
    }

    /// The address of an element, or of the end.
    pub fn at(&self, index: usize) -> Address {
        self.slice(index..self.len).address()
    }

    pub fn arg(&self) -> Arg {
        Arg::At(self.address())
    }

    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'_, T> {
        self.all().slice(range)
    }

    pub fn all(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { at: self.address(), len: self.len, array: PhantomData }
    }

    pub fn arena(&self) -> &Arc<Arena> {
        self.piece.arena()
    }

    fn runtime(&self) -> &dyn Runtime {
        self.piece.arena().runtime().as_ref()
    }

    /// Copies values to the elements from `first` on.
    pub fn upload(&self, first: usize, values: &[T]) {
        let to = self.slice(first..first + values.len());
        if !to.is_empty() {
            self.runtime().upload(bytemuck::cast_slice(values), to.address());
        }
    }

    /// Copies the elements from `first` on, once all work before is done; or why that failed.
    pub fn download(&self, first: usize, values: &mut [T]) -> Result<(), CudaError> {
        let from = self.slice(first..first + values.len());
        if from.is_empty() {
            return self.runtime().status();
        }
        self.runtime().download(from.address(), bytemuck::cast_slice_mut(values))
    }

    /// Copies a part of another array to the elements from `first` on.
    pub fn copy_from(&self, first: usize, from: DeviceSlice<'_, T>) {
        let to = self.slice(first..first + from.len());
        if !to.is_empty() {
            self.runtime().copy(from.address(), to.address(), to.len() * size_of::<T>());
        }
    }

    /// Sets every element's bits to zero.
    pub fn zero(&self) {
        if self.len > 0 {
            self.runtime().zero(self.address(), self.len * size_of::<T>());
        }
    }
}

fn piece_for<T>(arena: &Arc<Arena>, len: usize) -> Piece {
    arena.take(len * size_of::<T>()).unwrap_or_else(|error| {
        arena.runtime().fail(error);
        Piece::of_nothing(arena)
    })
}

impl<'a, T> DeviceSlice<'a, T> {
    pub fn address(self) -> Address {
        self.at
    }

    pub fn arg(self) -> Arg {
        Arg::At(self.at)
    }

    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// A part of it. Panics where the range is not within, as a slice on the host does.
    pub fn slice(self, range: Range<usize>) -> DeviceSlice<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        DeviceSlice { at: self.at.offset(range.start * size_of::<T>()), len: range.len(), array: PhantomData }
    }
}

//! What a [`Cuda`] keeps: arrays of either kind, parameters with the copy that products read, lists of a batch.

use super::Cuda;
use crate::compute::backend::{Backend, Kind};
use crate::compute::cuda::arena::Piece;
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{Address, Arg, Matrix};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// An array of f32 or REAL. Where the device had no room for it, its work has failed, and nothing is done any more that would use it.
#[derive(Debug)]
pub struct Array {
    piece: Option<Piece>,
    len: usize,
    real: Real,
}

impl Default for Array {
    fn default() -> Array {
        Array { piece: None, len: 0, real: Real::F32 }
    }
}

impl Array {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn real(&self) -> Real {
        self.real
    }

    pub(super) fn bytes(&self) -> usize {
        self.len * self.real.bytes()
    }

    pub(super) fn address(&self) -> Address {
        self.piece.as_ref().map(Piece::address).unwrap_or_default()
    }

    pub(super) fn arg(&self) -> Arg {
        Arg::At(self.address())
    }

    /// The address of an element.
    pub(super) fn at(&self, index: usize) -> Address {
        debug_assert!(index <= self.len, "element {index} of {}", self.len);
        self.address().offset(index * self.real.bytes())
    }

    /// Rows of `columns`, one after the other.
    pub(super) fn matrix(&self, columns: usize) -> Matrix {
        Matrix::new(self.address(), self.real, columns)
    }

    /// A part of an array of f32.
    pub(super) fn part(&mut self, range: Range<usize>) -> Part<'_> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        assert_eq!(self.real, Real::F32, "parts are of gradients, moments, sums");
        Part { at: self.at(range.start), len: range.len(), array: PhantomData }
    }
}

/// A part of an array of f32, to be written.
#[derive(Debug)]
pub struct Part<'a> {
    pub(super) at: Address,
    pub(super) len: usize,
    array: PhantomData<&'a mut Array>,
}

impl Part<'_> {
    pub(super) fn arg(&self) -> Arg {
        Arg::At(self.at)
    }

    /// Two neighbours, the first of `first` elements.
    pub(super) fn split(self, first: usize) -> (Self, Self) {
        assert!(first <= self.len, "{first} of {} elements", self.len);
        let rest = Part { at: self.at.offset(4 * first), len: self.len - first, array: PhantomData };
        (Part { len: first, ..self }, rest)
    }

    /// Rows of `columns`, one after the other.
    pub(super) fn matrix(&self, columns: usize) -> Matrix {
        Matrix::new(self.at, Real::F32, columns)
    }
}

/// Parameters: the f32 that the optimizer changes, and what products read of them.
#[derive(Debug)]
pub struct Params {
    pub(super) master: DeviceArray<f32>,
    /// Rounded; none in f32.
    pub(super) copy: Option<DeviceArray<bf16>>,
}

impl Params {
    pub(super) fn view(&self, range: &Range<usize>) -> View<'_> {
        let master = self.master.slice(range.clone());
        let copy = self.copy.as_ref().map_or(master.address(), |copy| copy.slice(range.clone()).address());
        View { master: master.address(), copy, len: master.len(), params: PhantomData }
    }
}

/// Some of the parameters.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// In f32: norms, biases, the embedding's rows.
    pub(super) master: Address,
    /// In REAL: the factors of products.
    pub(super) copy: Address,
    pub(super) len: usize,
    params: PhantomData<&'a Params>,
}

impl View<'_> {
    pub(super) fn arg(&self) -> Arg {
        Arg::At(self.master)
    }
}

impl Cuda {
    /// `len` zeros in f32, in the device's memory or in the host's.
    pub(super) fn zeros_for_steps(&self, len: usize) -> Array {
        if !self.offload {
            let mut array = self.scratch(len, Real::F32);
            self.zero(&mut array);
            return array;
        }
        let piece = self.arena.take_of_host(len * Real::F32.bytes());
        Array { piece: piece.map_err(|error| self.runtime().fail(error)).ok(), len, real: Real::F32 }
    }

    pub(super) fn real_of(&self, kind: Kind) -> Real {
        match kind {
            Kind::F32 => Real::F32,
            Kind::Factor => self.real,
        }
    }

    pub(super) fn resize_to(&self, array: &mut Array, len: usize, real: Real) {
        let bytes = len * real.bytes();
        if array.piece.as_ref().map_or(0, Piece::bytes) < bytes {
            // First the old piece: an arena that holds one of them need not hold both.
            array.piece = None;
            array.piece = self.arena.take(bytes).map_err(|error| self.runtime().fail(error)).ok();
        }
        (array.len, array.real) = (len, real);
    }

    /// A weight `[outputs, inputs]` as products read it.
    pub(super) fn weight(&self, view: &View<'_>, inputs: usize) -> Matrix {
        Matrix::new(view.copy, self.real, inputs)
    }

    /// An array of nothing in particular, until the operation that asks for it is over: what comes after it on the stream may have
    /// its memory.
    pub(super) fn scratch(&self, len: usize, real: Real) -> Array {
        let mut array = Array::default();
        self.resize_to(&mut array, len, real);
        array
    }

    /// Lists on the device: where each begins, and their memory.
    pub(super) fn lists<const N: usize>(&self, lists: [&[u32]; N]) -> ([Address; N], DeviceArray<u32>) {
        // 256 bytes, as pieces of memory begin.
        const APART: usize = 64;
        let mut all = Vec::with_capacity(lists.iter().map(|list| list.len().next_multiple_of(APART)).sum());
        let places = lists.map(|list| {
            let place = all.len();
            all.extend_from_slice(list);
            all.resize(all.len().next_multiple_of(APART), 0);
            place
        });
        let memory = DeviceArray::from_host(&self.arena, &all);
        (places.map(|place| memory.address().offset(4 * place)), memory)
    }
}

/// Numbers as they lie in memory, to go with lists.
pub(super) fn bits(x: &[f32]) -> &[u32] {
    bytemuck::cast_slice(x)
}

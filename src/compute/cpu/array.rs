//! Arrays, and the formats of their elements: f32, or bf16 where products read and write nothing else.
//!
//! Operations are written once over [`Element`]: they compute in f32 and round where they write. Products take slices of either format
//! ([`Elements`]), which they convert while they pack.

use super::gemm::Compute;
use super::simd::vectorize;
use half::bf16;
use std::borrow::Cow;
use std::ops::Range;

/// A number as it lies in memory.
pub trait Element: Copy + Default + Send + Sync + 'static {
    fn get(self) -> f32;
    /// The nearest, ties to even.
    fn of(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }

    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }

    /// As `half` has it, but without a branch, so that it vectorises.
    #[inline(always)]
    fn of(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
        // A NaN stays one: rounding might carry out of its mantissa.
        bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { rounded } as u16)
    }
}

/// `to = from`, rounded where that is shorter.
pub fn convert<A: Element, B: Element>(from: &[A], to: &mut [B]) {
    vectorize(
        #[inline(always)]
        || convert_row(from, to),
    )
}

/// Appends numbers as f32.
pub fn append<E: Element>(from: &[E], to: &mut Vec<f32>) {
    let before = to.len();
    to.resize(before + from.len(), 0.0);
    convert(from, &mut to[before..]);
}

/// [`convert`] inside of what is vectorised already.
#[inline(always)]
pub fn convert_row<A: Element, B: Element>(from: &[A], to: &mut [B]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = B::of(from.get());
    }
}

fn not_f32() -> ! {
    panic!("an array of bf16 where sums are kept, which is done in f32")
}

/// An array of the CPU.
#[derive(Clone, Debug)]
pub enum Array {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Default for Array {
    fn default() -> Array {
        Array::F32(Vec::new())
    }
}

impl From<Vec<f32>> for Array {
    fn from(values: Vec<f32>) -> Array {
        Array::F32(values)
    }
}

impl Array {
    /// Room for `len` elements; what it held is lost if the format changes.
    pub(super) fn resize(&mut self, len: usize, format: Compute) {
        fn grow<E: Element>(array: &mut Vec<E>, len: usize) {
            if array.is_empty() && array.capacity() < len {
                // Zeros that the system makes where they are touched: a buffer of gradients has parts that an internal policy never is at.
                *array = vec![E::default(); len];
            } else {
                array.resize(len, E::default());
            }
        }
        match (format, &mut *self) {
            (Compute::F32, Array::F32(array)) => grow(array, len),
            (Compute::Bf16, Array::Bf16(array)) => grow(array, len),
            (format, other) => {
                // The old memory first: there need not be room for both.
                *other = match format {
                    Compute::F32 => Array::F32(Vec::new()),
                    Compute::Bf16 => Array::Bf16(Vec::new()),
                };
                self.resize(len, format);
            }
        }
    }

    pub fn len(&self) -> usize {
        Elements::from(self).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of an array of f32, which streams, statistics and gradients are.
    pub fn f32(&self) -> &[f32] {
        match self {
            Array::F32(values) => values,
            Array::Bf16(_) => not_f32(),
        }
    }

    /// [`Array::f32`], to be written.
    pub fn f32_mut(&mut self) -> &mut Vec<f32> {
        match self {
            Array::F32(values) => values,
            Array::Bf16(_) => not_f32(),
        }
    }

    /// [`Array::f32`], taken out.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Array::F32(values) => values,
            Array::Bf16(_) => not_f32(),
        }
    }

    /// The elements as f32: themselves, or a copy.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        Elements::from(self).to_f32()
    }
}

/// A slice of either format.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    pub fn len(self) -> usize {
        match self {
            Elements::F32(x) => x.len(),
            Elements::Bf16(x) => x.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    pub fn part(self, range: Range<usize>) -> Elements<'a> {
        match self {
            Elements::F32(x) => Elements::F32(&x[range]),
            Elements::Bf16(x) => Elements::Bf16(&x[range]),
        }
    }

    /// Themselves, or a copy.
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            Elements::F32(x) => Cow::Borrowed(x),
            Elements::Bf16(x) => {
                let mut values = vec![0.0; x.len()];
                convert(x, &mut values);
                Cow::Owned(values)
            }
        }
    }

    /// Rows of width d together, in the same format.
    pub fn rows(self, rows: &[usize], d: usize) -> Array {
        fn gathered<E: Element>(x: &[E], rows: &[usize], d: usize) -> Vec<E> {
            rows.iter().flat_map(|row| &x[row * d..(row + 1) * d]).copied().collect()
        }
        match self {
            Elements::F32(x) => Array::F32(gathered(x, rows, d)),
            Elements::Bf16(x) => Array::Bf16(gathered(x, rows, d)),
        }
    }
}

/// A slice of either format, to be written.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl<'a> ElementsMut<'a> {
    pub fn len(&self) -> usize {
        match self {
            ElementsMut::F32(x) => x.len(),
            ElementsMut::Bf16(x) => x.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those from an element on.
    pub fn skip(self, first: usize) -> ElementsMut<'a> {
        match self {
            ElementsMut::F32(x) => ElementsMut::F32(&mut x[first..]),
            ElementsMut::Bf16(x) => ElementsMut::Bf16(&mut x[first..]),
        }
    }

    /// The same for a while.
    pub fn reborrow(&mut self) -> ElementsMut<'_> {
        match self {
            ElementsMut::F32(x) => ElementsMut::F32(x),
            ElementsMut::Bf16(x) => ElementsMut::Bf16(x),
        }
    }
}

macro_rules! from {
    ($($element:ty, $format:ident;)*) => {
        $(impl<'a> From<&'a [$element]> for Elements<'a> {
            fn from(x: &'a [$element]) -> Elements<'a> {
                Elements::$format(x)
            }
        }

        impl<'a> From<&'a Vec<$element>> for Elements<'a> {
            fn from(x: &'a Vec<$element>) -> Elements<'a> {
                Elements::$format(x)
            }
        }

        impl<'a> From<&'a mut [$element]> for ElementsMut<'a> {
            fn from(x: &'a mut [$element]) -> ElementsMut<'a> {
                ElementsMut::$format(x)
            }
        }

        impl<'a> From<&'a mut Vec<$element>> for ElementsMut<'a> {
            fn from(x: &'a mut Vec<$element>) -> ElementsMut<'a> {
                ElementsMut::$format(x)
            }
        })*
    };
}
from! { f32, F32; bf16, Bf16; }

impl<'a> From<&'a Array> for Elements<'a> {
    fn from(array: &'a Array) -> Elements<'a> {
        match array {
            Array::F32(x) => Elements::F32(x),
            Array::Bf16(x) => Elements::Bf16(x),
        }
    }
}

impl<'a> From<&'a mut Array> for ElementsMut<'a> {
    fn from(array: &'a mut Array) -> ElementsMut<'a> {
        match array {
            Array::F32(x) => ElementsMut::F32(x),
            Array::Bf16(x) => ElementsMut::Bf16(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        let ends = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000];
        for upper in 0..=u16::MAX as u32 {
            for lower in ends {
                let x = f32::from_bits((upper << 16).wrapping_add(lower));
                let (got, expected) = (<bf16 as Element>::of(x), bf16::from_f32(x));
                assert_eq!(got.to_bits(), expected.to_bits(), "{x:e} {:#x}", x.to_bits());
                assert_eq!(got.get().to_bits(), expected.to_f32().to_bits());
            }
        }
    }

    #[test]
    fn an_array_keeps_what_it_holds_until_its_format_changes() {
        let mut array = Array::from(vec![1.0, 2.0, 3.0]);
        array.resize(2, Compute::F32);
        assert_eq!(array.f32(), [1.0, 2.0]);
        array.resize(4, Compute::Bf16);
        assert_eq!((array.len(), array.to_f32().to_vec()), (4, vec![0.0; 4]));
        let rows = Elements::from(&vec![1.0f32, 2.0, 3.0, 4.0]).rows(&[1, 0, 1], 2);
        assert_eq!(rows.f32(), [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    }
}

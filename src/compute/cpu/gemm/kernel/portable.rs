//! The kernel for any machine: blocks of 4 x 8, in registers of four numbers as far as the compiler finds them.

use super::registers::kernels;
use super::{Block, Isa, LINE, UNROLLED, by_constants, fetch, prefetch};

const LANES: usize = Isa::Portable.column_step();
type Register = [f32; LANES];

#[inline(always)]
fn zero() -> Register {
    [0.0; LANES]
}

/// # Safety
/// There are as many numbers.
#[inline(always)]
unsafe fn load(from: *const f32) -> Register {
    // SAFETY: by the caller's promise.
    unsafe { from.cast::<Register>().read_unaligned() }
}

/// # Safety
/// As many numbers may be written.
#[inline(always)]
unsafe fn store(to: *mut f32, x: Register) {
    // SAFETY: by the caller's promise.
    unsafe { to.cast::<Register>().write_unaligned(x) }
}

/// # Safety
/// There is a number.
#[inline(always)]
unsafe fn splat(from: *const f32) -> Register {
    // SAFETY: by the caller's promise.
    [unsafe { *from }; LANES]
}

#[inline(always)]
fn add(x: Register, y: Register) -> Register {
    std::array::from_fn(|i| x[i] + y[i])
}

/// Rounded twice: one rounding is a call of a function where there is no instruction for it.
#[inline(always)]
fn multiply_add(x: Register, y: Register, sum: Register) -> Register {
    std::array::from_fn(|i| sum[i] + x[i] * y[i])
}

kernels!([] 1, 1; 1, 2; 2, 1; 2, 2; 3, 1; 3, 2; 4, 1; 4, 2;);

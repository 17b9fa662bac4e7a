//! The kernel on AVX2: the sums of a 4 x 24 block stay in 12 of the 16 registers. It reads 7 registers for 12 sums, fewer than any
//! other block that fits (6 x 16 reads 8): reading is what the sums wait for. Columns that are left over come in panels of 16 or 8.

mod parts;
mod whole;

use super::{Block, Isa};

/// Rows and columns of a whole block.
const WHOLE: (usize, usize) = (Isa::Avx2.rows(), Isa::Avx2.columns());

/// # Safety
/// As [`super::block`], on AVX2 with FMA.
pub unsafe fn block(shape: (usize, usize), units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    // SAFETY: by the caller's promise.
    unsafe {
        if shape == WHOLE {
            whole::packed(units, a.cast(), b.cast(), ahead, out)
        } else {
            parts::block(shape, units, a, b, ahead, out)
        }
    }
}

/// # Safety
/// As [`super::block_unpacked`], on AVX2 with FMA.
pub unsafe fn block_unpacked(
    shape: (usize, usize),
    units: usize,
    a: *const f32,
    strides: (usize, usize),
    b: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        if shape == WHOLE {
            whole::unpacked(units, a, strides, b.cast(), out)
        } else {
            parts::block_unpacked(shape, units, a, strides, b, out)
        }
    }
}

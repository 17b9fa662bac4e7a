//! The kernel on AVX2: the sums of a 4 x 24 block stay in 12 of the 16 registers. It reads 7 registers for 12 sums, fewer than any
//! other block that fits (6 x 16 reads 8): reading is what the sums wait for. Columns that are left over come in panels of 16 or 8.

mod whole;

use super::{Block, LINE, by_constants, fetch};
use std::arch::x86_64::*;

/// Rows of a block, at most.
pub const MR: usize = 4;
/// Columns of a register.
pub const LANES: usize = 8;
/// Columns of a block, at most: three registers.
pub const NR: usize = 3 * LANES;
/// Steps between two requests for lines ahead.
pub const UNROLLED: usize = 4;

/// Calls a function of a block's rows and of the registers of a row.
macro_rules! by_shape {
    ($shape:expr, $f:ident $args:tt) => {
        by_constants!(($shape.0, $shape.1 / LANES), $f $args, 1, 1; 1, 2; 1, 3; 2, 1; 2, 2; 2, 3; 3, 1; 3, 2; 3, 3; 4, 1; 4, 2;)
    };
}

/// # Safety
/// As [`super::block`], on AVX2 with FMA.
pub unsafe fn block(shape: (usize, usize), units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    // SAFETY: by the caller's promise.
    unsafe {
        if shape == (MR, NR) {
            return whole::packed(units, a.cast(), b.cast(), ahead, out);
        }
        by_shape!(shape, f32_packed(units, a.cast(), b.cast(), ahead, out))
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
        if shape == (MR, NR) {
            return whole::unpacked(units, a, strides, b.cast(), out);
        }
        by_shape!(shape, f32_unpacked(units, a, strides, b.cast(), out))
    }
}

/// One inner index: `sums += a b`, where element r of A is `r * row_stride` away.
macro_rules! step {
    ($sums:ident, $a:expr, $row_stride:expr, $b:expr) => {{
        let mut b = [_mm256_setzero_ps(); V];
        for (v, b) in b.iter_mut().enumerate() {
            *b = _mm256_loadu_ps($b.add(LANES * v));
        }
        for (r, sums) in $sums.iter_mut().enumerate() {
            let x = _mm256_broadcast_ss(&*$a.add(r * $row_stride));
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = _mm256_fmadd_ps(x, b, *sum);
            }
        }
    }};
}

/// # Safety
/// As [`block`], with R rows of V registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_packed<const R: usize, const V: usize>(
    units: usize,
    a: *const f32,
    b: *const f32,
    ahead: *const u32,
    out: Block,
) {
    let (mut a, mut b) = (a, b);
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    fetch::<R>(units, V * LANES, out);
    // SAFETY: within the panels, by the caller's promise.
    unsafe {
        for i in 0..units / UNROLLED {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(i * LINE).cast());
            for step in 0..UNROLLED {
                step!(sums, a.add(step * R), 1, b.add(step * V * LANES));
            }
            a = a.add(UNROLLED * R);
            b = b.add(UNROLLED * V * LANES);
        }
        for _ in 0..units % UNROLLED {
            step!(sums, a, 1, b);
            a = a.add(R);
            b = b.add(V * LANES);
        }
        store(&sums, out)
    }
}

/// # Safety
/// As [`block_unpacked`], with R rows of V registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_unpacked<const R: usize, const V: usize>(
    units: usize,
    a: *const f32,
    (row_stride, inner_stride): (usize, usize),
    b: *const f32,
    out: Block,
) {
    let (mut a, mut b) = (a, b);
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    fetch::<R>(units, V * LANES, out);
    // SAFETY: within A and the panel, by the caller's promise.
    unsafe {
        for _ in 0..units {
            step!(sums, a, row_stride, b);
            // The last step may lead past the end, where nothing is read.
            a = a.wrapping_add(inner_stride);
            b = b.add(V * LANES);
        }
        store(&sums, out)
    }
}

/// # Safety
/// AVX2; the block of R rows may be written.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const R: usize, const V: usize>(sums: &[[__m256; V]; R], out: Block) {
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: within the block's columns.
        unsafe {
            let c = out.c.add(r * out.row_stride);
            if out.cols == V * LANES {
                for (v, sum) in sums.iter().enumerate() {
                    let c = c.add(v * LANES);
                    _mm256_storeu_ps(c, if out.add { _mm256_add_ps(*sum, _mm256_loadu_ps(c)) } else { *sum });
                }
            } else {
                // Masked stores take longer than these few.
                let mut row = [0f32; NR];
                for (v, sum) in sums.iter().enumerate() {
                    _mm256_storeu_ps(row.as_mut_ptr().add(v * LANES), *sum);
                }
                for (j, s) in row.iter().enumerate().take(out.cols) {
                    *c.add(j) = if out.add { *s + *c.add(j) } else { *s };
                }
            }
        }
    }
}

//! The kernel on AVX2: the sums of a 6 x 16 block stay in 12 of the 16 registers.

use super::{Block, LINE, by_rows, fetch};
use std::arch::x86_64::*;

/// Rows of a block, at most.
pub const MR: usize = 6;
/// Columns of a block: two registers.
pub const NR: usize = 16;
/// Steps between two requests for lines ahead.
pub const UNROLLED: usize = 4;

/// # Safety
/// As [`super::block`], on AVX2 with FMA.
pub unsafe fn block(rows: usize, units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    // SAFETY: by the caller's promise.
    unsafe { by_rows!(rows, f32_packed(units, a.cast(), b.cast(), ahead, out), 1 2 3 4 5 6) }
}

/// # Safety
/// As [`super::block_unpacked`], on AVX2 with FMA.
pub unsafe fn block_unpacked(
    rows: usize,
    units: usize,
    a: *const f32,
    (row_stride, inner_stride): (usize, usize),
    b: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe { by_rows!(rows, f32_unpacked(units, a, row_stride, inner_stride, b.cast(), out), 1 2 3 4 5 6) }
}

/// One inner index: `sums += a b`, where element r of A is `r * row_stride` away.
macro_rules! step {
    ($sums:ident, $a:expr, $row_stride:expr, $b:expr) => {{
        let (b0, b1) = (_mm256_loadu_ps($b), _mm256_loadu_ps($b.add(8)));
        for (r, sum) in $sums.iter_mut().enumerate() {
            let x = _mm256_broadcast_ss(&*$a.add(r * $row_stride));
            sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
            sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
        }
    }};
}

/// # Safety
/// As [`block`], with R rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_packed<const R: usize>(units: usize, a: *const f32, b: *const f32, ahead: *const u32, out: Block) {
    let (mut a, mut b) = (a, b);
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    fetch::<R, NR>(units, out);
    // SAFETY: within the panels, by the caller's promise.
    unsafe {
        for i in 0..units / UNROLLED {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(i * LINE).cast());
            for step in 0..UNROLLED {
                step!(sums, a.add(step * R), 1, b.add(step * NR));
            }
            a = a.add(UNROLLED * R);
            b = b.add(UNROLLED * NR);
        }
        for _ in 0..units % UNROLLED {
            step!(sums, a, 1, b);
            a = a.add(R);
            b = b.add(NR);
        }
        store(sums, out)
    }
}

/// # Safety
/// As [`block_unpacked`], with R rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_unpacked<const R: usize>(
    units: usize,
    a: *const f32,
    row_stride: usize,
    inner_stride: usize,
    b: *const f32,
    out: Block,
) {
    let (mut a, mut b) = (a, b);
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    fetch::<R, NR>(units, out);
    // SAFETY: within A and the panel, by the caller's promise.
    unsafe {
        for _ in 0..units {
            step!(sums, a, row_stride, b);
            // The last step may lead past the end, where nothing is read.
            a = a.wrapping_add(inner_stride);
            b = b.add(NR);
        }
        store(sums, out)
    }
}

/// # Safety
/// AVX2; the block of R rows may be written.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const R: usize>(sums: [[__m256; 2]; R], out: Block) {
    for (r, sum) in sums.iter().enumerate() {
        // SAFETY: within the block's columns.
        unsafe {
            let c = out.c.add(r * out.row_stride);
            if out.cols == NR {
                let (mut s0, mut s1) = (sum[0], sum[1]);
                if out.add {
                    s0 = _mm256_add_ps(s0, _mm256_loadu_ps(c));
                    s1 = _mm256_add_ps(s1, _mm256_loadu_ps(c.add(8)));
                }
                _mm256_storeu_ps(c, s0);
                _mm256_storeu_ps(c.add(8), s1);
            } else {
                // Masked stores take longer than these few.
                let mut row = [0f32; NR];
                _mm256_storeu_ps(row.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(row.as_mut_ptr().add(8), sum[1]);
                for (j, s) in row.iter().enumerate().take(out.cols) {
                    *c.add(j) = if out.add { *s + *c.add(j) } else { *s };
                }
            }
        }
    }
}

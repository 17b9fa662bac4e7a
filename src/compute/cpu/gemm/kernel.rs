//! Inner products of packed panels, on AVX-512: the loop in which nearly all of the time goes.
//!
//! A panel of A holds up to [`MR`] rows, a panel of B [`NR`] columns, both unit by unit along the inner dimension, so
//! that the loop reads them straight through. A *unit* is 32 bits: one f32, or two neighbouring bf16 (`vdpbf16ps`
//! multiplies and adds both into an f32 sum). The sums of a 14 x 32 block stay in 28 of the 32 registers.

use super::Compute;
use std::arch::x86_64::*;

/// Rows of a block, at most.
pub const MR: usize = 14;
/// Columns of a block: two registers.
pub const NR: usize = 32;

/// One block of C.
#[derive(Clone, Copy)]
pub struct Block {
    pub c: *mut f32,
    pub row_stride: usize,
    /// Up to [`NR`].
    pub cols: usize,
    /// Add to what is there, or replace it.
    pub add: bool,
}

/// `C (+)= A B` for one panel of each: a `[units][rows]`, b `[units][NR]`, rows 1 to [`MR`].
///
/// # Safety
/// The machine has AVX-512F (and AVX512-BF16 for bf16); the panels are as long as stated; the block of `rows x cols` may
/// be written.
pub unsafe fn block(compute: Compute, rows: usize, units: usize, a: *const u32, b: *const u32, out: Block) {
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match (compute, rows) {
                // SAFETY: by the caller's promise.
                $((Compute::F32, $n) => unsafe { f32_block::<$n>(units, a, b, out) },
                // SAFETY: as above.
                (Compute::Bf16, $n) => unsafe { bf16_block::<$n>(units, a, b, out) },)*
                _ => unreachable!("a panel of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// # Safety
/// As [`block`], with R rows.
#[target_feature(enable = "avx512f")]
unsafe fn f32_block<const R: usize>(units: usize, a: *const u32, b: *const u32, out: Block) {
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for _ in 0..units {
        // SAFETY: within the panels, by the caller's promise.
        unsafe {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
            a = a.add(R);
            b = b.add(NR);
        }
    }
    // SAFETY: by the caller's promise.
    unsafe { store(sums, out) }
}

/// [`block`] in f32 with A as it lies: element (r, k) at `a + r * row_stride + k * inner_stride`.
///
/// # Safety
/// As [`block`].
pub unsafe fn block_unpacked(
    rows: usize,
    units: usize,
    a: *const f32,
    (row_stride, inner_stride): (usize, usize),
    b: *const u32,
    out: Block,
) {
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: by the caller's promise.
                $($n => unsafe { f32_unpacked::<$n>(units, a, row_stride, inner_stride, b, out) },)*
                _ => unreachable!("a panel of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// # Safety
/// As [`block_unpacked`], with R rows.
#[target_feature(enable = "avx512f")]
unsafe fn f32_unpacked<const R: usize>(
    units: usize,
    a: *const f32,
    row_stride: usize,
    inner_stride: usize,
    b: *const u32,
    out: Block,
) {
    let (mut a, mut b) = (a, b.cast::<f32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for _ in 0..units {
        // SAFETY: within A and the panel, by the caller's promise.
        unsafe {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * row_stride));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
            // The last step may lead past the end, where nothing is read.
            a = a.wrapping_add(inner_stride);
            b = b.add(NR);
        }
    }
    // SAFETY: by the caller's promise.
    unsafe { store(sums, out) }
}

/// # Safety
/// As [`block`], with R rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_block<const R: usize>(units: usize, a: *const u32, b: *const u32, out: Block) {
    let (mut a, mut b) = (a.cast::<i32>(), b.cast::<i32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for _ in 0..units {
        // SAFETY: within the panels, by the caller's promise; a register of 16 pairs is one of 32 bf16.
        unsafe {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(16).cast()));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(r)));
                sum[0] = _mm512_dpbf16_ps(sum[0], x, b0);
                sum[1] = _mm512_dpbf16_ps(sum[1], x, b1);
            }
            a = a.add(R);
            b = b.add(NR);
        }
    }
    // SAFETY: by the caller's promise.
    unsafe { store(sums, out) }
}

/// # Safety
/// AVX-512F; the block of R rows may be written.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const R: usize>(sums: [[__m512; 2]; R], out: Block) {
    let mask = |cols: usize| ((1u32 << cols.min(16)) - 1) as __mmask16;
    let (m0, m1) = (mask(out.cols), mask(out.cols.saturating_sub(16)));
    for (r, sum) in sums.iter().enumerate() {
        // SAFETY: masked to the block's columns.
        unsafe {
            let c = out.c.add(r * out.row_stride);
            let (mut s0, mut s1) = (sum[0], sum[1]);
            if out.add {
                s0 = _mm512_add_ps(s0, _mm512_maskz_loadu_ps(m0, c));
                s1 = _mm512_add_ps(s1, _mm512_maskz_loadu_ps(m1, c.wrapping_add(16)));
            }
            _mm512_mask_storeu_ps(c, m0, s0);
            _mm512_mask_storeu_ps(c.wrapping_add(16), m1, s1);
        }
    }
}

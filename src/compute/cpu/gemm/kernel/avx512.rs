//! The kernel on AVX-512: the sums of a 14 x 32 block stay in 28 of the 32 registers. In bf16, `vdpbf16ps` multiplies the
//! two numbers of a unit and adds both into an f32 sum.

use super::{Block, Isa, LINE, Rounded, by_constants, fetch_row, prefetch};
use std::arch::x86_64::*;

/// Columns of a block: two registers.
const NR: usize = Isa::Avx512.columns();

/// Takes a step for every unit, and between them asks for the block's rows of C, one after the other: asked for all at once, they are more
/// than the core can wait for at a time, and the panels' lines wait behind them (7 % of a product's time on Zen 5).
macro_rules! each_unit {
    ($units:ident, $rows:ident, $out:ident, $step:block) => {
        for row in 0..$rows {
            fetch_row($units, NR, $out, row);
            for _ in 0..$units / $rows {
                $step
            }
        }
        for _ in 0..$units % $rows {
            $step
        }
    };
}

/// # Safety
/// As [`super::block`], on AVX-512F.
pub unsafe fn block(rows: usize, units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    // SAFETY: by the caller's promise.
    unsafe {
        by_constants!((rows,), f32_block(units, a, b, ahead, out), 1; 2; 3; 4; 5; 6; 7; 8; 9; 10; 11; 12; 13; 14;)
    }
}

/// # Safety
/// As [`super::block`], on AVX-512F and AVX512-BF16 with BW and VL.
pub unsafe fn block_bf16(rows: usize, units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    // SAFETY: by the caller's promise.
    unsafe {
        by_constants!((rows,), bf16_block(units, a, b, ahead, out), 1; 2; 3; 4; 5; 6; 7; 8; 9; 10; 11; 12; 13; 14;)
    }
}

/// # Safety
/// As [`super::block_unpacked`], on AVX-512F.
pub unsafe fn block_unpacked(
    rows: usize,
    units: usize,
    a: *const f32,
    (row_stride, inner_stride): (usize, usize),
    b: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        by_constants!((rows,), f32_unpacked(units, a, row_stride, inner_stride, b, out), 1; 2; 3; 4; 5; 6; 7; 8; 9; 10; 11; 12; 13; 14;)
    }
}

/// # Safety
/// As [`block`], with R rows.
#[target_feature(enable = "avx512f")]
unsafe fn f32_block<const R: usize>(units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    let (mut a, mut b, mut ahead) = (a.cast::<f32>(), b.cast::<f32>(), ahead.cast::<f32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    each_unit!(units, R, out, {
        prefetch::<2>(ahead);
        // SAFETY: within the panels, by the caller's promise.
        unsafe {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
            (a, b, ahead) = (a.add(R), b.add(NR), ahead.wrapping_add(LINE));
        }
    });
    // SAFETY: by the caller's promise.
    unsafe { store(sums, out) }
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
    each_unit!(units, R, out, {
        // SAFETY: within A and the panel, by the caller's promise.
        unsafe {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * row_stride));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
            // The last step may lead past the end, where nothing is read.
            (a, b) = (a.wrapping_add(inner_stride), b.add(NR));
        }
    });
    // SAFETY: by the caller's promise.
    unsafe { store(sums, out) }
}

/// # Safety
/// As [`block`], with R rows.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
unsafe fn bf16_block<const R: usize>(units: usize, a: *const u32, b: *const u32, ahead: *const u32, out: Block) {
    let (mut a, mut b, mut ahead) = (a.cast::<i32>(), b.cast::<i32>(), ahead.cast::<f32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    each_unit!(units, R, out, {
        prefetch::<2>(ahead);
        // SAFETY: within the panels, by the caller's promise; a register of 16 pairs is one of 32 bf16.
        unsafe {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(16).cast()));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(r)));
                sum[0] = _mm512_dpbf16_ps(sum[0], x, b0);
                sum[1] = _mm512_dpbf16_ps(sum[1], x, b1);
            }
            (a, b, ahead) = (a.add(R), b.add(NR), ahead.wrapping_add(LINE));
        }
    });
    // SAFETY: by the caller's promise.
    unsafe { store_bf16(sums, out) }
}

/// # Safety
/// AVX-512F; the block of R rows may be written.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const R: usize>(sums: [[__m512; 2]; R], out: Block) {
    let (m0, m1) = masks(out.cols);
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

/// [`store`] where the result may be in bf16.
///
/// # Safety
/// AVX-512F and AVX512-BF16 with BW and VL; the block of R rows may be written, in either place.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
unsafe fn store_bf16<const R: usize>(sums: [[__m512; 2]; R], out: Block) {
    let Some(Rounded { c, row_stride, read, write }) = out.rounded else {
        // SAFETY: by the caller's promise.
        return unsafe { store(sums, out) };
    };
    let (m0, m1) = masks(out.cols);
    for (r, sum) in sums.iter().enumerate() {
        let (exact, rounded) = (out.c.wrapping_add(r * out.row_stride), c.wrapping_add(r * row_stride));
        for (half, mask) in [m0, m1].into_iter().enumerate() {
            let (exact, rounded) = (exact.wrapping_add(16 * half), rounded.wrapping_add(16 * half));
            let mut sum = sum[half];
            // SAFETY: masked to the block's columns; sixteen bf16 are as many numbers of 16 bits, the upper halves of an f32.
            unsafe {
                if out.add && read {
                    let before = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, rounded.cast()));
                    sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(before)));
                } else if out.add {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, exact));
                }
                if write {
                    let sum = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sum));
                    _mm256_mask_storeu_epi16(rounded.cast(), mask, sum);
                } else {
                    _mm512_mask_storeu_ps(exact, mask, sum);
                }
            }
        }
    }
}

/// Lanes of a block's two registers that C has.
#[inline]
#[target_feature(enable = "avx512f")]
fn masks(cols: usize) -> (__mmask16, __mmask16) {
    let mask = |cols: usize| ((1u32 << cols.min(16)) - 1) as __mmask16;
    (mask(cols), mask(cols.saturating_sub(16)))
}

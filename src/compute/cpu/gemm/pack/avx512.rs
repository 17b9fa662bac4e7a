//! Packing on AVX-512: blocks of 16 x 16 units transposed in registers.

use super::Source;
use crate::compute::cpu::prefetch::prefetch;
use half::bf16;
use std::arch::x86_64::*;

/// # Safety
/// As [`super::panel`], on AVX-512F.
pub unsafe fn panel(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        match source.inner_stride {
            1 => transpose(source, width, k, step, out),
            _ => copy(source, width, k, step, out),
        }
    }
}

/// # Safety
/// As [`super::panel`], on AVX512-BF16 with BW and VL.
pub unsafe fn panel_bf16<E: Rounded>(source: Source<*const E>, width: usize, k: usize, step: usize, out: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        match source.inner_stride {
            1 => transpose_bf16(source, width, k, step, out),
            _ => copy_bf16(source, width, k, step, out),
        }
    }
}

/// What bf16 is made of: f32, or bf16 as it is.
pub trait Rounded: Copy {
    /// Sixteen elements, masked, each in the lower half of a unit.
    ///
    /// # Safety
    /// AVX512-BF16 with BW and VL; the elements of the mask may be read.
    unsafe fn lower_halves(at: *const Self, mask: __mmask16) -> __m512i;

    /// The first `n` of 32 elements, two in a unit, zeros beyond.
    ///
    /// # Safety
    /// As above, of n elements.
    unsafe fn pairs(at: *const Self, n: usize) -> __m512i;
}

impl Rounded for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn lower_halves(at: *const f32, mask: __mmask16) -> __m512i {
        // SAFETY: by the caller's promise.
        let rounded = unsafe { _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, at)) };
        // SAFETY: sixteen bf16 are sixteen numbers of as many bits.
        _mm512_cvtepu16_epi32(unsafe { std::mem::transmute::<__m256bh, __m256i>(rounded) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn pairs(at: *const f32, n: usize) -> __m512i {
        // SAFETY: by the caller's promise; a register of pairs is one of units.
        unsafe {
            let lo = _mm512_maskz_loadu_ps(lanes(n), at);
            let hi = _mm512_maskz_loadu_ps(lanes(n.saturating_sub(16)), at.wrapping_add(16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(hi, lo))
        }
    }
}

impl Rounded for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn lower_halves(at: *const bf16, mask: __mmask16) -> __m512i {
        // SAFETY: by the caller's promise.
        _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, at.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
    unsafe fn pairs(at: *const bf16, n: usize) -> __m512i {
        let mask = ((1u64 << n.min(32)) - 1) as __mmask32;
        // SAFETY: by the caller's promise.
        unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) }
    }
}

#[target_feature(enable = "avx512f")]
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx512f")]
unsafe fn copy(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    for from in (0..step).step_by(16) {
        let mask = lanes(width.saturating_sub(from));
        for i in 0..k {
            // SAFETY: masked to the source's elements; the destination by the caller's promise.
            unsafe {
                let row = source.data.wrapping_add(i * source.inner_stride + from);
                let x = _mm512_maskz_loadu_ps(mask, row);
                _mm512_mask_storeu_ps(out.add(i * step + from).cast(), lanes(step - from), x);
            }
        }
    }
}

/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
unsafe fn copy_bf16<E: Rounded>(source: Source<*const E>, width: usize, k: usize, step: usize, out: *mut u32) {
    for from in (0..step).step_by(16) {
        let mask = lanes(width.saturating_sub(from));
        for i in 0..k.div_ceil(2) {
            // SAFETY: masked to the source's elements; the destination by the caller's promise.
            unsafe {
                let row = source.data.wrapping_add(2 * i * source.inner_stride + from);
                let even = E::lower_halves(row, mask);
                let mask = if 2 * i + 1 < k { mask } else { 0 };
                let odd = E::lower_halves(row.wrapping_add(source.inner_stride), mask);
                let pairs = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                _mm512_mask_storeu_epi32(out.add(i * step + from).cast(), lanes(step - from), pairs);
            }
        }
    }
}

/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx512f")]
unsafe fn transpose(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    for from in (0..step).step_by(16) {
        let rows = width.saturating_sub(from).min(16);
        for k0 in (0..k).step_by(16) {
            let mask = lanes(k - k0);
            let mut x = [_mm512_setzero_si512(); 16];
            for (r, x) in x.iter_mut().enumerate().take(rows) {
                // SAFETY: masked to the source's elements; the destination by the caller's promise.
                unsafe {
                    let at = source.data.add((from + r) * source.width_stride + k0);
                    // The rows that come next lie far from these, so nothing else foresees them.
                    prefetch::<1>(at.wrapping_add(rows * source.width_stride));
                    *x = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, at));
                }
            }
            let x = transposed(x);
            for (i, x) in x.iter().enumerate().take(k - k0) {
                // SAFETY: the destination by the caller's promise.
                unsafe { _mm512_storeu_si512(out.add((k0 + i) * step + from).cast(), *x) };
            }
        }
    }
}

/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
unsafe fn transpose_bf16<E: Rounded>(source: Source<*const E>, width: usize, k: usize, step: usize, out: *mut u32) {
    for from in (0..step).step_by(16) {
        let rows = width.saturating_sub(from).min(16);
        for k0 in (0..k).step_by(32) {
            let mut x = [_mm512_setzero_si512(); 16];
            for (r, x) in x.iter_mut().enumerate().take(rows) {
                // SAFETY: masked to the source's elements; the destination by the caller's promise.
                unsafe {
                    let at = source.data.add((from + r) * source.width_stride + k0);
                    let next = at.wrapping_add(rows * source.width_stride);
                    prefetch::<1>(next.cast());
                    prefetch::<1>(next.wrapping_add(31).cast());
                    *x = E::pairs(at, k - k0);
                }
            }
            let x = transposed(x);
            for (i, x) in x.iter().enumerate().take((k - k0).div_ceil(2)) {
                // SAFETY: the destination by the caller's promise.
                unsafe { _mm512_storeu_si512(out.add((k0 / 2 + i) * step + from).cast(), *x) };
            }
        }
    }
}

/// The transpose of 16 x 16 units.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(x: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = [_mm512_setzero_si512(); 16];
    // Pairs of rows, then of pairs, within the 128-bit lanes; then lanes against each other.
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    let mut u = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    let mut out = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        // Column i of each 128-bit lane: lanes of rows 0-3, 4-7, 8-11, 12-15.
        let (a, b, c, d) = (u[i], u[4 + i], u[8 + i], u[12 + i]);
        let (ab0, ab1) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd0, cd1) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[i] = _mm512_shuffle_i32x4::<0x88>(ab0, cd0);
        out[4 + i] = _mm512_shuffle_i32x4::<0x88>(ab1, cd1);
        out[8 + i] = _mm512_shuffle_i32x4::<0xdd>(ab0, cd0);
        out[12 + i] = _mm512_shuffle_i32x4::<0xdd>(ab1, cd1);
    }
    out
}

//! Packing on AVX2: blocks of 8 x 8 units transposed in registers, of 4 x 8 in panels up to 4 wide.

use super::Source;
use crate::compute::cpu::prefetch::prefetch;
use std::arch::x86_64::*;

/// # Safety
/// As [`super::panel`], on AVX2.
pub unsafe fn panel(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (source.inner_stride, step) {
            (1, ..=4) => transpose_narrow(source, width, k, step, out),
            (1, _) => transpose(source, width, k, step, out),
            (_, ..=4) => copy_narrow(source, width, k, step, out),
            (_, _) => copy(source, width, k, step, out),
        }
    }
}

/// A mask of the first `n` lanes.
#[target_feature(enable = "avx2")]
fn lanes(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx2")]
unsafe fn copy(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    for from in (0..step).step_by(8) {
        let mask = lanes(width.saturating_sub(from));
        for i in 0..k {
            // SAFETY: masked to the source's elements; the destination by the caller's promise.
            unsafe {
                let row = source.data.wrapping_add(i * source.inner_stride + from);
                // The rows lie far apart, so nothing else foresees them.
                prefetch::<1>(row.wrapping_add(8 * source.inner_stride));
                _mm256_storeu_ps(out.add(i * step + from).cast(), _mm256_maskload_ps(row, mask));
            }
        }
    }
}

/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx2")]
unsafe fn transpose(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    for from in (0..step).step_by(8) {
        let rows = width.saturating_sub(from).min(8);
        for k0 in (0..k).step_by(8) {
            let mask = lanes(k - k0);
            let mut x = [_mm256_setzero_ps(); 8];
            for (r, x) in x.iter_mut().enumerate().take(rows) {
                // SAFETY: masked to the source's elements; the destination by the caller's promise.
                unsafe {
                    let row = source.data.add((from + r) * source.width_stride + k0);
                    prefetch::<1>(row.wrapping_add(64));
                    *x = _mm256_maskload_ps(row, mask);
                }
            }
            let x = transposed(x);
            for (i, x) in x.iter().enumerate().take(k - k0) {
                // SAFETY: the destination by the caller's promise.
                unsafe { _mm256_storeu_ps(out.add((k0 + i) * step + from).cast(), *x) };
            }
        }
    }
}

/// A mask of the first `n` of 4 lanes.
#[target_feature(enable = "avx2")]
fn few_lanes(n: usize) -> __m128i {
    _mm_cmpgt_epi32(_mm_set1_epi32(n.min(4) as i32), _mm_setr_epi32(0, 1, 2, 3))
}

/// [`copy`] for a step up to 4.
///
/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx2")]
unsafe fn copy_narrow(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    let (mask, written) = (few_lanes(width), few_lanes(step));
    for i in 0..k {
        // SAFETY: masked to the source's elements; the destination by the caller's promise.
        unsafe {
            let row = source.data.wrapping_add(i * source.inner_stride);
            // The rows lie far apart, so nothing else foresees them.
            prefetch::<1>(row.wrapping_add(8 * source.inner_stride));
            let (x, out) = (_mm_maskload_ps(row, mask), out.add(i * step).cast());
            // A masked store takes longer.
            if step == 4 {
                _mm_storeu_ps(out, x)
            } else {
                _mm_maskstore_ps(out, written, x)
            };
        }
    }
}

/// [`transpose`] for a step up to 4.
///
/// # Safety
/// As [`super::panel`].
#[target_feature(enable = "avx2")]
unsafe fn transpose_narrow(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    for k0 in (0..k).step_by(8) {
        let mask = lanes(k - k0);
        let mut x = [_mm256_setzero_ps(); 4];
        for (r, x) in x.iter_mut().enumerate().take(width) {
            // SAFETY: masked to the source's elements.
            unsafe {
                let row = source.data.add(r * source.width_stride + k0);
                prefetch::<1>(row.wrapping_add(64));
                *x = _mm256_maskload_ps(row, mask);
            }
        }
        // Pairs of rows, then of pairs: columns j and 4 + j are the lanes of the j-th.
        let (t0, t1) = (_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
        let (t2, t3) = (_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
        let columns = [
            _mm256_shuffle_ps::<0x44>(t0, t2),
            _mm256_shuffle_ps::<0xee>(t0, t2),
            _mm256_shuffle_ps::<0x44>(t1, t3),
            _mm256_shuffle_ps::<0xee>(t1, t3),
        ];
        for half in 0..2 {
            for (i, x) in columns.iter().enumerate().take((k - k0).saturating_sub(4 * half)) {
                let x = if half == 0 { _mm256_castps256_ps128(*x) } else { _mm256_extractf128_ps::<1>(*x) };
                // SAFETY: the destination by the caller's promise.
                unsafe { _mm_storeu_ps(out.add((k0 + 4 * half + i) * step).cast(), x) };
            }
        }
    }
}

/// The transpose of 8 x 8 units.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(x: [__m256; 8]) -> [__m256; 8] {
    let mut t = [_mm256_setzero_ps(); 8];
    // Pairs of rows, then of pairs, within the 128-bit lanes; then lanes against each other.
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let mut u = [_mm256_setzero_ps(); 8];
    for i in 0..2 {
        // Column j of rows 4i to 4i + 3, for both 128-bit lanes.
        u[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
    }
    let mut out = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(u[i], u[4 + i]);
        out[4 + i] = _mm256_permute2f128_ps::<0x31>(u[i], u[4 + i]);
    }
    out
}

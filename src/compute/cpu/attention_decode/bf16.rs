//! The same from a cache in bf16: products of rounded operands, sums in f32 (AVX512-BF16).

use super::{KV_BLOCK, OneToken, block_units};
use crate::compute::cpu::attention::exp_sum;
use crate::compute::cpu::gemm::Compute;
use crate::compute::cpu::simd::max;
use std::arch::x86_64::*;

/// # Safety
/// The machine has AVX512-BF16, with BW and VL; the spans are in bf16.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(super) unsafe fn attend(mut token: OneToken<'_>) {
    let (row, tokens) = token.room_for_scores();
    let OneToken { shape, first_kv_head, query, spans, out, scores } = token;
    let (hd, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let (of_keys, of_values) = block_units(Compute::Bf16, hd);
    let scale = 1.0 / (hd as f32).sqrt();
    let bits = |x: &f32| half::bf16::from_f32(x * scale).to_bits() as u32;
    let pair = |x: &[f32]| bits(&x[0]) | x.get(1).map_or(0, |x| bits(x) << 16);
    let queries: Vec<u32> = query.chunks_exact(hd).flat_map(|head| head.chunks(2).map(pair)).collect();
    let mut seen = 0;
    for span in spans {
        for (i, keys) in span.keys.chunks_exact(shape.kv_heads * of_keys).enumerate() {
            let at = seen + i * KV_BLOCK;
            for (head, query) in queries.chunks_exact(hd.div_ceil(2)).enumerate() {
                let keys = &keys[(first_kv_head + head / group) * of_keys..][..of_keys];
                block_scores(query, keys, &mut scores[head * row + at..][..KV_BLOCK]);
            }
        }
        seen += span.tokens;
    }
    for scores in scores.chunks_exact_mut(row) {
        let scores = &mut scores[..tokens];
        let m = max(scores);
        let inv = 1.0 / exp_sum(scores, m);
        scores.iter_mut().for_each(|x| *x *= inv);
    }
    out.fill(0.0);
    let mut seen = 0;
    for span in spans {
        for (i, values) in span.values.chunks_exact(shape.kv_heads * of_values).enumerate() {
            let (at, n) = (seen + i * KV_BLOCK, KV_BLOCK.min(span.tokens - i * KV_BLOCK));
            for (head, out) in out.chunks_exact_mut(hd).enumerate() {
                let weights = &scores[head * row + at..][..n];
                add_values(weights, &values[(first_kv_head + head / group) * of_values..][..of_values], out);
            }
        }
        seen += span.tokens;
    }
}

#[target_feature(enable = "avx512f")]
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Scores of a block: query `[hd / 2]` pairs, scaled; keys `[hd / 2, KV_BLOCK]` pairs; scores `[KV_BLOCK]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn block_scores(query: &[u32], keys: &[u32], scores: &mut [f32]) {
    // Four sums, so that an addition need not wait for the one before it.
    let mut sums = [_mm512_setzero_ps(); 4];
    for (queries, keys) in query.chunks(4).zip(keys.chunks(4 * KV_BLOCK)) {
        for ((query, keys), sum) in queries.iter().zip(keys.chunks_exact(KV_BLOCK)).zip(&mut sums) {
            // SAFETY: keys are one register of 16 units; a register of units is one of bf16 pairs.
            unsafe {
                let query: __m512bh = std::mem::transmute(_mm512_set1_epi32(*query as i32));
                let keys: __m512bh = std::mem::transmute(_mm512_loadu_si512(keys.as_ptr().cast()));
                *sum = _mm512_dpbf16_ps(*sum, query, keys);
            }
        }
    }
    let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    assert!(scores.len() == KV_BLOCK, "scores of a block");
    // SAFETY: room for the register was asserted.
    unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), sum) };
}

/// `out += sum over a block's tokens of weight * value`; values `[KV_BLOCK / 2, hd]` pairs of tokens, out `[hd]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn add_values(weights: &[f32], values: &[u32], out: &mut [f32]) {
    let hd = out.len();
    let mut pairs = [0u32; KV_BLOCK / 2];
    // SAFETY: masked to the weights that there are; sixteen bf16 fill the eight pairs.
    unsafe {
        let weights = _mm512_maskz_loadu_ps(lanes(weights.len()), weights.as_ptr());
        let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(weights));
        _mm256_storeu_si256(pairs.as_mut_ptr().cast(), rounded);
    }
    assert!(values.len() == KV_BLOCK / 2 * hd, "values of a block");
    for from in (0..hd).step_by(64) {
        // Four registers at a time; those beyond the head's dimension are masked out.
        let masks: [__mmask16; 4] = std::array::from_fn(|i| lanes((hd - from).saturating_sub(16 * i)));
        let mut sums = [_mm512_setzero_ps(); 4];
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: masked to out.
            *sum = unsafe { _mm512_maskz_loadu_ps(masks[i], out.as_ptr().wrapping_add(from + 16 * i)) };
        }
        for (t, weight) in pairs.iter().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                if masks[i] == 0 {
                    break;
                }
                // SAFETY: masked to the row of values, whose length was asserted; units are bf16 pairs.
                unsafe {
                    let at = values.as_ptr().wrapping_add(t * hd + from + 16 * i);
                    let value: __m512bh = std::mem::transmute(_mm512_maskz_loadu_epi32(masks[i], at.cast()));
                    let weight: __m512bh = std::mem::transmute(_mm512_set1_epi32(*weight as i32));
                    *sum = _mm512_dpbf16_ps(*sum, weight, value);
                }
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: masked to out.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(from + 16 * i), masks[i], *sum) };
        }
    }
}

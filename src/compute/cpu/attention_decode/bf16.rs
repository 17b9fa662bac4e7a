//! The same from a cache in bf16: products of rounded operands, sums in f32 (AVX512-BF16).

use super::{KV_BLOCK, OneToken, Together, bf16_pair, block_units, softmax};
use crate::compute::cpu::gemm::Compute;
use crate::compute::cpu::prefetch::prefetch;
use std::arch::x86_64::*;

/// Query heads that share keys and values and are taken together, at most: their sums stay in registers.
const TOGETHER: usize = 4;

/// # Safety
/// The machine has AVX512-BF16, with BW and VL; the spans are in bf16.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(super) unsafe fn attend(mut token: OneToken<'_>) {
    let (row, tokens) = token.room_for_scores();
    let (reads, blocks, groups) = (token.reads(), token.blocks(), token.together(TOGETHER));
    let OneToken { shape, query, out, scores, .. } = token;
    let hd = shape.head_dim;
    let (of_keys, of_values) = block_units(Compute::Bf16, hd);
    let scale = 1.0 / (hd as f32).sqrt();
    let pair = |x: &[f32]| bf16_pair(x, scale);
    let queries: Vec<u32> = query.chunks_exact(hd).flat_map(|head| head.chunks(2).map(pair)).collect();
    for (i, (at, _)) in blocks.clone().enumerate() {
        for Together { head, heads, kv_head } in groups.clone() {
            let (keys, ahead) = reads.at(i, kv_head * of_keys..(kv_head + 1) * of_keys);
            let (queries, scores) = (&queries[head * hd.div_ceil(2)..], &mut scores[head * row + at..]);
            match heads {
                1 => block_scores::<1>(queries, keys, ahead, scores, row),
                2 => block_scores::<2>(queries, keys, ahead, scores, row),
                3 => block_scores::<3>(queries, keys, ahead, scores, row),
                _ => block_scores::<TOGETHER>(queries, keys, ahead, scores, row),
            }
        }
    }
    softmax(scores, row, tokens);
    out.fill(0.0);
    for ((at, n), i) in blocks.zip(reads.blocks()..) {
        for Together { head, heads, kv_head } in groups.clone() {
            let (values, ahead) = reads.at(i, kv_head * of_values..(kv_head + 1) * of_values);
            let (weights, out) = ((&scores[head * row + at..], row, n), &mut out[head * hd..][..heads * hd]);
            match heads {
                1 => add_values::<1>(weights, values, ahead, out),
                2 => add_values::<2>(weights, values, ahead, out),
                3 => add_values::<3>(weights, values, ahead, out),
                _ => add_values::<TOGETHER>(weights, values, ahead, out),
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Scores of a block: queries `[G, hd / 2]` pairs, scaled; keys `[hd / 2, KV_BLOCK]` pairs; scores `[G, row]`, of which the first KV_BLOCK
/// are the block's. The keys that lie `ahead` are asked for.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn block_scores<const G: usize>(queries: &[u32], keys: &[u32], ahead: *const u32, scores: &mut [f32], row: usize) {
    // Four sums a head, so that an addition need not wait for the one before it.
    let mut sums = [[_mm512_setzero_ps(); 4]; G];
    let pairs = keys.len() / KV_BLOCK;
    assert!(queries.len() >= G * pairs && scores.len() >= (G - 1) * row + KV_BLOCK, "a block's queries and scores");
    macro_rules! step {
        ($pair:expr, $sum:expr) => {
            // SAFETY: a pair of the keys, one register of units, and of each query, which was asserted; a register of units is one of bf16 pairs.
            unsafe {
                let at = keys.as_ptr().add($pair * KV_BLOCK);
                prefetch::<1>(ahead.wrapping_add($pair * KV_BLOCK).cast());
                let keys: __m512bh = std::mem::transmute(_mm512_loadu_si512(at.cast()));
                for (head, sums) in sums.iter_mut().enumerate() {
                    let query = _mm512_set1_epi32(*queries.as_ptr().add(head * pairs + $pair) as i32);
                    sums[$sum] = _mm512_dpbf16_ps(sums[$sum], keys, std::mem::transmute::<__m512i, __m512bh>(query));
                }
            }
        };
    }
    for quad in 0..pairs / 4 {
        step!(4 * quad, 0);
        step!(4 * quad + 1, 1);
        step!(4 * quad + 2, 2);
        step!(4 * quad + 3, 3);
    }
    for pair in pairs / 4 * 4..pairs {
        step!(pair, pair % 4);
    }
    for (head, sums) in sums.iter().enumerate() {
        let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        // SAFETY: room for the registers was asserted.
        unsafe { _mm512_storeu_ps(scores.as_mut_ptr().add(head * row), sum) };
    }
}

/// `out += sum over a block's tokens of weight * value`: weights `[G, row]`, of which the first n are the block's; values
/// `[KV_BLOCK / 2, hd]` pairs of tokens; out `[G, hd]`. The values that lie `ahead` are asked for.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn add_values<const G: usize>(
    (weights, row, n): (&[f32], usize, usize),
    values: &[u32],
    ahead: *const u32,
    out: &mut [f32],
) {
    let hd = out.len() / G;
    let mut pairs = [[0u32; KV_BLOCK / 2]; G];
    for (head, pairs) in pairs.iter_mut().enumerate() {
        let weights = &weights[head * row..head * row + n];
        // SAFETY: masked to the weights that there are; sixteen bf16 fill the eight pairs.
        unsafe {
            let weights = _mm512_maskz_loadu_ps(lanes(n), weights.as_ptr());
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(weights));
            _mm256_storeu_si256(pairs.as_mut_ptr().cast(), rounded);
        }
    }
    for from in (0..hd).step_by(32) {
        match (hd - from).div_ceil(16) {
            1 => columns::<G, 1>(&pairs, values, ahead, from, out),
            _ => columns::<G, 2>(&pairs, values, ahead, from, out),
        }
    }
}

/// N registers of [`add_values`], from column `from` on: those beyond the head's dimension are masked out.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
fn columns<const G: usize, const N: usize>(
    pairs: &[[u32; KV_BLOCK / 2]; G],
    values: &[u32],
    ahead: *const u32,
    from: usize,
    out: &mut [f32],
) {
    let hd = out.len() / G;
    let masks: [__mmask16; N] = std::array::from_fn(|i| lanes((hd - from).saturating_sub(16 * i)));
    let mut sums = [[_mm512_setzero_ps(); N]; G];
    for (head, sums) in sums.iter_mut().enumerate() {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: masked to out.
            *sum = unsafe { _mm512_maskz_loadu_ps(masks[i], out.as_ptr().wrapping_add(head * hd + from + 16 * i)) };
        }
    }
    assert!(values.len() == KV_BLOCK / 2 * hd, "values of a block");
    for t in 0..KV_BLOCK / 2 {
        for i in 0..N {
            // SAFETY: masked to the row of values, whose length was asserted; units are bf16 pairs.
            unsafe {
                let at = values.as_ptr().wrapping_add(t * hd + from + 16 * i);
                prefetch::<1>(ahead.wrapping_add(t * hd + from + 16 * i).cast());
                let value: __m512bh = std::mem::transmute(_mm512_maskz_loadu_epi32(masks[i], at.cast()));
                for (sums, pairs) in sums.iter_mut().zip(pairs) {
                    let weight = _mm512_set1_epi32(pairs[t] as i32);
                    sums[i] = _mm512_dpbf16_ps(sums[i], value, std::mem::transmute::<__m512i, __m512bh>(weight));
                }
            }
        }
    }
    for (head, sums) in sums.iter().enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: masked to out.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(head * hd + from + 16 * i), masks[i], *sum) };
        }
    }
}

//! Attention of one new token a sequence against cached keys and values. Bound by memory: each is read once.
//!
//! Both lie in blocks of [`KV_BLOCK`] tokens, head by head, so that a head reads whole pages. Keys are transposed: a block's
//! scores are then one register of sums that needs no adding up across its lanes.

use super::attention::{AttentionShape, exp_sum};
use super::simd::{LANES, max};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Tokens of a block of keys and values.
pub const KV_BLOCK: usize = LANES;

/// Cached keys and values of consecutive tokens; beyond the last token of the last block, anything finite.
#[derive(Clone, Copy, Default)]
pub struct KvSpan<'a> {
    pub tokens: usize,
    /// `[blocks, kv_heads, head_dim, KV_BLOCK]`
    pub keys: &'a [f32],
    /// `[blocks, kv_heads, KV_BLOCK, head_dim]`
    pub values: &'a [f32],
}

/// Appends token number `tokens` to the blocks before it; key and value are `[kv_heads * head_dim]`.
pub fn push_key_value(
    keys: &mut Vec<f32>,
    values: &mut Vec<f32>,
    tokens: usize,
    key: &[f32],
    value: &[f32],
    head_dim: usize,
) {
    let (slot, last) = (tokens % KV_BLOCK, tokens / KV_BLOCK * key.len() * KV_BLOCK);
    if slot == 0 {
        keys.resize(last + key.len() * KV_BLOCK, 0.0);
        values.resize(last + key.len() * KV_BLOCK, 0.0);
    }
    for (lanes, x) in keys[last..].chunks_exact_mut(KV_BLOCK).zip(key) {
        lanes[slot] = *x;
    }
    for (head, x) in values[last..].chunks_exact_mut(KV_BLOCK * head_dim).zip(value.chunks_exact(head_dim)) {
        head[slot * head_dim..(slot + 1) * head_dim].copy_from_slice(x);
    }
}

/// queries: rows of `query_stride` elements that begin with the sequence's rotated query `[H hd]`, one a sequence.
/// spans: for each sequence its shared prompt and its own tokens, the newest included. out `[B, H hd]`.
pub fn attention_decode(
    shape: AttentionShape,
    queries: &[f32],
    query_stride: usize,
    spans: &[[KvSpan<'_>; 2]],
    out: &mut [f32],
) {
    let q_dim = shape.heads * shape.head_dim;
    let rows = out.par_chunks_mut(q_dim).zip(queries.par_chunks(query_stride)).zip(spans);
    rows.with_min_len(4).for_each_init(Vec::new, |scores, ((out, query), spans)| {
        Arch::new().dispatch(OneToken { shape, query: &query[..q_dim], spans, out, scores });
    });
}

/// The attention of one sequence's new token.
struct OneToken<'a> {
    shape: AttentionShape,
    query: &'a [f32],
    spans: &'a [KvSpan<'a>; 2],
    out: &'a mut [f32],
    scores: &'a mut Vec<f32>,
}

impl WithSimd for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let OneToken { shape, query, spans, out, scores } = self;
        let (hd, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let scale = 1.0 / (hd as f32).sqrt();
        scores.resize(spans.iter().map(|s| s.tokens.next_multiple_of(KV_BLOCK)).sum(), 0.0);
        for (head, (out, query)) in out.chunks_exact_mut(hd).zip(query.chunks_exact(hd)).enumerate() {
            let blocks = |all| head_blocks(all, head / group, shape.kv_heads, hd);
            // Each span's scores begin where the one before has its last token.
            let mut seen = 0;
            for span in spans {
                for (keys, scores) in blocks(span.keys).zip(scores[seen..].chunks_exact_mut(KV_BLOCK)) {
                    block_scores(simd, query, keys, scale, scores);
                }
                seen += span.tokens;
            }
            let scores = &mut scores[..seen];
            let m = max(scores);
            let inv = 1.0 / exp_sum(scores, m);
            let mut from = 0;
            while from < hd {
                let values = spans.map(|s| (s.tokens, blocks(s.values)));
                from += match (hd - from) / S::F32_LANES {
                    8.. => columns::<S, 8>(simd, scores, values, hd, from, inv, out),
                    4.. => columns::<S, 4>(simd, scores, values, hd, from, inv, out),
                    1.. => columns::<S, 1>(simd, scores, values, hd, from, inv, out),
                    0 => column(scores, values, hd, from, inv, out),
                };
            }
        }
    }
}

/// One head's part of every block.
#[inline(always)]
fn head_blocks(all: &[f32], head: usize, heads: usize, hd: usize) -> impl Iterator<Item = &[f32]> {
    all.chunks_exact(KV_BLOCK * hd).skip(head).step_by(heads)
}

/// Scaled scores of a block of keys `[hd, KV_BLOCK]`.
#[inline(always)]
fn block_scores<S: Simd>(simd: S, query: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    for (first, scores) in S::as_mut_simd_f32s(scores).0.iter_mut().enumerate() {
        // Four sums, so that an addition need not wait for the one before it.
        let mut sums = [simd.splat_f32s(0.0); 4];
        let mut lanes = keys.chunks_exact(4 * KV_BLOCK);
        let (quads, rest) = query.as_chunks::<4>();
        for (query, keys) in quads.iter().zip(&mut lanes) {
            for j in 0..4 {
                let key = S::as_simd_f32s(&keys[j * KV_BLOCK..(j + 1) * KV_BLOCK]).0[first];
                sums[j] = simd.mul_add_f32s(simd.splat_f32s(query[j]), key, sums[j]);
            }
        }
        for (query, keys) in rest.iter().zip(lanes.remainder().chunks_exact(KV_BLOCK)) {
            let key = S::as_simd_f32s(keys).0[first];
            sums[0] = simd.mul_add_f32s(simd.splat_f32s(*query), key, sums[0]);
        }
        let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
        *scores = simd.mul_f32s(sum, simd.splat_f32s(scale));
    }
}

/// N registers of `out = inv * sum over tokens of weight * value`, from column `from` on; values: each span's tokens and
/// blocks `[KV_BLOCK, hd]`. Returns the columns done.
#[inline(always)]
fn columns<'a, S: Simd, const N: usize>(
    simd: S,
    weights: &[f32],
    values: [(usize, impl Iterator<Item = &'a [f32]>); 2],
    hd: usize,
    from: usize,
    inv: f32,
    out: &mut [f32],
) -> usize {
    let mut sums = [simd.splat_f32s(0.0); N];
    let to = from + N * S::F32_LANES;
    for_each_row(weights, values, hd, |weight, row| {
        let weight = simd.splat_f32s(weight);
        let row = S::as_simd_f32s(&row[from..to]).0;
        for i in 0..N {
            sums[i] = simd.mul_add_f32s(weight, row[i], sums[i]);
        }
    });
    for (out, sum) in S::as_mut_simd_f32s(&mut out[from..to]).0.iter_mut().zip(sums) {
        *out = simd.mul_f32s(sum, simd.splat_f32s(inv));
    }
    to - from
}

/// One column of the same: what head dimensions that fill no register leave. Returns 1.
#[inline(always)]
fn column<'a>(
    weights: &[f32],
    values: [(usize, impl Iterator<Item = &'a [f32]>); 2],
    hd: usize,
    at: usize,
    inv: f32,
    out: &mut [f32],
) -> usize {
    let mut sum = 0f32;
    for_each_row(weights, values, hd, |weight, row| sum = weight.mul_add(row[at], sum));
    out[at] = sum * inv;
    1
}

/// Every token's weight and value, in order.
#[inline(always)]
fn for_each_row<'a>(
    weights: &[f32],
    values: [(usize, impl Iterator<Item = &'a [f32]>); 2],
    hd: usize,
    mut visit: impl FnMut(f32, &[f32]),
) {
    let mut rest = weights;
    for (tokens, blocks) in values {
        let weights;
        (weights, rest) = rest.split_at(tokens);
        for (weights, block) in weights.chunks(KV_BLOCK).zip(blocks) {
            for (weight, row) in weights.iter().zip(block.chunks_exact(hd)) {
                visit(*weight, row);
            }
        }
    }
}

//! Attention of one new token a sequence against cached keys and values.
//!
//! Keys lie in blocks of [`KEY_BLOCK`] tokens, transposed, so that a block's scores are one register of sums that needs no
//! adding up across its lanes. Values lie token by token, so that the output is a sum of rows.

use super::attention::{AttentionShape, exp_sum};
use super::simd::{LANES, max, vectorize};
use rayon::prelude::*;

/// Tokens of a block of keys.
pub const KEY_BLOCK: usize = LANES;

/// Cached keys and values of consecutive tokens.
#[derive(Clone, Copy)]
pub struct KvSpan<'a> {
    /// `[blocks, kv_heads * head_dim, KEY_BLOCK]`; beyond the last token, anything finite.
    pub keys: &'a [f32],
    /// `[tokens, kv_heads * head_dim]`
    pub values: &'a [f32],
}

/// Appends the key of token number `tokens` to the blocks before it.
pub fn push_key(keys: &mut Vec<f32>, tokens: usize, key: &[f32]) {
    let slot = tokens % KEY_BLOCK;
    if slot == 0 {
        keys.resize(keys.len() + key.len() * KEY_BLOCK, 0.0);
    }
    let last = keys.len() - key.len() * KEY_BLOCK;
    for (block, x) in keys[last..].chunks_exact_mut(KEY_BLOCK).zip(key) {
        block[slot] = *x;
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
    let (hd, kv_dim) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let (q_dim, group) = (shape.heads * hd, shape.heads / shape.kv_heads);
    let scale = 1.0 / (hd as f32).sqrt();
    let rows = out.par_chunks_mut(q_dim).zip(queries.par_chunks(query_stride)).zip(spans);
    rows.with_min_len(4).for_each_init(Vec::new, |scores: &mut Vec<f32>, ((out, query), spans)| {
        let tokens = spans.map(|s| s.values.len() / kv_dim);
        scores.resize(tokens.map(|t| t.next_multiple_of(KEY_BLOCK)).iter().sum(), 0.0);
        vectorize(
            #[inline(always)]
            || {
                for (head, out) in out.chunks_exact_mut(hd).enumerate() {
                    let kv = head / group * hd..(head / group + 1) * hd;
                    let query = &query[head * hd..(head + 1) * hd];
                    // Each span's scores begin at a block of their own; what lies between is closed up.
                    let mut seen = 0;
                    for (span, tokens) in spans.iter().zip(tokens) {
                        let keys = span.keys.chunks_exact(kv_dim * KEY_BLOCK);
                        for (block, scores) in keys.zip(scores[seen..].chunks_mut(KEY_BLOCK)) {
                            let z = block_scores(query, &block[kv.start * KEY_BLOCK..kv.end * KEY_BLOCK]);
                            for (score, z) in scores.iter_mut().zip(z) {
                                *score = z * scale;
                            }
                        }
                        seen += tokens;
                    }
                    let scores = &mut scores[..seen];
                    let m = max(scores);
                    let inv = 1.0 / exp_sum(scores, m);
                    weighted_sum(scores, spans, kv_dim, kv.start, out);
                    for x in out.iter_mut() {
                        *x *= inv;
                    }
                }
            },
        )
    });
}

/// Scores of a block of keys `[hd, KEY_BLOCK]`.
#[inline(always)]
fn block_scores(query: &[f32], keys: &[f32]) -> [f32; KEY_BLOCK] {
    // Four sums, so that an addition need not wait for the one before it.
    let mut sums = [[0f32; KEY_BLOCK]; 4];
    for (query, keys) in query.chunks(4).zip(keys.chunks(4 * KEY_BLOCK)) {
        for ((sums, q), keys) in sums.iter_mut().zip(query).zip(keys.chunks_exact(KEY_BLOCK)) {
            for i in 0..KEY_BLOCK {
                sums[i] = q.mul_add(keys[i], sums[i]);
            }
        }
    }
    let [a, b, c, d] = sums;
    std::array::from_fn(|i| (a[i] + b[i]) + (c[i] + d[i]))
}

/// `out = sum over tokens of weight * value`, for the values that begin at `first` of each row.
#[inline(always)]
fn weighted_sum(weights: &[f32], spans: &[KvSpan<'_>; 2], kv_dim: usize, first: usize, out: &mut [f32]) {
    const WIDE: usize = 4 * LANES;
    let mut from = first;
    let mut wide = out.chunks_exact_mut(WIDE);
    for out in &mut wide {
        out.copy_from_slice(&columns::<WIDE>(weights, spans, kv_dim, from));
        from += WIDE;
    }
    let mut narrow = wide.into_remainder().chunks_exact_mut(LANES);
    for out in &mut narrow {
        out.copy_from_slice(&columns::<LANES>(weights, spans, kv_dim, from));
        from += LANES;
    }
    for out in narrow.into_remainder() {
        *out = columns::<1>(weights, spans, kv_dim, from)[0];
        from += 1;
    }
}

/// Some columns of [`weighted_sum`], kept in registers.
#[inline(always)]
fn columns<const N: usize>(weights: &[f32], spans: &[KvSpan<'_>; 2], kv_dim: usize, from: usize) -> [f32; N] {
    let mut sums = [0f32; N];
    let rows = spans.iter().flat_map(|s| s.values.chunks_exact(kv_dim));
    for (w, row) in weights.iter().zip(rows) {
        let row = &row[from..from + N];
        for i in 0..N {
            sums[i] = w.mul_add(row[i], sums[i]);
        }
    }
    sums
}

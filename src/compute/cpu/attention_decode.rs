//! Attention of one new token a sequence against cached keys and values. Bound by memory: each is read once, in the order in
//! which it lies, and serves every query head that shares it.
//!
//! Both lie in blocks of [`KV_BLOCK`] tokens, head by head, in the number format of the products. Keys are transposed: a
//! block's scores are then one register of sums that needs no adding up across its lanes.

#[cfg(target_arch = "x86_64")]
mod bf16;

use super::attention::{AttentionShape, exp_sum};
use super::gemm::Compute;
use super::simd::{LANES, max, vectorize};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Tokens of a block of keys and values.
pub const KV_BLOCK: usize = LANES;

/// Cached keys and values of consecutive tokens; beyond the last token of the last block, anything finite.
///
/// A unit is 32 bits: one f32, or two bf16 (the first in the lower half), neighbours in a key's dimension or in a value's
/// token.
#[derive(Clone, Copy, Default)]
pub struct KvSpan<'a> {
    pub tokens: usize,
    /// f32 `[blocks, kv_heads, head_dim, KV_BLOCK]`, bf16 `[blocks, kv_heads, head_dim / 2, KV_BLOCK]`
    pub keys: &'a [u32],
    /// f32 `[blocks, kv_heads, KV_BLOCK, head_dim]`, bf16 `[blocks, kv_heads, KV_BLOCK / 2, head_dim]`
    pub values: &'a [u32],
}

/// Units of one head's keys, and of its values, in a block.
pub fn block_units(compute: Compute, head_dim: usize) -> (usize, usize) {
    match compute.here() {
        Compute::F32 => (head_dim * KV_BLOCK, head_dim * KV_BLOCK),
        Compute::Bf16 => (head_dim.div_ceil(2) * KV_BLOCK, head_dim * KV_BLOCK / 2),
    }
}

/// Writes a token to place `slot` of a block; key and value are `[kv_heads * head_dim]`, the block's as [`KvSpan`] says.
pub fn write_key_value(
    compute: Compute,
    keys: &mut [u32],
    values: &mut [u32],
    slot: usize,
    key: &[f32],
    value: &[f32],
    head_dim: usize,
) {
    let (of_keys, of_values) = block_units(compute, head_dim);
    let heads = keys.chunks_exact_mut(of_keys).zip(values.chunks_exact_mut(of_values));
    let news = key.chunks_exact(head_dim).zip(value.chunks_exact(head_dim));
    let bf16 = compute.here() == Compute::Bf16;
    vectorize(
        #[inline(always)]
        || {
            for ((keys, values), (key, value)) in heads.zip(news) {
                if bf16 {
                    write_bf16(keys, values, slot, key, value);
                    continue;
                }
                for (lanes, x) in keys.chunks_exact_mut(KV_BLOCK).zip(key) {
                    lanes[slot] = x.to_bits();
                }
                values[slot * head_dim..(slot + 1) * head_dim].copy_from_slice(bytemuck::cast_slice(value));
            }
        },
    )
}

/// One head of [`write_key_value`] in bf16.
#[inline(always)]
fn write_bf16(keys: &mut [u32], values: &mut [u32], slot: usize, key: &[f32], value: &[f32]) {
    for (lanes, x) in keys.chunks_exact_mut(KV_BLOCK).zip(key.chunks(2)) {
        lanes[slot] = bf16_bits(x[0]) | x.get(1).map_or(0, |x| bf16_bits(*x) << 16);
    }
    let values = values[slot / 2 * value.len()..].iter_mut().zip(value);
    if slot % 2 == 0 {
        values.for_each(|(unit, x)| *unit = bf16_bits(*x));
    } else {
        values.for_each(|(unit, x)| *unit |= bf16_bits(*x) << 16);
    }
}

/// A number's bits in bf16, to the nearest, ties to even. As `half` has it, but without a branch, so that it vectorises.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    // A NaN stays one: rounding might carry out of its mantissa.
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
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
    let (q_dim, cut) = (shape.heads * shape.head_dim, Cut::of(shape, spans, rayon::current_num_threads()));
    let parts = shape.kv_heads / cut.kv_heads;
    let tasks = out[..spans.len() * q_dim].par_chunks_mut(q_dim / parts).enumerate();
    tasks.with_min_len(cut.fewest).for_each_init(Vec::new, |scores, (i, out)| {
        let (row, part) = (i / parts, i % parts);
        let query = &queries[row * query_stride + part * out.len()..][..out.len()];
        let token = OneToken { shape, first_kv_head: part * cut.kv_heads, query, spans: &spans[row], out, scores };
        #[cfg(target_arch = "x86_64")]
        if shape.compute.here() == Compute::Bf16 {
            // SAFETY: the machine has the instructions, or `here` would have said f32.
            return unsafe { bf16::attend(token) };
        }
        Arch::new().dispatch(token);
    });
}

/// Sequences that a thread takes at a time, where there are enough.
const SEQUENCES: usize = 4;

/// Units of keys, and as many of values, that are worth another thread: 256 KiB, about 20 us of one core.
const FEWEST_UNITS: usize = 1 << 15;

/// How the work of a step is cut. A head's sums are the same in any way.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// Key/value heads of a sequence that one task takes.
    kv_heads: usize,
    /// Tasks that a thread takes at a time, at least.
    fewest: usize,
}

impl Cut {
    fn of(shape: AttentionShape, spans: &[[KvSpan<'_>; 2]], threads: usize) -> Cut {
        if threads == 1 || spans.len() >= SEQUENCES * threads {
            // A whole sequence's blocks are read in the order in which they lie.
            return Cut { kv_heads: shape.kv_heads, fewest: SEQUENCES };
        }
        let tokens: usize = spans.iter().flatten().map(|span| span.tokens).sum();
        let units = tokens * shape.head_dim / spans.len().max(1);
        Cut { kv_heads: 1, fewest: FEWEST_UNITS.div_ceil(units.max(1)) }
    }
}

/// The attention of one sequence's new token, or of some of its heads.
struct OneToken<'a> {
    shape: AttentionShape,
    /// The key/value head that the first of the query's heads reads.
    first_kv_head: usize,
    /// `[heads, hd]`, whole groups
    query: &'a [f32],
    spans: &'a [KvSpan<'a>; 2],
    out: &'a mut [f32],
    /// `[heads, row]`
    scores: &'a mut Vec<f32>,
}

impl OneToken<'_> {
    /// Makes room for every head's scores, whole blocks at a time; returns the length of a head's row and the tokens in it.
    ///
    /// A span's scores begin where the one before has its last token, and overwrite what its last block had too many.
    fn room_for_scores(&mut self) -> (usize, usize) {
        let row = self.spans.iter().map(|s| s.tokens.next_multiple_of(KV_BLOCK)).sum();
        self.scores.resize(self.query.len() / self.shape.head_dim * row, 0.0);
        (row, self.spans.iter().map(|s| s.tokens).sum())
    }
}

impl WithSimd for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (row, tokens) = self.room_for_scores();
        let OneToken { shape, first_kv_head, query, spans, out, scores } = self;
        let (hd, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let (scale, block) = (1.0 / (hd as f32).sqrt(), hd * KV_BLOCK);
        let mut seen = 0;
        for span in spans {
            let blocks = bytemuck::cast_slice::<u32, f32>(span.keys).chunks_exact(shape.kv_heads * block);
            for (i, keys) in blocks.enumerate() {
                let at = seen + i * KV_BLOCK;
                for (head, query) in query.chunks_exact(hd).enumerate() {
                    let keys = &keys[(first_kv_head + head / group) * block..][..block];
                    block_scores(simd, query, keys, scale, &mut scores[head * row + at..][..KV_BLOCK]);
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
            let blocks = bytemuck::cast_slice::<u32, f32>(span.values).chunks_exact(shape.kv_heads * block);
            for (i, values) in blocks.enumerate() {
                let (at, n) = (seen + i * KV_BLOCK, KV_BLOCK.min(span.tokens - i * KV_BLOCK));
                for (head, out) in out.chunks_exact_mut(hd).enumerate() {
                    let weights = &scores[head * row + at..][..n];
                    add_values(simd, weights, &values[(first_kv_head + head / group) * block..][..block], out);
                }
            }
            seen += span.tokens;
        }
    }
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

/// `out += sum over a block's tokens of weight * value`; values `[KV_BLOCK, hd]`, out `[hd]`.
#[inline(always)]
fn add_values<S: Simd>(simd: S, weights: &[f32], values: &[f32], out: &mut [f32]) {
    let mut from = 0;
    while from < out.len() {
        from += match (out.len() - from) / S::F32_LANES {
            8.. => columns::<S, 8>(simd, weights, values, from, out),
            4.. => columns::<S, 4>(simd, weights, values, from, out),
            2.. => columns::<S, 2>(simd, weights, values, from, out),
            1 => columns::<S, 1>(simd, weights, values, from, out),
            // What head dimensions that fill no register leave.
            0 => {
                let rows = weights.iter().zip(values.chunks_exact(out.len()));
                out[from] = rows.fold(out[from], |sum, (weight, row)| weight.mul_add(row[from], sum));
                1
            }
        };
    }
}

/// N registers of [`add_values`], from column `from` on. Returns the columns done.
#[inline(always)]
fn columns<S: Simd, const N: usize>(simd: S, weights: &[f32], values: &[f32], from: usize, out: &mut [f32]) -> usize {
    let (hd, to) = (out.len(), from + N * S::F32_LANES);
    let out = S::as_mut_simd_f32s(&mut out[from..to]).0;
    let mut sums = [simd.splat_f32s(0.0); N];
    sums.copy_from_slice(out);
    for (weight, row) in weights.iter().zip(values.chunks_exact(hd)) {
        let weight = simd.splat_f32s(*weight);
        let row = S::as_simd_f32s(&row[from..to]).0;
        for i in 0..N {
            sums[i] = simd.mul_add_f32s(weight, row[i], sums[i]);
        }
    }
    out.copy_from_slice(&sums);
    to - from
}

#[cfg(test)]
mod tests;

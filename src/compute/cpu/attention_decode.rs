//! Attention of one new token a sequence against cached keys and values. Bound by memory: each is read once, in the order in
//! which it lies, and serves every query head that shares it.
//!
//! Both lie in blocks of [`KV_BLOCK`] tokens, head by head, in the number format of the products. Keys are transposed: a
//! block's scores are then one register of sums that needs no adding up across its lanes.

#[cfg(target_arch = "x86_64")]
mod bf16;

use super::array::{Element, convert_row};
use super::attention::{AttentionShape, exp_sum};
use super::gemm::Compute;
use super::prefetch::{LINE, prefetch};
use super::simd::{LANES, max, vectorize};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of a block of keys and values.
pub const KV_BLOCK: usize = LANES;

/// Blocks that are asked for ahead of their use: sequences' caches lie far apart, and in small pages.
const AHEAD: usize = 2;

/// Cached keys and values of consecutive tokens; beyond the last token of the last block, anything finite.
///
/// A unit is 32 bits: one f32, or two bf16 (the first in the lower half), neighbours in a key's dimension or in a value's
/// token.
#[derive(Clone, Copy, Default)]
pub struct KvSpan<'a> {
    pub tokens: usize,
    /// f32 `[blocks, kv_heads, head_dim, KV_BLOCK]`, bf16 `[blocks, kv_heads, head_dim / 2, KV_BLOCK]`, in pieces of whole blocks
    pub keys: &'a [Vec<u32>],
    /// f32 `[blocks, kv_heads, KV_BLOCK, head_dim]`, bf16 `[blocks, kv_heads, KV_BLOCK / 2, head_dim]`, in pieces of whole blocks
    pub values: &'a [Vec<u32>],
}

/// Units of one head's keys, and of its values, in a block.
pub fn block_units(compute: Compute, head_dim: usize) -> (usize, usize) {
    match compute.here() {
        Compute::F32 => (head_dim * KV_BLOCK, head_dim * KV_BLOCK),
        Compute::Bf16 => (head_dim.div_ceil(2) * KV_BLOCK, head_dim * KV_BLOCK / 2),
    }
}

/// Writes a token to place `slot` of a block; key and value are `[kv_heads * head_dim]`, the block's as [`KvSpan`] says.
pub fn write_key_value<E: Element>(
    compute: Compute,
    keys: &mut [u32],
    values: &mut [u32],
    slot: usize,
    key: &[E],
    value: &[E],
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
                    lanes[slot] = x.get().to_bits();
                }
                convert_row(
                    value,
                    bytemuck::cast_slice_mut::<u32, f32>(&mut values[slot * head_dim..(slot + 1) * head_dim]),
                );
            }
        },
    )
}

/// One head of [`write_key_value`] in bf16.
#[inline(always)]
fn write_bf16<E: Element>(keys: &mut [u32], values: &mut [u32], slot: usize, key: &[E], value: &[E]) {
    for (lanes, x) in keys.chunks_exact_mut(KV_BLOCK).zip(key.chunks(2)) {
        lanes[slot] = bf16_pair(x, 1.0);
    }
    let values = values[slot / 2 * value.len()..].iter_mut().zip(value);
    if slot.is_multiple_of(2) {
        values.for_each(|(unit, x)| *unit = bf16_bits(x.get()));
    } else {
        values.for_each(|(unit, x)| *unit |= bf16_bits(x.get()) << 16);
    }
}

/// A unit: one number or two in bf16, times `scale`.
#[inline(always)]
fn bf16_pair<E: Element>(x: &[E], scale: f32) -> u32 {
    bf16_bits(x[0].get() * scale) | x.get(1).map_or(0, |x| bf16_bits(x.get() * scale) << 16)
}

/// A number's bits in bf16.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    <half::bf16 as Element>::of(x).to_bits() as u32
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

/// Query heads that share keys and values, as many as are taken together.
#[derive(Clone, Copy)]
struct Together {
    /// The first, among the token's.
    head: usize,
    heads: usize,
    /// The head of keys and values that they read.
    kv_head: usize,
}

impl<'a> OneToken<'a> {
    /// Makes room for every head's scores, whole blocks at a time; returns the length of a head's row and the tokens in it.
    ///
    /// A span's scores begin where the one before has its last token, and overwrite what its last block had too many.
    fn room_for_scores(&mut self) -> (usize, usize) {
        let row = self.spans.iter().map(|s| s.tokens.next_multiple_of(KV_BLOCK)).sum();
        self.scores.resize(self.query.len() / self.shape.head_dim * row, 0.0);
        (row, self.spans.iter().map(|s| s.tokens).sum())
    }

    /// Every block's first token, and how many it has.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + Clone + use<'a> {
        let of = |from: usize, tokens: usize| {
            (0..tokens).step_by(KV_BLOCK).map(move |t| (from + t, KV_BLOCK.min(tokens - t)))
        };
        let [prompt, own] = self.spans;
        of(0, prompt.tokens).chain(of(prompt.tokens, own.tokens))
    }

    /// Every block's keys, then every block's values: what is read, in that order.
    fn reads(&self) -> Reads<'a> {
        let (of_keys, of_values) = block_units(self.shape.compute, self.shape.head_dim);
        let (keys, values) = (self.shape.kv_heads * of_keys, self.shape.kv_heads * of_values);
        let keys = self.spans.iter().flat_map(|span| span.keys).flat_map(|piece| piece.chunks_exact(keys));
        let values = self.spans.iter().flat_map(|span| span.values).flat_map(|piece| piece.chunks_exact(values));
        Reads(keys.chain(values).collect())
    }

    /// The heads, group by group, `most` at a time.
    fn together(&self, most: usize) -> impl Iterator<Item = Together> + Clone + use<> {
        let (heads, group) = (self.query.len() / self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let first_kv_head = self.first_kv_head;
        (0..heads).step_by(group).flat_map(move |first| {
            (first..first + group).step_by(most).map(move |head| Together {
                head,
                heads: most.min(first + group - head),
                kv_head: first_kv_head + first / group,
            })
        })
    }
}

/// Blocks of a cache in the order in which they are read: as many of keys as of values.
struct Reads<'a>(Vec<&'a [u32]>);

impl<'a> Reads<'a> {
    /// Units `units` of block `i`, and where those of the block lie that is [`AHEAD`] of it.
    fn at(&self, i: usize, units: Range<usize>) -> (&'a [u32], *const u32) {
        let ahead = self.0[(i + AHEAD).min(self.0.len() - 1)];
        (&self.0[i][units.clone()], ahead.as_ptr().wrapping_add(units.start))
    }

    /// Blocks of keys, or of values.
    fn blocks(&self) -> usize {
        self.0.len() / 2
    }
}

impl WithSimd for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (row, tokens) = self.room_for_scores();
        let (reads, blocks, groups) = (self.reads(), self.blocks(), self.together(2));
        let OneToken { shape, query, out, scores, .. } = self;
        let (hd, block) = (shape.head_dim, shape.head_dim * KV_BLOCK);
        for (i, (at, _)) in blocks.clone().enumerate() {
            for Together { head, heads, kv_head } in groups.clone() {
                let (keys, ahead) = reads.at(i, kv_head * block..(kv_head + 1) * block);
                let (query, scores) = (&query[head * hd..], &mut scores[head * row + at..]);
                match heads {
                    1 => block_scores::<S, 1>(simd, query, bytemuck::cast_slice(keys), ahead, scores, row),
                    _ => block_scores::<S, 2>(simd, query, bytemuck::cast_slice(keys), ahead, scores, row),
                }
            }
        }
        softmax(scores, row, tokens);
        out.fill(0.0);
        for ((at, n), i) in blocks.zip(reads.blocks()..) {
            for Together { head, heads, kv_head } in groups.clone() {
                let (values, ahead) = reads.at(i, kv_head * block..(kv_head + 1) * block);
                let (weights, out) = (&scores[head * row + at..], &mut out[head * hd..][..heads * hd]);
                match heads {
                    1 => add_values::<S, 1>(simd, (weights, row, n), bytemuck::cast_slice(values), ahead, out),
                    _ => add_values::<S, 2>(simd, (weights, row, n), bytemuck::cast_slice(values), ahead, out),
                }
            }
        }
    }
}

/// Scores `[heads, row]` to the weights of their first `tokens`.
#[inline(always)]
fn softmax(scores: &mut [f32], row: usize, tokens: usize) {
    for scores in scores.chunks_exact_mut(row) {
        let scores = &mut scores[..tokens];
        let m = max(scores);
        let inv = 1.0 / exp_sum(scores, m);
        scores.iter_mut().for_each(|x| *x *= inv);
    }
}

/// Scaled scores of a block of keys `[hd, KV_BLOCK]` for queries `[G, hd]`: scores `[G, row]`, of which the first KV_BLOCK are the
/// block's. The keys that lie `ahead` are asked for.
#[inline(always)]
fn block_scores<S: Simd, const G: usize>(
    simd: S,
    queries: &[f32],
    keys: &[f32],
    ahead: *const u32,
    scores: &mut [f32],
    row: usize,
) {
    let hd = keys.len() / KV_BLOCK;
    let queries: [&[f32]; G] = std::array::from_fn(|head| &queries[head * hd..(head + 1) * hd]);
    let scale = simd.splat_f32s(1.0 / (hd as f32).sqrt());
    for first in 0..KV_BLOCK / S::F32_LANES {
        // Four sums a head, so that an addition need not wait for the one before it.
        let mut sums = [[simd.splat_f32s(0.0); 4]; G];
        for (i, keys) in keys.chunks_exact(4 * KV_BLOCK).enumerate() {
            for j in 0..4 {
                if first == 0 {
                    prefetch::<1>(ahead.wrapping_add((4 * i + j) * KV_BLOCK).cast());
                }
                let key = S::as_simd_f32s(&keys[j * KV_BLOCK..(j + 1) * KV_BLOCK]).0[first];
                for (sums, query) in sums.iter_mut().zip(queries) {
                    sums[j] = simd.mul_add_f32s(simd.splat_f32s(query[4 * i + j]), key, sums[j]);
                }
            }
        }
        for (i, keys) in keys.chunks_exact(KV_BLOCK).enumerate().skip(hd / 4 * 4) {
            let key = S::as_simd_f32s(keys).0[first];
            for (sums, query) in sums.iter_mut().zip(queries) {
                sums[0] = simd.mul_add_f32s(simd.splat_f32s(query[i]), key, sums[0]);
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
            let scores = S::as_mut_simd_f32s(&mut scores[head * row..][..KV_BLOCK]).0;
            scores[first] = simd.mul_f32s(sum, scale);
        }
    }
}

/// `out += sum over a block's tokens of weight * value`: weights `[G, row]`, of which the first n are the block's; values
/// `[KV_BLOCK, hd]`; out `[G, hd]`. The values that lie `ahead` are asked for.
#[inline(always)]
fn add_values<S: Simd, const G: usize>(
    simd: S,
    (weights, row, n): (&[f32], usize, usize),
    values: &[f32],
    ahead: *const u32,
    out: &mut [f32],
) {
    let hd = out.len() / G;
    let weights: [&[f32]; G] = std::array::from_fn(|head| &weights[head * row..head * row + n]);
    let mut from = 0;
    while from < hd {
        from += match (hd - from) / S::F32_LANES {
            8.. if G == 1 => columns::<S, G, 8>(simd, weights, values, ahead, from, out),
            4.. => columns::<S, G, 4>(simd, weights, values, ahead, from, out),
            2.. => columns::<S, G, 2>(simd, weights, values, ahead, from, out),
            1 => columns::<S, G, 1>(simd, weights, values, ahead, from, out),
            // What head dimensions that fill no register leave.
            0 => {
                for (out, weights) in out.chunks_exact_mut(hd).zip(weights) {
                    let rows = weights.iter().zip(values.chunks_exact(hd));
                    out[from] = rows.fold(out[from], |sum, (weight, row)| weight.mul_add(row[from], sum));
                }
                1
            }
        };
    }
}

/// N registers of [`add_values`], from column `from` on. Returns the columns done.
#[inline(always)]
fn columns<S: Simd, const G: usize, const N: usize>(
    simd: S,
    weights: [&[f32]; G],
    values: &[f32],
    ahead: *const u32,
    from: usize,
    out: &mut [f32],
) -> usize {
    let (hd, width) = (out.len() / G, N * S::F32_LANES);
    let mut sums = [[simd.splat_f32s(0.0); N]; G];
    for (sums, out) in sums.iter_mut().zip(out.chunks_exact(hd)) {
        sums.copy_from_slice(S::as_simd_f32s(&out[from..from + width]).0);
    }
    for (t, values) in values.chunks_exact(hd).enumerate().take(weights[0].len()) {
        for line in (from..from + width).step_by(LINE) {
            prefetch::<1>(ahead.wrapping_add(t * hd + line).cast());
        }
        let values = S::as_simd_f32s(&values[from..from + width]).0;
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = simd.splat_f32s(weights[t]);
            for i in 0..N {
                sums[i] = simd.mul_add_f32s(weight, values[i], sums[i]);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(hd)) {
        S::as_mut_simd_f32s(&mut out[from..from + width]).0.copy_from_slice(sums);
    }
    width
}

#[cfg(test)]
mod tests;

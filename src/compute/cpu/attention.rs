//! Causal attention over packed sequences with grouped query heads; probabilities are never stored.
//!
//! A task takes one key/value head of one segment (of one tree of segments in the backward) or, where those are fewer than
//! threads could take, of a part of its queries or keys ([`split`]). It copies its keys and values together (prompt first), and
//! goes through the queries in blocks: scores of a block against all keys it may see are one product, `[block * group, keys]`,
//! the only place where they exist. The query heads that share the key/value head are stacked as rows, so that one product
//! serves them all. The backward recomputes the probabilities from the saved log-sum-exp.

mod split;

use super::array::{Element, append, convert};
use super::gemm::{Compute, Mat, MatMut, Write, matmul_seq};
use super::shared::SharedMut;
use super::simd::{LANES, axpy, dot, exp, horizontal, max, vectorize};
use crate::compute::packing::{Packing, Segment};
use rayon::prelude::*;
use split::{Part, Task};
use std::cell::RefCell;
use std::ops::Range;

/// Stacked query rows a block aims at: enough for an efficient product, few enough that scores stay in the cache.
const BLOCK_ROWS: usize = 128;

/// Sizes of the operation, and what its products multiply in. Scores are scaled by `1 / sqrt(head_dim)`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub compute: Compute,
}

impl AttentionShape {
    fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn qk_dim(&self) -> usize {
        self.q_dim() + self.kv_dim()
    }

    fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn block_queries(&self) -> usize {
        (BLOCK_ROWS / self.group()).max(1)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers of one task, kept by its thread: fresh ones would cost a page fault for every page.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
    /// Sums over a tree's segments, for the keys and values of its first.
    shared_d_keys: Vec<f32>,
    shared_d_values: Vec<f32>,
    d_out: Vec<f32>,
    d_scores: Vec<f32>,
}

/// qk `[T, (H + KV) hd]` rotated queries and keys, qkv `[T, (H + 2 KV) hd]` for the values.
/// out `[T, H hd]`; lse `[T, H]`, the log-sum-exp of each query's scaled scores.
pub fn attention<E: Element>(
    shape: AttentionShape,
    packing: &Packing,
    qk: &[E],
    qkv: &[E],
    out: &mut [E],
    lse: &mut [f32],
) {
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    let tasks = split::forward(packing, shape.kv_heads, shape.block_queries(), rayon::current_num_threads());
    each_head(shape, &tasks, |task, kv_head, s| {
        for segment in task.segments {
            let queries = if let Part::Queries(queries) = &task.part { queries.clone() } else { 0..segment.len() };
            forward_task(shape, segment, queries, kv_head, qk, qkv, out, lse, s);
        }
    });
}

/// Carries out every task for every key/value head, on all threads.
fn each_head(shape: AttentionShape, tasks: &[Task<'_>], run: impl Fn(&Task<'_>, usize, &mut Scratch) + Sync) {
    (0..tasks.len() * shape.kv_heads).into_par_iter().with_max_len(1).for_each(|i| {
        SCRATCH.with_borrow_mut(|s| run(&tasks[i / shape.kv_heads], i % shape.kv_heads, s));
    });
}

#[allow(clippy::too_many_arguments)]
fn forward_task<E: Element>(
    shape: AttentionShape,
    segment: &Segment,
    queries: Range<usize>,
    kv_head: usize,
    qk: &[E],
    qkv: &[E],
    out: SharedMut<'_, E>,
    lse: SharedMut<'_>,
    s: &mut Scratch,
) {
    let (hd, group, prefix) = (shape.head_dim, shape.group(), segment.prefix_len());
    gather_keys_values(shape, segment, 0..prefix + queries.end, kv_head, qk, qkv, s);
    for from in queries.clone().step_by(shape.block_queries()) {
        let to = (from + shape.block_queries()).min(queries.end);
        let (rows, visible) = ((to - from) * group, prefix + to);
        let first_row = segment.rows.start + from;
        scores(shape, kv_head, first_row, rows, visible, qk, s);
        for row in 0..rows {
            let (token, head) = (first_row + row / group, kv_head * group + row % group);
            let sees = prefix + from + row / group + 1;
            let scores = &mut s.scores[row * visible..(row + 1) * visible];
            // SAFETY: (token, head) belongs to this task alone: it owns these heads of its queries.
            let lse = unsafe { lse.slice(token * shape.heads + head, 1) };
            lse[0] = softmax(scores, sees);
        }
        s.out.resize(rows * hd, 0.0);
        let probs = Mat::new(&s.scores, rows, visible);
        matmul_seq(
            shape.compute,
            MatMut::new(&mut s.out, rows, hd),
            probs,
            Mat::new(&s.values, visible, hd),
            Write::Replace,
        );
        for (row, x) in s.out.chunks_exact(hd).enumerate() {
            let (token, head) = (first_row + row / group, kv_head * group + row % group);
            // SAFETY: as above.
            convert(x, unsafe { out.slice(token * shape.q_dim() + head * hd, hd) });
        }
    }
}

/// Copies some of the keys and values that a segment sees, its prefix's first, into dense `[keys, hd]`.
fn gather_keys_values<E: Element>(
    shape: AttentionShape,
    segment: &Segment,
    keys: Range<usize>,
    kv_head: usize,
    qk: &[E],
    qkv: &[E],
    s: &mut Scratch,
) {
    let hd = shape.head_dim;
    s.keys.clear();
    s.values.clear();
    for token in key_rows(segment, keys) {
        let key = token * shape.qk_dim() + shape.q_dim() + kv_head * hd;
        let value = token * shape.qkv_dim() + shape.qk_dim() + kv_head * hd;
        append(&qk[key..key + hd], &mut s.keys);
        append(&qkv[value..value + hd], &mut s.values);
    }
}

/// Rows of some of the keys that a segment sees: its prefix, then its own.
fn key_rows(segment: &Segment, keys: Range<usize>) -> impl Iterator<Item = usize> {
    segment.prefix.clone().unwrap_or(0..0).chain(segment.rows.clone()).skip(keys.start).take(keys.len())
}

/// Scaled scores of a block of stacked query rows against the first `visible` keys that were gathered, into `s.scores`.
fn scores<E: Element>(
    shape: AttentionShape,
    kv_head: usize,
    first_row: usize,
    rows: usize,
    visible: usize,
    qk: &[E],
    s: &mut Scratch,
) {
    let (hd, group, scale) = (shape.head_dim, shape.group(), shape.scale());
    s.queries.clear();
    for token in first_row..first_row + rows / group {
        let start = token * shape.qk_dim() + kv_head * group * hd;
        s.queries.extend(qk[start..start + group * hd].iter().map(|x| x.get() * scale));
    }
    s.scores.resize(rows * visible, 0.0);
    let keys = Mat::new(&s.keys, visible, hd).t();
    matmul_seq(
        shape.compute,
        MatMut::new(&mut s.scores, rows, visible),
        Mat::new(&s.queries, rows, hd),
        keys,
        Write::Replace,
    );
}

/// Softmax of the first `sees` scores in place, zero beyond. Returns their log-sum-exp.
fn softmax(scores: &mut [f32], sees: usize) -> f32 {
    let (seen, masked) = scores.split_at_mut(sees);
    masked.fill(0.0);
    vectorize(
        #[inline(always)]
        || {
            let m = max(seen);
            let sum = exp_sum(seen, m);
            let inv = 1.0 / sum;
            for x in seen.iter_mut() {
                *x *= inv;
            }
            m + sum.ln()
        },
    )
}

/// `x = e^(x - m)` in place; returns the sum.
#[inline(always)]
pub(super) fn exp_sum(xs: &mut [f32], m: f32) -> f32 {
    let mut acc = [0f32; LANES];
    let mut chunks = xs.chunks_exact_mut(LANES);
    for c in &mut chunks {
        for i in 0..LANES {
            c[i] = exp(c[i] - m);
            acc[i] += c[i];
        }
    }
    let mut sum = horizontal(acc);
    for x in chunks.into_remainder() {
        *x = exp(*x - m);
        sum += *x;
    }
    sum
}

/// What the backward needs from the forward.
#[derive(Clone, Copy)]
pub struct AttentionSaved<'a, E = f32> {
    pub qk: &'a [E],
    pub qkv: &'a [E],
    pub out: &'a [E],
    pub lse: &'a [f32],
}

/// Backward of [`attention`]. d_out `[T, H hd]`; d_qkv `[T, (H + 2 KV) hd]` is overwritten with the gradient of the
/// rotated queries and keys, and of the values.
pub fn attention_backward<E: Element>(
    shape: AttentionShape,
    packing: &Packing,
    saved: AttentionSaved<'_, E>,
    d_out: &[E],
    d_qkv: &mut [E],
) {
    let d_qkv = SharedMut::new(d_qkv);
    let tasks = split::backward(packing, shape.kv_heads, shape.block_queries(), rayon::current_num_threads());
    each_head(shape, &tasks, |task, kv_head, s| {
        backward_task(shape, task, kv_head, saved, d_out, d_qkv, s);
    });
}

/// The first segment's keys are every segment's of a task: their gradients are added up in f32 and then written.
fn backward_task<E: Element>(
    shape: AttentionShape,
    task: &Task<'_>,
    kv_head: usize,
    saved: AttentionSaved<'_, E>,
    d_out: &[E],
    d_qkv: SharedMut<'_, E>,
    s: &mut Scratch,
) {
    let mut shared = 0..0;
    for (i, segment) in task.segments.iter().enumerate() {
        let keys = backward_segment(shape, segment, &task.part, kv_head, saved, d_out, d_qkv, s);
        if i == 0 {
            shared = keys;
            std::mem::swap(&mut s.d_keys, &mut s.shared_d_keys);
            std::mem::swap(&mut s.d_values, &mut s.shared_d_values);
            continue;
        }
        let (d_keys, own_d_keys) = s.d_keys.split_at(s.shared_d_keys.len());
        let (d_values, own_d_values) = s.d_values.split_at(s.shared_d_values.len());
        axpy(1.0, d_keys, &mut s.shared_d_keys);
        axpy(1.0, d_values, &mut s.shared_d_values);
        let own = keys.start + shared.len()..keys.end;
        write_keys_values(shape, segment, own, kv_head, d_qkv, own_d_keys, own_d_values);
    }
    let Some(first) = task.segments.first() else { return };
    write_keys_values(shape, first, shared, kv_head, d_qkv, &s.shared_d_keys, &s.shared_d_values);
}

/// The gradients of a segment's queries and, left in `s.d_keys` and `s.d_values`, what it adds to those of the keys and values that it
/// sees, as far as they are the task's; returns which these are.
#[allow(clippy::too_many_arguments)]
fn backward_segment<E: Element>(
    shape: AttentionShape,
    segment: &Segment,
    part: &Part,
    kv_head: usize,
    saved: AttentionSaved<'_, E>,
    d_out: &[E],
    d_qkv: SharedMut<'_, E>,
    s: &mut Scratch,
) -> Range<usize> {
    let (hd, group, prefix, scale) = (shape.head_dim, shape.group(), segment.prefix_len(), shape.scale());
    let block = shape.block_queries();
    let (queries, keys) = match part {
        Part::Whole => (0..segment.len(), 0..prefix + segment.len()),
        Part::Queries(queries) => (queries.clone(), 0..prefix + queries.end),
        // From the block on in which the first of the keys is seen.
        Part::Keys(keys) => (keys.start.saturating_sub(prefix) / block * block..segment.len(), keys.clone()),
    };
    let (of_queries, of_keys) = (!matches!(part, Part::Keys(_)), !matches!(part, Part::Queries(_)));
    gather_keys_values(shape, segment, keys.clone(), kv_head, saved.qk, saved.qkv, s);
    for d in [&mut s.d_keys, &mut s.d_values] {
        d.clear();
        d.resize(if of_keys { keys.len() * hd } else { 0 }, 0.0);
    }
    for from in queries.clone().step_by(block) {
        let to = (from + block).min(queries.end);
        let (rows, visible) = ((to - from) * group, (prefix + to).min(keys.end) - keys.start);
        let first_row = segment.rows.start + from;
        scores_backward(shape, segment, from..to, kv_head, keys.start, visible, saved, d_out, s);
        let (probs, d_scores) = (Mat::new(&s.scores, rows, visible), Mat::new(&s.d_scores, rows, visible));
        if of_keys {
            let d_values = MatMut::new(&mut s.d_values[..visible * hd], visible, hd);
            matmul_seq(shape.compute, d_values, probs.t(), Mat::new(&s.d_out, rows, hd), Write::Add);
            let d_keys = MatMut::new(&mut s.d_keys[..visible * hd], visible, hd);
            matmul_seq(shape.compute, d_keys, d_scores.t(), Mat::new(&s.queries, rows, hd), Write::Add);
        }
        if !of_queries {
            continue;
        }
        s.out.resize(rows * hd, 0.0);
        let keys = Mat::new(&s.keys, visible, hd);
        matmul_seq(shape.compute, MatMut::new(&mut s.out, rows, hd), d_scores, keys, Write::Replace);
        for (i, d_query) in s.out.chunks_exact(group * hd).enumerate() {
            // SAFETY: this task alone writes these heads of its queries' rows, and each query row once.
            let d = unsafe { d_qkv.slice((first_row + i) * shape.qkv_dim() + kv_head * group * hd, group * hd) };
            for (d, x) in d.iter_mut().zip(d_query) {
                *d = E::of(x * scale);
            }
        }
    }
    if of_keys { keys } else { 0..0 }
}

/// Probabilities of a block of queries for the first `visible` keys that were gathered, of which the first is the segment's
/// `first_key`, into `s.scores`, and the gradients of their scores into `s.d_scores`.
#[allow(clippy::too_many_arguments)]
fn scores_backward<E: Element>(
    shape: AttentionShape,
    segment: &Segment,
    queries: Range<usize>,
    kv_head: usize,
    first_key: usize,
    visible: usize,
    saved: AttentionSaved<'_, E>,
    d_out: &[E],
    s: &mut Scratch,
) {
    let (hd, group) = (shape.head_dim, shape.group());
    let (rows, first_row) = (queries.len() * group, segment.rows.start + queries.start);
    scores(shape, kv_head, first_row, rows, visible, saved.qk, s);
    s.d_out.clear();
    for token in first_row..first_row + queries.len() {
        let start = token * shape.q_dim() + kv_head * group * hd;
        append(&d_out[start..start + group * hd], &mut s.d_out);
    }
    s.d_scores.resize(rows * visible, 0.0);
    let values = Mat::new(&s.values, visible, hd).t();
    let d_scores = MatMut::new(&mut s.d_scores, rows, visible);
    matmul_seq(shape.compute, d_scores, Mat::new(&s.d_out, rows, hd), values, Write::Replace);
    for row in 0..rows {
        let (token, head) = (first_row + row / group, kv_head * group + row % group);
        let sees = segment.prefix_len() + queries.start + row / group + 1;
        let start = token * shape.q_dim() + head * hd;
        softmax_backward(
            &mut s.scores[row * visible..(row + 1) * visible],
            &mut s.d_scores[row * visible..(row + 1) * visible],
            sees.saturating_sub(first_key).min(visible),
            saved.lse[token * shape.heads + head],
            &saved.out[start..start + hd],
            &s.d_out[row * hd..(row + 1) * hd],
        );
    }
}

/// Writes the gradients `[keys, hd]` of some of the keys and values that a segment sees to their rows.
fn write_keys_values<E: Element>(
    shape: AttentionShape,
    segment: &Segment,
    keys: Range<usize>,
    kv_head: usize,
    d_qkv: SharedMut<'_, E>,
    d_keys: &[f32],
    d_values: &[f32],
) {
    let hd = shape.head_dim;
    for (i, token) in key_rows(segment, keys).enumerate() {
        let key = token * shape.qkv_dim() + shape.q_dim() + kv_head * hd;
        for (at, d) in [(key, d_keys), (key + shape.kv_dim(), d_values)] {
            // SAFETY: this task alone writes this key/value head of its keys' rows.
            convert(&d[i * hd..(i + 1) * hd], unsafe { d_qkv.slice(at, hd) });
        }
    }
}

/// Scores to probabilities and their gradients to the scores' gradients, both in place: with `P = e^(s - lse)` and
/// `D = out . d_out = sum P dP`, `dS = P (dP - D)`.
fn softmax_backward<E: Element>(scores: &mut [f32], d: &mut [f32], sees: usize, lse: f32, out: &[E], d_out: &[f32]) {
    vectorize(
        #[inline(always)]
        || {
            let pull = dot(out, d_out);
            let (p, p_masked) = scores.split_at_mut(sees);
            let (d, d_masked) = d.split_at_mut(sees);
            for (p, d) in p.iter_mut().zip(d.iter_mut()) {
                *p = exp(*p - lse);
                *d = *p * (*d - pull);
            }
            p_masked.fill(0.0);
            d_masked.fill(0.0);
        },
    )
}

#[cfg(test)]
mod tests;

//! How attention is cut into tasks: by segments where there are enough of them, else by queries and, in the backward, by keys.
//!
//! A query's sums, and a key's, are the same wherever the cuts are, so they may follow the number of threads.

use crate::compute::packing::{Packing, Segment};
use std::ops::Range;

/// Tasks for each thread, where there is work for so many: threads are not equally fast.
const TASKS_A_THREAD: usize = 4;

/// Blocks of queries that are worth a task, which first copies all the keys and values that they see.
const FEWEST_BLOCKS: usize = 4;

/// Keys that are worth a task, and a multiple of which begins one.
const FEWEST_KEYS: usize = 128;

/// What one task takes of a key/value head, of each of these segments one after the other.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub segments: &'a [Segment],
    pub part: Part,
}

/// Places of queries and keys are a segment's: queries count from its first row, keys from its prefix's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All queries and keys.
    Whole,
    /// These queries: their outputs, or their gradients.
    Queries(Range<usize>),
    /// Gradients of these keys and their values.
    Keys(Range<usize>),
}

/// Tasks of the forward. `block`: queries of a block, at whose multiples a segment may be cut.
pub(super) fn forward(packing: &Packing, kv_heads: usize, block: usize, threads: usize) -> Vec<Task<'_>> {
    let share = share(packing, kv_heads, threads);
    let mut tasks = Vec::with_capacity(packing.segments().len());
    for segment in packing.segments() {
        if work(segment) <= share {
            tasks.push(Task { segments: std::slice::from_ref(segment), part: Part::Whole });
        } else {
            cut_queries(segment, block, share, &mut tasks);
        }
    }
    tasks
}

/// Tasks of the backward. Segments of a tree add to the same prompt's keys, so that one task owns a tree; cut, its queries and
/// its keys belong to different ones, which both compute probabilities: 7 products in place of 5.
pub(super) fn backward(packing: &Packing, kv_heads: usize, block: usize, threads: usize) -> Vec<Task<'_>> {
    let share = share(packing, kv_heads, threads);
    let even = packing.segments().iter().map(work).sum::<usize>() * kv_heads / threads;
    let mut tasks = Vec::with_capacity(packing.trees().len());
    for tree in packing.trees() {
        let segments = &packing.segments()[tree.clone()];
        // A tree that takes one thread less than twice as long as all threads would take for everything is left whole.
        if threads == 1 || segments.iter().map(work).sum::<usize>() < 2 * even.max(1) {
            tasks.push(Task { segments, part: Part::Whole });
            continue;
        }
        for (i, segment) in segments.iter().enumerate() {
            cut_queries(segment, block, share, &mut tasks);
            // The first segment's keys are every segment's, those of a continuation only its own.
            let viewers = if i == 0 { segments } else { std::slice::from_ref(segment) };
            cut_keys(viewers, segment, share, &mut tasks);
        }
    }
    tasks
}

/// Work of one task, if all of it is to be a few tasks for each thread.
fn share(packing: &Packing, kv_heads: usize, threads: usize) -> usize {
    let all: usize = packing.segments().iter().map(work).sum();
    if threads == 1 { usize::MAX } else { all * kv_heads / (threads * TASKS_A_THREAD) }
}

/// Pairs of a query and a key that it sees.
fn work(segment: &Segment) -> usize {
    let n = segment.len();
    n * segment.prefix_len() + n * (n + 1) / 2
}

fn cut_queries<'a>(segment: &'a Segment, block: usize, share: usize, tasks: &mut Vec<Task<'a>>) {
    let (prefix, len) = (segment.prefix_len(), segment.len());
    let pairs = |from: usize, to: usize| (to - from) * (prefix + to);
    for queries in cut(0..len, block, FEWEST_BLOCKS * block, share, pairs) {
        tasks.push(Task { segments: std::slice::from_ref(segment), part: Part::Queries(queries) });
    }
}

/// Cuts the keys of `owner`'s own rows, which all `viewers` see.
fn cut_keys<'a>(viewers: &'a [Segment], owner: &Segment, share: usize, tasks: &mut Vec<Task<'a>>) {
    let (prefix, len) = (owner.prefix_len(), owner.len());
    let queries = |from: usize| viewers.iter().map(|v| v.len() - from.saturating_sub(v.prefix_len())).sum::<usize>();
    let pairs = |from: usize, to: usize| (to - from) * queries(from);
    for keys in cut(prefix..prefix + len, FEWEST_KEYS, FEWEST_KEYS, share, pairs) {
        tasks.push(Task { segments: viewers, part: Part::Keys(keys) });
    }
}

/// Cuts a range at multiples of `step` from its start into parts of about `share` in work, none of them shorter than `fewest`
/// unless all of it is.
fn cut(
    all: Range<usize>,
    step: usize,
    fewest: usize,
    share: usize,
    work: impl Fn(usize, usize) -> usize,
) -> Vec<Range<usize>> {
    let (mut parts, mut from, mut taken) = (Vec::new(), all.start, 0);
    for start in all.clone().step_by(step) {
        let end = (start + step).min(all.end);
        taken += work(start, end);
        if end == all.end || (taken >= share && end - from >= fewest && all.end - end >= fewest) {
            parts.push(from..end);
            (from, taken) = (end, 0);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(tasks: &[Task<'_>]) -> Vec<Part> {
        tasks.iter().map(|t| t.part.clone()).collect()
    }

    #[test]
    fn one_long_sequence_is_work_for_every_thread_and_many_short_ones_stay_whole() {
        let long = Packing::single(&[0; 8192]);
        assert_eq!(parts(&forward(&long, 2, 16, 1)), [Part::Whole]);
        let tasks = forward(&long, 2, 16, 16);
        // Two heads of 32 parts, four for each thread, the largest of which is about one of 64 equal shares of all pairs.
        assert!((28..=32).contains(&tasks.len()), "{}", tasks.len());
        let pairs = |part: &Part| match part {
            Part::Queries(q) => (q.start..q.end).map(|q| q + 1).sum::<usize>(),
            _ => 0,
        };
        let (all, most) = (8192 * 8193 / 2, parts(&tasks).iter().map(pairs).max().unwrap());
        assert_eq!(parts(&tasks).iter().map(pairs).sum::<usize>(), all);
        assert!(most * 32 < all * 6 / 5, "{most} of {all}");
        let mut short = Packing::new();
        (0..16).for_each(|_| _ = short.push(&[0; 256]));
        assert!(parts(&forward(&short, 4, 64, 2)).iter().all(|p| *p == Part::Whole));
        assert!(parts(&backward(&short, 4, 64, 2)).iter().all(|p| *p == Part::Whole));
        // Two heads for two threads: what a cut backward computes twice would be for nothing.
        assert_eq!(parts(&backward(&long, 2, 16, 2)), [Part::Whole]);
        assert!(backward(&long, 2, 16, 16).len() > 32 && backward(&long, 1, 16, 2).len() >= 8);
    }

    #[test]
    fn the_parts_of_a_tree_are_all_its_queries_and_every_row_of_keys_once() {
        let mut packing = Packing::new();
        packing.push(&[0; 300]);
        packing.push_continuation(&[0; 70]);
        packing.push_continuation(&[0; 500]);
        let (mut queries, mut keys) = (vec![0; 870], vec![0; 870]);
        for task in backward(&packing, 1, 16, 8) {
            let first = &task.segments[0];
            match task.part {
                Part::Whole => panic!("one tree for eight threads"),
                Part::Queries(q) => {
                    (first.rows.start + q.start..first.rows.start + q.end).for_each(|i| queries[i] += 1)
                }
                Part::Keys(k) => {
                    let own = first.rows.start + k.start - first.prefix_len();
                    assert_eq!(task.segments.len(), if own < 300 { 3 } else { 1 });
                    (own..own + k.len()).for_each(|i| keys[i] += 1);
                }
            }
        }
        assert!(queries.iter().chain(&keys).all(|n| *n == 1));
    }
}

//! The operations of an analysis on the CPU.

use super::array::{Array, Element, Elements, convert};
use super::backend::{Cpu, in_format};
use super::gram::{gram, pairs, row_cosine};
use super::norm::rms_norm_in_place;
use super::simd::vectorize;
use crate::compute::Backend;
use crate::compute::backend::{BranchComparison, Branches, Comparison, FinalNorm, Inspect, Kind, Placed, Unembedding};
use rayon::prelude::*;
use std::ops::Range;

impl Inspect for Cpu {
    fn place_rows(&self, state: &Array, rows: &[usize], out: &mut Array, at: Placed) {
        in_format!([state] in_format!([out] place_rows(state, rows, out, at)));
    }

    fn row_cosines(&self, a: &Array, first: usize, b: &Array, d: usize) -> Vec<f64> {
        in_format!([a] row_cosines(&a[first..], b.f32(), d))
    }

    fn norm_rows(&self, x: &mut Array, w: &[f32], eps: f32, _: usize) {
        in_format!([x] rms_norm_in_place(x, w, eps));
    }

    fn gram(&self, states: &Array, (places, d): (usize, usize), layers: usize, tokens: usize) -> Vec<f64> {
        let mut products = vec![0.0; tokens * pairs(layers).count()];
        gram(&states.f32()[..tokens * places * d], (places, d), layers, &mut products);
        products
    }

    fn compare(
        &self,
        head: Unembedding<&[f32]>,
        FinalNorm { weight, eps, states: normed }: FinalNorm<&[f32]>,
        states: &mut Array,
        places: usize,
        references: &[usize],
        targets: &[u32],
        _: &mut Array,
    ) -> Comparison {
        let d = weight.len();
        states
            .f32_mut()
            .par_chunks_mut(places * d)
            .for_each(|rows| rms_norm_in_place(&mut rows[..normed * d], weight, eps));
        self.head_of(head).compare(&*states, places, references, Some(targets))
    }

    fn compare_branches(
        &self,
        head: Unembedding<&[f32]>,
        branches: &Array,
        of: Branches,
        references: &[usize],
        targets: &[u32],
        _: &mut Array,
    ) -> BranchComparison {
        self.head_of(head).compare_branches(branches, of, references, targets)
    }

    fn add_branches(
        &self,
        embedding: &Array,
        branches: &Array,
        of: Branches,
        d: usize,
        tokens: Range<usize>,
        states: &mut Array,
    ) {
        self.resize(states, tokens.len() * (of.layers + 1) * d, Kind::F32);
        let embedding = &embedding.f32()[tokens.start * d..tokens.end * d];
        let branches_at = tokens.start * of.places() * d..tokens.end * of.places() * d;
        in_format!([branches] add_branches(embedding, &branches[branches_at], of, d, states.f32_mut()));
    }

    fn logits(&self, head: Unembedding<&[f32]>, hidden: &Array, first: usize, n: usize, _: &mut Array) -> Vec<f32> {
        let (d, mut logits) = (head.hidden_size, vec![0.0; n * head.vocab]);
        self.head_of(head).logits(Elements::from(hidden).part(first * d..(first + n) * d), &mut logits);
        logits
    }
}

fn place_rows<A: Element, B: Element>(state: &[A], rows: &[usize], out: &mut [B], at: Placed) {
    let Placed { first, stride, d } = at;
    for (i, row) in rows.iter().enumerate() {
        let to = first + i * stride;
        convert(&state[row * d..(row + 1) * d], &mut out[to..to + d]);
    }
}

fn row_cosines<E: Element>(a: &[E], b: &[f32], d: usize) -> Vec<f64> {
    a.par_chunks(d).zip(b.par_chunks(d)).with_min_len(64).map(|(a, b)| row_cosine(a, b)).collect()
}

/// [`Inspect::add_branches`] of these tokens.
fn add_branches<E: Element>(embedding: &[f32], branches: &[E], of: Branches, d: usize, states: &mut [f32]) {
    let tokens = embedding.par_chunks(d).zip(branches.par_chunks(of.places() * d));
    states.par_chunks_mut((of.layers + 1) * d).zip(tokens).for_each(|(states, (below, branches))| {
        let row = |place: usize| &branches[place * d..(place + 1) * d];
        for layer in 0..of.layers {
            let (done, rest) = states.split_at_mut(layer * d);
            let below = if layer == 0 { below } else { &done[(layer - 1) * d..] };
            add_both(below, row(of.attn(layer)), row(of.ffn(layer)), &mut rest[..d]);
        }
        convert(row(of.last()), &mut states[of.layers * d..]);
    });
}

/// `below + attn + ffn`, in this order.
fn add_both<E: Element>(below: &[f32], attn: &[E], ffn: &[E], to: &mut [f32]) {
    vectorize(
        #[inline(always)]
        || {
            for (((to, below), attn), ffn) in to.iter_mut().zip(below).zip(attn).zip(ffn) {
                *to = below + attn.get() + ffn.get();
            }
        },
    )
}

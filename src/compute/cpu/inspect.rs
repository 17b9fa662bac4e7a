//! The operations of an analysis on the CPU.

use super::backend::Cpu;
use super::gram::{gram, pairs, row_cosine};
use super::norm::rms_norm_in_place;
use super::simd::vectorize;
use crate::compute::backend::{BranchComparison, Branches, Comparison, FinalNorm, Inspect, Placed, Unembedding};
use rayon::prelude::*;
use std::ops::Range;

impl Inspect for Cpu {
    fn place_rows(&self, state: &Vec<f32>, rows: &[usize], out: &mut Vec<f32>, at: Placed) {
        let Placed { first, stride, d } = at;
        for (i, row) in rows.iter().enumerate() {
            let to = first + i * stride;
            out[to..to + d].copy_from_slice(&state[row * d..(row + 1) * d]);
        }
    }

    fn row_cosines(&self, a: &Vec<f32>, first: usize, b: &Vec<f32>, d: usize) -> Vec<f64> {
        a[first..].par_chunks(d).zip(b.par_chunks(d)).with_min_len(64).map(|(a, b)| row_cosine(a, b)).collect()
    }

    fn norm_rows(&self, x: &mut Vec<f32>, w: &[f32], eps: f32, _: usize) {
        rms_norm_in_place(x, w, eps);
    }

    fn gram(&self, states: &Vec<f32>, (places, d): (usize, usize), layers: usize, tokens: usize) -> Vec<f64> {
        let mut products = vec![0.0; tokens * pairs(layers).count()];
        gram(&states[..tokens * places * d], (places, d), layers, &mut products);
        products
    }

    fn compare(
        &self,
        head: Unembedding<&[f32]>,
        FinalNorm { weight, eps, states: normed }: FinalNorm<&[f32]>,
        states: &mut Vec<f32>,
        places: usize,
        references: &[usize],
        targets: &[u32],
        _: &mut Vec<f32>,
    ) -> Comparison {
        let d = weight.len();
        states.par_chunks_mut(places * d).for_each(|rows| rms_norm_in_place(&mut rows[..normed * d], weight, eps));
        self.head_of(head).compare(states, places, references, Some(targets))
    }

    fn compare_branches(
        &self,
        head: Unembedding<&[f32]>,
        branches: &Vec<f32>,
        of: Branches,
        references: &[usize],
        targets: &[u32],
        _: &mut Vec<f32>,
    ) -> BranchComparison {
        self.head_of(head).compare_branches(branches, of, references, targets)
    }

    fn add_branches(
        &self,
        embedding: &Vec<f32>,
        branches: &Vec<f32>,
        of: Branches,
        d: usize,
        tokens: Range<usize>,
        states: &mut Vec<f32>,
    ) {
        states.resize(tokens.len() * (of.layers + 1) * d, 0.0);
        let embedding = embedding[tokens.start * d..tokens.end * d].par_chunks(d);
        let branches =
            branches[tokens.start * of.places() * d..tokens.end * of.places() * d].par_chunks(of.places() * d);
        states.par_chunks_mut((of.layers + 1) * d).zip(embedding.zip(branches)).for_each(
            |(states, (below, branches))| {
                let row = |place: usize| &branches[place * d..(place + 1) * d];
                for layer in 0..of.layers {
                    let (done, rest) = states.split_at_mut(layer * d);
                    let below = if layer == 0 { below } else { &done[(layer - 1) * d..] };
                    add_both(below, row(of.attn(layer)), row(of.ffn(layer)), &mut rest[..d]);
                }
                states[of.layers * d..].copy_from_slice(row(of.last()));
            },
        );
    }

    fn logits(
        &self,
        head: Unembedding<&[f32]>,
        hidden: &Vec<f32>,
        first: usize,
        n: usize,
        _: &mut Vec<f32>,
    ) -> Vec<f32> {
        let (d, mut logits) = (head.hidden_size, vec![0.0; n * head.vocab]);
        self.head_of(head).logits(None, &hidden[first * d..(first + n) * d], &mut logits);
        logits
    }
}

/// `below + attn + ffn`, in this order.
fn add_both(below: &[f32], attn: &[f32], ffn: &[f32], to: &mut [f32]) {
    vectorize(
        #[inline(always)]
        || {
            for (((to, below), attn), ffn) in to.iter_mut().zip(below).zip(attn).zip(ffn) {
                *to = below + attn + ffn;
            }
        },
    )
}

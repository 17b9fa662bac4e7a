//! The operations of an analysis on the CPU.

use super::backend::Cpu;
use super::gram::{gram, pairs, row_cosine};
use super::norm::rms_norm_in_place;
use crate::compute::backend::{Comparison, FinalNorm, Inspect, Placed, Unembedding};
use rayon::prelude::*;

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

    fn gram(
        &self,
        states: &Vec<f32>,
        (places, d): (usize, usize),
        layers: usize,
        first: usize,
        tokens: usize,
    ) -> Vec<f64> {
        let mut products = vec![0.0; tokens * pairs(layers).count()];
        gram(&states[first * places * d..(first + tokens) * places * d], (places, d), layers, &mut products);
        products
    }

    fn compare(
        &self,
        head: Unembedding<&[f32]>,
        states: &mut Vec<f32>,
        places: usize,
        norm: Option<FinalNorm<&[f32]>>,
        references: &[usize],
        targets: &[u32],
        _: &mut Vec<f32>,
    ) -> Comparison {
        if let Some(FinalNorm { weight, eps, states: count }) = norm {
            let d = weight.len();
            states.par_chunks_mut(places * d).for_each(|rows| rms_norm_in_place(&mut rows[..count * d], weight, eps));
        }
        self.head_of(head).compare(states, places, references, Some(targets))
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

//! The operations of an analysis on the CPU.

use super::backend::Cpu;
use super::gram::{gram, pairs, row_cosine};
use super::norm::rms_norm_in_place;
use crate::compute::backend::{Comparison, Inspect, Placed, Unembedding};
use rayon::prelude::*;

impl Inspect for Cpu {
    fn place_rows(&self, state: &Vec<f32>, rows: &[usize], out: &mut Vec<f32>, at: Placed) {
        let Placed { first, stride, d } = at;
        for (i, row) in rows.iter().enumerate() {
            let to = first + i * stride;
            out[to..to + d].copy_from_slice(&state[row * d..(row + 1) * d]);
        }
    }

    fn row_cosines(&self, a: &Vec<f32>, in_a: Placed, b: &Vec<f32>, in_b: Placed, n: usize) -> Vec<f64> {
        fn row(x: &[f32], at: Placed, i: usize) -> &[f32] {
            &x[at.first + i * at.stride..][..at.d]
        }
        (0..n).into_par_iter().map(|i| row_cosine(row(a, in_a, i), row(b, in_b, i))).collect()
    }

    fn norm_rows(&self, x: &mut Vec<f32>, w: &[f32], eps: f32, d: usize, count: usize, places: usize) {
        if count == places {
            return rms_norm_in_place(x, w, eps);
        }
        x.par_chunks_mut(places * d).for_each(|rows| rms_norm_in_place(&mut rows[..count * d], w, eps));
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
        states: &Vec<f32>,
        places: usize,
        references: &[usize],
        targets: &[u32],
        _: &mut Vec<f32>,
    ) -> Comparison {
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

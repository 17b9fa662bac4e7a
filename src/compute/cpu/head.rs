//! The unembedding read as a distribution, without its logits: log-probabilities, entropies and their gradients.
//!
//! Rows of hidden states meet the vocabulary in tiles; a tile of logits lives in a task's cache and is folded into
//! running sums (online log-sum-exp). `[rows, vocabulary]` never exists, neither forward nor backward. With
//! `z = hidden . E / temperature`, `p = softmax(z)`: `log p_j = z_j - lse` and the entropy `H = lse - sum_j p_j z_j`
//! in nats, taken relative to the running maximum so that peaked distributions keep their small entropies.

use super::gemm::{Compute, Mat, MatMut, Write, matmul_seq};
use super::simd::{LANES, exp, horizontal, max, vectorize};
use rayon::prelude::*;

/// Rows of a task, and vocabulary entries of a tile: a tile is 64 x 1024 f32 = 256 KiB.
const ROWS: usize = 64;
const TILE: usize = 1024;

/// The unembedding: E `[V, d]`, and the temperature that divides the logits.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub embedding: &'a [f32],
    pub hidden_size: usize,
    pub temperature: f32,
    pub compute: Compute,
}

/// Per row: the log-sum-exp of the scaled logits, the entropy in nats, and the target's log-probability.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadStats {
    pub lse: Vec<f32>,
    pub entropy: Vec<f32>,
    /// Empty if no targets were given.
    pub log_probs: Vec<f32>,
}

/// Running sums of one row: the maximum `m`, `s = sum e^(z - m)`, `a = sum e^(z - m) (z - m)`.
#[derive(Clone, Copy)]
struct Running {
    m: f32,
    s: f64,
    a: f64,
}

impl Running {
    const EMPTY: Running = Running { m: f32::NEG_INFINITY, s: 0.0, a: 0.0 };

    #[inline(always)]
    fn add(&mut self, z: &[f32]) {
        let m = max(z).max(self.m);
        if self.s > 0.0 && m > self.m {
            let shift = (self.m - m) as f64;
            let factor = shift.exp();
            self.a = (self.a + self.s * shift) * factor;
            self.s *= factor;
        }
        self.m = m;
        let (mut s, mut a) = ([0f32; LANES], [0f32; LANES]);
        let mut chunks = z.chunks_exact(LANES);
        for c in &mut chunks {
            for i in 0..LANES {
                let e = exp(c[i] - m);
                s[i] += e;
                a[i] = e.mul_add(c[i] - m, a[i]);
            }
        }
        let (mut s, mut a) = (horizontal(s), horizontal(a));
        for z in chunks.remainder() {
            let e = exp(z - m);
            s += e;
            a = e.mul_add(z - m, a);
        }
        self.s += s as f64;
        self.a += a as f64;
    }
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.embedding.len() / self.hidden_size
    }

    /// Statistics of each row of hidden `[R, d]`; targets `[R]` token ids, or none.
    pub fn forward(&self, hidden: &[f32], targets: Option<&[u32]>) -> HeadStats {
        let (d, rows) = (self.hidden_size, hidden.len() / self.hidden_size);
        let inv_t = 1.0 / self.temperature;
        let mut stats = HeadStats {
            lse: vec![0.0; rows],
            entropy: vec![0.0; rows],
            log_probs: vec![0.0; if targets.is_some() { rows } else { 0 }],
        };
        let outputs = stats.lse.par_chunks_mut(ROWS).zip(stats.entropy.par_chunks_mut(ROWS)).enumerate();
        let target_logits: Vec<Vec<f32>> = outputs
            .zip(hidden.par_chunks(ROWS * d))
            .map_init(Vec::new, |tile, ((block, (lse, entropy)), hidden)| {
                let n = lse.len();
                let targets = targets.map(|t| &t[block * ROWS..block * ROWS + n]);
                let mut running = vec![Running::EMPTY; n];
                let mut target_logits = vec![0f32; if targets.is_some() { n } else { 0 }];
                for from in (0..self.vocab()).step_by(TILE) {
                    let width = TILE.min(self.vocab() - from);
                    self.tile(hidden, n, from, width, inv_t, tile);
                    for (row, running) in running.iter_mut().enumerate() {
                        let z = &tile[row * width..(row + 1) * width];
                        vectorize(
                            #[inline(always)]
                            || running.add(z),
                        );
                        if let Some(target) = targets.map(|t| t[row] as usize)
                            && (from..from + width).contains(&target)
                        {
                            target_logits[row] = z[target - from];
                        }
                    }
                }
                for (i, r) in running.iter().enumerate() {
                    lse[i] = (r.m as f64 + r.s.ln()) as f32;
                    entropy[i] = (r.s.ln() - r.a / r.s) as f32;
                    if let Some(z) = target_logits.get_mut(i) {
                        // f64: relative to the maximum, so that a likely token's log-prob keeps its digits.
                        *z = ((*z - r.m) as f64 - r.s.ln()) as f32;
                    }
                }
                target_logits
            })
            .collect();
        for (out, part) in stats.log_probs.chunks_mut(ROWS).zip(target_logits) {
            out.copy_from_slice(&part);
        }
        stats
    }

    /// Scaled logits of `n` rows against vocabulary entries `from..from + width`.
    fn tile(&self, hidden: &[f32], n: usize, from: usize, width: usize, inv_t: f32, tile: &mut Vec<f32>) {
        let d = self.hidden_size;
        tile.resize(n * width, 0.0);
        let entries = Mat::new(&self.embedding[from * d..(from + width) * d], width, d).t();
        matmul_seq(self.compute, MatMut::new(tile, n, width), Mat::new(hidden, n, d), entries, Write::Replace);
        if inv_t != 1.0 {
            for z in tile.iter_mut() {
                *z *= inv_t;
            }
        }
    }

    /// Backward of [`Head::forward`] for its log-probs and entropies.
    ///
    /// `d_log_probs`, `d_entropy` `[R]` are the loss's derivatives (`d_entropy` may be empty). d_hidden `[R, d]` is
    /// overwritten, d_embedding `[V, d]` added to. With `g` and `h` a row's two derivatives and `H` its entropy:
    /// `dz_j = g (1[j = target] - p_j) - h p_j (log p_j + H)`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        hidden: &[f32],
        targets: &[u32],
        stats: &HeadStats,
        d_log_probs: &[f32],
        d_entropy: &[f32],
        d_hidden: &mut [f32],
        d_embedding: &mut [f32],
    ) {
        let (d, rows, vocab) = (self.hidden_size, targets.len(), self.vocab());
        let inv_t = 1.0 / self.temperature;
        // The vocabulary is split between the threads: each owns its rows of d_embedding, and keeps a d_hidden of its
        // own that is added up at the end, in order.
        let parts = rayon::current_num_threads().min(vocab.div_ceil(64)).max(1);
        let share = vocab.div_ceil(parts);
        let partial: Vec<Vec<f32>> = d_embedding
            .par_chunks_mut(share * d)
            .enumerate()
            .map(|(part, d_embedding)| {
                let mut d_hidden = vec![0f32; rows * d];
                let mut tile = Vec::new();
                let first = part * share;
                for from in (0..d_embedding.len() / d).step_by(TILE) {
                    let width = TILE.min(d_embedding.len() / d - from);
                    let entries = &self.embedding[(first + from) * d..(first + from + width) * d];
                    for start in (0..rows).step_by(2 * ROWS) {
                        let n = (2 * ROWS).min(rows - start);
                        let hidden = &hidden[start * d..(start + n) * d];
                        self.tile(hidden, n, first + from, width, inv_t, &mut tile);
                        for (row, z) in tile.chunks_exact_mut(width).enumerate() {
                            let r = start + row;
                            let target = (targets[r] as usize).checked_sub(first + from);
                            let (g, h) = (d_log_probs[r] * inv_t, d_entropy.get(r).map_or(0.0, |h| h * inv_t));
                            d_logits(z, target, g, h, stats.lse[r], stats.entropy[r]);
                        }
                        let dz = Mat::new(&tile, n, width);
                        let d_rows = MatMut::new(&mut d_hidden[start * d..(start + n) * d], n, d);
                        matmul_seq(self.compute, d_rows, dz, Mat::new(entries, width, d), Write::Add);
                        let d_entries = MatMut::new(&mut d_embedding[from * d..(from + width) * d], width, d);
                        matmul_seq(self.compute, d_entries, dz.t(), Mat::new(hidden, n, d), Write::Add);
                    }
                }
                d_hidden
            })
            .collect();
        d_hidden.fill(0.0);
        for part in partial {
            d_hidden.par_chunks_mut(1 << 14).zip(part.par_chunks(1 << 14)).for_each(|(sum, x)| {
                for (sum, x) in sum.iter_mut().zip(x) {
                    *sum += x;
                }
            });
        }
    }

    /// Logits of every row, scaled by the temperature: `[R, V]`, for sampling a few rows.
    pub fn logits(&self, hidden: &[f32], logits: &mut [f32]) {
        let (d, rows) = (self.hidden_size, hidden.len() / self.hidden_size);
        super::gemm::linear(self.compute, hidden, self.embedding, logits, rows, d, self.vocab(), Write::Replace);
        if self.temperature != 1.0 {
            let inv_t = 1.0 / self.temperature;
            logits.par_chunks_mut(1 << 14).for_each(|z| z.iter_mut().for_each(|z| *z *= inv_t));
        }
    }
}

/// Logits of one row to the loss's derivatives for them, in place.
fn d_logits(z: &mut [f32], target: Option<usize>, g: f32, h: f32, lse: f32, entropy: f32) {
    vectorize(
        #[inline(always)]
        || {
            if h == 0.0 {
                for z in z.iter_mut() {
                    *z = -g * exp(*z - lse);
                }
            } else {
                for z in z.iter_mut() {
                    let log_p = *z - lse;
                    *z = -exp(log_p) * h.mul_add(log_p + entropy, g);
                }
            }
        },
    );
    if let Some(z) = target.and_then(|t| z.get_mut(t)) {
        *z += g;
    }
}

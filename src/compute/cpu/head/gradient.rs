//! Statistics and gradient of the unembedding in one pass: the loss looks at a block of rows at a time.
//!
//! A block's logits are made once and kept until its gradient is taken, which saves the backward a third of its products.
//! `[rows, vocabulary]` of a whole batch never exists: the block is as long as [`LOGITS`] allows.

use super::{Head, HeadStats, RowGradients, TILE, TileSums, merged};
use crate::compute::cpu::array::{Array, Element, Elements, convert};
use crate::compute::cpu::gemm::{Mat, MatMut, Write, matmul_seq};
use crate::compute::cpu::simd::{exp, vectorize};
use rayon::prelude::*;
use std::ops::Range;

/// Logits of a block: 64 MiB, unless that leaves too few rows to pay for a pass over the unembedding's gradient.
const LOGITS: usize = 1 << 24;
const FEWEST_ROWS: usize = 256;
const MOST_ROWS: usize = 512;

impl Head<'_> {
    /// Statistics of each row of hidden `[R, d]` for targets `[R]`, and the gradient of a loss of them.
    ///
    /// `loss` is called for blocks of rows, in order, with their statistics. d_hidden `[R, d]` is overwritten, d_embedding
    /// `[V, d]` added to, if it is wanted; `logits` is scratch, kept from call to call. With `g` and `h` a row's derivatives for its log-prob and its entropy `H`:
    /// `dz_j = g (1[j = target] - p_j) - h p_j (log p_j + H)`. Rows where both are zero cost nothing more.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_backward<'a, E, D: Element>(
        &self,
        hidden: impl Into<Elements<'a>>,
        targets: &[u32],
        d_hidden: &mut [D],
        mut d_embedding: Option<&mut [f32]>,
        logits: &mut Vec<f32>,
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let (hidden, d, rows) = (hidden.into(), self.hidden_size, targets.len());
        let most = (LOGITS / self.vocab().max(1)).clamp(FEWEST_ROWS, MOST_ROWS);
        let mut stats = HeadStats::with_capacity(rows);
        logits.resize(most.min(rows) * self.vocab(), 0.0);
        for from in (0..rows).step_by(most) {
            let block = from..(from + most).min(rows);
            let hidden = hidden.part(from * d..block.end * d);
            let targets = &targets[block.clone()];
            let tiles = self.by_tiles(hidden, 1, Some(logits), |tile, from, z, sums: &mut TileSums| {
                self.fold_rows(tile, from, Some(targets), z, sums);
            });
            let of_block = merged(tiles, Some(targets));
            let gradients = loss(block.clone(), &of_block)?;
            let d_hidden = &mut d_hidden[from * d..block.end * d];
            self.block_backward(hidden, targets, &of_block, &gradients, logits, d_hidden, d_embedding.as_deref_mut());
            stats.append(of_block);
        }
        Ok(stats)
    }

    /// Backward of one block; its logits `[tile][n, width]` are consumed.
    #[allow(clippy::too_many_arguments)]
    fn block_backward<D: Element>(
        &self,
        hidden: Elements<'_>,
        targets: &[u32],
        stats: &HeadStats,
        gradients: &RowGradients,
        logits: &mut [f32],
        d_hidden: &mut [D],
        d_embedding: Option<&mut [f32]>,
    ) {
        let (d, n, inv_t) = (self.hidden_size, targets.len(), 1.0 / self.temperature);
        d_hidden.fill(D::default());
        let alive: Vec<usize> = (0..n).filter(|row| gradients.of(*row) != (0.0, 0.0)).collect();
        let live = alive.len();
        if live == 0 {
            return;
        }
        let gathered: Array;
        let hidden = if live == n {
            hidden
        } else {
            gathered = hidden.rows(&alive, d);
            Elements::from(&gathered)
        };
        let logits = &mut logits[..n * self.vocab()];
        let tiles = logits.par_chunks_mut(n * TILE).enumerate().with_max_len(1);
        let to_gradients = |tile: usize, z: &mut [f32]| {
            let width = self.width(tile);
            for (to, row) in alive.iter().enumerate() {
                if to != *row {
                    z.copy_within(row * width..(row + 1) * width, to * width);
                }
                let target = (targets[*row] as usize).checked_sub(tile * TILE);
                let (g, h) = gradients.of(*row);
                let z = &mut z[to * width..(to + 1) * width];
                d_logits(z, target, g * inv_t, h * inv_t, stats.lse[*row], stats.entropy[*row]);
            }
        };
        match d_embedding {
            None => tiles.for_each(|(tile, z)| to_gradients(tile, z)),
            Some(d_embedding) => tiles.zip(d_embedding.par_chunks_mut(TILE * d)).for_each(|((tile, z), d_entries)| {
                to_gradients(tile, z);
                let width = self.width(tile);
                let dz = Mat::new(&*z, live, width).t();
                let d_entries = MatMut::new(d_entries, width, d);
                matmul_seq(self.compute, d_entries, dz, Mat::new(hidden, live, d), Write::Add);
            }),
        }
        let logits = &*logits;
        let mut d_live = vec![0f32; live * d];
        let share = live.div_ceil(rayon::current_num_threads()).max(1);
        d_live.par_chunks_mut(share * d).enumerate().for_each(|(part, d_rows)| {
            let (from, rows) = (part * share, d_rows.len() / d);
            for tile in 0..self.tiles() {
                let width = self.width(tile);
                let dz = &logits[n * tile * TILE + from * width..][..rows * width];
                let entries = Mat::new(self.entries(tile), width, d);
                matmul_seq(
                    self.compute,
                    MatMut::new(&mut *d_rows, rows, d),
                    Mat::new(dz, rows, width),
                    entries,
                    Write::Add,
                );
            }
        });
        for (row, x) in alive.iter().zip(d_live.chunks_exact(d)) {
            convert(x, &mut d_hidden[row * d..(row + 1) * d]);
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

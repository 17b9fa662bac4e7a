//! The unembedding read as a distribution: log-probabilities and entropies, without the `[rows, vocabulary]` logits.
//!
//! A block of rows meets the vocabulary in tiles; its logits live in a task's cache and are folded into sums per
//! row, which are merged in the order of the tiles. With `z = hidden . E / temperature`, `p = softmax(z)`:
//! `log p_j = z_j - lse` and the entropy `H = lse - sum_j p_j z_j` in nats, taken relative to the maximum so that
//! peaked distributions keep their small entropies. The gradient is in [`gradient`], several states of a token side by
//! side in [`divergence`], a residual stream's in [`branches`], and what only a whole row of logits tells in [`row`].

mod branches;
mod divergence;
mod gradient;
mod row;

pub use crate::compute::backend::{Comparison, Divergences, HeadStats, RowGradients};
pub use row::LogitRow;

use super::array::Elements;
use super::gemm::{Compute, Mat, PackedRows, PackedWeight, Write, linear};
use super::simd::{LANES, exp, horizontal, max, vectorize};
use rayon::prelude::*;

/// Rows of a pass over the unembedding: as many as it takes for its packing to cost nothing beside the products.
const ROWS: usize = 2048;
/// Rows of a block, about: with a tile's entries 384 KiB of logits, which stay in the second cache.
const BLOCK: usize = 192;
/// Vocabulary entries of a tile.
const TILE: usize = 512;

/// The unembedding: E `[V, d]`, and the temperature that divides the logits.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub embedding: &'a [f32],
    pub hidden_size: usize,
    pub temperature: f32,
    pub compute: Compute,
}

/// Sums over some of a row's logits: the maximum `m`, `s = sum e^(z - m)`, `a = sum e^(z - m) (z - m)`.
#[derive(Clone, Copy)]
struct Sums {
    m: f32,
    s: f64,
    a: f64,
}

impl Sums {
    const NONE: Sums = Sums { m: f32::NEG_INFINITY, s: 0.0, a: 0.0 };

    #[inline(always)]
    fn of(z: &[f32]) -> Sums {
        let m = max(z);
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
        Sums { m, s: s as f64, a: a as f64 }
    }

    /// The sums relative to a higher maximum.
    fn relative_to(self, m: f32) -> Sums {
        if self.s == 0.0 || m == self.m {
            return Sums { m, ..self };
        }
        let shift = (self.m - m) as f64;
        let factor = shift.exp();
        Sums { m, s: self.s * factor, a: (self.a + self.s * shift) * factor }
    }

    fn merge(self, other: Sums) -> Sums {
        // Not `max`: a NaN must stay one.
        let m = if self.m > other.m { self.m } else { other.m };
        let (x, y) = (self.relative_to(m), other.relative_to(m));
        Sums { m, s: x.s + y.s, a: x.a + y.a }
    }
}

/// What a block of rows takes from one tile.
#[derive(Default)]
struct TileSums {
    rows: Vec<Sums>,
    /// Logits of the targets that lie in this tile, by row.
    targets: Vec<(usize, f32)>,
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.embedding.len() / self.hidden_size
    }

    /// Statistics of each row of hidden `[R, d]`; targets `[R]` token ids, or none.
    pub fn forward<'a>(&self, hidden: impl Into<Elements<'a>>, targets: Option<&[u32]>) -> HeadStats {
        let hidden = hidden.into();
        let rows = hidden.len() / self.hidden_size;
        let mut stats = HeadStats::with_capacity(rows);
        for from in (0..rows).step_by(ROWS) {
            let block = from..(from + ROWS).min(rows);
            let hidden = hidden.part(from * self.hidden_size..block.end * self.hidden_size);
            let targets = targets.map(|t| &t[block]);
            let tiles = self.by_tiles(hidden, 1, None, |tile, from, z, sums: &mut TileSums| {
                self.fold_rows(tile, from, targets, z, sums);
            });
            stats.append(merged(tiles, targets));
        }
        stats
    }

    fn tiles(&self) -> usize {
        self.vocab().div_ceil(TILE)
    }

    /// Entries of a tile: the last may have fewer.
    fn width(&self, tile: usize) -> usize {
        TILE.min(self.vocab() - tile * TILE)
    }

    /// The unembedding's rows of a tile, `[width, d]`.
    fn entries(&self, tile: usize) -> &[f32] {
        let from = tile * TILE;
        &self.embedding[from * self.hidden_size..(from + self.width(tile)) * self.hidden_size]
    }

    /// What every tile's logits are folded into. `fold` is called for a tile and blocks of the rows of hidden `[n, d]`, in order, by the first
    /// row and the block's scaled logits `[.., width]`; `together` rows, or multiples of them, come in one block. Where all logits are
    /// wanted, they stay in `kept`, tile by tile.
    fn by_tiles<T: Default + Send>(
        &self,
        hidden: Elements<'_>,
        together: usize,
        kept: Option<&mut [f32]>,
        fold: impl Fn(usize, usize, &mut [f32], &mut T) + Sync,
    ) -> Vec<T> {
        let (d, inv_t) = (self.hidden_size, 1.0 / self.temperature);
        let block = (BLOCK / together).max(1) * together;
        let n = hidden.len() / d;
        let rows = PackedRows::new(self.compute, Mat::new(hidden, n, d), block);
        let rooms: Vec<Option<&mut [f32]>> = match kept {
            Some(kept) if n > 0 => kept[..n * self.vocab()].chunks_mut(n * TILE).map(Some).collect(),
            _ => (0..self.tiles()).map(|_| None).collect(),
        };
        let tiles = rooms.into_par_iter().enumerate().with_max_len(1).map(|(tile, room)| {
            let mut out = T::default();
            rows.multiply(Mat::new(self.entries(tile), self.width(tile), d).t(), room, |from, z| {
                if inv_t != 1.0 {
                    z.iter_mut().for_each(|z| *z *= inv_t);
                }
                fold(tile, from, z, &mut out);
            });
            out
        });
        tiles.collect()
    }

    /// Adds the sums of rows' scaled logits `[n, width]`, from row `from` on, to those of a tile.
    fn fold_rows(&self, tile: usize, from: usize, targets: Option<&[u32]>, logits: &[f32], sums: &mut TileSums) {
        for (row, z) in (from..).zip(logits.chunks_exact(self.width(tile))) {
            sums.rows.push(vectorize(
                #[inline(always)]
                || Sums::of(z),
            ));
            let target = targets.and_then(|t| (t[row] as usize).checked_sub(tile * TILE));
            if let Some(z) = target.and_then(|t| z.get(t)) {
                sums.targets.push((row, *z));
            }
        }
    }

    /// Logits of every row, divided by the temperature: `[R, V]`, for looking at a few rows.
    pub fn logits<'a>(&self, hidden: impl Into<Elements<'a>>, logits: &mut [f32]) {
        let hidden = hidden.into();
        let (d, rows) = (self.hidden_size, hidden.len() / self.hidden_size);
        linear(self.compute, hidden, self.embedding, &mut *logits, rows, d, self.vocab(), Write::Replace);
        divide(logits, self.temperature);
    }
}

/// [`Head::logits`] of R rows by an unembedding that was packed, for sampling.
pub fn packed_logits<'a>(
    unembed: &PackedWeight,
    temperature: f32,
    hidden: impl Into<Elements<'a>>,
    rows: usize,
    logits: &mut [f32],
) {
    unembed.linear(hidden, &mut *logits, rows, Write::Replace);
    divide(logits, temperature);
}

fn divide(logits: &mut [f32], temperature: f32) {
    if temperature != 1.0 {
        let inv_t = 1.0 / temperature;
        logits.par_chunks_mut(1 << 14).for_each(|z| z.iter_mut().for_each(|z| *z *= inv_t));
    }
}

/// A block's statistics from those of its tiles, in order.
fn merged(tiles: Vec<TileSums>, targets: Option<&[u32]>) -> HeadStats {
    let rows = tiles.first().map_or(0, |t| t.rows.len());
    let mut target_logits = vec![0f32; if targets.is_some() { rows } else { 0 }];
    for (row, z) in tiles.iter().flat_map(|t| &t.targets) {
        target_logits[*row] = *z;
    }
    let mut stats = HeadStats::with_capacity(rows);
    for row in 0..rows {
        let r = tiles.iter().fold(Sums::NONE, |sums, tile| sums.merge(tile.rows[row]));
        let log_s = r.s.ln();
        stats.lse.push((r.m as f64 + log_s) as f32);
        stats.entropy.push((log_s - r.a / r.s) as f32);
        if let Some(z) = target_logits.get(row) {
            // f64, and relative to the maximum: a likely token's log-prob keeps its digits.
            stats.log_probs.push(((*z - r.m) as f64 - log_s) as f32);
        }
    }
    stats
}

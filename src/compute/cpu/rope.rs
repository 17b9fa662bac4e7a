//! Queries and keys made ready for attention: the per-head RMS norm (Qwen3) and the rotary position embedding.

use super::array::{Element, convert_row};
use super::norm::{backward_row, inverse_rms, scale_row};
use super::simd::vectorize;
use rayon::prelude::*;

const BLOCK: usize = 32;

/// Cosines and sines of `position * inverse frequency`, `[positions, head_dim / 2]` each.
///
/// The angle is rounded to f32 before its cosine is taken, as transformers does.
#[derive(Clone, Debug)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// `inv_freq` `[head_dim / 2]`, scaling already applied.
    pub fn new(inv_freq: Vec<f32>) -> RopeTable {
        RopeTable { inv_freq, cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes positions `0..positions` available.
    pub fn reserve(&mut self, positions: usize) {
        let half = self.inv_freq.len();
        let have = self.cos.len() / half.max(1);
        for position in have..positions.max(have).next_power_of_two() {
            for f in &self.inv_freq {
                let angle = (position as f32 * f) as f64;
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }

    /// All cosines and all sines, as they lie.
    pub fn values(&self) -> [&[f32]; 2] {
        [&self.cos, &self.sin]
    }

    #[inline(always)]
    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        let start = position as usize * half;
        (&self.cos[start..start + half], &self.sin[start..start + half])
    }
}

/// Sizes and weights of the op. `q_norm` and `k_norm` are `[head_dim]`, or absent.
#[derive(Clone, Copy)]
pub struct QkRope<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub q_norm: Option<&'a [f32]>,
    pub k_norm: Option<&'a [f32]>,
    pub eps: f32,
    pub table: &'a RopeTable,
    pub positions: &'a [u32],
}

impl QkRope<'_> {
    fn qk_dim(&self) -> usize {
        (self.heads + self.kv_heads) * self.head_dim
    }

    fn qkv_dim(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    #[inline(always)]
    fn norm_of(&self, head: usize) -> Option<&[f32]> {
        if head < self.heads { self.q_norm } else { self.k_norm }
    }

    /// qkv `[T, (H + 2 KV) hd]` to rotated q and k, `[T, (H + KV) hd]`.
    pub fn forward<E: Element>(&self, qkv: &[E], qk: &mut [E]) {
        let (hd, qk_dim, qkv_dim) = (self.head_dim, self.qk_dim(), self.qkv_dim());
        let inputs = qkv.par_chunks(BLOCK * qkv_dim).zip(self.positions.par_chunks(BLOCK));
        qk.par_chunks_mut(BLOCK * qk_dim).zip(inputs).for_each(|(qk, (qkv, positions))| {
            let mut turned = vec![0f32; hd];
            vectorize(
                #[inline(always)]
                || {
                    let rows = qk.chunks_exact_mut(qk_dim).zip(qkv.chunks_exact(qkv_dim)).zip(positions);
                    for ((out, row), position) in rows {
                        let (cos, sin) = self.table.row(*position);
                        for (head, (out, x)) in out.chunks_exact_mut(hd).zip(row.chunks_exact(hd)).enumerate() {
                            match self.norm_of(head) {
                                Some(w) => scale_row(x, w, inverse_rms(x, self.eps), &mut turned),
                                None => convert_row(x, &mut turned),
                            }
                            rotate(&mut turned, cos, sin, 1.0);
                            convert_row(&turned, out);
                        }
                    }
                },
            )
        });
    }

    /// In place on d_qkv `[T, (H + 2 KV) hd]`: the gradient of the rotated q and k becomes that of the raw ones; the
    /// v part is left alone. `d_q_norm` and `d_k_norm` `[head_dim]` are added to.
    pub fn backward<E: Element>(&self, qkv: &[E], d_qkv: &mut [E], d_norms: Option<(&mut [f32], &mut [f32])>) {
        let (hd, qkv_dim) = (self.head_dim, self.qkv_dim());
        let inputs = qkv.par_chunks(BLOCK * qkv_dim).zip(self.positions.par_chunks(BLOCK));
        let partial: Vec<Vec<f32>> = d_qkv
            .par_chunks_mut(BLOCK * qkv_dim)
            .zip(inputs)
            .map(|(d_qkv, (qkv, positions))| {
                let mut dw = vec![0f32; 2 * hd];
                let mut dy = vec![0f32; hd];
                vectorize(
                    #[inline(always)]
                    || {
                        let rows = d_qkv.chunks_exact_mut(qkv_dim).zip(qkv.chunks_exact(qkv_dim)).zip(positions);
                        for ((d_row, row), position) in rows {
                            let (cos, sin) = self.table.row(*position);
                            let heads = d_row.chunks_exact_mut(hd).zip(row.chunks_exact(hd));
                            for (head, (d, x)) in heads.enumerate().take(self.heads + self.kv_heads) {
                                convert_row(d, &mut dy);
                                rotate(&mut dy, cos, sin, -1.0);
                                let Some(w) = self.norm_of(head) else {
                                    convert_row(&dy, d);
                                    continue;
                                };
                                let (dq, dk) = dw.split_at_mut(hd);
                                let dw = if head < self.heads { dq } else { dk };
                                backward_row(x, w, inverse_rms(x, self.eps), &dy, d, dw, false);
                            }
                        }
                    },
                );
                dw
            })
            .collect();
        if let Some((d_q_norm, d_k_norm)) = d_norms {
            for part in partial {
                for (sum, x) in d_q_norm.iter_mut().chain(d_k_norm.iter_mut()).zip(part) {
                    *sum += x;
                }
            }
        }
    }
}

/// HuggingFace's `rotate_half` convention: element i turns with element i + head_dim / 2. `sign` -1 turns back.
#[inline(always)]
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    let (a, b) = x.split_at_mut(half);
    let (b, sin) = (&mut b[..half], &sin[..half]);
    for i in 0..half {
        let (s, c) = (sign * sin[i], cos[i]);
        let (u, v) = (a[i], b[i]);
        a[i] = u * c - v * s;
        b[i] = v * c + u * s;
    }
}

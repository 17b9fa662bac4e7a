//! AdamW on flat arrays, and the gradient norm that clips it.

use super::simd::vectorize;
use crate::compute::backend::AdamwStep;
use rayon::prelude::*;

const BLOCK: usize = 1 << 14;

/// Updates `params`, `m` and `v` in place; all `[n]`.
pub fn adamw(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], s: AdamwStep) {
    // f64: beta2^step is too close to 1 for f32 in the first steps.
    let correction1 = 1.0 - (s.beta1 as f64).powi(s.step.min(i32::MAX as u64) as i32);
    let correction2 = 1.0 - (s.beta2 as f64).powi(s.step.min(i32::MAX as u64) as i32);
    let step_size = (s.lr as f64 / correction1) as f32;
    let inv_sqrt2 = (1.0 / correction2.sqrt()) as f32;
    let decay = 1.0 - s.lr * s.weight_decay;
    let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
    params.par_chunks_mut(BLOCK).zip(grads.par_chunks(BLOCK)).zip(moments).for_each(|((p, g), (m, v))| {
        vectorize(
            #[inline(always)]
            || {
                let n = p.len();
                let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
                for i in 0..n {
                    let grad = g[i] * s.grad_scale;
                    m[i] = s.beta1.mul_add(m[i], (1.0 - s.beta1) * grad);
                    v[i] = s.beta2.mul_add(v[i], (1.0 - s.beta2) * grad * grad);
                    let denominator = v[i].sqrt().mul_add(inv_sqrt2, s.eps);
                    p[i] = p[i].mul_add(decay, -(step_size * m[i] / denominator));
                }
            },
        )
    });
}

/// `sum g^2` in f64, in an order that does not depend on the number of threads.
pub fn sum_of_squares(g: &[f32]) -> f64 {
    let parts: Vec<f64> = g
        .par_chunks(BLOCK)
        .map(|g| {
            vectorize(
                #[inline(always)]
                || {
                    let mut acc = [0f64; 8];
                    let mut chunks = g.chunks_exact(8);
                    for c in &mut chunks {
                        for i in 0..8 {
                            let x = c[i] as f64;
                            acc[i] = x.mul_add(x, acc[i]);
                        }
                    }
                    let tail: f64 = chunks.remainder().iter().map(|x| *x as f64 * *x as f64).sum();
                    acc.iter().sum::<f64>() + tail
                },
            )
        })
        .collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        // At step 1, m / correction1 = g and v / correction2 = g^2: the update is lr * sign(g) (1 - tiny eps term),
        // after the decay p (1 - lr wd) = 2 (1 - 0.1 * 0.5) = 1.9.
        let (mut p, mut m, mut v) = (vec![2f32, 2.0], vec![0f32; 2], vec![0f32; 2]);
        let s = AdamwStep { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.5, step: 1, grad_scale: 0.5 };
        adamw(&mut p, &[4.0, -4.0], &mut m, &mut v, s);
        assert!((p[0] - 1.8).abs() < 1e-5 && (p[1] - 2.0).abs() < 1e-5, "{p:?}");
        assert!((m[0] - 0.2).abs() < 1e-6 && (v[0] - 0.004).abs() < 1e-7);
    }

    #[test]
    fn squares_sum_over_block_borders() {
        let g = vec![2f32; BLOCK + 13];
        assert_eq!(sum_of_squares(&g), 4.0 * (BLOCK + 13) as f64);
    }
}

//! RMS norm, alone or fused with the residual addition before it.

use super::array::{Element, convert_row};
use super::simd::{dot, vectorize};
use half::bf16;
use rayon::prelude::*;

/// Rows a task handles at a time. Fixed, so that sums over rows are taken in the same order on any thread count.
const BLOCK: usize = 64;

/// `y = x / rms(x) * w`, with `rms(x) = sqrt(mean(x^2) + eps)`. x, y `[T, d]`, w `[d]`.
/// `inv_rms` `[T]` gets `1 / rms(x)`, which the backward needs.
pub fn rms_norm<Y: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [Y], inv_rms: &mut [f32]) {
    let d = w.len();
    let blocks = y.par_chunks_mut(BLOCK * d).zip(inv_rms.par_chunks_mut(BLOCK)).zip(x.par_chunks(BLOCK * d));
    blocks.for_each(|((y, inv), x)| {
        vectorize(
            #[inline(always)]
            || {
                for ((y, inv), x) in y.chunks_exact_mut(d).zip(inv).zip(x.chunks_exact(d)) {
                    *inv = inverse_rms(x, eps);
                    scale_row(x, w, *inv, y);
                }
            },
        )
    });
}

/// [`rms_norm`] of every row in place.
pub fn rms_norm_in_place<E: Element>(x: &mut [E], w: &[f32], eps: f32) {
    let d = w.len();
    x.par_chunks_mut(BLOCK * d).for_each(|x| {
        let mut y = vec![E::default(); d];
        vectorize(
            #[inline(always)]
            || {
                for x in x.chunks_exact_mut(d) {
                    scale_row(x, w, inverse_rms(x, eps), &mut y);
                    x.copy_from_slice(&y);
                }
            },
        )
    });
}

/// `sum = x + branch`, then `y = rms_norm(sum)`: the residual addition and the norm that follows in one pass.
#[allow(clippy::too_many_arguments)]
pub fn add_rms_norm<E: Element>(
    x: &[f32],
    branch: &[E],
    w: &[f32],
    eps: f32,
    sum: &mut [f32],
    y: &mut [E],
    inv_rms: &mut [f32],
) {
    let d = w.len();
    let outputs = sum.par_chunks_mut(BLOCK * d).zip(y.par_chunks_mut(BLOCK * d)).zip(inv_rms.par_chunks_mut(BLOCK));
    let inputs = x.par_chunks(BLOCK * d).zip(branch.par_chunks(BLOCK * d));
    outputs.zip(inputs).for_each(|(((sum, y), inv), (x, b))| {
        vectorize(
            #[inline(always)]
            || {
                let rows = sum.chunks_exact_mut(d).zip(y.chunks_exact_mut(d)).zip(inv);
                for (((sum, y), inv), (x, b)) in rows.zip(x.chunks_exact(d).zip(b.chunks_exact(d))) {
                    for i in 0..d {
                        sum[i] = x[i] + b[i].get();
                    }
                    *inv = inverse_rms(sum, eps);
                    scale_row(sum, w, *inv, y);
                }
            },
        )
    });
}

/// `y = x * inv_rms * w`: the norm again from the saved statistic, for the backward.
pub fn rms_norm_again<Y: Element>(x: &[f32], w: &[f32], inv_rms: &[f32], y: &mut [Y]) {
    let d = w.len();
    let blocks = y.par_chunks_mut(BLOCK * d).zip(inv_rms.par_chunks(BLOCK)).zip(x.par_chunks(BLOCK * d));
    blocks.for_each(|((y, inv), x)| {
        vectorize(
            #[inline(always)]
            || {
                for ((y, inv), x) in y.chunks_exact_mut(d).zip(inv).zip(x.chunks_exact(d)) {
                    scale_row(x, w, *inv, y);
                }
            },
        )
    });
}

/// Backward of [`rms_norm`]: `dx` (added to if `accumulate`, and rounded into `rounded` where that is wanted) and `dw` (always
/// added to).
///
/// With `r = inv_rms`: `dx = r (w dy) - x r^3 / d * sum(w dy x)`, `dw = sum_t dy x r`.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_backward<Y: Element>(
    x: &[f32],
    w: &[f32],
    inv_rms: &[f32],
    dy: &[Y],
    dx: &mut [f32],
    rounded: Option<&mut [bf16]>,
    dw: &mut [f32],
    accumulate: bool,
) {
    let d = w.len();
    let inputs = x.par_chunks(BLOCK * d).zip(dy.par_chunks(BLOCK * d)).zip(inv_rms.par_chunks(BLOCK));
    let rounded: Vec<Option<&mut [bf16]>> = match rounded {
        Some(rounded) => rounded.chunks_mut(BLOCK * d).map(Some).collect(),
        None => dx.chunks(BLOCK * d).map(|_| None).collect(),
    };
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(BLOCK * d)
        .zip(rounded)
        .zip(inputs)
        .map(|((dx, rounded), ((x, dy), inv))| {
            let mut dw = vec![0f32; d];
            vectorize(
                #[inline(always)]
                || {
                    let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(inv);
                    for (((x, dy), inv), dx) in rows.zip(dx.chunks_exact_mut(d)) {
                        backward_row(x, w, *inv, dy, dx, &mut dw, accumulate);
                    }
                    if let Some(rounded) = rounded {
                        convert_row(dx, rounded);
                    }
                },
            );
            dw
        })
        .collect();
    for part in partial {
        for (sum, x) in dw.iter_mut().zip(part) {
            *sum += x;
        }
    }
}

/// One row of [`rms_norm_backward`]; also the backward of a head's query or key norm.
#[inline(always)]
pub fn backward_row<X: Element, Y: Element, D: Element>(
    x: &[X],
    w: &[f32],
    inv: f32,
    dy: &[Y],
    dx: &mut [D],
    dw: &mut [f32],
    accumulate: bool,
) {
    let d = w.len();
    let (x, dy, dx, dw) = (&x[..d], &dy[..d], &mut dx[..d], &mut dw[..d]);
    let mut acc = [0f32; super::simd::LANES];
    for i in 0..d {
        dw[i] = (dy[i].get() * inv).mul_add(x[i].get(), dw[i]);
    }
    let whole = d - d % acc.len();
    for start in (0..whole).step_by(acc.len()) {
        for i in 0..acc.len() {
            acc[i] = (w[start + i] * dy[start + i].get()).mul_add(x[start + i].get(), acc[i]);
        }
    }
    let mut sum = super::simd::horizontal(acc);
    for i in whole..d {
        sum = (w[i] * dy[i].get()).mul_add(x[i].get(), sum);
    }
    let pull = inv * inv * inv * sum / d as f32;
    if accumulate {
        for i in 0..d {
            dx[i] = D::of(dx[i].get() + (inv * w[i]).mul_add(dy[i].get(), -(pull * x[i].get())));
        }
    } else {
        for i in 0..d {
            dx[i] = D::of((inv * w[i]).mul_add(dy[i].get(), -(pull * x[i].get())));
        }
    }
}

#[inline(always)]
pub fn inverse_rms<E: Element>(x: &[E], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
pub fn scale_row<X: Element, Y: Element>(x: &[X], w: &[f32], inv: f32, y: &mut [Y]) {
    let d = w.len();
    let (x, y) = (&x[..d], &mut y[..d]);
    for i in 0..d {
        y[i] = Y::of(x[i].get() * inv * w[i]);
    }
}

//! A value head: a linear layer to one number a row.

use super::array::Element;
use rayon::prelude::*;

/// `out[r] = w . states[rows[r]] + b`, summed in f64. states `[T, d]`, w `[d]`; returns `[rows]`.
pub fn values<E: Element>(states: &[E], rows: &[usize], w: &[f32], b: f32) -> Vec<f32> {
    let d = w.len();
    let value = |row: &usize| {
        let products = states[row * d..(row + 1) * d].iter().zip(w).map(|(x, w)| x.get() as f64 * *w as f64);
        (products.sum::<f64>() + b as f64) as f32
    };
    rows.par_iter().map(value).collect()
}

/// The gradient of [`values`] from d_values `[rows]`: added to d_states `[T, d]`, where a row may occur more than once, to d_w
/// `[d]` and to d_b.
pub fn values_backward<E: Element>(
    states: &[E],
    rows: &[usize],
    w: &[f32],
    d_values: &[f32],
    d_states: &mut [f32],
    d_w: &mut [f32],
    d_b: &mut f32,
) {
    let d = w.len();
    let mut sums = vec![0f64; d];
    for (row, dv) in rows.iter().zip(d_values) {
        let at = row * d..(row + 1) * d;
        for ((sum, x), (dx, w)) in sums.iter_mut().zip(&states[at.clone()]).zip(d_states[at].iter_mut().zip(w)) {
            *sum += x.get() as f64 * *dv as f64;
            *dx += w * dv;
        }
    }
    d_w.iter_mut().zip(&sums).for_each(|(dw, sum)| *dw += *sum as f32);
    *d_b += d_values.iter().map(|dv| *dv as f64).sum::<f64>() as f32;
}

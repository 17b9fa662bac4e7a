//! Inner products between the states of each token, for norms and cosines.

use super::array::Element;
use super::simd::{dot_f64, vectorize};
use rayon::prelude::*;

/// `torch.nn.functional.cosine_similarity`'s bound on each norm.
const COSINE_EPS: f64 = 1e-8;

/// Pairs (i, j) with `j <= i` of `n` states, in the order of [`gram`].
pub fn pairs(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)))
}

/// Products `x_i . x_j`, `j <= i`, of the first `n` states of each token, in f64: states `[R, S, d]`, out
/// `[R, n (n + 1) / 2]`.
pub fn gram(states: &[f32], (s, d): (usize, usize), n: usize, out: &mut [f64]) {
    out.par_chunks_mut((n * (n + 1) / 2).max(1)).zip(states.par_chunks(s * d)).with_min_len(8).for_each(|(out, x)| {
        vectorize(
            #[inline(always)]
            || {
                let mut at = 0;
                for i in 0..n {
                    for j in 0..=i {
                        out[at] = dot_f64(&x[i * d..(i + 1) * d], &x[j * d..(j + 1) * d]);
                        at += 1;
                    }
                }
            },
        )
    });
}

/// Cosine of two vectors from their products.
pub fn cosine(ab: f64, aa: f64, bb: f64) -> f64 {
    ab / (aa.sqrt().max(COSINE_EPS) * bb.sqrt().max(COSINE_EPS))
}

/// `cos(a, b)` of two vectors.
pub fn row_cosine<A: Element, B: Element>(a: &[A], b: &[B]) -> f64 {
    vectorize(
        #[inline(always)]
        || cosine(dot_f64(a, b), dot_f64(a, a), dot_f64(b, b)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_the_first_states_only() {
        // Two tokens of three states in two dimensions; the third state is not asked for.
        let states = [1.0, 2.0, 3.0, -1.0, 9.0, 9.0, 0.0, 1.0, 2.0, 2.0, 9.0, 9.0];
        let mut out = [0.0; 6];
        gram(&states, (3, 2), 2, &mut out);
        assert_eq!(out, [5.0, 1.0, 10.0, 1.0, 2.0, 8.0]);
        assert_eq!(pairs(2).collect::<Vec<_>>(), [(0, 0), (1, 0), (1, 1)]);
    }

    #[test]
    fn cosines_of_rows() {
        assert_eq!(row_cosine(&[3.0, 4.0], &[4.0, 3.0]), 24.0 / 25.0);
        assert_eq!(row_cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(row_cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}

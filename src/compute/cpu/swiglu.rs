//! The gated activation of the FFN: `silu(gate) * up`.

use super::array::Element;
use super::simd::{sigmoid, vectorize};
use rayon::prelude::*;

const BLOCK: usize = 64;

/// gate_up `[T, 2f]` (gate, then up, in each row) to act `[T, f]`.
pub fn swiglu<E: Element>(gate_up: &[E], act: &mut [E], f: usize) {
    act.par_chunks_mut(BLOCK * f).zip(gate_up.par_chunks(BLOCK * 2 * f)).for_each(|(act, gate_up)| {
        vectorize(
            #[inline(always)]
            || {
                for (act, row) in act.chunks_exact_mut(f).zip(gate_up.chunks_exact(2 * f)) {
                    let (gate, up) = row.split_at(f);
                    for i in 0..f {
                        let x = gate[i].get();
                        act[i] = E::of(x * sigmoid(x) * up[i].get());
                    }
                }
            },
        )
    });
}

/// Replaces gate_up by its gradient, given the gradient of act.
pub fn swiglu_backward<E: Element>(gate_up: &mut [E], d_act: &[E], f: usize) {
    gate_up.par_chunks_mut(BLOCK * 2 * f).zip(d_act.par_chunks(BLOCK * f)).for_each(|(gate_up, d_act)| {
        vectorize(
            #[inline(always)]
            || {
                for (row, d) in gate_up.chunks_exact_mut(2 * f).zip(d_act.chunks_exact(f)) {
                    let (gate, up) = row.split_at_mut(f);
                    for i in 0..f {
                        let (x, d) = (gate[i].get(), d[i].get());
                        let s = sigmoid(x);
                        let silu = x * s;
                        gate[i] = E::of(d * up[i].get() * s.mul_add(1.0 - silu, silu));
                        up[i] = E::of(d * silu);
                    }
                }
            },
        )
    });
}

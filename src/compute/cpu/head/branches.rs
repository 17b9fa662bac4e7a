//! The policies of a whole residual stream: what every branch says, and every state that they add up to.
//!
//! Logits are linear in the state, so those of `H^l = H^(l-1) + A^l + F^l` are the sum of three rows that a tile has already
//! or can use by themselves: only embeddings, branches and the final state meet the unembedding. What is summed in f32 here is
//! summed in f32 there, so that the rounding is of the same size.

use super::divergence::{Reference, Row, TileRow, all_merged, comparison, fold_states};
use super::{Head, ROWS};
use crate::compute::backend::{BranchComparison, Branches};
use crate::compute::cpu::array::Elements;
use crate::compute::cpu::simd::vectorize;

/// What a block of tokens takes from one tile: branches first, then streams.
type TileRows<const N: usize> = (Vec<TileRow<0>>, Vec<TileRow<N>>);

impl Head<'_> {
    /// Statistics of what [`Branches`] `[R, 2 L + 2, d]` say, and of `H^1..H^L` and the final state, which are the states that
    /// `references`, two at most, count (0 to L), as [`Head::compare`] has them; targets `[R]` token ids.
    pub fn compare_branches<'a>(
        &self,
        hidden: impl Into<Elements<'a>>,
        of: Branches,
        references: &[usize],
        targets: &[u32],
    ) -> BranchComparison {
        let hidden = hidden.into();
        match *references {
            [] => self.branches_with::<0>(hidden, of, [], targets),
            [a] => self.branches_with(hidden, of, [a], targets),
            [a, b] => self.branches_with(hidden, of, [a, b], targets),
            _ => panic!("{} references: two at most", references.len()),
        }
    }

    fn branches_with<const N: usize>(
        &self,
        hidden: Elements<'_>,
        of: Branches,
        references: [usize; N],
        targets: &[u32],
    ) -> BranchComparison {
        let (width, states) = (of.places() * self.hidden_size, of.layers + 1);
        assert!(
            hidden.len() == targets.len() * width,
            "{} elements, {} tokens of {width}",
            hidden.len(),
            targets.len()
        );
        assert!(references.iter().all(|r| *r < states), "references {references:?} of {states} states");
        let most = (ROWS / of.places()).max(1);
        let mut out = BranchComparison::default();
        for (first, targets) in (0..).step_by(most).zip(targets.chunks(most)) {
            let hidden = hidden.part(first * width..(first + targets.len()) * width);
            let tiles =
                self.by_tiles(hidden, of.places(), None, |tile, first, z, (branches, streams): &mut TileRows<N>| {
                    let width = self.width(tile);
                    let mut scratch = [const { Reference::EMPTY }; N];
                    for (token, z) in (first / of.places()..).zip(z.chunks_exact_mut(of.places() * width)) {
                        let row = |place: usize| &z[place * width..(place + 1) * width];
                        fold_states(row, of.places(), [], &mut [], (tile, None), branches);
                        add_up(z, of, width);
                        // Streams took the places of the branches that came last.
                        let row = |layer: usize| &z[of.ffn(layer) * width..(of.ffn(layer) + 1) * width];
                        let target = Some(targets[token]);
                        fold_states(row, states, references, &mut scratch, (tile, target), streams);
                    }
                });
            let (branches, streams): (Vec<_>, Vec<_>) = tiles.into_iter().unzip();
            let rows = all_merged(&branches, targets.len() * of.places(), of.places(), []);
            out.entropy.extend(rows.iter().map(|row: &Row<0>| row.entropy));
            let rows = all_merged(&streams, targets.len() * states, states, references);
            out.streams.append(comparison(&rows, true));
        }
        out
    }
}

/// A token's logits `[2 L + 2, width]` of its branches: those of `F^l` become those of `H^l`.
fn add_up(z: &mut [f32], of: Branches, width: usize) {
    vectorize(
        #[inline(always)]
        || {
            let (branches, embedding) = z.split_at_mut(of.embedding() * width);
            let mut below = &embedding[..width];
            for layer in branches.chunks_exact_mut(2 * width) {
                let (attn, ffn) = layer.split_at_mut(width);
                for ((z, attn), below) in ffn.iter_mut().zip(attn).zip(below) {
                    *z += *below + *attn;
                }
                below = ffn;
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::gemm::Compute;
    use proptest::prelude::*;

    const D: usize = 8;

    /// Small whole numbers times a power of two: logits and their sums are exact in f32.
    fn whole(n: usize, seed: u32, scale: f32) -> Vec<f32> {
        let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) % 9;
        (0..n as u32).map(|i| (value(i) as f32 - 4.0) * scale).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// The same numbers, to the last bit, as from the states themselves, where no sum is rounded.
        #[test]
        fn branches_add_up_to_what_their_states_say(
            (tokens, layers, vocab) in (0usize..40, 1usize..9, 1usize..1400),
            (seed, scale, temperature) in (0u32..1000, 0usize..3, 0usize..2),
            references in 0usize..3,
        ) {
            let (scale, temperature) = ([0.03125, 0.25, 1.0][scale], [1.0, 2.0][temperature]);
            let (of, d) = (Branches { layers }, D);
            let embedding = whole(vocab * d, seed, 1.0);
            let head = Head { embedding: &embedding, hidden_size: d, temperature, compute: Compute::F32 };
            let branches = whole(tokens * of.places() * d, seed + 7, scale);
            let targets: Vec<u32> = (0..tokens as u32).map(|t| (t * 379 + 5) % vocab as u32).collect();
            let references = &[layers, layers / 2][..references];
            let mut states: Vec<f32> = Vec::new();
            for rows in branches.chunks_exact(of.places() * d) {
                let row = |place: usize| &rows[place * d..(place + 1) * d];
                let mut state = row(of.embedding()).to_vec();
                for layer in 0..layers {
                    for (i, x) in state.iter_mut().enumerate() {
                        *x += row(of.attn(layer))[i] + row(of.ffn(layer))[i];
                    }
                    states.extend(&state);
                }
                states.extend(row(of.last()));
            }
            let got = head.compare_branches(&branches, of, references, &targets);
            let streams = head.compare(&states, layers + 1, references, Some(&targets));
            if tokens > 0 {
                prop_assert_eq!(&got.streams, &streams);
            }
            prop_assert_eq!(got.entropy, head.compare(&branches, of.places(), &[], None).entropy);
        }
    }

    #[test]
    fn a_broken_branch_breaks_what_it_is_part_of() {
        let (of, d, vocab) = (Branches { layers: 3 }, D, 700);
        let embedding = whole(vocab * d, 1, 0.25);
        let head = Head { embedding: &embedding, hidden_size: d, temperature: 1.0, compute: Compute::F32 };
        let mut branches = whole(2 * of.places() * d, 2, 0.25);
        branches[of.attn(1) * d] = f32::NAN;
        let got = head.compare_branches(&branches, of, &[3], &[0, 0]);
        let nan: Vec<usize> = (0..2 * of.places()).filter(|row| got.entropy[*row].is_nan()).collect();
        assert_eq!(nan, [of.attn(1)]);
        // H^2 and H^3 of the first token, not H^1, the final state or the second token.
        let nan: Vec<usize> = (0..8).filter(|row| got.streams.entropy[*row].is_nan()).collect();
        assert_eq!(nan, [1, 2]);
    }
}

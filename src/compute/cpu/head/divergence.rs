//! Policies side by side: what several states of the same tokens say, and how far their distributions lie apart.
//!
//! A divergence needs the logits of two states for the same vocabulary entries, so the states of a token lie next to each
//! other and meet every tile of the unembedding together; no more than one tile of logits exists at a time. For states p
//! and q with maxima `m_p`, `m_q` and `s = sum_j e^(z_j - m)`,
//!
//! `D(p || q) = (1 / s_p) sum_j e^(zp_j - m_p) ((zp_j - m_p) - (zq_j - m_q)) + ln s_q - ln s_p`.
//!
//! The differences are taken before the sum, so equal states are exactly 0 apart, and near ones to about 1e-7 nats. A
//! tile's sums are f32 in 16 lanes, relative to the tile's own maxima; across tiles they are f64, relative to the row's.

use super::{Head, ROWS, TILE};
use crate::compute::backend::{Comparison, Divergences};
use crate::compute::cpu::array::Elements;
use crate::compute::cpu::simd::{LANES, exp, horizontal, max, vectorize};
use rayon::prelude::*;

/// What one row takes from one tile, relative to the tile's maximum `m`; `to` and `from` are the sums of the two
/// divergences for each of N references. `target` is the target's logit, or 0 if the target lies in another tile.
#[derive(Clone, Copy)]
pub(super) struct TileRow<const N: usize> {
    m: f32,
    top: u32,
    target: f32,
    s: f64,
    a: f64,
    to: [f64; N],
    from: [f64; N],
}

/// One row's statistics over the whole vocabulary.
#[derive(Clone, Copy)]
pub(super) struct Row<const N: usize> {
    pub(super) entropy: f32,
    log_prob: f32,
    top: u32,
    to: [f32; N],
    from: [f32; N],
}

/// A reference's row of a tile: its logits relative to the tile's maximum, and `e` to their power.
pub(super) struct Reference {
    z: [f32; TILE],
    e: [f32; TILE],
}

impl Reference {
    pub(super) const EMPTY: Reference = Reference { z: [0.0; TILE], e: [0.0; TILE] };

    fn set(&mut self, z: &[f32]) {
        vectorize(
            #[inline(always)]
            || {
                let m = max(z);
                for ((to, e), z) in self.z.iter_mut().zip(&mut self.e).zip(z) {
                    *to = z - m;
                    *e = exp(z - m);
                }
            },
        )
    }
}

/// Sums of one row's logits of a tile against N references.
#[inline(always)]
fn fold<const N: usize>(z: &[f32], references: &[Reference; N]) -> TileRow<N> {
    let m = max(z);
    let (mut s, mut a) = ([0f32; LANES], [0f32; LANES]);
    let (mut to, mut from) = ([[0f32; LANES]; N], [[0f32; LANES]; N]);
    let whole = z.len() - z.len() % LANES;
    for at in (0..whole).step_by(LANES) {
        let c = &z[at..at + LANES];
        let of = |k: usize| (&references[k].z[at..at + LANES], &references[k].e[at..at + LANES]);
        let others: [(&[f32], &[f32]); N] = std::array::from_fn(of);
        for i in 0..LANES {
            let (x, e) = (c[i] - m, exp(c[i] - m));
            s[i] += e;
            a[i] = e.mul_add(x, a[i]);
            for k in 0..N {
                let apart = x - others[k].0[i];
                to[k][i] = e.mul_add(apart, to[k][i]);
                from[k][i] = others[k].1[i].mul_add(-apart, from[k][i]);
            }
        }
    }
    let (mut s, mut a) = (horizontal(s), horizontal(a));
    let (mut to, mut from) = (to.map(horizontal), from.map(horizontal));
    for (i, z) in z.iter().enumerate().skip(whole) {
        let (x, e) = (z - m, exp(z - m));
        s += e;
        a = e.mul_add(x, a);
        for k in 0..N {
            let apart = x - references[k].z[i];
            to[k] = e.mul_add(apart, to[k]);
            from[k] = references[k].e[i].mul_add(-apart, from[k]);
        }
    }
    let (to, from) = (to.map(f64::from), from.map(f64::from));
    TileRow { m, top: position(z, m), target: 0.0, s: s as f64, a: a as f64, to, from }
}

/// The first place of `m`; of a row without it (a NaN), the end.
#[inline(always)]
fn position(z: &[f32], m: f32) -> u32 {
    // Whole registers first: a search that may end at every element does not vectorise.
    let holds = |c: &[f32]| c.iter().fold(false, |found, z| found | (*z == m));
    let skipped = z.chunks(LANES).position(holds).map_or(z.len(), |chunk| chunk * LANES);
    (skipped + z[skipped..].iter().position(|z| *z == m).unwrap_or(0)) as u32
}

impl Head<'_> {
    /// Statistics of states `[R, S, d]`, S to a token, for targets `[R]` token ids, or none. `references`, two at most, are
    /// the places (0 to S - 1) of the states that every state's divergences are taken to and from.
    pub fn compare<'a>(
        &self,
        hidden: impl Into<Elements<'a>>,
        states: usize,
        references: &[usize],
        targets: Option<&[u32]>,
    ) -> Comparison {
        let hidden = hidden.into();
        match *references {
            [] => self.compare_with::<0>(hidden, states, [], targets),
            [a] => self.compare_with(hidden, states, [a], targets),
            [a, b] => self.compare_with(hidden, states, [a, b], targets),
            _ => panic!("{} references: two at most", references.len()),
        }
    }

    fn compare_with<const N: usize>(
        &self,
        hidden: Elements<'_>,
        states: usize,
        references: [usize; N],
        targets: Option<&[u32]>,
    ) -> Comparison {
        assert!(references.iter().all(|r| *r < states), "references {references:?} of {states} states");
        let width = states * self.hidden_size;
        let tokens = hidden.len() / width.max(1);
        let mut out = Comparison { divergences: vec![Divergences::default(); N], ..Comparison::default() };
        let most = (ROWS / states.max(1)).max(1);
        for from in (0..tokens).step_by(most) {
            let block = from..(from + most).min(tokens);
            let hidden = hidden.part(from * width..block.end * width);
            let targets = targets.map(|t| &t[block]);
            let tiles = self.by_tiles(hidden, states, None, |tile, first, z, out: &mut Vec<TileRow<N>>| {
                let width = self.width(tile);
                let mut scratch = [const { Reference::EMPTY }; N];
                for (token, of_token) in (first / states..).zip(z.chunks_exact(states * width)) {
                    let row = |state: usize| &of_token[state * width..(state + 1) * width];
                    fold_states(row, states, references, &mut scratch, (tile, targets.map(|t| t[token])), out);
                }
            });
            let rows = hidden.len() / self.hidden_size;
            out.append(comparison(&all_merged(&tiles, rows, states, references), targets.is_some()));
        }
        out
    }
}

/// Adds what the states of one token, whose logits are the `row`s, take from a tile; `target`: which tile, and the token that
/// came, where it is known.
pub(super) fn fold_states<'a, const N: usize>(
    row: impl Fn(usize) -> &'a [f32],
    states: usize,
    references: [usize; N],
    scratch: &mut [Reference; N],
    (tile, target): (usize, Option<u32>),
    out: &mut Vec<TileRow<N>>,
) {
    for (reference, at) in scratch.iter_mut().zip(references) {
        reference.set(row(at));
    }
    let scratch = &*scratch;
    let target = target.and_then(|t| (t as usize).checked_sub(tile * TILE));
    for z in (0..states).map(row) {
        let mut sums = vectorize(
            #[inline(always)]
            || fold(z, scratch),
        );
        sums.top += (tile * TILE) as u32;
        sums.target = target.and_then(|t| z.get(t)).copied().unwrap_or(0.0);
        out.push(sums);
    }
}

/// All rows' statistics.
pub(super) fn all_merged<const N: usize>(
    tiles: &[Vec<TileRow<N>>],
    rows: usize,
    states: usize,
    references: [usize; N],
) -> Vec<Row<N>> {
    (0..rows).into_par_iter().with_min_len(64).map(|row| merged(tiles, row, states, references)).collect()
}

/// Rows as they are handed on; log-probs where there were targets.
pub(super) fn comparison<const N: usize>(rows: &[Row<N>], targets: bool) -> Comparison {
    let divergences = |k: usize| Divergences {
        to: rows.iter().map(|row| row.to[k]).collect(),
        from: rows.iter().map(|row| row.from[k]).collect(),
    };
    Comparison {
        entropy: rows.iter().map(|row| row.entropy).collect(),
        log_probs: rows.iter().filter(|_| targets).map(|row| row.log_prob).collect(),
        top: rows.iter().map(|row| row.top).collect(),
        divergences: (0..N).map(divergences).collect(),
    }
}

/// One row's statistics from its sums of every tile, in order; `row` counts all states of the block.
fn merged<const N: usize>(tiles: &[Vec<TileRow<N>>], row: usize, states: usize, references: [usize; N]) -> Row<N> {
    let token = row - row % states;
    // The highest maximum, and the first tile that has it.
    let highest = |row: usize| {
        let better = |best: (f32, u32), t: &TileRow<N>| if t.m > best.0 { (t.m, t.top) } else { best };
        tiles.iter().map(|tile| &tile[row]).fold((f32::NEG_INFINITY, 0), better)
    };
    let (m, top) = highest(row);
    let others = references.map(|at| highest(token + at).0);
    let (mut s, mut a, mut target) = (0f64, 0f64, 0f32);
    let (mut to, mut from, mut s_other) = ([0f64; N], [0f64; N], [0f64; N]);
    for tile in tiles {
        let t = &tile[row];
        let shift = (t.m - m) as f64;
        let factor = shift.exp();
        s += t.s * factor;
        a += (t.a + t.s * shift) * factor;
        target += t.target;
        for k in 0..N {
            let q = &tile[token + references[k]];
            let shift_other = (q.m - others[k]) as f64;
            let factor_other = shift_other.exp();
            s_other[k] += q.s * factor_other;
            // Relative to the rows' maxima every difference of this tile is larger by as much as the shifts differ.
            to[k] += (t.to[k] + t.s * (shift - shift_other)) * factor;
            from[k] += (q.s * (shift_other - shift) + t.from[k]) * factor_other;
        }
    }
    // Rounding may leave a hair below 0; not `max`, which would hide a NaN.
    let divergence = |d: f64| if d < 0.0 { 0.0 } else { d as f32 };
    let log_s = s.ln();
    Row {
        entropy: (log_s - a / s) as f32,
        log_prob: ((target - m) as f64 - log_s) as f32,
        top,
        to: std::array::from_fn(|k| divergence(to[k] / s + (s_other[k].ln() - log_s))),
        from: std::array::from_fn(|k| divergence(from[k] / s_other[k] + (log_s - s_other[k].ln()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::gemm::Compute;
    use proptest::prelude::*;

    const D: usize = 8;

    fn head(embedding: &[f32], temperature: f32) -> Head<'_> {
        Head { embedding, hidden_size: D, temperature, compute: Compute::F32 }
    }

    /// Small whole numbers times a power of two: logits are exact in f32, so only the statistics are on trial.
    fn whole(n: usize, seed: u32, scale: f32) -> Vec<f32> {
        let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) % 9;
        (0..n as u32).map(|i| (value(i) as f32 - 4.0) * scale).collect()
    }

    fn log_softmax(embedding: &[f32], x: &[f32], temperature: f32) -> Vec<f64> {
        let logit = |e: &[f32]| e.iter().zip(x).map(|(e, x)| *e as f64 * *x as f64).sum::<f64>() / temperature as f64;
        let z: Vec<f64> = embedding.chunks_exact(D).map(logit).collect();
        let m = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = m + z.iter().map(|z| (z - m).exp()).sum::<f64>().ln();
        z.iter().map(|z| z - lse).collect()
    }

    fn kl(p: &[f64], q: &[f64]) -> f64 {
        p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    fn near(got: f32, expected: f64, tolerance: f64) -> bool {
        (got as f64 - expected).abs() <= tolerance * (1.0 + expected.abs())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Against the definitions in f64: flat distributions, peaked ones (logits of hundreds), and ties.
        #[test]
        fn statistics_are_those_of_the_definitions(
            vocab in 1usize..1200, tokens in 1usize..70, states in 1usize..12, seed in 0u32..1000, scale in 0usize..4,
            references in prop::collection::vec(0usize..12, 0..3), cold in prop::bool::ANY,
        ) {
            let scale = [0.03125, 0.25, 1.0, 8.0][scale];
            let temperature = if cold { 0.5 } else { 1.0 };
            let (embedding, hidden) = (whole(vocab * D, seed, 1.0), whole(tokens * states * D, seed + 77, scale));
            let references: Vec<usize> = references.iter().map(|r| r % states).collect();
            let targets: Vec<u32> = (0..tokens as u32).map(|t| (t * 379 + seed) % vocab as u32).collect();
            let got = head(&embedding, temperature).compare(&hidden, states, &references, Some(&targets));
            let rows: Vec<Vec<f64>> = hidden.chunks_exact(D).map(|x| log_softmax(&embedding, x, temperature)).collect();
            prop_assert_eq!(got.entropy.len(), rows.len());
            for (row, p) in rows.iter().enumerate() {
                let (token, tolerance) = (row / states, 2e-6);
                let entropy = -p.iter().map(|p| p.exp() * p).sum::<f64>();
                prop_assert!(near(got.entropy[row], entropy, tolerance), "entropy {} {entropy}", got.entropy[row]);
                let log_prob = p[targets[token] as usize];
                prop_assert!(near(got.log_probs[row], log_prob, tolerance), "log-prob {log_prob}");
                let most = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                prop_assert_eq!(got.top[row] as usize, p.iter().position(|x| *x == most).unwrap());
                for (k, reference) in references.iter().enumerate() {
                    let q = &rows[token * states + reference];
                    let (to, from) = (got.divergences[k].to[row], got.divergences[k].from[row]);
                    prop_assert!(near(to, kl(p, q), tolerance), "to {to} {}", kl(p, q));
                    prop_assert!(near(from, kl(q, p), tolerance), "from {from} {}", kl(q, p));
                    if row % states == *reference {
                        prop_assert_eq!((to, from), (0.0, 0.0));
                    }
                }
            }
        }
    }

    #[test]
    fn the_divergence_of_near_policies_is_not_lost_in_the_rounding_of_their_entropies() {
        // Logits j and j (1 + h): D = h^2 Var(z) / 2 to the first order, whatever the size of the logits.
        let embedding: Vec<f32> = (0..600).flat_map(|j| [(j % 8) as f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).collect();
        for h in [1.0 / 16.0, 1.0 / 256.0, 1.0 / 4096.0] {
            let mut hidden = vec![0f32; 2 * D];
            (hidden[0], hidden[D]) = (1.0, 1.0 + h);
            let got = head(&embedding, 1.0).compare(&hidden, 2, &[0], None);
            let rows: Vec<Vec<f64>> = hidden.chunks_exact(D).map(|x| log_softmax(&embedding, x, 1.0)).collect();
            let (to, expected) = (got.divergences[0].to[1] as f64, kl(&rows[1], &rows[0]));
            // A ulp of an entropy of 2 nats is 2.4e-7.
            assert!((to - expected).abs() < 2.4e-7, "h = {h}: {to} {expected}");
            assert!(got.log_probs.is_empty());
        }
    }

    #[test]
    fn a_state_says_the_same_whatever_stands_beside_it() {
        let (embedding, hidden) = (whole(1500 * D, 5, 0.3), whole(300 * D, 9, 0.7));
        let targets: Vec<u32> = (0..300).map(|i| i * 5).collect();
        let alone = head(&embedding, 0.7).forward(&hidden, Some(&targets));
        let got = head(&embedding, 0.7).compare(&hidden, 1, &[0], Some(&targets));
        assert_eq!((got.entropy, got.log_probs), (alone.entropy, alone.log_probs));
    }

    #[test]
    fn a_broken_state_stays_broken() {
        let (embedding, mut hidden) = (whole(700 * D, 5, 0.3), whole(4 * D, 9, 0.7));
        hidden[D] = f32::NAN;
        let got = head(&embedding, 1.0).compare(&hidden, 2, &[0], None);
        assert!(got.entropy[1].is_nan() && got.divergences[0].to[1].is_nan() && got.divergences[0].from[1].is_nan());
        assert!([0, 2, 3].iter().all(|row| got.entropy[*row].is_finite()));
    }
}

//! One distribution by its whole row of logits: what is likeliest, where a token stands, how far another row lies apart.
//!
//! For looking at a few tokens closely. What needs no more than sums has no rows of logits: [`super::Head::forward`].

use super::{Sums, TILE};
use crate::compute::cpu::simd::{LANES, exp, horizontal, vectorize};

/// `z` `[V]` and its sums: `log p_j = z_j - max - log_s`.
#[derive(Clone, Copy, Debug)]
pub struct LogitRow<'a> {
    z: &'a [f32],
    max: f32,
    log_s: f64,
    entropy: f64,
}

impl<'a> LogitRow<'a> {
    /// z: the logits of one position, divided by the temperature already.
    pub fn new(z: &'a [f32]) -> LogitRow<'a> {
        let sums = vectorize(
            #[inline(always)]
            || z.chunks(TILE).map(Sums::of).fold(Sums::NONE, Sums::merge),
        );
        let log_s = sums.s.ln();
        LogitRow { z, max: sums.m, log_s, entropy: log_s - sums.a / sums.s }
    }

    /// In nats.
    pub fn entropy(&self) -> f32 {
        self.entropy as f32
    }

    pub fn log_prob(&self, id: u32) -> f32 {
        // f64, and relative to the maximum: a likely token's log-prob keeps its digits.
        ((self.z[id as usize] - self.max) as f64 - self.log_s) as f32
    }

    /// 1 and the number of tokens that are strictly likelier.
    pub fn rank(&self, id: u32) -> u32 {
        let mine = self.z[id as usize];
        let likelier: u32 = vectorize(
            #[inline(always)]
            || self.z.iter().map(|z| (*z > mine) as u32).sum(),
        );
        1 + likelier
    }

    /// The k likeliest tokens and their probabilities, likeliest first; of equal ones the lower id. All of them, if there
    /// are fewer than k.
    pub fn top(&self, k: usize) -> Vec<(u32, f32)> {
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
        for (id, z) in (0..).zip(self.z) {
            // Ids ascend: an equal one that is there already stays before this one.
            if best.len() < k || best.last().is_some_and(|(_, least)| z > least) {
                let place = best.partition_point(|(_, other)| other >= z);
                best.insert(place, (id, *z));
                best.truncate(k);
            }
        }
        let probability = |z: f32| ((z - self.max) as f64 - self.log_s).exp() as f32;
        best.into_iter().map(|(id, z)| (id, probability(z))).collect()
    }

    /// `D(self || other)` in nats, never negative, and exactly 0 for equal rows.
    ///
    /// `(1 / s_p) sum_j e^(zp_j - m_p) ((zp_j - m_p) - (zq_j - m_q)) + ln s_q - ln s_p`: the differences are taken before the
    /// sum. f32 in 16 lanes within a tile, f64 across tiles.
    pub fn divergence(&self, other: &LogitRow<'_>) -> f32 {
        assert_eq!(self.z.len(), other.z.len(), "two rows of one vocabulary");
        let (p_max, q_max) = (self.max, other.max);
        let tiles = self.z.chunks(TILE).zip(other.z.chunks(TILE));
        let sum: f64 = vectorize(
            #[inline(always)]
            || tiles.map(|(p, q)| apart(p, q, p_max, q_max) as f64).sum(),
        );
        let divergence = sum / self.log_s.exp() + (other.log_s - self.log_s);
        // Rounding may leave a hair below 0; not `max`, which would hide a NaN.
        if divergence < 0.0 { 0.0 } else { divergence as f32 }
    }
}

/// `sum_j e^(p_j - p_max) ((p_j - p_max) - (q_j - q_max))` of one tile.
#[inline(always)]
fn apart(p: &[f32], q: &[f32], p_max: f32, q_max: f32) -> f32 {
    let mut sum = [0f32; LANES];
    let (mut ps, mut qs) = (p.chunks_exact(LANES), q.chunks_exact(LANES));
    for (p, q) in (&mut ps).zip(&mut qs) {
        for i in 0..LANES {
            let z = p[i] - p_max;
            sum[i] = exp(z).mul_add(z - (q[i] - q_max), sum[i]);
        }
    }
    let mut sum = horizontal(sum);
    for (p, q) in ps.remainder().iter().zip(qs.remainder()) {
        let z = p - p_max;
        sum = exp(z).mul_add(z - (q - q_max), sum);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log_softmax(z: &[f32]) -> Vec<f64> {
        let m = z.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let lse = m + z.iter().map(|z| (*z as f64 - m).exp()).sum::<f64>().ln();
        z.iter().map(|z| *z as f64 - lse).collect()
    }

    /// Few different values, so that there are ties; `scale` makes them flat or peaked.
    fn logits(len: usize, seed: u32, scale: f32) -> Vec<f32> {
        let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 12) % 37;
        (0..len as u32).map(|i| (value(i) as f32 - 18.0) * scale).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Against the definitions in f64, with ties, over several tiles and their remainders.
        #[test]
        fn a_row_says_what_the_definitions_say(
            len in 1usize..1700, seed in 0u32..10_000, scale in 0usize..4, k in 1usize..40, target in 0usize..1700,
        ) {
            let scale = [0.001, 0.1, 1.0, 5.0][scale];
            let (z, other) = (logits(len, seed, scale), logits(len, seed / 2 + 9, scale));
            let (p, q) = (log_softmax(&z), log_softmax(&other));
            let (row, target) = (LogitRow::new(&z), (target % len) as u32);
            let near = |got: f32, expected: f64| (got as f64 - expected).abs() <= 2e-6 * (1.0 + expected.abs());
            prop_assert!(near(row.entropy(), -p.iter().map(|p| p.exp() * p).sum::<f64>()));
            prop_assert!(near(row.log_prob(target), p[target as usize]));
            let likelier = z.iter().filter(|x| **x > z[target as usize]).count();
            prop_assert_eq!(row.rank(target) as usize, 1 + likelier);
            let mut ids: Vec<u32> = (0..len as u32).collect();
            // A stable sort: of equal ones the lower id stays first.
            ids.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]));
            let top = row.top(k);
            prop_assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), &ids[..k.min(len)]);
            prop_assert!(top.iter().all(|(id, prob)| near(*prob, p[*id as usize].exp())));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let got = row.divergence(&LogitRow::new(&other));
            prop_assert!(near(got, kl), "{} {}", got, kl);
            prop_assert_eq!(row.divergence(&row), 0.0);
        }
    }

    #[test]
    fn numbers_that_can_be_checked_by_hand() {
        // Probabilities 1/2, 1/4, 1/8, 1/8.
        let z = [0.5f32, 0.25, 0.125, 0.125].map(|p| p.ln() + 40.0);
        let row = LogitRow::new(&z);
        assert!((row.entropy() as f64 - 1.75 * 2f64.ln()).abs() < 1e-6);
        assert_eq!([0, 1, 2, 3].map(|id| row.rank(id)), [1, 2, 3, 3]);
        let top = row.top(3);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(top.iter().zip([0.5, 0.25, 0.125]).all(|(t, p)| (t.1 - p).abs() < 1e-6));
        assert_eq!((row.top(9).len(), row.top(0).len()), (4, 0));
        // To the uniform distribution: ln 4 - H. Shifting logits changes nothing.
        let flat = [7f32; 4];
        assert!((row.divergence(&LogitRow::new(&flat)) as f64 - (4f64.ln() - 1.75 * 2f64.ln())).abs() < 1e-6);
        assert_eq!(LogitRow::new(&flat).divergence(&LogitRow::new(&[-3.0; 4])), 0.0);
    }

    #[test]
    fn a_likely_tokens_surprise_and_a_small_divergence_keep_their_digits() {
        let (mut z, mut near) = (vec![0f32; 1000], vec![0f32; 1000]);
        (z[3], near[3]) = (10.0, 10.5);
        let (row, exact) = (LogitRow::new(&z), log_softmax(&z));
        assert!((row.log_prob(3) as f64 / exact[3] - 1.0).abs() < 1e-4, "{}", row.log_prob(3));
        let q = log_softmax(&near);
        let kl: f64 = exact.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        let got = row.divergence(&LogitRow::new(&near)) as f64;
        assert!((got / kl - 1.0).abs() < 1e-3, "{got} {kl}");
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        let broken = [1.0, f32::NAN, 2.0];
        let row = LogitRow::new(&broken);
        assert!(row.entropy().is_nan() && row.divergence(&row).is_nan());
        assert_eq!((row.top(3).len(), row.rank(1)), (3, 1));
    }
}

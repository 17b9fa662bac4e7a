//! One token from one row of logits.

use crate::compute::cpu::simd::{LANES, exp, horizontal, max, vectorize};
use anyhow::{Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Probabilities are summed in blocks, so that finding a token among 152 k reads the blocks' sums first.
const BLOCK: usize = 256;

/// Tokens that `top_p` sorts first, likeliest of all: as a rule it keeps fewer.
const FIRST_SORTED: usize = 256;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits. 0 is greedy: the most likely token, its log-prob taken at temperature 1.
    pub temperature: f32,
    /// Only the k most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the smallest set of likeliest tokens whose probabilities reach this sum (after `top_k`); 1: all.
    pub top_p: f32,
    /// A response ends after this many tokens if no end-of-sequence token came.
    pub max_new_tokens: usize,
}

impl Sampling {
    /// The temperature that logits are divided by.
    pub fn head_temperature(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }
}

/// The smallest temperature, 0 aside. Logits are multiplied by its reciprocal: where that makes one infinite, its distance from
/// the largest is no number. What is left above is greedy in all but name.
const SMALLEST_TEMPERATURE: f32 = 1e-20;

/// Whether logits can be divided by a temperature; `name` is what stands before its number in a message.
pub fn check_temperature(name: &str, t: f32) -> Result<()> {
    let usable = t >= SMALLEST_TEMPERATURE && t.is_finite();
    ensure!(usable, "{name} {t:?}: expected a finite number of at least {SMALLEST_TEMPERATURE:e}");
    Ok(())
}

/// As [`check_temperature`], where 0 is greedy.
pub fn check_temperature_or_greedy(name: &str, t: f32) -> Result<()> {
    let usable = t == 0.0 || check_temperature(name, t).is_ok();
    ensure!(usable, "{name} {t:?}: expected 0 (greedy) or a finite number of at least {SMALLEST_TEMPERATURE:e}");
    Ok(())
}

/// A sample's own stream of randomness: its text depends on its seed, not on who else is being sampled.
#[derive(Clone, Debug)]
pub struct SampleRng(ChaCha8Rng);

impl SampleRng {
    pub fn new(seed: u64) -> SampleRng {
        SampleRng(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A drawn token, with its log-prob and the distribution's entropy in nats: of the **whole** distribution at the head's
/// temperature, before `top_k` and `top_p`, which is what the trainer computes for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub token: u32,
    pub log_prob: f32,
    pub entropy: f32,
}

/// Draws a token from one row of logits `[V]` (already divided by the temperature; overwritten).
pub fn sample(logits: &mut [f32], sampling: &Sampling, rng: &mut SampleRng) -> Draw {
    sample_at(logits, sampling, || rng.uniform())
}

/// As [`sample`], with the uniform number in `[0, 1)` from anywhere; greedy asks for none.
pub(crate) fn sample_at(logits: &mut [f32], sampling: &Sampling, uniform: impl FnOnce() -> f64) -> Draw {
    let m = vectorize(
        #[inline(always)]
        || max(logits),
    );
    let best = if sampling.temperature == 0.0 { logits.iter().position(|z| *z == m) } else { None };
    let Weights { sums, weighted } = weigh(logits, m);
    let total: f64 = sums.iter().sum();
    let restricted = sampling.top_k > 0 && sampling.top_k < logits.len() || sampling.top_p < 1.0;
    let token = match best {
        Some(best) => best,
        None if restricted => draw_restricted(logits, sampling, total, uniform()),
        None => draw(logits, &sums, total, uniform()),
    };
    let log_prob = (logits[token] as f64).ln() - total.ln();
    Draw { token: token as u32, log_prob: log_prob as f32, entropy: (total.ln() - weighted / total) as f32 }
}

/// Sums of one row: of `w = e^(z - m)` by block, and of `w (z - m)` over all.
struct Weights {
    sums: Vec<f64>,
    weighted: f64,
}

/// Replaces every logit z by `e^(z - m)`.
fn weigh(logits: &mut [f32], m: f32) -> Weights {
    let mut weights = Weights { sums: Vec::with_capacity(logits.len().div_ceil(BLOCK)), weighted: 0.0 };
    vectorize(
        #[inline(always)]
        || {
            for block in logits.chunks_mut(BLOCK) {
                let (mut sum, mut weighted) = ([0f32; LANES], [0f32; LANES]);
                for lane in block.chunks_mut(LANES) {
                    for (i, z) in lane.iter_mut().enumerate() {
                        let x = *z - m;
                        *z = exp(x);
                        sum[i] += *z;
                        weighted[i] = z.mul_add(x, weighted[i]);
                    }
                }
                weights.sums.push(horizontal(sum) as f64);
                weights.weighted += horizontal(weighted) as f64;
            }
        },
    );
    weights
}

/// Inverse of the cumulative distribution at `u`, over all tokens in order of their ids.
fn draw(weights: &[f32], sums: &[f64], total: f64, u: f64) -> usize {
    let mut left = u * total;
    for (block, (sum, weights)) in sums.iter().zip(weights.chunks(BLOCK)).enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (i, w) in weights.iter().enumerate() {
            if left < *w as f64 {
                return block * BLOCK + i;
            }
            left -= *w as f64;
        }
        // The block's sum, which is rounded to f32, was above that of its weights. What is left belongs to no token of a later
        // block: one of them may weigh next to nothing.
        return block * BLOCK + heaviest(weights);
    }
    // Rounding used up the last block.
    heaviest(weights)
}

/// The first of the largest weights; 0 for none.
fn heaviest(weights: &[f32]) -> usize {
    weights.iter().enumerate().fold(0, |best, (i, w)| if *w > weights[best] { i } else { best })
}

/// As [`draw`], among the tokens that `top_k` and `top_p` leave, likeliest first.
fn draw_restricted(weights: &[f32], sampling: &Sampling, total: f64, u: f64) -> usize {
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let mut kept = total;
    if sampling.top_k > 0 && sampling.top_k < order.len() {
        order.select_nth_unstable_by(sampling.top_k - 1, |a, b| likelier(weights, a, b));
        order.truncate(sampling.top_k);
        kept = order.iter().map(|i| weights[*i as usize] as f64).sum();
    }
    if sampling.top_p < 1.0 {
        keep_likeliest(&mut order, weights, sampling.top_p as f64 * kept);
        kept = order.iter().map(|i| weights[*i as usize] as f64).sum();
    } else {
        order.sort_unstable_by(|a, b| likelier(weights, a, b));
    }
    let mut left = u * kept;
    for i in &order {
        if left < weights[*i as usize] as f64 {
            return *i as usize;
        }
        left -= weights[*i as usize] as f64;
    }
    order.last().map_or(0, |i| *i as usize)
}

/// Likeliest first; ties by id, so that the order is one only.
fn likelier(weights: &[f32], a: &u32, b: &u32) -> Ordering {
    weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b))
}

/// Keeps the likeliest tokens, sorted, up to the one with which the sum of their weights reaches `target`; all if none does.
///
/// They are most often a few of 152 k, and a full sort takes 10 ms: the likeliest are sorted by themselves, then the next ones.
fn keep_likeliest(order: &mut Vec<u32>, weights: &[f32], target: f64) {
    let (mut sorted, mut cumulative) = (0, 0.0);
    while sorted < order.len() {
        let rest = &mut order[sorted..];
        let next = if sorted == 0 { FIRST_SORTED } else { 3 * sorted };
        // Nearly all of them: what selecting would save is less than what it costs.
        let next = if next < rest.len() / 4 { next } else { rest.len() };
        if next < rest.len() {
            rest.select_nth_unstable_by(next - 1, |a, b| likelier(weights, a, b));
        }
        rest[..next].sort_unstable_by(|a, b| likelier(weights, a, b));
        let last = rest[..next].iter().position(|i| {
            cumulative += weights[*i as usize] as f64;
            cumulative >= target
        });
        if let Some(last) = last {
            return order.truncate(sorted + last + 1);
        }
        sorted += next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 1 };

    fn frequencies(logits: &[f32], sampling: Sampling, draws: u64) -> Vec<f64> {
        let mut counts = vec![0f64; logits.len()];
        for seed in 0..draws {
            let token = sample(&mut logits.to_vec(), &sampling, &mut SampleRng::new(seed)).token;
            counts[token as usize] += 1.0;
        }
        counts.iter().map(|c| c / draws as f64).collect()
    }

    #[test]
    fn draws_follow_the_distribution_and_report_its_log_probs() {
        let probs = [0.5f32, 0.1, 0.25, 0.15];
        let logits: Vec<f32> = probs.iter().map(|p| p.ln() + 3.0).collect();
        // Standard error at 4,000 draws is at most 0.008; 0.035 is more than four of them.
        for (f, p) in frequencies(&logits, ALL, 4000).iter().zip(probs) {
            assert!((f - p as f64).abs() < 0.035);
        }
        let draw = sample(&mut logits.clone(), &ALL, &mut SampleRng::new(1));
        assert!((draw.log_prob - probs[draw.token as usize].ln()).abs() < 1e-6);
        let entropy: f32 = probs.iter().map(|p| -p * p.ln()).sum();
        assert!((draw.entropy - entropy).abs() < 1e-6);
    }

    #[test]
    fn top_k_and_top_p_keep_the_likeliest_and_leave_the_log_prob_whole() {
        let probs = [0.4f32, 0.1, 0.3, 0.2];
        let logits: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
        let f = frequencies(&logits, Sampling { top_k: 2, ..ALL }, 2000);
        assert!(f[1] == 0.0 && f[3] == 0.0 && (f[0] - 4.0 / 7.0).abs() < 0.05);
        // 0.4 + 0.3 reaches 0.65 and no fewer tokens do.
        let f = frequencies(&logits, Sampling { top_p: 0.65, ..ALL }, 2000);
        assert!(f[1] == 0.0 && f[3] == 0.0 && f[2] > 0.3);
        let only = Sampling { top_k: 1, ..ALL };
        let draw = sample(&mut logits.clone(), &only, &mut SampleRng::new(5));
        assert!(draw.token == 0 && (draw.log_prob - 0.4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn greedy_takes_the_most_likely_and_the_first_of_equals() {
        let mut logits = vec![0.0f32; 1000];
        logits[700] = 2.0;
        logits[900] = 2.0;
        let greedy = Sampling { temperature: 0.0, ..ALL };
        let draw = sample(&mut logits, &greedy, &mut SampleRng::new(0));
        let expected = 2.0 - (998.0 + 2.0 * 2f64.exp()).ln();
        assert!(draw.token == 700 && (draw.log_prob as f64 - expected).abs() < 1e-5);
    }

    #[test]
    fn a_temperature_is_refused_where_logits_would_be_no_numbers() {
        for t in [f32::NAN, f32::INFINITY, -1.0, f32::MIN_POSITIVE, 1e-39, f32::from_bits(1)] {
            for error in [check_temperature("--temperature", t), check_temperature_or_greedy("--temperature", t)] {
                let error = error.unwrap_err().to_string();
                assert!(error.starts_with(&format!("--temperature {t:?}: expected")), "{error}");
                assert!(error.contains("at least 1e-20"), "{error}");
            }
        }
        assert!(check_temperature("t", 0.0).is_err() && check_temperature_or_greedy("t", 0.0).is_ok());
        let inverse = 1.0 / SMALLEST_TEMPERATURE;
        check_temperature("t", SMALLEST_TEMPERATURE).unwrap();
        let draw = sample(&mut [90.0 * inverse, 100.0 * inverse, -100.0 * inverse], &ALL, &mut SampleRng::new(1));
        assert!(draw.token == 1 && draw.log_prob == 0.0 && draw.entropy.abs() < 1e-6);
    }

    /// Rounding of a block's sum upwards leaves a gap that belongs to none of its weights. It went to the last token of all.
    #[test]
    fn a_draw_that_rounding_takes_out_of_its_block_is_the_blocks_heaviest() {
        let mut logits = vec![-80.0f32; 3 * BLOCK];
        // One lane of the second block: 1, and then 6.8e-8 fifteen times, each of which the sum rounds up to 1.2e-7.
        logits[BLOCK..2 * BLOCK].iter_mut().step_by(LANES).for_each(|z| *z = -16.5);
        logits[BLOCK] = 0.0;
        let sums = weigh(&mut logits, 0.0).sums;
        let exact: f64 = logits[..2 * BLOCK].iter().map(|w| *w as f64).sum();
        let (end, total) = (sums[0] + sums[1], sums.iter().sum());
        assert!(exact + 1e-7 < end);
        assert_eq!(draw(&logits, &sums, total, (exact + end) / 2.0 / total), BLOCK);
        // Beyond all blocks too, and of equal weights the first.
        assert_eq!(draw(&logits, &sums, total, 1.5), BLOCK);
        assert_eq!(heaviest(&[0.0, 0.5, 1.0, 1.0]), 2);
    }

    /// [`draw_restricted`] with everything sorted.
    fn textbook_restricted(weights: &[f32], sampling: &Sampling, total: f64, u: f64) -> usize {
        let mut order: Vec<u32> = (0..weights.len() as u32).collect();
        let by_weight = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b));
        let mut kept = total;
        if sampling.top_k > 0 && sampling.top_k < order.len() {
            order.select_nth_unstable_by(sampling.top_k - 1, by_weight);
            order.truncate(sampling.top_k);
            kept = order.iter().map(|i| weights[*i as usize] as f64).sum();
        }
        order.sort_unstable_by(by_weight);
        if sampling.top_p < 1.0 {
            let mut cumulative = 0.0;
            let enough = order.iter().position(|i| {
                cumulative += weights[*i as usize] as f64;
                cumulative >= sampling.top_p as f64 * kept
            });
            order.truncate(enough.map_or(order.len(), |last| last + 1));
            kept = order.iter().map(|i| weights[*i as usize] as f64).sum();
        }
        let mut left = u * kept;
        for i in &order {
            if left < weights[*i as usize] as f64 {
                return *i as usize;
            }
            left -= weights[*i as usize] as f64;
        }
        order.last().map_or(0, |i| *i as usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// Flat and steep distributions, with ties (logits in steps) and without.
        #[test]
        fn sorting_only_the_likeliest_changes_no_draw(
            v in 1usize..12_000, steps in prop_oneof![Just(0.5f32), Just(1e-4)], spread in 0.0f32..20.0,
            top_p in prop_oneof![0.01f32..0.99, 0.9999f32..1.0], restrict in any::<bool>(), seed in any::<u64>(),
        ) {
            let mut rng = SampleRng::new(seed);
            let mut logits: Vec<f32> =
                (0..v).map(|_| (rng.uniform() as f32 * spread / steps).round() * steps).collect();
            let m = max(&logits);
            let total: f64 = weigh(&mut logits, m).sums.iter().sum();
            let top_k = if restrict { (rng.uniform() * v as f64) as usize } else { 0 };
            let sampling = Sampling { top_k, top_p, ..ALL };
            for u in [0.0, rng.uniform(), rng.uniform(), 1.0 - f64::EPSILON] {
                let expected = textbook_restricted(&logits, &sampling, total, u);
                prop_assert_eq!(draw_restricted(&logits, &sampling, total, u), expected);
            }
        }
    }
}

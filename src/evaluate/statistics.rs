//! Numbers with uncertainty: standard errors over problems, bootstrap intervals, spread over seeds, sign-flip tests.
//!
//! Every random draw comes from a seed that is derived, so the same evaluation gives the same interval.

use crate::tasks::seed::{derive_seed, mix};
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap interval.
const RESAMPLES: usize = 2_000;
/// Random sign flips of a paired test.
const FLIPS: usize = 10_000;
/// Streams of seeds of their own.
const BOOTSTRAP: u64 = 0xB007;
const PERMUTATION: u64 = 0x51F1;

/// A mean over problems, each of them counting the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub mean: f64,
    /// `std(ddof = 1) / sqrt(problems)`: what another draw of problems would change. `None` (null) for a single problem.
    pub standard_error: Option<f64>,
    /// 95 % bootstrap interval: the 2.5th and 97.5th percentile of the mean over problems drawn with replacement.
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
}

/// Mean and spread over runs that differ in their seed only.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub runs: usize,
    pub mean: f64,
    /// ddof = 1; none for a single run.
    pub std: Option<f64>,
}

/// A difference of two models on the same problems.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    #[serde(flatten)]
    pub difference: Estimate,
    /// Two-sided, of the hypothesis that the two are exchangeable on every problem (random sign flips).
    pub p_value: f64,
    /// Problems on which the second is better, worse, and just as good.
    pub better: usize,
    pub worse: usize,
    pub same: usize,
}

/// Mean, standard error and interval of a value for each problem. `None` for no problems.
pub fn estimate(values: &[f64], seed: u64) -> Option<Estimate> {
    estimates(std::slice::from_ref(&values), seed).pop()
}

/// [`estimate`] of several columns over the same problems; every resample draws the same problems for all of them.
pub fn estimates<C: AsRef<[f64]>>(columns: &[C], seed: u64) -> Vec<Estimate> {
    let n = columns.first().map_or(0, |c| c.as_ref().len());
    if n == 0 || columns.iter().any(|c| c.as_ref().len() != n) {
        return Vec::new();
    }
    let mut means = vec![Vec::with_capacity(RESAMPLES); columns.len()];
    if n > 1 {
        let mut sums = vec![0.0; columns.len()];
        for resample in 0..RESAMPLES {
            sums.fill(0.0);
            let mut draw = Draws::new(seed, BOOTSTRAP, resample);
            for _ in 0..n {
                let at = draw.below(n);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum += column.as_ref()[at];
                }
            }
            for (means, sum) in means.iter_mut().zip(&sums) {
                means.push(sum / n as f64);
            }
        }
    }
    let one = |(column, mut means): (&C, Vec<f64>)| {
        let (mean, variance) = mean_variance(column.as_ref());
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means.get((share * (RESAMPLES - 1) as f64).round() as usize).copied();
        Estimate {
            mean,
            standard_error: variance.map(|variance| (variance / n as f64).sqrt()),
            interval: at(0.025).zip(at(0.975)).map(|(low, high)| [low, high]),
        }
    };
    columns.iter().zip(means).map(one).collect()
}

/// Mean and standard deviation over runs. `None` for no runs.
pub fn spread(runs: &[f64]) -> Option<Spread> {
    let (mean, variance) = mean_variance(runs);
    (!runs.is_empty()).then_some(Spread { runs: runs.len(), mean, std: variance.map(f64::sqrt) })
}

/// The mean of `differences` (second minus first, one a problem), how sure it is, and how often each side wins. `None`
/// for no problems.
pub fn paired(differences: &[f64], seed: u64) -> Option<PairedDifference> {
    let difference = estimate(differences, seed)?;
    let sum: f64 = differences.iter().sum::<f64>().abs();
    // Sums that differ by rounding only are the same sum.
    let at_least = sum - 1e-9 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let mut extreme = 0;
    for flip in 0..FLIPS {
        let mut draw = Draws::new(seed, PERMUTATION, flip);
        let flipped: f64 = differences.iter().map(|d| if draw.next() >> 63 == 0 { *d } else { -d }).sum();
        extreme += usize::from(flipped.abs() >= at_least);
    }
    let count = |test: fn(f64) -> bool| differences.iter().filter(|d| test(**d)).count();
    Some(PairedDifference {
        difference,
        // The observed assignment is one of the possible ones, so it is never 0.
        p_value: (1 + extreme) as f64 / (1 + FLIPS) as f64,
        better: count(|d| d > 1e-12),
        worse: count(|d| d < -1e-12),
        same: count(|d| d.abs() <= 1e-12),
    })
}

/// Mean, and variance with ddof = 1; no variance of fewer than two values, no mean (0) of none.
fn mean_variance(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / count };
    let squares = || values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (values.len() > 1).then(|| squares() / (count - 1.0)))
}

/// SplitMix64 from a derived seed.
struct Draws(u64);

impl Draws {
    fn new(seed: u64, stream: u64, number: usize) -> Draws {
        Draws(derive_seed(seed, stream, number as u64, 0))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform below `n`: the high half of a product, whose bias is below n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((self.next() as u128 * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mean_has_its_error_and_an_interval_that_holds_it() {
        let e = estimate(&[1.0, 0.5, 0.0], 1).unwrap();
        assert_eq!((e.mean, e.standard_error), (0.5, Some((0.25f64 / 3.0).sqrt())));
        // With three problems, one resample in 27 is all zeros: the interval spans everything.
        assert_eq!(e.interval, Some([0.0, 1.0]));
        assert_eq!(estimate(&[0.25], 1), Some(Estimate { mean: 0.25, standard_error: None, interval: None }));
        assert_eq!(estimate(&[], 1), None);
        assert_eq!(estimate(&[0.5; 9], 1).unwrap().interval, Some([0.5, 0.5]));
    }

    #[test]
    fn the_interval_is_near_the_normal_one_for_many_problems() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 4 == 0)).collect();
        let e = estimate(&values, 3).unwrap();
        let ([low, high], error) = (e.interval.unwrap(), e.standard_error.unwrap());
        assert!((low - (0.25 - 1.96 * error)).abs() < 0.006 && (high - (0.25 + 1.96 * error)).abs() < 0.006, "{e:?}");
        assert_eq!(estimate(&values, 3), Some(e));
        assert_ne!(estimate(&values, 4).unwrap().interval, Some([low + 1.0, high]));
    }

    #[test]
    fn spread_over_seeds() {
        assert_eq!(spread(&[1.0, 2.0, 3.0]), Some(Spread { runs: 3, mean: 2.0, std: Some(1.0) }));
        assert_eq!(spread(&[1.0]), Some(Spread { runs: 1, mean: 1.0, std: None }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn a_paired_test_by_hand() {
        // Eight problems, all better by the same: of 256 sign assignments two are as extreme, p = 1/128.
        let p = paired(&[0.5; 8], 1).unwrap();
        assert!((p.p_value - 1.0 / 128.0).abs() < 0.003, "{p:?}");
        assert_eq!((p.better, p.worse, p.same, p.difference.mean), (8, 0, 0, 0.5));
        let none = paired(&[0.0; 5], 1).unwrap();
        assert_eq!((none.p_value, none.same), (1.0, 5));
        let even = paired(&[0.25, -0.25, 0.0, 0.5, -0.5], 1).unwrap();
        assert_eq!((even.p_value, even.better, even.worse, even.same), (1.0, 2, 2, 1));
    }

    proptest! {
        #[test]
        fn intervals_and_tests_stay_in_their_bounds(values in proptest::collection::vec(-1.0f64..1.0, 2..20), seed in any::<u64>()) {
            let p = paired(&values, seed).unwrap();
            let (low, high) = values.iter().fold((1.0f64, -1.0f64), |(l, h), v| (l.min(*v), h.max(*v)));
            let interval = p.difference.interval.unwrap();
            prop_assert!(low - 1e-12 <= interval[0] && interval[0] <= interval[1] && interval[1] <= high + 1e-12);
            prop_assert!(p.p_value > 0.0 && p.p_value <= 1.0);
            prop_assert_eq!(p.better + p.worse + p.same, values.len());
        }
    }
}

//! Two models on the same problems, each with one evaluation or one for every seed.

use super::scores::pass_at_k;
use super::statistics::{PairedDifference, Spread, paired, spread};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One evaluation: how many of `n` responses to each problem were correct.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub n: usize,
    /// By the problem's id.
    pub correct: BTreeMap<u64, usize>,
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    pub evaluations: Vec<String>,
    /// Avg@n over the problems compared: mean and standard deviation over the evaluations, one a seed.
    pub avg_at_n: Spread,
}

/// A score on both sides, and the difference (second minus first).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// `Avg@n` or `Pass@K`.
    pub score: String,
    pub first: f64,
    pub second: f64,
    #[serde(flatten)]
    pub paired: PairedDifference,
}

/// `comparison.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub name: String,
    /// Problems that every evaluation of both sides has.
    pub problems: usize,
    /// Problems that some evaluation lacks: left out.
    pub left_out: usize,
    pub first: Side,
    pub second: Side,
    pub scores: Vec<Compared>,
}

/// Compares on the problems that all have. A problem's value is its mean over a side's evaluations.
///
/// Errors: a side without evaluations, no problem in common.
pub fn compare(
    name: &str,
    first: &[(String, Counted)],
    second: &[(String, Counted)],
    ks: &[usize],
    seed: u64,
) -> Result<Comparison> {
    ensure!(!first.is_empty() && !second.is_empty(), "{name}: a comparison needs an evaluation on each side");
    let all = || first.iter().chain(second).map(|(_, counted)| counted);
    let any: BTreeSet<u64> = all().flat_map(|c| c.correct.keys().copied()).collect();
    let common: Vec<u64> = any.iter().copied().filter(|id| all().all(|c| c.correct.contains_key(id))).collect();
    ensure!(!common.is_empty(), "{name}: no problem is in all of the evaluations: were they made from the same data?");
    let average = |c: &Counted, id: u64| Ok(correct(c, id) as f64 / c.n.max(1) as f64);
    let mut scores = vec![score("Avg@n".into(), first, second, &common, seed, &average)?];
    for &k in ks.iter().filter(|k| all().all(|c| **k <= c.n)) {
        let pass = |c: &Counted, id: u64| pass_at_k(c.n, correct(c, id), k);
        scores.push(score(format!("Pass@{k}"), first, second, &common, seed, &pass)?);
    }
    Ok(Comparison {
        name: name.into(),
        problems: common.len(),
        left_out: any.len() - common.len(),
        first: side(first, &common)?,
        second: side(second, &common)?,
        scores,
    })
}

fn correct(c: &Counted, id: u64) -> usize {
    c.correct.get(&id).copied().unwrap_or(0)
}

type Value<'a> = &'a dyn Fn(&Counted, u64) -> Result<f64>;

fn score(
    name: String,
    first: &[(String, Counted)],
    second: &[(String, Counted)],
    common: &[u64],
    seed: u64,
    value: Value<'_>,
) -> Result<Compared> {
    let column = |side: &[(String, Counted)]| -> Result<Vec<f64>> {
        let of = |id: &u64| {
            let values = side.iter().map(|(_, c)| value(c, *id)).collect::<Result<Vec<f64>>>()?;
            Ok(values.iter().sum::<f64>() / values.len() as f64)
        };
        common.iter().map(of).collect()
    };
    let (a, b) = (column(first)?, column(second)?);
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let Some(paired) = paired(&differences, seed) else { anyhow::bail!("no problem to compare on") };
    Ok(Compared { score: name, first: mean(&a), second: mean(&b), paired })
}

fn side(side: &[(String, Counted)], common: &[u64]) -> Result<Side> {
    let of = |c: &Counted| {
        common.iter().map(|id| correct(c, *id) as f64 / c.n.max(1) as f64).sum::<f64>() / common.len() as f64
    };
    let runs: Vec<f64> = side.iter().map(|(_, c)| of(c)).collect();
    let Some(avg_at_n) = spread(&runs) else { anyhow::bail!("a side without evaluations") };
    Ok(Side { evaluations: side.iter().map(|(name, _)| name.clone()).collect(), avg_at_n })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(n: usize, correct: &[(u64, usize)]) -> (String, Counted) {
        ("e".into(), Counted { n, correct: correct.iter().copied().collect() })
    }

    #[test]
    fn a_comparison_by_hand() {
        let before = [counted(4, &[(1, 0), (2, 2), (3, 4), (9, 4)])];
        let after = [counted(4, &[(1, 2), (2, 2), (3, 3), (8, 0)]), counted(2, &[(1, 1), (2, 2), (3, 2)])];
        let c = compare("set", &before, &after, &[1, 2, 4], 1).unwrap();
        assert_eq!((c.problems, c.left_out), (3, 2));
        // Before 0, 1/2, 1. After 1/2, 1/2, 3/4 and 1/2, 1, 1: by problem 1/2, 3/4, 7/8.
        let avg = &c.scores[0];
        assert!((avg.first - 0.5).abs() < 1e-15 && (avg.second - 17.0 / 24.0).abs() < 1e-15);
        assert!((avg.paired.difference.mean - 5.0 / 24.0).abs() < 1e-15);
        assert_eq!((avg.paired.better, avg.paired.worse, avg.paired.same), (2, 1, 0));
        // Seeds of the second side: 7/12 and 5/6.
        let spread = c.second.avg_at_n;
        assert!((spread.mean - 17.0 / 24.0).abs() < 1e-15);
        assert!((spread.std.unwrap() - 0.25 / 2f64.sqrt()).abs() < 1e-15);
        assert_eq!(c.first.avg_at_n.std, None);
        // Pass@4 is not to be had of two responses; Pass@1 is the average.
        let names: Vec<&str> = c.scores.iter().map(|s| s.score.as_str()).collect();
        assert_eq!(names, ["Avg@n", "Pass@1", "Pass@2"]);
        assert!((c.scores[1].second - avg.second).abs() < 1e-15);
    }

    #[test]
    fn a_model_beside_itself_has_no_difference_and_strangers_are_refused() {
        let one = [counted(4, &[(1, 1), (2, 3)])];
        let c = compare("set", &one, &one, &[1], 1).unwrap();
        let p = c.scores[0].paired;
        assert_eq!((p.difference.mean, p.difference.interval, p.p_value), (0.0, Some([0.0, 0.0]), 1.0));
        let error = compare("set", &one, &[counted(4, &[(7, 1)])], &[], 1).unwrap_err().to_string();
        assert!(error.contains("same data"), "{error}");
        assert!(compare("set", &one, &[], &[], 1).is_err());
    }
}

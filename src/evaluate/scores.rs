//! Avg@n and the unbiased Pass@k, with their standard errors over problems.

use crate::verify::StatusCounts;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The responses to one problem, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProblemCounts {
    pub statuses: StatusCounts,
    /// Responses that were cut off at the longest length allowed, whatever their status.
    pub truncated: usize,
}

/// A mean over problems, each of them counting the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub mean: f64,
    /// `std(ddof = 1) / sqrt(problems)`: what another draw of problems would change. `None` (null) for a single problem.
    pub standard_error: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassAtK {
    pub k: usize,
    #[serde(flatten)]
    pub pass: Estimate,
}

/// The result of an evaluation, as it is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub problems: usize,
    /// n: responses to every problem.
    pub responses_per_problem: usize,
    /// Avg@n: share of correct responses.
    pub avg_at_n: Estimate,
    /// In the order the k were asked for.
    pub pass_at_k: Vec<PassAtK>,
    /// Over all responses.
    pub statuses: StatusCounts,
    /// Share of all responses that were cut off.
    pub truncated: f64,
    /// Correct responses of every problem, in the problems' order: any other k can be computed from these.
    pub correct: Vec<usize>,
}

/// Scores of a set of problems, Pass@k for every `k` of `ks`.
///
/// Errors: no problems, no responses, problems with different numbers of responses, a `k` that is 0 or more than n.
pub fn scores(problems: &[ProblemCounts], ks: &[usize]) -> Result<Scores> {
    let n = problems.first().context("no problems to score: expected at least one")?.statuses.total();
    ensure!(n > 0, "problem 0 has no responses: expected at least one");
    let mut statuses = StatusCounts::default();
    let mut truncated = 0;
    for (index, problem) in problems.iter().enumerate() {
        let got = problem.statuses.total();
        ensure!(got == n, "problem {index} has {got} responses, but problem 0 has {n}: all must have as many");
        ensure!(problem.truncated <= n, "problem {index} has {} truncated responses of {n}", problem.truncated);
        statuses.merge(&problem.statuses);
        truncated += problem.truncated;
    }
    let correct: Vec<usize> = problems.iter().map(|problem| problem.statuses.correct).collect();
    let shares: Vec<f64> = correct.iter().map(|&c| c as f64 / n as f64).collect();
    let mut pass_at = Vec::with_capacity(ks.len());
    for &k in ks {
        let passes = correct.iter().map(|&c| pass_at_k(n, c, k)).collect::<Result<Vec<f64>>>()?;
        pass_at.push(PassAtK { k, pass: estimate(&passes) });
    }
    Ok(Scores {
        problems: problems.len(),
        responses_per_problem: n,
        avg_at_n: estimate(&shares),
        pass_at_k: pass_at,
        statuses,
        truncated: truncated as f64 / (n * problems.len()) as f64,
        correct,
    })
}

/// `1 - C(n - c, k) / C(n, k)`: the chance that `k` of a problem's `n` responses, drawn without replacement, hold one of its
/// `c` correct ones (paper, section 6; Chen et al. 2021). As a product, since the binomials overflow.
///
/// Errors: `k` that is 0 or more than `n`, `c` that is more than `n`.
pub fn pass_at_k(n: usize, c: usize, k: usize) -> Result<f64> {
    ensure!(k > 0, "Pass@0 means nothing: expected k from 1 to n = {n}");
    ensure!(k <= n, "Pass@{k} needs at least {k} responses a problem, got n = {n}: raise n or lower k");
    ensure!(c <= n, "{c} correct responses of {n}");
    if n - c < k {
        return Ok(1.0);
    }
    // C(n-c, k) / C(n, k) = product over i in n-c+1..=n of (1 - k / i); every factor is positive, as i > n - c >= k.
    let none_correct: f64 = (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Ok(1.0 - none_correct)
}

/// Mean and standard error of at least one value.
fn estimate(values: &[f64]) -> Estimate {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let standard_error = (values.len() > 1).then(|| {
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (variance / count).sqrt()
    });
    Estimate { mean, standard_error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(correct: usize, wrong: usize) -> ProblemCounts {
        ProblemCounts { statuses: StatusCounts { correct, wrong, ..Default::default() }, truncated: 0 }
    }

    #[test]
    fn pass_at_k_is_unbiased() {
        // C(28, 4) / C(32, 4) = 20475 / 35960.
        let pass = pass_at_k(32, 4, 4).unwrap();
        assert!((pass - (1.0 - 20475.0 / 35960.0)).abs() < 1e-15, "{pass}");
        assert_eq!(format!("{pass:.4}"), "0.4306");
        // Two of four, k = 2: all but one of the six pairs hold a correct one.
        assert!((pass_at_k(4, 2, 2).unwrap() - 5.0 / 6.0).abs() < 1e-15);
        assert_eq!(pass_at_k(4, 0, 4).unwrap(), 0.0);
        assert_eq!(pass_at_k(4, 1, 4).unwrap(), 1.0);
        assert_eq!(pass_at_k(4, 3, 2).unwrap(), 1.0);
        assert_eq!(pass_at_k(4, 4, 1).unwrap(), 1.0);
        // Where C(n, k) overflows every number type: one correct of n is drawn with chance k / n.
        assert!((pass_at_k(100_000, 1, 256).unwrap() - 0.00256).abs() < 1e-12);
    }

    #[test]
    fn what_has_no_pass_at_k_is_refused() {
        assert!(pass_at_k(4, 2, 5).unwrap_err().to_string().contains("n = 4"));
        assert!(pass_at_k(4, 2, 0).is_err());
        assert!(pass_at_k(4, 5, 1).is_err());
        assert!(scores(&[], &[1]).is_err());
        assert!(scores(&[problem(0, 0)], &[]).is_err());
        assert!(scores(&[problem(1, 1)], &[1, 4]).unwrap_err().to_string().contains("Pass@4"));
        assert!(scores(&[problem(1, 1), problem(1, 2)], &[1]).unwrap_err().to_string().contains("problem 1"));
        assert!(scores(&[ProblemCounts { truncated: 3, ..problem(1, 1) }], &[1]).is_err());
    }

    #[test]
    fn a_set_is_scored_over_its_problems() {
        let statuses = StatusCounts { correct: 0, wrong: 1, no_answer: 1, unparsable: 1, timeout: 1 };
        let problems = [problem(4, 0), problem(2, 2), ProblemCounts { statuses, truncated: 3 }];
        let result = scores(&problems, &[2, 1]).unwrap();
        // Shares 1, 1/2, 0: mean 1/2, std 1/2, standard error 1 / (2 sqrt 3).
        assert_eq!((result.problems, result.responses_per_problem), (3, 4));
        assert_eq!(result.avg_at_n, Estimate { mean: 0.5, standard_error: Some((0.25f64 / 3.0).sqrt()) });
        // Pass@2: 1, 5/6, 0.
        assert_eq!(result.pass_at_k[0].k, 2);
        assert!((result.pass_at_k[0].pass.mean - 11.0 / 18.0).abs() < 1e-15);
        assert!((result.pass_at_k[1].pass.mean - 0.5).abs() < 1e-15);
        assert_eq!(result.correct, [4, 2, 0]);
        assert_eq!(result.statuses, StatusCounts { correct: 6, wrong: 3, no_answer: 1, unparsable: 1, timeout: 1 });
        assert_eq!(result.truncated, 0.25);
        let saved = serde_json::to_value(&result).unwrap();
        assert_eq!(saved["pass_at_k"][1]["k"], 1);
        assert_eq!(saved["avg_at_n"]["mean"], 0.5);
        assert_eq!(serde_json::from_value::<Scores>(saved).unwrap(), result);
    }

    #[test]
    fn one_problem_has_no_standard_error() {
        let result = scores(&[problem(1, 3)], &[]).unwrap();
        assert_eq!(result.avg_at_n, Estimate { mean: 0.25, standard_error: None });
        assert!(serde_json::to_value(&result).unwrap()["avg_at_n"]["standard_error"].is_null());
    }

    proptest! {
        #[test]
        fn pass_at_k_is_a_chance_that_grows_with_k(n in 1usize..300, c in 0usize..300) {
            let c = c % (n + 1);
            let passes: Vec<f64> = (1..=n).map(|k| pass_at_k(n, c, k).unwrap()).collect();
            prop_assert!((passes[0] - c as f64 / n as f64).abs() < 1e-12);
            prop_assert!(passes.iter().all(|pass| (0.0..=1.0).contains(pass)));
            prop_assert!(passes.windows(2).all(|pair| pair[1] >= pair[0]));
        }
    }
}

//! Avg@n and the unbiased Pass@k over a set of problems, with their uncertainty.

use super::statistics::{Estimate, Spread, estimate, estimates, spread};
use crate::verify::{Status, StatusCounts};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What is counted of a judged response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    pub status: Status,
    /// None where a part of the reward broke down.
    pub reward: Option<f64>,
    /// Cut off at the longest length allowed, whatever its status.
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassAtK {
    pub k: usize,
    #[serde(flatten)]
    pub pass: Estimate,
}

/// Shares of all responses that say how far a score can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    pub no_answer: f64,
    pub unparsable: f64,
    /// Not judged at all, since the judge was late or broke down; counted as not correct.
    pub not_judged: f64,
}

/// The result of an evaluation, as it is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub problems: usize,
    /// n: responses to every problem.
    pub responses_per_problem: usize,
    /// Avg@n: share of correct responses.
    pub avg_at_n: Estimate,
    /// Accuracy of the n passes over the set, each with a sample of its own: mean and standard deviation over seeds.
    #[serde(default)]
    pub over_samples: Option<Spread>,
    /// Mean reward, where it is more than correct or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<Estimate>,
    /// In the order the k were asked for.
    pub pass_at_k: Vec<PassAtK>,
    /// Over all responses.
    pub statuses: StatusCounts,
    /// Share of all responses that were cut off.
    pub truncated: f64,
    #[serde(default)]
    pub shares: Shares,
    /// Correct responses of every problem, in the problems' order: any other k can be computed from these.
    pub correct: Vec<usize>,
}

/// Scores of a set of problems, Pass@k for every `k` of `ks`; `seed` is the bootstrap's.
///
/// Errors: no problems, no responses, problems with different numbers of responses, a `k` that is 0 or more than n.
pub fn scores(problems: &[Vec<Judged>], ks: &[usize], seed: u64) -> Result<Scores> {
    let n = problems.first().context("no problems to score: expected at least one")?.len();
    ensure!(n > 0, "problem 0 has no responses: expected at least one");
    let mut statuses = StatusCounts::default();
    for (index, problem) in problems.iter().enumerate() {
        let got = problem.len();
        ensure!(got == n, "problem {index} has {got} responses, but problem 0 has {n}: all must have as many");
        problem.iter().for_each(|response| statuses.add(response.status));
    }
    let is_correct = |response: &Judged| response.status == Status::Correct;
    let correct: Vec<usize> = problems.iter().map(|p| p.iter().filter(|r| is_correct(r)).count()).collect();
    let mut columns: Vec<Vec<f64>> = vec![correct.iter().map(|&c| c as f64 / n as f64).collect()];
    for &k in ks {
        columns.push(correct.iter().map(|&c| pass_at_k(n, c, k)).collect::<Result<Vec<f64>>>()?);
    }
    let mut estimates = estimates(&columns, seed).into_iter();
    let avg_at_n = estimates.next().context("no problems to score")?;
    let passes: Vec<f64> = (0..n)
        .map(|sample| problems.iter().filter(|p| is_correct(&p[sample])).count() as f64 / problems.len() as f64)
        .collect();
    let all = || problems.iter().flatten();
    let share = |count: usize| count as f64 / (n * problems.len()) as f64;
    // A reward of 1 and 0 by status says nothing that Avg@n does not.
    let plain = all().all(|r| r.reward == Some(if is_correct(r) { 1.0 } else { 0.0 }));
    let rewards: Vec<f64> = problems.iter().filter_map(|p| mean(p.iter().filter_map(|r| r.reward))).collect();
    Ok(Scores {
        problems: problems.len(),
        responses_per_problem: n,
        avg_at_n,
        over_samples: spread(&passes),
        reward: if plain { None } else { estimate(&rewards, seed) },
        pass_at_k: ks.iter().zip(estimates).map(|(&k, pass)| PassAtK { k, pass }).collect(),
        truncated: share(all().filter(|r| r.truncated).count()),
        shares: Shares {
            no_answer: share(statuses.no_answer),
            unparsable: share(statuses.unparsable),
            not_judged: share(all().filter(|r| !r.status.judged()).count()),
        },
        statuses,
        correct,
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// The k that are shown where none are asked for: powers of two, up to n and to the paper's 256.
pub fn usual_ks(n: usize) -> Vec<usize> {
    (0..=8).map(|power| 1 << power).filter(|k| *k <= n).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(status: Status, truncated: bool) -> Judged {
        Judged { status, reward: Some(if status == Status::Correct { 1.0 } else { 0.0 }), truncated }
    }

    fn problem(correct: usize, wrong: usize) -> Vec<Judged> {
        let all = [vec![Status::Correct; correct], vec![Status::Wrong; wrong]].concat();
        all.into_iter().map(|status| response(status, false)).collect()
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
        assert!(scores(&[], &[1], 1).is_err());
        assert!(scores(&[problem(0, 0)], &[], 1).is_err());
        assert!(scores(&[problem(1, 1)], &[1, 4], 1).unwrap_err().to_string().contains("Pass@4"));
        assert!(scores(&[problem(1, 1), problem(1, 2)], &[1], 1).unwrap_err().to_string().contains("problem 1"));
    }

    #[test]
    fn the_papers_k_are_powers_of_two() {
        assert_eq!(usual_ks(1), [1]);
        assert_eq!(usual_ks(16), [1, 2, 4, 8, 16]);
        assert_eq!(usual_ks(300), [1, 2, 4, 8, 16, 32, 64, 128, 256]);
        assert_eq!(usual_ks(1000).last(), Some(&256));
    }

    #[test]
    fn a_set_is_scored_over_its_problems() {
        let odd = [Status::Wrong, Status::NoAnswer, Status::Unparsable, Status::Timeout];
        let odd = odd.into_iter().enumerate().map(|(i, status)| response(status, i > 0)).collect();
        let problems = [problem(4, 0), problem(2, 2), odd];
        let result = scores(&problems, &[2, 1], 7).unwrap();
        // Shares 1, 1/2, 0: mean 1/2, std 1/2, standard error 1 / (2 sqrt 3).
        assert_eq!((result.problems, result.responses_per_problem), (3, 4));
        assert_eq!((result.avg_at_n.mean, result.avg_at_n.standard_error), (0.5, Some((0.25f64 / 3.0).sqrt())));
        // Passes over the set: 2/3, 2/3, 1/3, 1/3.
        let over = result.over_samples.unwrap();
        assert!((over.mean - 0.5).abs() < 1e-15 && (over.std.unwrap() - (1.0f64 / 27.0).sqrt()).abs() < 1e-15);
        // Pass@2: 1, 5/6, 0.
        assert_eq!(result.pass_at_k[0].k, 2);
        assert!((result.pass_at_k[0].pass.mean - 11.0 / 18.0).abs() < 1e-15);
        assert!((result.pass_at_k[1].pass.mean - 0.5).abs() < 1e-15);
        assert_eq!(result.correct, [4, 2, 0]);
        let statuses = StatusCounts { correct: 6, wrong: 3, no_answer: 1, unparsable: 1, timeout: 1, failed: 0 };
        assert_eq!((result.statuses, result.truncated, result.reward), (statuses, 0.25, None));
        let twelfth = 1.0 / 12.0;
        assert_eq!(result.shares, Shares { no_answer: twelfth, unparsable: twelfth, not_judged: twelfth });
        let saved = serde_json::to_value(&result).unwrap();
        assert_eq!((&saved["pass_at_k"][1]["k"], &saved["avg_at_n"]["mean"]), (&1.into(), &0.5.into()));
        assert_eq!(serde_json::from_value::<Scores>(saved).unwrap(), result);
    }

    #[test]
    fn rewards_that_say_more_than_right_or_wrong_have_a_mean() {
        let partly = |reward| Judged { status: Status::Wrong, reward, truncated: false };
        let result = scores(&[vec![partly(Some(0.5)), partly(None)], vec![partly(Some(0.0)); 2]], &[], 1).unwrap();
        assert_eq!((result.reward.unwrap().mean, result.avg_at_n.mean), (0.25, 0.0));
    }

    #[test]
    fn one_problem_has_no_standard_error() {
        let result = scores(&[problem(1, 3)], &[], 1).unwrap();
        assert_eq!(result.avg_at_n, Estimate { mean: 0.25, standard_error: None, interval: None });
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

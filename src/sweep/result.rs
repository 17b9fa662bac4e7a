//! What a sweep's runs left behind: `sweep.json`, which says everything that a table or a page shows.

use super::{Sweep, Variant};
use crate::evaluate::compare::{Counted, compare};
use crate::evaluate::scores::Scores;
use crate::evaluate::statistics::{PairedDifference, Spread, spread};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Seed of the bootstrap and the sign flips.
const SEED: u64 = 1;

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Finished,
    /// Ended with an error; the next start of the sweep tries it again.
    Failed,
    /// Not begun, or stopped and to be gone on with.
    Pending,
}

/// One run of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    pub seed: u64,
    /// Its folder, from the sweep's.
    pub dir: String,
    pub status: RunStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Scores before and after training, by the name of their set.
    #[serde(default)]
    pub before: BTreeMap<String, Scores>,
    #[serde(default)]
    pub after: BTreeMap<String, Scores>,
}

/// A run with what a paired comparison needs: correct responses of every problem, by the name of their set.
#[derive(Clone, Debug)]
pub struct ReadRun {
    pub result: RunResult,
    pub counted: BTreeMap<String, Counted>,
}

/// A variant's scores on one set over its finished runs. Shares, not per cent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetResult {
    pub set: String,
    /// Responses to each problem.
    pub n: usize,
    /// Avg@n: mean and standard deviation (ddof = 1) over seeds.
    pub before: Option<Spread>,
    pub after: Spread,
    pub pass_at_k: Vec<PassSpread>,
    /// Avg@n after training, this variant minus the first, over the problems and the seeds that both have. None for the
    /// first.
    pub difference: Option<PairedDifference>,
    /// No variant has a higher mean after training.
    pub best: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassSpread {
    pub k: usize,
    #[serde(flatten)]
    pub pass: Spread,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantResult {
    pub name: String,
    /// What it changes in the recipe.
    pub set: Vec<String>,
    pub runs: Vec<RunResult>,
    /// In the order of [`SweepResult::sets`]; sets without a finished run are left out.
    pub scores: Vec<SetResult>,
}

/// `sweep.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepResult {
    pub bupo_version: String,
    pub sweep: Sweep,
    /// Threads of each run.
    pub threads: usize,
    /// Names of the evaluated sets; `evaluation` where the recipe has one without a name.
    pub sets: Vec<String>,
    pub variants: Vec<VariantResult>,
}

impl SweepResult {
    /// Runs of a status.
    pub fn count(&self, status: RunStatus) -> usize {
        self.variants.iter().flat_map(|v| &v.runs).filter(|run| run.status == status).count()
    }
}

/// Adds up the runs, one list for each variant.
pub fn summarize(sweep: &Sweep, variants: &[Variant], threads: usize, runs: Vec<Vec<ReadRun>>) -> Result<SweepResult> {
    let mut sets: Vec<String> = Vec::new();
    for set in runs.iter().flatten().flat_map(|run| run.result.after.keys()) {
        if !sets.contains(set) {
            sets.push(set.clone());
        }
    }
    let mut results = Vec::with_capacity(variants.len());
    for (i, (variant, of_variant)) in variants.iter().zip(&runs).enumerate() {
        let first = (i > 0).then(|| &runs[0][..]);
        let scores = sets.iter().map(|set| set_result(set, of_variant, first)).collect::<Result<Vec<_>>>()?;
        results.push(VariantResult {
            name: variant.name.clone(),
            set: variant.set.clone(),
            runs: of_variant.iter().map(|run| run.result.clone()).collect(),
            scores: scores.into_iter().flatten().collect(),
        });
    }
    for set in &sets {
        let all = || results.iter().flat_map(|v| &v.scores).filter(|s| s.set == *set).map(|s| s.after.mean);
        let best = all().fold(f64::NEG_INFINITY, f64::max);
        let of_set = results.iter_mut().flat_map(|v| &mut v.scores).filter(|s| s.set == *set);
        of_set.for_each(|s| s.best = s.after.mean >= best);
    }
    let bupo_version = env!("CARGO_PKG_VERSION").into();
    Ok(SweepResult { bupo_version, sweep: sweep.clone(), threads, sets, variants: results })
}

fn set_result(set: &str, runs: &[ReadRun], first: Option<&[ReadRun]>) -> Result<Option<SetResult>> {
    let finished = || runs.iter().filter(|run| run.result.status == RunStatus::Finished);
    let after: Vec<&Scores> = finished().filter_map(|run| run.result.after.get(set)).collect();
    let averages = |scores: &[&Scores]| scores.iter().map(|s| s.avg_at_n.mean).collect::<Vec<f64>>();
    let Some(spread_after) = spread(&averages(&after)) else { return Ok(None) };
    let before: Vec<&Scores> = finished().filter_map(|run| run.result.before.get(set)).collect();
    let pass = |(at, k): (usize, usize)| {
        let values: Vec<f64> = after.iter().filter_map(|s| Some(s.pass_at_k.get(at)?.pass.mean)).collect();
        Some(PassSpread { k, pass: spread(&values)? })
    };
    let ks = after[0].pass_at_k.iter().map(|p| p.k).enumerate();
    let mut result = SetResult {
        set: set.into(),
        n: after[0].responses_per_problem,
        before: spread(&averages(&before)),
        after: spread_after,
        pass_at_k: ks.filter_map(pass).collect(),
        difference: None,
        best: false,
    };
    let Some(first) = first else { return Ok(Some(result)) };
    // Seed by seed: a run that failed on one side is left out on the other.
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for run in finished() {
        let other = first.iter().find(|o| o.result.seed == run.result.seed && o.result.status == RunStatus::Finished);
        if let (Some(one), Some(other)) = (run.counted.get(set), other.and_then(|o| o.counted.get(set))) {
            a.push((format!("seed {}", run.result.seed), other.clone()));
            b.push((format!("seed {}", run.result.seed), one.clone()));
        }
    }
    if !a.is_empty() {
        result.difference = compare(set, &a, &b, &[], SEED)?.scores.first().map(|s| s.paired);
    }
    Ok(Some(result))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::evaluate::scores::{Judged, scores};
    use crate::verify::Status;

    fn read(seed: u64, status: RunStatus, correct: &[usize]) -> ReadRun {
        let judged = |c: &usize| {
            let one = |i: usize| Judged {
                status: if i < *c { Status::Correct } else { Status::Wrong },
                reward: Some(if i < *c { 1.0 } else { 0.0 }),
                truncated: false,
            };
            (0..4).map(one).collect::<Vec<_>>()
        };
        let problems: Vec<_> = correct.iter().map(judged).collect();
        let after: BTreeMap<String, Scores> = match status {
            RunStatus::Finished => [("held-out".to_string(), scores(&problems, &[4], 1).unwrap())].into(),
            _ => BTreeMap::new(),
        };
        let counted = Counted { n: 4, correct: correct.iter().enumerate().map(|(i, c)| (i as u64, *c)).collect() };
        let counted = after.keys().map(|set| (set.clone(), counted.clone())).collect();
        let error = (status == RunStatus::Failed).then(|| "it broke".to_string());
        let dir = format!("v/seed-{seed}");
        ReadRun { result: RunResult { seed, dir, status, error, before: BTreeMap::new(), after }, counted }
    }

    pub fn example() -> SweepResult {
        let text = "name = \"t\"\nbase = \"arithmetic-bupo\"\nseeds = [1, 2]\n[[variant]]\nname = \"grpo\"\n[[variant]]\nname = \"bupo\"";
        let sweep = Sweep::parse(text, "t", &[]).unwrap();
        let first = vec![read(1, RunStatus::Finished, &[1, 2]), read(2, RunStatus::Finished, &[3, 2])];
        let second = vec![read(1, RunStatus::Finished, &[4, 4]), read(2, RunStatus::Failed, &[])];
        summarize(&sweep, &sweep.variants(), 2, vec![first, second]).unwrap()
    }

    #[test]
    fn a_sweep_by_hand() {
        let result = example();
        assert_eq!((result.sets.clone(), result.count(RunStatus::Failed)), (vec!["held-out".to_string()], 1));
        let (grpo, bupo) = (&result.variants[0].scores[0], &result.variants[1].scores[0]);
        // 3/8 and 5/8.
        assert!((grpo.after.mean - 0.5).abs() < 1e-15 && (grpo.after.std.unwrap() - 0.125 * 2f64.sqrt()).abs() < 1e-15);
        assert_eq!((grpo.difference, grpo.best, bupo.best, bupo.after.runs), (None, false, true, 1));
        // Only seed 1 is on both sides: 1 - 1/4 and 1 - 2/4.
        let difference = bupo.difference.unwrap();
        assert!((difference.difference.mean - 0.625).abs() < 1e-15, "{difference:?}");
        assert_eq!((difference.better, bupo.pass_at_k[0].k), (2, 4));
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(serde_json::from_str::<SweepResult>(&text).unwrap(), result);
    }
}

//! Dynamic sampling (DAPO, section 3.2): groups whose responses all have the same reward teach nothing under a group baseline,
//! so they are dropped, and more problems are asked until the batch is full or a bound is met.

use crate::reward::Score;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What must differ within a group (verl's `filter_groups.metric`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The rewards: without a difference there is no gradient.
    #[default]
    Reward,
    /// The verdicts, right or not (DAPO, equation 11): a group that differs only in other parts of the reward goes too.
    Accuracy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamicSampling {
    /// What must differ within a group for it to be kept.
    pub metric: Metric,
    /// Prompts asked in one step at most, as a multiple of `prompts_per_step` (verl's `max_num_gen_batches`).
    pub max_batches: usize,
}

impl Default for DynamicSampling {
    fn default() -> Self {
        DynamicSampling { metric: Metric::Reward, max_batches: 10 }
    }
}

impl DynamicSampling {
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.max_batches > 1,
            "max_batches = {}: expected at least 2 (with 1 nothing could be refilled)",
            self.max_batches
        );
        Ok(())
    }

    /// Two responses of a group differ, among those with a reward.
    pub fn keeps(&self, scores: &[Score]) -> bool {
        let value = |s: &Score| match self.metric {
            Metric::Reward => s.reward,
            Metric::Accuracy => s.reward.map(|_| s.verdict.reward()),
        };
        let mut known = scores.iter().filter_map(value);
        known.next().is_some_and(|first| known.any(|r| r != first))
    }
}

/// What dynamic sampling did in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refilling {
    /// Times that responses were sampled: 1 where the first batch was full.
    pub rounds: usize,
    pub prompts_sampled: usize,
    /// Groups that the updates did not see, and those among them with a positive reward in every response, or in none.
    pub groups_dropped: usize,
    pub dropped_all_rewarded: usize,
    pub dropped_none_rewarded: usize,
    /// Groups that are missing in the batch, since the bound was met.
    pub groups_missing: usize,
}

impl Refilling {
    /// Of a step that asked for `wanted` groups, kept `kept` of all groups' `scores`.
    pub fn of(scores: &[Vec<Score>], kept: &[usize], wanted: usize, rounds: usize) -> Refilling {
        let dropped = || (0..scores.len()).filter(|i| kept.binary_search(i).is_err()).map(|i| &scores[i]);
        let count = |test: fn(f64) -> bool| dropped().filter(|g| g.iter().all(|s| s.reward.is_some_and(test))).count();
        Refilling {
            rounds,
            prompts_sampled: scores.len(),
            groups_dropped: dropped().count(),
            dropped_all_rewarded: count(|r| r > 0.0),
            dropped_none_rewarded: count(|r| r <= 0.0),
            groups_missing: wanted - kept.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Status, Verdict};

    fn group(rewards: &[Option<f64>]) -> Vec<Score> {
        let verdict = Verdict { status: Status::Wrong, answer: None };
        let score = |reward: &Option<f64>| Score {
            reward: *reward,
            verdict: verdict.clone(),
            parts: Default::default(),
            failure: None,
        };
        rewards.iter().map(score).collect()
    }

    #[test]
    fn a_group_is_kept_for_a_difference_among_known_rewards() {
        let dynamic = DynamicSampling::default();
        assert!(dynamic.keeps(&group(&[Some(1.0), Some(0.0)])));
        assert!(dynamic.keeps(&group(&[None, Some(1.0), Some(1.0), Some(0.5)])));
        for equal in [vec![Some(1.0); 3], vec![Some(0.0); 2], vec![Some(1.0), None], vec![None, None], vec![]] {
            assert!(!dynamic.keeps(&group(&equal)), "{equal:?}");
        }
        // All wrong, however the rewards differ; then one right.
        let accuracy = DynamicSampling { metric: Metric::Accuracy, ..dynamic };
        let mut scores = group(&[Some(0.0), Some(-0.5)]);
        assert!(dynamic.keeps(&scores) && !accuracy.keeps(&scores));
        scores[1].verdict.status = Status::Correct;
        assert!(accuracy.keeps(&scores));
        // Right, but without a reward: not compared.
        scores[1].reward = None;
        assert!(!accuracy.keeps(&scores));
    }

    #[test]
    fn what_was_dropped_is_counted_by_its_kind() {
        let scores = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]].map(|g| group(&g.map(Some))).to_vec();
        let got = Refilling::of(&scores, &[1], 2, 3);
        let expected = Refilling {
            rounds: 3,
            prompts_sampled: 4,
            groups_dropped: 3,
            dropped_all_rewarded: 1,
            dropped_none_rewarded: 2,
            groups_missing: 1,
        };
        assert_eq!(got, expected);
        assert!(
            DynamicSampling { max_batches: 1, ..Default::default() }
                .check()
                .unwrap_err()
                .to_string()
                .starts_with("max_batches = 1")
        );
    }
}

//! Advantages: what a response is worth beside the others of its group or batch.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// How rewards become advantages. The names are those of verl's `adv_estimator`, but for `dr-grpo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Advantage {
    /// `(r - mean) / (std + 1e-6)` within the group, std with ddof = 1 (paper, section 4; verl's convention).
    #[default]
    #[serde(rename = "grpo")]
    Grpo,
    /// `r - mean` within the group (Dr. GRPO: the division by std favours prompts that are nearly solved or hopeless).
    #[serde(rename = "dr-grpo")]
    DrGrpo,
    /// `r - mean of the others` = `(r - mean) n / (n - 1)` within the group.
    #[serde(rename = "rloo")]
    Rloo,
    /// Discounted return-to-go of every token, whitened over all response tokens of the batch.
    #[serde(rename = "reinforce++")]
    ReinforcePlusPlus,
    /// `r - mean` within the group, then whitened over all response tokens of the batch.
    #[serde(rename = "reinforce++-baseline")]
    ReinforcePlusPlusBaseline,
    /// What a token was worth beside what a critic expected (PPO; [`super::gae`]): needs `[critic]`.
    #[serde(rename = "gae")]
    Gae,
}

impl Advantage {
    /// A response is compared with the others to its prompt: where their rewards are alike, it is worth 0.
    pub fn compares_groups(self) -> bool {
        !matches!(self, Advantage::ReinforcePlusPlus | Advantage::Gae)
    }

    /// What is allowed, but compares nothing.
    pub fn remark(self, group_size: usize) -> Option<String> {
        (group_size == 1 && self.compares_groups()).then(|| {
            format!(
                "rollout.group_size = 1 leaves rl.advantage = {} nothing to compare a response with: its advantage is its raw reward. \
                 Expected 2 or more, or an advantage that compares over the batch (\"reinforce++\", \"gae\")",
                serde_json::json!(self)
            )
        })
    }
}

/// Added to the group's std, outside of the root (verl; TRL adds 1e-4, OpenRLHF 1e-9).
const STD_EPS: f64 = 1e-6;
/// Added to the batch's variance, inside of the root (verl's and TRL's `masked_whiten`).
const WHITEN_EPS: f64 = 1e-8;

/// The responses to one prompt.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// One reward a response.
    pub rewards: &'a [f64],
    /// Tokens of each response, its end token included.
    pub lengths: &'a [usize],
}

/// An advantage for every response token of a batch: one flat array, groups and responses in the order they came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    values: Vec<f32>,
    /// Response `i` has tokens `offsets[i]..offsets[i + 1]`.
    offsets: Vec<usize>,
}

impl Advantages {
    /// `[response tokens of the batch]`.
    pub fn tokens(&self) -> &[f32] {
        &self.values
    }

    /// One slice a response, over its tokens.
    pub fn responses(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.offsets.windows(2).map(|ends| &self.values[ends[0]..ends[1]])
    }
}

/// Advantages of a whole batch, in f64 inside. `gamma` discounts the return-to-go of `reinforce++` (1: every token of a
/// response has the same return) and is ignored by the others. A group of one response keeps its raw reward (verl).
///
/// Whitening is `(x - mean) / sqrt(var + 1e-8)` over all response tokens, var with ddof = 1, so a long response counts
/// for more than a short one (verl's `masked_whiten`). A batch of a single token gets 0.
///
/// Errors: no responses in a group, as many lengths as rewards expected, rewards that are not finite.
pub fn advantages(kind: Advantage, groups: &[Group], gamma: f64) -> Result<Advantages> {
    ensure!(kind != Advantage::Gae, "advantages by gae come from a critic's values, not from comparing rewards");
    ensure!((0.0..=1.0).contains(&gamma), "gamma = {gamma}: expected a discount from 0 to 1");
    check(groups)?;
    let mut values: Vec<f64> = Vec::new();
    let mut offsets = vec![0];
    for group in groups {
        let n = group.rewards.len();
        let (baseline, scale) = match kind {
            _ if n == 1 => (0.0, 1.0),
            Advantage::Grpo => (mean(group.rewards), 1.0 / (std(group.rewards) + STD_EPS)),
            Advantage::DrGrpo | Advantage::ReinforcePlusPlusBaseline => (mean(group.rewards), 1.0),
            Advantage::Rloo => (mean(group.rewards), n as f64 / (n as f64 - 1.0)),
            Advantage::ReinforcePlusPlus | Advantage::Gae => (0.0, 1.0),
        };
        for (reward, &length) in group.rewards.iter().zip(group.lengths) {
            let advantage = (reward - baseline) * scale;
            let start = values.len();
            values.resize(start + length, advantage);
            if kind == Advantage::ReinforcePlusPlus {
                // The reward arrives with the last token; the return of a token is that reward, discounted back to it.
                let mut discounted = advantage;
                for value in values[start..].iter_mut().rev() {
                    *value = discounted;
                    discounted *= gamma;
                }
            }
            offsets.push(values.len());
        }
    }
    if matches!(kind, Advantage::ReinforcePlusPlus | Advantage::ReinforcePlusPlusBaseline) {
        whiten(&mut values);
    }
    Ok(Advantages { values: values.into_iter().map(|value| value as f32).collect(), offsets })
}

/// What the rewards of a batch look like, group by group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStats {
    pub groups: usize,
    pub responses: usize,
    /// Mean over all responses.
    pub reward_mean: f64,
    /// Mean over groups of two responses or more of the std (ddof = 1) within the group (TRL's `reward_std`).
    pub reward_std: f64,
    /// Groups of two responses or more, all with the same reward: they teach nothing under a group baseline.
    pub zero_std_groups: usize,
    /// `zero_std_groups` as a share of the groups of two responses or more; 0 where there are none.
    pub frac_reward_zero_std: f64,
    /// Share of all groups in which every response has a positive reward: of rewards of 0 and 1, those that are too easy.
    pub frac_all_rewarded: f64,
    /// Share of all groups in which no response has a positive reward: of rewards of 0 and 1, those that are too hard.
    pub frac_none_rewarded: f64,
}

impl GroupStats {
    /// Errors as [`advantages`]; a batch without groups has no statistics either.
    pub fn of(groups: &[Group]) -> Result<GroupStats> {
        ensure!(!groups.is_empty(), "reward statistics of a batch without groups: expected at least one prompt");
        check(groups)?;
        let responses: usize = groups.iter().map(|group| group.rewards.len()).sum();
        let reward_sum: f64 = groups.iter().flat_map(|group| group.rewards).sum();
        let compared: Vec<&Group> = groups.iter().filter(|group| group.rewards.len() > 1).collect();
        let zero_std_groups = compared.iter().filter(|group| all_equal(group.rewards)).count();
        let share = |count: usize, of: usize| if of == 0 { 0.0 } else { count as f64 / of as f64 };
        let count = |test: fn(&f64) -> bool| groups.iter().filter(|group| group.rewards.iter().all(test)).count();
        Ok(GroupStats {
            groups: groups.len(),
            responses,
            reward_mean: reward_sum / responses as f64,
            reward_std: match compared.len() {
                0 => 0.0,
                n => compared.iter().map(|group| std(group.rewards)).sum::<f64>() / n as f64,
            },
            zero_std_groups,
            frac_reward_zero_std: share(zero_std_groups, compared.len()),
            frac_all_rewarded: share(count(|&reward| reward > 0.0), groups.len()),
            frac_none_rewarded: share(count(|&reward| reward <= 0.0), groups.len()),
        })
    }
}

fn check(groups: &[Group]) -> Result<()> {
    for (index, group) in groups.iter().enumerate() {
        let (rewards, lengths) = (group.rewards.len(), group.lengths.len());
        ensure!(rewards > 0, "group {index} has no responses: expected at least one");
        ensure!(rewards == lengths, "group {index} has {rewards} rewards but {lengths} response lengths");
        if let Some(reward) = group.rewards.iter().find(|reward| !reward.is_finite()) {
            bail!("group {index} has a reward of {reward}: rewards must be finite");
        }
    }
    Ok(())
}

fn all_equal(values: &[f64]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

/// Taken about the first value, so that equal values have exactly that mean, and a std and advantages of exactly 0.
fn mean(values: &[f64]) -> f64 {
    match values.first() {
        Some(first) => first + values.iter().map(|value| value - first).sum::<f64>() / values.len() as f64,
        None => 0.0,
    }
}

/// ddof = 1; 0 for fewer than two values.
fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64
}

fn std(values: &[f64]) -> f64 {
    variance(values).sqrt()
}

pub(super) fn whiten(values: &mut [f64]) {
    let (mean, scale) = (mean(values), 1.0 / (variance(values) + WHITEN_EPS).sqrt());
    for value in values {
        *value = (*value - mean) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Advantage; 5] = [
        Advantage::Grpo,
        Advantage::DrGrpo,
        Advantage::Rloo,
        Advantage::ReinforcePlusPlus,
        Advantage::ReinforcePlusPlusBaseline,
    ];

    fn close(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{got:?} {expected:?}");
        for (got, expected) in got.iter().zip(expected) {
            assert!((*got as f64 - expected).abs() < 2e-7 * (1.0 + expected.abs()), "{got} {expected}");
        }
    }

    /// One response token each.
    fn of(kind: Advantage, rewards: &[f64]) -> Vec<f32> {
        let lengths = vec![1; rewards.len()];
        advantages(kind, &[Group { rewards, lengths: &lengths }], 1.0).unwrap().values
    }

    #[test]
    fn one_right_answer_of_four() {
        // mean 1/4; deviations 3/4 and -1/4; variance (9 + 3)/16 / 3 = 1/4; std 1/2 (with ddof = 0 it would be 0.433).
        let rewards = [1.0, 0.0, 0.0, 0.0];
        let right = 0.75 / 0.500001;
        close(&of(Advantage::Grpo, &rewards), &[right, -right / 3.0, -right / 3.0, -right / 3.0]);
        close(&of(Advantage::DrGrpo, &rewards), &[0.75, -0.25, -0.25, -0.25]);
        // 1 - mean(0, 0, 0) and 0 - mean(1, 0, 0).
        close(&of(Advantage::Rloo, &rewards), &[1.0, -1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0]);
        // One token each: the whitened batch is the group, (r - 1/4) / sqrt(1/4 + 1e-8).
        let right = 0.75 / (0.25f64 + 1e-8).sqrt();
        for kind in [Advantage::ReinforcePlusPlus, Advantage::ReinforcePlusPlusBaseline] {
            close(&of(kind, &rewards), &[right, -right / 3.0, -right / 3.0, -right / 3.0]);
        }
    }

    #[test]
    fn whitening_weighs_responses_by_their_tokens() {
        // Tokens 1, 0, 0, 0 (reinforce++), or 1/2, -1/2, -1/2, -1/2 less their group's mean: both whiten to 1.5, -0.5 x 3.
        let group = Group { rewards: &[1.0, 0.0], lengths: &[1, 3] };
        for kind in [Advantage::ReinforcePlusPlus, Advantage::ReinforcePlusPlusBaseline] {
            let result = advantages(kind, &[group], 1.0).unwrap();
            let scale = 1.0 / (0.25f64 + 1e-8).sqrt();
            close(result.tokens(), &[0.75 * scale, -0.25 * scale, -0.25 * scale, -0.25 * scale]);
            assert_eq!(result.responses().map(<[f32]>::len).collect::<Vec<_>>(), [1, 3]);
        }
    }

    #[test]
    fn the_baseline_is_the_groups_the_whitening_is_the_batchs() {
        // Less the group means (1/2, 3): 1/2, -1/2, 1, -1; mean 0, variance 2.5 / 3.
        let groups =
            [Group { rewards: &[1.0, 0.0], lengths: &[1, 1] }, Group { rewards: &[4.0, 2.0], lengths: &[1, 1] }];
        let result = advantages(Advantage::ReinforcePlusPlusBaseline, &groups, 1.0).unwrap();
        let scale = 1.0 / (2.5f64 / 3.0 + 1e-8).sqrt();
        close(result.tokens(), &[0.5 * scale, -0.5 * scale, scale, -scale]);
    }

    #[test]
    fn the_return_to_go_is_discounted_from_the_last_token_back() {
        // Returns 1/4, 1/2, 1 and 0: mean 7/16; deviations -3, 1, 9, -7 sixteenths; variance 140/256 / 3.
        let group = Group { rewards: &[1.0, 0.0], lengths: &[3, 1] };
        let result = advantages(Advantage::ReinforcePlusPlus, &[group], 0.5).unwrap();
        let scale = 1.0 / (140.0f64 / 768.0 + 1e-8).sqrt() / 16.0;
        close(result.tokens(), &[-3.0 * scale, scale, 9.0 * scale, -7.0 * scale]);
        // Nobody else looks at gamma.
        let grpo = advantages(Advantage::Grpo, &[group], 0.5).unwrap();
        assert_eq!(grpo, advantages(Advantage::Grpo, &[group], 1.0).unwrap());
    }

    #[test]
    fn a_group_of_one_keeps_its_raw_reward() {
        for kind in [Advantage::Grpo, Advantage::DrGrpo, Advantage::Rloo] {
            assert_eq!(of(kind, &[0.7]), [0.7]);
        }
        // Whitened over the batch: tokens 0.7 (raw) and 0.5 - 0.5 = 0, 0.
        let groups = [Group { rewards: &[0.7], lengths: &[1] }, Group { rewards: &[0.5, 0.5], lengths: &[1, 1] }];
        let result = advantages(Advantage::ReinforcePlusPlusBaseline, &groups, 1.0).unwrap();
        let scale = 1.0 / (0.49f64 / 3.0 + 1e-8).sqrt();
        close(result.tokens(), &[0.7 * 2.0 / 3.0 * scale, -0.7 / 3.0 * scale, -0.7 / 3.0 * scale]);
        // A single token in the whole batch has no variance (verl fails here).
        assert_eq!(of(Advantage::ReinforcePlusPlus, &[0.7]), [0.0]);
    }

    #[test]
    fn a_group_of_one_is_remarked_on_where_groups_are_compared() {
        for kind in [Advantage::Grpo, Advantage::DrGrpo, Advantage::Rloo] {
            assert!(kind.remark(1).is_some_and(|remark| remark.contains("raw reward")) && kind.remark(2).is_none());
        }
        assert_eq!((Advantage::Gae.remark(1), Advantage::ReinforcePlusPlus.remark(1)), (None, None));
    }

    #[test]
    fn equal_rewards_give_exactly_zero() {
        for kind in ALL {
            assert_eq!(of(kind, &[0.1, 0.1, 0.1]), [0.0; 3], "{kind:?}");
        }
    }

    #[test]
    fn an_empty_response_has_no_tokens_and_still_counts_in_its_groups_baseline() {
        let group = Group { rewards: &[1.0, 0.0], lengths: &[0, 2] };
        let result = advantages(Advantage::DrGrpo, &[group], 1.0).unwrap();
        assert_eq!(result.responses().collect::<Vec<_>>(), [&[][..], &[-0.5, -0.5][..]]);
        assert_eq!(advantages(Advantage::ReinforcePlusPlus, &[], 1.0).unwrap().responses().len(), 0);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let error = |rewards: &[f64], lengths: &[usize], gamma| {
            advantages(Advantage::Grpo, &[Group { rewards, lengths }], gamma).unwrap_err().to_string()
        };
        assert!(error(&[], &[], 1.0).contains("no responses"));
        assert!(error(&[1.0, 0.0], &[1], 1.0).contains("2 rewards but 1 response lengths"));
        assert!(error(&[1.0, f64::NAN], &[1, 1], 1.0).contains("NaN"));
        assert!(error(&[1.0], &[1], 1.5).contains("gamma"));
    }

    #[test]
    fn statistics_are_counted_group_by_group() {
        let groups = [
            Group { rewards: &[1.0, 1.0], lengths: &[1, 1] },
            Group { rewards: &[0.0, 0.0], lengths: &[1, 1] },
            Group { rewards: &[0.0, 0.0], lengths: &[1, 1] },
            // std sqrt(1/4 + 1/4) = 0.7071
            Group { rewards: &[1.0, 0.0], lengths: &[1, 1] },
            Group { rewards: &[1.0], lengths: &[1] },
        ];
        let stats = GroupStats::of(&groups).unwrap();
        assert_eq!((stats.groups, stats.responses, stats.zero_std_groups), (5, 9, 3));
        assert_eq!(stats.reward_mean, 4.0 / 9.0);
        assert!((stats.reward_std - 0.5f64.sqrt() / 4.0).abs() < 1e-15);
        assert_eq!(stats.frac_reward_zero_std, 0.75);
        assert_eq!((stats.frac_all_rewarded, stats.frac_none_rewarded), (0.4, 0.4));
        assert!(GroupStats::of(&[]).is_err());
    }

    #[test]
    fn names_are_the_fields_names() {
        let names = ALL.map(|kind| serde_json::to_value(kind).unwrap());
        assert_eq!(names, ["grpo", "dr-grpo", "rloo", "reinforce++", "reinforce++-baseline"]);
    }

    proptest! {
        #[test]
        fn advantages_are_finite_and_centred(
            rewards in prop::collection::vec(-1e3f64..1e3, 2..9),
            length in 1usize..5,
        ) {
            let lengths = vec![length; rewards.len()];
            for kind in ALL {
                let result = advantages(kind, &[Group { rewards: &rewards, lengths: &lengths }], 1.0).unwrap();
                let sum: f64 = result.tokens().iter().map(|&advantage| advantage as f64).sum();
                let size: f64 = result.tokens().iter().map(|&advantage| advantage.abs() as f64).sum();
                prop_assert!(sum.is_finite() && sum.abs() <= 1e-6 * (1.0 + size), "{kind:?}: {sum} of {size}");
            }
        }
    }
}

//! What is watched, one object a step, in the field's words.

use super::advantage::GroupStats;
use super::correction::RolloutRatios;
use super::critic::CriticMetrics;
use super::dynamic_sampling::Refilling;
use super::loss::LossMetrics;
use crate::reward::Score;
use crate::verify::StatusCounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Lengths of the step's responses, in tokens, the end token included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    pub mean: f64,
    pub min: usize,
    pub max: usize,
}

impl Lengths {
    pub fn of(lengths: &[usize]) -> Lengths {
        Lengths {
            mean: lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64,
            min: lengths.iter().copied().min().unwrap_or(0),
            max: lengths.iter().copied().max().unwrap_or(0),
        }
    }
}

/// Agreement of the log-probs seen while sampling with those of the training forward, for the final policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutAgreement {
    /// Tokens compared: those of the step's first mini-batch.
    pub tokens: usize,
    /// Mean and largest absolute difference.
    pub mean: f64,
    pub max: f64,
}

/// Why the internal phase ended with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseEnd {
    /// It had all its steps.
    Steps,
    /// The guard saw it turn for the worse (`probe.jsonl` says how).
    Guard,
}

/// Wall-clock seconds of the step's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    pub rollout: f64,
    pub old_log_probs: f64,
    pub update: f64,
    /// The critic's values and updates, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<f64>,
    /// Rollout, judging and updates; not the probe.
    pub total: f64,
    /// The look inside after this step, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<f64>,
}

/// The policy that a joint phase optimizes beside the final one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BesideMetrics {
    pub policy: String,
    /// Weight of its loss.
    pub beta: f64,
    /// Before the weight; mean over the step's mini-batches.
    pub loss: f64,
    #[serde(flatten)]
    pub surrogate: LossMetrics,
}

/// One rollout step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Rollout step, from 1.
    pub step: usize,
    /// `internal`, `final` or `joint`.
    pub phase: String,
    /// Its place in the schedule, from 1.
    #[serde(default)]
    pub phase_number: usize,
    /// The policy that this step optimized: `final`, `layer:6`, `final + 0.1 layer:6`, ...
    pub policy: String,
    /// Only in the last step of the internal phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_end: Option<PhaseEnd>,
    /// In a joint phase, the surrogate of the lower policy. Everything else is the upper one's, but the loss is the sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<BesideMetrics>,
    #[serde(flatten)]
    pub rewards: GroupStats,
    /// Mean value of every part of the reward, before its weight, over the responses that have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reward_parts: BTreeMap<String, f64>,
    /// Responses without a reward, since a part of it broke down: left out of every other number on rewards.
    #[serde(default)]
    pub rewards_missing: usize,
    pub verdicts: StatusCounts,
    /// Share of responses whose reward the text comparison `boxed` would decide otherwise; only where the rule is `math`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boxed_disagreement: Option<f64>,
    /// What dynamic sampling did, where it is on. Rewards, verdicts, lengths and entropy are those of everything that was
    /// sampled; the loss and its statistics those of what was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_sampling: Option<Refilling>,
    /// Share of responses that reached the length limit.
    pub truncated: f64,
    /// Prompts cut from the left to the prompt limit.
    pub prompts_truncated: usize,
    pub response_length: Lengths,
    /// Entropy (nats) of the optimized policy over response tokens, as the updates' forwards saw it.
    pub entropy_policy: f64,
    /// Entropy (nats) of the final policy over response tokens, as it was while sampling.
    pub entropy_final: f64,
    /// Sum of the surrogate's value over the step's mini-batches, divided by their number.
    pub loss: f64,
    #[serde(flatten)]
    pub surrogate: LossMetrics,
    /// Of the critic, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<CriticMetrics>,
    /// Mean over the step's mini-batches of the gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step's last mini-batch.
    pub lr: f64,
    /// Optimizer steps taken since the start of the run, and those skipped because a gradient was not finite.
    pub optimizer_steps: u64,
    pub skipped_steps: u64,
    pub rollout_log_prob_difference: RolloutAgreement,
    /// Importance ratios between trainer and rollout engine, used or not.
    #[serde(default)]
    pub rollout_ratios: RolloutRatios,
    pub seconds: Seconds,
    /// Response tokens per second while sampling, and while updating.
    pub rollout_tokens_per_second: f64,
    pub update_tokens_per_second: f64,
}

/// Mean value of every part over the responses that have one; a part that no response has a value for is not there.
pub fn mean_parts<'a>(scores: impl Iterator<Item = &'a Score>) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for (name, value) in scores.flat_map(|score| &score.parts) {
        if let Some(value) = value {
            let sum = sums.entry(name.clone()).or_default();
            *sum = (sum.0 + value, sum.1 + 1);
        }
    }
    sums.into_iter().map(|(name, (sum, n))| (name, sum / n as f64)).collect()
}

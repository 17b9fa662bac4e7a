//! What a step reports: its metrics, and a row for every response.

use super::align::Aligned;
use super::{Rollouts, Trainer};
use crate::reward::Score;
use crate::rl::advantage::GroupStats;
use crate::rl::batch::ResponseGroup;
use crate::rl::masking::Known;
use crate::rl::metrics::{Lengths, RolloutAgreement, Seconds, StepMetrics, mean_parts};
use crate::rl::schedule::Phase;
use crate::rollout::engine::{Completion, Finish};
use crate::tasks::problem::Problem;
use crate::verify::StatusCounts;
use anyhow::{Context, Result};
use serde::Serialize;

/// One response with its verdict, as it is written to `completions.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct CompletionRow {
    pub step: usize,
    pub problem: u64,
    pub sample: usize,
    pub prompt: String,
    pub response: String,
    pub gold: String,
    /// Reward, verdict, and the parts of the reward.
    #[serde(flatten)]
    pub score: Score,
    /// Mean over the response's tokens (the same for all of them but under Reinforce++ with a discount).
    pub advantage: f64,
    pub tokens: usize,
    pub finish: Finish,
}

/// What a step reports.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub metrics: StepMetrics,
    pub completions: Vec<CompletionRow>,
}

impl Trainer<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn metrics(
        &self,
        step: usize,
        phase: Phase,
        rollouts: &Rollouts,
        scores: &[Vec<Score>],
        aligned: &Aligned,
        agreement: RolloutAgreement,
        seconds: Seconds,
    ) -> Result<StepMetrics> {
        let (rewards, lengths) = rewards_and_lengths(rollouts, scores);
        let known = Known::of(&rewards, &lengths);
        let all: Vec<&Completion> = rollouts.completions.iter().flatten().collect();
        let lengths: Vec<usize> = all.iter().map(|c| c.ids.len()).collect();
        let tokens = lengths.iter().sum::<usize>() as f64;
        let entropy: f64 = all.iter().flat_map(|c| &c.entropies).map(|h| *h as f64).sum();
        let mut counts = StatusCounts::default();
        scores.iter().flatten().for_each(|s| counts.add(s.verdict.status));
        let mut surrogate = aligned.stats.finish().context("a step without response tokens")?;
        let updates = aligned.updates.max(1) as f64;
        Ok(StepMetrics {
            step,
            phase: phase.name().to_string(),
            policy: phase.policy().to_string(),
            rewards: GroupStats::of(&known.groups())?,
            reward_parts: mean_parts(scores.iter().flatten()),
            rewards_missing: scores.iter().flatten().filter(|s| s.reward.is_none()).count(),
            verdicts: counts,
            boxed_disagreement: None,
            truncated: all.iter().filter(|c| c.finish == Finish::Length).count() as f64 / all.len().max(1) as f64,
            prompts_truncated: rollouts.prompts_truncated,
            response_length: Lengths::of(&lengths),
            // Under a name of its own, beside the final policy's.
            entropy_policy: surrogate.entropy.take().unwrap_or(f64::NAN),
            entropy_final: entropy / tokens.max(1.0),
            loss: aligned.loss / updates,
            surrogate,
            grad_norm: aligned.grad_norm / updates,
            lr: aligned.lr,
            optimizer_steps: self.optimizer.steps,
            skipped_steps: self.optimizer.skipped,
            rollout_log_prob_difference: agreement,
            rollout_ratios: aligned.ratios,
            rollout_tokens_per_second: tokens / seconds.rollout.max(1e-9),
            update_tokens_per_second: tokens * self.settings.epochs as f64 / seconds.update.max(1e-9),
            seconds,
        })
    }

    pub(super) fn rows(
        &self,
        step: usize,
        problems: &[Problem],
        rollouts: &Rollouts,
        scores: &[Vec<Score>],
        groups: &[ResponseGroup],
    ) -> Result<Vec<CompletionRow>> {
        let mut rows = Vec::new();
        for (i, problem) in problems.iter().enumerate() {
            let prompt = self.prompts.decode_whole(&rollouts.prompts[i])?;
            for (sample, completion) in rollouts.completions[i].iter().enumerate() {
                let (score, advantages) = (&scores[i][sample], &groups[i].responses[sample].advantages);
                let sum: f64 = advantages.iter().map(|a| *a as f64).sum();
                rows.push(CompletionRow {
                    step,
                    problem: problem.id,
                    sample,
                    prompt: prompt.clone(),
                    response: self.prompts.decode_whole(&completion.ids)?,
                    gold: problem.gold.clone(),
                    score: score.clone(),
                    advantage: sum / advantages.len().max(1) as f64,
                    tokens: completion.ids.len(),
                    finish: completion.finish,
                });
            }
        }
        Ok(rows)
    }
}

pub(super) fn rewards_and_lengths(
    rollouts: &Rollouts,
    scores: &[Vec<Score>],
) -> (Vec<Vec<Option<f64>>>, Vec<Vec<usize>>) {
    let rewards = scores.iter().map(|group| group.iter().map(|score| score.reward).collect()).collect();
    let lengths = rollouts.completions.iter().map(|group| group.iter().map(|c| c.ids.len()).collect()).collect();
    (rewards, lengths)
}

pub(super) fn with_index(group: usize, responses: &[Vec<f32>]) -> impl Iterator<Item = ((usize, usize), &[f32])> {
    responses.iter().enumerate().map(move |(i, log_probs)| ((group, i), log_probs.as_slice()))
}

/// Largest and mean difference of log-probs seen while sampling and recomputed ones.
pub(super) fn agreement<'a>(
    groups: &[ResponseGroup],
    recomputed: impl Iterator<Item = ((usize, usize), &'a [f32])>,
) -> RolloutAgreement {
    let mut result = RolloutAgreement::default();
    for ((group, response), log_probs) in recomputed {
        for (a, b) in groups[group].responses[response].rollout_log_probs.iter().zip(log_probs) {
            let difference = (*a as f64 - *b as f64).abs();
            result.tokens += 1;
            result.mean += difference;
            result.max = result.max.max(difference);
        }
    }
    result.mean /= result.tokens.max(1) as f64;
    result
}

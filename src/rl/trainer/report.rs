//! What a step reports: its metrics, and a row for every response.

use super::Trainer;
use super::align::Aligned;
use super::sample::{Asked, Sampled};
use crate::policy::InternalPolicy;
use crate::reward::Score;
use crate::rl::advantage::GroupStats;
use crate::rl::batch::ResponseGroup;
use crate::rl::critic::CriticMetrics;
use crate::rl::masking::Known;
use crate::rl::metrics::{BesideMetrics, Lengths, PhaseEnd, RolloutAgreement, Seconds, StepMetrics, mean_parts};
use crate::rl::schedule::Phase;
use crate::rollout::Rollout;
use crate::rollout::engine::{Completion, Finish};
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
    /// Dynamic sampling kept its group out of the updates.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// What a step reports.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub metrics: StepMetrics,
    pub completions: Vec<CompletionRow>,
}

impl<B: Rollout> Trainer<'_, B> {
    pub(super) fn metrics(
        &self,
        step: usize,
        phase: Phase,
        sampled: &Sampled,
        aligned: &Aligned,
        critic: Option<CriticMetrics>,
        seconds: Seconds,
    ) -> Result<StepMetrics> {
        // Of everything that was asked: dropped groups are the policy's as well.
        let (rewards, lengths) = rewards_and_lengths(sampled.asked.iter());
        let known = Known::of(&rewards, &lengths);
        let all: Vec<&Completion> = sampled.completions().collect();
        let lengths: Vec<usize> = all.iter().map(|c| c.ids.len()).collect();
        let tokens = lengths.iter().sum::<usize>() as f64;
        let entropy: f64 = all.iter().flat_map(|c| &c.entropies).map(|h| *h as f64).sum();
        let mut counts = StatusCounts::default();
        sampled.scores().for_each(|s| counts.add(s.verdict.status));
        let mut surrogate = aligned.stats.finish().context("a step without response tokens")?;
        let updates = aligned.updates.max(1) as f64;
        Ok(StepMetrics {
            step,
            phase: phase.name().to_string(),
            policy: phase.objective.to_string(),
            phase_number: phase.number,
            phase_end: (phase.last_step == Some(step)).then_some(PhaseEnd::Steps),
            rewards: GroupStats::of(&known.groups())?,
            reward_parts: mean_parts(sampled.scores()),
            rewards_missing: sampled.scores().filter(|s| s.reward.is_none()).count(),
            verdicts: counts,
            boxed_disagreement: sampled.boxed_differs.map(|n| n as f64 / all.len().max(1) as f64),
            dynamic_sampling: sampled.refilling,
            truncated: all.iter().filter(|c| c.finish == Finish::Length).count() as f64 / all.len().max(1) as f64,
            prompts_truncated: sampled.asked.iter().filter(|a| a.prompt_truncated).count(),
            response_length: Lengths::of(&lengths),
            // Under a name of its own, beside the final policy's.
            entropy_policy: surrogate.entropy.take().unwrap_or(f64::NAN),
            entropy_final: entropy / tokens.max(1.0),
            // No update has a loss, an entropy bonus neither.
            loss: if sampled.is_idle() { 0.0 } else { aligned.loss / updates },
            beside: phase.objective.beside.zip(aligned.beside.finish()).map(|(beside, surrogate)| BesideMetrics {
                policy: InternalPolicy::Layer(beside.layer).to_string(),
                beta: beside.beta,
                loss: aligned.beside_loss / updates,
                surrogate,
            }),
            // Counted once for every epoch; a critic's warm-up updates no policy.
            update_tokens_per_second: match aligned.updates {
                0 => 0.0,
                _ => surrogate.tokens as f64 / seconds.update.max(1e-9),
            },
            surrogate,
            critic,
            grad_norm: aligned.grad_norm / updates,
            lr: aligned.lr,
            optimizer_steps: self.optimizer.steps,
            skipped_steps: self.optimizer.skipped,
            rollout_log_prob_difference: if phase.is_internal() { aligned.probe } else { aligned.agreement },
            rollout_ratios: aligned.ratios,
            rollout_tokens_per_second: tokens / seconds.rollout.max(1e-9),
            seconds,
        })
    }

    pub(super) fn rows(&self, step: usize, sampled: &Sampled, groups: &[ResponseGroup]) -> Result<Vec<CompletionRow>> {
        let (mut rows, mut kept) = (Vec::new(), sampled.kept.iter().zip(groups).peekable());
        for (i, asked) in sampled.asked.iter().enumerate() {
            let prompt = self.prompts.decode_whole(&asked.prompt)?;
            let group = kept.next_if(|(at, _)| **at == i).map(|(_, group)| group);
            for (sample, completion) in asked.completions.iter().enumerate() {
                let advantages = group.map_or(&[][..], |g| &g.responses[sample].advantages);
                let sum: f64 = advantages.iter().map(|a| *a as f64).sum();
                rows.push(CompletionRow {
                    step,
                    problem: asked.problem.id,
                    sample,
                    prompt: prompt.clone(),
                    response: self.prompts.decode_whole(&completion.ids)?,
                    gold: asked.problem.gold.clone(),
                    score: asked.scores[sample].clone(),
                    advantage: sum / advantages.len().max(1) as f64,
                    tokens: completion.ids.len(),
                    finish: completion.finish,
                    dropped: group.is_none(),
                });
            }
        }
        Ok(rows)
    }
}

pub(super) fn rewards_and_lengths<'a>(
    asked: impl Iterator<Item = &'a Asked>,
) -> (Vec<Vec<Option<f64>>>, Vec<Vec<usize>>) {
    let rewards = |a: &Asked| a.scores.iter().map(|score| score.reward).collect();
    let lengths = |a: &Asked| a.completions.iter().map(|c| c.ids.len()).collect();
    asked.map(|a| (rewards(a), lengths(a))).unzip()
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

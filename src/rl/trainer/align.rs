//! The updates of one step: what must be known before the first, then mini-batch by mini-batch.

use super::Trainer;
use super::report::{agreement, with_index};
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::rl::batch::{Response, ResponseGroup};
use crate::rl::correction::{CorrectionMode, RolloutRatios};
use crate::rl::loss::{LossConfig, LossStats, Tokens, surrogate, weights};
use crate::rl::metrics::RolloutAgreement;
use crate::rl::schedule::Phase;
use crate::rl::selection::top_entropy;
use crate::rl::update::{Before, Beside, LogProbs, PerToken, Scored, UpdateSettings, score_groups, update};
use crate::rollout::Rollout;
use anyhow::Result;
use std::ops::Range;
use std::time::Instant;

/// Sums over the mini-batches of one step.
#[derive(Default)]
pub(super) struct Aligned {
    pub updates: usize,
    pub loss: f64,
    pub grad_norm: f64,
    pub lr: f64,
    pub stats: LossStats,
    /// Of the policy beside, in a joint phase.
    pub beside_loss: f64,
    pub beside: LossStats,
    pub old_seconds: f64,
    /// Rollout log-probs against the first update's forward, and (internal phase) against a final-policy forward.
    pub agreement: RolloutAgreement,
    pub probe: RolloutAgreement,
    pub ratios: RolloutRatios,
}

impl<B: Rollout> Trainer<'_, B> {
    /// The mini-batch updates of one step of the policy (counted from the end of the critic's warm-up), on the phase's policy.
    pub(super) fn align(&mut self, step: usize, phase: Phase, groups: &[ResponseGroup]) -> Result<Aligned> {
        let s = &self.settings;
        let trained = self.optimizer.trained(&self.model.layout, phase.policy().tap());
        let settings = UpdateSettings {
            policy: phase.policy(),
            beside: phase.objective.beside,
            trained: &trained,
            temperature: s.sampling.head_temperature(),
            loss: &s.loss,
            max_new_tokens: s.sampling.max_new_tokens,
            micro_batch_tokens: s.micro_batch_tokens,
            keep: s.keep(),
        };
        let mini_batches = s.mini_batches(groups.len());
        let first = 0..s.mini_batch_prompts.min(groups.len());
        let mut aligned = Aligned::default();

        let old_start = Instant::now();
        // The first mini-batch meets the policy as it was while sampling: its own log-probs are the old ones.
        let mut old = Scored::of(groups);
        let scored_from = if s.loss.needs_scores_first() { 0 } else { first.end };
        if scored_from < groups.len() {
            score_groups(&self.model, &mut self.workspace, groups, scored_from..groups.len(), &settings, &mut old);
        }
        let mut old_beside = Scored::of(groups);
        if let Some(Beside { layer, .. }) = phase.objective.beside.filter(|_| scored_from < groups.len()) {
            let settings = UpdateSettings { policy: InternalPolicy::Layer(layer), ..settings };
            let range = scored_from..groups.len();
            score_groups(&self.model, &mut self.workspace, groups, range, &settings, &mut old_beside);
        }
        let scored_by = |model: &Model<B>| {
            let (mut workspace, mut out) = (Workspace::new(model), Scored::of(groups));
            score_groups(model, &mut workspace, groups, 0..groups.len(), &settings, &mut out);
            out.log_probs
        };
        let reference = match &self.reference {
            _ if s.loss.kl_coef == 0.0 => None,
            Some(model) => Some(scored_by(model)),
            None => Some(self.model.without_adapter(scored_by)),
        };
        let correction = &s.loss.rollout_correction;
        // In the internal phase the sampling policy is not the optimized one, and is scored beside it.
        let sampling = if phase.is_internal() {
            let (settings, mut out) =
                (UpdateSettings { policy: InternalPolicy::Final, ..settings }, Scored::of(groups));
            let range = if correction.mode == CorrectionMode::Off { first.clone() } else { 0..groups.len() };
            score_groups(&self.model, &mut self.workspace, groups, range, &settings, &mut out);
            aligned.probe = agreement(groups, first.clone().flat_map(|g| with_index(g, &out.log_probs[g])));
            Some(out)
        } else {
            None
        };
        let factors = factors(&s.loss, groups, &mini_batches, &old, sampling.as_ref().unwrap_or(&old));
        aligned.old_seconds = old_start.elapsed().as_secs_f64();

        let total_updates = (s.steps - s.critic_warmup().min(s.steps)) * s.updates_per_step();
        for (i, range) in (0..s.epochs).flat_map(|_| mini_batches.iter()).enumerate() {
            // Without a response that has a reward there is no loss, and no step to take, as for the critic.
            if groups[range.clone()].iter().all(|g| g.seen().next().is_none()) {
                continue;
            }
            let lr = s.optimizer.lr_at(s.lr, (step - 1) * s.updates_per_step() + i, total_updates);
            let own_is_old = i == 0 && scored_from > 0;
            let before = Before {
                old: (!own_is_old).then_some(&old.log_probs),
                old_beside: (!own_is_old).then_some(&old_beside.log_probs),
                reference: reference.as_ref(),
                factors: factors.as_ref(),
            };
            let (gradient, outcome) = update(
                &mut self.model,
                &mut self.workspace,
                &mut self.optimizer,
                groups,
                range.clone(),
                &settings,
                before,
                &s.optimizer,
                lr,
                &mut self.grads,
            )?;
            if i == 0 {
                let seen = gradient.log_probs.iter().map(|(at, log_probs)| (*at, log_probs.as_slice()));
                aligned.agreement = agreement(groups, seen);
                for ((group, response), log_probs) in gradient.log_probs {
                    old.log_probs[group][response] = log_probs;
                }
            }
            if let Some(beside) = gradient.beside {
                aligned.beside_loss += beside.loss;
                aligned.beside.merge(&beside.stats);
                for ((group, response), log_probs) in beside.log_probs.into_iter().filter(|_| i == 0) {
                    old_beside.log_probs[group][response] = log_probs;
                }
            }
            aligned.updates += 1;
            aligned.loss += gradient.loss;
            aligned.grad_norm += outcome.grad_norm;
            aligned.lr = outcome.lr;
            aligned.stats.merge(&gradient.stats);
        }
        let sampling = sampling.as_ref().unwrap_or(&old);
        aligned.ratios = RolloutRatios::of(groups, &sampling.log_probs, correction.cap);
        Ok(aligned)
    }
}

impl<B: Rollout> Trainer<'_, B> {
    /// A step in which the policy stays as it is (a critic's warm-up, or nothing to learn from): what its updates would have begun with,
    /// from one forward.
    pub(super) fn watch(&mut self, phase: Phase, groups: &[ResponseGroup]) -> Result<Aligned> {
        let s = &self.settings;
        // Where nothing has moved there is no distance from the reference either.
        let loss = LossConfig { kl_coef: 0.0, ..s.loss.clone() };
        let settings = UpdateSettings {
            policy: phase.policy(),
            beside: None,
            trained: &self.optimizer.trained(&self.model.layout, phase.policy().tap()),
            temperature: s.sampling.head_temperature(),
            loss: &loss,
            max_new_tokens: s.sampling.max_new_tokens,
            micro_batch_tokens: s.micro_batch_tokens,
            keep: s.keep(),
        };
        let (start, all) = (Instant::now(), 0..groups.len());
        let mut of_policy = Scored::of(groups);
        score_groups(&self.model, &mut self.workspace, groups, all.clone(), &settings, &mut of_policy);
        let mut aligned = Aligned::default();
        let sampling = if phase.is_internal() {
            let (settings, mut out) =
                (UpdateSettings { policy: InternalPolicy::Final, ..settings }, Scored::of(groups));
            score_groups(&self.model, &mut self.workspace, groups, all.clone(), &settings, &mut out);
            out
        } else {
            of_policy.clone()
        };
        aligned.agreement = agreement(groups, all.flat_map(|g| with_index(g, &sampling.log_probs[g])));
        aligned.probe = aligned.agreement;
        aligned.ratios = RolloutRatios::of(groups, &sampling.log_probs, loss.rollout_correction.cap);

        let responses: Vec<&Response> = groups.iter().flat_map(ResponseGroup::seen).collect();
        let lengths: Vec<usize> = responses.iter().map(|r| r.ids.len()).collect();
        let weights = weights(loss.aggregation, &lengths, settings.max_new_tokens);
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end - n..*end)
        });
        let flat = |of: &LogProbs| of.iter().flatten().flatten().copied().collect::<Vec<f32>>();
        let (log_probs, entropies) = (flat(&of_policy.log_probs), flat(&of_policy.entropies));
        let surrogate = surrogate(
            &loss,
            &Tokens {
                log_probs: &log_probs,
                old_log_probs: &log_probs,
                advantages: &responses.iter().flat_map(|r| &r.advantages).copied().collect::<Vec<_>>(),
                weights: &weights.iter().zip(&lengths).flat_map(|(w, n)| vec![*w; *n]).collect::<Vec<_>>(),
                entropies: Some(&entropies),
                ref_log_probs: None,
                factors: None,
                responses: Some(&ends.collect::<Vec<_>>()),
            },
        )?;
        (aligned.loss, aligned.stats) = (surrogate.loss, surrogate.stats);
        aligned.old_seconds = start.elapsed().as_secs_f64();
        Ok(aligned)
    }
}

/// Factors on every token's policy term, where there are any. `old` was scored under the optimized policy, `sampling` under
/// the final one, both before the step's first update.
fn factors(
    loss: &LossConfig,
    groups: &[ResponseGroup],
    mini_batches: &[Range<usize>],
    old: &Scored,
    sampling: &Scored,
) -> Option<PerToken<f64>> {
    if !loss.needs_scores_first() {
        return None;
    }
    let mut factors: PerToken<f64> = Vec::with_capacity(groups.len());
    for (group, trainer) in groups.iter().zip(&sampling.log_probs) {
        let weights = group.responses.iter().zip(trainer).map(|(response, trainer)| {
            let weights = loss.rollout_correction.weights(trainer, &response.rollout_log_probs);
            weights.unwrap_or_else(|| vec![1.0; if response.masked { 0 } else { response.ids.len() }])
        });
        factors.push(weights.collect());
    }
    if loss.top_entropy_quantile < 1.0 {
        for range in mini_batches {
            let chosen = top_entropy(&old.entropies, range.clone(), loss.top_entropy_quantile);
            let tokens = factors[range.clone()].iter_mut().flatten().flatten();
            for (factor, chosen) in tokens.zip(chosen.into_iter().flatten().flatten()) {
                *factor = if chosen { *factor } else { 0.0 };
            }
        }
    }
    Some(factors)
}

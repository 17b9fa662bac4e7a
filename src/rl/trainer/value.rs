//! The critic's part of a step: what it expects, advantages from it, and its updates.

use super::Trainer;
use super::sample::Sampled;
use crate::rl::batch::ResponseGroup;
use crate::rl::critic::{CriticMetrics, Expected, ValueSettings, ValueStats, explained_variance};
use crate::rl::gae::estimate;
use crate::rl::metrics::Seconds;
use crate::rollout::Rollout;
use anyhow::{Context, Result};
use std::time::Instant;

impl<B: Rollout> Trainer<'_, B> {
    /// Fills in the advantages of all responses from the critic's values, then updates the critic, mini-batch by mini-batch as the
    /// policy. `groups` are the watched ones of what was sampled. The critic reads its own final states, whichever policy the step optimizes.
    pub(super) fn assess(
        &mut self,
        step: usize,
        sampled: &Sampled,
        groups: &mut [ResponseGroup],
        seconds: &mut Seconds,
    ) -> Result<CriticMetrics> {
        let (start, s) = (Instant::now(), &self.settings);
        let critic = self.critic.as_mut().context("rl.advantage = \"gae\" needs a critic")?;
        let config = s.critic.as_ref().context("a critic needs its settings")?;
        let values = critic.values(&mut self.workspace, groups, s.micro_batch_tokens)?;
        let watched = sampled.watched();
        let rewards = watched.iter().flat_map(|i| sampled.asked[*i].scores.iter().map(|score| score.reward));
        let flat: Vec<&[f32]> = values.iter().flatten().map(Vec::as_slice).collect();
        let estimated = estimate(&flat, &rewards.collect::<Vec<_>>(), s.gamma, config.lambda)?;
        let (mut advantages, mut returns) = (estimated.advantages.into_iter(), estimated.returns.into_iter());
        // Those of what was dropped stay 0.
        for response in groups.iter_mut().flat_map(|g| &mut g.responses).filter(|_| !sampled.is_idle()) {
            response.advantages = advantages.next().unwrap_or_default();
        }
        let returns = groups.iter().map(|g| returns.by_ref().take(g.responses.len()).collect()).collect();
        let before = Expected { values, returns };

        let settings = ValueSettings {
            value_clip: config.value_clip,
            aggregation: s.loss.aggregation,
            max_new_tokens: s.sampling.max_new_tokens,
            micro_batch_tokens: s.micro_batch_tokens,
            keep: s.keep(),
        };
        let mini_batches = s.mini_batches(groups.len());
        let (per_step, total) = (s.updates_per_step(), s.steps * s.updates_per_step());
        let (mut stats, mut metrics, mut updates) = (ValueStats::default(), measured(&before), 0usize);
        for (i, range) in (0..s.epochs).flat_map(|_| mini_batches.iter()).enumerate() {
            if sampled.is_idle() || before.returns[range.clone()].iter().flatten().all(Option::is_none) {
                continue;
            }
            let lr = config.optimizer.lr_at(config.lr, (step - 1) * per_step + i, total);
            let (loss, outcome) = critic.update(
                &mut self.workspace,
                groups,
                range.clone(),
                &settings,
                &before,
                config,
                lr,
                &mut self.grads,
            )?;
            updates += 1;
            stats.tokens += loss.stats.tokens;
            stats.clipped += loss.stats.clipped;
            metrics.value_loss += loss.loss;
            metrics.grad_norm += outcome.grad_norm;
            metrics.lr = outcome.lr;
        }
        metrics.warming_up = step <= config.warmup_steps;
        metrics.value_loss /= updates.max(1) as f64;
        metrics.grad_norm /= updates.max(1) as f64;
        metrics.value_clip_fraction = stats.clipped as f64 / stats.tokens.max(1) as f64;
        metrics.optimizer_steps = critic.optimizer.steps;
        metrics.skipped_steps = critic.optimizer.skipped;
        seconds.critic = Some(start.elapsed().as_secs_f64());
        Ok(metrics)
    }
}

/// What the values and returns say before the critic moves.
fn measured(before: &Expected) -> CriticMetrics {
    let responses = before.values.iter().flatten().zip(before.returns.iter().flatten());
    let known = responses.filter_map(|(values, returns)| Some((values, returns.as_ref()?)));
    let pairs: Vec<(f64, f64)> =
        known.flat_map(|(v, r)| v.iter().zip(r).map(|(v, r)| (*v as f64, *r as f64))).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / pairs.len().max(1) as f64;
    CriticMetrics {
        value_mean: mean(|pair| pair.0),
        return_mean: mean(|pair| pair.1),
        explained_variance: explained_variance(&pairs),
        ..CriticMetrics::default()
    }
}

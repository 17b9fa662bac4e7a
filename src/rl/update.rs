//! One mini-batch: micro-batches forward and backward, then one optimizer step.

use super::adamw::{Optimizer, StepOutcome};
use super::batch::{MicroBatch, Response, ResponseGroup, micro_batches};
use super::loss::{LossConfig, LossStats, Tokens, surrogate, weights};
use super::optimizer::OptimizerConfig;
use crate::compute::Backend;
use crate::compute::backend::{HeadStats, RowGradients};
use crate::model::{Keep, Model, Trained, Workspace};
use crate::policy::{InternalPolicy, LayerIndex, Part, Pass};
use anyhow::Result;
use std::ops::Range;

/// What an update needs beside the batch.
#[derive(Clone, Copy, Debug)]
pub struct UpdateSettings<'a> {
    pub policy: InternalPolicy,
    /// Another policy whose loss is added.
    pub beside: Option<Beside>,
    /// What gets a gradient ([`Optimizer::trained`]).
    pub trained: &'a Trained,
    pub temperature: f32,
    pub loss: &'a LossConfig,
    /// The `seq-mean-token-sum-norm` aggregation's constant.
    pub max_new_tokens: usize,
    pub micro_batch_tokens: usize,
    /// [`Keep::Activations`], or [`Keep::LayerInputs`] to recompute.
    pub keep: Keep,
}

/// A layer's policy that is optimized beside the one above it: `loss = policy's + beta * layer's`, from one forward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beside {
    pub layer: LayerIndex,
    pub beta: f64,
}

/// One value for every response's tokens: `[group][response][token]`.
pub type PerToken<T> = Vec<Vec<Vec<T>>>;
/// Log-probs (or entropies) of every response's tokens.
pub type LogProbs = PerToken<f32>;

/// What is known of the tokens before an update.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'a> {
    /// Log-probs under the optimized policy before the step's first update. Without them it has not moved since, and its own
    /// log-probs are the old ones.
    pub old: Option<&'a LogProbs>,
    /// The same of the policy beside.
    pub old_beside: Option<&'a LogProbs>,
    /// Log-probs under the frozen reference.
    pub reference: Option<&'a LogProbs>,
    /// Factors on the policy terms: rollout correction, selection.
    pub factors: Option<&'a PerToken<f64>>,
}

/// What a scoring pass finds.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    pub log_probs: LogProbs,
    /// In nats.
    pub entropies: LogProbs,
}

impl Scored {
    /// Room for the tokens of some groups, nothing scored yet.
    pub fn of(groups: &[ResponseGroup]) -> Scored {
        let empty = || groups.iter().map(|g| vec![Vec::new(); g.responses.len()]).collect();
        Scored { log_probs: empty(), entropies: empty() }
    }
}

/// The loss and gradient of one mini-batch.
#[derive(Debug, Default)]
pub struct Gradient {
    pub loss: f64,
    pub stats: LossStats,
    /// Log-probs under the optimized policy, as this mini-batch's forward found them, by (group, response).
    pub log_probs: Vec<((usize, usize), Vec<f32>)>,
    pub beside: Option<BesideGradient>,
}

/// What is watched of the policy beside. Its part of the loss, `beta` included, is in the whole's.
#[derive(Debug, Default)]
pub struct BesideGradient {
    pub loss: f64,
    pub stats: LossStats,
    pub log_probs: Vec<((usize, usize), Vec<f32>)>,
}

/// Log-probs and entropies of the responses of `groups[range]` under a policy, written to `out` at `[group][response]`.
pub fn score_groups<B: Backend>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    groups: &[ResponseGroup],
    range: Range<usize>,
    settings: &UpdateSettings<'_>,
    out: &mut Scored,
) {
    for batch in micro_batches(groups, range, settings.micro_batch_tokens) {
        let stats = settings.policy.score(model, ws, &batch.packing, &batch.targets, settings.temperature);
        for (group, response, range) in &batch.members {
            out.log_probs[*group][*response] = stats.log_probs[range.clone()].to_vec();
            out.entropies[*group][*response] = stats.entropy[range.clone()].to_vec();
        }
    }
}

/// Gradient of the surrogate over `groups[range]`, added to `grads`. Exact over the mini-batch: micro-batches change
/// it only by rounding. What is masked has no part in it: it is that of the batch without.
#[allow(clippy::too_many_arguments)]
pub fn mini_batch_gradient<B: Backend>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    groups: &[ResponseGroup],
    range: Range<usize>,
    settings: &UpdateSettings<'_>,
    before: Before<'_>,
    grads: &mut B::Array,
) -> Result<Gradient> {
    // Denominators count what has a reward only, as the critic's.
    let lengths: Vec<usize> = groups[range.clone()].iter().flat_map(|g| g.seen().map(|r| r.ids.len())).collect();
    let mut seen = weights(settings.loss.aggregation, &lengths, settings.max_new_tokens).into_iter();
    let mut weight = |r: &Response| if r.masked { 0.0 } else { seen.next().unwrap_or(0.0) };
    let per_response: Vec<Vec<f64>> =
        groups[range.clone()].iter().map(|g| g.responses.iter().map(&mut weight).collect()).collect();
    let whole = settings.loss.needs_whole_responses();
    // KL and entropy belong to the policy that samples.
    let policy_alone = LossConfig { kl_coef: 0.0, entropy_coef: 0.0, ..settings.loss.clone() };
    let mut total = Gradient { beside: settings.beside.map(|_| BesideGradient::default()), ..Gradient::default() };
    for batch in micro_batches(groups, range.clone(), settings.micro_batch_tokens) {
        let MicroBatch { packing, targets, members } = &batch;
        let of_tokens = |all: &LogProbs| batch.tokens(|g, r| &all[g][r]);
        let (old, old_beside) = (before.old.map(of_tokens), before.old_beside.map(of_tokens));
        let reference = before.reference.map(of_tokens);
        let factors = before.factors.map(|factors| batch.tokens(|g, r| &factors[g][r]));
        let advantages = batch.tokens(|g, r| &groups[g].responses[r].advantages);
        let responses: Vec<Range<usize>> = members.iter().map(|(_, _, range)| range.clone()).collect();
        let mut token_weights = Vec::with_capacity(targets.len());
        for (group, response, at) in members {
            token_weights.extend(at.clone().map(|_| per_response[group - range.start][*response]));
        }
        let loss = |part: Part, rows: Range<usize>, of_rows: &HeadStats| -> Result<RowGradients> {
            let old = if part == Part::Policy { &old } else { &old_beside };
            let tokens = Tokens {
                log_probs: &of_rows.log_probs,
                old_log_probs: old.as_ref().map_or(&of_rows.log_probs, |old| &old[rows.clone()]),
                advantages: &advantages[rows.clone()],
                weights: &token_weights[rows.clone()],
                entropies: Some(&of_rows.entropy),
                ref_log_probs: reference.as_ref().filter(|_| part == Part::Policy).map(|r| &r[rows.clone()]),
                factors: factors.as_ref().map(|f| &f[rows]),
                responses: whole.then_some(&responses),
            };
            match (part, &mut total.beside, settings.beside) {
                (Part::Beside, Some(beside), Some(Beside { beta, .. })) => {
                    let s = surrogate(&policy_alone, &tokens)?;
                    beside.loss += s.loss;
                    beside.stats.merge(&s.stats);
                    total.loss += beta * s.loss;
                    let d_log_probs = s.d_log_probs.into_iter().map(|d| (beta * f64::from(d)) as f32).collect();
                    Ok(RowGradients { d_log_probs, d_entropies: Vec::new() })
                }
                _ => {
                    let s = surrogate(settings.loss, &tokens)?;
                    total.loss += s.loss;
                    total.stats.merge(&s.stats);
                    Ok(RowGradients { d_log_probs: s.d_log_probs, d_entropies: s.d_entropies.unwrap_or_default() })
                }
            }
        };
        let UpdateSettings { policy, beside, temperature, keep, trained, .. } = *settings;
        let pass = Pass { temperature, keep, whole, trained };
        let layer = beside.map(|b| b.layer);
        let (stats, below) = policy.joint_gradient(layer, model, ws, packing, targets, pass, grads, loss)?;
        for (group, response, range) in members {
            let at = (*group, *response);
            total.log_probs.push((at, stats.log_probs[range.clone()].to_vec()));
            if let Some((beside, below)) = total.beside.as_mut().zip(below.as_ref()) {
                beside.log_probs.push((at, below.log_probs[range.clone()].to_vec()));
            }
        }
    }
    Ok(total)
}

/// One optimizer step on a mini-batch. `grads`, as long as [`crate::model::ParamLayout::trainable`], is scratch.
#[allow(clippy::too_many_arguments)]
pub fn update<B: Backend>(
    model: &mut Model<B>,
    ws: &mut Workspace<B>,
    optimizer: &mut Optimizer<B>,
    groups: &[ResponseGroup],
    range: Range<usize>,
    settings: &UpdateSettings<'_>,
    before: Before<'_>,
    config: &OptimizerConfig,
    lr: f64,
    grads: &mut B::Array,
) -> Result<(Gradient, StepOutcome)> {
    let from = model.layout.trainable().start;
    for run in settings.trained.runs() {
        model.backend.zero_part(B::part(grads, run.start - from..run.end - from));
    }
    let gradient = mini_batch_gradient(model, ws, groups, range, settings, before, grads)?;
    let outcome = optimizer.step(model, grads, settings.trained, config, lr);
    model.backend.status()?;
    Ok((gradient, outcome))
}

//! PPO's critic: a value model beside the policy, what it expects of every response token, and its updates.

mod config;
mod loss;

pub use config::CriticConfig;
pub use loss::{CriticMetrics, ValueStats, ValueTerm, explained_variance, value_term};

use super::adamw::{Optimizer, StepOutcome};
use super::batch::{MicroBatch, ResponseGroup, micro_batches};
use super::groups::lr_scales;
use super::loss::{Aggregation, weights};
use super::update::{LogProbs, PerToken};
use crate::compute::Backend;
use crate::compute::cpu::Cpu;
use crate::model::{Keep, Model, Tap, Trained, Workspace};
use anyhow::{Context, Result};
use std::ops::Range;

/// The value model and its optimizer.
#[derive(Debug)]
pub struct Critic<B: Backend = Cpu> {
    pub model: Model<B>,
    pub optimizer: Optimizer<B>,
}

/// What a value update needs beside the batch.
#[derive(Clone, Copy, Debug)]
pub struct ValueSettings {
    pub value_clip: f64,
    pub aggregation: Aggregation,
    /// The `seq-mean-token-sum-norm` aggregation's constant.
    pub max_new_tokens: usize,
    pub micro_batch_tokens: usize,
    /// [`Keep::Activations`], or [`Keep::LayerInputs`] to recompute.
    pub keep: Keep,
}

/// What is known of the tokens before a step's first value update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    pub values: PerToken<f32>,
    /// What the values should have been, `[group][response]`; none where there is no reward, and then nothing is learned.
    pub returns: Vec<Vec<Option<Vec<f32>>>>,
}

/// The loss of one mini-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueLoss {
    pub loss: f64,
    pub stats: ValueStats,
}

impl Critic {
    /// A critic that begins as the policy's decoder, expecting 0 everywhere.
    pub fn beside(policy: &Model, config: &CriticConfig) -> Result<Critic> {
        Critic::new(policy.value_model(), config)
    }

    /// Of a value model, with nothing learned yet. Errors: parameter groups that the model does not have.
    pub fn new(model: Model, config: &CriticConfig) -> Result<Critic> {
        let scales = lr_scales(&config.optimizer.group, &model.layout).context("critic.optimizer")?;
        let optimizer = Optimizer::with_scales(&model.layout, scales);
        Ok(Critic { model, optimizer })
    }

    /// The same critic on a device.
    pub fn on<B: Backend>(self, backend: &B) -> Critic<B> {
        Critic { model: self.model.on(backend.clone()), optimizer: self.optimizer.on(backend) }
    }
}

impl<B: Backend> Critic<B> {
    fn trained(&self) -> Trained {
        self.optimizer.trained(&self.model.layout, Tap::Final)
    }

    /// Values of the states before every response token, `[group][response][token]`.
    pub fn values(
        &self,
        ws: &mut Workspace<B>,
        groups: &[ResponseGroup],
        micro_batch_tokens: usize,
    ) -> Result<LogProbs> {
        let mut out: LogProbs = groups.iter().map(|g| vec![Vec::new(); g.responses.len()]).collect();
        for batch in micro_batches(groups, 0..groups.len(), micro_batch_tokens) {
            let values = self.model.values(ws, &batch.packing, &batch.targets.rows)?;
            for (group, response, range) in &batch.members {
                out[*group][*response] = values[range.clone()].to_vec();
            }
        }
        Ok(out)
    }

    /// Gradient of the clipped value loss over `groups[range]`, added to `grads`. Exact over the mini-batch: micro-batches change
    /// it only by rounding.
    pub fn mini_batch_gradient(
        &self,
        ws: &mut Workspace<B>,
        groups: &[ResponseGroup],
        range: Range<usize>,
        settings: &ValueSettings,
        before: &Expected,
        grads: &mut B::Array,
    ) -> Result<ValueLoss> {
        // Denominators count what has a reward only.
        let known = range.clone().flat_map(|g| before.returns[g].iter().flatten().map(Vec::len));
        let mut per_response =
            weights(settings.aggregation, &known.collect::<Vec<_>>(), settings.max_new_tokens).into_iter();
        let weights: Vec<Vec<f64>> = range
            .clone()
            .map(|g| {
                before.returns[g]
                    .iter()
                    .map(|r| r.as_ref().map_or(0.0, |_| per_response.next().unwrap_or(0.0)))
                    .collect()
            })
            .collect();
        let (trained, mut total) = (self.trained(), ValueLoss::default());
        for batch in micro_batches(groups, range.clone(), settings.micro_batch_tokens) {
            let MicroBatch { packing, targets, members } = &batch;
            let loss = |values: &[f32]| {
                let mut d_values = vec![0f32; values.len()];
                for (group, response, at) in members {
                    let Some(returns) = &before.returns[*group][*response] else { continue };
                    let weight = weights[group - range.start][*response];
                    let tokens = values[at.clone()].iter().zip(&before.values[*group][*response]).zip(returns);
                    for (d, ((value, old), target)) in d_values[at.clone()].iter_mut().zip(tokens) {
                        let term = value_term(*value as f64, *old as f64, *target as f64, settings.value_clip);
                        total.loss += weight * term.loss;
                        total.stats.tokens += 1;
                        total.stats.clipped += usize::from(term.clipped);
                        *d = (weight * term.d_value) as f32;
                    }
                }
                d_values
            };
            self.model.value_gradient(ws, packing, &targets.rows, settings.keep, &trained, grads, loss)?;
        }
        Ok(total)
    }

    /// One optimizer step on a mini-batch. `grads`, as long as the parameters or longer, is scratch.
    #[allow(clippy::too_many_arguments)]
    pub fn update(
        &mut self,
        ws: &mut Workspace<B>,
        groups: &[ResponseGroup],
        range: Range<usize>,
        settings: &ValueSettings,
        before: &Expected,
        config: &CriticConfig,
        lr: f64,
        grads: &mut B::Array,
    ) -> Result<(ValueLoss, StepOutcome)> {
        self.model.backend.zero_part(B::part(grads, 0..self.model.layout.len()));
        let trained = self.trained();
        let loss = self.mini_batch_gradient(ws, groups, range, settings, before, grads)?;
        let outcome = self.optimizer.step(&mut self.model, grads, &trained, &config.optimizer, lr);
        Ok((loss, outcome))
    }
}

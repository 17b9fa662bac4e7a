//! Supervised learning: the likelihood of what is to be imitated, worked solutions in a warm-up or a user's examples.
//!
//! The loss is the mean negative log-likelihood of the trained tokens, through the same packed forward and backward
//! that RL uses: it is the surrogate's gradient with `d loss / d log_prob = -1 / N`.

use super::adamw::{Optimizer, StepOutcome};
use super::optimizer::OptimizerConfig;
use crate::compute::backend::{HeadStats, RowGradients};
use crate::compute::{Backend, Packing};
use crate::model::{Keep, Model, Tap, Workspace};
use crate::policy::{InternalPolicy, Pass, Targets};
use crate::tasks::problem::Problem;
use crate::text::prompt::PromptEncoder;
use anyhow::{Context, Result, ensure};
use std::ops::Range;

/// One sequence, and which of its tokens are imitated; all others are only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Ascending, not empty; none begins at 0, as the first token is predicted by nothing.
    pub trained: Vec<Range<usize>>,
}

impl Example {
    /// From a problem with a worked solution: prompt, response, end token.
    pub fn of(problem: &Problem, prompts: &PromptEncoder) -> Result<Example> {
        let worked = problem.worked.as_deref().with_context(|| {
            format!(
                "problem {} of {} has no worked solution: the warm-up needs one for each",
                problem.id, problem.source
            )
        })?;
        let mut ids = prompts.encode(&problem.messages)?.ids;
        let start = ids.len();
        ids.extend(prompts.encode_response(worked)?);
        ids.push(*prompts.eos_ids().first().context("the tokenizer names no end-of-sequence token for the warm-up")?);
        Ok(Example { trained: std::iter::once(start..ids.len()).collect(), ids })
    }

    /// Tokens that are imitated.
    pub fn tokens(&self) -> usize {
        self.trained.iter().map(Range::len).sum()
    }

    /// Rows that it is packed into: the last trained token is predicted, but predicts nothing.
    pub fn rows(&self) -> usize {
        self.trained.last().map_or(0, |last| last.end - 1)
    }
}

/// What one supervised step did. Means are over the step's trained tokens.
#[derive(Clone, Copy, Debug)]
pub struct SupervisedStep {
    /// Negative log-likelihood before the step, in nats.
    pub loss: f64,
    /// Entropy of the distributions that the tokens came from, in nats.
    pub entropy: f64,
    pub outcome: StepOutcome,
}

/// How a step runs. What it changes is memory and speed, not the gradient.
#[derive(Clone, Copy, Debug)]
pub struct SupervisedSettings {
    /// Packed tokens of one forward and backward.
    pub micro_batch_tokens: usize,
    /// [`Keep::Activations`], or [`Keep::LayerInputs`] to recompute.
    pub keep: Keep,
}

/// Examples packed without padding into micro-batches of at most `max_tokens` rows each (a longer one stands alone).
fn micro_batches(examples: &[Example], max_tokens: usize) -> Vec<(Packing, Targets)> {
    let mut batches: Vec<(Packing, Targets)> = Vec::new();
    for example in examples {
        let rows = example.rows();
        if batches.last().is_none_or(|(packing, _)| packing.rows() + rows > max_tokens) {
            batches.push((Packing::new(), Targets::default()));
        }
        let Some((packing, targets)) = batches.last_mut() else { continue };
        let start = packing.push(&example.ids[..rows]).start;
        for span in &example.trained {
            targets.push_continuation(&example.ids[span.clone()], start + span.start - 1, start + span.start);
        }
    }
    batches
}

/// One supervised step. `grads`, as long as [`crate::model::ParamLayout::trainable`], is scratch.
#[allow(clippy::too_many_arguments)]
pub fn supervised_step<B: Backend>(
    model: &mut Model<B>,
    ws: &mut Workspace<B>,
    optimizer: &mut Optimizer<B>,
    examples: &[Example],
    settings: &SupervisedSettings,
    config: &OptimizerConfig,
    lr: f64,
    grads: &mut B::Array,
) -> Result<SupervisedStep> {
    let tokens: usize = examples.iter().map(Example::tokens).sum();
    ensure!(tokens > 0, "a supervised step without a token to imitate: raise the batch");
    model.backend.zero(grads);
    let (mut loss, mut entropy) = (0f64, 0f64);
    let trained = optimizer.trained(&model.layout, Tap::Final);
    for (packing, targets) in micro_batches(examples, settings.micro_batch_tokens) {
        let likelihood = |_, stats: &HeadStats| -> Result<RowGradients> {
            let d_log_probs = vec![-1.0 / tokens as f32; stats.log_probs.len()];
            Ok(RowGradients { d_log_probs, d_entropies: Vec::new() })
        };
        let pass = Pass { temperature: 1.0, keep: settings.keep, whole: false, trained: &trained };
        let stats = InternalPolicy::Final.gradient(model, ws, &packing, &targets, pass, grads, likelihood)?;
        loss -= stats.log_probs.iter().map(|p| *p as f64).sum::<f64>();
        entropy += stats.entropy.iter().map(|h| *h as f64).sum::<f64>();
    }
    let outcome = optimizer.step(model, grads, &trained, config, lr);
    model.backend.status()?;
    Ok(SupervisedStep { loss: loss / tokens as f64, entropy: entropy / tokens as f64, outcome })
}

/// Mean negative log-likelihood of the trained tokens of `examples`, in nats; NaN for none.
pub fn supervised_loss<B: Backend>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    examples: &[Example],
    micro_batch_tokens: usize,
) -> f64 {
    let (mut loss, mut tokens) = (0f64, 0);
    for (packing, targets) in micro_batches(examples, micro_batch_tokens) {
        let stats = InternalPolicy::Final.score(model, ws, &packing, &targets, 1.0);
        loss -= stats.log_probs.iter().map(|p| *p as f64).sum::<f64>();
        tokens += targets.len();
    }
    loss / tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_trained_token_is_a_target_once_and_rows_stay_in_their_bounds(
            shape in prop::collection::vec(prop::collection::vec((1usize..4, 1usize..5), 1..4), 1..8), max in 1usize..40,
        ) {
            let example = |spans: &Vec<(usize, usize)>| {
                let mut trained = Vec::new();
                let mut at = 0;
                for (read, imitated) in spans {
                    trained.push(at + read..at + read + imitated);
                    at += read + imitated;
                }
                // A tail that is only read is not packed.
                Example { ids: (0..at as u32 + 3).collect(), trained }
            };
            let examples: Vec<Example> = shape.iter().map(example).collect();
            let batches = micro_batches(&examples, max);
            let ids: Vec<u32> = batches.iter().flat_map(|(_, t)| t.ids.clone()).collect();
            let expected: Vec<u32> = examples.iter().flat_map(|e| e.trained.iter().flat_map(|s| e.ids[s.clone()].to_vec())).collect();
            prop_assert_eq!(ids, expected);
            let longest = examples.iter().map(Example::rows).max().unwrap_or(0);
            for (packing, targets) in &batches {
                prop_assert!(packing.rows() <= max.max(longest));
                prop_assert!(targets.rows.iter().all(|row| *row < packing.rows()));
            }
        }
    }
}

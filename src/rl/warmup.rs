//! Supervised warm-up: a fresh model learns to imitate worked solutions until it is good enough to be rewarded.
//!
//! The loss is the mean negative log-likelihood of the response tokens, through the same packed forward and backward
//! that RL uses: it is the surrogate's gradient with `d loss / d log_prob = -1 / N`.

use super::adamw::{Optimizer, StepOutcome};
use super::optimizer::OptimizerConfig;
use crate::compute::Packing;
use crate::compute::cpu::head::{HeadStats, RowGradients};
use crate::model::{Keep, Model, Trained, Workspace};
use crate::policy::{InternalPolicy, Pass, Targets};
use crate::tasks::problem::Problem;
use crate::text::prompt::PromptEncoder;
use anyhow::{Context, Result, ensure};

/// A prompt and the response to imitate, its end token included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub prompt: Vec<u32>,
    pub response: Vec<u32>,
}

impl Example {
    /// From a problem with a worked solution.
    pub fn of(problem: &Problem, prompts: &PromptEncoder) -> Result<Example> {
        let worked = problem.worked.as_deref().with_context(|| {
            format!(
                "problem {} of {} has no worked solution: the warm-up needs one for each",
                problem.id, problem.source
            )
        })?;
        let mut response = prompts.encode_response(worked)?;
        let eos = prompts.eos_ids().first().context("the tokenizer names no end-of-sequence token for the warm-up")?;
        response.push(*eos);
        Ok(Example { prompt: prompts.encode(&problem.messages)?.ids, response })
    }
}

/// One supervised step. `grads` `[n]` is scratch. Returns the mean loss (nats per response token) before the step.
#[allow(clippy::too_many_arguments)]
pub fn supervised_step(
    model: &mut Model,
    ws: &mut Workspace,
    optimizer: &mut Optimizer,
    examples: &[Example],
    micro_batch_tokens: usize,
    config: &OptimizerConfig,
    lr: f64,
    grads: &mut [f32],
) -> Result<(f64, StepOutcome)> {
    let tokens: usize = examples.iter().map(|e| e.response.len()).sum();
    ensure!(tokens > 0, "a warm-up step without response tokens: raise warmup.batch");
    grads.fill(0.0);
    let mut loss = 0f64;
    let trained = Trained::everything(&model.layout);
    let mut rest = examples;
    while !rest.is_empty() {
        let (mut packing, mut targets, mut taken) = (Packing::new(), Targets::default(), 0);
        for example in rest {
            let rows = example.prompt.len() + example.response.len() - 1;
            if taken > 0 && packing.rows() + rows > micro_batch_tokens {
                break;
            }
            let ids = [&example.prompt[..], &example.response].concat();
            let start = packing.push(&ids[..rows]).start;
            targets.push_response(&ids, start, example.prompt.len());
            taken += 1;
        }
        rest = &rest[taken..];
        let policy = InternalPolicy::Final;
        let likelihood = |_, stats: &HeadStats| -> Result<RowGradients> {
            let d_log_probs = vec![-1.0 / tokens as f32; stats.log_probs.len()];
            Ok(RowGradients { d_log_probs, d_entropies: Vec::new() })
        };
        let pass = Pass { temperature: 1.0, keep: Keep::Activations, whole: false, trained: &trained };
        let stats = policy.gradient(model, ws, &packing, &targets, pass, grads, likelihood)?;
        loss -= stats.log_probs.iter().map(|p| *p as f64).sum::<f64>();
    }
    let outcome = optimizer.step(model, grads, &trained, config, lr);
    Ok((loss / tokens as f64, outcome))
}

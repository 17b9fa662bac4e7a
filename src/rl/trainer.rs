//! The training loop's one step, readable top to bottom: sample, judge, compare, align.
//!
//! There is one trainer. GRPO is BuPO with zero internal steps: all that BuPO changes is `schedule.phase_at(step)`.
//! Nothing here touches files; a step returns what it saw, and the caller writes it down.

mod align;
mod report;

pub use report::{CompletionRow, StepReport};

use super::adamw::Optimizer;
use super::advantage::Advantage;
use super::batch::{Response, ResponseGroup};
use super::loss::LossConfig;
use super::masking::masked_advantages;
use super::metrics::Seconds;
use super::optimizer::OptimizerConfig;
use super::schedule::{Phase, Schedule};
use crate::model::{Keep, Model, Workspace};
use crate::policy::InternalPolicy;
use crate::reward::{Item, Reward, RewardConfig, Score};
use crate::rollout::engine::{Completion, Engine, Request, generate};
use crate::rollout::sampler::Sampling;
use crate::tasks::problem::Problem;
use crate::tasks::seed::derive_seed;
use crate::text::prompt::PromptEncoder;
use anyhow::{Context, Result, ensure};
use report::rewards_and_lengths;
use std::time::Instant;

/// Everything a step needs to know, checked by whoever built it.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    pub seed: u64,
    /// Rollout steps of the whole run: the learning-rate schedule's horizon.
    pub steps: usize,
    pub prompts_per_step: usize,
    pub group_size: usize,
    pub sampling: Sampling,
    pub slots: usize,
    pub reward: RewardConfig,
    pub advantage: Advantage,
    pub gamma: f64,
    /// Times that a step's mini-batches are gone through.
    pub epochs: usize,
    pub mini_batch_prompts: usize,
    pub micro_batch_tokens: usize,
    pub recompute: bool,
    pub loss: LossConfig,
    /// Peak learning rate.
    pub lr: f64,
    pub optimizer: OptimizerConfig,
    pub schedule: Schedule,
}

impl TrainSettings {
    /// Optimizer steps of one rollout step.
    pub fn updates_per_step(&self) -> usize {
        self.epochs * self.prompts_per_step.div_ceil(self.mini_batch_prompts)
    }

    fn keep(&self) -> Keep {
        if self.recompute { Keep::LayerInputs } else { Keep::Activations }
    }
}

/// Model, optimizer and frozen surroundings of a run.
pub struct Trainer<'a> {
    pub settings: TrainSettings,
    pub model: Model,
    pub optimizer: Optimizer,
    /// The frozen reference of the KL penalty; needed when `loss.kl_coef` is not 0.
    pub reference: Option<Model>,
    pub prompts: &'a PromptEncoder,
    reward: Reward,
    workspace: Workspace,
    grads: Vec<f32>,
}

/// The rollouts of one step.
struct Rollouts {
    prompts: Vec<Vec<u32>>,
    prompts_truncated: usize,
    completions: Vec<Vec<Completion>>,
}

impl<'a> Trainer<'a> {
    pub fn new(
        settings: TrainSettings,
        model: Model,
        optimizer: Optimizer,
        reference: Option<Model>,
        prompts: &'a PromptEncoder,
    ) -> Result<Trainer<'a>> {
        ensure!(
            settings.loss.kl_coef == 0.0 || reference.is_some(),
            "kl_coef = {} needs a reference model",
            settings.loss.kl_coef
        );
        let (workspace, grads) = (Workspace::new(&model), vec![0f32; model.layout.len()]);
        let reward = Reward::new(&settings.reward, settings.sampling.max_new_tokens)?;
        Ok(Trainer { settings, model, optimizer, reference, prompts, reward, workspace, grads })
    }

    /// Rollout step `step` (from 1) on its problems. `progress` hears of every response that ended.
    pub fn step(&mut self, step: usize, problems: &[Problem], progress: &mut dyn FnMut(u64)) -> Result<StepReport> {
        let start = Instant::now();
        let phase = self.settings.schedule.phase_at(step);

        let rollouts = self.roll_out(step, problems, progress)?;
        let rollout_seconds = start.elapsed().as_secs_f64();

        let (scores, boxed_disagreement) =
            self.judge(problems, &rollouts).with_context(|| format!("rewards of step {step}"))?;
        let groups = self.compare(&rollouts, &scores)?;

        let update_start = Instant::now();
        let aligned = self.align(step, phase, &groups)?;
        let update_seconds = update_start.elapsed().as_secs_f64() - aligned.old_seconds;

        let agreement = match phase {
            Phase::Final => aligned.agreement,
            Phase::Internal { .. } => aligned.probe,
        };
        let seconds = Seconds {
            rollout: rollout_seconds,
            old_log_probs: aligned.old_seconds,
            update: update_seconds,
            total: start.elapsed().as_secs_f64(),
        };
        let mut metrics = self.metrics(step, phase, &rollouts, &scores, &aligned, agreement, seconds)?;
        metrics.boxed_disagreement = boxed_disagreement;
        let completions = self.rows(step, problems, &rollouts, &scores, &groups)?;
        Ok(StepReport { metrics, completions })
    }

    /// Samples every problem's group of responses from the **final** policy, whatever is being optimized.
    fn roll_out(&mut self, step: usize, problems: &[Problem], progress: &mut dyn FnMut(u64)) -> Result<Rollouts> {
        let s = &self.settings;
        let (mut requests, mut prompts_truncated) = (Vec::with_capacity(problems.len()), 0);
        for problem in problems {
            let prompt = self.prompts.encode(&problem.messages)?;
            prompts_truncated += usize::from(prompt.truncated > 0);
            let seeds = (0..s.group_size).map(|i| derive_seed(s.seed, step as u64, problem.id, i as u64)).collect();
            requests.push(Request { prompt: prompt.ids, seeds });
        }
        let engine = Engine {
            policy: InternalPolicy::Final,
            sampling: s.sampling,
            eos_ids: self.prompts.eos_ids(),
            slots: s.slots,
        };
        let completions = generate(&self.model, &mut self.workspace, &engine, &requests, progress)
            .with_context(|| format!("rollouts of step {step}"))?;
        let prompts = requests.into_iter().map(|r| r.prompt).collect();
        Ok(Rollouts { prompts, prompts_truncated, completions })
    }

    /// A score for every response: its text, decoded without special tokens, against its problem. Under the rule `math`, also
    /// the share of responses that the reference's text comparison would have judged otherwise.
    fn judge(&self, problems: &[Problem], rollouts: &Rollouts) -> Result<(Vec<Vec<Score>>, Option<f64>)> {
        let decode = |c: &Completion| self.prompts.decode(&c.ids);
        let texts = rollouts.completions.iter().flatten().map(decode).collect::<Result<Vec<_>>>()?;
        let pairs = problems.iter().zip(&rollouts.completions);
        let pairs = pairs.flat_map(|(problem, group)| group.iter().map(move |c| (problem, c)));
        let items: Vec<Item<'_>> = pairs
            .zip(&texts)
            .map(|((problem, c), response)| Item { problem, response, tokens: c.ids.len(), truncated: c.truncated() })
            .collect();
        let scores = self.reward.judge(&items)?;
        let boxed_disagreement = self.reward.boxed_disagreement(&items, &scores);
        let mut scores = scores.into_iter();
        let grouped = rollouts.completions.iter().map(|group| scores.by_ref().take(group.len()).collect()).collect();
        Ok((grouped, boxed_disagreement))
    }

    /// Rewards to advantages, within each group.
    fn compare(&self, rollouts: &Rollouts, scores: &[Vec<Score>]) -> Result<Vec<ResponseGroup>> {
        let (rewards, lengths) = rewards_and_lengths(rollouts, scores);
        let mut advantages =
            masked_advantages(self.settings.advantage, &rewards, &lengths, self.settings.gamma)?.into_iter();
        let mut group = |(prompt, completions): (&Vec<u32>, &Vec<Completion>)| ResponseGroup {
            prompt: prompt.clone(),
            responses: completions
                .iter()
                .map(|c| Response {
                    ids: c.ids.clone(),
                    rollout_log_probs: c.log_probs.clone(),
                    advantages: advantages.next().unwrap_or_default(),
                })
                .collect(),
        };
        Ok(rollouts.prompts.iter().zip(&rollouts.completions).map(&mut group).collect())
    }
}

//! The training loop's one step, readable top to bottom: sample, judge, compare, align.
//!
//! There is one trainer. GRPO is BuPO with zero internal steps: all that BuPO changes is `schedule.phase_at(step)`.
//! Nothing here touches files; a step returns what it saw, and the caller writes it down.

mod align;
mod report;
mod sample;
mod value;

pub use report::{CompletionRow, StepReport};
pub use sample::Draw;

use super::adamw::Optimizer;
use super::advantage::Advantage;
use super::batch::{Response, ResponseGroup};
use super::critic::{Critic, CriticConfig};
use super::dynamic_sampling::DynamicSampling;
use super::loss::LossConfig;
use super::masking::masked_advantages;
use super::metrics::Seconds;
use super::optimizer::OptimizerConfig;
use super::schedule::Schedule;
use crate::compute::Backend;
use crate::compute::backend::Kind;
use crate::compute::cpu::Cpu;
use crate::model::{Keep, Model, Workspace};
use crate::reward::{Reward, RewardConfig};
use crate::rollout::Rollout;
use crate::rollout::sampler::Sampling;
use crate::text::prompt::PromptEncoder;
use anyhow::{Result, ensure};
use report::rewards_and_lengths;
use sample::{Asked, Sampled};
use std::ops::Range;
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
    pub dynamic_sampling: Option<DynamicSampling>,
    pub slots: usize,
    pub reward: RewardConfig,
    pub advantage: Advantage,
    pub gamma: f64,
    /// With `advantage = gae`, and only then.
    pub critic: Option<CriticConfig>,
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

    /// Rollout steps in which the critic learns alone, before the policy's first.
    fn critic_warmup(&self) -> usize {
        self.critic.as_ref().map_or(0, |critic| critic.warmup_steps)
    }

    /// The groups of every optimizer step, of `groups` in all.
    fn mini_batches(&self, groups: usize) -> Vec<Range<usize>> {
        let size = self.mini_batch_prompts;
        (0..groups).step_by(size).map(|from| from..(from + size).min(groups)).collect()
    }

    /// What a forward keeps for its backward.
    pub fn keep(&self) -> Keep {
        Keep::for_backward(self.recompute)
    }
}

/// Model, optimizer and frozen surroundings of a run.
pub struct Trainer<'a, B: Rollout = Cpu> {
    pub settings: TrainSettings,
    pub model: Model<B>,
    pub optimizer: Optimizer<B>,
    /// With `advantage = gae`, and only then.
    pub critic: Option<Critic<B>>,
    /// The frozen reference of the KL penalty; needed when `loss.kl_coef` is not 0, but for a model with an adapter, which is its
    /// own reference with the adapter off.
    pub reference: Option<Model<B>>,
    pub prompts: &'a PromptEncoder,
    reward: Reward,
    workspace: Workspace<B>,
    grads: B::Array,
    /// The step has come to its updates: nothing of a failed one may be kept.
    updating: bool,
}

/// Elements of the buffer for gradients: the critic's updates come before the policy's, through the same one.
pub fn gradient_len<B: Backend>(model: &Model<B>, critic: Option<&Critic<B>>) -> usize {
    model.layout.trainable().len().max(critic.map_or(0, |critic| critic.model.layout.len()))
}

impl<'a, B: Rollout> Trainer<'a, B> {
    pub fn new(
        settings: TrainSettings,
        model: Model<B>,
        optimizer: Optimizer<B>,
        critic: Option<Critic<B>>,
        reference: Option<Model<B>>,
        prompts: &'a PromptEncoder,
    ) -> Result<Trainer<'a, B>> {
        ensure!(
            settings.loss.kl_coef == 0.0 || reference.is_some() || model.layout.adapter.is_some(),
            "kl_coef = {} needs a reference model",
            settings.loss.kl_coef
        );
        ensure!(
            critic.is_some() == settings.critic.is_some() && critic.is_some() == (settings.advantage == Advantage::Gae),
            "a critic, its settings and rl.advantage = \"gae\" belong together"
        );
        let (workspace, grads) = (Workspace::new(&model), B::Array::default());
        let reward = Reward::new(&settings.reward, settings.sampling.max_new_tokens)?;
        Ok(Trainer {
            settings,
            model,
            optimizer,
            critic,
            reference,
            prompts,
            reward,
            workspace,
            grads,
            updating: false,
        })
    }

    /// Rollout step `step` (from 1). `draw` gives the next so many problems of the run's order; `progress` hears of every
    /// response that ended.
    pub fn step(&mut self, step: usize, draw: &mut Draw<'_>, progress: &mut dyn FnMut(u64)) -> Result<StepReport> {
        let start = Instant::now();
        self.updating = false;
        let warmup = self.settings.critic_warmup();
        let phase = self.settings.schedule.phase_at(step);

        let sampled = self.sample(step, draw, progress)?;
        // Sampling, updates and what is done between steps take turns with the memory, where that is the device's.
        self.workspace.release(&self.model.backend);
        let parameters = gradient_len(&self.model, self.critic.as_ref());
        self.model.backend.resize(&mut self.grads, parameters, Kind::F32);
        let mut seconds = Seconds { rollout: sampled.seconds, ..Seconds::default() };
        let mut groups = self.groups(&sampled)?;
        self.updating = true;
        let critic = match &self.critic {
            Some(_) => Some(self.assess(step, &sampled, &mut groups, &mut seconds)?),
            None => None,
        };

        let update_start = Instant::now();
        let aligned = match step.checked_sub(warmup).filter(|step| *step > 0) {
            Some(step) if !sampled.is_idle() => self.align(step, phase, &groups)?,
            _ => self.watch(phase, &groups)?,
        };
        self.workspace.release(&self.model.backend);
        self.model.backend.release(&mut self.grads);
        // A device that failed leaves numbers of no use, which would pass for a step that was skipped.
        self.model.backend.status()?;
        seconds.old_log_probs = aligned.old_seconds;
        seconds.update = update_start.elapsed().as_secs_f64() - aligned.old_seconds;
        seconds.total = start.elapsed().as_secs_f64();
        let metrics = self.metrics(step, phase, &sampled, &aligned, critic, seconds)?;
        let completions = self.rows(step, &sampled, &groups)?;
        Ok(StepReport { metrics, completions })
    }

    /// Whether a step that failed did so while it sampled and judged: everything is as the step before left it.
    pub fn is_untouched(&self) -> bool {
        !self.updating
    }

    /// The groups that are watched, with their advantages where comparing rewards within them gives these; none of what was dropped.
    fn groups(&self, sampled: &Sampled) -> Result<Vec<ResponseGroup>> {
        let (watched, idle) = (sampled.watched(), sampled.is_idle());
        let of = |i: &usize| &sampled.asked[*i];
        let (rewards, lengths) = rewards_and_lengths(watched.iter().map(of));
        let mut advantages = match self.settings.advantage {
            _ if idle => lengths.iter().flatten().map(|n| vec![0.0; *n]).collect(),
            Advantage::Gae => Vec::new(),
            kind => masked_advantages(kind, &rewards, &lengths, self.settings.gamma)?,
        }
        .into_iter();
        let mut group = |asked: &Asked| ResponseGroup {
            prompt: asked.prompt.clone(),
            responses: asked
                .completions
                .iter()
                .zip(&asked.scores)
                .map(|(c, score)| Response {
                    ids: c.ids.clone(),
                    rollout_log_probs: c.log_probs.clone(),
                    advantages: advantages.next().unwrap_or_default(),
                    masked: !idle && score.reward.is_none(),
                })
                .collect(),
        };
        Ok(watched.iter().map(of).map(&mut group).collect())
    }
}

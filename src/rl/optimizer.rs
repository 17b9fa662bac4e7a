//! Settings of AdamW, and the learning rate of every optimizer step.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    #[default]
    Constant,
    /// Straight down to `min_lr_ratio * lr` at the last step.
    Linear,
    /// Half a cosine down to `min_lr_ratio * lr` at the last step.
    Cosine,
}

/// Settings of AdamW (decoupled weight decay) and its learning rate. Defaults are the paper's and PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest L2 norm of the whole gradient; a longer one is scaled down to it.
    pub grad_clip: f64,
    /// Optimizer steps (not rollout steps) over which the learning rate rises from 0 to `lr`.
    pub warmup_steps: usize,
    pub schedule: LrSchedule,
    /// The floor of a decaying schedule, as a share of `lr`.
    pub min_lr_ratio: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            lr: 1e-6,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_clip: 1.0,
            warmup_steps: 0,
            schedule: LrSchedule::Constant,
            min_lr_ratio: 0.0,
        }
    }
}

impl OptimizerConfig {
    /// Refuses settings that AdamW cannot run with. Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.lr > 0.0 && self.lr.is_finite(),
            "lr = {}: expected a positive number (the paper uses 1e-6)",
            self.lr
        );
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            ensure!((0.0..1.0).contains(&beta), "{key} = {beta}: expected a number from 0 up to, not including, 1");
        }
        ensure!(self.eps > 0.0 && self.eps.is_finite(), "eps = {}: expected a positive number such as 1e-8", self.eps);
        ensure!(
            self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
            "weight_decay = {}: expected 0 (none) or a positive number such as 0.01",
            self.weight_decay
        );
        ensure!(
            self.grad_clip > 0.0 && self.grad_clip.is_finite(),
            "grad_clip = {}: expected a positive number such as 1.0 (a very large one, 1e30, never clips)",
            self.grad_clip
        );
        ensure!(
            (0.0..=1.0).contains(&self.min_lr_ratio),
            "min_lr_ratio = {}: expected a share of lr, from 0 to 1",
            self.min_lr_ratio
        );
        Ok(())
    }
}

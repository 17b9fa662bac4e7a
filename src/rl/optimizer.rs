//! Settings of AdamW, and the learning rate of every optimizer step.

use super::groups::GroupConfig;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    #[default]
    Constant,
    /// Straight down to `min_lr_ratio` of the peak at the last step.
    Linear,
    /// Half a cosine down to `min_lr_ratio` of the peak at the last step.
    Cosine,
}

/// Settings of AdamW (decoupled weight decay) and the course of its learning rate, whose peak belongs to what is trained
/// (`rl.lr`, `warmup.lr`). Defaults are the paper's and PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled, times the learning rate.
    pub weight_decay: f64,
    /// Largest L2 norm of the whole gradient; a longer one is scaled down to it.
    pub grad_clip: f64,
    /// Optimizer steps (not rollout steps) over which the learning rate rises from 0 to its peak.
    pub warmup_steps: usize,
    /// What the learning rate does after that.
    pub schedule: LrSchedule,
    /// The floor of a decaying schedule, as a share of the peak.
    pub min_lr_ratio: f64,
    /// Keeps the moments in the host's memory, where a GPU reads and writes them over the bus in every step: 8 bytes a parameter less
    /// of its own. It changes no number.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
    /// Parts of the model with a learning rate of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<GroupConfig>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_clip: 1.0,
            warmup_steps: 0,
            schedule: LrSchedule::Constant,
            min_lr_ratio: 0.0,
            offload: false,
            group: Vec::new(),
        }
    }
}

impl OptimizerConfig {
    /// Refuses settings that AdamW cannot run with. Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
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
            "min_lr_ratio = {}: expected a share of the learning rate, from 0 to 1",
            self.min_lr_ratio
        );
        self.group.iter().try_for_each(GroupConfig::check)
    }

    /// Learning rate of an optimizer step, of `total_steps` in the run that peaks at `lr`; `step` counts those already taken (0 is the first).
    ///
    /// The conventions of HuggingFace's `get_scheduler`: `lr * step / warmup_steps` while warming up (the very first
    /// step of a warm-up has a rate of 0), then with `p = (step - warmup_steps) / (total_steps - warmup_steps)` a factor
    /// of 1, `1 - p`, or `(1 + cos(pi p)) / 2`, mapped onto `min_lr_ratio..=1`; the floor holds after `total_steps`.
    pub fn lr_at(&self, lr: f64, step: usize, total_steps: usize) -> f64 {
        if step < self.warmup_steps {
            return lr * step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        let factor = match self.schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        lr * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lrs(schedule: LrSchedule, warmup_steps: usize, min_lr_ratio: f64, steps: &[usize], total: usize) -> Vec<f64> {
        let config = OptimizerConfig { warmup_steps, schedule, min_lr_ratio, ..Default::default() };
        config.check().unwrap();
        steps.iter().map(|&step| config.lr_at(8.0, step, total)).collect()
    }

    #[test]
    fn the_warm_up_rises_from_zero_and_meets_the_schedule_at_its_top() {
        for schedule in [LrSchedule::Constant, LrSchedule::Linear, LrSchedule::Cosine] {
            assert_eq!(lrs(schedule, 4, 0.0, &[0, 1, 2, 3, 4], 12), [0.0, 2.0, 4.0, 6.0, 8.0]);
            assert_eq!(lrs(schedule, 0, 0.0, &[0], 12), [8.0]);
        }
    }

    #[test]
    fn after_the_warm_up() {
        // Half of the 8 steps after the warm-up lie behind at step 8; cos(pi/2) = 0, so half of lr as well.
        assert_eq!(lrs(LrSchedule::Constant, 4, 0.0, &[8, 12, 99], 12), [8.0, 8.0, 8.0]);
        assert_eq!(lrs(LrSchedule::Linear, 4, 0.0, &[6, 8, 12, 99], 12), [6.0, 4.0, 0.0, 0.0]);
        assert_eq!(lrs(LrSchedule::Linear, 4, 0.25, &[8, 12, 99], 12), [5.0, 2.0, 2.0]);
        let cosine = lrs(LrSchedule::Cosine, 4, 0.25, &[4, 6, 8, 12, 99], 12);
        // A quarter of the way: (1 + sqrt(1/2)) / 2 = 0.853553, times 6, plus the floor of 2.
        for (got, expected) in cosine.iter().zip([8.0, 7.121_320_343_559_642, 5.0, 2.0, 2.0]) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_warms_up() {
        assert_eq!(lrs(LrSchedule::Linear, 8, 0.0, &[0, 1, 2], 2), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn settings_that_cannot_run_are_refused_by_name() {
        let base = OptimizerConfig::default;
        for (key, config) in [
            ("beta1", OptimizerConfig { beta1: 1.0, ..base() }),
            ("beta2", OptimizerConfig { beta2: -0.1, ..base() }),
            ("eps", OptimizerConfig { eps: 0.0, ..base() }),
            ("weight_decay", OptimizerConfig { weight_decay: f64::INFINITY, ..base() }),
            ("grad_clip", OptimizerConfig { grad_clip: 0.0, ..base() }),
            ("min_lr_ratio", OptimizerConfig { min_lr_ratio: 1.1, ..base() }),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
        base().check().unwrap();
        assert!(toml::from_str::<OptimizerConfig>("learning_rate = 1.0").is_err());
        let read: OptimizerConfig = toml::from_str("beta2 = 0.95\nschedule = \"cosine\"").unwrap();
        assert_eq!(read, OptimizerConfig { beta2: 0.95, schedule: LrSchedule::Cosine, ..base() });
        assert_eq!(toml::from_str::<OptimizerConfig>(&toml::to_string(&read).unwrap()).unwrap(), read);
    }
}

//! Settings of the critic.

use crate::rl::optimizer::OptimizerConfig;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// `[critic]`: needed by, and only read with, `rl.advantage = "gae"`. Epochs, mini-batches, micro-batches and the aggregation of
/// the loss are the policy's; the discount is `rl.gamma`. Defaults are verl's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriticConfig {
    /// Peak learning rate (the paper's 1e-5).
    pub lr: f64,
    /// Rollout steps in which the critic alone learns, before the first step of the policy and of its phases.
    pub warmup_steps: usize,
    /// GAE's: 1 takes the whole reward for a token's return (no bias, more variance), 0 the next value.
    pub lambda: f64,
    /// A value may move this far from what it was before the step; further is clipped, as the policy's ratio is.
    pub value_clip: f64,
    /// Settings of its own AdamW, of `[optimizer]`'s kind.
    pub optimizer: OptimizerConfig,
}

impl Default for CriticConfig {
    fn default() -> Self {
        CriticConfig { lr: 1e-5, warmup_steps: 0, lambda: 1.0, value_clip: 0.5, optimizer: OptimizerConfig::default() }
    }
}

impl CriticConfig {
    /// Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.lr > 0.0 && self.lr.is_finite(),
            "lr = {}: expected a positive number (the paper uses 1e-5)",
            self.lr
        );
        ensure!((0.0..=1.0).contains(&self.lambda), "lambda = {}: expected 0 to 1 (0.95 and 1 are usual)", self.lambda);
        ensure!(
            self.value_clip > 0.0 && self.value_clip.is_finite(),
            "value_clip = {}: expected a positive number such as 0.5 (a very large one, 1e30, never clips)",
            self.value_clip
        );
        self.optimizer.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_and_survive_a_round_trip() {
        let base = CriticConfig::default;
        base().check().unwrap();
        for (key, config) in [
            ("lr", CriticConfig { lr: 0.0, ..base() }),
            ("lambda", CriticConfig { lambda: 1.1, ..base() }),
            ("value_clip", CriticConfig { value_clip: f64::NAN, ..base() }),
            ("beta1", CriticConfig { optimizer: OptimizerConfig { beta1: 1.0, ..Default::default() }, ..base() }),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
        let read: CriticConfig = toml::from_str("lambda = 0.95\noptimizer = { beta2 = 0.98 }").unwrap();
        assert_eq!((read.lambda, read.optimizer.beta2, read.lr), (0.95, 0.98, 1e-5));
        assert_eq!(toml::from_str::<CriticConfig>(&toml::to_string(&read).unwrap()).unwrap(), read);
        assert!(toml::from_str::<CriticConfig>("gamma = 1.0").is_err());
    }
}

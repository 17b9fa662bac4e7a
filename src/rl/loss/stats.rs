//! What is watched while the surrogate is optimized: sums over tokens, and the metrics made of them.

use super::terms::{Clip, PolicyTerm};
use serde::{Deserialize, Serialize};

/// Sums over tokens, to be merged over the micro-batches of a mini-batch and the mini-batches of a step. Every mean has the
/// number of tokens as its denominator, whatever the aggregation of the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossStats {
    tokens: usize,
    clipped_low: usize,
    clipped_high: usize,
    dual_clipped: usize,
    approx_kl_k1: f64,
    approx_kl_k3: f64,
    ratio: f64,
    ratio_max: f64,
    pub(super) entropy: Mean,
    pub(super) reference_kl: Mean,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    pub(super) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn merge(&mut self, other: Mean) {
        self.sum += other.sum;
        self.count += other.count;
    }

    fn finish(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// [`LossStats`] as shares and means over tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossMetrics {
    pub tokens: usize,
    /// Tokens with `A < 0` and a ratio below `1 - clip_low`.
    pub clip_fraction_low: f64,
    /// Tokens with `A > 0` and a ratio above `1 + clip_high`. With `clip_fraction_low`, verl's `pg_clipfrac`.
    pub clip_fraction_high: f64,
    /// Tokens with `A < 0` and a ratio above `dual_clip` (verl's `pg_clipfrac_lower`).
    pub dual_clip_fraction: f64,
    /// `old_log_prob - log_prob` (verl's `ppo_kl`); log-ratios within +-20, here and below.
    pub approx_kl_k1: f64,
    /// `r - 1 - log r`, never negative (the `approx_kl` of CleanRL's PPO).
    pub approx_kl_k3: f64,
    /// Of the ratio before clipping.
    pub ratio_mean: f64,
    pub ratio_max: f64,
    /// In nats; `None` where no entropies were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// By the configured estimator; `None` where no reference was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_kl: Option<f64>,
}

impl LossStats {
    pub(super) fn add_policy(&mut self, term: &PolicyTerm) {
        self.tokens += 1;
        match term.clip {
            Clip::None => {}
            Clip::Low => self.clipped_low += 1,
            Clip::High => self.clipped_high += 1,
            Clip::Dual => self.dual_clipped += 1,
        }
        self.approx_kl_k1 -= term.log_ratio;
        self.approx_kl_k3 += term.log_ratio.exp_m1() - term.log_ratio;
        self.ratio += term.ratio;
        self.ratio_max = self.ratio_max.max(term.ratio);
    }

    pub fn merge(&mut self, other: &LossStats) {
        self.tokens += other.tokens;
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.dual_clipped += other.dual_clipped;
        self.approx_kl_k1 += other.approx_kl_k1;
        self.approx_kl_k3 += other.approx_kl_k3;
        self.ratio += other.ratio;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.entropy.merge(other.entropy);
        self.reference_kl.merge(other.reference_kl);
    }

    /// `None` when there were no tokens.
    pub fn finish(&self) -> Option<LossMetrics> {
        let per_token = |sum: f64| sum / self.tokens as f64;
        (self.tokens > 0).then(|| LossMetrics {
            tokens: self.tokens,
            clip_fraction_low: per_token(self.clipped_low as f64),
            clip_fraction_high: per_token(self.clipped_high as f64),
            dual_clip_fraction: per_token(self.dual_clipped as f64),
            approx_kl_k1: per_token(self.approx_kl_k1),
            approx_kl_k3: per_token(self.approx_kl_k3),
            ratio_mean: per_token(self.ratio),
            ratio_max: self.ratio_max,
            entropy: self.entropy.finish(),
            reference_kl: self.reference_kl.finish(),
        })
    }
}

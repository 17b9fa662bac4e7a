//! Truncated importance sampling between the engine that sampled and the model that is trained.
//!
//! Both claim to be the final policy before the step's first update, but other kernels, other precisions or older weights make
//! the engine's log-probs differ. With `rho = trainer / engine` of a token, or the product of a response's, a token's policy
//! term is multiplied by `min(rho, cap)`, or by 0 above the cap. Weights come from the final policy in every phase: it is what
//! the responses were sampled from.

use super::batch::ResponseGroup;
use super::update::LogProbs;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Bound on every log-ratio before it is exponentiated, as in the loss.
const LOG_RATIO_BOUND: f64 = 20.0;

/// Whose ratio it is, and what happens above the cap (TRL's names).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CorrectionMode {
    /// Measured, but not used.
    #[default]
    Off,
    TokenTruncate,
    TokenMask,
    SequenceTruncate,
    SequenceMask,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutCorrection {
    /// Whose ratio weighs a token, and what happens above the cap.
    pub mode: CorrectionMode,
    /// Largest weight: above it a ratio is cut to it (`truncate`), or its tokens are left out (`mask`).
    pub cap: f64,
}

impl Default for RolloutCorrection {
    fn default() -> Self {
        RolloutCorrection { mode: CorrectionMode::Off, cap: 2.0 }
    }
}

impl RolloutCorrection {
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.cap >= 1.0 && self.cap.is_finite(),
            "rollout_correction.cap = {}: expected 1 or more (2 is usual; below 1 even an equal policy is cut)",
            self.cap
        );
        Ok(())
    }

    /// Weight of every token of one response, `[tokens]`; `None` when switched off.
    pub fn weights(&self, trainer: &[f32], engine: &[f32]) -> Option<Vec<f64>> {
        let sequence = matches!(self.mode, CorrectionMode::SequenceTruncate | CorrectionMode::SequenceMask);
        let mask = matches!(self.mode, CorrectionMode::TokenMask | CorrectionMode::SequenceMask);
        let weight = |log_ratio: f64| match ratio(log_ratio) {
            r if r > self.cap && mask => 0.0,
            // Comparing instead of f64::min, which would drop a NaN.
            r if r > self.cap => self.cap,
            r => r,
        };
        match self.mode {
            CorrectionMode::Off => None,
            _ if sequence => Some(vec![weight(log_ratios(trainer, engine).sum()); trainer.len()]),
            _ => Some(log_ratios(trainer, engine).map(weight).collect()),
        }
    }
}

fn log_ratios<'a>(trainer: &'a [f32], engine: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    trainer.iter().zip(engine).map(|(t, e)| *t as f64 - *e as f64)
}

fn ratio(log_ratio: f64) -> f64 {
    log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
}

/// Ratios `rho = trainer / engine` of the sampled tokens under the final policy, measured whether or not they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutRatios {
    /// Tokens measured: all of the step in the final phase or with the correction on, else those of the first mini-batch.
    pub tokens: usize,
    pub ratio_mean: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    /// Of the product over a response's tokens.
    pub sequence_ratio_mean: f64,
    pub sequence_ratio_max: f64,
    /// Share of tokens, and of responses, whose ratio lies above the cap.
    pub capped_fraction: f64,
    pub sequence_capped_fraction: f64,
    /// `(sum rho)^2 / (n sum rho^2)` over tokens: 1 when all weigh the same.
    pub effective_sample_size: f64,
    /// Estimate k3 of `KL(engine || trainer)`, nats per token.
    pub kl: f64,
}

impl RolloutRatios {
    /// Over the responses whose log-probs under the trainer's final policy are known (not empty).
    pub fn of(groups: &[ResponseGroup], trainer: &LogProbs, cap: f64) -> RolloutRatios {
        let mut r = RolloutRatios { ratio_min: f64::INFINITY, ..RolloutRatios::default() };
        let (mut sequences, mut squares) = (0usize, 0.0);
        for (group, trainer) in groups.iter().zip(trainer) {
            for (response, trainer) in group.responses.iter().zip(trainer).filter(|(_, t)| !t.is_empty()) {
                let mut sum = 0.0;
                for log_ratio in log_ratios(trainer, &response.rollout_log_probs) {
                    let (bounded, rho) = (log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND), ratio(log_ratio));
                    r.tokens += 1;
                    r.ratio_mean += rho;
                    r.ratio_min = r.ratio_min.min(rho);
                    r.ratio_max = r.ratio_max.max(rho);
                    r.capped_fraction += f64::from(u8::from(rho > cap));
                    r.kl += bounded.exp_m1() - bounded;
                    squares += rho * rho;
                    sum += log_ratio;
                }
                sequences += 1;
                r.sequence_ratio_mean += ratio(sum);
                r.sequence_ratio_max = r.sequence_ratio_max.max(ratio(sum));
                r.sequence_capped_fraction += f64::from(u8::from(ratio(sum) > cap));
            }
        }
        if r.tokens == 0 {
            return RolloutRatios::default();
        }
        let (tokens, sequences) = (r.tokens as f64, sequences as f64);
        RolloutRatios {
            effective_sample_size: r.ratio_mean * r.ratio_mean / (tokens * squares),
            ratio_mean: r.ratio_mean / tokens,
            capped_fraction: r.capped_fraction / tokens,
            kl: r.kl / tokens,
            sequence_ratio_mean: r.sequence_ratio_mean / sequences,
            sequence_capped_fraction: r.sequence_capped_fraction / sequences,
            ..r
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::batch::Response;

    const LN_2: f32 = std::f32::consts::LN_2;

    fn weights(mode: CorrectionMode) -> Option<Vec<f64>> {
        // Ratios 1/2, 2 and 4: their product is 4.
        let (trainer, engine) = ([-1.0 - LN_2, -1.0 + LN_2, -3.0 + 2.0 * LN_2], [-1.0, -1.0, -3.0]);
        RolloutCorrection { mode, cap: 3.0 }.weights(&trainer, &engine)
    }

    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-6), "{got:?} {expected:?}");
    }

    #[test]
    fn four_modes_of_three_tokens() {
        assert_eq!(weights(CorrectionMode::Off), None);
        close(&weights(CorrectionMode::TokenTruncate).unwrap(), &[0.5, 2.0, 3.0]);
        close(&weights(CorrectionMode::TokenMask).unwrap(), &[0.5, 2.0, 0.0]);
        close(&weights(CorrectionMode::SequenceTruncate).unwrap(), &[3.0; 3]);
        close(&weights(CorrectionMode::SequenceMask).unwrap(), &[0.0; 3]);
    }

    #[test]
    fn an_equal_policy_weighs_one_and_a_broken_log_prob_stays_visible() {
        let mode = CorrectionMode::SequenceTruncate;
        let c = RolloutCorrection { mode, ..RolloutCorrection::default() };
        assert_eq!(c.weights(&[-0.3, -7.0], &[-0.3, -7.0]).unwrap(), [1.0, 1.0]);
        assert!(c.weights(&[f32::NAN], &[-0.3]).unwrap()[0].is_nan());
        assert_eq!(c.weights(&[-0.1], &[-1e30]).unwrap(), [2.0]);
    }

    #[test]
    fn ratios_of_two_responses_one_of_them_unknown() {
        let response = |log_probs: &[f32]| Response { rollout_log_probs: log_probs.to_vec(), ..Response::default() };
        let groups = [ResponseGroup { prompt: vec![], responses: vec![response(&[-1.0, -1.0]), response(&[-2.0])] }];
        let trainer = vec![vec![vec![-1.0 + LN_2, -1.0], vec![]]];
        let r = RolloutRatios::of(&groups, &trainer, 1.5);
        assert_eq!((r.tokens, r.capped_fraction, r.sequence_capped_fraction), (2, 0.5, 1.0));
        // (2 + 1)^2 / (2 (4 + 1)) = 0.9; k3 of ratio 2 is 2 - 1 - ln 2.
        let got = [r.ratio_mean, r.ratio_min, r.ratio_max, r.sequence_ratio_mean, r.effective_sample_size, r.kl];
        close(&got, &[1.5, 1.0, 2.0, 2.0, 0.9, (1.0 - f64::from(LN_2)) / 2.0]);
        assert_eq!(RolloutRatios::of(&groups, &vec![vec![vec![], vec![]]], 2.0), RolloutRatios::default());
    }
}

//! Settings of the surrogate loss.

use crate::rl::correction::{CorrectionMode, RolloutCorrection};
use anyhow::{Result, ensure};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a token's advantage is multiplied by, with `r = policy / old policy` at a token and `A` its advantage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// `-min(r A, clip(r) A)`, with dual clip (PPO, GRPO; paper, equation 3).
    #[default]
    PpoClip,
    /// `-min(s A, clip(s) A)` with the response's ratio `s = exp(mean over its tokens of log r)` (GSPO). Its clips are about
    /// a thousand times narrower than those of a token's ratio: 3e-4 below and 4e-4 above. No dual clip.
    Gspo,
    /// `-stop_gradient(clip(r)) A log_prob` (CISPO): a clipped token keeps its gradient, at the clip's weight. No dual clip.
    Cispo,
}

/// How the losses of tokens become one number. Every denominator is taken over the whole mini-batch, never over a
/// micro-batch, so that the gradient does not depend on how the mini-batch is split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Mean over all response tokens (DAPO; the reference's scripts).
    #[default]
    TokenMean,
    /// Mean over responses of the mean over a response's tokens (paper, equation 3).
    SeqMeanTokenMean,
    /// Mean over responses of the sum over a response's tokens.
    SeqMeanTokenSum,
    /// As `seq-mean-token-sum`, divided by the longest response allowed: a constant (Dr. GRPO).
    SeqMeanTokenSumNorm,
}

/// Estimators of `KL(policy || reference)` from one sampled token, on `d = ref_log_prob - log_prob` (Schulman's names).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KlEstimator {
    /// `-d`: unbiased, high variance, may be negative.
    K1,
    /// `d^2 / 2`: biased, low variance.
    K2,
    /// `e^d - d - 1`: unbiased, low variance, never negative.
    #[default]
    K3,
}

/// Settings of the surrogate loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// What a token's advantage is multiplied by.
    pub kind: LossKind,
    /// The ratio is clipped from below at `1 - clip_low`; 1 is no clip, for `cispo` only.
    pub clip_low: f64,
    /// The ratio is clipped from above at `1 + clip_high`; larger than `clip_low` is DAPO's clip-higher.
    pub clip_high: f64,
    /// Bound `c` on the loss of a token with negative advantage, `-A c`. A number above 1, or `"off"` for `None`.
    #[serde(serialize_with = "serialize_dual_clip", deserialize_with = "deserialize_dual_clip")]
    pub dual_clip: Option<f64>,
    /// How the losses of tokens become one number.
    pub aggregation: Aggregation,
    /// Weight of the KL penalty towards the frozen reference; 0 switches it off and needs no reference.
    pub kl_coef: f64,
    /// Which estimate of that KL.
    pub kl_estimator: KlEstimator,
    /// Weight of the entropy bonus; 0 switches it off, a negative one is a penalty.
    pub entropy_coef: f64,
    /// Share of a mini-batch's response tokens, those of the highest entropy, whose policy loss counts; 1: all of them.
    pub top_entropy_quantile: f64,
    /// Weights for the difference between the engine that sampled and the trainer.
    pub rollout_correction: RolloutCorrection,
}

impl Default for LossConfig {
    /// The settings of the reference's scripts (dual clip 10; 3 is verl's own default).
    fn default() -> Self {
        LossConfig {
            kind: LossKind::default(),
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: Some(10.0),
            aggregation: Aggregation::default(),
            kl_coef: 0.0,
            kl_estimator: KlEstimator::default(),
            entropy_coef: 0.0,
            top_entropy_quantile: 1.0,
            rollout_correction: RolloutCorrection::default(),
        }
    }
}

impl LossConfig {
    /// Refuses settings that no loss can be computed from. Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
        let no_clip = self.clip_low == 1.0 && self.kind == LossKind::Cispo;
        ensure!(
            self.clip_low > 0.0 && self.clip_low < 1.0 || no_clip,
            "clip_low = {}: expected a number above 0 and below 1 (the ratio is clipped at 1 - clip_low; the paper uses 0.2)",
            self.clip_low
        );
        ensure!(
            self.clip_high > 0.0 && self.clip_high.is_finite(),
            "clip_high = {}: expected a number above 0 (the ratio is clipped at 1 + clip_high; the paper uses 0.2)",
            self.clip_high
        );
        if let Some(c) = self.dual_clip {
            ensure!(
                c > 1.0 && c.is_finite(),
                "dual_clip = {c}: expected a number above 1, or \"off\" (3 and 10 are usual)"
            );
        }
        ensure!(
            self.kl_coef >= 0.0 && self.kl_coef.is_finite(),
            "kl_coef = {}: expected 0 (no KL penalty, no reference model) or a positive number",
            self.kl_coef
        );
        ensure!(
            self.entropy_coef.is_finite(),
            "entropy_coef = {}: expected 0 (no bonus) or a finite number; positive rewards entropy",
            self.entropy_coef
        );
        ensure!(
            self.top_entropy_quantile > 0.0 && self.top_entropy_quantile <= 1.0,
            "top_entropy_quantile = {}: expected a share above 0, up to 1 (all tokens; 0.2 is usual)",
            self.top_entropy_quantile
        );
        self.rollout_correction.check()
    }

    /// What is allowed, but is not the method as it was published.
    pub fn remark(&self) -> Option<String> {
        let (aggregation, narrow) = (Aggregation::SeqMeanTokenMean, 0.01);
        let as_published = self.aggregation == aggregation && self.clip_low < narrow && self.clip_high < narrow;
        (self.kind == LossKind::Gspo && !as_published).then(|| {
            format!(
                "loss.kind = \"gspo\" weighs every response alike and clips its ratio at 1 - 3e-4 and 1 + 4e-4 as published: \
                 aggregation = \"seq-mean-token-mean\", clip_low = 3e-4, clip_high = 4e-4. This recipe has {}, {} and {}",
                serde_json::json!(self.aggregation),
                self.clip_low,
                self.clip_high
            )
        })
    }

    /// True where a token's loss depends on all tokens of its response.
    pub fn needs_whole_responses(&self) -> bool {
        self.kind == LossKind::Gspo
    }

    /// True where something must be known of every token before the first update: its old log-prob or its entropy.
    pub fn needs_scores_first(&self) -> bool {
        self.top_entropy_quantile < 1.0 || self.rollout_correction.mode != CorrectionMode::Off
    }
}

/// TOML has no null, and leaving the key out means the default: `None` needs a word of its own.
fn serialize_dual_clip<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(c) => serializer.serialize_f64(*c),
        None => serializer.serialize_str("off"),
    }
}

fn deserialize_dual_clip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    struct NumberOrOff;
    impl Visitor<'_> for NumberOrOff {
        type Value = Option<f64>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number above 1, or \"off\"")
        }
        fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
            Ok(Some(value))
        }
        fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Self::Value, E> {
            Ok(Some(value as f64))
        }
        fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
            Ok(Some(value as f64))
        }
        fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Self::Value, E> {
            match value {
                "off" => Ok(None),
                _ => Err(E::invalid_value(Unexpected::Str(value), &self)),
            }
        }
    }
    deserializer.deserialize_any(NumberOrOff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_and_survive_a_round_trip() {
        let base = LossConfig::default;
        base().check().unwrap();
        for (key, config) in [
            ("clip_low", LossConfig { clip_low: 1.0, ..base() }),
            ("clip_high", LossConfig { clip_high: 0.0, ..base() }),
            ("dual_clip", LossConfig { dual_clip: Some(1.0), ..base() }),
            ("kl_coef", LossConfig { kl_coef: f64::NAN, ..base() }),
            ("entropy_coef", LossConfig { entropy_coef: f64::INFINITY, ..base() }),
            ("top_entropy_quantile", LossConfig { top_entropy_quantile: 0.0, ..base() }),
            ("top_entropy_quantile", LossConfig { top_entropy_quantile: 1.5, ..base() }),
            (
                "rollout_correction.cap",
                LossConfig { rollout_correction: RolloutCorrection { cap: 0.5, ..Default::default() }, ..base() },
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
        for (text, dual_clip) in [("", Some(10.0)), ("dual_clip = 3", Some(3.0)), ("dual_clip = \"off\"", None)] {
            let config: LossConfig = toml::from_str(text).unwrap();
            assert_eq!(config.dual_clip, dual_clip);
            assert_eq!(toml::from_str::<LossConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        LossConfig { clip_low: 1.0, kind: LossKind::Cispo, ..base() }.check().unwrap();
        let names = "kind = \"gspo\"\nrollout_correction = { mode = \"sequence-mask\", cap = 3.0 }";
        let config: LossConfig = toml::from_str(names).unwrap();
        assert_eq!((config.kind, config.rollout_correction.mode), (LossKind::Gspo, CorrectionMode::SequenceMask));
        assert_eq!(toml::from_str::<LossConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert!(config.remark().unwrap().contains("has \"token-mean\", 0.2 and 0.2"));
        let aggregation = Aggregation::SeqMeanTokenMean;
        let published = LossConfig { aggregation, clip_low: 3e-4, clip_high: 4e-4, ..config };
        assert!(published.remark().is_none() && base().remark().is_none());
        let names = "aggregation = \"seq-mean-token-sum-norm\"\nkl_estimator = \"k1\"";
        let config: LossConfig = toml::from_str(names).unwrap();
        assert_eq!((config.aggregation, config.kl_estimator), (Aggregation::SeqMeanTokenSumNorm, KlEstimator::K1));
        assert!(toml::from_str::<LossConfig>("dual_clip = \"of\"").unwrap_err().to_string().contains("\"off\""));
        assert!(toml::from_str::<LossConfig>("clip = 0.2").is_err());
    }
}

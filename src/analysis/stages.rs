//! Stages of reasoning and the boundary layer, read from the entropy changes of the FFN (paper, section 3 and equation 13).

use crate::policy::LayerIndex;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What a layer's FFN does to the space of next tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The FFN widens it: `dH_FFN > threshold`.
    Exploration,
    /// The FFN keeps it: `|dH_FFN| <= threshold`.
    Integration,
    /// The FFN narrows it: `dH_FFN < -threshold`.
    Convergence,
}

/// Consecutive layers of one stage, as saved: both ends belong to it and count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSpan {
    pub stage: Stage,
    pub first_layer: usize,
    pub last_layer: usize,
}

/// The threshold's share of `ln V`.
///
/// The paper says "about 0" and gives no number. Entropies lie in `0..=ln V`, so a share of `ln V` means the same for
/// every vocabulary, and (unlike a share of the largest change seen) does not read stages into a model whose changes are
/// all noise. 1 % is 0.12 nats for Qwen3's 151,936 tokens: the effective number of tokens changes by less than 13 %.
pub const THRESHOLD_SHARE: f64 = 0.01;

/// How stages and the boundary layer are read, in words, for the files and tables that show them.
pub const RULE: &str = "stage by the change of entropy across a layer's FFN, dH_FFN = H(F) - H(LN_ffn(M)), in nats, mean over \
response tokens: exploration if dH_FFN > threshold, convergence if dH_FFN < -threshold, integration otherwise; \
threshold = 0.01 * ln(vocabulary size) unless stated; boundary layer: the last layer with dH_FFN > 0 (no threshold), \
null if there is none";

/// `THRESHOLD_SHARE * ln V`, in nats. vocabulary: tokens of the distribution, the rows of the unembedding.
pub fn default_threshold(vocabulary: usize) -> f64 {
    THRESHOLD_SHARE * (vocabulary.max(1) as f64).ln()
}

impl Stage {
    /// Of one layer. ffn_change: `dH_FFN`; threshold: not negative; both in nats.
    pub fn of(ffn_change: f64, threshold: f64) -> Stage {
        if ffn_change > threshold {
            Stage::Exploration
        } else if ffn_change < -threshold {
            Stage::Convergence
        } else {
            Stage::Integration
        }
    }

    /// As it is saved.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Exploration => "exploration",
            Stage::Integration => "integration",
            Stage::Convergence => "convergence",
        }
    }
}

/// Runs of layers of the same stage, bottom up; together they cover every layer once. A stage comes back as often as the
/// model goes back to it: nothing is smoothed. ffn_change: `dH_FFN` of every layer, `[L]`.
///
/// Errors: a change that is not finite, a threshold that is negative or not finite.
pub fn stage_spans(ffn_change: &[f64], threshold: f64) -> Result<Vec<StageSpan>> {
    ensure!(
        threshold >= 0.0 && threshold.is_finite(),
        "stage threshold = {threshold}: expected a number of nats, 0 or more"
    );
    let mut spans: Vec<StageSpan> = Vec::new();
    for (layer, &change) in (1..).zip(ffn_change) {
        ensure!(change.is_finite(), "the FFN's entropy change of layer {layer} is {change}: expected a finite number");
        let stage = Stage::of(change, threshold);
        match spans.last_mut() {
            Some(span) if span.stage == stage => span.last_layer = layer,
            _ => spans.push(StageSpan { stage, first_layer: layer, last_layer: layer }),
        }
    }
    Ok(spans)
}

/// The last layer with a positive FFN change, the one the paper optimizes; `None` when no layer has one.
/// ffn_change: `dH_FFN` of every layer, `[L]`.
pub fn boundary_layer(ffn_change: &[f64]) -> Option<LayerIndex> {
    LayerIndex::all(ffn_change.len()).rfind(|layer| ffn_change[layer.index()] > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(ffn_change: &[f64], threshold: f64) -> Vec<(&'static str, usize, usize)> {
        let spans = stage_spans(ffn_change, threshold).unwrap();
        spans.iter().map(|span| (span.stage.name(), span.first_layer, span.last_layer)).collect()
    }

    #[test]
    fn a_model_shaped_like_qwen3_4b() {
        // 1-6 widen, 7-26 hardly change anything (and never upwards), 27-36 narrow, as in the paper.
        let change = [vec![0.9; 6], vec![-0.03; 20], vec![-1.4; 10]].concat();
        let threshold = default_threshold(151_936);
        // 0.01 * ln 151936 = 0.01 * 11.93.
        assert!((threshold - 0.1193).abs() < 1e-4, "{threshold}");
        let expected = [("exploration", 1, 6), ("integration", 7, 26), ("convergence", 27, 36)];
        assert_eq!(spans(&change, threshold), expected);
        assert_eq!(boundary_layer(&change).unwrap().one_based(), 6);
    }

    #[test]
    fn a_change_at_the_threshold_is_integration() {
        assert_eq!(
            spans(&[0.5, 0.5001, -0.5, -0.5001], 0.5),
            [("integration", 1, 1), ("exploration", 2, 2), ("integration", 3, 3), ("convergence", 4, 4)]
        );
        assert_eq!(spans(&[0.0, -0.0, 1e-9], 0.0), [("integration", 1, 2), ("exploration", 3, 3)]);
        assert_eq!(spans(&[], 0.5), []);
    }

    #[test]
    fn the_boundary_layer_is_the_last_positive_one_however_small() {
        let boundary = |change: &[f64]| boundary_layer(change).map(LayerIndex::one_based);
        assert_eq!(boundary(&[1.0, -1.0, 1e-12, -1.0]), Some(3));
        assert_eq!(boundary(&[1.0, 1.0]), Some(2));
        assert_eq!(boundary(&[-1.0, 0.0, -0.0]), None);
        assert_eq!(boundary(&[f64::NAN]), None);
        assert_eq!(boundary(&[]), None);
    }

    #[test]
    fn numbers_that_say_nothing_are_refused() {
        assert!(stage_spans(&[0.0, f64::NAN], 0.1).unwrap_err().to_string().contains("layer 2"));
        assert!(stage_spans(&[0.0], f64::NAN).is_err());
        assert!(stage_spans(&[0.0], -0.1).is_err());
    }

    #[test]
    fn spans_are_saved_with_layers_from_one_and_the_rule_states_its_share() {
        let saved = serde_json::to_value(stage_spans(&[1.0, 1.0], 0.1).unwrap()).unwrap();
        assert_eq!(saved, serde_json::json!([{"stage": "exploration", "first_layer": 1, "last_layer": 2}]));
        assert!(RULE.contains(&format!("threshold = {THRESHOLD_SHARE} * ln")));
        for stage in [Stage::Exploration, Stage::Integration, Stage::Convergence] {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.name());
        }
    }
}

//! What a study found, as it is saved (`ablation.json`). Layers and heads count from 1; all but shares is in nats.
//! docs/ABLATION.md says what every number means.

use serde::{Deserialize, Serialize};

/// Of the format.
pub const VERSION: u32 = 1;

/// What a module writes when it is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replacement {
    #[default]
    Zero,
    /// What it writes on average, over all tokens of the data.
    Mean,
}

/// Means over response tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    pub version: u32,
    /// As it was named by whoever asked.
    pub model: String,
    pub replace: Replacement,
    /// Of the model.
    pub layers: usize,
    /// Response tokens.
    pub tokens: usize,
    pub samples: usize,
    pub vocab_size: usize,
    /// Of the whole model's policy.
    pub entropy: f64,
    /// Under the whole model's policy, of the tokens that came.
    pub log_prob: f64,
    /// Those that were looked at, bottom up.
    pub per_layer: Vec<LayerEffects>,
}

/// The model without parts of one layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerEffects {
    pub layer: usize,
    pub attn: Effect,
    pub ffn: Effect,
    /// Without attention and FFN.
    pub both: Effect,
    /// Of each query head, in order; empty where heads were not looked at.
    pub heads: Vec<Effect>,
}

/// The final policy without something, beside the whole model's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// `D(pi || pi_without) = sum_j pi(j) ln (pi(j) / pi_without(j))`
    pub kl: f64,
    /// Its standard deviation over tokens (divided by their number).
    pub kl_std: f64,
    /// Of the tokens that came: below 0 where they became less likely.
    pub log_prob_change: f64,
    /// Above 0 where the policy is less sure without it.
    pub entropy_change: f64,
    /// Share of tokens whose likeliest token is still the same.
    pub top1_agreement: f64,
}

impl Findings {
    /// Every module's name and effect, as `bupo ... --ablate` takes the names: `attn:6`, `ffn:6`, `layer:6`, `head:6.3`.
    pub fn modules(&self) -> Vec<(String, Effect)> {
        let of = |l: &LayerEffects| {
            let layer = l.layer;
            let whole = [("attn", l.attn), ("ffn", l.ffn), ("layer", l.both)];
            let whole = whole.map(|(name, effect)| (format!("{name}:{layer}"), effect));
            let heads = (1..).zip(&l.heads).map(|(head, effect)| (format!("head:{layer}.{head}"), *effect));
            whole.into_iter().chain(heads).collect::<Vec<_>>()
        };
        self.per_layer.iter().flat_map(of).collect()
    }
}

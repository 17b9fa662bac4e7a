//! What an analysis found, as it is saved (`analysis.json`). Layers count from 1; entropies and divergences are in nats.
//! docs/ANALYSIS.md says what every number means.

use super::stages::StageSpan;
use super::tally::Spread;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Of the format: 2 since it has spreads, similarities, divergences and decision depth.
pub const VERSION: u32 = 2;

/// How a hidden state X becomes a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lens {
    /// `softmax(X E_u^T)`: the paper's.
    #[default]
    Raw,
    /// `softmax(LN_final(X) E_u^T)`: the classic logit lens, for every state alike.
    FinalNorm,
}

/// Means over response tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    pub version: u32,
    /// As it was named by whoever asked for the analysis.
    pub model: String,
    pub lens: Lens,
    pub layers: usize,
    /// Response tokens.
    pub tokens: usize,
    pub samples: usize,
    pub vocab_size: usize,
    /// Of the model's own distribution, `softmax(LN_final(H^L) E_u^T)`.
    pub final_entropy: f64,
    pub final_spread: Spread,
    /// The last layer whose FFN widens the distribution; null when none does.
    pub boundary_layer: Option<usize>,
    pub stages: Vec<StageSpan>,
    pub stage_rule: String,
    pub stage_threshold: f64,
    /// The layer whose policy `chosen` compares the others with.
    pub chosen_layer: Option<usize>,
    /// `cos(H^i, H^j)` of raw states, `[L, L]`.
    pub similarity: Vec<Vec<f64>>,
    pub decision: Decision,
    pub per_layer: Vec<LayerFlow>,
}

/// Where tokens are decided: at the lowest layer from which on every layer's likeliest token is the final policy's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Mean over the tokens that are decided; null if none is.
    pub mean_layer: Option<f64>,
    /// Share of tokens that not even the last layer's policy agrees on.
    pub never: f64,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerFlow {
    pub layer: usize,
    pub entropy: Entropies<f64>,
    pub entropy_change: Changes<f64>,
    pub residual_cosine: Cosines<f64>,
    /// L2 norm of `H^l`: a raw lens reads a longer stream as a colder distribution.
    pub residual_norm: f64,
    pub spread: Spreads,
    /// This layer's policy beside the final one.
    #[serde(rename = "final")]
    pub last: AgainstFinal,
    /// This layer's policy beside the chosen layer's; null if none was chosen.
    pub chosen: Option<Divergence>,
}

/// Entropy of each hidden state of a layer, read as a policy (paper, equation 7).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entropies<T> {
    pub resid_pre: T,
    pub attn_in: T,
    pub attn: T,
    pub ffn_in: T,
    pub ffn: T,
    pub resid_post: T,
}

/// Output minus input (paper, equations 11 to 13); a module's input is its normed one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changes<T> {
    pub layer: T,
    pub attn: T,
    pub ffn: T,
}

/// `cos(A^l, H^{l-1})` and `cos(F^l, H^{l-1} + A^l)` (paper, figure 12).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cosines<T> {
    pub attn: T,
    pub ffn: T,
}

/// How a layer's quantities spread over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spreads {
    pub entropy: Entropies<Spread>,
    pub entropy_change: Changes<Spread>,
    pub residual_cosine: Cosines<Spread>,
    pub residual_norm: Spread,
}

/// A layer's policy beside the final policy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgainstFinal {
    /// `D(layer || final)`
    pub kl_to: f64,
    /// `D(final || layer)`
    pub kl_from: f64,
    /// Share of tokens for which both have the same likeliest token.
    pub top1_agreement: f64,
    /// Share of tokens that are decided at just this layer.
    pub decided: f64,
    /// Log-prob, under this layer's policy, of the token that came.
    pub log_prob: f64,
}

/// A layer's policy beside another layer's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// `D(layer || chosen)`
    pub kl_to: f64,
    /// `D(chosen || layer)`
    pub kl_from: f64,
}

impl Analysis {
    /// `per_layer` as a table: every number under its path, joined by underscores (`spread_entropy_ffn_p50`), and its values
    /// by layer. What was not asked for is there, without values.
    pub fn columns(&self) -> Vec<(String, Vec<Option<f64>>)> {
        let mut columns: Vec<(String, Vec<Option<f64>>)> = Vec::new();
        for (i, layer) in self.per_layer.iter().enumerate() {
            let mut row = Vec::new();
            let mut value = serde_json::to_value(layer).unwrap_or_default();
            if layer.chosen.is_none() {
                value["chosen"] = json!({ "kl_to": null, "kl_from": null });
            }
            flatten(String::new(), &value, &mut row);
            for (at, (name, value)) in row.into_iter().enumerate() {
                if i == 0 {
                    columns.push((name, Vec::new()));
                }
                if let Some((_, values)) = columns.get_mut(at) {
                    values.push(value);
                }
            }
        }
        columns
    }
}

fn flatten(path: String, value: &Value, out: &mut Vec<(String, Option<f64>)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}_{key}") };
                flatten(path, value, out);
            }
        }
        other => out.push((path, other.as_f64())),
    }
}

//! What an analysis found, as it is saved (`analysis.json`). Layers count from 1; entropies are in nats.

use super::stages::StageSpan;
use serde::{Deserialize, Serialize};

/// Means over response tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    pub layers: usize,
    /// Response tokens.
    pub tokens: usize,
    pub samples: usize,
    pub vocab_size: usize,
    /// Of the model's own distribution, `softmax(LN_final(H^L) E_u^T)`.
    pub final_entropy: f64,
    /// The last layer whose FFN widens the distribution; null when none does.
    pub boundary_layer: Option<usize>,
    pub stages: Vec<StageSpan>,
    pub stage_rule: String,
    pub stage_threshold: f64,
    pub per_layer: Vec<LayerFlow>,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerFlow {
    pub layer: usize,
    pub entropy: Entropies,
    pub entropy_change: Changes,
    pub residual_cosine: Cosines,
    /// L2 norm of `H^l`: a raw lens reads a longer stream as a colder distribution.
    pub residual_norm: f64,
}

/// Entropy of `softmax(X E_u^T)` for each hidden state X of a layer (paper, equation 7).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entropies {
    pub resid_pre: f64,
    pub attn_in: f64,
    pub attn: f64,
    pub ffn_in: f64,
    pub ffn: f64,
    pub resid_post: f64,
}

/// Output minus input (paper, equations 11 to 13); a module's input is its normed one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    pub layer: f64,
    pub attn: f64,
    pub ffn: f64,
}

/// `cos(A^l, H^{l-1})` and `cos(F^l, H^{l-1} + A^l)` (paper, figure 12).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cosines {
    pub attn: f64,
    pub ffn: f64,
}

//! The paper's central idea as a type: any hidden state times the unembedding is a policy (equations 5 and 6).

use crate::model::taps::Tap;
use std::fmt;

pub use crate::model::taps::{LayerIndex, LayerOutOfRange};

/// A distribution over next tokens that can be scored, sampled from, analysed and trained.
///
/// Internal policies use the **raw** hidden state: no final norm is applied (paper, section 2). `Layer(L)` of the
/// last layer is therefore not `Final`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InternalPolicy {
    /// `softmax(LN_final(H^L) E_u^T)`, the model itself (equation 1).
    Final,
    /// `softmax(H^l E_u^T)` (equation 5).
    Layer(LayerIndex),
    /// `softmax(A^l E_u^T)` (equation 6).
    Attention(LayerIndex),
    /// `softmax(F^l E_u^T)` (equation 6).
    Ffn(LayerIndex),
}

/// Why a policy's name could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("unknown policy {got:?}: expected final, layer:N, attn:N or ffn:N, with N a layer from 1 to {layers}")]
    Unknown { got: String, layers: usize },
    #[error("policy {got:?}: {source}")]
    Layer { got: String, source: LayerOutOfRange },
}

impl InternalPolicy {
    /// Reads `final`, `layer:6`, `attn:6` or `ffn:6` for a model of `layers` layers.
    pub fn parse(text: &str, layers: usize) -> Result<InternalPolicy, PolicyError> {
        let unknown = || PolicyError::Unknown { got: text.to_string(), layers };
        if text == "final" {
            return Ok(InternalPolicy::Final);
        }
        let (kind, number) = text.split_once(':').ok_or_else(unknown)?;
        let number: usize = number.parse().map_err(|_| unknown())?;
        let layer = LayerIndex::from_one_based(number, layers)
            .map_err(|source| PolicyError::Layer { got: text.to_string(), source });
        match kind {
            "layer" => Ok(InternalPolicy::Layer(layer?)),
            "attn" => Ok(InternalPolicy::Attention(layer?)),
            "ffn" => Ok(InternalPolicy::Ffn(layer?)),
            _ => Err(unknown()),
        }
    }

    /// The hidden state that this policy reads.
    pub fn tap(self) -> Tap {
        match self {
            InternalPolicy::Final => Tap::Final,
            InternalPolicy::Layer(l) => Tap::ResidPost(l),
            InternalPolicy::Attention(l) => Tap::Attn(l),
            InternalPolicy::Ffn(l) => Tap::Ffn(l),
        }
    }
}

impl fmt::Display for InternalPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InternalPolicy::Final => f.write_str("final"),
            InternalPolicy::Layer(l) => write!(f, "layer:{l}"),
            InternalPolicy::Attention(l) => write!(f, "attn:{l}"),
            InternalPolicy::Ffn(l) => write!(f, "ffn:{l}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_layers_count_from_one() {
        for name in ["final", "layer:1", "layer:4", "attn:2", "ffn:3"] {
            assert_eq!(InternalPolicy::parse(name, 4).unwrap().to_string(), name);
        }
        let six = InternalPolicy::parse("layer:4", 4).unwrap();
        assert_eq!(six, InternalPolicy::Layer(LayerIndex::from_one_based(4, 4).unwrap()));
    }

    #[test]
    fn a_layer_outside_of_the_model_is_named_with_the_models_range() {
        let error = InternalPolicy::parse("layer:40", 36).unwrap_err().to_string();
        assert!(error.contains("40") && error.contains("1..=36"), "{error}");
        assert!(InternalPolicy::parse("layer:0", 36).is_err());
        for nonsense in ["", "layer", "layer:", "layer:-1", "layer:x", "attention:3", "Final", "layer:99999999999999999999"] {
            assert!(InternalPolicy::parse(nonsense, 36).is_err(), "{nonsense}");
        }
    }
}

//! The paper's central idea as a type: any hidden state times the unembedding is a policy (equations 5 and 6).

mod gradient;

pub use gradient::{Part, Pass};

use crate::compute::backend::HeadStats;
use crate::compute::{Backend, Packing};
use crate::model::decoder::HeadScratch;
use crate::model::taps::Tap;
use crate::model::{Keep, Model, Workspace};
use std::fmt;

pub use crate::model::taps::{LayerIndex, LayerOutOfRange};

/// A distribution over next tokens that can be scored, sampled from, analysed and trained.
///
/// Internal policies use the **raw** hidden state: no final norm is applied (paper, section 2), but in `Normed`, which is there
/// to be compared with. `Layer(L)` of the last layer is therefore not `Final`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InternalPolicy {
    /// `softmax(LN_final(H^L) E_u^T)`, the model itself (equation 1).
    Final,
    /// `softmax(H^l E_u^T)` (equation 5).
    Layer(LayerIndex),
    /// `softmax(LN_final(H^l) E_u^T)`, with the final norm all the same: the classic logit lens, which the paper compares with
    /// (its table 5). Of the last layer it is `Final`.
    Normed(LayerIndex),
    /// `softmax(A^l E_u^T)` (equation 6).
    Attention(LayerIndex),
    /// `softmax(F^l E_u^T)` (equation 6).
    Ffn(LayerIndex),
}

/// Why a policy's name could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error(
        "unknown policy {got:?}: expected final, layer:N, attn:N, ffn:N or normed:N, with N a layer from 1 to {layers}"
    )]
    Unknown { got: String, layers: usize },
    #[error("policy {got:?}: {reason}")]
    Layer { got: String, reason: LayerOutOfRange },
}

impl InternalPolicy {
    /// Reads `final`, `layer:6`, `attn:6`, `ffn:6` or `normed:6` for a model of `layers` layers.
    pub fn parse(text: &str, layers: usize) -> Result<InternalPolicy, PolicyError> {
        let unknown = || PolicyError::Unknown { got: text.to_string(), layers };
        if text == "final" {
            return Ok(InternalPolicy::Final);
        }
        let (kind, number) = text.split_once(':').ok_or_else(unknown)?;
        let number: usize = number.parse().map_err(|_| unknown())?;
        let layer = LayerIndex::from_one_based(number, layers)
            .map_err(|reason| PolicyError::Layer { got: text.to_string(), reason });
        match kind {
            "layer" => Ok(InternalPolicy::Layer(layer?)),
            "normed" => Ok(InternalPolicy::Normed(layer?)),
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
            InternalPolicy::Normed(l) => Tap::Normed(l),
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
            InternalPolicy::Normed(l) => write!(f, "normed:{l}"),
            InternalPolicy::Attention(l) => write!(f, "attn:{l}"),
            InternalPolicy::Ffn(l) => write!(f, "ffn:{l}"),
        }
    }
}

/// Which rows of a packed batch are read, and the token that came after each. A prompt's last row appears once for
/// every continuation that begins after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub rows: Vec<usize>,
    pub ids: Vec<u32>,
}

impl Targets {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The response tokens of one sequence packed in `rows`, from token `response_start` (1 or more) on.
    pub fn push_response(&mut self, ids: &[u32], first_row: usize, response_start: usize) {
        for (t, id) in ids.iter().enumerate().skip(response_start) {
            self.rows.push(first_row + t - 1);
            self.ids.push(*id);
        }
    }

    /// Tokens `ids`, the first predicted by row `before` (a prompt's last), the others by the rows from `first_row` on,
    /// where the tokens themselves are packed.
    pub fn push_continuation(&mut self, ids: &[u32], before: usize, first_row: usize) {
        for (t, id) in ids.iter().enumerate() {
            self.rows.push(if t == 0 { before } else { first_row + t - 1 });
            self.ids.push(*id);
        }
    }
}

impl InternalPolicy {
    /// Log-probability of every target and entropy (nats) of the distribution it came from (equations 5 to 7), at
    /// `temperature`. Runs the decoder only as deep as this policy lies.
    pub fn score<B: Backend>(
        self,
        model: &Model<B>,
        ws: &mut Workspace<B>,
        packing: &Packing,
        targets: &Targets,
        temperature: f32,
    ) -> HeadStats {
        model.forward(ws, packing, self.tap(), Keep::Nothing);
        let mut scratch = std::mem::take(&mut ws.head);
        let HeadScratch { hidden, logits, .. } = &mut scratch;
        model.backend.gather_rows(ws.state(), &targets.rows, model.config.hidden_size, hidden);
        let stats = model.backend.head(model.unembedding(temperature), hidden, Some(&targets.ids), logits);
        ws.head = scratch;
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_layers_count_from_one() {
        for name in ["final", "layer:1", "layer:4", "attn:2", "ffn:3", "normed:2"] {
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
        for nonsense in
            ["", "layer", "layer:", "layer:-1", "layer:x", "attention:3", "Final", "layer:99999999999999999999"]
        {
            assert!(InternalPolicy::parse(nonsense, 36).is_err(), "{nonsense}");
        }
    }
}

//! What is followed of an analysis while a model trains: the numbers of every layer, bottom layer first (`probe.jsonl`).

use super::result::{Analysis, LayerFlow};
use crate::model::LayerIndex;
use serde::{Deserialize, Serialize};

/// Means over the response tokens of a fixed set of samples; lists have one value a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Response tokens.
    pub tokens: usize,
    pub entropy: LayerEntropies,
    pub entropy_change: LayerChanges,
    /// L2 norm of `H^l`.
    pub residual_norm: Vec<f64>,
    /// Cosine between the chosen layer's output and every layer's; null where no layer is chosen.
    pub cosine: Option<Vec<f64>>,
    /// Between every layer's policy and the chosen layer's; null where no layer is chosen.
    pub kl: Option<LayerDivergences>,
    /// `D(layer || final)`, in nats.
    pub kl_to_final: Vec<f64>,
    /// Of the model's own distribution, in nats.
    pub final_entropy: f64,
}

/// Entropy of the layer's, the attention's and the FFN's policy, in nats (paper, equations 5 to 7).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerEntropies {
    pub resid_post: Vec<f64>,
    pub attn: Vec<f64>,
    pub ffn: Vec<f64>,
}

/// What a layer and its modules do to the entropy, in nats (paper, equations 11 to 13).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerChanges {
    pub layer: Vec<f64>,
    pub attn: Vec<f64>,
    pub ffn: Vec<f64>,
}

/// Divergences from and to the chosen layer's policy, in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerDivergences {
    /// `D(layer || chosen)`
    pub to: Vec<f64>,
    /// `D(chosen || layer)`
    pub from: Vec<f64>,
}

impl Profile {
    /// Of an analysis that compared the layers with a chosen one, where there is one to follow.
    pub fn of(analysis: &Analysis) -> Profile {
        let by_layer = |value: fn(&LayerFlow) -> f64| analysis.per_layer.iter().map(value).collect();
        let divergences = |value: fn(&LayerFlow) -> Option<f64>| analysis.per_layer.iter().map(value).collect();
        let kl = |to: Option<_>, from: Option<_>| Some(LayerDivergences { to: to?, from: from? });
        Profile {
            tokens: analysis.tokens,
            entropy: LayerEntropies {
                resid_post: by_layer(|l| l.entropy.resid_post),
                attn: by_layer(|l| l.entropy.attn),
                ffn: by_layer(|l| l.entropy.ffn),
            },
            entropy_change: LayerChanges {
                layer: by_layer(|l| l.entropy_change.layer),
                attn: by_layer(|l| l.entropy_change.attn),
                ffn: by_layer(|l| l.entropy_change.ffn),
            },
            residual_norm: by_layer(|l| l.residual_norm),
            cosine: analysis.chosen_layer.and_then(|layer| analysis.similarity.get(layer.checked_sub(1)?).cloned()),
            kl: kl(divergences(|l| Some(l.chosen?.kl_to)), divergences(|l| Some(l.chosen?.kl_from))),
            kl_to_final: by_layer(|l| l.last.kl_to),
            final_entropy: analysis.final_entropy,
        }
    }

    /// Mean over the layers above `layer` and the final policy of the divergence of `layer`'s policy from them, in nats:
    /// how far what is optimized has come apart from what reads it. None if no layer was compared with.
    pub fn kl_to_later(&self, layer: LayerIndex) -> Option<f64> {
        let from = &self.kl.as_ref()?.from;
        let later = from.get(layer.one_based()..)?.iter().chain(self.kl_to_final.get(layer.index()));
        let (sum, n) = later.fold((0.0, 0usize), |(sum, n), kl| (sum + kl, n + 1));
        (n > 0).then(|| sum / n as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_from_later_policies_is_a_mean_over_the_layers_above_and_the_final_one() {
        let lists = |v: &[f64]| LayerEntropies { resid_post: v.into(), attn: v.into(), ffn: v.into() };
        let v = [0.0; 4];
        let profile = Profile {
            tokens: 1,
            entropy: lists(&v),
            entropy_change: LayerChanges { layer: v.into(), attn: v.into(), ffn: v.into() },
            residual_norm: v.into(),
            cosine: None,
            kl: Some(LayerDivergences { to: vec![9.0; 4], from: vec![5.0, 0.0, 1.0, 2.0] }),
            kl_to_final: vec![9.0, 6.0, 9.0, 4.0],
            final_entropy: 0.0,
        };
        let of = |number: usize| profile.kl_to_later(LayerIndex::from_one_based(number, 4).unwrap());
        // Layers 3 and 4, and layer 2 against the final policy; above the last layer there is only the final one.
        assert_eq!((of(2), of(4)), (Some((1.0 + 2.0 + 6.0) / 3.0), Some(4.0)));
        assert_eq!(
            Profile { kl: None, ..profile.clone() }.kl_to_later(LayerIndex::from_one_based(2, 4).unwrap()),
            None
        );
    }
}

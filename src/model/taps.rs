//! Names for the places of a decoder where a hidden state can be read.

use super::ModelConfig;
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

/// A layer of a particular model, counted from 1 as people and the paper count. Built once, range-checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(NonZeroU32);

/// A layer number outside of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {got} does not exist: this model has layers 1..={layers}")]
pub struct LayerOutOfRange {
    pub got: usize,
    pub layers: usize,
}

impl LayerIndex {
    /// `layer` counts from 1. Fails outside of `1..=layers`.
    pub fn from_one_based(layer: usize, layers: usize) -> Result<LayerIndex, LayerOutOfRange> {
        let out_of_range = LayerOutOfRange { got: layer, layers };
        if layer > layers {
            return Err(out_of_range);
        }
        let number = u32::try_from(layer).ok().and_then(NonZeroU32::new);
        number.map(LayerIndex).ok_or(out_of_range)
    }

    /// Neighbouring layers as a person writes them, counted from 1: `"6"`, `"1-6"`, or `"7-"` (to the last). Messages leave out
    /// what was read; the caller names it.
    pub fn parse_some(text: &str, layers: usize) -> Result<RangeInclusive<LayerIndex>> {
        let unreadable = || format!("expected a layer from 1 to {layers} (\"6\"), or some (\"1-6\", \"7-\")");
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let ends = match text.split_once('-') {
            None => number(text).map(|n| (n, n)),
            Some((first, last)) if last.trim().is_empty() => number(first).map(|n| (n, layers)),
            Some((first, last)) => number(first).zip(number(last)),
        };
        let (first, last) = ends.with_context(unreadable)?;
        let at = |n: usize| LayerIndex::from_one_based(n, layers).with_context(unreadable);
        let (first, last) = (at(first)?, at(last)?);
        ensure!(first <= last, "the first layer lies above the last");
        Ok(first..=last)
    }

    /// Every layer of a model, bottom up.
    pub fn all(layers: usize) -> impl DoubleEndedIterator<Item = LayerIndex> {
        (1..=layers as u32).filter_map(NonZeroU32::new).map(LayerIndex)
    }

    /// Counted from 1: for people, files and messages.
    pub fn one_based(self) -> usize {
        self.0.get() as usize
    }

    /// Counted from 0: for arrays.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Display for LayerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A kind of state, given the layer.
type OfLayer = fn(LayerIndex) -> Tap;

/// A hidden state of the decoder, `[T, d]` but for [`Tap::Z`] (names as in TransformerLens where it has them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tap {
    /// `H^{l-1}`, the stream that enters layer l.
    ResidPre(LayerIndex),
    /// `LN_attn(H^{l-1})`, what the attention of layer l sees.
    AttnIn(LayerIndex),
    /// What the heads of layer l hand to the output projection, side by side: `[T, H hd]`.
    Z(LayerIndex),
    /// `A^l`, what the attention of layer l writes.
    Attn(LayerIndex),
    /// `M^l = H^{l-1} + A^l`.
    ResidMid(LayerIndex),
    /// `LN_ffn(M^l)`, what the FFN of layer l sees.
    FfnIn(LayerIndex),
    /// `F^l`, what the FFN of layer l writes.
    Ffn(LayerIndex),
    /// `H^l`, raw: no final norm, in the last layer neither.
    ResidPost(LayerIndex),
    /// `LN_final(H^l)`, what the classic logit lens reads.
    Normed(LayerIndex),
    /// `LN_final(H^L)`, what the model's own logits are made of.
    Final,
}

impl Tap {
    /// One kind of state of some layers as a person writes them ([`LayerIndex::parse_some`]): `"attn:6"`, `"resid_post:1-6"`; or
    /// `"final"`. Names are those of [`fmt::Display`].
    pub fn parse_some(text: &str, layers: usize) -> Result<Vec<Tap>> {
        if text == "final" {
            return Ok(vec![Tap::Final]);
        }
        let expected = || {
            let names: Vec<&str> = Tap::KINDS.iter().map(|(name, _)| *name).collect();
            format!("expected final, or one of {} with layers, as in attn:6", names.join(", "))
        };
        let (name, some) = text.split_once(':').with_context(expected)?;
        let (_, kind) = Tap::KINDS.iter().find(|(known, _)| *known == name).with_context(expected)?;
        let some = LayerIndex::parse_some(some, layers)?;
        Ok(LayerIndex::all(layers).filter(|layer| some.contains(layer)).map(kind).collect())
    }

    /// Kinds of states that a forward shows of every layer, bottom up.
    const KINDS: [(&'static str, OfLayer); 8] = [
        ("resid_pre", Tap::ResidPre),
        ("attn_in", Tap::AttnIn),
        ("z", Tap::Z),
        ("attn", Tap::Attn),
        ("resid_mid", Tap::ResidMid),
        ("ffn_in", Tap::FfnIn),
        ("ffn", Tap::Ffn),
        ("resid_post", Tap::ResidPost),
    ];

    /// A forward shows states in the order of their heights.
    pub fn height(self) -> (usize, usize) {
        let of_layer = |layer: LayerIndex| {
            let kind = Tap::KINDS.iter().position(|(_, kind)| kind(layer) == self);
            (layer.one_based(), kind.unwrap_or(Tap::KINDS.len()))
        };
        self.layer().map_or((usize::MAX, 0), of_layer)
    }

    /// Numbers of a token.
    pub fn width(self, config: &ModelConfig) -> usize {
        if matches!(self, Tap::Z(_)) { config.q_dim() } else { config.hidden_size }
    }

    /// The layer that it lies in; none for [`Tap::Final`], which lies above them all.
    pub fn layer(self) -> Option<LayerIndex> {
        match self {
            Tap::ResidPre(l) | Tap::AttnIn(l) | Tap::Z(l) | Tap::Attn(l) | Tap::ResidMid(l) => Some(l),
            Tap::FfnIn(l) | Tap::Ffn(l) | Tap::ResidPost(l) | Tap::Normed(l) => Some(l),
            Tap::Final => None,
        }
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(layer) = self.layer() else { return f.write_str("final") };
        let name = Tap::KINDS.iter().find(|(_, kind)| kind(layer) == *self).map_or("normed", |(name, _)| name);
        write!(f, "{name}:{layer}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_names_that_are_read_back_and_an_order() {
        let names =
            ["resid_pre:2", "attn_in:2", "z:2", "attn:2", "resid_mid:2", "ffn_in:2", "ffn:2", "resid_post:2", "final"];
        let taps: Vec<Tap> = names.iter().flat_map(|name| Tap::parse_some(name, 3).unwrap()).collect();
        assert_eq!(taps.iter().map(Tap::to_string).collect::<Vec<_>>(), names);
        assert!(taps.is_sorted_by_key(|tap| tap.height()));
        assert_eq!(Tap::parse_some("ffn:2-", 3).unwrap().len(), 2);
        for (text, expected) in
            [("ffn", "attn:6"), ("mlp:1", "resid_mid"), ("ffn:4", "from 1 to 3"), ("ffn:", "from 1 to 3")]
        {
            let error = format!("{:#}", Tap::parse_some(text, 3).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

//! Names for the places of a decoder where a hidden state can be read.

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

/// A hidden state `[T, d]` of the decoder (names as in TransformerLens where it has them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tap {
    /// `H^{l-1}`, the stream that enters layer l.
    ResidPre(LayerIndex),
    /// `LN_attn(H^{l-1})`, what the attention of layer l sees.
    AttnIn(LayerIndex),
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
    /// The layer that it lies in; none for [`Tap::Final`], which lies above them all.
    pub fn layer(self) -> Option<LayerIndex> {
        match self {
            Tap::ResidPre(l) | Tap::AttnIn(l) | Tap::Attn(l) | Tap::ResidMid(l) => Some(l),
            Tap::FfnIn(l) | Tap::Ffn(l) | Tap::ResidPost(l) | Tap::Normed(l) => Some(l),
            Tap::Final => None,
        }
    }
}

//! Which parameters get a gradient: what lies below a policy, less what is frozen.

use super::ParamLayout;
use super::taps::{LayerIndex, Tap};
use std::ops::Range;

/// A flag for every tensor of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    /// Range in the flat array, and whether it is trained; in the layout's order.
    tensors: Vec<(Range<usize>, bool)>,
}

impl Trained {
    pub fn everything(layout: &ParamLayout) -> Trained {
        Trained { tensors: layout.tensors.iter().map(|t| (t.range(), true)).collect() }
    }

    /// Only the tensors that are in both.
    pub fn and(mut self, other: &[bool]) -> Trained {
        self.tensors.iter_mut().zip(other).for_each(|((_, trained), other)| *trained &= other);
        self
    }

    /// Whether the tensors of a range of the layout are trained: those of one range share a fate.
    pub fn has(&self, range: &Range<usize>) -> bool {
        self.tensors.binary_search_by_key(&range.start, |(r, _)| r.start).is_ok_and(|at| self.tensors[at].1)
    }

    /// Flag of a tensor, by its place in the layout.
    pub fn tensor(&self, at: usize) -> bool {
        self.tensors[at].1
    }

    pub fn is_empty(&self) -> bool {
        !self.tensors.iter().any(|(_, trained)| *trained)
    }

    /// Stretches of the flat array that are trained, as long as can be.
    pub fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (range, _) in self.tensors.iter().filter(|(_, trained)| *trained) {
            match runs.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => runs.push(range.clone()),
            }
        }
        runs
    }

    /// The lowest layer that a backward must go down to; none where the unembedding or the final norm is all that is trained.
    pub(super) fn floor(&self, layout: &ParamLayout) -> Option<LayerIndex> {
        let mut layers = LayerIndex::all(layout.layers.len());
        if self.has(&layout.embed) {
            return layers.next();
        }
        layers.find(|layer| {
            let p = &layout.layers[layer.index()];
            let adapters = layout.adapter.as_ref().map(|adapter| adapter.layers[layer.index()].range());
            let inside = [p.attn_norm.start..p.down.end, adapters.unwrap_or_default()];
            let inside = |at: usize| inside.iter().any(|range| range.contains(&at));
            self.tensors.iter().any(|(range, trained)| *trained && inside(range.start))
        })
    }
}

impl ParamLayout {
    /// What a policy reading `tap` trains: embedding, unembedding, the layers up to the tap (for an attention output without
    /// that layer's FFN), and the final norm where it is read through it. With an adapter, the adapters of these layers alone.
    pub fn trained_by(&self, tap: Tap) -> Trained {
        if let Some(adapter) = &self.adapter {
            let below = match tap {
                Tap::Final => adapter.range.end,
                Tap::ResidPost(l) | Tap::Normed(l) | Tap::Ffn(l) => adapter.layers[l.index()].ffn.end,
                Tap::Attn(l) => adapter.layers[l.index()].attn.end,
                other => unreachable!("no policy reads {other:?}"),
            };
            let trained = adapter.range.start..below;
            let tensors = self.tensors.iter().map(|t| t.range());
            return Trained { tensors: tensors.map(|range| (range.clone(), trained.contains(&range.start))).collect() };
        }
        let below = match tap {
            Tap::Final => self.len(),
            Tap::ResidPost(l) | Tap::Normed(l) | Tap::Ffn(l) => self.layers[l.index()].down.end,
            Tap::Attn(l) => self.layers[l.index()].o.end,
            other => unreachable!("no policy reads {other:?}"),
        };
        let normed = matches!(tap, Tap::Normed(_));
        let trained = |range: &Range<usize>| range.start < below || normed && *range == self.final_norm;
        let tensors = self.tensors.iter().map(|t| t.range());
        Trained { tensors: tensors.map(|range| (range.clone(), trained(&range))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::InitConfig;

    #[test]
    fn what_a_policy_trains_and_how_far_down_a_backward_goes() {
        let init = InitConfig { layers: 3, tie_word_embeddings: false, ..InitConfig::default() };
        let layout = ParamLayout::new(&init.model_config(50).unwrap());
        let layer = |n| LayerIndex::from_one_based(n, 3).unwrap();
        let end = |n: usize| layout.layers[n - 1].down.end;
        let one = |run: Range<usize>| vec![run];
        assert_eq!(layout.trained_by(Tap::Final).runs(), one(0..layout.len()));
        assert_eq!(layout.trained_by(Tap::ResidPost(layer(2))).runs(), one(0..end(2)));
        assert_eq!(layout.trained_by(Tap::Attn(layer(2))).runs(), one(0..layout.layers[1].o.end));
        assert_eq!(layout.trained_by(Tap::Normed(layer(2))).runs(), [0..end(2), layout.final_norm.clone()]);

        // Embedding and the first two layers frozen: the backward ends with layer 3.
        let above = |from: usize| -> Vec<bool> { layout.tensors.iter().map(|t| t.offset >= from).collect() };
        let frozen = layout.trained_by(Tap::Final).and(&above(end(2)));
        assert_eq!((frozen.runs(), frozen.floor(&layout)), (one(end(2)..layout.len()), Some(layer(3))));
        assert!(frozen.has(&layout.layers[2].qkv) && !frozen.has(&layout.layers[1].qkv) && !frozen.has(&layout.embed));
        // The unembedding alone needs no layer; the embedding needs them all.
        let only = |range: &Range<usize>| layout.tensors.iter().map(|t| t.range() == *range).collect::<Vec<_>>();
        let floor = |range: &Range<usize>| Trained::everything(&layout).and(&only(range)).floor(&layout);
        assert_eq!(
            (floor(&layout.unembed), floor(&layout.final_norm), floor(&layout.embed)),
            (None, None, Some(layer(1)))
        );
        assert!(layout.trained_by(Tap::ResidPost(layer(2))).and(&above(end(2))).is_empty());
    }
}

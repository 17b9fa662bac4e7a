//! A second copy of the weights, laid out for decoding.

use super::Model;
use super::taps::{LayerIndex, Tap};
use crate::compute::Backend;
use crate::compute::cpu::Cpu;

/// The linear layers that a decoding step goes through, packed once for a whole rollout. In f32 they take as much memory as
/// the weights, in bf16 half of it. Of no use after the weights have changed.
pub struct PackedModel<B: Backend = Cpu> {
    pub(super) layers: Vec<PackedLayer<B>>,
    /// The unembedding, `[V, d]`.
    pub unembed: B::Packed,
}

pub(super) struct PackedLayer<B: Backend> {
    pub qkv: B::Packed,
    pub o: B::Packed,
    pub gate_up: B::Packed,
    pub down: B::Packed,
}

impl<B: Backend> PackedModel<B> {
    /// The layers below `until` and the unembedding. None where this machine has no packed products.
    pub fn new(model: &Model<B>, until: Tap) -> Option<PackedModel<B>> {
        let c = &model.config;
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let pack = |range, o, i| model.backend.pack(model.param(range), o, i);
        let depth = until.layer().map_or(c.layers, LayerIndex::one_based);
        let layers = model.layout.layers[..depth].iter().map(|p| {
            Some(PackedLayer {
                qkv: pack(&p.qkv, c.qkv_dim(), d)?,
                o: pack(&p.o, d, c.q_dim())?,
                gate_up: pack(&p.gate_up, 2 * f, d)?,
                down: pack(&p.down, d, f)?,
            })
        });
        Some(PackedModel {
            layers: layers.collect::<Option<_>>()?,
            unembed: pack(&model.layout.unembed, c.vocab_size, d)?,
        })
    }
}

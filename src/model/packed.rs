//! A second copy of the weights, laid out for decoding.

use super::taps::{LayerIndex, Tap};
use super::{Model, ModelConfig, ParamLayout};
use crate::compute::Backend;
use crate::compute::backend::Weight;
use crate::compute::cpu::Cpu;
use std::ops::Range;
use std::sync::Arc;

/// The linear layers that a decoding step goes through, packed once for a whole rollout. In f32 they take as much memory as
/// the weights, in bf16 half of it. Of no use after the weights have changed.
#[derive(Debug)]
pub struct PackedModel<B: Backend = Cpu> {
    pub(super) layers: Vec<PackedLayer<B>>,
    /// The unembedding, `[V, d]`.
    pub unembed: B::Packed,
    /// The parameters that are there as nothing else, in order.
    replaced: Vec<Range<usize>>,
}

#[derive(Debug)]
pub(super) struct PackedLayer<B: Backend> {
    pub qkv: B::Packed,
    pub o: B::Packed,
    pub gate_up: B::Packed,
    pub down: B::Packed,
}

impl<B: Backend> PackedModel<B> {
    /// The layers below `until` and the unembedding. None where this device has no packed products.
    pub fn of(model: &Model<B>, until: Tap) -> Option<Arc<PackedModel<B>>> {
        if let Some(packed) = &model.packed {
            let (there, depth) = (packed.layers.len(), depth(model, until));
            assert!(there >= depth, "sampling at layer {depth} of a model that was packed up to layer {there}");
            return Some(packed.clone());
        }
        let pack = |range: &Range<usize>, o, i| model.backend.pack(model.param(range), o, i);
        PackedModel::made(&model.config, &model.layout, depth(model, until), pack).map(Arc::new)
    }

    fn made(
        c: &ModelConfig,
        layout: &ParamLayout,
        depth: usize,
        mut pack: impl FnMut(&Range<usize>, usize, usize) -> Option<B::Packed>,
    ) -> Option<PackedModel<B>> {
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let layers = layout.layers[..depth].iter().map(|p| {
            Some(PackedLayer {
                qkv: pack(&p.qkv, c.qkv_dim(), d)?,
                o: pack(&p.o, d, c.q_dim())?,
                gate_up: pack(&p.gate_up, 2 * f, d)?,
                down: pack(&p.down, d, f)?,
            })
        });
        let layers = layers.collect::<Option<_>>()?;
        Some(PackedModel { layers, unembed: pack(&layout.unembed, c.vocab_size, d)?, replaced: Vec::new() })
    }

    /// Whether any of these parameters are there no more.
    pub(super) fn replaces(&self, range: &Range<usize>) -> bool {
        let next = self.replaced.partition_point(|replaced| replaced.end <= range.start);
        self.replaced.get(next).is_some_and(|replaced| replaced.start < range.end)
    }
}

/// Layers that a policy's samples go through.
fn depth<B: Backend>(model: &Model<B>, until: Tap) -> usize {
    until.layer().map_or(model.config.layers, LayerIndex::one_based)
}

impl<B: Backend> Model<B> {
    /// The embeddings, wherever they are.
    pub(super) fn embedding(&self) -> Weight<'_, B> {
        match &self.packed {
            Some(packed) if packed.replaces(&self.layout.embed) => Weight::Packed(&packed.unembed),
            _ => Weight::AsItLies(self.param(&self.layout.embed)),
        }
    }

    /// A model of which nothing is wanted but samples, of policies that lie no higher than `until`: where the device packs weights for
    /// that, the memory of those that it packs goes back, one after the other. Whoever asks for them afterwards is refused.
    pub fn for_sampling(mut self, until: Tap) -> Model<B> {
        self.assert_whole();
        let (depth, Model { config, layout, params, backend, .. }) = (depth(&self, until), &mut self);
        let mut replaced = Vec::new();
        let packed = PackedModel::made(config, layout, depth, |range, outputs, inputs| {
            let packed = backend.pack(B::params(params, range), outputs, inputs)?;
            // Tied embeddings are still looked up, where the packed ones were not rounded in those.
            if *range != layout.embed || B::is_exact(&packed) {
                backend.give_up(params, range);
                replaced.push(range.clone());
            }
            Some(packed)
        });
        replaced.sort_by_key(|range| range.start);
        self.packed = packed.map(|packed| Arc::new(PackedModel { replaced, ..packed }));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Packing;
    use crate::model::init::{InitConfig, random_params};
    use crate::model::{Compute, Keep, Workspace};

    fn model(tied: bool) -> Model {
        let init =
            InitConfig { hidden_size: 64, layers: 3, heads: 4, kv_heads: 2, head_dim: 16, ..InitConfig::default() };
        let mut config = init.model_config(300).unwrap();
        config.tie_word_embeddings = tied;
        let params = random_params(&config, &ParamLayout::new(&config), 0.05, 1);
        Model::new(config, params)
    }

    #[test]
    fn a_model_for_sampling_decodes_the_same_bits() {
        let packing = Packing::single(&[5, 17, 250, 3]);
        for (tied, compute) in [true, false].into_iter().flat_map(|tied| [(tied, Compute::F32), (tied, Compute::Bf16)])
        {
            let model = |tied| {
                let mut model = model(tied);
                model.backend.compute = compute;
                model
            };
            let states = |model: Model, until: Tap| {
                let mut ws = Workspace::new(&model);
                ws.pack(&model, until);
                model.forward(&mut ws, &packing, until, Keep::Nothing);
                ws.state().to_f32().into_owned()
            };
            let second = Tap::ResidPost(LayerIndex::from_one_based(2, 3).unwrap());
            for (packed, until) in [(Tap::Final, Tap::Final), (Tap::Final, second), (second, second)] {
                assert_eq!(states(model(tied).for_sampling(packed), until), states(model(tied), until));
            }
        }
    }

    #[test]
    fn what_was_given_up_is_refused_and_the_rest_is_as_it_was() {
        let (whole, refused) = (model(false), |model: &Model, range: &Range<usize>| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.param(range).len())).is_err()
        });
        let first = Tap::ResidPost(LayerIndex::from_one_based(1, 3).unwrap());
        let sampled = whole.clone().for_sampling(first);
        let (below, above) = (&whole.layout.layers[0], &whole.layout.layers[1]);
        for range in [&below.qkv, &below.o, &below.gate_up, &below.down, &whole.layout.unembed] {
            assert!(refused(&sampled, range) && !refused(&whole, range), "{range:?}");
        }
        for range in [&below.attn_norm, &below.ffn_norm, &above.qkv, &whole.layout.embed, &whole.layout.final_norm] {
            assert_eq!(sampled.param(range), whole.param(range));
        }
        // Tied embeddings stay where the packed ones are rounded.
        let mut tied = model(true);
        for compute in [Compute::F32, Compute::Bf16] {
            tied.backend.compute = compute;
            let (sampled, embed) = (tied.clone().for_sampling(Tap::Final), &tied.layout.embed);
            assert_eq!(refused(&sampled, embed), compute.here() == Compute::F32);
        }
    }
}

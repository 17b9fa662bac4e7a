//! A second copy of the weights, laid out for decoding.

use super::params::LayerParams;
use super::taps::{LayerIndex, Tap};
use super::weights::TensorReader;
use super::{Model, ModelConfig, ParamLayout};
use crate::compute::Backend;
use crate::compute::backend::{Weight, sure};
use crate::compute::cpu::Cpu;
use anyhow::Result;
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
        let depth = depth(&model.config, until);
        if let Some(packed) = &model.packed {
            let there = packed.layers.len();
            assert!(there >= depth, "sampling at layer {depth} of a model that was packed up to layer {there}");
            return Some(packed.clone());
        }
        let (c, layout) = (&model.config, &model.layout);
        let pack = |range: &Range<usize>, o, i| model.backend.pack(model.param(range), o, i);
        let layers = layout.layers[..depth].iter().map(|p| PackedLayer::made(c, p, pack)).collect::<Option<_>>()?;
        let unembed = pack(&layout.unembed, c.vocab_size, c.hidden_size)?;
        Some(Arc::new(PackedModel { layers, unembed, replaced: Vec::new() }))
    }

    /// Whether any of these parameters are there no more.
    pub(super) fn replaces(&self, range: &Range<usize>) -> bool {
        let next = self.replaced.partition_point(|replaced| replaced.end <= range.start);
        self.replaced.get(next).is_some_and(|replaced| replaced.start < range.end)
    }
}

impl<B: Backend> PackedLayer<B> {
    fn made(
        c: &ModelConfig,
        p: &LayerParams,
        mut pack: impl FnMut(&Range<usize>, usize, usize) -> Option<B::Packed>,
    ) -> Option<PackedLayer<B>> {
        let (d, f) = (c.hidden_size, c.intermediate_size);
        Some(PackedLayer {
            qkv: pack(&p.qkv, c.qkv_dim(), d)?,
            o: pack(&p.o, d, c.q_dim())?,
            gate_up: pack(&p.gate_up, 2 * f, d)?,
            down: pack(&p.down, d, f)?,
        })
    }
}

/// Layers that a policy's samples go through.
fn depth(config: &ModelConfig, until: Tap) -> usize {
    until.layer().map_or(config.layers, LayerIndex::one_based)
}

/// Weights on their way from the flat array into a [`PackedModel`].
struct Replacing<'a, B: Backend> {
    config: &'a ModelConfig,
    layout: &'a ParamLayout,
    backend: &'a B,
    params: &'a mut B::Params,
    replaced: Vec<Range<usize>>,
}

impl<B: Backend> Replacing<'_, B> {
    /// Packs the weights of `depth` layers and of the unembedding, and gives the memory of those and of the layers above back: after
    /// each part of the flat array, so that no other has to be there before `ready` returns for it. None where this device has no
    /// packed products.
    fn replace<E>(
        mut self,
        depth: usize,
        mut ready: impl FnMut(&mut B::Params, Range<usize>) -> Result<(), E>,
    ) -> Result<Option<PackedModel<B>>, E> {
        let (c, layout) = (self.config, self.layout);
        let last = layout.final_norm.start;
        ready(self.params, 0..layout.layers.first().map_or(last, |p| p.range().start))?;
        let unembed = self.pack(&layout.unembed, c.vocab_size, c.hidden_size);
        let mut layers = Vec::with_capacity(depth);
        for (i, p) in layout.layers.iter().enumerate() {
            ready(self.params, p.range())?;
            if i < depth {
                layers.extend(PackedLayer::made(c, p, |range, o, i| self.pack(range, o, i)));
            } else if unembed.is_some() {
                self.give_up(&p.range());
            }
        }
        ready(self.params, last..layout.len())?;
        Ok(unembed.map(|unembed| PackedModel { layers, unembed, replaced: self.replaced }))
    }

    fn pack(&mut self, range: &Range<usize>, outputs: usize, inputs: usize) -> Option<B::Packed> {
        let packed = self.backend.pack(B::params(self.params, range), outputs, inputs)?;
        // Tied embeddings are still looked up, where the packed ones were not rounded in those.
        if *range != self.layout.embed || B::is_exact(&packed) {
            self.give_up(range);
        }
        Some(packed)
    }

    fn give_up(&mut self, range: &Range<usize>) {
        self.backend.give_up(self.params, range);
        self.replaced.push(range.clone());
    }
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
    /// that, the memory of those that it packs goes back, one after the other, and that of the layers above. Whoever asks for them
    /// afterwards is refused.
    pub fn for_sampling(mut self, until: Tap) -> Model<B> {
        self.assert_whole();
        let (depth, Model { config, layout, params, backend, .. }) = (depth(&self.config, until), &mut self);
        let replacing = Replacing { config, layout, backend, params, replaced: Vec::new() };
        self.packed = sure(replacing.replace(depth, |_, _| Ok(()))).map(Arc::new);
        self
    }
}

impl Model {
    /// [`Model::read`] and [`Model::for_sampling`] in one: weights are packed as they are read, so that no more than a layer of them, or
    /// the embeddings, is there twice. `look` is shown each part of the flat array while it is there.
    pub fn read_for_sampling(
        weights: TensorReader,
        backend: Cpu,
        until: Tap,
        mut look: impl FnMut(&[f32], Range<usize>),
    ) -> Result<Model> {
        let (mut params, layout) = (weights.unfilled(), weights.whole_layout().clone());
        let (config, depth) = (&weights.config, depth(&weights.config, until));
        let replaced = Vec::new();
        let replacing = Replacing { config, layout: &layout, backend: &backend, params: &mut params, replaced };
        let packed = replacing.replace(depth, |params, part| {
            weights.fill(params, part.clone())?;
            look(params, part);
            anyhow::Ok(())
        })?;
        Ok(Model { config: weights.config, layout, params, backend, packed: packed.map(Arc::new), ablation: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Packing;
    use crate::model::init::{InitConfig, random_params};
    use crate::model::weights::SaveOptions;
    use crate::model::{Compute, Keep, LoraConfig, Workspace, weights};

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
        for (tied, compute) in [true, false].into_iter().flat_map(|tied| [(tied, Compute::F32), (tied, Compute::Bf16)])
        {
            let model = |tied| {
                let mut model = model(tied);
                model.backend.compute = compute;
                model
            };
            let second = Tap::ResidPost(LayerIndex::from_one_based(2, 3).unwrap());
            for (packed, until) in [(Tap::Final, Tap::Final), (Tap::Final, second), (second, second)] {
                assert_eq!(states(&model(tied).for_sampling(packed), until), states(&model(tied), until));
            }
        }
    }

    /// What a forward makes of a model.
    fn states(model: &Model, until: Tap) -> Vec<f32> {
        let mut ws = Workspace::new(model);
        ws.pack(model, until);
        model.forward(&mut ws, &Packing::single(&[5, 17, 250, 3]), until, Keep::Nothing);
        ws.state().to_f32().into_owned()
    }

    #[test]
    fn a_checkpoint_that_is_packed_as_it_is_read_decodes_the_same_bits() {
        let second = Tap::ResidPost(LayerIndex::from_one_based(2, 3).unwrap());
        for (tied, compute) in [true, false].into_iter().flat_map(|tied| [(tied, Compute::F32), (tied, Compute::Bf16)])
        {
            let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut model = model(tied);
            weights::save(base.path(), &model.config, &model.layout, &model.params, &SaveOptions::default()).unwrap();
            model.add_adapter(&LoraConfig::default(), "base", 1).unwrap();
            let start = model.layout.trainable().start;
            model.params[start..].iter_mut().enumerate().for_each(|(i, x)| *x += 0.1 * (i as f32 * 0.7).sin());
            weights::save_adapter(adapter.path(), &model).unwrap();
            for (until, adapted) in [(Tap::Final, false), (second, false), (Tap::Final, true), (second, true)] {
                let open = || match adapted {
                    true => TensorReader::open_adapter(adapter.path(), base.path()).unwrap(),
                    false => TensorReader::open(base.path()).unwrap(),
                };
                let backend = Cpu { compute };
                let whole = Model::read(open()).unwrap().on(backend);
                let mut seen = vec![f32::NAN; whole.params.len()];
                let look = |params: &[f32], part: Range<usize>| {
                    assert!(params.len() == seen.len() && seen[part.clone()].iter().all(|x| x.is_nan()));
                    seen[part.clone()].copy_from_slice(&params[part]);
                };
                let sampled = Model::read_for_sampling(open(), backend, until, look).unwrap();
                assert_eq!(seen, whole.params);
                assert_eq!(states(&sampled, until), states(&whole, until));
                assert_eq!(sampled.param(&whole.layout.final_norm), whole.param(&whole.layout.final_norm));
                // What for_sampling gives up of a model that is there already is never there.
                let whole = whole.for_sampling(until);
                let replaced = |model: &Model| model.packed.as_ref().unwrap().replaced.clone();
                assert_eq!(replaced(&sampled), replaced(&whole));
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
        for range in [&below.qkv, &below.o, &below.gate_up, &below.down, &whole.layout.unembed, &above.qkv] {
            assert!(refused(&sampled, range) && !refused(&whole, range), "{range:?}");
        }
        for range in [&below.attn_norm, &below.ffn_norm, &whole.layout.embed, &whole.layout.final_norm] {
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

//! A decoder without some of its modules: what they would write is replaced by a constant, in every forward.

use super::{LayerIndex, Model, ModelConfig};
use crate::compute::Backend;
use crate::compute::backend::Kind;
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// A query head of a layer, counted from 1 as layers are. Built once, range-checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadIndex(NonZeroU32);

impl HeadIndex {
    /// Every head of a layer.
    pub fn all(heads: usize) -> impl Iterator<Item = HeadIndex> {
        (1..=heads as u32).filter_map(NonZeroU32::new).map(HeadIndex)
    }

    /// Counted from 0: for arrays.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Display for HeadIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a decoder can be run without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// `A^l`, what the attention of layer l writes.
    Attention(LayerIndex),
    /// `F^l`, what the FFN of layer l writes.
    Ffn(LayerIndex),
    /// Both.
    Layer(LayerIndex),
    /// What one head of layer l hands to the output projection.
    Head(LayerIndex, HeadIndex),
}

impl Module {
    /// Modules as a person writes them: `"attn:6"`, `"ffn:1-6"`, `"layer:7-"`, or `"head:6.3"`, the third head of layer 6.
    pub fn parse_some(text: &str, config: &ModelConfig) -> Result<Vec<Module>> {
        let (layers, heads) = (config.layers, config.heads);
        let expected = || {
            format!(
                "expected attn, ffn or layer with layers from 1 to {layers}, as in attn:6 or ffn:1-6, or head:6.3, of {heads} \
                 heads"
            )
        };
        let (kind, place) = text.split_once(':').with_context(expected)?;
        let some = |kind: fn(LayerIndex) -> Module| {
            let some = LayerIndex::parse_some(place, layers)?;
            Ok(LayerIndex::all(layers).filter(|layer| some.contains(layer)).map(kind).collect())
        };
        match kind {
            "attn" => some(Module::Attention),
            "ffn" => some(Module::Ffn),
            "layer" => some(Module::Layer),
            "head" => {
                let (layer, head) = place.split_once('.').with_context(expected)?;
                let (layer, head) = layer.parse().ok().zip(head.parse::<usize>().ok()).with_context(expected)?;
                let layer = LayerIndex::from_one_based(layer, layers)?;
                let named = HeadIndex::all(heads).find(|index| index.index() + 1 == head);
                let named =
                    named.with_context(|| format!("head {head} does not exist: this model has heads 1..={heads}"));
                Ok(vec![Module::Head(layer, named?)])
            }
            _ => Err(anyhow::anyhow!("unknown module {kind:?}")).with_context(expected),
        }
    }

    pub fn layer(self) -> LayerIndex {
        match self {
            Module::Attention(layer) | Module::Ffn(layer) | Module::Layer(layer) | Module::Head(layer, _) => layer,
        }
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Module::Attention(layer) => write!(f, "attn:{layer}"),
            Module::Ffn(layer) => write!(f, "ffn:{layer}"),
            Module::Layer(layer) => write!(f, "layer:{layer}"),
            Module::Head(layer, head) => write!(f, "head:{layer}.{head}"),
        }
    }
}

/// What modules write on average, for [`Model::ablate`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Means {
    /// Of each layer, bottom up.
    pub layers: Vec<LayerMeans>,
}

/// Of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerMeans {
    /// Of what the heads hand to the output projection, `[H hd]`.
    pub z: Vec<f32>,
    /// Of `A^l`, `[d]`.
    pub attn: Vec<f32>,
    /// Of `F^l`, `[d]`.
    pub ffn: Vec<f32>,
}

/// Constants that stand in for what modules write.
#[derive(Debug)]
pub(super) struct Ablation<B: Backend> {
    layers: Vec<Replaced<B::Array>>,
}

/// Of one layer; f32.
#[derive(Debug)]
struct Replaced<A> {
    /// `[hd]` each.
    heads: Vec<(HeadIndex, A)>,
    /// `[d]`
    attn: Option<A>,
    /// `[d]`
    ffn: Option<A>,
}

impl<B: Backend> Model<B> {
    /// From here on these modules write a constant: zeros, or what they write on average (`means`, of this model). Keys and values of a
    /// cache that was filled before are the whole model's. No modules: the model is whole again.
    ///
    /// Errors: means of a model of another shape.
    pub fn ablate(&mut self, modules: &[Module], means: Option<&Means>) -> Result<()> {
        let (d, hd, q_dim) = (self.config.hidden_size, self.config.head_dim, self.config.q_dim());
        if let Some(means) = means {
            let fits = |m: &LayerMeans| (m.z.len(), m.attn.len(), m.ffn.len()) == (q_dim, d, d);
            let fit = means.layers.len() == self.config.layers && means.layers.iter().all(fits);
            ensure!(fit, "means of what modules write in a model of another shape: expected this model's own");
        }
        let constant = |mean: Option<&[f32]>, n: usize| {
            let mut array = B::Array::default();
            self.backend.resize(&mut array, n, Kind::F32);
            self.backend.upload(mean.unwrap_or(&vec![0.0; n]), &mut array);
            array
        };
        let none = || Replaced { heads: Vec::new(), attn: None, ffn: None };
        let mut layers: Vec<_> = LayerIndex::all(self.config.layers).map(|_| none()).collect();
        for module in modules {
            let at = module.layer().index();
            let (replaced, mean) = (&mut layers[at], means.map(|means| &means.layers[at]));
            if matches!(module, Module::Attention(_) | Module::Layer(_)) {
                replaced.attn = Some(constant(mean.map(|m| &m.attn[..]), d));
            }
            if matches!(module, Module::Ffn(_) | Module::Layer(_)) {
                replaced.ffn = Some(constant(mean.map(|m| &m.ffn[..]), d));
            }
            if let Module::Head(_, head) = module {
                let columns = head.index() * hd..(head.index() + 1) * hd;
                replaced.heads.push((*head, constant(mean.map(|m| &m.z[columns]), hd)));
            }
        }
        self.ablation = (!modules.is_empty()).then(|| Arc::new(Ablation { layers }));
        Ok(())
    }

    /// Whether some modules' outputs are replaced.
    pub(super) fn is_ablated(&self) -> bool {
        self.ablation.is_some()
    }

    fn replaced(&self, layer: LayerIndex) -> Option<&Replaced<B::Array>> {
        self.ablation.as_ref().map(|ablation| &ablation.layers[layer.index()])
    }

    /// z `[T, H hd]`
    pub(super) fn replace_heads(&self, layer: LayerIndex, z: &mut B::Array) {
        for (head, values) in self.replaced(layer).iter().flat_map(|replaced| &replaced.heads) {
            self.backend.fill_columns(values, z, self.config.q_dim(), head.index() * self.config.head_dim);
        }
    }

    /// branch `[T, d]`
    pub(super) fn replace_attention(&self, layer: LayerIndex, branch: &mut B::Array) {
        self.replace(self.replaced(layer).and_then(|replaced| replaced.attn.as_ref()), branch);
    }

    /// branch `[T, d]`
    pub(super) fn replace_ffn(&self, layer: LayerIndex, branch: &mut B::Array) {
        self.replace(self.replaced(layer).and_then(|replaced| replaced.ffn.as_ref()), branch);
    }

    fn replace(&self, values: Option<&B::Array>, branch: &mut B::Array) {
        if let Some(values) = values {
            self.backend.fill_columns(values, branch, self.config.hidden_size, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Packing;
    use crate::model::init::{InitConfig, random_params};
    use crate::model::{Keep, ParamLayout, Tap, Workspace};

    fn model() -> Model {
        let init =
            InitConfig { hidden_size: 32, layers: 3, heads: 4, kv_heads: 2, head_dim: 8, ..InitConfig::default() };
        let config = init.model_config(60).unwrap();
        let params = random_params(&config, &ParamLayout::new(&config), 0.2, 4);
        Model::new(config, params)
    }

    fn modules(model: &Model, names: &[&str]) -> Vec<Module> {
        names.iter().flat_map(|name| Module::parse_some(name, &model.config).unwrap()).collect()
    }

    fn state(model: &Model, until: Tap) -> Vec<f32> {
        let mut ws = Workspace::new(model);
        model.forward(&mut ws, &Packing::single(&[5, 17, 50, 3]), until, Keep::Nothing);
        ws.state().to_f32().into_owned()
    }

    #[test]
    fn names_are_read_back() {
        let model = model();
        for name in ["attn:1", "ffn:3", "layer:2", "head:3.4"] {
            assert_eq!(modules(&model, &[name])[0].to_string(), name);
        }
        assert_eq!(modules(&model, &["attn:2-", "ffn:1-3"]).len(), 5);
        for (text, expected) in [
            ("attn", "attn:6"),
            ("mlp:1", "attn, ffn or layer"),
            ("ffn:4", "from 1 to 3"),
            ("head:1", "head:6.3"),
            ("head:1.5", "heads 1..=4"),
            ("head:1.0", "heads 1..=4"),
            ("head:4.1", "1..=3"),
            ("head:x.1", "head:6.3"),
        ] {
            let error = format!("{:#}", Module::parse_some(text, &model.config).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// A module that writes nothing is one whose last weight is zero.
    #[test]
    fn without_a_module_is_with_weights_of_zero() {
        let whole = model();
        let (d, hd, q_dim) = (32, 8, 32);
        for (names, zeroed) in [
            (&["attn:2"][..], Some((true, false))),
            (&["ffn:2"], Some((false, true))),
            (&["layer:2"], Some((true, true))),
            (&["head:2.1", "head:2.3"], None),
        ] {
            let (mut ablated, mut edited) = (whole.clone(), whole.clone());
            ablated.ablate(&modules(&whole, names), None).unwrap();
            let second = whole.layout.layers[1].clone();
            match zeroed {
                Some((attn, ffn)) => {
                    let ranges = [(attn, second.o), (ffn, second.down)];
                    ranges.into_iter().filter(|(zero, _)| *zero).for_each(|(_, range)| edited.params[range].fill(0.0));
                }
                // Columns of the output projection `[d, H hd]`.
                None => (0..d).flat_map(|row| [0, 2].map(|head| row * q_dim + head * hd)).for_each(|at| {
                    edited.params[second.o.start + at..second.o.start + at + hd].fill(0.0);
                }),
            }
            let [ours, theirs, before] = [&ablated, &edited, &whole].map(|model| state(model, Tap::Final));
            let off = ours.iter().zip(&theirs).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(off <= 1e-6, "{names:?}: {off}");
            assert_ne!(ours, before, "{names:?}");
            ablated.ablate(&[], None).unwrap();
            assert_eq!(state(&ablated, Tap::Final), before);
        }
    }

    #[test]
    fn means_stand_in_for_what_modules_write() {
        let mut model = model();
        let of = |layer: usize| LayerMeans {
            z: (0..32).map(|i| (i + layer) as f32).collect(),
            attn: vec![0.5 + layer as f32; 32],
            ffn: vec![-2.0 - layer as f32; 32],
        };
        let means = Means { layers: (0..3).map(of).collect() };
        model.ablate(&modules(&model, &["layer:2", "head:1.2", "head:3.4"]), Some(&means)).unwrap();
        let layer = |n: usize| LayerIndex::from_one_based(n, 3).unwrap();
        assert!(state(&model, Tap::Attn(layer(2))).iter().all(|x| *x == 1.5));
        assert!(state(&model, Tap::Ffn(layer(2))).iter().all(|x| *x == -3.0));
        for row in state(&model, Tap::Z(layer(3))).chunks_exact(32) {
            assert_eq!(row[24..], of(2).z[24..]);
            assert_ne!(row[..24], of(2).z[..24]);
        }
        let short = Means { layers: vec![of(0)] };
        assert!(model.ablate(&modules(&model, &["attn:1"]), Some(&short)).is_err());
    }

    #[test]
    fn layers_run_again_are_the_forwards() {
        let mut model = model();
        let (packing, mut ws) = (Packing::single(&[5, 17, 50, 3]), Workspace::new(&model));
        let third = modules(&model, &["ffn:3"]);
        let second = modules(&model, &["head:2.2"]);
        let whole = state(&model, Tap::Final);
        let expected = [third, second, vec![]].map(|modules| {
            model.ablate(&modules, None).unwrap();
            (modules, state(&model, Tap::Final))
        });
        let batched = model.batched(&packing);
        model.forward_on(&mut ws, &batched, Tap::Final, Keep::LayerInputs);
        assert_eq!(*ws.state().to_f32(), whole);
        // From the top down, as what lies above is overwritten.
        for (modules, expected) in expected {
            model.ablate(&modules, None).unwrap();
            let first = modules.first().map_or(1, |module| module.layer().one_based());
            let first = LayerIndex::from_one_based(first, 3).unwrap();
            model.forward_again(&mut ws, &batched, first);
            assert_eq!(*ws.state().to_f32(), expected);
        }
    }
}

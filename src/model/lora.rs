//! LoRA: `y = W x + s B (A x)` beside linear layers, with W and everything else of the model frozen.
//!
//! The adapters' tensors lie behind the weights in the flat array, layer by layer, in the order of the decoder, so that what a
//! policy of depth `k` trains of them is a prefix. Names, shapes, scaling and first values are PEFT's.

use super::init::uniform;
use super::params::{ParamLayout, TensorSpec};
use super::taps::LayerIndex;
use super::{Model, ModelConfig};
use crate::compute::Backend;
use crate::compute::backend::LowRank;
use crate::compute::cpu::low_rank::merge;
use anyhow::{Result, anyhow, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// More than any adapter has, and low enough that no product of sizes can overflow.
pub const MAX_RANK: usize = 1 << 16;

/// A linear layer of the decoder, under the name that HuggingFace's modules and PEFT's `target_modules` have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Target {
    /// In the order of the decoder.
    pub const ALL: [Target; 7] = [
        Target::QProj,
        Target::KProj,
        Target::VProj,
        Target::OProj,
        Target::GateProj,
        Target::UpProj,
        Target::DownProj,
    ];

    /// `q_proj`, as in `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Target::QProj => "q_proj",
            Target::KProj => "k_proj",
            Target::VProj => "v_proj",
            Target::OProj => "o_proj",
            Target::GateProj => "gate_proj",
            Target::UpProj => "up_proj",
            Target::DownProj => "down_proj",
        }
    }

    /// `self_attn.q_proj`: where the layer has it.
    pub fn module(self) -> String {
        let of_attention = matches!(self, Target::QProj | Target::KProj | Target::VProj | Target::OProj);
        format!("{}.{}", if of_attention { "self_attn" } else { "mlp" }, self.name())
    }

    fn outputs(self, c: &ModelConfig) -> usize {
        match self {
            Target::QProj => c.q_dim(),
            Target::KProj | Target::VProj => c.kv_dim(),
            Target::OProj | Target::DownProj => c.hidden_size,
            Target::GateProj | Target::UpProj => c.intermediate_size,
        }
    }
}

/// What an adapter is like; keys as in a recipe's `[lora]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rows of every A and columns of every B (PEFT's `r`).
    pub rank: usize,
    /// The path beside a layer is multiplied by `alpha / rank` (PEFT's `lora_alpha`).
    pub alpha: f64,
    /// Which linear layers get an adapter (PEFT's `target_modules`); all without the key.
    pub targets: Vec<Target>,
    /// Which layers, counted from 1: `"6"`, `"1-6"` or `"7-"`; all without the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<String>,
    /// Multiplies by `alpha / sqrt(rank)` in place of `alpha / rank` (PEFT's `use_rslora`).
    pub rslora: bool,
}

impl Default for LoraConfig {
    /// TRL's rank and alpha; all linear layers.
    fn default() -> LoraConfig {
        LoraConfig { rank: 16, alpha: 32.0, targets: Target::ALL.to_vec(), layers: None, rslora: false }
    }
}

impl LoraConfig {
    /// Messages name the key; the caller names its section.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=MAX_RANK).contains(&self.rank), "rank = {}: expected 1 to {MAX_RANK} (16 is usual)", self.rank);
        ensure!(
            self.alpha.is_finite() && self.alpha > 0.0,
            "alpha = {}: expected a positive number such as 32.0 (twice the rank is usual)",
            self.alpha
        );
        ensure!(!self.targets.is_empty(), "targets = []: expected some of {}", names(&Target::ALL));
        let twice = self.targets.iter().enumerate().find(|(i, target)| self.targets[..*i].contains(target));
        if let Some((_, target)) = twice {
            anyhow::bail!("targets: {:?} is there twice", target.name());
        }
        Ok(())
    }

    /// The factor `s` of the path beside a layer.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// The layers that get adapters, of a model of `layers`; `[layers]`.
    fn chosen(&self, layers: usize) -> Result<Vec<bool>> {
        let Some(text) = &self.layers else { return Ok(vec![true; layers]) };
        let some = LayerIndex::parse_some(text, layers).map_err(|reason| anyhow!("layers = {text:?}: {reason}"))?;
        Ok(LayerIndex::all(layers).map(|layer| some.contains(&layer)).collect())
    }
}

pub(super) fn names(targets: &[Target]) -> String {
    targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(", ")
}

/// Where an adapter lies in the flat array.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub config: LoraConfig,
    /// The model whose weights it lies beside: a folder, or a name on the hub (PEFT's `base_model_name_or_path`).
    pub base: String,
    /// All of it.
    pub range: Range<usize>,
    pub layers: Vec<LayerAdapters>,
}

/// One layer's adapters, fused as its weights are.
#[derive(Clone, Debug, Default)]
pub struct LayerAdapters {
    pub attn: Range<usize>,
    pub ffn: Range<usize>,
    pub qkv: Option<LinearAdapter>,
    pub o: Option<LinearAdapter>,
    pub gate_up: Option<LinearAdapter>,
    pub down: Option<LinearAdapter>,
}

impl LayerAdapters {
    /// All of the layer's adapters.
    pub fn range(&self) -> Range<usize> {
        self.attn.start..self.ffn.end
    }
}

/// The adapters of one (fused) linear layer.
#[derive(Clone, Debug)]
pub struct LinearAdapter {
    /// `[parts * r, in]`: A of every adapted part, one under the other.
    pub a: Range<usize>,
    /// B `[columns, r]` of every part, one after the other, and the columns of the fused output that it writes to.
    pub b: Vec<(Range<usize>, Range<usize>)>,
}

impl LinearAdapter {
    /// All of it: every A, then every B.
    pub fn range(&self) -> Range<usize> {
        self.a.start..self.b.last().map_or(self.a.end, |(range, _)| range.end)
    }
}

impl ParamLayout {
    /// The layout with an adapter behind the weights. Errors: layers that the model does not have.
    pub fn with_adapter(self, c: &ModelConfig, config: &LoraConfig, base: &str) -> Result<ParamLayout> {
        let chosen = config.chosen(c.layers)?;
        Ok(self.with_adapters_at(c, config, base, &|layer, target| chosen[layer] && config.targets.contains(&target)))
    }

    /// With adapters at the layers (from 0) and targets that `has` says.
    pub(super) fn with_adapters_at(
        mut self,
        c: &ModelConfig,
        config: &LoraConfig,
        base: &str,
        has: &dyn Fn(usize, Target) -> bool,
    ) -> ParamLayout {
        let start = self.len();
        let layers = (0..c.layers).map(|i| self.push_layer(c, config.rank, i, has)).collect();
        let range = start..self.len();
        self.adapter = Some(Adapter { config: config.clone(), base: base.to_string(), range, layers });
        self
    }

    /// Adds to the values of one tensor of the model what the adapter, of values `adapter` `[trainable]`, has beside it; nothing to a
    /// tensor without one.
    pub fn merge_into(&self, spec: &TensorSpec, adapter: &[f32], values: &mut [f32]) {
        let (Some(of), Some(module)) = (&self.adapter, spec.name.strip_suffix(".weight")) else { return };
        let factor = |which: char| {
            let name = format!("{module}.lora_{which}.weight");
            let found = self.trainable_tensors().iter().find(|tensor| tensor.name == name)?;
            Some(&adapter[found.offset - of.range.start..][..found.len()])
        };
        if let Some((a, b)) = factor('A').zip(factor('B')) {
            merge(values, a, b, of.config.scale(), (spec.shape[0], spec.shape[1], of.config.rank));
        }
    }

    fn push_layer(
        &mut self,
        c: &ModelConfig,
        rank: usize,
        i: usize,
        has: &dyn Fn(usize, Target) -> bool,
    ) -> LayerAdapters {
        let (d, start) = (c.hidden_size, self.len());
        let mut fused = |targets: &[Target], inputs: usize| {
            // Where each target's columns begin in the fused output, adapted or not.
            let mut next = 0;
            let columns = targets.iter().map(|target| {
                let from = next;
                next += target.outputs(c);
                (*target, from..next)
            });
            let parts: Vec<(Target, Range<usize>)> = columns.filter(|(target, _)| has(i, *target)).collect();
            let name =
                |target: Target, which: char| format!("model.layers.{i}.{}.lora_{which}.weight", target.module());
            let a: Vec<_> = parts.iter().map(|(t, _)| self.push(name(*t, 'A'), &[rank, inputs])).collect();
            let b =
                parts.iter().map(|(t, cols)| (self.push(name(*t, 'B'), &[cols.len(), rank]), cols.clone())).collect();
            Some(LinearAdapter { a: a.first()?.start..a.last()?.end, b })
        };
        let qkv = fused(&[Target::QProj, Target::KProj, Target::VProj], d);
        let o = fused(&[Target::OProj], c.q_dim());
        let middle = [&o, &qkv].into_iter().flatten().next().map_or(start, |l| l.range().end);
        let gate_up = fused(&[Target::GateProj, Target::UpProj], d);
        let down = fused(&[Target::DownProj], c.intermediate_size);
        LayerAdapters { attn: start..middle, ffn: middle..self.len(), qkv, o, gate_up, down }
    }

    fn push(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let spec = TensorSpec { name, shape: shape.to_vec(), offset: self.len() };
        let range = spec.range();
        self.tensors.push(spec);
        range
    }
}

impl Model {
    /// Puts a fresh adapter beside the model's linear layers: A as `torch.nn.Linear` begins (Kaiming uniform with `a = sqrt(5)`:
    /// uniform in `+-1 / sqrt(in)`), B zero, so that the model is at first what it was. A value depends on `seed`, its tensor's
    /// place in the layout and its own place in the tensor alone. `base` is where the model's own weights are.
    ///
    /// Errors: an adapter that is there already, layers that the model does not have.
    pub fn add_adapter(&mut self, config: &LoraConfig, base: &str, seed: u64) -> Result<()> {
        ensure!(self.layout.adapter.is_none(), "the model has an adapter already: merge it first");
        config.check()?;
        let layout = self.layout.clone().with_adapter(&self.config, config, base)?;
        self.params.reserve_exact(layout.len() - self.params.len());
        self.params.resize(layout.len(), 0.0);
        let adapters = layout.tensors.iter().enumerate().filter(|(_, t)| t.offset >= layout.trainable().start);
        for (i, spec) in adapters.filter(|(_, spec)| spec.name.ends_with("lora_A.weight")) {
            let bound = 1.0 / (spec.shape[1] as f64).sqrt();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(i as u64);
            self.params[spec.range()].fill_with(|| ((2.0 * uniform(&mut rng) - 1.0) * bound) as f32);
        }
        self.layout = layout;
        Ok(())
    }

    /// Adds the adapter to the weights, `W += s B A`, and drops it. Nothing happens without one.
    pub fn merge_adapter(&mut self) {
        let start = self.layout.trainable().start;
        if self.layout.adapter.is_none() {
            return;
        }
        let (weights, adapter) = self.params.split_at_mut(start);
        for spec in self.layout.tensors.iter().take_while(|spec| spec.offset < start) {
            self.layout.merge_into(spec, adapter, &mut weights[spec.range()]);
        }
        self.params.truncate(start);
        self.params.shrink_to_fit();
        self.layout.tensors.retain(|spec| spec.offset < start);
        self.layout.adapter = None;
    }
}

impl<B: Backend> Model<B> {
    /// What the model does with its adapter off: the base, without a second copy of it.
    pub fn without_adapter<T>(&mut self, then: impl FnOnce(&Model<B>) -> T) -> T {
        let adapter = self.layout.adapter.take();
        let result = then(self);
        self.layout.adapter = adapter;
        result
    }
}

/// The low-rank path of one linear layer, of values that `values` finds.
pub(super) fn low_rank<V>(
    config: &LoraConfig,
    of: &LinearAdapter,
    (inputs, outputs): (usize, usize),
    values: impl Fn(&Range<usize>) -> V,
) -> LowRank<V> {
    LowRank {
        inputs,
        outputs,
        rank: config.rank,
        scale: config.scale(),
        a: values(&of.a),
        b: of.b.iter().map(|(range, columns)| (values(range), columns.clone())).collect(),
    }
}

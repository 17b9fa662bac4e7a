//! What each module of a model is worth: its policy with and without them, on the same tokens.
//!
//! An entropy change says what a module does to the distribution that its own output would be; this says what the model makes of
//! it. Of every module, one at a time: the final policy without it, beside the whole model's. A forward keeps every layer's input, and
//! an ablation runs the layers from its own upwards, so that it costs half a forward on average.

mod findings;
mod sums;
mod table;

pub use findings::{Effect, Findings, LayerEffects, Replacement};
pub use sums::Sums;
pub use table::{summary, table};

use super::flow::{Sample, check, pack};
use crate::compute::Packing;
use crate::compute::backend::{FinalNorm, Inspect, Kind, Placed};
use crate::compute::cpu::Cpu;
use crate::model::ablation::{HeadIndex, LayerMeans, Means, Module};
use crate::model::{Keep, LayerIndex, Model, ModelConfig, Tap, Workspace};
use crate::policy::Targets;
use anyhow::{Context, Result, ensure};
use std::ops::RangeInclusive;

/// Bytes of final states that are compared with each other at a time, and modules at most: a study can be saved between.
const HELD_BYTES: usize = 256 << 20;
const GROUP: usize = 16;

/// What is left out, one after the other: of each of these layers its attention, its FFN and both, and with `heads` each of its heads.
pub fn modules(config: &ModelConfig, layers: &RangeInclusive<LayerIndex>, heads: bool) -> Vec<Module> {
    let heads = if heads { config.heads } else { 0 };
    LayerIndex::all(config.layers)
        .filter(|layer| layers.contains(layer))
        .flat_map(|layer| {
            [Module::Attention(layer), Module::Ffn(layer), Module::Layer(layer)]
                .into_iter()
                .chain(HeadIndex::all(heads).map(move |head| Module::Head(layer, head)))
        })
        .collect()
}

/// What modules write on average, being counted: over all tokens that are seen, prompts too, since those are where the mean will stand.
#[derive(Debug)]
pub struct Averages<B: Inspect = Cpu> {
    rows: usize,
    layers: Vec<[Vec<f64>; 3]>,
    sums: B::Array,
}

impl<B: Inspect> Averages<B> {
    pub fn new(config: &ModelConfig) -> Averages<B> {
        let of = |layer| [Tap::Z(layer), Tap::Attn(layer), Tap::Ffn(layer)].map(|tap| vec![0.0; tap.width(config)]);
        Averages { rows: 0, layers: LayerIndex::all(config.layers).map(of).collect(), sums: B::Array::default() }
    }

    /// Adds samples, packed several to a forward. `progress` hears of every sample. Errors: as of [`Study::add`].
    pub fn add(
        &mut self,
        model: &Model<B>,
        ws: &mut Workspace<B>,
        samples: &[Sample],
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        samples.iter().try_for_each(|sample| check(model, sample))?;
        let backend = &model.backend;
        let mut rest = samples;
        while !rest.is_empty() {
            let (packing, _, taken) = pack(rest, usize::MAX);
            let Averages { layers, sums, .. } = self;
            model.forward_observed(ws, &packing, Tap::Final, &mut |tap, state| {
                let (layer, which) = match tap {
                    Tap::Z(layer) => (layer, 0),
                    Tap::Attn(layer) => (layer, 1),
                    Tap::Ffn(layer) => (layer, 2),
                    _ => return,
                };
                let totals = &mut layers[layer.index()][which];
                backend.resize(sums, totals.len(), Kind::F32);
                backend.zero(sums);
                // The sum of a bias's gradient: over rows.
                backend.bias_backward(state, B::part(sums, 0..totals.len()));
                totals.iter_mut().zip(&*backend.host(sums)).for_each(|(total, sum)| *total += f64::from(*sum));
            });
            self.rows += packing.rows();
            backend.status()?;
            progress(taken as u64);
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// The means; of nothing they are zeros.
    pub fn finish(&self) -> Means {
        let mean = |totals: &[f64]| totals.iter().map(|total| (total / self.rows.max(1) as f64) as f32).collect();
        let of = |[z, attn, ffn]: &[Vec<f64>; 3]| LayerMeans { z: mean(z), attn: mean(attn), ffn: mean(ffn) };
        Means { layers: self.layers.iter().map(of).collect() }
    }
}

/// A study under way.
#[derive(Debug)]
pub struct Study<B: Inspect = Cpu> {
    modules: Vec<Module>,
    /// What modules write instead; zeros without them.
    means: Option<Means>,
    sums: Sums,
    buffers: Buffers<B::Array>,
}

/// Who follows a study.
pub struct Watch<'a> {
    /// Asked before each module: whether to go on.
    pub go_on: &'a dyn Fn() -> bool,
    /// Told of some modules of some samples, as their product, when they are in the sums.
    pub done: &'a mut dyn FnMut(&Sums, u64) -> Result<()>,
}

/// Kept from forward to forward, f32.
#[derive(Debug, Default)]
struct Buffers<A> {
    /// The whole model's final state, `[R, d]`.
    whole: A,
    /// It, and those without some modules, side by side: `[R, 1 + modules, d]`.
    states: A,
    /// Logits that are being looked at.
    logits: A,
}

impl<B: Inspect> Study<B> {
    pub fn new(modules: Vec<Module>, means: Option<Means>) -> Study<B> {
        Study { sums: Sums::new(modules.len()), modules, means, buffers: Buffers::default() }
    }

    /// Goes on with sums that were saved, of the same model, modules and means. Errors: sums of another shape, or broken ones.
    pub fn go_on(modules: Vec<Module>, means: Option<Means>, sums: Sums) -> Result<Study<B>> {
        sums.check(modules.len())?;
        Ok(Study { sums, ..Study::new(modules, means) })
    }

    /// What was counted so far.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Adds samples, packed several to a forward. The model is whole before and after. False if `watch` has it stopped: then the sums hold
    /// some modules of the samples that were under way, and go on with these samples first.
    ///
    /// Errors: a sample without response tokens, longer than the context, or with a token outside of the vocabulary; states
    /// that are no numbers. The sums are of no use then.
    pub fn add(
        &mut self,
        model: &mut Model<B>,
        ws: &mut Workspace<B>,
        samples: &[Sample],
        watch: &mut Watch<'_>,
    ) -> Result<bool> {
        for (i, sample) in samples.iter().enumerate() {
            check(model, sample).with_context(|| format!("sample {}", self.sums.samples + i + 1))?;
        }
        self.add_at_most(model, ws, samples, HELD_BYTES, watch)
    }

    /// [`Study::add`], holding so many bytes of final states at a time, but two states of every token.
    fn add_at_most(
        &mut self,
        model: &mut Model<B>,
        ws: &mut Workspace<B>,
        samples: &[Sample],
        bytes: usize,
        watch: &mut Watch<'_>,
    ) -> Result<bool> {
        let mut rest = samples;
        while !rest.is_empty() {
            let (packing, targets, taken) = pack(rest, usize::MAX);
            let held = bytes / (targets.len() * model.config.hidden_size * size_of::<f32>());
            let whole = self.add_pack(model, ws, (&packing, &targets, taken), (held.max(2) - 1).min(GROUP), watch);
            model.ablate(&[], None)?;
            if !whole? {
                return Ok(false);
            }
            rest = &rest[taken..];
        }
        Ok(true)
    }

    /// One packing, of so many samples; `most` modules compared with the whole model at a time. False if it was stopped.
    fn add_pack(
        &mut self,
        model: &mut Model<B>,
        ws: &mut Workspace<B>,
        (packing, targets, samples): (&Packing, &Targets, usize),
        most: usize,
        watch: &mut Watch<'_>,
    ) -> Result<bool> {
        let Study { modules, means, sums, buffers: Buffers { whole, states, logits } } = self;
        let (d, n, backend) = (model.config.hidden_size, targets.len(), model.backend.clone());
        let under_way = sums.under_way().unwrap_or(n);
        ensure!(under_way == n, "{n} tokens, where {under_way} others are under way: expected the same samples again");
        let all: Vec<usize> = (0..n).collect();
        let batched = model.batched(packing);
        model.forward_on(ws, &batched, Tap::Final, Keep::LayerInputs);
        backend.resize(whole, n * d, Kind::F32);
        backend.place_rows(ws.state(), &targets.rows, whole, Placed { first: 0, stride: d, d });
        // From the top down: a run overwrites the streams above its layer, and those below are still wanted.
        let mut order = sums.missing();
        order.sort_by_key(|at| std::cmp::Reverse(modules[*at].layer()));
        for group in order.chunks(most) {
            let places = 1 + group.len();
            let at = |place: usize| Placed { first: place * d, stride: places * d, d };
            backend.resize(states, n * places * d, Kind::F32);
            backend.place_rows(whole, &all, states, at(0));
            for (place, module) in (1..).zip(group) {
                if !(watch.go_on)() {
                    return Ok(false);
                }
                let module = modules[*module];
                model.ablate(&[module], means.as_ref())?;
                model.forward_again(ws, &batched, module.layer());
                backend.place_rows(ws.state(), &targets.rows, states, at(place));
            }
            // Final states are normed already.
            let weight = model.param(&model.layout.final_norm);
            let norm = FinalNorm { weight, eps: model.config.rms_norm_eps, states: 0 };
            let head = model.unembedding(1.0);
            let comparison = backend.compare(head, norm, states, places, &[0], &targets.ids, logits);
            model.backend.status()?;
            sums.add(group, &comparison);
            let (first, last) = (sums.samples + 1, sums.samples + samples);
            sums.check_finite().with_context(|| format!("samples {first} to {last}"))?;
            if sums.under_way().is_none() {
                sums.samples = last;
            }
            (watch.done)(sums, (samples * group.len()) as u64)?;
        }
        Ok(true)
    }

    /// Means over all response tokens. `name`: what the model is called in the result.
    pub fn finish(&self, config: &ModelConfig, name: &str) -> Result<Findings> {
        let replace = if self.means.is_some() { Replacement::Mean } else { Replacement::Zero };
        self.sums.finish(config, &self.modules, name, replace)
    }
}

#[cfg(test)]
mod tests;

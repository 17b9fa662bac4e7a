//! Internal entropy flow: what every hidden state of every layer says, read as a policy (paper, section 3).
//!
//! Values are counted token by token, in the order of the samples, in f64; nothing grows with their number, and the sums do
//! not depend on how samples are packed. [`Sums`] can be saved and gone on with.

mod sums;

pub use sums::Sums;

use super::result::{Analysis, Lens};
use crate::compute::Packing;
use crate::compute::cpu::gram::{gram, pairs, row_cosines};
use crate::model::{LayerIndex, Model, Tap, Workspace};
use crate::policy::{Targets, gather_rows};
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

/// Tokens of one packed forward, unless a sample alone has more.
pub const PACK_TOKENS: usize = 2048;
/// Bytes of layer states that wait for the end of a forward: so many, or an eighth of the model's own size, whichever is more.
const HELD_BYTES: usize = 256 << 20;
/// Tokens whose inner products exist at a time.
const GRAM_TOKENS: usize = 256;

/// Tokens of one sample; the response is what comes from `response_start` (1 or more) on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub ids: Vec<u32>,
    pub response_start: usize,
}

/// How states are read, and which layer's policy the others are compared with, beside the final one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub lens: Lens,
    pub chosen: Option<LayerIndex>,
}

/// An analysis under way.
#[derive(Clone, Debug)]
pub struct Flow {
    reading: Reading,
    sums: Sums,
    buffers: Buffers,
}

/// Kept from forward to forward.
#[derive(Clone, Debug, Default)]
struct Buffers {
    /// The stream that a module writes to, `[R, d]`.
    stream: Vec<f32>,
    /// A layer's states that wait for their turn at the unembedding, `[.., R, d]`.
    waiting: Vec<f32>,
    /// `H^1..H^L` and the final state, side by side for every token: `[R, L + 1, d]`.
    held: Vec<f32>,
    /// Inner products of a few tokens' layer states.
    products: Vec<f64>,
}

impl Flow {
    /// Of a model of `layers` layers.
    pub fn new(layers: usize, reading: Reading) -> Flow {
        Flow { reading, sums: Sums::new(layers), buffers: Buffers::default() }
    }

    /// Goes on with sums that were saved, of the same model and reading. Errors: sums of another shape, or broken ones.
    pub fn go_on(layers: usize, reading: Reading, sums: Sums) -> Result<Flow> {
        sums.check(layers)?;
        Ok(Flow { sums, ..Flow::new(layers, reading) })
    }

    /// What was counted so far.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Adds samples, packed several to a forward. `progress` hears of every sample.
    ///
    /// Errors: a sample without response tokens, longer than the context, or with a token outside of the vocabulary; states
    /// that are no numbers. The sums are of no use then.
    pub fn add(
        &mut self,
        model: &Model,
        ws: &mut Workspace,
        samples: &[Sample],
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.add_at_most(model, ws, samples, held_rows(model), progress)
    }

    /// [`Flow::add`], holding the layer states of `most` response tokens at a time.
    fn add_at_most(
        &mut self,
        model: &Model,
        ws: &mut Workspace,
        samples: &[Sample],
        most: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for (i, sample) in samples.iter().enumerate() {
            check(model, sample).with_context(|| format!("sample {}", self.sums.samples + i + 1))?;
        }
        let mut rest = samples;
        while !rest.is_empty() {
            let (mut packing, mut targets, mut taken) = (Packing::new(), Targets::default(), 0);
            for sample in rest {
                // The last token predicts nothing that is known: its state is not needed.
                let ids = &sample.ids[..sample.ids.len() - 1];
                let response = sample.ids.len() - sample.response_start;
                let full = packing.rows() + ids.len() > PACK_TOKENS || targets.len() + response > most;
                if taken > 0 && full {
                    break;
                }
                let packed = packing.push(ids);
                targets.push_response(&sample.ids, packed.start, sample.response_start);
                taken += 1;
            }
            // A response that is longer by itself takes several forwards, each for the states of a part of it.
            for (rows, ids) in targets.rows.chunks(most).zip(targets.ids.chunks(most)) {
                self.add_rows(model, ws, &packing, rows, ids);
            }
            let first = self.sums.samples + 1;
            self.sums.samples += taken;
            self.sums.check_finite().with_context(|| format!("samples {first} to {}", self.sums.samples))?;
            progress(taken as u64);
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// One forward; `targets` are the tokens that came after `rows`.
    fn add_rows(&mut self, model: &Model, ws: &mut Workspace, packing: &Packing, rows: &[usize], targets: &[u32]) {
        let Flow { reading, sums, buffers: Buffers { stream, waiting, held, products } } = self;
        let (d, n, layers) = (model.config.hidden_size, rows.len(), model.config.layers);
        let (states, head) = (layers + 1, model.head(1.0));
        held.resize(n * states * d, 0.0);
        let mut hold = |state: &[f32], place: usize| {
            for (to, from) in held.chunks_exact_mut(states * d).zip(state.chunks_exact(d)) {
                to[place * d..(place + 1) * d].copy_from_slice(from);
            }
        };
        waiting.clear();
        let mut embedding: Vec<f32> = Vec::new();
        model.forward_observed(ws, packing, Tap::Final, &mut |tap, state| {
            // A layer's input is the output of the one below, which is there.
            if matches!(tap, Tap::ResidPre(layer) if layer.index() > 0) {
                return;
            }
            let state = gather_rows(state, rows, d);
            match tap {
                Tap::ResidPre(_) => {
                    waiting.extend_from_slice(&state);
                    *stream = state;
                }
                Tap::AttnIn(_) | Tap::FfnIn(_) => waiting.extend_from_slice(&state),
                Tap::Attn(layer) => {
                    sums.layers[layer.index()].cos_attn.extend(row_cosines(&state, stream, d));
                    waiting.extend_from_slice(&state);
                }
                Tap::ResidMid(_) => *stream = state,
                Tap::Ffn(layer) => {
                    sums.layers[layer.index()].cos_ffn.extend(row_cosines(&state, stream, d));
                    waiting.extend_from_slice(&state);
                }
                Tap::ResidPost(layer) => {
                    if reading.lens == Lens::FinalNorm {
                        model.final_norm(waiting);
                    }
                    // One pass over the unembedding serves the layer's states.
                    let mut entropies = head.forward(waiting, None).entropy;
                    if layer.index() == 0 {
                        embedding = entropies.drain(..n).collect();
                    }
                    sums.layers[layer.index()].add_modules(&entropies, n);
                    waiting.clear();
                    hold(&state, layer.index());
                    *stream = state;
                }
                Tap::Final => hold(&state, layers),
                // Only shown to whoever stops at it.
                Tap::Normed(_) => {}
            }
        });
        for tokens in held.chunks(GRAM_TOKENS * states * d) {
            let width = pairs(layers).count();
            products.resize(tokens.len() / (states * d) * width, 0.0);
            gram(tokens, (states, d), layers, products);
            products.chunks_exact(width).for_each(|products| sums.add_products(products));
        }
        if reading.lens == Lens::FinalNorm {
            // The final state is normed already.
            held.par_chunks_mut(states * d).for_each(|states| model.final_norm(&mut states[..layers * d]));
        }
        let references: Vec<usize> = [layers].into_iter().chain(reading.chosen.map(LayerIndex::index)).collect();
        let comparison = head.compare(held, states, &references, Some(targets));
        sums.add_comparison(&comparison, &embedding);
    }

    /// Means over all response tokens. `name`: what the model is called in the result. `threshold` in nats; the default share
    /// of ln V without it.
    pub fn finish(&self, model: &Model, name: &str, threshold: Option<f64>) -> Result<Analysis> {
        self.sums.finish(model.config.vocab_size, name, self.reading, threshold)
    }
}

/// Rows whose layer states are held at a time.
fn held_rows(model: &Model) -> usize {
    let size = size_of::<f32>();
    let row = (model.config.layers + 1) * model.config.hidden_size * size;
    (HELD_BYTES.max(model.params.len() * size / 8) / row).max(1)
}

/// Fails unless a sample can be analysed.
pub fn check(model: &Model, sample: &Sample) -> Result<()> {
    let (n, start) = (sample.ids.len(), sample.response_start);
    ensure!(
        start >= 1 && start < n,
        "{n} tokens, and the response starts at {start}: expected 1 to {}, so that a response token has a state that \
         predicts it",
        n.saturating_sub(1)
    );
    model.check_tokens(&sample.ids)
}

#[cfg(test)]
mod tests;

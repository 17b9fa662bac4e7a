//! Internal entropy flow: what every hidden state of every layer says, read as a policy (paper, section 3).
//!
//! Values are counted token by token, in the order of the samples, in f64; nothing grows with their number, and the sums do
//! not depend on how samples are packed. [`Sums`] can be saved and gone on with.

mod sums;

pub use sums::Sums;

use super::result::{Analysis, Lens};
use crate::compute::backend::{FinalNorm, Inspect, Kind, Placed};
use crate::compute::cpu::Cpu;
use crate::compute::{Backend, Packing};
use crate::model::{LayerIndex, Model, Tap, Workspace};
use crate::policy::Targets;
use anyhow::{Context, Result, ensure};

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
#[derive(Debug)]
pub struct Flow<B: Backend = Cpu> {
    reading: Reading,
    sums: Sums,
    buffers: Buffers<B::Array>,
}

/// Kept from forward to forward.
#[derive(Debug, Default)]
struct Buffers<A> {
    /// The stream that a module writes to, `[R, d]`.
    stream: A,
    /// A layer's states that wait for their turn at the unembedding, `[.., R, d]`.
    waiting: A,
    /// `H^1..H^L` and the final state, side by side for every token: `[R, L + 1, d]`.
    held: A,
    /// Logits that are being looked at.
    logits: A,
}

impl<B: Inspect> Flow<B> {
    /// Of a model of `layers` layers.
    pub fn new(layers: usize, reading: Reading) -> Flow<B> {
        Flow { reading, sums: Sums::new(layers), buffers: Buffers::default() }
    }

    /// Goes on with sums that were saved, of the same model and reading. Errors: sums of another shape, or broken ones.
    pub fn go_on(layers: usize, reading: Reading, sums: Sums) -> Result<Flow<B>> {
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
        model: &Model<B>,
        ws: &mut Workspace<B>,
        samples: &[Sample],
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.add_at_most(model, ws, samples, held_rows(model), progress)
    }

    /// [`Flow::add`], holding the layer states of `most` response tokens at a time.
    fn add_at_most(
        &mut self,
        model: &Model<B>,
        ws: &mut Workspace<B>,
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
            model.backend.status()?;
            self.sums.check_finite().with_context(|| format!("samples {first} to {}", self.sums.samples))?;
            progress(taken as u64);
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// One forward; `targets` are the tokens that came after `rows`.
    fn add_rows(
        &mut self,
        model: &Model<B>,
        ws: &mut Workspace<B>,
        packing: &Packing,
        rows: &[usize],
        targets: &[u32],
    ) {
        let Flow { reading, sums, buffers: Buffers { stream, waiting, held, logits } } = self;
        let (d, n, layers, backend) = (model.config.hidden_size, rows.len(), model.config.layers, &model.backend);
        let (states, head) = (layers + 1, model.unembedding(1.0));
        let (norm, eps) = (model.param(&model.layout.final_norm), model.config.rms_norm_eps);
        // H^0, then what a layer's modules read and write.
        backend.resize(waiting, 5 * n * d, Kind::Factor);
        backend.resize(stream, n * d, Kind::F32);
        backend.resize(held, n * states * d, Kind::F32);
        let side_by_side = |place: usize| Placed { first: place * d, stride: states * d, d };
        let block = |place: usize| Placed { first: place * n * d, stride: d, d };
        let mut embedding: Vec<f32> = Vec::new();
        model.forward_observed(ws, packing, Tap::Final, &mut |tap, state| {
            // The first layer's input waits as well.
            let first = |layer: LayerIndex| usize::from(layer.index() == 0);
            match tap {
                // A layer's input is the output of the one below, which is there.
                Tap::ResidPre(layer) if layer.index() > 0 => {}
                Tap::ResidPre(_) => {
                    backend.place_rows(state, rows, waiting, block(0));
                    backend.place_rows(state, rows, stream, block(0));
                }
                Tap::AttnIn(layer) => backend.place_rows(state, rows, waiting, block(first(layer))),
                Tap::Attn(layer) => {
                    let at = block(first(layer) + 1);
                    backend.place_rows(state, rows, waiting, at);
                    sums.layers[layer.index()].cos_attn.extend(backend.row_cosines(waiting, at.first, stream, d));
                }
                Tap::ResidMid(_) => backend.place_rows(state, rows, stream, block(0)),
                Tap::FfnIn(layer) => backend.place_rows(state, rows, waiting, block(first(layer) + 2)),
                Tap::Ffn(layer) => {
                    let at = block(first(layer) + 3);
                    backend.place_rows(state, rows, waiting, at);
                    sums.layers[layer.index()].cos_ffn.extend(backend.row_cosines(waiting, at.first, stream, d));
                }
                Tap::ResidPost(layer) => {
                    backend.resize(waiting, (4 + first(layer)) * n * d, Kind::Factor);
                    if reading.lens == Lens::FinalNorm {
                        backend.norm_rows(waiting, norm, eps, d);
                    }
                    // One pass over the unembedding serves the layer's states.
                    let mut entropies = backend.head(head, waiting, None, logits).entropy;
                    if layer.index() == 0 {
                        embedding = entropies.drain(..n).collect();
                    }
                    sums.layers[layer.index()].add_modules(&entropies, n);
                    backend.place_rows(state, rows, held, side_by_side(layer.index()));
                    backend.place_rows(state, rows, stream, block(0));
                }
                Tap::Final => backend.place_rows(state, rows, held, side_by_side(layers)),
                // Only shown to whoever stops at it.
                Tap::Normed(_) => {}
            }
        });
        for first in (0..n).step_by(GRAM_TOKENS) {
            let products = backend.gram(held, (states, d), layers, first, GRAM_TOKENS.min(n - first));
            products.chunks_exact(layers * (layers + 1) / 2).for_each(|products| sums.add_products(products));
        }
        // The final state is normed already.
        let through = (reading.lens == Lens::FinalNorm).then_some(FinalNorm { weight: norm, eps, states: layers });
        let references: Vec<usize> = [layers].into_iter().chain(reading.chosen.map(LayerIndex::index)).collect();
        let comparison = backend.compare(head, held, states, through, &references, targets, logits);
        sums.add_comparison(&comparison, &embedding);
    }

    /// Means over all response tokens. `name`: what the model is called in the result. `threshold` in nats; the default share
    /// of ln V without it.
    pub fn finish(&self, model: &Model<B>, name: &str, threshold: Option<f64>) -> Result<Analysis> {
        self.sums.finish(model.config.vocab_size, name, self.reading, threshold)
    }
}

/// Rows whose layer states are held at a time.
fn held_rows<B: Backend>(model: &Model<B>) -> usize {
    let size = size_of::<f32>();
    let row = (model.config.layers + 1) * model.config.hidden_size * size;
    (HELD_BYTES.max(model.layout.len() * size / 8) / row).max(1)
}

/// Fails unless a sample can be analysed.
pub fn check<B: Backend>(model: &Model<B>, sample: &Sample) -> Result<()> {
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

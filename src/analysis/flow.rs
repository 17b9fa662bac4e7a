//! Internal entropy flow: what every hidden state of every layer says, read as a policy (paper, section 3).
//!
//! Values are counted token by token, in the order of the samples, in f64; nothing grows with their number, and the sums do
//! not depend on how samples are packed. [`Sums`] can be saved and gone on with.

mod sums;

pub use sums::Sums;

use super::result::{Analysis, Lens};
use crate::compute::backend::{BranchComparison, Branches, FinalNorm, Inspect, Kind, Placed};
use crate::compute::cpu::Cpu;
use crate::compute::{Backend, Packing};
use crate::model::{LayerIndex, Model, Tap, Workspace};
use crate::policy::Targets;
use anyhow::{Context, Result, ensure};

/// Tokens of one packed forward, unless a sample alone has more.
pub const PACK_TOKENS: usize = 2048;
/// Bytes of branches that wait for the end of a forward: so many, or an eighth of the model's own size, whichever is more.
const HELD_BYTES: usize = 256 << 20;
/// Tokens whose layer states exist at a time.
const STATE_TOKENS: usize = 256;

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
    /// What it writes, `[R, d]`.
    branch: A,
    /// What a layer's two modules read, `[2, R, d]`.
    inputs: A,
    /// `H^0`, `[R, d]`.
    embedding: A,
    /// What every stream is the sum of, [`Branches`].
    branches: A,
    /// `H^1..H^L` and the final state of some tokens, side by side: `[.., L + 1, d]`.
    states: A,
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

    /// [`Flow::add`], holding the branches of `most` response tokens at a time.
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
            let (packing, targets, taken) = pack(rest, most);
            // A response that is longer by itself takes several forwards, each for a part of it.
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
        let Flow { reading, sums, buffers: Buffers { stream, branch, inputs, embedding, branches, logits, .. } } = self;
        let (d, n, backend) = (model.config.hidden_size, rows.len(), &model.backend);
        let (of, head) = (Branches { layers: model.config.layers }, model.unembedding(1.0));
        let (norm, eps) = (model.param(&model.layout.final_norm), model.config.rms_norm_eps);
        for array in [&mut *stream, embedding] {
            backend.resize(array, n * d, Kind::F32);
        }
        for (array, len) in [(&mut *branch, n), (&mut *inputs, 2 * n), (&mut *branches, n * of.places())] {
            backend.resize(array, len * d, Kind::Factor);
        }
        let block = |place: usize| Placed { first: place * n * d, stride: d, d };
        let side_by_side = |place: usize| Placed { first: place * d, stride: of.places() * d, d };
        // Entropies of what modules read, `[2, R]` of each layer.
        let mut of_inputs: Vec<Vec<f32>> = Vec::with_capacity(of.layers);
        model.forward_observed(ws, packing, Tap::Final, &mut |tap, state| match tap {
            Tap::ResidPre(layer) if layer.index() == 0 => {
                backend.place_rows(state, rows, stream, block(0));
                backend.place_rows(state, rows, embedding, block(0));
                backend.place_rows(state, rows, branches, side_by_side(of.embedding()));
            }
            // The output of the layer below, which is there.
            Tap::ResidPre(_) => {}
            Tap::AttnIn(_) => backend.place_rows(state, rows, inputs, block(0)),
            Tap::FfnIn(_) => backend.place_rows(state, rows, inputs, block(1)),
            Tap::Attn(layer) => {
                backend.place_rows(state, rows, branch, block(0));
                sums.layers[layer.index()].cos_attn.extend(backend.row_cosines(branch, 0, stream, d));
                backend.place_rows(state, rows, branches, side_by_side(of.attn(layer.index())));
            }
            Tap::Ffn(layer) => {
                backend.place_rows(state, rows, branch, block(0));
                sums.layers[layer.index()].cos_ffn.extend(backend.row_cosines(branch, 0, stream, d));
                backend.place_rows(state, rows, branches, side_by_side(of.ffn(layer.index())));
            }
            Tap::ResidMid(_) => backend.place_rows(state, rows, stream, block(0)),
            Tap::ResidPost(_) => {
                if reading.lens == Lens::FinalNorm {
                    backend.norm_rows(inputs, norm, eps, d);
                }
                // One pass over the unembedding serves both.
                of_inputs.push(backend.head(head, inputs, None, logits).entropy);
                backend.place_rows(state, rows, stream, block(0));
            }
            Tap::Final => backend.place_rows(state, rows, branches, side_by_side(of.last())),
            // What the attention makes of them is read; the other is only shown to whoever stops at it.
            Tap::Z(_) | Tap::Normed(_) => {}
        });
        let comparison = self.compare(model, targets);
        self.sums.add_tokens(&of_inputs, &comparison);
    }

    /// What the branches that are held say, and the states that they add up to, whose inner products are counted on the way.
    fn compare(&mut self, model: &Model<B>, targets: &[u32]) -> BranchComparison {
        let Flow { reading, sums, buffers: Buffers { embedding, branches, states, logits, .. } } = self;
        let (d, n, backend) = (model.config.hidden_size, targets.len(), &model.backend);
        let (of, head) = (Branches { layers: model.config.layers }, model.unembedding(1.0));
        let (norm, eps) = (model.param(&model.layout.final_norm), model.config.rms_norm_eps);
        let references: Vec<usize> = [of.layers].into_iter().chain(reading.chosen.map(LayerIndex::index)).collect();
        let mut comparison = BranchComparison::default();
        for first in (0..n).step_by(STATE_TOKENS) {
            let tokens = first..(first + STATE_TOKENS).min(n);
            backend.add_branches(embedding, branches, of, d, tokens.clone(), states);
            let products = backend.gram(states, (of.layers + 1, d), of.layers, tokens.len());
            products.chunks_exact(of.layers * (of.layers + 1) / 2).for_each(|products| sums.add_products(products));
            if reading.lens == Lens::FinalNorm {
                // The final state is normed already.
                let through = FinalNorm { weight: norm, eps, states: of.layers };
                let targets = &targets[tokens];
                let part = backend.compare(head, through, states, of.layers + 1, &references, targets, logits);
                comparison.streams.append(part);
            }
        }
        match reading.lens {
            Lens::Raw => backend.compare_branches(head, branches, of, &references, targets, logits),
            // A norm is not linear: every state meets the unembedding by itself. (The final state's second norm is not looked at.)
            Lens::FinalNorm => {
                backend.norm_rows(branches, norm, eps, d);
                comparison.entropy = backend.head(head, branches, None, logits).entropy;
                comparison
            }
        }
    }

    /// Means over all response tokens. `name`: what the model is called in the result. `threshold` in nats; the default share
    /// of ln V without it.
    pub fn finish(&self, model: &Model<B>, name: &str, threshold: Option<f64>) -> Result<Analysis> {
        self.sums.finish(model.config.vocab_size, name, self.reading, threshold)
    }
}

/// As many of these samples as one forward takes, with `most` response tokens; one at least. Their response tokens, and how many
/// samples it are.
pub(super) fn pack(samples: &[Sample], most: usize) -> (Packing, Targets, usize) {
    let (mut packing, mut targets, mut taken) = (Packing::new(), Targets::default(), 0);
    for sample in samples {
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
    (packing, targets, taken)
}

/// Rows whose branches are held at a time.
fn held_rows<B: Backend>(model: &Model<B>) -> usize {
    let size = size_of::<f32>();
    let row = Branches { layers: model.config.layers }.places() * model.config.hidden_size * size;
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

//! Token by token and layer by layer: what every policy said where a token of a response came.
//!
//! Looks closely at a few samples, which [`super::flow`] only counts: every policy's whole distribution is made, for a block of
//! tokens at a time.

use super::flow::{Sample, check};
use super::result::Lens;
use crate::compute::Packing;
use crate::compute::backend::{Inspect, Kind, Placed};
use crate::compute::cpu::head::LogitRow;
use crate::model::{LayerIndex, Model, Tap, Workspace};
use crate::policy::InternalPolicy;
use anyhow::{Context, Result};
use rayon::prelude::*;

/// States that wait for the end of a forward, in f32: 512 MiB. A response with more of them takes several forwards.
const HELD: usize = 1 << 27;
/// Logits of a block of tokens under one policy, in f32: 64 MiB.
const LOGITS: usize = 1 << 24;
/// Tokens of a block, where the vocabulary is small.
const BLOCK: usize = 128;

/// What one policy said where one token came.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRow {
    /// Counts from 1.
    pub sample: usize,
    /// Place of the token in its sequence, prompt included; counts from 0, as `response_start` does.
    pub position: usize,
    /// The token that came.
    pub token: u32,
    pub policy: InternalPolicy,
    /// Of the policy, in nats.
    pub entropy: f32,
    /// `D(policy || final)`, in nats.
    pub kl_to_final: f32,
    /// Of the token that came.
    pub log_prob: f32,
    /// 1 and the number of tokens strictly likelier than the one that came.
    pub rank: u32,
    /// Likeliest tokens and their probabilities; of equally likely ones the lower id first.
    pub top: Vec<(u32, f32)>,
}

/// The policies of a map, in the order of its rows: layer, attention and FFN of every layer, and the final one.
pub fn policies(layers: usize) -> Vec<InternalPolicy> {
    let of = |l| [InternalPolicy::Layer(l), InternalPolicy::Attention(l), InternalPolicy::Ffn(l)];
    LayerIndex::all(layers).flat_map(of).chain([InternalPolicy::Final]).collect()
}

/// Reads every response token of the samples under every policy. `rows` hears of some tokens at a time, in order, each with
/// the rows of [`policies`]. `top`: how many of the likeliest tokens a row lists.
///
/// Errors: a sample that cannot be analysed, or what `rows` answers.
pub fn map_tokens<B: Inspect>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    samples: &[Sample],
    lens: Lens,
    top: usize,
    rows: &mut dyn FnMut(Vec<TokenRow>) -> Result<()>,
) -> Result<()> {
    for (i, sample) in samples.iter().enumerate() {
        check(model, sample).with_context(|| format!("sample {}", i + 1))?;
    }
    let policies = policies(model.config.layers);
    let held = (HELD / (policies.len() * model.config.hidden_size)).max(1);
    for (number, sample) in (1..).zip(samples) {
        let positions: Vec<usize> = (sample.response_start..sample.ids.len()).collect();
        for positions in positions.chunks(held) {
            let states = states(model, ws, sample, positions, &policies, lens);
            let map = Map { model, policies: &policies, states: &states, top };
            let size = (LOGITS / model.config.vocab_size).clamp(1, BLOCK);
            for (i, positions) in positions.chunks(size).enumerate() {
                let block = map.block(i * size, number, sample, positions);
                model.backend.status()?;
                rows(block)?;
            }
        }
    }
    Ok(())
}

/// The states that predict the tokens at `positions`, `[n, d]` for every policy, as the lens shows them.
fn states<B: Inspect>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    sample: &Sample,
    positions: &[usize],
    policies: &[InternalPolicy],
    lens: Lens,
) -> Vec<B::Array> {
    let rows: Vec<usize> = positions.iter().map(|p| p - 1).collect();
    let until = rows.last().map_or(0, |row| row + 1);
    let (d, backend) = (model.config.hidden_size, &model.backend);
    let mut states: Vec<B::Array> = policies.iter().map(|_| B::Array::default()).collect();
    model.forward_observed(ws, &Packing::single(&sample.ids[..until]), Tap::Final, &mut |tap, state| {
        let Some(place) = policies.iter().position(|policy| policy.tap() == tap) else { return };
        backend.resize(&mut states[place], rows.len() * d, Kind::Factor);
        backend.place_rows(state, &rows, &mut states[place], Placed { first: 0, stride: d, d });
        // The final state is normed already.
        if lens == Lens::FinalNorm && tap != Tap::Final {
            let w = model.param(&model.layout.final_norm);
            backend.norm_rows(&mut states[place], w, model.config.rms_norm_eps, d);
        }
    });
    states
}

struct Map<'a, B: Inspect> {
    model: &'a Model<B>,
    policies: &'a [InternalPolicy],
    /// `[n, d]` for every policy.
    states: &'a [B::Array],
    top: usize,
}

impl<B: Inspect> Map<'_, B> {
    /// Rows of the tokens at `positions`, whose states begin at row `first`.
    fn block(&self, first: usize, number: usize, sample: &Sample, positions: &[usize]) -> Vec<TokenRow> {
        let (n, vocab) = (positions.len(), self.model.config.vocab_size);
        let (head, mut room) = (self.model.unembedding(1.0), B::Array::default());
        let mut logits_of = |states: &B::Array| self.model.backend.logits(head, states, first, n, &mut room);
        let last = self.states.last().map(&mut logits_of).unwrap_or_default();
        let last: Vec<LogitRow<'_>> = last.par_chunks(vocab).map(LogitRow::new).collect();
        let mut columns = Vec::with_capacity(self.policies.len());
        for (policy, states) in self.policies.iter().zip(self.states) {
            let logits = logits_of(states);
            let rows = logits.par_chunks(vocab).zip(&last).zip(positions).map(|((z, last), position)| {
                let (row, token) = (LogitRow::new(z), sample.ids[*position]);
                TokenRow {
                    sample: number,
                    position: *position,
                    token,
                    policy: *policy,
                    entropy: row.entropy(),
                    kl_to_final: row.divergence(last),
                    log_prob: row.log_prob(token),
                    rank: row.rank(token),
                    top: row.top(self.top),
                }
            });
            columns.push(rows.collect::<Vec<_>>().into_iter());
        }
        (0..n).flat_map(|_| columns.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>()).collect()
    }
}

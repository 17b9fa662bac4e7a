//! Rollouts on the CPU: every thread takes its share of the sequences through a whole step.

use super::engine::{Engine, Request};
use super::sampler::{Draw, sample};
use super::session::{Live, Rollout, Session};
use crate::compute::cpu::Cpu;
use crate::compute::cpu::array::{Array, Elements};
use crate::compute::cpu::head::packed_logits;
use crate::compute::{Backend, Packing};
use crate::model::kv_cache::{KvSequence, KvTokens};
use crate::model::{Model, Workspace};
use anyhow::Result;
use rayon::prelude::*;
use std::sync::Arc;

/// Logits that a worker holds at once while sampling, in f32: 32 MiB.
const LOGITS: usize = 1 << 23;

/// Prompt tokens that go through the decoder together: enough for efficient products. Their activations stay in memory while the caches
/// grow.
const PREFILL: usize = 512;

/// Sequences that are worth a worker of their own: two full panels of the matrix product.
const FEWEST_ROWS: usize = 28;

impl Rollout for Cpu {
    type Session<'m> = HostSession<'m>;

    fn session<'m>(
        model: &'m Model,
        ws: &'m mut Workspace,
        engine: &'m Engine<'m>,
        _: &[Request],
    ) -> Result<HostSession<'m>> {
        ws.pack(model, engine.policy.tap());
        let workers = (0..rayon::current_num_threads()).map(|_| Worker::beside(ws, model)).collect();
        Ok(HostSession { model, ws, engine, workers })
    }
}

/// A rollout on the CPU, with the weights packed.
pub struct HostSession<'m> {
    model: &'m Model,
    ws: &'m mut Workspace,
    engine: &'m Engine<'m>,
    workers: Vec<Worker>,
}

impl Drop for HostSession<'_> {
    fn drop(&mut self) {
        self.ws.unpack();
    }
}

/// A prompt's cache, and the state that predicts the first token, `[d]`.
pub struct HostPrompt {
    cache: Arc<KvTokens>,
    state: Arc<Array>,
}

/// A sequence's cache, and what predicts its first token.
pub struct HostSequence {
    cache: KvSequence,
    first: Arc<Array>,
}

impl Session for HostSession<'_> {
    type Prompt = HostPrompt;
    type Sequence = HostSequence;

    fn prefill(&mut self, prompts: &[&[u32]]) -> Result<Vec<HostPrompt>> {
        let mut done = Vec::with_capacity(prompts.len());
        while done.len() < prompts.len() {
            let mut packing = Packing::new();
            for prompt in &prompts[done.len()..] {
                if packing.rows() > 0 && packing.rows() + prompt.len() > PREFILL {
                    break;
                }
                packing.push(prompt);
            }
            let caches = self.model.prefill(self.ws, &packing, self.engine.policy.tap());
            done.extend(caches.into_iter().map(|(cache, rows)| {
                let (model, mut state) = (self.model, Array::default());
                model.backend.gather_rows(self.ws.state(), &[rows.end - 1], model.config.hidden_size, &mut state);
                HostPrompt { cache, state: Arc::new(state) }
            }));
        }
        Ok(done)
    }

    fn begin(&self, prompt: &HostPrompt, prompt_len: usize) -> HostSequence {
        HostSequence { cache: KvSequence::new(prompt.cache.clone(), prompt_len), first: prompt.state.clone() }
    }

    fn first(&mut self, fresh: &mut [Live<HostSequence>]) -> Result<()> {
        let states: Vec<f32> = fresh.iter().flat_map(|live| live.sequence.first.to_f32().into_owned()).collect();
        self.workers[0].sample(self.model, self.engine, Some(Elements::from(&states)), fresh);
        Ok(())
    }

    fn advance(&mut self, live: &mut [Live<HostSequence>]) -> Result<()> {
        let HostSession { model, engine, workers, .. } = self;
        // Each worker takes its sequences through the whole step, without waiting for the others in between.
        let shards = (live.len() / FEWEST_ROWS).clamp(1, workers.len());
        let share = live.len().div_ceil(shards);
        live.par_chunks_mut(share).zip(workers).with_max_len(1).for_each(|(live, worker)| {
            let ids: Vec<u32> = live.iter().filter_map(|l| l.completion.ids.last().copied()).collect();
            let mut caches: Vec<&mut KvSequence> = live.iter_mut().map(|l| &mut l.sequence.cache).collect();
            model.decode(&mut worker.ws, &ids, &mut caches, engine.policy.tap());
            worker.sample(model, engine, None, live);
        });
        Ok(())
    }
}

/// What one thread needs to take sequences through a step.
struct Worker {
    ws: Workspace,
    logits: Vec<f32>,
}

impl Worker {
    fn beside(ws: &Workspace, model: &Model) -> Worker {
        Worker { ws: ws.beside(model), logits: Vec::new() }
    }

    /// Draws one token for each sequence from its state, `[B, d]`: those given, or those that the last decoding left.
    fn sample(
        &mut self,
        model: &Model,
        engine: &Engine<'_>,
        states: Option<Elements<'_>>,
        live: &mut [Live<HostSequence>],
    ) {
        let (d, vocab) = (model.config.hidden_size, model.config.vocab_size);
        let temperature = engine.sampling.head_temperature();
        let rows = (LOGITS / vocab).max(1);
        let Worker { ws, logits } = self;
        let states = states.unwrap_or(Elements::from(ws.state()));
        logits.resize(rows.min(live.len()) * vocab, 0.0);
        for (first, live) in (0..).step_by(rows).zip(live.chunks_mut(rows)) {
            let states = states.part(first * d..(first + live.len()) * d);
            let logits = &mut logits[..live.len() * vocab];
            match ws.packed_unembed() {
                Some(unembed) => packed_logits(unembed, temperature, states, live.len(), logits),
                None => model.head(temperature).logits(states, logits),
            }
            live.par_iter_mut().zip(logits.par_chunks_mut(vocab)).with_min_len(4).for_each(|(live, logits)| {
                let Draw { token, log_prob, entropy } = sample(logits, &engine.sampling, &mut live.rng);
                live.completion.push(token, log_prob, entropy);
            });
        }
    }
}

//! The batch loop: admit, prefill, decode, retire, refill.
//!
//! A request's prompt is prefilled once; its samples share the prompt's keys and values. One decode step serves every
//! live sequence. Slots that fall free are refilled in the order of the requests.

use super::sampler::{SampleRng, Sampling, sample};
use crate::compute::Packing;
use crate::model::kv_cache::{KvSequence, KvTokens};
use crate::model::{Model, Workspace};
use crate::policy::{InternalPolicy, gather_rows};
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Prompt tokens that are prefilled together.
const PREFILL_TOKENS: usize = 4096;
/// Logits that a worker holds at once while sampling, in f32: 32 MiB.
const LOGITS: usize = 1 << 23;

/// Sequences that are worth a worker of their own: two full panels of the matrix product.
const FEWEST_ROWS: usize = 28;

/// One prompt and the seeds of the samples wanted from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub seeds: Vec<u64>,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end-of-sequence token came; it is the response's last.
    Stop,
    /// It reached the most tokens allowed.
    Length,
}

/// One sampled response.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub ids: Vec<u32>,
    /// Log-prob of each token under the policy and temperature that it was sampled from, `[ids.len()]`.
    pub log_probs: Vec<f32>,
    /// Entropy of the distribution that each token was drawn from, in nats, `[ids.len()]`.
    pub entropies: Vec<f32>,
    pub finish: Finish,
}

impl Completion {
    /// Before its first token.
    const EMPTY: Completion =
        Completion { ids: Vec::new(), log_probs: Vec::new(), entropies: Vec::new(), finish: Finish::Length };

    /// It was cut off at the longest length allowed.
    pub fn truncated(&self) -> bool {
        self.finish == Finish::Length
    }
}

/// What `generate` is asked for, beside the requests.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a> {
    pub policy: InternalPolicy,
    pub sampling: Sampling,
    /// Any of these ends a response.
    pub eos_ids: &'a [u32],
    /// Sequences decoded at once.
    pub slots: usize,
}

struct Live {
    request: usize,
    sample: usize,
    cache: KvSequence,
    rng: SampleRng,
    completion: Completion,
}

/// A prompt that is prefilled and still has samples to start.
struct Prompt {
    request: usize,
    next_sample: usize,
    cache: Arc<KvTokens>,
    /// State that predicts the first token, `[d]`.
    state: Vec<f32>,
}

/// Hears of a response that ended: its request, its sample, and itself.
pub type Ended<'a> = dyn FnMut(usize, usize, &Completion) -> Result<()> + 'a;

/// Samples every request: `completions[request][sample]`. `progress` is called with the number of responses that
/// ended since its last call.
pub fn generate(
    model: &Model,
    ws: &mut Workspace,
    engine: &Engine<'_>,
    requests: &[Request],
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<Completion>>> {
    let mut ended = |_: usize, _: usize, _: &Completion| {
        progress(1);
        Ok(())
    };
    generate_each(model, ws, engine, requests, &mut ended)
}

/// [`generate`], where `ended(request, sample, completion)` hears of every response as it ends: to save it at once. An
/// error of its ends the whole.
pub fn generate_each(
    model: &Model,
    ws: &mut Workspace,
    engine: &Engine<'_>,
    requests: &[Request],
    ended: &mut Ended<'_>,
) -> Result<Vec<Vec<Completion>>> {
    check(model, engine, requests)?;
    ws.pack(model, engine.policy.tap());
    let done = run(model, ws, engine, requests, ended);
    ws.unpack();
    done
}

/// [`generate_each`], with the weights packed.
fn run(
    model: &Model,
    ws: &mut Workspace,
    engine: &Engine<'_>,
    requests: &[Request],
    ended: &mut Ended<'_>,
) -> Result<Vec<Vec<Completion>>> {
    let mut done: Vec<Vec<Completion>> = requests.iter().map(|r| vec![Completion::EMPTY; r.seeds.len()]).collect();
    let mut workers: Vec<Worker> = (0..rayon::current_num_threads()).map(|_| Worker::beside(ws, model)).collect();
    let mut live: Vec<Live> = Vec::new();
    let mut ready: Vec<Prompt> = Vec::new();
    let mut next_request = 0;
    loop {
        let free = engine.slots - live.len();
        // A few free slots are not worth a prefill of their own while others are decoding.
        if free * 8 >= engine.slots || live.is_empty() {
            let wanted =
                free.saturating_sub(ready.iter().map(|p| requests[p.request].seeds.len() - p.next_sample).sum());
            prefill(model, ws, engine, requests, &mut next_request, wanted, &mut ready);
            let admitted = admit(requests, &mut ready, free);
            if !admitted.is_empty() {
                let states: Vec<f32> = admitted.iter().flat_map(|(_, state)| state.iter().copied()).collect();
                let mut fresh: Vec<Live> = admitted.into_iter().map(|(live, _)| live).collect();
                workers[0].sample(model, engine, Some(&states), &mut fresh);
                live.append(&mut fresh);
                retire(engine, &mut live, &mut done, ended)?;
                continue;
            }
        }
        if live.is_empty() {
            return Ok(done);
        }
        // Each worker takes its sequences through the whole step, without waiting for the others in between.
        let shards = (live.len() / FEWEST_ROWS).clamp(1, workers.len());
        let share = live.len().div_ceil(shards);
        live.par_chunks_mut(share).zip(&mut workers).with_max_len(1).for_each(|(live, worker)| {
            let ids: Vec<u32> = live.iter().filter_map(|l| l.completion.ids.last().copied()).collect();
            let mut caches: Vec<&mut KvSequence> = live.iter_mut().map(|l| &mut l.cache).collect();
            model.decode(&mut worker.ws, &ids, &mut caches, engine.policy.tap());
            worker.sample(model, engine, None, live);
        });
        retire(engine, &mut live, &mut done, ended)?;
    }
}

fn check(model: &Model, engine: &Engine<'_>, requests: &[Request]) -> Result<()> {
    let c = &model.config;
    ensure!(engine.slots > 0, "rollouts need at least one slot, got 0: raise rollout.slots");
    ensure!(engine.sampling.max_new_tokens > 0, "max_new_tokens is 0: a response needs room for at least one token");
    for (i, request) in requests.iter().enumerate() {
        let (n, new) = (request.prompt.len(), engine.sampling.max_new_tokens);
        ensure!(n > 0, "prompt {} is empty: a response needs at least one token to follow", i + 1);
        ensure!(
            n + new <= c.max_position_embeddings,
            "prompt {} has {n} tokens and up to {new} may follow, but the model's context is {} tokens: \
             shorten the prompt or lower max_new_tokens",
            i + 1,
            c.max_position_embeddings
        );
        model.check_tokens(&request.prompt).with_context(|| format!("prompt {}", i + 1))?;
    }
    Ok(())
}

/// Prefills prompts, in order, until `wanted` more samples can start.
fn prefill(
    model: &Model,
    ws: &mut Workspace,
    engine: &Engine<'_>,
    requests: &[Request],
    next_request: &mut usize,
    wanted: usize,
    ready: &mut Vec<Prompt>,
) {
    let mut supply = 0;
    while supply < wanted && *next_request < requests.len() {
        let mut packing = Packing::new();
        let first = *next_request;
        while let Some(request) = requests.get(*next_request) {
            let full = packing.rows() > 0 && packing.rows() + request.prompt.len() > PREFILL_TOKENS;
            if supply >= wanted || full {
                break;
            }
            packing.push(&request.prompt);
            supply += request.seeds.len();
            *next_request += 1;
        }
        let caches = model.prefill(ws, &packing, engine.policy.tap());
        for (i, (cache, rows)) in caches.into_iter().enumerate() {
            let state = gather_rows(ws.state(), &[rows.end - 1], model.config.hidden_size);
            ready.push(Prompt { request: first + i, next_sample: 0, cache, state });
        }
    }
}

/// Starts up to `free` samples of the prompts that are ready; those with none left are dropped.
fn admit(requests: &[Request], ready: &mut Vec<Prompt>, free: usize) -> Vec<(Live, Vec<f32>)> {
    let mut admitted = Vec::new();
    for prompt in ready.iter_mut() {
        let request = &requests[prompt.request];
        while admitted.len() < free && prompt.next_sample < request.seeds.len() {
            let live = Live {
                request: prompt.request,
                sample: prompt.next_sample,
                cache: KvSequence::new(prompt.cache.clone(), request.prompt.len()),
                rng: SampleRng::new(request.seeds[prompt.next_sample]),
                completion: Completion::EMPTY,
            };
            admitted.push((live, prompt.state.clone()));
            prompt.next_sample += 1;
        }
    }
    ready.retain(|p| p.next_sample < requests[p.request].seeds.len());
    admitted
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
    fn sample(&mut self, model: &Model, engine: &Engine<'_>, states: Option<&[f32]>, live: &mut [Live]) {
        let (d, vocab) = (model.config.hidden_size, model.config.vocab_size);
        let head = model.head(engine.sampling.head_temperature());
        let rows = (LOGITS / vocab).max(1);
        let Worker { ws, logits } = self;
        let states = states.unwrap_or(ws.state());
        logits.resize(rows.min(live.len()) * vocab, 0.0);
        for (live, states) in live.chunks_mut(rows).zip(states.chunks(rows * d)) {
            let logits = &mut logits[..live.len() * vocab];
            head.logits(ws.packed_unembed(), states, logits);
            live.par_iter_mut().zip(logits.par_chunks_mut(vocab)).with_min_len(4).for_each(|(live, logits)| {
                let draw = sample(logits, &engine.sampling, &mut live.rng);
                live.completion.ids.push(draw.token);
                live.completion.log_probs.push(draw.log_prob);
                live.completion.entropies.push(draw.entropy);
            });
        }
    }
}

/// Moves ended sequences out of `live`, and says so.
fn retire(
    engine: &Engine<'_>,
    live: &mut Vec<Live>,
    done: &mut [Vec<Completion>],
    ended: &mut Ended<'_>,
) -> Result<()> {
    let mut told = Ok(());
    live.retain_mut(|l| {
        let stopped = l.completion.ids.last().is_some_and(|id| engine.eos_ids.contains(id));
        let over = stopped || l.completion.ids.len() >= engine.sampling.max_new_tokens;
        if over {
            l.completion.finish = if stopped { Finish::Stop } else { Finish::Length };
            if told.is_ok() {
                told = ended(l.request, l.sample, &l.completion);
            }
            done[l.request][l.sample] = std::mem::replace(&mut l.completion, Completion::EMPTY);
        }
        !over
    });
    told
}

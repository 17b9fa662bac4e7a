//! The batch loop: admit, prefill, decode, retire, refill.
//!
//! A request's prompt is prefilled once; its samples share the prompt's keys and values. One decode step serves every
//! live sequence. Slots that fall free are refilled in the order of the requests. Where a device's memory for keys and values runs
//! out, the youngest sequences are given up and taken up again, before others begin. How a device does its part is in
//! [`super::session`].

use super::sampler::{SampleRng, Sampling};
use super::session::{Live, Rollout, Session};
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Prompt tokens that are prefilled together.
const PREFILL_TOKENS: usize = 4096;

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

    /// One more token.
    pub fn push(&mut self, token: u32, log_prob: f32, entropy: f32) {
        self.ids.push(token);
        self.log_probs.push(log_prob);
        self.entropies.push(entropy);
    }

    fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.log_probs.truncate(len);
        self.entropies.truncate(len);
    }

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

/// A prompt that is prefilled and still has samples to start.
struct Prompt<P> {
    request: usize,
    next_sample: usize,
    prefilled: P,
}

/// Hears of a response that ended: its request, its sample, and itself.
pub type Ended<'a> = dyn FnMut(usize, usize, &Completion) -> Result<()> + 'a;

/// Samples every request: `completions[request][sample]`. `progress` is called with the number of responses that
/// ended since its last call.
pub fn generate<B: Rollout>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
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
pub fn generate_each<B: Rollout>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    engine: &Engine<'_>,
    requests: &[Request],
    ended: &mut Ended<'_>,
) -> Result<Vec<Vec<Completion>>> {
    check(model, engine, requests)?;
    run(&mut B::session(model, ws, engine, requests)?, engine, requests, ended)
}

/// The loop itself.
pub(super) fn run<S: Session>(
    session: &mut S,
    engine: &Engine<'_>,
    requests: &[Request],
    ended: &mut Ended<'_>,
) -> Result<Vec<Vec<Completion>>> {
    let mut done: Vec<Vec<Completion>> = requests.iter().map(|r| vec![Completion::EMPTY; r.seeds.len()]).collect();
    let mut live = Vec::new();
    let mut ready = Vec::new();
    // In the order in which they began.
    let mut given_up: VecDeque<Live<()>> = VecDeque::new();
    let mut next_request = 0;
    loop {
        // A few free slots are not worth a prefill of their own while others are decoding.
        let worth = |live: usize| (engine.slots - live) * 8 >= engine.slots || live == 0;
        if worth(live.len()) {
            resume(session, requests, engine.slots - live.len(), &mut given_up, &mut live)?;
        }
        if given_up.is_empty() && worth(live.len()) {
            let free = engine.slots - live.len();
            let supply: usize = ready.iter().map(|p: &Prompt<_>| requests[p.request].seeds.len() - p.next_sample).sum();
            let (wanted, others) = (free.saturating_sub(supply), live.len() + supply);
            prefill(session, requests, &mut next_request, wanted, others, &mut ready)?;
            let mut fresh = admit(session, requests, &mut ready, free, live.len());
            if !fresh.is_empty() {
                session.first(&mut fresh)?;
                live.append(&mut fresh);
                retire(engine, &mut live, &mut done, ended)?;
                continue;
            }
        }
        if live.is_empty() {
            return Ok(done);
        }
        while live.len() > 1 && !session.advances(&live) {
            if let Some(youngest) = live.pop() {
                given_up.push_front(youngest.with(()));
            }
        }
        session.advance(&mut live)?;
        retire(engine, &mut live, &mut done, ended)?;
    }
}

/// Takes up sequences that were given up, in their order, as many as there is room for; one at least where nothing else goes on.
fn resume<S: Session>(
    session: &mut S,
    requests: &[Request],
    free: usize,
    given_up: &mut VecDeque<Live<()>>,
    live: &mut Vec<Live<S::Sequence>>,
) -> Result<()> {
    let of = |l: &Live<()>| (requests[l.request].prompt.as_slice(), l.completion.ids.len());
    let (mut count, mut tokens) = (0, 0);
    for (prompt, drawn) in given_up.iter().map(of).take(free) {
        let all = tokens + prompt.len() + drawn;
        let first = count == 0 && live.is_empty();
        let full = count > 0 && all > PREFILL_TOKENS;
        if full || !first && !session.admits(all, live.len() + count) {
            break;
        }
        (count, tokens) = (count + 1, all);
    }
    if count == 0 {
        return Ok(());
    }
    let taken: Vec<Live<()>> = given_up.drain(..count).collect();
    let states: Vec<(&[u32], &Completion)> =
        taken.iter().map(|l| (requests[l.request].prompt.as_slice(), &l.completion)).collect();
    let sequences = session.resume(&states)?;
    live.extend(taken.into_iter().zip(sequences).map(|(l, sequence)| l.with(sequence)));
    Ok(())
}

fn check<B: Rollout>(model: &Model<B>, engine: &Engine<'_>, requests: &[Request]) -> Result<()> {
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

/// Prefills prompts, in order, until `wanted` more samples can start, or there is no room for more beside the `others`.
fn prefill<S: Session>(
    session: &mut S,
    requests: &[Request],
    next_request: &mut usize,
    wanted: usize,
    others: usize,
    ready: &mut Vec<Prompt<S::Prompt>>,
) -> Result<()> {
    let mut supply = 0;
    while supply < wanted && *next_request < requests.len() {
        let (mut numbers, mut prompts, mut tokens) = (Vec::new(), Vec::new(), 0);
        while let Some(request) = requests.get(*next_request) {
            if request.seeds.is_empty() {
                *next_request += 1;
                continue;
            }
            let all = tokens + request.prompt.len();
            // Where nothing else goes on there is room for one.
            let alone = others + supply == 0;
            let full = tokens > 0 && all > PREFILL_TOKENS || !alone && !session.admits(all, others + supply);
            if supply >= wanted || full {
                break;
            }
            numbers.push(*next_request);
            prompts.push(request.prompt.as_slice());
            tokens += request.prompt.len();
            supply += request.seeds.len();
            *next_request += 1;
        }
        if prompts.is_empty() {
            break;
        }
        let prefilled = session.prefill(&prompts)?;
        ready.extend(numbers.into_iter().zip(prefilled).map(|(request, prefilled)| Prompt {
            request,
            next_sample: 0,
            prefilled,
        }));
    }
    Ok(())
}

/// Starts up to `free` samples of the prompts that are ready; those with none left are dropped.
fn admit<S: Session>(
    session: &S,
    requests: &[Request],
    ready: &mut Vec<Prompt<S::Prompt>>,
    free: usize,
    live: usize,
) -> Vec<Live<S::Sequence>> {
    let mut admitted = Vec::new();
    for prompt in ready.iter_mut() {
        let request = &requests[prompt.request];
        while admitted.len() < free && prompt.next_sample < request.seeds.len() {
            let others = live + admitted.len();
            if others > 0 && !session.admits(0, others) {
                break;
            }
            admitted.push(Live {
                request: prompt.request,
                sample: prompt.next_sample,
                passed: 0,
                sequence: session.begin(&prompt.prefilled, request.prompt.len()),
                rng: SampleRng::new(request.seeds[prompt.next_sample]),
                completion: Completion::EMPTY,
            });
            prompt.next_sample += 1;
        }
    }
    ready.retain(|p| p.next_sample < requests[p.request].seeds.len());
    admitted
}

/// Moves ended sequences out of `live`, without what was drawn behind their ends, and says so.
fn retire<S>(
    engine: &Engine<'_>,
    live: &mut Vec<Live<S>>,
    done: &mut [Vec<Completion>],
    ended: &mut Ended<'_>,
) -> Result<()> {
    let mut told = Ok(());
    live.retain_mut(|l| {
        let new = &l.completion.ids[l.passed..];
        let stop = new.iter().position(|id| engine.eos_ids.contains(id)).map(|at| l.passed + at + 1);
        l.passed = l.completion.ids.len();
        let most = engine.sampling.max_new_tokens;
        let len = stop.unwrap_or(l.completion.ids.len()).min(most);
        let stopped = stop.is_some_and(|stop| stop <= most);
        let over = stopped || len == most;
        if over {
            l.completion.truncate(len);
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

#[cfg(test)]
mod tests;

//! Rollouts on a CUDA device: keys and values in pages, several steps without a word to the host.
//!
//! A block of steps is planned on the host: where each sequence's keys and values go, what it sees, and the uniform numbers of its draws,
//! from the sample's own generator. The device then takes the steps one after the other, each from the tokens of the one before, and
//! the block's draws come back together. What a sequence draws behind its end is dropped, as [`Session::advance`] allows.
//!
//! A step is hundreds of small launches; it is captured when it has run once for its number of rows and splits, and replayed from then on.

mod attend;
mod pages;

use super::engine::{Completion, Engine, Request};
use super::session::{Live, Rollout, Session};
use crate::compute::backend::{Heads, Kind};
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::backend::decode::{
    DecodeRoom, DecodeShape, Drawing, KvPages, PAGE, Plan, StepRow, padded_rows, pages_of,
};
use crate::compute::cuda::runtime::{Graph, Size};
use crate::compute::{Backend, Packing};
use crate::model::decoder::Rows;
use crate::model::{Keep, LayerIndex, Model, Workspace};
use anyhow::{Context, Result};
use attend::{Decode, Prefill};
use pages::{PageList, PagePool};
use std::collections::HashMap;
use std::sync::Arc;

/// Steps of a block. A sequence that ends in it draws on to the block's end, half of one on average; and the device waits for the host
/// once a block.
const STEPS: usize = 8;

/// What a cache may take of the memory that is free: the rest is for prefills and steps.
const CACHE_SHARE: f64 = 0.85;

/// Pages that every sequence is to have ahead of it when another joins, where there are not enough for all at their longest: 128 tokens,
/// so that what is taken in is not given up at once.
const AHEAD: usize = 8;

/// How a session goes about its steps: none of it changes what is drawn, but for the rounding of sums.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    steps: usize,
    /// Whether steps are captured and replayed.
    capture: bool,
    /// Pages that the cache may have at most; as many as memory allows without it.
    pages: Option<usize>,
}

impl Rollout for Cuda {
    type Session<'m> = DeviceSession<'m>;

    fn session<'m>(
        model: &'m Model<Cuda>,
        ws: &'m mut Workspace<Cuda>,
        engine: &'m Engine<'m>,
        requests: &[Request],
    ) -> Result<DeviceSession<'m>> {
        DeviceSession::new(model, ws, engine, requests, Blocks { steps: STEPS, capture: true, pages: None })
    }
}

/// What a rollout's memory has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Demand {
    /// Sequences at once.
    sequences: usize,
    /// Tokens of the longest sequence.
    longest: usize,
    /// Pages of the longest sequence.
    longest_pages: usize,
    /// Pages for all that is there at once, whatever the order in which sequences end.
    pages: usize,
    /// Pages with which sequences can be sampled one by one: the longest, taken up again, beside another's prompt.
    fewest_pages: usize,
}

impl Demand {
    fn of(requests: &[Request], slots: usize, max_new_tokens: usize) -> Demand {
        let samples = requests.iter().map(|r| r.seeds.len()).sum();
        let sequences = slots.min(samples).max(1);
        // The last token drawn is not read any more.
        let own = pages_of(max_new_tokens - 1);
        let asked = requests.iter().filter(|r| !r.seeds.is_empty());
        let mut prompts: Vec<usize> = asked.map(|r| r.prompt.len()).collect();
        prompts.sort_unstable_by(|a, b| b.cmp(a));
        let longest = prompts.first().copied().unwrap_or(0);
        // Every live sequence may have a prompt of its own, and one more may have samples to start.
        let of_prompts: usize = prompts.iter().take(sequences + 1).map(|len| pages_of(*len)).sum();
        // A sequence that was taken up again has what it drew until then behind its prompt, and begins a page behind that.
        let longest_pages = pages_of(longest) + own + 1;
        Demand {
            sequences,
            longest: longest + max_new_tokens,
            longest_pages,
            pages: of_prompts + sequences * own,
            fewest_pages: longest_pages + pages_of(longest),
        }
    }
}

/// A rollout on a device.
pub struct DeviceSession<'m> {
    /// Captured steps by rows and splits; none where one has run once only. They work on the memory of what follows.
    graphs: HashMap<[usize; 2], Option<Box<dyn Graph>>>,
    /// The most rows of a step so far.
    most_rows: usize,
    model: &'m Model<Cuda>,
    /// Of prefills; grows with them.
    prefill: &'m mut Workspace<Cuda>,
    /// Of steps: does not move while there are graphs.
    decode: Workspace<Cuda>,
    engine: &'m Engine<'m>,
    blocks: Blocks,
    heads: Heads,
    cache: KvPages,
    pages: PagePool,
    /// Whether there are fewer pages than sequences can need.
    scarce: bool,
    room: DecodeRoom,
    /// States that first tokens are drawn from, `[rows, d]`.
    first: <Cuda as Backend>::Array,
    /// A step's states as the head reads them, where that is not as they are.
    factor: <Cuda as Backend>::Array,
}

/// States of prompts' last tokens, `[prompts of one prefill, d]`.
type States = Arc<<Cuda as Backend>::Array>;

/// A prompt's cache, and which row of which states predicts the first token.
pub struct DevicePrompt {
    pages: Arc<PageList>,
    states: States,
    row: usize,
}

/// A sequence's cache: its prompt's pages and its own.
pub struct DeviceSequence {
    prompt: Arc<PageList>,
    prompt_len: usize,
    /// Tokens of the completion that are among the prompt's: those drawn before it was taken up again.
    before: usize,
    own: PageList,
    /// What predicts the first token, until that is drawn.
    first: Option<(States, usize)>,
}

impl<'m> DeviceSession<'m> {
    fn new(
        model: &'m Model<Cuda>,
        ws: &'m mut Workspace<Cuda>,
        engine: &'m Engine<'m>,
        requests: &[Request],
        blocks: Blocks,
    ) -> Result<DeviceSession<'m>> {
        let (c, cuda) = (&model.config, &model.backend);
        cuda.status()?;
        let heads = Heads { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim };
        let layers = engine.policy.tap().layer().map_or(c.layers, LayerIndex::one_based);
        let demand = Demand::of(requests, engine.slots, engine.sampling.max_new_tokens);
        let shape = DecodeShape {
            heads,
            vocab: c.vocab_size,
            rows: padded_rows(demand.sequences),
            steps: blocks.steps,
            positions: demand.longest,
            pages: demand.longest_pages,
        };
        let page = KvPages::bytes(heads, cuda.real(), layers, 1);
        let room_for = |bytes: usize| {
            let for_cache = (bytes.saturating_sub(DecodeRoom::bytes(shape)) as f64 * CACHE_SHARE) as usize;
            (for_cache / page).saturating_sub(1)
        };
        let most = blocks.pages.or(cuda.arena().spare().map(room_for)).unwrap_or(usize::MAX);
        let scarce = demand.pages > most;
        // And the spare one.
        let pages = demand.pages.min(most.max(demand.fewest_pages)) + 1;
        let memory = || {
            let cache = cuda.kv_pages(heads, layers, pages)?;
            Ok::<_, anyhow::Error>((cache, cuda.decode_room(shape)?))
        };
        let (cache, room) = memory().with_context(|| {
            format!(
                "sampling sequences of up to {} tokens, up to {} at once, takes at least {} for keys and values ({pages} pages of \
                 {PAGE} tokens in {layers} layers) and {} for the steps; it does not fit: lower rollout.slots or max_new_tokens",
                demand.longest,
                demand.sequences,
                Size(page * pages),
                Size(DecodeRoom::bytes(shape)),
            )
        })?;
        let mut first = Default::default();
        cuda.resize(&mut first, shape.rows * c.hidden_size, Kind::Factor);
        cuda.status()?;
        Ok(DeviceSession {
            graphs: HashMap::new(),
            most_rows: 0,
            model,
            prefill: ws,
            decode: Workspace::new(model),
            engine,
            blocks,
            heads,
            cache,
            pages: PagePool::new(pages),
            scarce,
            room,
            first,
            factor: Default::default(),
        })
    }

    fn drawing(&self) -> Drawing {
        let sampling = &self.engine.sampling;
        Drawing { greedy: sampling.temperature == 0.0, top_k: sampling.top_k, top_p: sampling.top_p }
    }

    /// The next uniform number of a sample's generator; greedy draws ask for none.
    fn uniform<S>(&self, live: &mut Live<S>) -> f64 {
        if self.engine.sampling.temperature == 0.0 { 0.0 } else { live.rng.uniform() }
    }

    /// One step of `rows` rows from what it was told: forward, head, draws. Asks for no memory once it has run.
    fn step(&mut self, [rows, splits]: [usize; 2]) {
        let (cuda, model) = (&self.model.backend, self.model);
        let tap = self.engine.policy.tap();
        let drawing = self.drawing();
        let tokens = cuda.step_tokens(&self.room, rows);
        let mut attend = Decode { room: &self.room, cache: &self.cache, rows, splits };
        let of_step = Rows { tokens, count: rows, positions: self.room.positions() };
        model.forward_with(&mut self.decode, of_step, &mut attend, tap, Keep::Nothing, &mut |_, _| ());
        let hidden = cuda.factor(self.decode.state(), &mut self.factor);
        let head = model.unembedding(self.engine.sampling.head_temperature());
        cuda.draw(&self.room, rows, &head, hidden, drawing);
    }

    /// [`DeviceSession::step`], captured from its second time on.
    fn captured_step(&mut self, shape: [usize; 2]) -> Result<()> {
        // More rows than ever move the workspace's arrays, which graphs have the addresses of.
        if shape[0] > self.most_rows {
            self.graphs.clear();
            self.most_rows = shape[0];
        }
        match self.graphs.get(&shape) {
            Some(Some(graph)) => graph.replay(),
            Some(None) if self.blocks.capture => {
                let runtime = self.model.backend.runtime();
                runtime.begin_capture();
                self.step(shape);
                let graph = runtime.end_capture()?;
                graph.replay();
                self.graphs.insert(shape, Some(graph));
            }
            _ => {
                self.step(shape);
                self.graphs.insert(shape, None);
            }
        }
        Ok(())
    }

    /// Tokens among a sequence's own pages, and those that `steps` steps add to them.
    fn ahead(&self, live: &Live<DeviceSequence>, steps: usize) -> (usize, usize) {
        // The last token drawn has no key and value yet.
        let cached = live.completion.ids.len() - 1;
        (cached - live.sequence.before, steps.min(self.engine.sampling.max_new_tokens - 1 - cached))
    }

    /// Steps of the next block.
    fn steps(&self, live: &[Live<DeviceSequence>]) -> usize {
        let to_go = |live: &Live<DeviceSequence>| self.engine.sampling.max_new_tokens - live.completion.ids.len();
        self.blocks.steps.min(live.iter().map(to_go).max().unwrap_or(0))
    }

    /// Runs sequences through the decoder, together, their keys and values to pages of each one's own.
    fn fill(&mut self, sequences: &[&[u32]]) -> Result<(Vec<PageList>, Vec<usize>)> {
        let (cuda, model) = (&self.model.backend, self.model);
        let mut packing = Packing::new();
        let (mut lists, mut places, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in sequences {
            let mut pages = self.pages.list();
            pages.grow(pages_of(sequence.len()))?;
            places.extend((0..sequence.len()).map(|token| pages.place(token)));
            lists.push(pages);
            last.push(packing.push(sequence).end - 1);
        }
        let batch = cuda.batch(&packing, self.heads);
        let places = cuda.places(&self.cache, &places);
        let mut attend = Prefill { batch: &batch, cache: &self.cache, places: &places };
        let (rows, tap) = (Rows::packed::<Cuda>(&batch, &packing), self.engine.policy.tap());
        model.forward_with(self.prefill, rows, &mut attend, tap, Keep::Nothing, &mut |_, _| ());
        Ok((lists, last))
    }

    /// What `steps` steps of the live sequences are told; their own pages grow to what that takes.
    fn plan(&mut self, live: &mut [Live<DeviceSequence>], steps: usize) -> Result<Plan> {
        let mut plan = Plan::new(padded_rows(live.len()), steps);
        for (row, live) in live.iter_mut().enumerate() {
            let (cached, useful) = self.ahead(live, steps);
            let sequence = &mut live.sequence;
            sequence.own.grow(pages_of(cached + useful))?;
            let id = live.completion.ids[live.completion.ids.len() - 1];
            let first_page = plan.sequence(row, id, sequence.prompt.iter().chain(sequence.own.iter()));
            let prompt_len = sequence.prompt_len;
            for step in 0..steps {
                // What it draws behind the most tokens allowed is dropped: it stays at its last place and keeps nothing.
                let own = cached + step.min(useful - 1);
                let place = (step < useful).then(|| live.sequence.own.place(own));
                let uniform = self.uniform(live);
                let (prompt, position) = (prompt_len as u32, (prompt_len + own) as u32);
                plan.set(step, row, StepRow { position, place, prompt, own: own as u32 + 1, first_page, uniform });
            }
        }
        Ok(plan)
    }
}

impl Session for DeviceSession<'_> {
    type Prompt = DevicePrompt;
    type Sequence = DeviceSequence;

    fn prefill(&mut self, prompts: &[&[u32]]) -> Result<Vec<DevicePrompt>> {
        let (lists, last) = self.fill(prompts)?;
        let (cuda, mut states) = (&self.model.backend, Default::default());
        cuda.gather_rows(self.prefill.state(), &last, self.model.config.hidden_size, &mut states);
        cuda.status()?;
        let states = Arc::new(states);
        let prompt = |(row, pages)| DevicePrompt { pages: Arc::new(pages), states: Arc::clone(&states), row };
        Ok(lists.into_iter().enumerate().map(prompt).collect())
    }

    fn begin(&self, prompt: &DevicePrompt, prompt_len: usize) -> DeviceSequence {
        DeviceSequence {
            prompt: Arc::clone(&prompt.pages),
            prompt_len,
            before: 0,
            own: self.pages.list(),
            first: Some((Arc::clone(&prompt.states), prompt.row)),
        }
    }

    fn admits(&self, tokens: usize, live: usize) -> bool {
        !self.scarce || self.pages.free() >= pages_of(tokens) + (live + 1) * AHEAD
    }

    fn advances(&self, live: &[Live<DeviceSequence>]) -> bool {
        let steps = self.steps(live);
        let more = |live: &Live<DeviceSequence>| {
            let (cached, useful) = self.ahead(live, steps);
            pages_of(cached + useful).saturating_sub(live.sequence.own.len())
        };
        !self.scarce || self.pages.free() >= live.iter().map(more).sum()
    }

    fn resume(&mut self, given_up: &[(&[u32], &Completion)]) -> Result<Vec<DeviceSequence>> {
        // The last token drawn is what the next step reads.
        let tokens = |(prompt, completion): &(&[u32], &Completion)| {
            [prompt, &completion.ids[..completion.ids.len() - 1]].concat()
        };
        let all: Vec<Vec<u32>> = given_up.iter().map(tokens).collect();
        let (lists, _) = self.fill(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let sequence = |(pages, (prompt, completion)): (PageList, &(&[u32], &Completion))| {
            let before = completion.ids.len() - 1;
            let (prompt, prompt_len) = (Arc::new(pages), prompt.len() + before);
            DeviceSequence { prompt, prompt_len, before, own: self.pages.list(), first: None }
        };
        Ok(lists.into_iter().zip(given_up).map(sequence).collect())
    }

    fn first(&mut self, fresh: &mut [Live<DeviceSequence>]) -> Result<()> {
        let (cuda, d) = (&self.model.backend, self.model.config.hidden_size);
        // Sequences of one prefill stand together.
        let states: Vec<(States, usize)> = fresh.iter_mut().filter_map(|live| live.sequence.first.take()).collect();
        let mut gathered = 0;
        for of_prefill in states.chunk_by(|a, b| Arc::ptr_eq(&a.0, &b.0)) {
            let rows: Vec<u32> = of_prefill.iter().map(|(_, row)| *row as u32).collect();
            cuda.gather_rows_to(&of_prefill[0].0, &rows, d, &mut self.first, gathered);
            gathered += rows.len();
        }
        let mut plan = Plan::new(padded_rows(fresh.len()), 1);
        for (row, live) in fresh.iter_mut().enumerate() {
            plan.set_uniform(0, row, self.uniform(live));
        }
        cuda.load_plan(&self.room, &self.cache, &plan);
        cuda.begin_step(&self.room, plan.rows(), 0);
        let head = self.model.unembedding(self.engine.sampling.head_temperature());
        cuda.draw(&self.room, plan.rows(), &head, &self.first, self.drawing());
        cuda.end_step(&self.room, plan.rows(), 0);
        let drawn = cuda.drawn(&self.room, plan.rows(), 1)?;
        for (row, live) in fresh.iter_mut().enumerate() {
            let (token, log_prob, entropy) = drawn.of(0, row);
            live.completion.push(token, log_prob, entropy);
        }
        Ok(())
    }

    fn advance(&mut self, live: &mut [Live<DeviceSequence>]) -> Result<()> {
        let cuda = &self.model.backend;
        let steps = self.steps(live);
        let plan = self.plan(live, steps)?;
        let shape = [plan.rows(), plan.splits()];
        cuda.load_plan(&self.room, &self.cache, &plan);
        for step in 0..steps {
            cuda.begin_step(&self.room, shape[0], step);
            self.captured_step(shape)?;
            cuda.end_step(&self.room, shape[0], step);
        }
        let drawn = cuda.drawn(&self.room, shape[0], steps)?;
        for (row, live) in live.iter_mut().enumerate() {
            for step in 0..steps {
                let (token, log_prob, entropy) = drawn.of(step, row);
                live.completion.push(token, log_prob, entropy);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

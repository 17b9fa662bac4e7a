//! The loop by itself: a device that draws from nothing but a sample's generator, and has room for so many tokens.

use super::*;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// Tokens of a step, and those that a sequence is to have room for when another joins.
const STEPS: usize = 3;
const AHEAD: usize = 5;

/// Room for tokens that somebody has until it is dropped.
struct Held {
    tokens: usize,
    free: Arc<Mutex<usize>>,
}

impl Held {
    fn grow(&mut self, tokens: usize) -> Result<()> {
        let mut free = self.free.lock().unwrap();
        *free = free.checked_sub(tokens).context("no room is left")?;
        self.tokens += tokens;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.free.lock().unwrap() += self.tokens;
    }
}

struct Room {
    free: Arc<Mutex<usize>>,
    most: usize,
    taken_up: usize,
}

impl Room {
    fn hold(&self, tokens: usize) -> Result<Held> {
        let mut held = Held { tokens: 0, free: Arc::clone(&self.free) };
        held.grow(tokens)?;
        Ok(held)
    }

    fn free(&self) -> usize {
        *self.free.lock().unwrap()
    }

    fn draw(&self, live: &mut Live<(Arc<Held>, Held)>, tokens: usize) {
        for _ in 0..tokens {
            live.completion.push((live.rng.uniform() * 40.0) as u32, 0.0, 0.0);
        }
    }
}

impl Session for Room {
    type Prompt = Arc<Held>;
    /// What it shares, and its own.
    type Sequence = (Arc<Held>, Held);

    fn prefill(&mut self, prompts: &[&[u32]]) -> Result<Vec<Arc<Held>>> {
        prompts.iter().map(|prompt| Ok(Arc::new(self.hold(prompt.len())?))).collect()
    }

    fn begin(&self, prompt: &Arc<Held>, _: usize) -> (Arc<Held>, Held) {
        (Arc::clone(prompt), Held { tokens: 0, free: Arc::clone(&self.free) })
    }

    fn first(&mut self, fresh: &mut [Live<(Arc<Held>, Held)>]) -> Result<()> {
        fresh.iter_mut().for_each(|live| self.draw(live, 1));
        Ok(())
    }

    fn admits(&self, tokens: usize, live: usize) -> bool {
        self.free() >= tokens + (live + 1) * AHEAD
    }

    fn advances(&self, live: &[Live<(Arc<Held>, Held)>]) -> bool {
        self.free() >= STEPS * live.len()
    }

    fn resume(&mut self, given_up: &[(&[u32], &Completion)]) -> Result<Vec<(Arc<Held>, Held)>> {
        self.taken_up += given_up.len();
        let again = |(prompt, completion): &(&[u32], &Completion)| -> Result<_> {
            Ok((Arc::new(self.hold(prompt.len() + completion.ids.len() - 1)?), self.hold(0)?))
        };
        given_up.iter().map(again).collect()
    }

    fn advance(&mut self, live: &mut [Live<(Arc<Held>, Held)>]) -> Result<()> {
        for live in live.iter_mut() {
            live.sequence.1.grow(STEPS)?;
            self.draw(live, STEPS);
        }
        self.most = self.most.max(live.len());
        Ok(())
    }
}

proptest! {
    /// Whatever room there is, from what one sequence alone can need: everything is drawn, nothing is drawn otherwise, and all room
    /// comes back.
    #[test]
    fn room_and_slots_change_no_completion(
        prompts in prop::collection::vec((1usize..30, 0usize..5), 1..8),
        max_new_tokens in 1usize..40,
        slots in 1usize..24,
        spare in 0usize..300,
    ) {
        let request = |(i, (len, samples)): (usize, &(usize, usize))| Request {
            prompt: vec![7; *len],
            seeds: (0..*samples).map(|s| (100 * i + s) as u64).collect(),
        };
        let requests: Vec<Request> = prompts.iter().enumerate().map(request).collect();
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens };
        let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[3, 11], slots };
        let expected = |seed: &u64| {
            let (mut rng, mut ids) = (SampleRng::new(*seed), Vec::new());
            while ids.len() < max_new_tokens && !ids.last().is_some_and(|id| engine.eos_ids.contains(id)) {
                ids.push((rng.uniform() * 40.0) as u32);
            }
            ids
        };
        let longest = prompts.iter().map(|(len, _)| *len).max().unwrap_or(0);
        let fewest = 2 * longest + max_new_tokens + 2 * STEPS;
        let free = Arc::new(Mutex::new(fewest + spare));
        let mut room = Room { free: Arc::clone(&free), most: 0, taken_up: 0 };
        let mut ended = Vec::new();
        let mut hears = |request: usize, sample: usize, _: &Completion| {
            ended.push((request, sample));
            Ok(())
        };
        let done = run(&mut room, &engine, &requests, &mut hears).unwrap();
        for (request, done) in requests.iter().zip(&done) {
            let ids: Vec<Vec<u32>> = done.iter().map(|completion| completion.ids.clone()).collect();
            prop_assert_eq!(ids, request.seeds.iter().map(expected).collect::<Vec<_>>());
        }
        ended.sort_unstable();
        let all: Vec<(usize, usize)> =
            requests.iter().enumerate().flat_map(|(i, r)| (0..r.seeds.len()).map(move |s| (i, s))).collect();
        prop_assert_eq!(ended, all);
        prop_assert!(room.most <= slots);
        prop_assert_eq!(room.free(), fewest + spare);
    }
}

#[test]
fn the_youngest_are_given_up_and_taken_up_again() {
    let requests = [Request { prompt: vec![1; 4], seeds: (0..6).collect() }];
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 50 };
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots: 6 };
    let run_in = |tokens: usize| {
        let mut room = Room { free: Arc::new(Mutex::new(tokens)), most: 0, taken_up: 0 };
        let mut order = Vec::new();
        let mut hears = |_: usize, sample: usize, _: &Completion| {
            order.push(sample);
            Ok(())
        };
        run(&mut room, &engine, &requests, &mut hears).unwrap();
        (room.most, room.taken_up > 0, order)
    };
    assert_eq!(run_in(1000), (6, false, vec![0, 1, 2, 3, 4, 5]));
    // All begin, and there is not room for all to end; the oldest is never given up, and ends first.
    let (most, again, order) = run_in(70);
    assert!(most == 6 && again && order[0] == 0 && order.len() == 6, "{most}, {again}, {order:?}");
}

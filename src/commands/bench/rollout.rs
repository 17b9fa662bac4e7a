//! Sampling by itself.

use super::{model, open_device, print, random_ids, timed, warm_median, warmed};
use crate::cli::BenchRolloutArgs;
use crate::commands::device::{Device, on_device};
use crate::commands::open_weights;
use crate::compute::Backend;
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::rollout::engine::{Engine, Request, generate};
use crate::rollout::sampler::Sampling;
use anyhow::Result;
use serde_json::json;

pub fn run(args: &BenchRolloutArgs) -> Result<()> {
    on_device!(open_device(args.numbers)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &BenchRolloutArgs, backend: B) -> Result<()> {
    let until = InternalPolicy::Final.tap();
    let model = match &args.model.model {
        Some(dir) => backend.read_for_sampling(open_weights(dir)?, until, |_, _| ())?,
        None => model(&args.model)?.on(backend).for_sampling(until),
    };
    let requests = random_requests(&model, args.batch, args.prompt, 1);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: args.new };
    // No token ends a response: every sequence gets its full length.
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots: args.batch };
    let (mut ws, mut seconds) = (Workspace::new(&model), Vec::new());
    for time in 0..=args.repeat {
        let (took, _) = timed(&model.backend, || generate(&model, &mut ws, &engine, &requests, &mut |_| ()))?;
        seconds.push(took);
        warmed(&model.backend, time, args.repeat + 1);
    }
    let median = warm_median(&mut seconds);
    let tokens = args.batch * args.new;
    let line = json!({ "new_tokens": tokens, "seconds": median, "tokens_per_second": tokens as f64 / median });
    print(line, &model.backend);
    Ok(())
}

/// Random prompts, and seeds for `samples` responses to each.
pub fn random_requests<B: Backend>(model: &Model<B>, prompts: usize, tokens: usize, samples: usize) -> Vec<Request> {
    let request = |i: usize| Request {
        prompt: random_ids(model, i, tokens),
        seeds: (0..samples).map(|j| (i * samples + j) as u64).collect(),
    };
    (0..prompts).map(request).collect()
}

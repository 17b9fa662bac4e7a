//! Whole steps of GRPO on random prompts.

use super::rollout::random_requests;
use super::{open_device, policy, print, timed, warm_median, warmed, with_adapter};
use crate::cli::BenchStepArgs;
use crate::commands::device::{Device, on_device};
use crate::compute::backend::Kind;
use crate::model::{Keep, Workspace};
use crate::policy::InternalPolicy;
use crate::rl::adamw::Optimizer;
use crate::rl::advantage::{Advantage, Group, advantages};
use crate::rl::batch::{Response, ResponseGroup};
use crate::rl::update::{Before, UpdateSettings, update};
use crate::rl::{LossConfig, OptimizerConfig};
use crate::rollout::engine::{Completion, Engine, Request, generate};
use crate::rollout::sampler::Sampling;
use anyhow::Result;
use serde_json::json;

pub fn run(args: &BenchStepArgs) -> Result<()> {
    on_device!(open_device(args.numbers)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &BenchStepArgs, backend: B) -> Result<()> {
    let mut model = with_adapter(&args.model, &args.adapter)?.on(backend);
    let device = model.backend.clone();
    let policy = policy(args.layer, &model)?;
    let requests = random_requests(&model, args.prompts, args.prompt, args.group);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: args.new };
    let slots = args.slots.unwrap_or(args.prompts * args.group).max(1);
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots };
    let (loss, config) = (LossConfig::default(), OptimizerConfig::default());
    let trained = model.layout.trained_by(policy.tap());
    let settings = UpdateSettings {
        policy,
        beside: None,
        trained: &trained,
        temperature: 1.0,
        loss: &loss,
        max_new_tokens: args.new,
        micro_batch_tokens: args.micro_batch_tokens,
        keep: Keep::for_backward(args.recompute),
    };
    let device = device.offloading(args.offload);
    let (mut ws, mut optimizer) = (Workspace::new(&model), Optimizer::new_on(&device, &model.layout));
    let mut grads = B::Array::default();
    let (mut seconds, mut rollouts, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    let times = args.steps.max(1);
    for time in 0..times {
        let (whole, rollout) = timed(&device, || {
            // Sampling and updates take turns with the memory, as in training.
            device.release(&mut grads);
            ws.release(&device);
            let (took, completions) = timed(&device, || generate(&model, &mut ws, &engine, &requests, &mut |_| ()))?;
            let groups = groups(&requests, completions, args.unshared)?;
            ws.release(&device);
            device.resize(&mut grads, model.layout.trainable().len(), Kind::F32);
            let (model, ws, before) = (&mut model, &mut ws, Before::default());
            let all = 0..groups.len();
            update(model, ws, &mut optimizer, &groups, all, &settings, before, &config, 1e-6, &mut grads)?;
            Ok(took)
        })?;
        seconds.push(whole);
        rollouts.push(rollout);
        updates.push(whole - rollout);
        warmed(&device, time, times);
    }
    let step = warm_median(&mut seconds);
    let tokens = args.prompts * args.group * args.new;
    let line = json!({
        "seconds": step, "rollout_seconds": warm_median(&mut rollouts), "update_seconds": warm_median(&mut updates),
        "tokens_per_step": tokens, "tokens_per_second": tokens as f64 / step,
    });
    print(line, &device);
    Ok(())
}

/// Responses with their advantages; `unshared`: each with a prompt of its own.
fn groups(requests: &[Request], completions: Vec<Vec<Completion>>, unshared: bool) -> Result<Vec<ResponseGroup>> {
    let mut groups = Vec::with_capacity(requests.len());
    for (request, completions) in requests.iter().zip(completions) {
        // A dense reward that every model meets somewhere: the share of even token ids.
        let even = |ids: &[u32]| ids.iter().filter(|id| *id % 2 == 0).count() as f64 / ids.len().max(1) as f64;
        let rewards: Vec<f64> = completions.iter().map(|c| even(&c.ids)).collect();
        let lengths: Vec<usize> = completions.iter().map(|c| c.ids.len()).collect();
        let of_group = advantages(Advantage::Grpo, &[Group { rewards: &rewards, lengths: &lengths }], 1.0)?;
        let responses = completions.into_iter().zip(of_group.responses()).map(|(c, advantages)| Response {
            advantages: advantages.to_vec(),
            rollout_log_probs: c.log_probs,
            ids: c.ids,
            masked: false,
        });
        let group = |responses| ResponseGroup { prompt: request.prompt.clone(), responses };
        match unshared {
            true => groups.extend(responses.map(|r| group(vec![r]))),
            false => groups.push(group(responses.collect())),
        }
    }
    Ok(groups)
}

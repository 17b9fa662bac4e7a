//! `bupo bench`: the heavy parts by themselves, timed; one line of JSON each, for scripts that compare.

#[cfg(feature = "cuda")]
mod cuda;

use super::adapter::asked;
use super::open_model;
use crate::cli::{BenchCommand, BenchOpenArgs, BenchRolloutArgs, BenchStepArgs, BenchUpdateArgs, LoraArgs};
use crate::compute::cpu::Cpu;
use crate::compute::cpu::gemm::{Write, linear};
use crate::model::{Compute, Keep, Model, Workspace, weights};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::rl::adamw::Optimizer;
use crate::rl::advantage::{Advantage, Group, advantages};
use crate::rl::batch::{Response, ResponseGroup};
use crate::rl::update::{Before, LogProbs, Scored, UpdateSettings, mini_batch_gradient, score_groups, update};
use crate::rl::{LossConfig, OptimizerConfig};
use crate::rollout::engine::{Engine, Request, generate};
use crate::rollout::sampler::Sampling;
use crate::run::manifest::peak_memory_mib;
use crate::run::reading::{files_of, forget, read_through};
use crate::tasks::seed::derive_seed;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;
use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Update(args) => bench_update(args),
        BenchCommand::Rollout(args) => bench_rollout(args),
        BenchCommand::Machine => bench_machine(),
        BenchCommand::Step(args) => bench_step(args),
        BenchCommand::Open(args) => bench_open(args),
    }
}

/// A batch as right-padded rows; entry t belongs to token t.
#[derive(Deserialize)]
struct Batch {
    input_ids: Vec<Vec<u32>>,
    response_mask: Vec<Vec<f32>>,
    advantages: Vec<Vec<f32>>,
    old_log_probs: Option<Vec<Vec<f32>>>,
}

fn bench_update(args: &BenchUpdateArgs) -> Result<()> {
    let what = || format!("{} is no batch that can be read", args.batch.display());
    let bytes = crate::run::atomic::read(&args.batch)?;
    let batch: Batch = serde_json::from_slice(&bytes).with_context(what)?;
    let mut model = open_with_adapter(&args.model, args.numbers.compute, &args.adapter)?;
    let policy = policy(args.layer, &model)?;
    let (groups, given) = groups(&batch, &model).with_context(what)?;
    let loss = LossConfig { aggregation: args.aggregation, ..LossConfig::default() };
    let trained = model.layout.trained_by(policy.tap());
    let settings = UpdateSettings {
        policy,
        beside: None,
        trained: &trained,
        temperature: 1.0,
        loss: &loss,
        max_new_tokens: 1,
        micro_batch_tokens: args.micro_batch_tokens,
        keep: if args.recompute { Keep::LayerInputs } else { Keep::Activations },
    };
    let mut ws = Workspace::new(&model);
    let all = 0..groups.len();
    let old = match given {
        Some(old) => old,
        None => {
            let mut old = Scored::of(&groups);
            score_groups(&model, &mut ws, &groups, all.clone(), &settings, &mut old);
            old.log_probs
        }
    };
    let mut grads = vec![0f32; model.layout.trainable().len()];
    let before = Before { old: Some(&old), ..Before::default() };
    if let Some(path) = &args.grads {
        mini_batch_gradient(&model, &mut ws, &groups, all.clone(), &settings, before, &mut grads)?;
        weights::save_tensors(path, &model.layout, &grads)?;
    }
    let config = OptimizerConfig::default();
    let mut optimizer = Optimizer::new(&model.layout);
    let (mut seconds, mut losses, mut norms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.repeat.max(1) * args.steps.max(1) {
        let start = Instant::now();
        let (gradient, outcome) = update(
            &mut model,
            &mut ws,
            &mut optimizer,
            &groups,
            all.clone(),
            &settings,
            before,
            &config,
            args.lr,
            &mut grads,
        )?;
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(gradient.loss);
        norms.push(outcome.grad_norm);
    }
    let tokens: usize = batch.input_ids.iter().map(Vec::len).sum();
    let gflop = update_gflop(&model, policy, &groups);
    let median = median(&mut seconds);
    let line = json!({
        "losses": losses, "grad_norms": norms, "seconds": median, "tokens_per_second": tokens as f64 / median,
        "gflops": gflop / median, "peak_rss_mib": peak_memory_mib(),
    });
    println!("{line}");
    Ok(())
}

/// A model, with a fresh adapter if one is asked for.
fn open_with_adapter(dir: &Path, compute: Compute, adapter: &LoraArgs) -> Result<Model> {
    let mut model = open_model(dir)?.on(Cpu { compute: compute.here() });
    if let Some(config) = asked(adapter) {
        model.add_adapter(&config, &dir.to_string_lossy(), 1).context("--lora")?;
    }
    Ok(model)
}

/// Rows as groups of one response each, and their old log-probs if the batch gives them.
fn groups(batch: &Batch, model: &Model) -> Result<(Vec<ResponseGroup>, Option<LogProbs>)> {
    let n = batch.input_ids.len();
    ensure!(n > 0, "input_ids is empty: expected at least one sequence");
    ensure!(batch.response_mask.len() == n && batch.advantages.len() == n, "expected {n} rows in every field");
    let mut groups = Vec::with_capacity(n);
    let mut old = batch.old_log_probs.as_ref().map(|_| Vec::with_capacity(n));
    for (i, ids) in batch.input_ids.iter().enumerate() {
        let (mask, advantages) = (&batch.response_mask[i], &batch.advantages[i]);
        ensure!(mask.len() == ids.len() && advantages.len() == ids.len(), "row {}: fields of different lengths", i + 1);
        let start = mask.iter().position(|m| *m > 0.0).unwrap_or(0);
        let end = mask.iter().rposition(|m| *m > 0.0).map_or(0, |e| e + 1);
        ensure!(start > 0 && start < end, "row {}: expected a prompt and then a response in response_mask", i + 1);
        ensure!(mask[start..end].iter().all(|m| *m > 0.0), "row {}: the response has holes", i + 1);
        model.check_tokens(&ids[..end]).with_context(|| format!("row {}", i + 1))?;
        let response = Response {
            ids: ids[start..end].to_vec(),
            rollout_log_probs: Vec::new(),
            advantages: advantages[start..end].to_vec(),
        };
        groups.push(ResponseGroup { prompt: ids[..start].to_vec(), responses: vec![response] });
        if let (Some(old), Some(rows)) = (&mut old, &batch.old_log_probs) {
            let row = rows.get(i).filter(|r| r.len() == ids.len()).context("old_log_probs do not match input_ids")?;
            old.push(vec![row[start..end].to_vec()]);
        }
    }
    Ok((groups, old))
}

fn bench_rollout(args: &BenchRolloutArgs) -> Result<()> {
    let model = open_model(&args.model)?.on(Cpu { compute: args.numbers.compute.here() });
    let requests = random_requests(&model, args.batch, args.prompt, 1);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: args.new };
    // No token ends a response: every sequence gets its full length.
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots: args.batch };
    let mut ws = Workspace::new(&model);
    let mut seconds = Vec::new();
    for _ in 0..=args.repeat {
        let start = Instant::now();
        generate(&model, &mut ws, &engine, &requests, &mut |_| ())?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    // The first one warms up.
    let median = median(&mut seconds[1..]);
    let tokens = args.batch * args.new;
    let line = json!({
        "new_tokens": tokens, "seconds": median, "tokens_per_second": tokens as f64 / median,
        "peak_rss_mib": peak_memory_mib(),
    });
    println!("{line}");
    Ok(())
}

/// Random prompts, and seeds for `samples` responses to each.
fn random_requests(model: &Model, prompts: usize, tokens: usize, samples: usize) -> Vec<Request> {
    let vocab = model.config.vocab_size as u64;
    let token = |i: usize, j: usize| (derive_seed(1, i as u64, j as u64, 0) % vocab) as u32;
    let request = |i: usize| Request {
        prompt: (0..tokens).map(|j| token(i, j)).collect(),
        seeds: (0..samples).map(|j| (i * samples + j) as u64).collect(),
    };
    (0..prompts).map(request).collect()
}

fn bench_step(args: &BenchStepArgs) -> Result<()> {
    let mut model = open_with_adapter(&args.model, args.numbers.compute, &args.adapter)?;
    let policy = policy(args.layer, &model)?;
    let requests = random_requests(&model, args.prompts, args.prompt, args.group);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: args.new };
    let slots = (args.prompts * args.group).max(1);
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots };
    let loss = LossConfig::default();
    let trained = model.layout.trained_by(policy.tap());
    let settings = UpdateSettings {
        policy,
        beside: None,
        trained: &trained,
        temperature: 1.0,
        loss: &loss,
        max_new_tokens: args.new,
        micro_batch_tokens: args.micro_batch_tokens,
        keep: Keep::Activations,
    };
    let (mut ws, mut optimizer) = (Workspace::new(&model), Optimizer::new(&model.layout));
    let mut grads = vec![0f32; model.layout.trainable().len()];
    let (mut seconds, mut rollouts, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.steps.max(1) {
        let start = Instant::now();
        let completions = generate(&model, &mut ws, &engine, &requests, &mut |_| ())?;
        rollouts.push(start.elapsed().as_secs_f64());
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
            });
            let group = |responses| ResponseGroup { prompt: request.prompt.clone(), responses };
            match args.unshared {
                true => groups.extend(responses.map(|r| group(vec![r]))),
                false => groups.push(group(responses.collect())),
            }
        }
        let (config, all) = (OptimizerConfig::default(), 0..groups.len());
        let (model, ws) = (&mut model, &mut ws);
        update(model, ws, &mut optimizer, &groups, all, &settings, Before::default(), &config, 1e-6, &mut grads)?;
        seconds.push(start.elapsed().as_secs_f64());
        updates.push(seconds[seconds.len() - 1] - rollouts[rollouts.len() - 1]);
    }
    // The first step meets cold buffers.
    let warm = |seconds: &mut Vec<f64>| {
        let from = usize::from(seconds.len() > 1);
        median(&mut seconds[from..])
    };
    let step = warm(&mut seconds);
    let tokens = args.prompts * args.group * args.new;
    let line = json!({
        "seconds": step, "rollout_seconds": warm(&mut rollouts), "update_seconds": warm(&mut updates),
        "tokens_per_step": tokens, "tokens_per_second": tokens as f64 / step, "peak_rss_mib": peak_memory_mib(),
    });
    println!("{line}");
    Ok(())
}

/// Seconds to open a checkpoint, and to read its files' bytes and do nothing with them: the disk's part of it, or the
/// page cache's.
fn bench_open(args: &BenchOpenArgs) -> Result<()> {
    const AT_ONCE: usize = 4 << 20;
    let files = files_of(&args.model, "safetensors")?;
    let forget_all = || files.iter().filter(|_| args.cold).try_for_each(|path| forget(path));
    let (mut opens, mut reads, mut bytes, mut buffer) = (Vec::new(), Vec::new(), 0, vec![0u8; AT_ONCE]);
    for _ in 0..args.repeat.max(1) {
        forget_all()?;
        let start = Instant::now();
        let model = Model::open(&args.model)?;
        opens.push(start.elapsed().as_secs_f64());
        drop(model);
        forget_all()?;
        let start = Instant::now();
        bytes = 0;
        for path in &files {
            bytes += read_through(path, &mut buffer)?;
        }
        reads.push(start.elapsed().as_secs_f64());
    }
    let line = json!({
        "bytes": bytes, "seconds": median(&mut opens), "read_seconds": median(&mut reads), "cold": args.cold,
        "peak_rss_mib": peak_memory_mib(),
    });
    println!("{line}");
    Ok(())
}

/// The most that the product does, over sizes that a decoder has, and the rate at which all threads together read memory; with the
/// feature `cuda` also what CUDA offers, of which nothing is timed.
fn bench_machine() -> Result<()> {
    let best = |seconds: &dyn Fn() -> f64| (0..7).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    let gflops = |compute: Compute| {
        let sizes = [(2048, 2048, 1024), (2048, 3072, 512), (4096, 1024, 1024)];
        let rate = |(m, n, k): (usize, usize, usize)| {
            let fill = |len: usize| (0..len).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<_>>();
            let (x, w, y) = (fill(m * k), fill(n * k), RefCell::new(vec![0f32; m * n]));
            let seconds = best(&|| {
                let start = Instant::now();
                linear(compute, &x, &w, &mut y.borrow_mut(), m, k, n, Write::Replace);
                start.elapsed().as_secs_f64()
            });
            2e-9 * (m * n * k) as f64 / seconds
        };
        sizes.into_iter().map(rate).fold(0.0, f64::max)
    };
    // Far more than any cache holds.
    let memory = vec![1u64; 1 << 26];
    let read = best(&|| {
        let start = Instant::now();
        let sum: u64 = memory.par_chunks(1 << 20).map(|part| part.iter().fold(0, |sum, x| sum ^ x)).sum();
        std::hint::black_box(sum);
        start.elapsed().as_secs_f64()
    });
    let line = json!({
        "threads": rayon::current_num_threads(),
        "f32_gflops": gflops(Compute::F32),
        "bf16_gflops": gflops(Compute::Bf16),
        "bf16_is": if Compute::Bf16.here() == Compute::Bf16 { "AVX512-BF16" } else { "f32: this machine has no AVX512-BF16" },
        "memory_read_gb_per_second": memory.len() as f64 * 8e-9 / read,
    });
    #[cfg(feature = "cuda")]
    let line = {
        let mut line = line;
        line["cuda"] = cuda::offers(&crate::compute::cuda::libraries::Search::from_env());
        line
    };
    println!("{line}");
    Ok(())
}

/// Floating-point operations that an update needs: products of the linear layers below the policy and of the head, once
/// forward and twice backward (once where the weights are frozen, beside an adapter), and attention's two forward and four backward.
fn update_gflop(model: &Model, policy: InternalPolicy, groups: &[ResponseGroup]) -> f64 {
    let (c, depth) = (&model.config, policy.tap().layer().map_or(model.config.layers, LayerIndex::one_based));
    let weights = c.hidden_size * (c.qkv_dim() + c.q_dim() + 3 * c.intermediate_size);
    let (mut tokens, mut targets, mut pairs) = (0, 0, 0);
    for group in groups {
        let prompt = group.prompt.len();
        tokens += prompt;
        pairs += prompt * (prompt + 1) / 2;
        for n in group.responses.iter().map(|r| r.ids.len()) {
            let rows = n.saturating_sub(1);
            tokens += rows;
            targets += n;
            pairs += rows * prompt + rows * (rows + 1) / 2;
        }
    }
    let adapter = model.layout.adapter.as_ref();
    let per_weight = if adapter.is_some() { 4 } else { 6 };
    let beside = adapter.map_or(0, |a| a.layers[..depth].iter().map(|layer| layer.range().len()).sum());
    let linear = per_weight * (depth * weights * tokens + c.vocab_size * c.hidden_size * targets) + 6 * beside * tokens;
    1e-9 * (linear + 12 * depth * c.q_dim() * pairs) as f64
}

fn policy(layer: Option<usize>, model: &Model) -> Result<InternalPolicy> {
    match layer {
        None => Ok(InternalPolicy::Final),
        Some(layer) => Ok(InternalPolicy::Layer(LayerIndex::from_one_based(layer, model.config.layers)?)),
    }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

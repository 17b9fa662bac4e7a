//! One update on a batch from a file.

use super::{layer_weights, open_device, policy, print, timed, warm_median, warmed, with_adapter};
use crate::cli::BenchUpdateArgs;
use crate::commands::device::{Device, on_device};
use crate::compute::Backend;
use crate::compute::backend::Kind;
use crate::model::{Keep, Model, Workspace, weights};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::rl::adamw::Optimizer;
use crate::rl::batch::{Response, ResponseGroup};
use crate::rl::update::{Before, LogProbs, Scored, UpdateSettings, mini_batch_gradient, score_groups, update};
use crate::rl::{LossConfig, OptimizerConfig};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

/// A batch as right-padded rows; entry t belongs to token t.
#[derive(Deserialize)]
struct Batch {
    input_ids: Vec<Vec<u32>>,
    response_mask: Vec<Vec<f32>>,
    advantages: Vec<Vec<f32>>,
    old_log_probs: Option<Vec<Vec<f32>>>,
}

pub fn run(args: &BenchUpdateArgs) -> Result<()> {
    on_device!(open_device(args.numbers)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &BenchUpdateArgs, backend: B) -> Result<()> {
    let what = || format!("{} is no batch that can be read", args.batch.display());
    let bytes = crate::run::atomic::read(&args.batch)?;
    let batch: Batch = serde_json::from_slice(&bytes).with_context(what)?;
    let mut model = with_adapter(&args.model, &args.adapter)?.on(backend);
    let device = model.backend.clone();
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
        keep: Keep::for_backward(args.recompute),
    };
    let mut ws = Workspace::new(&model);
    let all = 0..groups.len();
    let old = match given {
        Some(old) => old,
        None => {
            let mut old = Scored::of(&groups);
            score_groups(&model, &mut ws, &groups, all.clone(), &settings, &mut old);
            device.status()?;
            old.log_probs
        }
    };
    let mut grads = B::Array::default();
    device.resize(&mut grads, model.layout.trainable().len(), Kind::F32);
    let before = Before { old: Some(&old), ..Before::default() };
    if let Some(path) = &args.grads {
        device.zero(&mut grads);
        mini_batch_gradient(&model, &mut ws, &groups, all.clone(), &settings, before, &mut grads)?;
        let values = device.host(&grads);
        device.status()?;
        weights::save_tensors(path, &model.layout, &values)?;
    }
    let (config, device) = (OptimizerConfig::default(), device.offloading(args.offload));
    let mut optimizer = Optimizer::new_on(&device, &model.layout);
    let (mut seconds, mut losses, mut norms) = (Vec::new(), Vec::new(), Vec::new());
    let times = args.repeat.max(1) * args.steps.max(1);
    for time in 0..times {
        let (model, ws, optimizer, grads) = (&mut model, &mut ws, &mut optimizer, &mut grads);
        let all = all.clone();
        let (took, (gradient, outcome)) =
            timed(&device, || update(model, ws, optimizer, &groups, all, &settings, before, &config, args.lr, grads))?;
        seconds.push(took);
        losses.push(gradient.loss);
        norms.push(outcome.grad_norm);
        warmed(&device, time, times);
    }
    let tokens: usize = batch.input_ids.iter().map(Vec::len).sum();
    let gflop = update_gflop(&model, policy, &groups);
    let median = warm_median(&mut seconds);
    let line = json!({
        "losses": losses, "grad_norms": norms, "seconds": median, "tokens_per_second": tokens as f64 / median,
        "gflops": gflop / median,
    });
    print(line, &device);
    Ok(())
}

/// Rows as groups of one response each, and their old log-probs if the batch gives them.
fn groups<B: Backend>(batch: &Batch, model: &Model<B>) -> Result<(Vec<ResponseGroup>, Option<LogProbs>)> {
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
            masked: false,
        };
        groups.push(ResponseGroup { prompt: ids[..start].to_vec(), responses: vec![response] });
        if let (Some(old), Some(rows)) = (&mut old, &batch.old_log_probs) {
            let row = rows.get(i).filter(|r| r.len() == ids.len()).context("old_log_probs do not match input_ids")?;
            old.push(vec![row[start..end].to_vec()]);
        }
    }
    Ok((groups, old))
}

/// Floating-point operations that an update needs: products of the linear layers below the policy and of the head, once
/// forward and twice backward (once where the weights are frozen, beside an adapter), and attention's two forward and four backward.
fn update_gflop<B: Backend>(model: &Model<B>, policy: InternalPolicy, groups: &[ResponseGroup]) -> f64 {
    let (c, depth) = (&model.config, policy.tap().layer().map_or(model.config.layers, LayerIndex::one_based));
    let weights = layer_weights(c);
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

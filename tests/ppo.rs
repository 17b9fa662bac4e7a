//! PPO's critic: against PyTorch (fixture: tools/golden/make_critic.py), against finite differences, cut into micro-batches in
//! any way, and through the binary, stopped and resumed in the middle of its warm-up.

#[macro_use]
mod common;

use bupo::compute::Backend;
use bupo::compute::cpu::Array;
use bupo::model::init::{InitConfig, random_params};
use bupo::model::{Keep, Model, ParamLayout, Workspace};
use bupo::rl::batch::{Response, ResponseGroup};
use bupo::rl::critic::{Critic, CriticConfig, Expected, ValueLoss, ValueSettings};
use bupo::rl::gae::estimate;
use bupo::rl::{Aggregation, GroupConfig, OptimizerConfig};
use common::golden::{Tensors, by_group, folder};
use common::places::{InBf16, Place};
use common::{binary, copy, json, metrics, on_device};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn settings(micro_batch_tokens: usize, aggregation: Aggregation, value_clip: f64, keep: Keep) -> ValueSettings {
    ValueSettings { value_clip, aggregation, max_new_tokens: 16, micro_batch_tokens, keep }
}

/// The loss and its gradient, on the host.
fn gradient<B: Backend>(
    critic: &Critic<B>,
    groups: &[ResponseGroup],
    s: &ValueSettings,
    before: &Expected,
) -> (ValueLoss, Vec<f32>) {
    let (mut ws, mut grads, backend) = (Workspace::new(&critic.model), B::Array::default(), &critic.model.backend);
    backend.upload(&vec![0.0; critic.model.layout.len()], &mut grads);
    let loss = critic.mini_batch_gradient(&mut ws, groups, 0..groups.len(), s, before, &mut grads).unwrap();
    (loss, backend.host(&grads).into_owned())
}

everywhere!(values_advantages_and_gradients_are_pytorchs);

// bf16, about twice what was measured (a run says it, with --nocapture), for the reasons of tests/golden.rs.
const VALUES: InBf16 = InBf16 { kind: "values", worst: 4e-2, distance: 4e-2 };
const GRADIENTS: InBf16 = InBf16 { kind: "gradients of a critic", worst: 1.1e-1, distance: 6e-2 };
/// What no device computes.
const RETURNS: InBf16 = InBf16 { kind: "advantages and returns", worst: 1e-6, distance: 1e-6 };

fn values_advantages_and_gradients_are_pytorchs<B: Backend>(place: &Place<B>) {
    let dir = folder("critic");
    let (meta, tensors) = (json(&dir.join("meta.json")), Tensors::open(&dir.join("golden.safetensors")));
    let numbers =
        |key: &str| -> Vec<f64> { meta[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let number = |key: &str| meta[key].as_f64().unwrap();
    let groups = tensors.groups(&numbers("prompts").iter().map(|n| *n as usize).collect::<Vec<_>>());

    let critic = Critic::new(Model::open_value_model(&dir).unwrap(), &CriticConfig::default()).unwrap();
    let critic = critic.on(&place.backend);
    let values = critic.values(&mut Workspace::new(&critic.model), &groups, 24).unwrap();
    place.agree(&VALUES, "values", &values.concat().concat(), &tensors.values("values"));

    let old = by_group(&groups, tensors.values("old_values"));
    let rewards: Vec<Option<f64>> = numbers("rewards").into_iter().map(Some).collect();
    let flat: Vec<&[f32]> = old.iter().flatten().map(Vec::as_slice).collect();
    let estimated = estimate(&flat, &rewards, number("gamma"), number("lambda")).unwrap();
    place.agree(&RETURNS, "advantages", &estimated.advantages.concat(), &tensors.values("advantages"));
    let returns: Vec<Vec<Option<Vec<f32>>>> = estimated.returns.into_iter().map(|r| vec![r]).collect();
    let all: Vec<f32> = returns.iter().flatten().flatten().flatten().copied().collect();
    place.agree(&RETURNS, "returns", &all, &tensors.values("returns"));

    let before = Expected { values: old, returns };
    for (tokens, keep) in [(1000, Keep::Activations), (1, Keep::Activations), (20, Keep::LayerInputs)] {
        let s = settings(tokens, Aggregation::TokenMean, number("value_clip"), keep);
        let (loss, grads) = gradient(&critic, &groups, &s, &before);
        assert!((loss.loss - number("loss")).abs() < place.pick(1e-5, 1e-3), "{} {}", loss.loss, number("loss"));
        let clipped = loss.stats.clipped as f64 / loss.stats.tokens as f64;
        assert!((clipped - number("clip_fraction")).abs() < place.pick(1e-12, 0.1) && clipped > 0.0, "{clipped}");
        for tensor in &critic.model.layout.tensors {
            let theirs = tensors.values(&format!("grad.{}", tensor.name));
            place.agree(&GRADIENTS, &tensor.name, &grads[tensor.range()], &theirs);
        }
    }
}

/// Pseudo-random numbers in 0..1.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    }
}

fn policy(tied: bool) -> Model {
    let init = InitConfig {
        hidden_size: 16,
        layers: 3,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        intermediate_size: 24,
        max_position_embeddings: 64,
        tie_word_embeddings: tied,
        ..InitConfig::default()
    };
    let config = init.model_config(40).unwrap();
    let params = random_params(&config, &ParamLayout::new(&config), 0.3, 7);
    Model::new(config, params)
}

/// A critic whose head is no longer zero, groups of responses that share prompts, and what it expected before.
fn case() -> (Critic, Vec<ResponseGroup>, Expected) {
    let mut critic = Critic::beside(&policy(false), &CriticConfig::default()).unwrap();
    let (mut next, head) = (noise(5), critic.model.layout.value_head.clone().unwrap());
    critic.model.params[head.weight.start..head.bias.end].iter_mut().for_each(|w| *w = next() - 0.5);
    let mut groups = Vec::new();
    for prompt in [4, 2, 5] {
        let response = |n: usize, next: &mut dyn FnMut() -> f32| Response {
            ids: (0..n).map(|_| (next() * 40.0) as u32).collect(),
            ..Response::default()
        };
        let responses = [3, 7, 1, 5].map(|n| response(n, &mut next)).into();
        groups.push(ResponseGroup { prompt: (0..prompt).map(|i| i * 7 % 40).collect(), responses });
    }
    let mut values = critic.values(&mut Workspace::new(&critic.model), &groups, 100).unwrap();
    // Away from where the critic stands, by less and by more than the clip.
    values.iter_mut().flatten().flatten().for_each(|v| *v += 0.8 * (next() - 0.5));
    let mut returns: Vec<Vec<Option<Vec<f32>>>> = values
        .iter()
        .map(|g| g.iter().map(|r| Some(r.iter().map(|_| 2.0 * next() - 1.0).collect())).collect())
        .collect();
    // A response whose reward is not known.
    returns[1][2] = None;
    (critic, groups, Expected { values, returns })
}

#[test]
fn a_critic_begins_as_the_policys_decoder_without_an_unembedding_and_expects_nothing() {
    for tied in [true, false] {
        let policy = policy(tied);
        let critic = Critic::beside(&policy, &CriticConfig::default()).unwrap();
        let (_, groups, _) = case();
        let values = critic.values(&mut Workspace::new(&critic.model), &groups, 100).unwrap();
        assert!(values.iter().flatten().flatten().all(|v| *v == 0.0));
        let names: Vec<&str> = critic.model.layout.tensors.iter().map(|t| t.name.as_str()).collect();
        assert!(
            !names.contains(&"lm_head.weight") && names.ends_with(&["model.norm.weight", "score.weight", "score.bias"])
        );
        for tensor in policy.layout.tensors.iter().filter(|t| t.name != "lm_head.weight") {
            let own = critic.model.layout.tensors.iter().find(|own| own.name == tensor.name).unwrap();
            assert_eq!(critic.model.params[own.range()], policy.params[tensor.range()], "{}", tensor.name);
        }
    }
}

#[test]
fn the_value_losss_gradient_is_its_slope_through_head_and_decoder() {
    let (critic, groups, before) = case();
    let s = settings(100, Aggregation::TokenMean, 0.2, Keep::Activations);
    let (loss, grads) = gradient(&critic, &groups, &s, &before);
    assert!(loss.stats.clipped > 0 && loss.stats.clipped < loss.stats.tokens, "{:?}", loss.stats);
    for tensor in &critic.model.layout.tensors {
        let range = tensor.range();
        let norm = grads[range.clone()].iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{}: no gradient, so the check could not fail", tensor.name);
        let mut next = noise(range.start as u64 + 1);
        let u: Vec<f32> = range.clone().map(|_| 2.0 * next() - 1.0).collect();
        let at = |eps: f32| {
            let mut moved = Critic { model: critic.model.clone(), optimizer: critic.optimizer.clone() };
            moved.model.params[range.clone()].iter_mut().zip(&u).for_each(|(p, u)| *p += eps * u);
            gradient(&moved, &groups, &s, &before).0.loss
        };
        let scale = norm * (u.iter().map(|u| (*u as f64).powi(2)).sum::<f64>() / u.len() as f64).sqrt();
        let eps = (2e-4 / scale).clamp(1e-4, 1e-2) as f32;
        // Richardson, as in tests/gradients.rs.
        let difference = |eps: f32| (at(eps) - at(-eps)) / (2.0 * eps as f64);
        let slope = (4.0 * difference(eps) - difference(2.0 * eps)) / 3.0;
        let exact: f64 = grads[range].iter().zip(&u).map(|(g, u)| *g as f64 * *u as f64).sum();
        assert!(
            (slope - exact).abs() < 1e-2 * scale,
            "{}: slope {slope}, gradient {exact}, scale {scale}",
            tensor.name
        );
    }
}

#[test]
fn the_gradient_does_not_depend_on_micro_batches_nor_on_a_response_without_a_reward() {
    let (critic, groups, before) = case();
    for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean, Aggregation::SeqMeanTokenSumNorm] {
        let of = |tokens, groups: &[ResponseGroup], before: &Expected| {
            gradient(&critic, groups, &settings(tokens, aggregation, 0.2, Keep::Activations), before)
        };
        let (loss, whole) = of(1000, &groups, &before);
        let size = whole.iter().fold(0f32, |m, g| m.max(g.abs()));
        let (mut without, mut known) = (groups.clone(), before.clone());
        without[1].responses.remove(2);
        known.values[1].remove(2);
        known.returns[1].remove(2);
        let others = [of(20, &groups, &before), of(1, &groups, &before), of(1000, &without, &known)];
        for (other_loss, other) in &others {
            assert_eq!(other_loss.stats, loss.stats);
            assert!((other_loss.loss - loss.loss).abs() < 1e-6, "{aggregation:?}");
            let worst = whole.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5 * size.max(1.0), "{aggregation:?}: {worst} of {size}");
        }
    }
}

#[test]
fn updates_fit_the_returns_and_groups_of_its_own_optimizer_hold() {
    let (_, groups, before) = case();
    let group = GroupConfig { layers: "1-2".into(), lr_scale: 0.0 };
    let optimizer = OptimizerConfig { group: vec![group], ..OptimizerConfig::default() };
    let config = CriticConfig { optimizer, ..CriticConfig::default() };
    let mut critic = Critic::beside(&policy(true), &config).unwrap();
    let start = critic.model.params.clone();
    let s = settings(30, Aggregation::TokenMean, 1e30, Keep::Activations);
    let (mut ws, mut grads) = (Workspace::new(&critic.model), Array::from(vec![0f32; critic.model.layout.len()]));
    let mut losses = Vec::new();
    for _ in 0..60 {
        let updated = critic.update(&mut ws, &groups, 0..3, &s, &before, &config, 1e-2, &mut grads).unwrap();
        losses.push(updated.0.loss);
    }
    assert!(losses[59] < 0.3 * losses[0], "{} {}", losses[0], losses[59]);
    let layers = &critic.model.layout.layers;
    let frozen = layers[0].attn_norm.start..layers[1].down.end;
    assert_eq!(critic.model.params[frozen.clone()], start[frozen.clone()]);
    assert_ne!(critic.model.params[layers[2].qkv.clone()], start[layers[2].qkv.clone()]);
    assert_eq!(critic.optimizer.m.len(), start.len() - frozen.len());
}

/// A run of seconds: three steps of the critic alone, two of BuPO on the first layer, one of the final policy.
const RECIPE: &str = r#"
name = "tiny-ppo"
seed = 5
threads = 2
[run]
checkpoint_every = 1
keep_checkpoints = 9
[model.init]
hidden_size = 24
layers = 3
heads = 2
kv_heads = 1
head_dim = 16
intermediate_size = 48
max_position_embeddings = 96
tie_word_embeddings = false
[data.arithmetic]
operations = [1, 1]
max_operand = 4
operators = "+"
[prompt]
template = "plain"
text = "{problem}"
[warmup]
max_steps = 120
batch = 32
lr = 5e-3
check_every = 120
probe_problems = 8
[rollout]
prompts_per_step = 6
group_size = 4
max_prompt_tokens = 16
max_new_tokens = 24
slots = 16
[reward]
rule = "exact"
[rl]
advantage = "gae"
steps = 6
lr = 1e-3
epochs = 2
mini_batch_prompts = 3
micro_batch_tokens = 64
[critic]
lr = 1e-3
warmup_steps = 3
lambda = 0.95
value_clip = 0.01
optimizer = { beta2 = 0.98, warmup_steps = 2 }
[bupo]
layer = 1
steps = 2
[analysis]
responses = 3
"#;

fn train(recipe: &Path, dir: &Path, more: &[&str]) {
    let mut command = binary();
    command.args(["train".as_ref(), recipe.as_os_str(), "--dir".as_ref(), dir.as_os_str()]).args(on_device("train"));
    let output = command.args(more).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_run_warms_its_critic_up_then_trains_and_resumes_from_anywhere() {
    let root = tempfile::tempdir().unwrap();
    let (recipe, whole) = (root.path().join("r.toml"), root.path().join("whole"));
    fs::write(&recipe, RECIPE).unwrap();
    train(&recipe, &whole, &[]);
    let step = |dir: &Path, n: usize| dir.join(format!("checkpoints/step-{n:06}"));
    let read = |n: usize, file: &str| fs::read(step(&whole, n).join(file)).unwrap();

    // The policy stands still while the critic warms up, and both move afterwards.
    for n in 1..=3 {
        assert!(read(n, "model.safetensors") == read(0, "model.safetensors"), "the policy moved in step {n}");
        assert!(read(n, "critic/model.safetensors") != read(n - 1, "critic/model.safetensors"), "step {n}");
    }
    assert!(read(4, "model.safetensors") != read(3, "model.safetensors"));
    let rows = metrics(&whole);
    for (i, row) in rows.iter().enumerate() {
        let (critic, warming) = (&row["critic"], i < 3);
        assert_eq!(critic["warming_up"], warming);
        assert_eq!(row["policy"], if i < 5 { "layer:1" } else { "final" });
        assert_eq!(row["optimizer_steps"].as_u64().unwrap(), 4 * (i as u64 + 1).saturating_sub(3));
        assert_eq!(critic["optimizer_steps"].as_u64().unwrap(), 4 * (i as u64 + 1));
        for key in ["value_loss", "value_clip_fraction", "value_mean", "return_mean", "grad_norm", "lr"] {
            assert!(critic[key].is_number(), "{key} in {critic}");
        }
        for key in ["loss", "entropy_policy", "ratio_mean"] {
            assert!(row[key].is_number(), "{key} in {row}");
        }
        assert!(row["rollout_log_prob_difference"]["max"].as_f64().unwrap() < 1e-4);
    }
    // A head of zeros expects nothing, and explains nothing.
    let first = &rows[0]["critic"];
    assert_eq!((first["value_mean"].as_f64(), first["explained_variance"].as_f64()), (Some(0.0), Some(0.0)));
    assert!(rows.iter().any(|r| r["critic"]["value_clip_fraction"].as_f64().unwrap() > 0.0));

    // In the middle of the warm-up, at its end, and in the internal phase.
    for from in [2, 3, 4] {
        let resumed = root.path().join(format!("from-{from}"));
        fs::create_dir_all(&resumed).unwrap();
        for file in ["recipe.toml", "metrics.jsonl", "completions.jsonl", "analysis-before"] {
            copy(&whole.join(file), &resumed.join(file));
        }
        (0..=from).for_each(|n| copy(&step(&whole, n), &step(&resumed, n)));
        train(&recipe, &resumed, &["--resume"]);
        for file in ["model", "trainer_state", "critic/model", "critic/trainer_state"] {
            let file = format!("{file}.safetensors");
            let theirs = fs::read(step(&resumed, 6).join(&file)).unwrap();
            assert!(read(6, &file) == theirs, "{file} differs after resuming from step {from}");
        }
        assert_eq!(metrics(&resumed), rows);
    }

    // A critic is a checkpoint that opens by itself, and is no policy.
    let config: Value = serde_json::from_slice(&read(6, "critic/config.json")).unwrap();
    assert_eq!(config["architectures"][0], "Qwen3ForTokenClassification");
    Model::open_value_model(&step(&whole, 6).join("critic")).unwrap();
    let error = Model::open(&step(&whole, 6).join("critic")).unwrap_err();
    assert!(format!("{error:#}").contains("score.weight"), "{error:#}");
}

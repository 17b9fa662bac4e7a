//! Adapters: against PEFT (fixtures: tools/golden/make_lora.py) on every device that there is (`common::places`), as files, and in rollouts. `lora_runs` has them through the binary.

#[macro_use]
mod common;

use bupo::compute::{Backend, Packing};
use bupo::model::init::{InitConfig, random_params};
use bupo::model::weights::{base_of, load_adapter, save_adapter};
use bupo::model::{Compute, Keep, LoraConfig, Model, ParamLayout, Target, Workspace};
use bupo::policy::{InternalPolicy, Targets};
use bupo::rl::adamw::Optimizer;
use bupo::rl::batch::ResponseGroup;
use bupo::rl::update::{Before, LogProbs, UpdateSettings, mini_batch_gradient, update};
use bupo::rl::{LossConfig, OptimizerConfig};
use bupo::rollout::engine::{Engine, Request, generate};
use bupo::rollout::sampler::Sampling;
use common::golden::{Tensors, by_group, clipped, flat, folder, response_starts};
use common::places::{InBf16, Place, rms};
use common::{fails, json, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

everywhere!(log_probs_losses_gradients_and_updates_are_pefts);

// bf16, about twice what was measured (a run says it, with --nocapture), for the reasons of tests/golden.rs.
const STATISTICS: InBf16 = InBf16 { kind: "log-probs", worst: 3e-2, distance: 1.5e-2 };
const GRADIENTS: InBf16 = InBf16 { kind: "gradients", worst: 1.5e-1, distance: 1.3e-1 };
const LOSSES: InBf16 = InBf16 { kind: "losses", worst: 4e-2, distance: 0.0 };
const NORMS: InBf16 = InBf16 { kind: "norms of gradients", worst: 1.2e-1, distance: 0.0 };
const MOVES: InBf16 = InBf16 { kind: "what the steps moved", worst: 2.0, distance: 6e-1 };

/// A case of PEFT's: its base with its adapter beside it.
struct Case<B: Backend> {
    model: Model<B>,
    meta: Value,
    tensors: Tensors,
    groups: Vec<ResponseGroup>,
}

impl<B: Backend> Case<B> {
    fn open(name: &str, place: &Place<B>) -> Case<B> {
        let (base, dir) = (folder(name), folder("lora").join(name));
        let mut model = Model::open(&base).unwrap();
        load_adapter(&dir, &mut model).unwrap();
        let groups = Tensors::open(&base.join("golden.safetensors")).groups(&response_starts(name));
        let (meta, tensors) = (json(&dir.join("golden.json")), Tensors::open(&dir.join("golden.safetensors")));
        Case { model: model.on(place.backend.clone()), meta, tensors, groups }
    }

    fn number(&self, at: &str) -> f64 {
        self.meta.pointer(at).and_then(Value::as_f64).unwrap()
    }

    fn by_group(&self, name: &str) -> LogProbs {
        by_group(&self.groups, self.tensors.values(name))
    }
}

/// Every response's tokens under a policy.
fn log_probs<B: Backend>(
    model: &Model<B>,
    groups: &[ResponseGroup],
    policy: InternalPolicy,
    temperature: f32,
) -> Vec<f32> {
    let (mut packing, mut targets) = (Packing::new(), Targets::default());
    for group in groups {
        let ids = [&group.prompt[..], &group.responses[0].ids].concat();
        let rows = packing.push(&ids);
        targets.push_response(&ids, rows.start, group.prompt.len());
    }
    policy.score(model, &mut Workspace::new(model), &packing, &targets, temperature).log_probs
}

fn log_probs_losses_gradients_and_updates_are_pefts<B: Backend>(place: &Place<B>) {
    let mut whole = 0;
    for name in ["qwen3", "qwen2"] {
        'policies: for policy_name in ["final", "layer:2"] {
            let mut case = Case::open(name, place);
            let (layers, trainable) = (case.model.config.layers, case.model.layout.trainable());
            let start = case.model.host_params().into_owned();
            let policy = InternalPolicy::parse(policy_name, layers).unwrap();
            let what = |of: &str| format!("{name} {policy_name} {of}");
            let temperature = case.number("/temperature") as f32;
            let ours = log_probs(&case.model, &case.groups, policy, temperature);
            let theirs = case.tensors.values(&format!("log_probs.{policy_name}"));
            place.agree(&STATISTICS, &what("log-probs"), &ours, &theirs);
            let kl_coef = if policy_name == "final" { case.number("/kl_coef") } else { 0.0 };
            let loss = LossConfig { kl_coef, dual_clip: Some(10.0), ..LossConfig::default() };
            // The reference of the KL is the model with its adapter off.
            let Case { model, groups, .. } = &mut case;
            let reference = model.without_adapter(|base| log_probs(base, groups, InternalPolicy::Final, temperature));
            place.agree(&STATISTICS, &what("reference"), &reference, &case.tensors.values("ref"));
            let (old, reference) = (case.by_group(&format!("old.{policy_name}")), case.by_group("ref"));
            let before = Before { old: Some(&old), reference: Some(&reference), ..Before::default() };
            let trained = case.model.layout.trained_by(policy.tap());
            let settings = |micro_batch_tokens, keep| UpdateSettings {
                policy,
                beside: None,
                trained: &trained,
                temperature,
                loss: &loss,
                max_new_tokens: 1,
                micro_batch_tokens,
                keep,
            };
            let zeros = || {
                let mut zeros = B::Array::default();
                place.backend.upload(&vec![0.0; trainable.len()], &mut zeros);
                zeros
            };
            let clips = [case.number("/clip"), 10.0];
            for (tokens, keep) in [(1000, Keep::Activations), (1, Keep::Activations), (20, Keep::LayerInputs)] {
                let (mut ws, mut grads) = (Workspace::new(&case.model), zeros());
                let s = settings(tokens, keep);
                let g = mini_batch_gradient(&case.model, &mut ws, &case.groups, 0..3, &s, before, &mut grads).unwrap();
                let expected = case.number(&format!("/losses/{policy_name}"));
                place.agree_on_one(&LOSSES, &what("loss"), g.loss, expected, 1.0);
                // With eight bits a ratio may be on the other side of a clip, and that is another gradient.
                let ours = clipped(&case.groups, flat(&g.log_probs), &old, clips);
                let same = ours == clipped(&case.groups, &theirs, &old, clips);
                if place.bf16 && !same {
                    continue 'policies;
                }
                assert!(same, "{}", what("clips"));
                let (grads, mut compared) = (place.backend.host(&grads), 0);
                for tensor in case.model.layout.trainable_tensors() {
                    let ours = &grads[tensor.offset - trainable.start..][..tensor.len()];
                    let theirs = case.tensors.find(&format!("grad.{policy_name}.{}", tensor.name));
                    assert_eq!(theirs.is_some(), trained.has(&tensor.range()), "{}", what(&tensor.name));
                    match theirs {
                        Some(theirs) => {
                            place.agree(&GRADIENTS, &what(&tensor.name), ours, &theirs);
                            compared += 1;
                        }
                        // Above the policy, PyTorch has no gradient; exactly zero here.
                        None => assert!(ours.iter().all(|g| *g == 0.0), "{}", what(&tensor.name)),
                    }
                }
                assert!(compared > 0, "{}", what("tensors with a gradient"));
            }

            let number = |key: &str| case.number(&format!("/adamw/{key}"));
            let (lr, config) = (
                number("lr"),
                OptimizerConfig {
                    beta1: number("beta1"),
                    beta2: number("beta2"),
                    eps: number("eps"),
                    weight_decay: number("weight_decay"),
                    grad_clip: number("grad_clip"),
                    ..OptimizerConfig::default()
                },
            );
            let mut optimizer = Optimizer::new_on(&place.backend, &case.model.layout);
            assert_eq!(B::len(&optimizer.m), trainable.len(), "moments of the adapter alone");
            let (mut ws, mut grads) = (Workspace::new(&case.model), zeros());
            for step in case.meta["adamw"]["steps"][policy_name].as_array().unwrap() {
                let s = settings(30, Keep::Activations);
                let (model, groups, opt) = (&mut case.model, &case.groups, &mut optimizer);
                let (gradient, outcome) =
                    update(model, &mut ws, opt, groups, 0..3, &s, before, &config, lr, &mut grads).unwrap();
                let norm = outcome.grad_norm;
                for (bounds, ours, key, size) in
                    [(&LOSSES, gradient.loss, "loss", 1.0), (&NORMS, norm, "grad_norm", 0.0)]
                {
                    place.agree_on_one(bounds, &what(key), ours, step[key].as_f64().unwrap(), size);
                }
            }
            let params = case.model.host_params();
            for tensor in case.model.layout.trainable_tensors() {
                let (ours, start) = (&params[tensor.range()], &start[tensor.range()]);
                let theirs = case.tensors.values(&format!("adamw.{policy_name}.{}", tensor.name));
                place.agree_on_parameters(&MOVES, &what(&tensor.name), start, ours, &theirs);
                assert!(trained.has(&tensor.range()) || ours == start, "{} moved", what(&tensor.name));
            }
            assert_eq!(params[..trainable.start], start[..trainable.start], "{}", what("the base moved"));
            whole += 1;
        }
    }
    assert!(whole >= place.pick(4, 1), "{whole} of the cases were compared to their end");
}

#[test]
fn a_merged_adapter_is_pefts() {
    for name in ["qwen3", "qwen2"] {
        let place = Place::cpu();
        let mut case = Case::open(name, &place);
        case.model.merge_adapter();
        let find = |name: &str| case.tensors.find(&format!("merged.{name}"));
        let merged: Vec<_> = case.model.layout.tensors.iter().filter_map(|t| Some((t, find(&t.name)?))).collect();
        assert_eq!(merged.len(), 2 * case.model.config.layers);
        for (tensor, theirs) in merged {
            place.agree(&STATISTICS, &tensor.name, &case.model.params[tensor.range()], &theirs);
        }
        let temperature = case.number("/temperature") as f32;
        let ours = log_probs(&case.model, &case.groups, InternalPolicy::Final, temperature);
        place.agree(&STATISTICS, "merged", &ours, &case.tensors.values("log_probs.final"));
    }
}

fn small_model() -> Model {
    let init = InitConfig { hidden_size: 32, layers: 3, heads: 4, kv_heads: 2, head_dim: 8, ..InitConfig::default() };
    let config = init.model_config(60).unwrap();
    let params = random_params(&config, &ParamLayout::new(&config), 0.2, 7);
    Model::new(config, params)
}

/// With B away from zero.
fn adapted(lora: &LoraConfig) -> Model {
    let mut model = small_model();
    model.add_adapter(lora, "somewhere", 9).unwrap();
    let range = model.layout.trainable();
    for (i, x) in model.params[range].iter_mut().enumerate() {
        *x += ((i * 37 % 101) as f32 - 50.0) * 2e-3;
    }
    model
}

#[test]
fn a_fresh_adapter_changes_nothing_and_begins_as_pefts_do() {
    let (base, mut model) = (small_model(), small_model());
    let lora = LoraConfig { rank: 8, ..LoraConfig::default() };
    model.add_adapter(&lora, "somewhere", 9).unwrap();
    assert_eq!(model.params[..base.params.len()], base.params);
    for tensor in model.layout.trainable_tensors() {
        let values = &model.params[tensor.range()];
        if tensor.name.ends_with("lora_B.weight") {
            assert!(values.iter().all(|x| *x == 0.0));
            continue;
        }
        // Kaiming uniform with a = sqrt(5): sqrt(6 / (1 + 5)) / sqrt(in), whose standard deviation is bound / sqrt(3).
        let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
        assert!(values.iter().all(|x| x.abs() <= bound));
        assert!((rms(values) * 3f64.sqrt() / bound as f64 - 1.0).abs() < 0.15, "{}", tensor.name);
    }
    let mut again = small_model();
    again.add_adapter(&lora, "somewhere", 9).unwrap();
    assert_eq!(again.params, model.params);
    again = small_model();
    again.add_adapter(&lora, "somewhere", 10).unwrap();
    assert_ne!(again.params, model.params);
    let packing = Packing::single(&[3, 1, 4, 1, 5]);
    let targets = Targets { rows: vec![0, 1, 2, 3], ids: vec![1, 4, 1, 5] };
    let score = |m: &Model| InternalPolicy::Final.score(m, &mut Workspace::new(m), &packing, &targets, 1.0);
    assert_eq!(score(&model), score(&base));
    assert!(model.add_adapter(&lora, "somewhere", 9).unwrap_err().to_string().contains("merge it first"));
}

#[test]
fn rollouts_see_the_adapter_as_training_does() {
    for compute in [Compute::F32, Compute::Bf16] {
        let mut model = adapted(&LoraConfig { rank: 4, ..LoraConfig::default() });
        model.backend.compute = compute.here();
        let requests: Vec<Request> =
            (0..40u32).map(|i| Request { prompt: vec![i, 7, 2 * i % 60], seeds: vec![i as u64] }).collect();
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 12 };
        let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots: 40 };
        let mut ws = Workspace::new(&model);
        let completions = generate(&model, &mut ws, &engine, &requests, &mut |_| ()).unwrap();
        let (mut worst, mut off) = (0f32, 0f32);
        for (request, completion) in requests.iter().zip(completions.iter().flatten()) {
            let ids = [&request.prompt[..], &completion.ids].concat();
            let (mut packing, mut targets) = (Packing::new(), Targets::default());
            let rows = packing.push(&ids);
            targets.push_response(&ids, rows.start, request.prompt.len());
            let mut score = |m: &Model| InternalPolicy::Final.score(m, &mut ws, &packing, &targets, 1.0).log_probs;
            let difference =
                |a: &[f32]| a.iter().zip(&completion.log_probs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            worst = worst.max(difference(&score(&model)));
            off = off.max(difference(&model.without_adapter(&mut score)));
        }
        // bf16 rounds attention's operands on other block borders while decoding.
        let bound = if model.backend.compute == Compute::F32 { 1e-5 } else { 5e-2 };
        assert!(worst < bound && off > 10.0 * worst, "{compute:?}: {worst}, without the adapter {off}");
    }
}

#[test]
fn files_round_trip_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let some = LoraConfig {
        targets: vec![Target::QProj, Target::DownProj],
        layers: Some("2-".into()),
        ..LoraConfig::default()
    };
    for lora in [LoraConfig { rank: 3, alpha: 4.5, rslora: true, ..LoraConfig::default() }, some] {
        let model = adapted(&lora);
        save_adapter(dir.path(), &model).unwrap();
        let mut again = small_model();
        load_adapter(dir.path(), &mut again).unwrap();
        assert_eq!(again.layout.tensors, model.layout.tensors);
        assert!(again.params.iter().zip(&model.params).all(|(a, b)| a.to_bits() == b.to_bits()));
        let (read, written) = (&again.layout.adapter.as_ref().unwrap().config, &lora);
        assert_eq!((read.rank, read.scale(), &read.targets), (written.rank, written.scale(), &written.targets));
    }
    let config = json(&dir.path().join("adapter_config.json"));
    assert_eq!(config["layers_to_transform"], json!([1, 2]));
    assert_eq!(config["target_modules"], json!(["q_proj", "down_proj"]));
    assert!(save_adapter(dir.path(), &small_model()).unwrap_err().to_string().contains("no adapter"));
}

/// An error with its causes.
fn refused(dir: &Path) -> String {
    format!("{:#}", load_adapter(dir, &mut small_model()).unwrap_err())
}

#[test]
fn configurations_that_mean_something_else_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &adapted(&LoraConfig { rank: 2, ..LoraConfig::default() })).unwrap();
    let path = dir.path().join("adapter_config.json");
    let good = json(&path);
    let write = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
    };
    for (key, value, expected) in [
        ("peft_type", json!("IA3"), "\"LORA\""),
        ("peft_type", json!(7), "\"LORA\""),
        ("r", json!(0), "`r` is 0"),
        ("r", json!(-4), "`r` is -4"),
        ("r", json!(1e30), "`r` is"),
        ("r", json!(9_000_000_000_000_000_000u64), "expected 1 to"),
        ("r", json!(4), "shape [2, 32]"),
        ("lora_alpha", json!("16"), "`lora_alpha`"),
        ("lora_alpha", json!(1e300), "`lora_alpha`"),
        ("use_dora", json!(true), "`use_dora` is true"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("rank_pattern", json!({"q_proj": 4}), "rank_pattern"),
        ("alpha_pattern", json!({"q_proj": 4}), "alpha_pattern"),
        ("layer_replication", json!([[0, 1]]), "layer_replication"),
        ("something_new", json!(0.5), "`something_new` is 0.5"),
        ("bias", json!("all"), "`bias`"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights"),
        ("base_model_name_or_path", json!(""), "base_model_name_or_path"),
        ("base_model_name_or_path", json!(null), "base_model_name_or_path"),
    ] {
        write(key, value);
        assert!(refused(dir.path()).contains(expected), "{key}: {}", refused(dir.path()));
    }
    for (key, value) in
        [("lora_dropout", json!(0.1)), ("something_new", json!(null)), ("init_lora_weights", json!("gaussian"))]
    {
        write(key, value);
        load_adapter(dir.path(), &mut small_model()).unwrap();
    }
    for text in ["", "[]", "{", "null", "{\"r\": 1"] {
        fs::write(&path, text).unwrap();
        assert!(refused(dir.path()).contains("adapter_config.json"), "{}", refused(dir.path()));
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = adapted(&LoraConfig { rank: 2, ..LoraConfig::default() });
    save_adapter(dir.path(), &model).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    let good = fs::read(&path).unwrap();
    // Names of the same length, so that nothing else of the file changes.
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).unwrap();
        refused(dir.path())
    };
    let q = "layers.0.self_attn.q_proj.lora_A";
    for (to, expected) in [
        ("layers.0.self_attn.x_proj.lora_A", "cannot be beside"),
        ("layers.0.self_attn.q_proj.lora_C", "cannot be beside"),
        ("layers.x.self_attn.q_proj.lora_A", "cannot be beside"),
        ("layers.7.self_attn.q_proj.lora_A", "model.layers.0 to 2"),
    ] {
        assert!(renamed(q, to).contains(expected), "{}", renamed(q, to));
    }
    let mut broken = good.clone();
    let end = broken.len() - 4;
    broken[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &broken).unwrap();
    assert!(refused(dir.path()).contains("NaN"), "{}", refused(dir.path()));
    for cut in [0, 7, 40, good.len() - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        assert!(refused(dir.path()).contains("adapter_model.safetensors"));
    }
    fs::remove_file(&path).unwrap();
    assert!(refused(dir.path()).contains("holds no adapter_model.safetensors"));
    fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    assert!(refused(dir.path()).contains("convert adapter_model.bin"));
    // Another model's: one factor of another shape.
    save_adapter(dir.path(), &model).unwrap();
    let mut other = Model::open(&folder("qwen3")).unwrap();
    assert!(load_adapter(dir.path(), &mut other).unwrap_err().to_string().contains("shape"));
}

#[test]
fn a_base_may_be_named_as_seen_from_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, base) = (dir.path().join("a"), dir.path().join("base"));
    fs::create_dir_all(&base).unwrap();
    save_adapter(&adapter, &adapted(&LoraConfig::default())).unwrap();
    let path = adapter.join("adapter_config.json");
    let mut config = json(&path);
    config["base_model_name_or_path"] = json!("../base");
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(base_of(&adapter).unwrap().canonicalize().unwrap(), base.canonicalize().unwrap());
}

#[test]
fn a_base_that_is_not_found_is_named() {
    let root = tempfile::tempdir().unwrap();
    let lost = root.path().join("lost");
    save_adapter(&lost, &adapted(&LoraConfig::default())).unwrap();
    fails(&["generate", text(&lost), "--prompt", "x"], &["somewhere", "base_model_name_or_path"]);
}

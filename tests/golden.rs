//! The decoder against PyTorch + transformers: every tap, every policy's log-probs and entropies, every parameter's
//! gradient, five AdamW steps (fixtures: tools/golden/make_golden.py).
//!
//! Agreement is relative, 1e-4: `|ours - theirs| <= 1e-4 max(|theirs|, rms of theirs)`. The rms is there because an element
//! that nearly cancels has no digits of its own left in f32. After five AdamW steps an element's own update is a quotient
//! of two small numbers where its gradient is near zero, so there the bound is 1e-4 of the tensor's rms.

use bupo::compute::Packing;
use bupo::model::{Keep, LayerIndex, Model, Tap, Trained, Workspace};
use bupo::policy::{InternalPolicy, Targets};
use bupo::rl::adamw::Optimizer;
use bupo::rl::batch::{Response, ResponseGroup};
use bupo::rl::update::{Before, Beside, LogProbs, UpdateSettings, mini_batch_gradient, update};
use bupo::rl::{LossConfig, LossKind, OptimizerConfig};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

const CASES: [&str; 4] = ["qwen3", "qwen2", "llama", "llama3"];
const TOLERANCE: f64 = 1e-4;

struct Case {
    name: &'static str,
    model: Model,
    meta: Value,
    bytes: Vec<u8>,
}

impl Case {
    fn open(name: &'static str) -> Case {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let meta = std::fs::read_to_string(dir.join("meta.json")).unwrap();
        let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
        Case { name, model: Model::open(&dir).unwrap(), meta: serde_json::from_str(&meta).unwrap(), bytes }
    }

    fn find(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).ok()?;
        Some(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.find(name).unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    fn sequences(&self) -> Vec<(Vec<u32>, usize)> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let starts = self.meta["response_starts"].as_array().unwrap();
        let ids = |s: usize| {
            let view = tensors.tensor(&format!("input_ids.{s}")).unwrap();
            view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
        };
        (0..starts.len()).map(|s| (ids(s), starts[s].as_u64().unwrap() as usize)).collect()
    }

    /// All sequences in one packing, and their response tokens.
    fn packed(&self) -> (Packing, Targets) {
        let (mut packing, mut targets) = (Packing::new(), Targets::default());
        for (ids, start) in self.sequences() {
            let rows = packing.push(&ids);
            targets.push_response(&ids, rows.start, start);
        }
        (packing, targets)
    }

    /// The trainer's batch, with the golden advantages.
    fn groups(&self) -> Vec<ResponseGroup> {
        let advantages = self.values("advantages");
        let mut from = 0;
        let mut group = |(ids, start): (Vec<u32>, usize)| {
            let n = ids.len() - start;
            let response = Response {
                ids: ids[start..].to_vec(),
                advantages: advantages[from..from + n].to_vec(),
                ..Response::default()
            };
            from += n;
            ResponseGroup { prompt: ids[..start].to_vec(), responses: vec![response] }
        };
        self.sequences().into_iter().map(&mut group).collect()
    }

    /// Stored values, one a response token, as [group][response][token].
    fn by_group(&self, name: &str) -> LogProbs {
        let values = self.values(name);
        let mut from = 0;
        let mut take = |n: usize| {
            from += n;
            vec![values[from - n..from].to_vec()]
        };
        self.sequences().iter().map(|(ids, start)| take(ids.len() - start)).collect()
    }

    fn loss(&self, extras: bool) -> LossConfig {
        let coef = |key: &str| if extras { self.meta[key].as_f64().unwrap() } else { 0.0 };
        LossConfig { kl_coef: coef("kl_coef"), entropy_coef: coef("entropy_coef"), ..LossConfig::default() }
    }

    fn policy(&self, name: &str) -> InternalPolicy {
        InternalPolicy::parse(name, self.model.config.layers).unwrap()
    }
}

fn settings<'a>(
    policy: InternalPolicy,
    trained: &'a Trained,
    temperature: f32,
    loss: &'a LossConfig,
    tokens: usize,
    keep: Keep,
) -> UpdateSettings<'a> {
    UpdateSettings {
        policy,
        beside: None,
        trained,
        temperature,
        loss,
        max_new_tokens: 64,
        micro_batch_tokens: tokens,
        keep,
    }
}

fn rms(x: &[f32]) -> f64 {
    (x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

fn agree(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}: lengths");
    let scale = rms(theirs);
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let bound = TOLERANCE * (b.abs() as f64).max(scale);
        assert!(((a - b).abs() as f64) <= bound, "{what}[{i}]: ours {a}, PyTorch {b}, rms {scale}");
    }
}

#[test]
fn every_tap() {
    for case in CASES.map(Case::open) {
        for (s, (ids, _)) in case.sequences().iter().enumerate() {
            let mut seen = 0;
            let mut ws = Workspace::new(&case.model);
            case.model.forward_observed(&mut ws, &Packing::single(ids), Tap::Final, &mut |tap, state| {
                let name = match tap {
                    Tap::ResidPre(l) => format!("resid_pre.{l}"),
                    Tap::AttnIn(l) => format!("attn_in.{l}"),
                    Tap::Attn(l) => format!("attn.{l}"),
                    Tap::ResidMid(l) => format!("resid_mid.{l}"),
                    Tap::FfnIn(l) => format!("ffn_in.{l}"),
                    Tap::Ffn(l) => format!("ffn.{l}"),
                    Tap::ResidPost(l) => format!("resid_post.{l}"),
                    Tap::Final => "final".to_string(),
                    Tap::Normed(_) => unreachable!("nobody stops at it"),
                };
                agree(&format!("{} {name}", case.name), state, &case.values(&format!("tap.{s}.{name}")));
                seen += 1;
            });
            assert_eq!(seen, 7 * case.model.config.layers + 1);
        }
    }
}

#[test]
fn log_probs_and_entropies_of_every_kind_of_policy() {
    for case in CASES.map(Case::open) {
        let (packing, targets) = case.packed();
        for name in ["final", "layer:1", "layer:2", "layer:4", "attn:2", "ffn:2"] {
            for (temperature, key) in [(1.0, "1.0"), (0.7, "0.7")] {
                let mut ws = Workspace::new(&case.model);
                let stats = case.policy(name).score(&case.model, &mut ws, &packing, &targets, temperature);
                let what = format!("{} {name} at {key}", case.name);
                agree(
                    &format!("{what}: log-probs"),
                    &stats.log_probs,
                    &case.values(&format!("log_probs.{name}.{key}")),
                );
                agree(&format!("{what}: entropies"), &stats.entropy, &case.values(&format!("entropy.{name}.{key}")));
            }
        }
    }
}

#[test]
fn gradients_of_every_parameter() {
    for case in CASES.map(Case::open) {
        let groups = case.groups();
        for (name, temperature, key) in [
            ("final", 1.0, "final.1.0"),
            ("layer:2", 1.0, "layer:2.1.0"),
            ("layer:4", 0.7, "layer:4.0.7"),
            ("attn:2", 0.7, "attn:2.0.7"),
            ("ffn:2", 0.7, "ffn:2.0.7"),
            ("final", 0.7, "final.0.7.extras"),
        ] {
            let extras = key.ends_with("extras");
            let (loss, policy) = (case.loss(extras), case.policy(name));
            let old = case.by_group(&format!("old.{key}"));
            let reference = extras.then(|| case.by_group(&format!("ref.{key}")));
            // One micro-batch, one for every sequence, and recomputed layers: the gradient is the same.
            for (tokens, keep) in [(1000, Keep::Activations), (1, Keep::Activations), (20, Keep::LayerInputs)] {
                let mut ws = Workspace::new(&case.model);
                let mut grads = vec![0f32; case.model.layout.len()];
                let trained = case.model.layout.trained_by(policy.tap());
                let settings = settings(policy, &trained, temperature, &loss, tokens, keep);
                let before = Before { old: Some(&old), reference: reference.as_ref(), ..Before::default() };
                let g = mini_batch_gradient(&case.model, &mut ws, &groups, 0..3, &settings, before, &mut grads);
                let (g, expected) = (g.unwrap(), case.meta["losses"][key].as_f64().unwrap());
                assert!(
                    (g.loss - expected).abs() <= TOLERANCE * expected.abs(),
                    "{} {key}: {} {expected}",
                    case.name,
                    g.loss
                );
                let mut compared = 0;
                for tensor in &case.model.layout.tensors {
                    let ours = &grads[tensor.range()];
                    match case.find(&format!("grad.{key}.{}", tensor.name)) {
                        Some(theirs) => {
                            agree(&format!("{} {key} {}", case.name, tensor.name), ours, &theirs);
                            compared += 1;
                        }
                        // No gradient in PyTorch: above the policy, or not on its path. Exactly zero here.
                        None => assert!(ours.iter().all(|g| *g == 0.0), "{} {key} {}", case.name, tensor.name),
                    }
                }
                let below = case.model.layout.tensors.iter().filter(|t| trained.has(&t.range())).count();
                assert_eq!(compared, below, "{} {key}: tensors with a gradient", case.name);
            }
        }
    }
}

#[test]
fn five_adamw_steps() {
    for mut case in CASES.map(Case::open) {
        let start = case.model.params.clone();
        for name in ["final", "layer:2"] {
            case.model.params.copy_from_slice(&start);
            let (policy, loss, groups) = (case.policy(name), case.loss(false), case.groups());
            let trained = case.model.layout.trained_by(policy.tap());
            let old = case.by_group(&format!("old.{name}.1.0"));
            let a = case.meta["adamw"].clone();
            let number = |key: &str| a[key].as_f64().unwrap();
            let config = OptimizerConfig {
                beta1: number("beta1"),
                beta2: number("beta2"),
                eps: number("eps"),
                weight_decay: number("weight_decay"),
                grad_clip: number("grad_clip"),
                ..OptimizerConfig::default()
            };
            let (mut optimizer, mut ws) = (Optimizer::new(&case.model.layout), Workspace::new(&case.model));
            let mut grads = vec![0f32; case.model.layout.len()];
            for step in a["steps"][name].as_array().unwrap() {
                let settings = settings(policy, &trained, 1.0, &loss, 30, Keep::Activations);
                let (model, before) = (&mut case.model, Before { old: Some(&old), ..Before::default() });
                let (gradient, outcome) = update(
                    model,
                    &mut ws,
                    &mut optimizer,
                    &groups,
                    0..3,
                    &settings,
                    before,
                    &config,
                    number("lr"),
                    &mut grads,
                )
                .unwrap();
                for (ours, key) in [(gradient.loss, "loss"), (outcome.grad_norm, "grad_norm")] {
                    let theirs = step[key].as_f64().unwrap();
                    assert!(
                        (ours - theirs).abs() <= TOLERANCE * theirs.abs(),
                        "{} {name} {key}: {ours} {theirs}",
                        case.name
                    );
                }
            }
            for tensor in &case.model.layout.tensors {
                let (ours, theirs) =
                    (&case.model.params[tensor.range()], case.values(&format!("adamw.{name}.{}", tensor.name)));
                let scale = rms(&theirs);
                let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() as f64).fold(0.0, f64::max);
                assert!(worst <= TOLERANCE * scale, "{} {name} {}: {worst} of {scale}", case.name, tensor.name);
                let above = !trained.has(&tensor.range());
                assert!(!above || *ours == start[tensor.range()], "{} {name} moved {}", case.name, tensor.name);
            }
        }
    }
}

#[test]
fn the_last_layers_raw_policy_is_not_the_final_one() {
    for case in CASES.map(Case::open) {
        let last = LayerIndex::from_one_based(4, case.model.config.layers).unwrap();
        assert_ne!(InternalPolicy::Layer(last), InternalPolicy::Final);
        assert_ne!(case.values("log_probs.layer:4.1.0"), case.values("log_probs.final.1.0"));
    }
}

/// The methods beside the clipped surrogate (fixtures: tools/golden/make_methods.py).
#[test]
fn gradients_of_other_losses_of_the_joint_objective_and_of_a_normed_layer() {
    let case = Case::open("qwen3");
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3");
    let meta: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("methods.json")).unwrap()).unwrap();
    let methods = Case { bytes: std::fs::read(dir.join("methods.safetensors")).unwrap(), ..Case::open("qwen3") };
    let lengths: Vec<usize> = case.sequences().iter().map(|(ids, start)| ids.len() - start).collect();
    let by_group = |name: &str| -> LogProbs {
        let values = methods.values(name);
        let mut from = 0;
        let mut take = |n: &usize| {
            from += n;
            vec![values[from - n..from].to_vec()]
        };
        lengths.iter().map(&mut take).collect()
    };
    let beside = Beside {
        layer: LayerIndex::from_one_based(2, case.model.config.layers).unwrap(),
        beta: meta["beta"].as_f64().unwrap(),
    };
    for (name, policy, kind, beside) in [
        ("normed:2", "normed:2", LossKind::PpoClip, None),
        ("gspo", "final", LossKind::Gspo, None),
        ("cispo", "final", LossKind::Cispo, None),
        ("joint", "final", LossKind::PpoClip, Some(beside)),
    ] {
        let (policy, loss) = (case.policy(policy), LossConfig { kind, ..LossConfig::default() });
        let trained = case.model.layout.trained_by(policy.tap());
        let (old, old_beside) =
            (by_group(&format!("old.{name}")), beside.map(|_| by_group(&format!("old_beside.{name}"))));
        let before = Before { old: Some(&old), old_beside: old_beside.as_ref(), ..Before::default() };
        for (tokens, keep) in [(1000, Keep::Activations), (20, Keep::LayerInputs)] {
            let temperature = meta["temperature"].as_f64().unwrap() as f32;
            let settings = UpdateSettings { beside, ..settings(policy, &trained, temperature, &loss, tokens, keep) };
            let (mut ws, mut grads) = (Workspace::new(&case.model), vec![0f32; case.model.layout.len()]);
            let g =
                mini_batch_gradient(&case.model, &mut ws, &case.groups(), 0..3, &settings, before, &mut grads).unwrap();
            let expected = meta["losses"][name].as_f64().unwrap();
            assert!((g.loss - expected).abs() <= TOLERANCE * expected.abs(), "{name}: {} {expected}", g.loss);
            for tensor in &case.model.layout.tensors {
                let ours = &grads[tensor.range()];
                match methods.find(&format!("grad.{name}.{}", tensor.name)) {
                    Some(theirs) => agree(&format!("{name} {}", tensor.name), ours, &theirs),
                    None => assert!(ours.iter().all(|g| *g == 0.0), "{name} {}", tensor.name),
                }
            }
        }
    }
}

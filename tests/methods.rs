//! Every method of training through the binary and through the library: a resumed run equals one never stopped, and the
//! gradient does not depend on how a mini-batch is cut.

mod common;

use bupo::compute::cpu::Array;
use bupo::model::init::{InitConfig, random_params};
use bupo::model::{Keep, Model, ParamLayout, Workspace};
use bupo::policy::{InternalPolicy, LayerIndex};
use bupo::rl::batch::{Response, ResponseGroup};
use bupo::rl::update::{Before, Beside, LogProbs, PerToken, UpdateSettings, mini_batch_gradient};
use bupo::rl::{Aggregation, LossConfig, LossKind};
use common::{binary, copy, metrics, on_device, rows};
use serde_json::Value;
use std::fs;
use std::path::Path;
use toml::Table;

const RECIPE: &str = r#"
name = "tiny"
seed = 5
threads = 2
[run]
checkpoint_every = 2
keep_checkpoints = 8
[model.init]
hidden_size = 24
layers = 3
heads = 2
kv_heads = 1
head_dim = 16
intermediate_size = 48
max_position_embeddings = 96
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
steps = 4
lr = 1e-3
mini_batch_prompts = 3
micro_batch_tokens = 64
[analysis]
responses = 3
"#;

fn train(recipe: &Path, dir: &Path, resume: bool) {
    let mut command = binary();
    command.args(["train".as_ref(), recipe.as_os_str(), "--dir".as_ref(), dir.as_os_str()]).args(on_device("train"));
    let output = command.args(resume.then_some("--resume")).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Keys of `more` win.
fn merge(table: &mut Table, more: Table) {
    for (key, value) in more {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(more)) => merge(inner, more),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Trains with `more` in the recipe, then again from its checkpoint of step 2: the same bytes. Returns the metrics.
fn trains_and_resumes(name: &str, more: &str) -> Vec<Value> {
    trains_and_resumes_with(name, more, |_| ())
}

fn trains_and_resumes_with(name: &str, more: &str, change: impl Fn(&mut Table)) -> Vec<Value> {
    let root = tempfile::tempdir().unwrap();
    let (recipe, whole, resumed) = (root.path().join("r.toml"), root.path().join("whole"), root.path().join("resumed"));
    let mut table: Table = RECIPE.parse().unwrap();
    merge(&mut table, more.parse().unwrap());
    change(&mut table);
    fs::write(&recipe, table.to_string()).unwrap();
    train(&recipe, &whole, false);
    fs::create_dir_all(resumed.join("checkpoints")).unwrap();
    for file in
        ["recipe.toml", "metrics.jsonl", "completions.jsonl", "checkpoints/step-000000", "checkpoints/step-000002"]
    {
        copy(&whole.join(file), &resumed.join(file));
    }
    train(&recipe, &resumed, true);
    for file in ["model.safetensors", "trainer_state.safetensors"] {
        let read = |d: &Path| fs::read(d.join("checkpoints/step-000004").join(file)).unwrap();
        assert!(read(&whole) == read(&resumed), "{name}: {file} differs after resuming");
    }
    assert_eq!(metrics(&whole), metrics(&resumed), "{name}");
    assert_eq!(rows(&whole.join("completions.jsonl")), rows(&resumed.join("completions.jsonl")), "{name}");
    metrics(&whole)
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))
}

#[test]
fn losses_train_and_resume() {
    let narrow =
        trains_and_resumes("gspo", "[loss]\nkind = \"gspo\"\nclip_low = 3e-4\nclip_high = 4e-4\n[rl]\nepochs = 2\n");
    // Four updates a step; clips this narrow are met by the later ones.
    assert_eq!(number(&narrow[3], "optimizer_steps"), 16.0);
    assert!(narrow.iter().any(|m| number(m, "clip_fraction_low") + number(m, "clip_fraction_high") > 0.0));
    let cispo = trains_and_resumes("cispo", "[loss]\nkind = \"cispo\"\nclip_low = 1.0\nclip_high = 4.0\n");
    assert!(cispo.iter().all(|m| number(m, "grad_norm").is_finite()));
    let selected = trains_and_resumes(
        "selection",
        "[loss]\ntop_entropy_quantile = 0.2\nrollout_correction = { mode = \"token-truncate\", cap = 1.0 }\n[bupo]\nlayer = 1\nsteps = 2\n",
    );
    // Everything is measured, in the internal phase over all tokens too, since all were scored.
    for m in &selected {
        assert_eq!(m["rollout_ratios"]["tokens"], m["tokens"]);
        assert!((number(&m["rollout_ratios"], "ratio_mean") - 1.0).abs() < 1e-4);
    }
}

#[test]
fn dynamic_sampling_fills_the_batch_and_resumes_where_the_data_stood() {
    let steps =
        trains_and_resumes("dapo", "[rollout]\ndynamic_sampling = { max_batches = 20 }\n[loss]\nclip_high = 0.28\n");
    let mut dropped = 0;
    for m in &steps {
        let d = &m["dynamic_sampling"];
        let of = |key: &str| d[key].as_u64().unwrap();
        assert_eq!(of("prompts_sampled"), 6 + of("groups_dropped") - of("groups_missing"), "{d}");
        assert_eq!(m["groups"], d["prompts_sampled"]);
        dropped += of("groups_dropped");
    }
    assert!(dropped > 0, "a model that is never always right has nothing to drop: the test proves nothing");
    // A bound of two batches: what is missing is counted.
    let easy = "[rollout]\ndynamic_sampling = { max_batches = 2 }\ntemperature = 0.2\n";
    let steps = trains_and_resumes("bound", easy);
    assert!(steps.iter().any(|m| m["dynamic_sampling"]["groups_missing"].as_u64().unwrap() > 0));
    assert!(steps.iter().all(|m| m["dynamic_sampling"]["prompts_sampled"].as_u64().unwrap() <= 12));
}

#[test]
fn where_every_group_is_dropped_nothing_is_updated() {
    // No answer is ever right: all verdicts are alike, though the rewards differ with the lengths.
    let accuracy = "[rollout]\ndynamic_sampling = { metric = \"accuracy\", max_batches = 2 }\n\
                    [reward.parts.right]\nkind = \"regex\"\npattern = \"(never)\"\n\
                    [reward.parts.length]\nkind = \"overlong\"\nbuffer = 20\n";
    let ppo = "[rl]\nadvantage = \"gae\"\n[critic]\nlr = 1e-3\n";
    for more in [accuracy.to_string(), format!("{accuracy}[loss]\nentropy_coef = 0.1\n{ppo}")] {
        let steps = trains_and_resumes_with("idle", &more, |recipe| {
            drop(recipe["reward"].as_table_mut().unwrap().remove("rule"))
        });
        for m in &steps {
            assert!(number(m, "reward_std") > 0.0, "rewards that are alike prove nothing: {m}");
            let d = &m["dynamic_sampling"];
            assert_eq!((number(d, "groups_missing"), number(d, "groups_dropped")), (6.0, 12.0), "{d}");
            let (loss, norm, updates) = (number(m, "loss"), number(m, "grad_norm"), number(m, "optimizer_steps"));
            assert_eq!((loss, norm, updates), (0.0, 0.0, 0.0), "{m}");
            assert!(m.get("critic").is_none_or(|critic| number(critic, "optimizer_steps") == 0.0));
        }
    }
}

fn policies(rows: &[Value]) -> Vec<(String, String)> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_string();
    rows.iter().map(|row| (text(row, "phase"), text(row, "policy"))).collect()
}

#[test]
fn phases_train_and_resume() {
    let ladder = "[[phase]]\npolicy = \"layer:1\"\nsteps = 1\n[[phase]]\npolicy = \"layer:2\"\nfinal_norm = true\nsteps = 2\n\
                  [[phase]]\npolicy = \"ffn:2\"\n";
    let expected = [("internal", "layer:1"), ("internal", "normed:2"), ("internal", "normed:2"), ("internal", "ffn:2")];
    let steps = trains_and_resumes("ladder", ladder);
    assert_eq!(policies(&steps), expected.map(|(a, b)| (a.to_string(), b.to_string())));
    assert_eq!(
        steps.iter().map(|m| m["phase_end"].as_str()).collect::<Vec<_>>(),
        [Some("steps"), None, Some("steps"), None]
    );
    // A joint phase, in the middle of which the run is resumed, with everything that hangs on old log-probs.
    let joint = "[[phase]]\npolicy = \"attn:1\"\nsteps = 1\n[[phase]]\npolicy = \"final\"\nbeside = \"layer:2\"\nbeta = 0.5\n\
                 [rl]\nepochs = 2\n[loss]\nkind = \"gspo\"\ntop_entropy_quantile = 0.5\n";
    let steps = trains_and_resumes("joint", joint);
    assert_eq!(policies(&steps)[1], ("joint".to_string(), "final + 0.5 layer:2".to_string()));
    assert!(steps[0].get("beside").is_none());
    for m in &steps[1..] {
        assert_eq!((m["beside"]["policy"].as_str(), number(&m["beside"], "beta")), (Some("layer:2"), 0.5), "{m}");
        assert_eq!(number(&m["beside"], "tokens"), number(m, "tokens"));
    }
    // Updates after a step's first meet a layer that has moved; where all rewards are alike there is no gradient to move it.
    let moving: Vec<&Value> = steps[1..].iter().filter(|m| number(m, "grad_norm") > 0.0).collect();
    assert!(!moving.is_empty() && moving.iter().all(|m| number(&m["beside"], "approx_kl_k3") > 0.0), "{moving:?}");
}

#[test]
fn parameter_groups_train_and_resume() {
    let frozen = "[[optimizer.group]]\nlayers = \"1-2\"\nlr_scale = 0.0\n[[optimizer.group]]\nlayers = \"embedding\"\nlr_scale = 0.0\n\
                  [[optimizer.group]]\nlayers = \"3\"\nlr_scale = 0.1\n";
    let steps = trains_and_resumes("frozen", frozen);
    assert!(steps.iter().all(|m| number(m, "grad_norm") > 0.0));
}

fn model() -> Model {
    let init = InitConfig {
        hidden_size: 16,
        layers: 3,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        intermediate_size: 24,
        max_position_embeddings: 64,
        ..InitConfig::default()
    };
    let config = init.model_config(40).unwrap();
    let params = random_params(&config, &ParamLayout::new(&config), 0.3, 7);
    Model::new(config, params)
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

fn groups() -> (Vec<ResponseGroup>, LogProbs, PerToken<f64>) {
    let mut next = noise(3);
    let mut groups = Vec::new();
    for prompt in [4, 2, 5] {
        let mut responses = Vec::new();
        for length in [3, 7, 1, 5] {
            let ids: Vec<u32> = (0..length).map(|_| (next() * 40.0) as u32).collect();
            let advantage = 2.0 * next() - 1.0;
            let advantages = vec![advantage; length];
            responses.push(Response { ids, rollout_log_probs: vec![-3.0; length], advantages, masked: false });
        }
        groups.push(ResponseGroup { prompt: (0..prompt).map(|i| i * 7 % 40).collect(), responses });
    }
    let mut per_token = |low: f32, high: f32| -> LogProbs {
        let response =
            |r: &Response, next: &mut dyn FnMut() -> f32| r.ids.iter().map(|_| low + (high - low) * next()).collect();
        groups.iter().map(|g| g.responses.iter().map(|r| response(r, &mut next)).collect()).collect()
    };
    let (old, factors) = (per_token(-5.0, -2.0), per_token(0.0, 2.0));
    let exact = factors.iter().map(|g| g.iter().map(|r| r.iter().map(|f| f64::from(*f)).collect()).collect()).collect();
    (groups, old, exact)
}

#[test]
fn the_gradient_of_every_loss_is_the_same_for_every_micro_batch_size() {
    let (model, (groups, old, factors)) = (model(), groups());
    for kind in [LossKind::PpoClip, LossKind::Gspo, LossKind::Cispo] {
        for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean] {
            for policy in ["final", "layer:2"] {
                let loss =
                    LossConfig { kind, aggregation, clip_high: 3.0, entropy_coef: 0.01, ..LossConfig::default() };
                let mut all = Vec::new();
                for micro_batch_tokens in [1000, 20, 1] {
                    let policy = InternalPolicy::parse(policy, 3).unwrap();
                    let settings = UpdateSettings {
                        policy,
                        beside: None,
                        trained: &model.layout.trained_by(policy.tap()),
                        temperature: 0.9,
                        loss: &loss,
                        max_new_tokens: 8,
                        micro_batch_tokens,
                        keep: Keep::Activations,
                    };
                    let before = Before { old: Some(&old), factors: Some(&factors), ..Before::default() };
                    let (mut ws, mut grads) = (Workspace::new(&model), Array::from(vec![0f32; model.layout.len()]));
                    let g = mini_batch_gradient(&model, &mut ws, &groups, 0..3, &settings, before, &mut grads).unwrap();
                    all.push((g.loss, grads.into_f32()));
                }
                let norm = all[0].1.iter().map(|g| g.abs()).fold(0.0, f32::max);
                assert!(norm > 1e-4, "a gradient of nothing proves nothing: {norm}");
                for (loss, grads) in &all[1..] {
                    assert!((loss - all[0].0).abs() < 1e-5 * (1.0 + loss.abs()), "{kind:?} {loss} {}", all[0].0);
                    let worst = grads.iter().zip(&all[0].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 2e-5 * norm.max(1.0), "{kind:?} {aggregation:?} {policy}: {worst} of {norm}");
                }
            }
        }
    }
}

/// Loss, gradient and statistics of one mini-batch of three groups.
fn gradient_of(
    model: &Model,
    groups: &[ResponseGroup],
    before: Before<'_>,
    loss: &LossConfig,
    micro_batch_tokens: usize,
) -> (f64, Vec<f32>, bupo::rl::loss::LossMetrics) {
    let policy = InternalPolicy::Final;
    let settings = UpdateSettings {
        policy,
        beside: Some(Beside { layer: LayerIndex::from_one_based(2, 3).unwrap(), beta: 0.5 }),
        trained: &model.layout.trained_by(policy.tap()),
        temperature: 0.9,
        loss,
        max_new_tokens: 8,
        micro_batch_tokens,
        keep: Keep::Activations,
    };
    let (mut ws, mut grads) = (Workspace::new(model), Array::from(vec![0f32; model.layout.len()]));
    let g = mini_batch_gradient(model, &mut ws, groups, 0..3, &settings, before, &mut grads).unwrap();
    (g.loss, grads.into_f32(), g.stats.finish().unwrap())
}

#[test]
fn the_gradient_is_that_of_a_batch_without_the_masked_responses() {
    let (model, (mut whole, old, factors)) = (model(), groups());
    // The second response of every group, 7 tokens of 16, and of the last group all but the third.
    let masked = |group: usize, response: usize| response == 1 || group == 2 && response != 2;
    let mut without = whole.clone();
    let (mut few, mut few_factors) = (old.clone(), factors.clone());
    for (g, group) in whole.iter_mut().enumerate() {
        group.responses.iter_mut().enumerate().for_each(|(r, response)| response.masked = masked(g, r));
        let keep = || (0..4).map(|r| !masked(g, r));
        let (mut a, mut b, mut c) = (keep(), keep(), keep());
        without[g].responses.retain(|_| a.next().unwrap());
        few[g].retain(|_| b.next().unwrap());
        few_factors[g].retain(|_| c.next().unwrap());
    }
    for aggregation in [
        Aggregation::TokenMean,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm,
    ] {
        for kind in [LossKind::PpoClip, LossKind::Gspo] {
            let loss = LossConfig { kind, aggregation, kl_coef: 0.1, entropy_coef: 0.01, ..LossConfig::default() };
            let before = |old, factors| Before {
                old: Some(old),
                old_beside: Some(old),
                reference: Some(old),
                factors: Some(factors),
            };
            let a = gradient_of(&model, &whole, before(&old, &factors), &loss, 20);
            let b = gradient_of(&model, &without, before(&few, &few_factors), &loss, 20);
            assert!(a == b, "{kind:?} {aggregation:?}: {} {}, {:?} {:?}", a.0, b.0, a.2, b.2);
        }
    }
    // By hand: where nothing has moved the loss is minus the mean advantage, of 3 + 1 + 5 tokens twice and one of the last group,
    // and again a half of that from the policy beside.
    let (loss, _, stats) = gradient_of(&model, &whole, Before::default(), &LossConfig::default(), 20);
    let sum: f64 = whole.iter().flat_map(ResponseGroup::seen).flat_map(|r| &r.advantages).map(|a| f64::from(*a)).sum();
    assert_eq!(stats.tokens, 19);
    assert!((loss + 1.5 * sum / 19.0).abs() < 1e-6, "{loss} {sum}");
}

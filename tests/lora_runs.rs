//! Adapters through the binary: trained in two phases, stopped and resumed, moved, merged and compared.

mod common;

use bupo::model::Model;
use bupo::model::weights::load_adapter;
use common::{bupo, copy, json, ok, rows, text};
use safetensors::SafeTensors;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// A run of seconds: BuPO on the first layer for two steps, then two of the final policy, with a KL to the start.
const LORA: &str =
    "[lora]\nrank = 3\nalpha = 6.0\ntargets = [\"q_proj\", \"v_proj\", \"o_proj\", \"up_proj\", \"down_proj\"]\n";

fn recipe(dir: &Path) -> PathBuf {
    let path = dir.join("tiny-lora.toml");
    let tiny = include_str!("fixtures/tiny.toml").replace("checkpoint_every = 2", "checkpoint_every = 1");
    fs::write(&path, tiny + LORA).unwrap();
    path
}

fn step(run: &Path, n: usize) -> PathBuf {
    run.join(format!("checkpoints/step-{n:06}"))
}

fn failure(args: &[&str]) -> String {
    let output = bupo(args);
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn adapter(run: &Path, n: usize) -> Model {
    let mut model = Model::open(&run.join("base")).unwrap();
    load_adapter(&step(run, n), &mut model).unwrap();
    model
}

#[test]
fn a_run_trains_adapters_alone_and_goes_on_to_the_same_bytes_wherever_its_folder_is() {
    let root = tempfile::tempdir().unwrap();
    let (recipe, run) = (recipe(root.path()), root.path().join("run"));
    ok(&["train", text(&recipe), "--dir", text(&run)]);
    let at: Vec<Model> = (0..=4).map(|n| adapter(&run, n)).collect();
    let (layout, trainable) = (&at[0].layout, at[0].layout.trainable());
    let b_is_zero = layout.trainable_tensors().iter().filter(|t| t.name.ends_with("lora_B.weight"));
    assert!(
        b_is_zero.clone().count() == 15 && b_is_zero.clone().all(|t| at[0].params[t.range()].iter().all(|x| *x == 0.0))
    );
    for n in 1..=4 {
        for (i, layer) in layout.adapter.as_ref().unwrap().layers.iter().enumerate() {
            let moved = at[n].params[layer.range()] != at[n - 1].params[layer.range()];
            // The first two steps train layer 1's policy: adapters above it are the same to the bit.
            assert_eq!(moved, n > 2 || i == 0, "step {n}, layer {}", i + 1);
        }
        assert_eq!(at[n].params[..trainable.start], at[0].params[..trainable.start]);
    }
    let state = fs::read(step(&run, 4).join("trainer_state.safetensors")).unwrap();
    let state = SafeTensors::deserialize(&state).unwrap();
    assert_eq!(state.tensor("m").unwrap().data().len(), 4 * trainable.len());
    for row in rows(&run.join("metrics.jsonl")) {
        let difference = row["rollout_log_prob_difference"]["max"].as_f64().unwrap();
        assert!(difference < 2e-5, "{difference}");
        // The first mini-batch of the run meets the base itself.
        assert!(row["kl_reference"].as_f64().is_none_or(|kl| kl.abs() < 1.0), "{row}");
    }

    // Stopped after step 1, moved, and resumed in the other phase's middle.
    let moved = root.path().join("moved");
    copy(&run, &moved);
    for n in 2..=4 {
        fs::remove_dir_all(step(&moved, n)).unwrap();
    }
    fs::rename(&run, root.path().join("gone")).unwrap();
    let run = root.path().join("gone");
    ok(&["train", text(&moved), "--resume"]);
    for file in ["adapter_model.safetensors", "trainer_state.safetensors"] {
        let read = |run: &Path| fs::read(step(run, 4).join(file)).unwrap();
        assert!(read(&moved) == read(&run), "{file} differs after resuming");
    }
}

#[test]
fn every_verb_opens_an_adapter_and_merge_makes_one_model_of_it() {
    let root = tempfile::tempdir().unwrap();
    let (recipe, run) = (recipe(root.path()), root.path().join("run"));
    ok(&["train", text(&recipe), "--dir", text(&run), "--set", "bupo.steps=0"]);
    let (last, merged) = (step(&run, 4), root.path().join("merged"));
    ok(&["merge", text(&last), "--out", text(&merged)]);
    assert!(failure(&["merge", text(&last), "--out", text(&merged)]).contains("is there already"));
    assert!(failure(&["merge", text(&merged), "--out", "x"]).contains("no adapter"));

    let samples = root.path().join("samples.jsonl");
    let plain = ["--plain", "{problem}"];
    ok(&[&["generate", text(&last), "--prompt", "2+2=", "-n", "3", "--out", text(&samples)], &plain[..]].concat());
    let scores = |model: &Path| {
        let out = root.path().join("scores.jsonl");
        ok(&[&["score", text(model), "--data", text(&samples), "--out", text(&out)], &plain[..]].concat());
        let values = rows(&out).into_iter().flat_map(|row| row["log_probs"].as_array().unwrap().clone());
        values.map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let (beside, one) = (scores(&last), scores(&merged));
    let worst = beside.iter().zip(&one).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-5 && !beside.is_empty(), "{worst}");
    let moved = beside.iter().zip(&scores(&run.join("base"))).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(moved > 100.0 * worst, "{moved}");
    let analysis = root.path().join("analysis");
    ok(&[&["analyze", text(&last), "--data", text(&samples), "--out", text(&analysis)], &plain[..]].concat());

    // From the start to the end: what an adapter moved, and only where it lies.
    let diff = root.path().join("diff");
    ok(&["diff", text(&step(&run, 0)), text(&last), "--out", text(&diff)]);
    let diff = json(&diff.join("diff.json"));
    for layer in diff["per_layer"].as_array().unwrap() {
        for (name, change) in layer["tensors"].as_object().unwrap() {
            let target = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].iter().any(|t| name.contains(t));
            assert_eq!(change["changed"].as_f64().unwrap() > 0.0, target, "{name}: {change}");
        }
    }
    assert_eq!(diff["embedding"]["changed"].as_f64(), Some(0.0));

    // Going on from an adapter: merged first, whether all of it is trained or an adapter of its own.
    let more = root.path().join("more.toml");
    let shape = include_str!("fixtures/tiny.toml");
    let (before, after) = (shape.find("[model.init]").unwrap(), shape.find("[data.arithmetic]").unwrap());
    let (warm, rollout) = (shape.find("[warmup]").unwrap(), shape.find("[rollout]").unwrap());
    let model = format!("[model]\npath = {:?}\n", text(&last));
    let whole = [&shape[..before], &model, &shape[after..warm], &shape[rollout..]].concat();
    for (name, lora) in [("full", ""), ("lora", LORA)] {
        fs::write(&more, format!("{whole}\n{lora}")).unwrap();
        let run = root.path().join(name);
        ok(&["train", text(&more), "--dir", text(&run), "--set", "rl.steps=1", "--set", "bupo.steps=0"]);
        let base = if lora.is_empty() { step(&run, 0) } else { run.join("base") };
        assert_eq!(Model::open(&base).unwrap().params, Model::open(&merged).unwrap().params, "{name}");
    }
}

#[test]
fn beside_a_critic_in_bf16_with_recompute_and_frozen_groups() {
    let root = tempfile::tempdir().unwrap();
    let (path, run) = (recipe(root.path()), root.path().join("run"));
    let mut command = vec!["train", text(&path), "--dir", text(&run)];
    for set in [
        "compute=bf16",
        "bupo.steps=0",
        "rl.steps=2",
        "rl.advantage=gae",
        "rl.recompute=true",
        "critic={ lr = 1e-3 }",
        "phase=[{ policy = \"final\", beside = \"layer:2\", beta = 0.5 }]",
        "optimizer.group=[{ layers = \"2\", lr_scale = 0.0 }]",
    ] {
        command.extend(["--set", set]);
    }
    ok(&command);
    let (first, last) = (adapter(&run, 0), adapter(&run, 2));
    for (i, layer) in first.layout.adapter.as_ref().unwrap().layers.iter().enumerate() {
        assert_eq!(first.params[layer.range()] != last.params[layer.range()], i != 1, "layer {}", i + 1);
    }
    // The critic is a model of its own, whole.
    let critic = |n: usize| Model::open_value_model(&step(&run, n).join("critic")).unwrap();
    let p = &critic(0).layout.layers[2].down;
    assert!(critic(0).params[p.clone()] != critic(2).params[p.clone()]);
}

#[test]
fn supervised_fine_tuning_trains_an_adapter_and_goes_on_to_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let (model, data) = (root.path().join("model"), root.path().join("rows.jsonl"));
    ok(&[
        "train",
        text(&recipe(root.path())),
        "--dir",
        text(&root.path().join("run")),
        "--set",
        "rl.steps=0",
        "--set",
        "bupo.steps=0",
    ]);
    copy(&root.path().join("run/base"), &model);
    let lines = (0..12).map(|i| json!({"prompt": format!("{i}+1="), "completion": "\\boxed{7}"}).to_string() + "\n");
    fs::write(&data, lines.collect::<String>()).unwrap();
    let sft = |out: &Path, more: &[&str]| {
        let base = [
            "sft",
            text(&model),
            "--data",
            text(&data),
            "--out",
            text(out),
            "--plain",
            "{problem}",
            "--max-length",
            "64",
        ];
        let fast =
            ["--lr", "1e-2", "--checkpoint-every", "2", "--keep-checkpoints", "9", "--lora", "4", "--lora-targets"];
        ok(&[&base[..], &fast, &["q_proj,down_proj"], more].concat())
    };
    let (whole, cut) = (root.path().join("whole"), root.path().join("cut"));
    assert!(sft(&whole, &[]).contains("opens with PEFT"));
    let metrics = rows(&whole.join("metrics.jsonl"));
    let loss = |at: usize| metrics[at]["loss"].as_f64().unwrap();
    assert!(metrics.len() == 6 && loss(5) < 0.9 * loss(0), "{metrics:?}");
    let config = json(&step(&whole, 6).join("adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(8)));
    assert_eq!(
        config["base_model_name_or_path"],
        json!(text(&model)),
        "the weights are where they were: no copy of them"
    );
    copy(&whole, &cut);
    for n in [4, 6] {
        fs::remove_dir_all(step(&cut, n)).unwrap();
    }
    sft(&cut, &["--resume"]);
    for file in ["adapter_model.safetensors", "trainer_state.safetensors"] {
        let read = |run: &Path| fs::read(step(run, 6).join(file)).unwrap();
        assert!(read(&cut) == read(&whole), "{file} differs after resuming");
    }
    let all =
        ["sft", text(&model), "--data", text(&data), "--out", text(&cut), "--plain", "{problem}", "--max-length", "64"];
    let error = failure(&[&all[..], &["--lr", "1e-2", "--resume"]].concat());
    assert!(error.contains("lora was"), "{error}");
    let error = failure(&[&all[..], &["--lora", "4", "--lora-targets", "lm_head"]].concat());
    assert!(error.contains("lm_head") && error.contains("q_proj"), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_refused_before_anything_runs() {
    let root = tempfile::tempdir().unwrap();
    let recipe = recipe(root.path());
    let dir = root.path().join("run");
    for (set, expected) in [
        ("lora.rank=0", "lora.rank = 0"),
        ("lora.alpha=-1.0", "lora.alpha = -1"),
        ("lora.targets=[]", "lora.targets = []"),
        ("lora.targets=[\"lm_head\"]", "lm_head"),
        ("lora.targets=[\"q_proj\", \"q_proj\"]", "there twice"),
        ("lora.layers=\"2-9\"", "from 1 to 3"),
        ("lora.layers=\"2-3\"", "no adapter below it"),
        ("lora.dropout=0.1", "dropout"),
        ("optimizer.group=[{ layers = \"embedding\", lr_scale = 0.1 }]", "only adapters are trained"),
        ("optimizer.group=[{ layers = \"1-3\", lr_scale = 0.0 }]", "nothing is left to train"),
    ] {
        let error = failure(&["train", text(&recipe), "--dir", text(&dir), "--set", set]);
        assert!(error.contains(expected), "{set}: {error}");
        assert!(!dir.exists(), "{set} left a folder");
    }
}

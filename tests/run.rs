//! The binary as a person uses it: a whole small run, its resumption, every verb on what it wrote, and bad input.

mod common;

use common::{bupo, copy, fails, ok, rows, text};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A run of seconds: BuPO on the first layer for two steps, then two steps of GRPO.
const RECIPE: &str = include_str!("fixtures/tiny.toml");

fn recipe(dir: &Path) -> PathBuf {
    let path = dir.join("tiny.toml");
    fs::write(&path, RECIPE).unwrap();
    path
}

/// One run for all tests: its folder.
fn run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, dir) = RUN.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        ok(&["train", text(&recipe(root.path())), "--dir", text(&dir)]);
        (root, dir)
    });
    dir
}

fn model() -> PathBuf {
    run().join("checkpoints/step-000004")
}

/// Cuts a run back to its checkpoint of `step`, as a kill before the next one would leave it but for the later rows.
fn forget_after(dir: &Path, step: usize, checkpoints: &[usize]) {
    for later in checkpoints.iter().filter(|s| **s > step) {
        fs::remove_dir_all(dir.join(format!("checkpoints/step-{later:06}"))).unwrap();
    }
}

/// Bytes of a run's event files, in the order in which TensorBoard reads them.
fn events(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir.join("tensorboard")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn contains(bytes: &[u8], tag: &str) -> bool {
    bytes.windows(tag.len()).any(|window| window == tag.as_bytes())
}

/// A step's metrics without its clock.
fn timeless(mut row: Value) -> Value {
    for key in ["seconds", "rollout_tokens_per_second", "update_tokens_per_second"] {
        row.as_object_mut().unwrap().remove(key);
    }
    row
}

#[test]
fn a_run_leaves_everything_behind_that_it_promises() {
    let dir = run();
    for file in ["recipe.toml", "manifest.json", "metrics.jsonl", "completions.jsonl"] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let metrics = rows(&dir.join("metrics.jsonl"));
    let phases: Vec<_> =
        metrics.iter().map(|m| (m["step"].as_u64(), m["phase"].as_str(), m["policy"].as_str())).collect();
    let internal = (Some("internal"), Some("layer:1"));
    let last = (Some("final"), Some("final"));
    let expected: Vec<_> =
        [(1, internal), (2, internal), (3, last), (4, last)].map(|(s, (p, q))| (Some(s), p, q)).into();
    assert_eq!(phases, expected);
    for m in &metrics {
        for key in ["reward_mean", "entropy_policy", "entropy_final", "grad_norm", "reference_kl", "ratio_max", "loss"]
        {
            assert!(m[key].is_number(), "{key} in {m}");
        }
        assert!(m["rollout_log_prob_difference"]["max"].as_f64().unwrap() < 1e-4);
    }
    // The layer's entropy is not the final policy's: both are there, each under its own name.
    assert_ne!(metrics[0]["entropy_policy"], metrics[0]["entropy_final"]);
    let completions = rows(&dir.join("completions.jsonl"));
    assert_eq!(completions.len(), 4 * 6 * 4);
    assert!(completions.iter().all(|c| c["status"].is_string() && c["response"].is_string()));
    let analysis: Value =
        serde_json::from_slice(&fs::read(dir.join("analysis-before/analysis.json")).unwrap()).unwrap();
    assert_eq!(analysis["per_layer"].as_array().unwrap().len(), 3);
    for step in [0, 2, 4] {
        assert!(dir.join(format!("checkpoints/step-{step:06}/model.safetensors")).is_file());
    }
}

#[test]
fn a_run_looks_inside_at_the_same_tokens_every_few_steps() {
    let dir = run();
    let probe = rows(&dir.join("probe.jsonl"));
    // Before the first step, every third, and after the last.
    let seen: Vec<_> =
        probe.iter().map(|p| (p["step"].as_u64().unwrap(), p["policy"].as_str().unwrap(), &p["layer"])).collect();
    assert_eq!(seen, [(0, "layer:1", &json!(1)), (3, "final", &json!(1)), (4, "final", &json!(1))]);
    let metrics = rows(&dir.join("metrics.jsonl"));
    let looked: Vec<_> = metrics.iter().map(|m| m["seconds"]["probe"].is_number()).collect();
    assert_eq!(looked, [false, false, true, true]);
    let ends: Vec<_> = metrics.iter().map(|m| m["phase_end"].as_str()).collect();
    assert_eq!(ends, [None, Some("steps"), None, None]);
    for p in &probe {
        // The layer itself is as similar as can be and 0 away from itself.
        assert!(
            (p["cosine"][0].as_f64().unwrap() - 1.0).abs() < 1e-6 && p["kl"]["from"][0].as_f64().unwrap() < 1e-6,
            "{p}"
        );
        let kl = [&p["kl"]["to"], &p["kl"]["from"], &p["kl_to_final"], &p["cosine"]];
        for list in
            [&p["entropy"]["resid_post"], &p["entropy_change"]["ffn"], &p["residual_norm"]].into_iter().chain(kl)
        {
            assert!(list.as_array().unwrap().len() == 3 && list[2].is_number(), "{p}");
        }
        assert!(p["perplexity"].as_f64().unwrap() >= 1.0 && p["guard"].is_null(), "{p}");
        assert_eq!(p["tokens"], probe[0]["tokens"]);
    }
    // At step 0 it is the analysis before training, whose first responses it shares.
    let analysis: Value =
        serde_json::from_slice(&fs::read(dir.join("analysis-before/analysis.json")).unwrap()).unwrap();
    assert_eq!(probe[0]["tokens"], analysis["tokens"]);
    for (layer, l) in analysis["per_layer"].as_array().unwrap().iter().enumerate() {
        assert_eq!(probe[0]["entropy"]["ffn"][layer], l["entropy"]["ffn"]);
    }
    // TensorBoard's file has every number of every kind of row, the layers by name.
    let shown = &events(dir)[0];
    for tag in
        ["train/reward_mean", "train/seconds/probe", "train/rollout_log_prob_difference/max", "evaluation/avg_at_n"]
    {
        assert!(contains(shown, tag), "{tag}");
    }
    assert!(contains(shown, "probe/entropy/ffn/layer-03") && !contains(shown, "layer-04"));
    // The tokens are files that the other verbs read, and the perplexity is that of the scores.
    let root = tempfile::tempdir().unwrap();
    let (scores, references) = (root.path().join("scores.jsonl"), dir.join("probe/references.jsonl"));
    ok(&["score", text(&model()), "--data", text(&references), "--out", text(&scores)]);
    let log_probs: Vec<f64> = rows(&scores)
        .iter()
        .flat_map(|s| s["log_probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect::<Vec<_>>())
        .collect();
    let perplexity = (-log_probs.iter().sum::<f64>() / log_probs.len() as f64).exp();
    assert!((perplexity / probe[2]["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-5, "{perplexity}");
}

#[test]
fn the_guard_ends_the_internal_phase_early_and_a_resumed_run_remembers() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("guarded");
    // A learning rate that destroys: worse from the first step on, and patience for two.
    let settings = ["rl.lr=0.03", "bupo.steps=4", "bupo.stop=guard", "bupo.guard.patience=3", "probe.every=1"];
    let mut args = vec!["train", "RECIPE", "--dir", text(&dir)];
    settings.iter().for_each(|s| args.extend(["--set", s]));
    let recipe = recipe(root.path());
    args[1] = text(&recipe);
    let output = bupo(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        said.matches("step 3: the guard ends the internal phase 1 steps early, since the perplexity").count(),
        1,
        "{said}"
    );
    let metrics = rows(&dir.join("metrics.jsonl"));
    let phases: Vec<_> = metrics.iter().map(|m| (m["phase"].as_str().unwrap(), m["phase_end"].as_str())).collect();
    assert_eq!(phases, [("internal", None), ("internal", None), ("internal", Some("guard")), ("final", None)]);
    let probe = rows(&dir.join("probe.jsonl"));
    let judged: Vec<_> = probe.iter().map(|p| (p["guard"]["worse"].as_u64(), p["guard"]["stop"].as_bool())).collect();
    let expected = [(0, false), (1, false), (2, false), (3, true)].map(|(w, s)| (Some(w), Some(s)));
    assert_eq!(judged, [&expected[..], &[(None, None)]].concat());
    assert_eq!(probe[3]["guard"]["baseline"], probe[0]["perplexity"]);
    // Taken up before the decision, with half of the patience gone, and after it.
    for (from, checkpoints) in [(2, &[2, 4][..]), (0, &[2, 4])] {
        let again = root.path().join(format!("from-{from}"));
        copy(&dir, &again);
        forget_after(&again, from, checkpoints);
        ok(&["train", text(&again), "--resume"]);
        let same = |file: &str| fs::read(again.join(file)).unwrap() == fs::read(dir.join(file)).unwrap();
        assert!(same("probe.jsonl") && same("checkpoints/step-000004/model.safetensors"), "from {from}");
        let timeless_rows = |d: &Path| rows(&d.join("metrics.jsonl")).into_iter().map(timeless).collect::<Vec<_>>();
        assert_eq!(timeless_rows(&again), timeless_rows(&dir));
    }
    // Without the tokens that it looked at, a run does not go on as if nothing had happened.
    fs::remove_file(dir.join("probe/samples.jsonl")).unwrap();
    forget_after(&dir, 2, &[2, 4]);
    fails(&["train", text(&dir), "--resume"], &["probe/samples.jsonl"]);
}

#[test]
fn a_guard_ends_its_phase_of_a_list_and_the_next_begins() {
    let root = tempfile::tempdir().unwrap();
    let (dir, recipe) = (root.path().join("ladder"), recipe(root.path()));
    let phases = "phase=[{policy=\"layer:1\", steps=3, stop=\"guard\", guard={patience=2}}, {policy=\"layer:2\", steps=1}, \
                  {policy=\"final\"}]";
    let mut args = vec!["train", text(&recipe), "--dir", text(&dir)];
    ["rl.lr=0.03", "rl.steps=5", "bupo.steps=0", "probe.every=1", phases]
        .iter()
        .for_each(|s| args.extend(["--set", s]));
    ok(&args);
    let metrics = rows(&dir.join("metrics.jsonl"));
    let phases: Vec<_> = metrics.iter().map(|m| (m["policy"].as_str().unwrap(), m["phase_end"].as_str())).collect();
    // Worse from the first step on, and patience for one: the later phases keep their lengths and begin earlier.
    let last = ("final", None);
    let expected = [("layer:1", None), ("layer:1", Some("guard")), ("layer:2", Some("steps")), last, last];
    assert_eq!(phases, expected);
    // Between the first phase and the second, and before any.
    for from in [2, 0] {
        let again = root.path().join(format!("from-{from}"));
        copy(&dir, &again);
        forget_after(&again, from, &[2, 4, 5]);
        ok(&["train", text(&again), "--resume"]);
        let model = "checkpoints/step-000005/model.safetensors";
        assert!(fs::read(again.join(model)).unwrap() == fs::read(dir.join(model)).unwrap(), "from {from}");
    }
}

#[test]
fn the_probe_looks_at_the_users_own_texts_and_the_guard_at_the_divergence() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let (recipe, prompts, texts) = (recipe(root.path()), at("prompts.jsonl"), at("texts.jsonl"));
    // One that the model answers, and one that is answered.
    fs::write(&prompts, "{\"prompt\": \"1+2=\"}\n{\"prompt\": \"1+3=\", \"response\": \"1+3=4\"}\n").unwrap();
    fs::write(&texts, "{\"prompt\": \"2+2=\", \"response\": \"2+2=4\"}\n").unwrap();
    let data = format!("probe.data=[{:?}]", text(&prompts));
    let references = format!("probe.references=[{:?}]", text(&texts));
    let guarded = ["probe.every=1", "bupo.stop=guard", "bupo.steps=3", "rl.steps=3"];
    let train = |name: &str, more: &[&str]| {
        let mut args = vec!["train".to_string(), text(&recipe).into(), "--dir".into(), text(&at(name)).into()];
        guarded.iter().chain(more).for_each(|s| args.extend(["--set".into(), s.to_string()]));
        args
    };
    let args = train("none", &[&data]);
    fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), &["quantity", "probe.references"]);
    assert!(!at("none").exists());
    let args = train("run", &[&data, &references, "bupo.guard.quantity=kl", "bupo.guard.threshold=9.0"]);
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(rows(&at("run/probe/samples.jsonl")).len(), 2);
    assert_eq!(rows(&at("run/probe/references.jsonl")).len(), 1);
    let probe = rows(&at("run/probe.jsonl"));
    assert_eq!(probe.len(), 4);
    for p in &probe[..3] {
        let number = |v: &Value| v.as_f64().unwrap();
        // Layers 2 and 3, and the final policy, from layer 1.
        let mean = (number(&p["kl"]["from"][1]) + number(&p["kl"]["from"][2]) + number(&p["kl_to_final"][0])) / 3.0;
        assert!((number(&p["guard"]["value"]) - mean).abs() < 1e-12 && p["guard"]["quantity"] == "kl", "{p}");
        assert!(p["perplexity"].is_number());
    }
}

#[test]
fn a_run_under_the_mathematical_rule_logs_where_the_text_comparison_differs() {
    let model = model();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("math");
    let settings = ["reward.rule=math", "rl.steps=1", "bupo.steps=1", "warmup.max_steps=1"];
    let model = format!("model.path={}", text(&model));
    let mut args = vec!["train", "RECIPE", "--dir", text(&dir), "--set", &model];
    settings.iter().for_each(|s| args.extend(["--set", s]));
    let recipe = recipe(root.path());
    let without_init = fs::read_to_string(&recipe).unwrap();
    let (head, rest) = without_init.split_once("[model.init]").unwrap();
    let rest = rest.split_once("[data.arithmetic]").unwrap().1;
    fs::write(&recipe, format!("{head}[data.arithmetic]{rest}")).unwrap();
    args[1] = text(&recipe);
    ok(&args);
    let metrics = rows(&dir.join("metrics.jsonl"));
    let (completions, share) =
        (rows(&dir.join("completions.jsonl")), metrics[0]["boxed_disagreement"].as_f64().unwrap());
    // Where the model finds no box but says "answer is", or writes 07 for 7; every response is one of the 24.
    assert!((0.0..=1.0).contains(&share) && (share * completions.len() as f64).fract() < 1e-9, "{share}");
    // Under another rule nothing is compared, and nothing logged.
    assert!(rows(&run().join("metrics.jsonl"))[0].get("boxed_disagreement").is_none());
}

#[test]
fn a_resumed_run_equals_one_never_stopped_bit_for_bit() {
    let whole = run();
    let root = tempfile::tempdir().unwrap();
    for from in [2, 0] {
        // As a kill would leave it: later checkpoints missing, later rows and a torn line there.
        let dir = root.path().join(format!("from-{from}"));
        copy(whole, &dir);
        forget_after(&dir, from, &[2, 4]);
        fs::create_dir_all(dir.join("checkpoints/.tmp-step-000004-1")).unwrap();
        fs::write(dir.join("metrics.jsonl"), fs::read_to_string(dir.join("metrics.jsonl")).unwrap() + "{\"step\": 1")
            .unwrap();
        // By its recipe and by the folder itself.
        let name = if from == 0 { dir.clone() } else { dir.join("recipe.toml") };
        ok(&["train", text(&name), "--resume"]);
        for file in ["model.safetensors", "trainer_state.safetensors"] {
            let read = |d: &Path| fs::read(d.join("checkpoints/step-000004").join(file)).unwrap();
            assert!(read(&dir) == read(whole), "{file} after resuming from step {from}");
        }
        let metrics = |d: &Path| rows(&d.join("metrics.jsonl")).into_iter().map(timeless).collect::<Vec<_>>();
        assert_eq!(metrics(&dir), metrics(whole));
        assert_eq!(rows(&dir.join("completions.jsonl")), rows(&whole.join("completions.jsonl")));
        let probe = |d: &Path| fs::read_to_string(d.join("probe.jsonl")).unwrap();
        assert_eq!(probe(&dir), probe(whole));
        // A file for every start; that of the resumed run shows its own steps only.
        let (old, new) = (events(whole), events(&dir));
        assert_eq!((old.len(), new.len()), (1, 2));
        assert!(new[0] == old[0]);
        for tag in ["evaluation/pass_at_4", "train/reward_mean", "probe/final_entropy"] {
            assert!(contains(&old[0], tag) && contains(&new[1], tag), "{tag}");
        }
        assert!(!dir.join("checkpoints/.tmp-step-000004-1").exists());
    }
    let path = recipe(root.path());
    let dir = root.path().join("from-2");
    fails(&["train", text(&path), "--dir", text(&dir), "--resume", "--set", "rl.lr=1e-2"], &["recipe"]);
    fails(&["train", text(&path), "--dir", text(&dir)], &["already holds a run", "--resume"]);
    fails(&["train", text(&path), "--dir", text(&root.path().join("no")), "--resume"], &["no checkpoint"]);
}

#[test]
fn the_same_recipe_and_seed_give_the_same_bytes_and_another_seed_others() {
    let root = tempfile::tempdir().unwrap();
    let path = recipe(root.path());
    let train = |name: &str, set: &str| {
        let dir = root.path().join(name);
        ok(&["train", text(&path), "--dir", text(&dir), "--set", set]);
        fs::read(dir.join("checkpoints/step-000004/model.safetensors")).unwrap()
    };
    let again = train("again", "seed=3");
    assert!(again == fs::read(model().join("model.safetensors")).unwrap());
    assert!(again != train("other", "seed=4"));
}

#[test]
fn every_verb_works_on_the_checkpoint_and_they_agree_with_each_other() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let (model, out) = (model(), at("samples.jsonl"));
    let model = text(&model);
    for policy in ["final", "layer:2", "attn:1", "ffn:3"] {
        ok(&[
            "generate",
            model,
            "--prompt",
            "2+2=",
            "--plain",
            "{problem}",
            "-n",
            "3",
            "--max-new-tokens",
            "12",
            "--policy",
            policy,
            "--out",
            text(&out),
        ]);
        let samples = rows(&out);
        assert_eq!(samples.len(), 3);
        // What was sampled is scored without tokenizing it again, and the log-probs are the same.
        ok(&["score", model, "--data", text(&out), "--policy", policy, "--out", text(&at("scores.jsonl"))]);
        for (sample, score) in samples.iter().zip(rows(&at("scores.jsonl"))) {
            let values = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
            let (seen, scored) = (values(&sample["log_probs"]), values(&score["log_probs"]));
            assert_eq!(seen.len(), scored.len());
            assert!(seen.iter().zip(&scored).all(|(a, b)| (a - b).abs() < 1e-4), "{policy}: {seen:?} {scored:?}");
        }
        assert!(
            ok(&["generate", model, "--prompt", "2+2=", "--plain", "{problem}", "--policy", policy])
                == ok(&["generate", model, "--prompt", "2+2=", "--plain", "{problem}", "--policy", policy])
        );
    }
    let shown = ok(&["analyze", model, "--data", text(&out), "--out", text(&at("analysis"))]);
    assert!(shown.contains("◀") && shown.contains("Final policy"), "{shown}");
    let problems = at("problems.jsonl");
    fs::write(&problems, "{\"prompt\": \"1+2=\", \"answer\": \"3\"}\n{\"prompt\": \"2+2=\", \"answer\": 4}\n").unwrap();
    let verb = |out: &Path| {
        ok(&[
            "evaluate",
            model,
            "--data",
            text(&problems),
            "-n",
            "4",
            "-k",
            "1,2,4",
            "--rule",
            "exact",
            "--max-new-tokens",
            "16",
            "--plain",
            "{problem}",
            "--out",
            text(out),
        ])
    };
    verb(&at("evaluation"));
    let scores: Value = serde_json::from_slice(&fs::read(at("evaluation/evaluation.json")).unwrap()).unwrap();
    assert_eq!((&scores["problems"], rows(&at("evaluation/responses.jsonl")).len()), (&json!(2), 8));
    // Problems without responses are answered before they are analysed.
    ok(&[
        "analyze",
        model,
        "--data",
        text(&problems),
        "--out",
        text(&at("analysis-2")),
        "--plain",
        "{problem}",
        "--max-new-tokens",
        "8",
    ]);
    assert!(at("analysis-2/analysis.json").is_file());
}

#[test]
fn states_are_those_that_the_analysis_saw_and_add_up() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("rows.jsonl"), root.path().join("states.safetensors"));
    let lines: Vec<String> = rows(&run().join("completions.jsonl"))
        .iter()
        .take(70)
        .map(|row| json!({"prompt": row["prompt"], "response": row["response"]}).to_string())
        .collect();
    fs::write(&data, lines.join("\n")).unwrap();
    let all = "resid_pre:2,attn:2,resid_mid:2,ffn:2,resid_post:1-3,final";
    let model = model();
    let args = ["states", text(&model), "--data", text(&data), "--plain", "{problem}", "--out", text(&out)];
    ok(&[&args[..], &["--states", all]].concat());
    let bytes = fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.shape()[1], 32);
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let index = |name: &str| -> Vec<i64> {
        file.tensor(name).unwrap().data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let near = |a: &[f32], b: &[f32], c: &[f32]| a.iter().zip(b).zip(c).all(|((a, b), c)| (a + b - c).abs() < 1e-6);
    assert!(near(&numbers("resid_pre:2"), &numbers("attn:2"), &numbers("resid_mid:2")));
    assert!(near(&numbers("resid_mid:2"), &numbers("ffn:2"), &numbers("resid_post:2")));
    assert_eq!(numbers("resid_pre:2"), numbers("resid_post:1"));
    assert!(file.tensor("final").is_ok());
    // The mean length over the states that predict response tokens, as the analysis has it.
    let analysis = root.path().join("analysis");
    ok(&["analyze", text(&model), "--data", text(&data), "--plain", "{problem}", "--out", text(&analysis)]);
    let analysis: Value = serde_json::from_slice(&fs::read(analysis.join("analysis.json")).unwrap()).unwrap();
    let (row, position) = (index("row"), index("position"));
    ok(&[&args[..], &["--states", "resid_post:3", "--response"]].concat());
    let bytes = fs::read(&out).unwrap();
    let of_responses = SafeTensors::deserialize(&bytes).unwrap();
    let firsts: Vec<i64> = {
        let read = |name: &str| -> Vec<i64> {
            let data = of_responses.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let (row, position) = (read("row"), read("position"));
        (1..=70).map(|n| position[row.iter().position(|r| *r == n).unwrap()]).collect()
    };
    let lasts: Vec<i64> = (1..=70).map(|n| row.iter().filter(|r| **r == n).count() as i64 - 1).collect();
    let predicts = |i: usize| {
        let row = row[i] as usize - 1;
        (firsts[row] - 1..lasts[row]).contains(&position[i])
    };
    let lengths: Vec<f64> = numbers("resid_post:3")
        .chunks_exact(32)
        .enumerate()
        .filter(|(i, _)| predicts(*i))
        .map(|(_, state)| state.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt())
        .collect();
    let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
    let expected = analysis["per_layer"][2]["residual_norm"].as_f64().unwrap();
    assert!((mean / expected - 1.0).abs() < 1e-5, "{mean} {expected}");
    fails(&[&args[..], &["--states", "mlp:1"]].concat(), &["--states mlp:1", "resid_mid"]);
}

#[test]
fn an_internal_phase_moves_what_lies_below_its_layer_and_nothing_above() {
    let root = tempfile::tempdir().unwrap();
    let step = |n: usize| run().join(format!("checkpoints/step-{n:06}"));
    let between = |a: usize, b: usize| -> Value {
        let out = root.path().join(format!("{a}-{b}"));
        ok(&["diff", text(&step(a)), text(&step(b)), "--out", text(&out)]);
        serde_json::from_slice(&fs::read(out.join("diff.json")).unwrap()).unwrap()
    };
    let moved = |change: &Value| change["changed"].as_f64().unwrap() > 0.0;
    let parts = |d: &Value| -> Vec<bool> {
        let layers = d["per_layer"].as_array().unwrap().iter().map(|layer| &layer["all"]);
        [&d["embedding"]].into_iter().chain(layers).chain([&d["final_norm"]]).map(moved).collect()
    };
    // Two steps of BuPO on the first of three layers, then two of GRPO.
    assert_eq!(parts(&between(0, 2)), [true, true, false, false, false]);
    assert_eq!(parts(&between(2, 4)), [true; 5]);
}

#[test]
fn bad_input_ends_with_one_clear_error_and_no_half_written_output() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let (path, whole) = (recipe(root.path()), model());
    let data = at("rows.jsonl");
    fs::write(&data, "{\"input_ids\": [1, 2, 3, 4], \"response_start\": 2}\n").unwrap();
    let score = |model: &Path, data: &Path, policy: &str, expected: &[&str]| {
        let out = at("out.jsonl");
        fails(&["score", text(model), "--data", text(data), "--policy", policy, "--out", text(&out)], expected);
        assert!(!out.exists(), "a half-written output");
    };
    let broken = |name: &str, change: &dyn Fn(&Path)| {
        let dir = at(name);
        copy(&whole, &dir);
        change(&dir);
        dir
    };
    score(&at("nowhere"), &data, "final", &["nowhere"]);
    // A temperature whose reciprocal no logit survives.
    for verb in [
        &["score", text(&whole), "--data", text(&data), "--out", text(&at("out.jsonl"))][..],
        &["generate", text(&whole), "--prompt", "hi"],
    ] {
        for t in ["1e-40", "inf", "nan", "-1"] {
            fails(&[verb, &[&format!("--temperature={t}")]].concat(), &["--temperature", "expected", "at least 1e-20"]);
        }
    }
    score(&whole, &at("no.jsonl"), "final", &["no.jsonl"]);
    score(&whole, &data, "layer:40", &["40", "1..=3"]);
    score(&whole, &data, "layer:x", &["layer:N"]);
    let write = |text: &str| fs::write(&data, text).unwrap();
    write("");
    score(&whole, &data, "final", &["empty"]);
    write("{\"input_ids\": [1, 2, 300], \"response_start\": 2}\n");
    score(&whole, &data, "final", &["300", "258"]);
    write(&json!({"input_ids": vec![1; 97], "response_start": 2}).to_string());
    score(&whole, &data, "final", &["97 tokens", "96"]);
    write("{\"input_ids\": [1, 2, 3, 4], \"response_start\": 2}\n");
    let truncated = broken("truncated", &|dir| {
        let file = dir.join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    });
    score(&truncated, &data, "final", &["model.safetensors"]);
    let lying = broken("lying", &|dir| fs::write(dir.join("model.safetensors"), u64::MAX.to_le_bytes()).unwrap());
    score(&lying, &data, "final", &["model.safetensors"]);
    let shape = broken("shape", &|dir| {
        let file = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["intermediate_size"] = json!(64);
        fs::write(&file, config.to_string()).unwrap();
    });
    score(&shape, &data, "final", &["mlp", "48", "64"]);
    let foreign = broken("foreign", &|dir| fs::write(dir.join("config.json"), "{\"model_type\": \"mamba\"}").unwrap());
    score(&foreign, &data, "final", &["mamba", "qwen3"]);
    // Recipes: refused before anything is made.
    let dir = at("run");
    let train = |set: &str, expected: &[&str]| {
        fails(&["train", text(&path), "--dir", text(&dir), "--set", set], expected);
        assert!(!dir.exists(), "{set} left a folder behind");
    };
    train("bupo.layer=40", &["40", "1..=3"]);
    train("bupo.stepz=1", &["did you mean bupo.steps?"]);
    train("rollout.max_new_tokens=1000", &["context is 96"]);
    train("data.arithmetic.operators=\"/\"", &["operators"]);
    train("probe.references=[\"no.jsonl\"]", &["probe.references names no.jsonl"]);
    fails(&["train", text(&at("none.toml"))], &["none.toml", "arithmetic-bupo"]);
    // The model has no chat template, and says what to do.
    fails(&["generate", text(&whole), "--prompt", "hi", "--system", "s"], &["chat template", "plain"]);
    // A file where a folder should be.
    fs::write(at("file"), "").unwrap();
    fails(&["train", text(&path), "--dir", text(&at("file/run"))], &["file"]);
    assert_eq!(bupo(&["train"]).status.code(), Some(2));
}

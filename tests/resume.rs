//! Runs that are stopped, taken up again with more asked of them, or started where another run was; and a run's folder in place of a
//! recipe or a model.

mod common;

use common::{bupo, copy, fails, ok, rows, text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Four steps, the first two on the first layer, without a warm-up, and so without anything right; no evaluation.
fn recipe(dir: &Path) -> PathBuf {
    let mut table: toml::Table = include_str!("fixtures/tiny.toml").parse().unwrap();
    for key in ["warmup", "evaluate", "probe"] {
        table.remove(key);
    }
    let path = dir.join("tiny.toml");
    fs::write(&path, toml::to_string(&table).unwrap()).unwrap();
    path
}

/// One run for all tests, stopped after its first step: its folder.
fn stopped() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, dir) = RUN.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        // Its standard input has ended before it began.
        let output = bupo(&["train", text(&recipe(root.path())), "--dir", text(&dir), "--while-stdin"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("stopped after step 1"), "{said}");
        (root, dir)
    });
    dir
}

fn copied(root: &Path) -> PathBuf {
    let dir = root.join("run");
    copy(stopped(), &dir);
    dir
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_a_run_began_with_is_evaluated_on_its_first_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let dir = copied(root.path());
    let more = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        ok(&["train", text(&dir), "--resume"].into_iter().chain(sets).collect::<Vec<_>>())
    };
    let table = more(&["evaluate.problems=3", "evaluate.n=2", "evaluate.k=[1, 2]", "evaluate.every=1"]);
    let before = |key: &str| json(&dir.join("evaluation-before/evaluation.json"))[key].clone();
    assert!(before("model").as_str().unwrap().ends_with("step-000000"), "{}", before("model"));
    // The evaluation that was due when the run was stopped, those of the steps after it, and of the last step none beside the last.
    for step in 1..=4 {
        let path = dir.join(format!("evaluation-step-{step:06}/evaluation.json"));
        assert_eq!(path.is_file(), step < 4, "{}", path.display());
    }
    let first = json(&dir.join("evaluation-step-000001/evaluation.json"));
    assert!(first["model"].as_str().unwrap().ends_with("step-000001"));
    // The table's rewards are those of the whole run.
    let metrics = rows(&dir.join("metrics.jsonl"));
    let reward = |i: usize| format!("{:.3}", metrics[i]["reward_mean"].as_f64().unwrap());
    let line = table.lines().find(|line| line.contains(" reward ")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert!(cells.contains(&reward(0).as_str()) && cells.contains(&reward(3).as_str()), "{line}");
    assert!(table.contains("since it was resumed"));
    // Other sizes: both ends are evaluated anew, and compared with each other only.
    let table = more(&["evaluate.problems=3", "evaluate.n=4", "evaluate.k=[2, 4]"]);
    assert_eq!((before("responses_per_problem"), before("pass_at_k")[0]["k"].clone()), (4.into(), 2.into()));
    assert!(before("model").as_str().unwrap().ends_with("step-000000"));
    assert!(table.contains("Pass@4") && !table.contains("Pass@1 "), "{table}");
}

#[test]
fn a_run_goes_on_for_longer_as_if_it_had_been_longer_from_the_start() {
    let root = tempfile::tempdir().unwrap();
    let (whole, dir) = (root.path().join("whole"), copied(root.path()));
    let evaluate = ["--set", "evaluate.problems=3", "--set", "evaluate.n=1", "--set", "evaluate.k=[1]"];
    ok(&[&["train", text(&dir), "--resume"][..], &evaluate].concat());
    let rate = ["train", text(&dir), "--resume", "--set", "rl.steps=6", "--set", "optimizer.schedule=linear"];
    fails(&rate, &["optimizer.schedule was \"constant\" and is \"linear\""]);
    ok(&["train", text(&dir), "--resume", "--set", "rl.steps=6"]);
    ok(&["train", text(&recipe(root.path())), "--dir", text(&whole), "--set", "rl.steps=6"]);
    let weights = |d: &Path| fs::read(d.join("checkpoints/step-000006/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&dir));
    // What was evaluated at the end was evaluated after a step; the folder's recipe is the longer one.
    let model = |time: &str| json(&dir.join(format!("evaluation-{time}/evaluation.json")))["model"].to_string();
    assert!(model("step-000004").contains("step-000004"), "{}", model("step-000004"));
    assert!(fs::read_to_string(dir.join("recipe.toml")).unwrap().contains("steps = 6"));
    // A schedule that ends with the run is another one where the run is longer.
    let (path, bent) = (recipe(root.path()), root.path().join("bent"));
    ok(&["train", text(&path), "--dir", text(&bent), "--set", "optimizer.schedule=cosine"]);
    fails(&["train", text(&bent), "--resume", "--set", "rl.steps=6"], &["rl.steps was 4 and is 6", "constant"]);
}

#[test]
fn a_phase_leaves_a_checkpoint_and_a_missing_one_is_told_from_those_there() {
    let root = tempfile::tempdir().unwrap();
    let dir = copied(root.path());
    ok(&["train", text(&dir), "--resume", "--set", "run.checkpoint_every=0", "--set", "run.keep_checkpoints=1"]);
    let step = |n: usize| dir.join(format!("checkpoints/step-{n:06}"));
    // Where it was stopped is forgotten; where it began, where the policy's phase began and where it ended are there.
    assert_eq!([0, 1, 2, 3, 4].map(|n| step(n).is_dir()), [true, false, true, false, true]);
    fails(&["diff", text(&step(0)), text(&step(3))], &["holds no", "step-000000, step-000002, step-000004"]);
}

#[test]
fn the_best_checkpoint_stays_and_has_a_name() {
    let root = tempfile::tempdir().unwrap();
    let dir = copied(root.path());
    let keep = ["--set", "run.keep_best=true", "--set", "run.keep_checkpoints=1", "--set", "run.checkpoint_every=0"];
    let train = [&["train", text(&dir), "--resume"][..], &keep].concat();
    fails(&train, &["run.keep_best", "evaluate.every"]);
    let often = ["evaluate.every=1", "evaluate.problems=3", "evaluate.n=8", "evaluate.k=[1]"];
    let often: Vec<&str> = often.iter().flat_map(|set| ["--set", *set]).collect();
    let table = ok(&[&train[..], &often].concat());
    // Of all that was evaluated while its checkpoint was there: before, after each step, after the last.
    let times = ["before", "step-000001", "step-000002", "step-000003", "after"];
    let scores = times.map(|time| {
        json(&dir.join(format!("evaluation-{time}/evaluation.json")))["avg_at_n"]["mean"].as_f64().unwrap()
    });
    let best = (0..scores.len()).reduce(|best, step| if scores[step] > scores[best] { step } else { best }).unwrap();
    let step = |n: usize| dir.join(format!("checkpoints/step-{n:06}"));
    let link = dir.join("checkpoints/best");
    assert_eq!(fs::read_link(&link).unwrap(), PathBuf::from(format!("step-{best:06}")), "{scores:?}");
    // Beside it the first, the last, and the one that the phase began with.
    let there: Vec<usize> = (0..=4).filter(|n| step(*n).is_dir()).collect();
    let expected: BTreeSet<usize> = [0, 2, 4, best].into();
    assert_eq!(there, expected.into_iter().collect::<Vec<_>>());
    assert!(table.contains(&format!("(step {best}, Avg@8 {:.1} %)", 100.0 * scores[best])), "{table}");
    // It opens as the run's checkpoints do, asked as the run asked.
    let (of_link, of_step) = (root.path().join("link.jsonl"), root.path().join("step.jsonl"));
    for (model, out) in [(&link, &of_link), (&step(best), &of_step)] {
        ok(&["generate", text(model), "--prompt", "1+2=", "--max-new-tokens", "4", "--out", text(out)]);
    }
    assert_eq!(fs::read(&of_link).unwrap(), fs::read(&of_step).unwrap());
}

#[test]
fn a_run_stands_for_itself_and_for_its_last_checkpoint() {
    let (dir, root) = (stopped(), tempfile::tempdir().unwrap());
    let out = |name: &str| root.path().join(name);
    let (from_run, from_step) = (out("run.jsonl"), out("step.jsonl"));
    let generate = |model: &Path, to: &Path, more: &[&str]| {
        let args = ["generate", text(model), "--prompt", "1+2=", "--max-new-tokens", "4", "--out", text(to)];
        ok(&[&args[..], more].concat())
    };
    // Asked as the run asked it, though the model has no chat template.
    generate(dir, &from_run, &[]);
    generate(&dir.join("checkpoints/step-000001"), &from_step, &["--plain", "{problem}"]);
    assert_eq!(fs::read(&from_run).unwrap(), fs::read(&from_step).unwrap());
    fails(
        &["generate", text(dir), "--prompt", "1+2=", "--system", "s", "--out", text(&from_run)],
        &["chat template", "--plain"],
    );
    // Without checkpoints a folder is no other run's, and holds results that a new run would mix with its own.
    let empty = out("empty");
    fs::create_dir_all(empty.join("checkpoints")).unwrap();
    fs::copy(dir.join("recipe.toml"), empty.join("recipe.toml")).unwrap();
    fails(&["train", text(&empty), "--resume"], &[text(&empty), "no checkpoint"]);
    fs::copy(dir.join("metrics.jsonl"), empty.join("metrics.jsonl")).unwrap();
    fails(&["train", text(&empty)], &[text(&empty), "holds results of a run"]);
    // What differs is named.
    fails(&["train", text(dir), "--resume", "--set", "rl.lr=0.5"], &["rl.lr was 0.001 and is 0.5"]);
    // A recipe with its defaults, which is a recipe again.
    let printed = ok(&["train", text(dir), "--set", "rl.lr=0.5", "--print"]);
    let path = out("printed.toml");
    fs::write(&path, &printed).unwrap();
    assert_eq!(ok(&["train", text(&path), "--print"]), printed);
    assert!(printed.contains("lr = 0.5") && printed.contains("clip_high"), "{printed}");
}

#[test]
fn a_problem_that_comes_twice_in_a_step_is_sampled_twice() {
    let root = tempfile::tempdir().unwrap();
    let (path, data, dir) = (recipe(root.path()), root.path().join("two.jsonl"), root.path().join("twice"));
    fs::write(&data, "{\"problem\": \"1+1=\", \"answer\": 2}\n{\"problem\": \"1+2=\", \"answer\": 3}\n").unwrap();
    let mut table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    let files = toml::Value::Array(vec![text(&data).into()]);
    table.insert("data".into(), toml::Value::Table([("train".to_string(), files)].into_iter().collect()));
    table.remove("bupo");
    fs::write(&path, toml::to_string(&table).unwrap()).unwrap();
    ok(&["train", text(&path), "--dir", text(&dir), "--set", "rl.steps=1"]);
    let responses = rows(&dir.join("completions.jsonl"));
    assert_eq!(responses.len(), 6 * 4);
    let distinct: BTreeSet<&str> = responses.iter().map(|row| row["response"].as_str().unwrap()).collect();
    // An untrained model hardly says the same thing twice.
    assert!(distinct.len() > 20, "{} of 24 responses differ", distinct.len());
}

#[test]
fn an_analysis_leaves_no_map_of_an_earlier_one() {
    let (root, data) = (tempfile::tempdir().unwrap(), stopped().join("completions.jsonl"));
    let out = root.path().join("analysis");
    let analyze = |more: &[&str]| {
        let args = ["analyze", text(stopped()), "--data", text(&data), "--limit", "2", "--out", text(&out)];
        let output = bupo(&[&args[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    analyze(&["--tokens", "1"]);
    assert!(out.join("tokens.parquet").is_file());
    analyze(&["--lens", "final_norm"]);
    assert!(out.join("analysis.json").is_file() && !out.join("tokens.parquet").exists());
}

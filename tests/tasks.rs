//! Generated tasks, supervised fine-tuning and sweeps, as a person uses them: through the binary.

mod common;

use common::{fails, json, rows, said, text};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A run of seconds.
const RECIPE: &str = r#"
name = "tiny"
seed = 3
[model.init]
hidden_size = 32
layers = 2
heads = 2
kv_heads = 1
head_dim = 16
intermediate_size = 48
max_position_embeddings = 160
[data.modular]
modulus = 3
steps = [1, 2]
[prompt]
template = "plain"
text = "{problem}"
[warmup]
max_steps = 4
batch = 8
lr = 5e-3
probe_problems = 4
slips = 0.2
[rollout]
prompts_per_step = 4
group_size = 4
max_prompt_tokens = 64
max_new_tokens = 32
slots = 16
[reward]
rule = "exact"
[rl]
steps = 2
lr = 1e-3
mini_batch_prompts = 4
micro_batch_tokens = 512
[evaluate]
problems = 4
n = 2
k = [1, 2]
[[evaluate.set]]
name = "same"
[[evaluate.set]]
name = "longer"
problems = 3
[evaluate.set.task.modular]
modulus = 3
steps = [3, 3]
[[evaluate.set]]
name = "other"
task = { countdown = { level = 1 } }
[analysis]
responses = 2
"#;

/// Succeeds; all that it printed.
fn ok(args: &[&str]) -> String {
    let (out, error) = said(args);
    out + &error
}

/// The recipe's file, and one run of it: shared by all tests.
fn run() -> (&'static Path, &'static Path) {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf, PathBuf)> = OnceLock::new();
    let (_, recipe, dir) = RUN.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let (recipe, dir) = (root.path().join("tiny.toml"), root.path().join("run"));
        fs::write(&recipe, RECIPE).unwrap();
        ok(&["train", text(&recipe), "--dir", text(&dir)]);
        (root, recipe, dir)
    });
    (recipe, dir)
}

#[test]
fn a_run_on_a_generated_task_evaluates_every_named_set() {
    let (_, dir) = run();
    for time in ["before", "after"] {
        let evaluation = dir.join(format!("evaluation-{time}"));
        for (set, problems, rule) in [("same", 4, "exact"), ("longer", 3, "exact"), ("other", 4, "countdown")] {
            let result = json(&evaluation.join(set).join("evaluation.json"));
            assert_eq!((result["name"].as_str(), result["problems"].as_u64()), (Some(set), Some(problems)));
            // Another task is judged by its own rule.
            assert_eq!(result["reward_name"], rule);
        }
        assert_eq!(json(&evaluation.join("summary.json")).as_array().unwrap().len(), 3);
    }
    let longer = rows(&dir.join("evaluation-after/longer/problems.jsonl"));
    assert!(
        longer.iter().all(|p| p["messages"][0]["content"].as_str().unwrap().matches(';').count() == 5),
        "{longer:?}"
    );
    // Sets of two times compare like folders that bupo evaluate wrote.
    let shown = ok(&["compare", text(&dir.join("evaluation-before")), text(&dir.join("evaluation-after"))]);
    assert!(shown.contains("longer Avg@n") && shown.contains("other Avg@n"), "{shown}");
}

fn examples(path: &Path) {
    let lines = (0..24).map(|i| match i % 4 {
        0 => json!({"prompt": format!("{i}+1="), "completion": format!("{}", i + 1)}),
        1 => {
            json!({"messages": [{"role": "user", "content": format!("{i}?")}, {"role": "assistant", "content": "yes"}]})
        }
        2 => json!({"text": format!("line {i}")}),
        _ => json!({"prompt": format!("{i}+2=")}),
    });
    fs::write(path, lines.map(|l| l.to_string() + "\n").collect::<String>()).unwrap();
}

#[test]
fn fine_tuning_learns_counts_and_resumes_bit_for_bit() {
    let model = run().1.join("checkpoints/step-000002");
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let data = at("rows.jsonl");
    examples(&data);
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
            "--epochs",
            "4",
            "--batch",
            "4",
            "--lr",
            "3e-3",
            "--max-length",
            "64",
            "--eval-share",
            "0.2",
            "--checkpoint-every",
            "3",
            "--keep-checkpoints",
            "9",
        ];
        ok(&[&base, more].concat())
    };
    let whole = at("whole");
    let said = sft(&whole, &[]);
    assert!(said.contains("24 rows: ") && said.contains("6 without a response"), "{said}");
    let metrics = rows(&whole.join("metrics.jsonl"));
    let steps = metrics.len() - 1;
    let (first, last) = (&metrics[0], &metrics[steps]);
    assert!(first["eval_loss"].as_f64() > last["eval_loss"].as_f64(), "{first} {last}");
    assert!(metrics[1]["loss"].as_f64() > last["loss"].as_f64() && last["entropy"].is_number());
    let step = |dir: &Path, n: usize| dir.join(format!("checkpoints/step-{n:06}"));
    assert!(step(&whole, steps).join("config.json").is_file());
    // As a kill after the first checkpoint would leave it.
    let cut = at("cut");
    fs::create_dir_all(cut.join("checkpoints")).unwrap();
    fs::create_dir_all(step(&cut, 3)).unwrap();
    for file in fs::read_dir(step(&whole, 3)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), step(&cut, 3).join(file.file_name())).unwrap();
    }
    fs::copy(whole.join("metrics.jsonl"), cut.join("metrics.jsonl")).unwrap();
    sft(&cut, &["--resume"]);
    for file in ["model.safetensors", "trainer_state.safetensors"] {
        assert!(
            fs::read(step(&cut, steps).join(file)).unwrap() == fs::read(step(&whole, steps).join(file)).unwrap(),
            "{file}"
        );
    }
    assert_eq!(timeless(&cut, ""), timeless(&whole, ""));
    // Micro-batches change memory, not what is learned: the same loss to rounding.
    let small = at("small");
    sft(&small, &["--micro-batch-tokens", "16", "--recompute", "--max-steps", "2"]);
    let loss = |dir: &Path, row: usize| rows(&dir.join("metrics.jsonl"))[row]["loss"].as_f64().unwrap();
    assert!((loss(&small, 1) - loss(&whole, 1)).abs() < 1e-5 && (loss(&small, 2) - loss(&whole, 2)).abs() < 1e-4);
    // Other settings, or other examples, do not go on with it.
    let base = ["sft", text(&model), "--out", text(&cut), "--plain", "{problem}", "--resume", "--max-length", "64"];
    fails(&[&base[..], &["--data", text(&data)]].concat(), &["lr was 0.003", "epochs was 4"]);
    fails(&["sft", text(&model), "--data", text(&data), "--out", text(&cut)], &["already holds a run", "--resume"]);
}

#[test]
fn bad_examples_end_with_one_clear_error() {
    let model = run().1.join("checkpoints/step-000002");
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (root.path().join("rows.jsonl"), root.path().join("out"));
    let sft = |content: &str, more: &[&str], expected: &[&str]| {
        fs::write(&data, content).unwrap();
        let base = [
            "sft",
            text(&model),
            "--data",
            text(&data),
            "--out",
            text(&out),
            "--plain",
            "{problem}",
            "--max-length",
            "64",
        ];
        fails(&[&base[..], more].concat(), expected);
        assert!(!out.join("checkpoints").exists(), "{content} left a folder behind");
    };
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    sft("", &[], &["empty"]);
    sft(&format!("{good}{{\"prompt\": "), &[], &["rows.jsonl line 2"]);
    sft(&format!("{good}{{\"messages\": [{{\"role\": \"user\"}}]}}"), &[], &["line 2", "role, content"]);
    sft("{\"prompt\": \"a\"}", &[], &["no example to train on"]);
    sft(&json!({"prompt": "x".repeat(100), "completion": "b"}).to_string(), &[], &["no example to train on"]);
    sft(
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"b\"}]}",
        &[],
        &["row 1", "begins with the assistant"],
    );
    sft(good, &["--eval-share", "1.5"], &["--eval-share 1.5"]);
    sft(good, &["--batch", "0"], &["--batch 0"]);
    sft(good, &["--lr", "nan"], &["--lr NaN"]);
    fails(
        &[
            "sft",
            text(&model),
            "--data",
            text(&data),
            "--out",
            text(&out),
            "--plain",
            "{problem}",
            "--max-length",
            "1000",
        ],
        &["context is 160"],
    );
    let of_chats =
        ["sft", text(&model), "--data", text(&data), "--out", text(&out), "--system", "s", "--max-length", "64"];
    fails(&of_chats, &["chat template"]);
    fails(&["sft", text(&model), "--data", "/nowhere.jsonl", "--out", text(&out)], &["/nowhere.jsonl"]);
}

fn sweep_file(dir: &Path, variants: &str) -> PathBuf {
    let path = dir.join("sweep.toml");
    fs::write(&path, format!("name = \"s\"\nbase = {:?}\nseeds = [1, 2]\n{variants}", text(run().0))).unwrap();
    path
}

#[test]
fn a_sweep_runs_compares_and_goes_on_and_a_failing_run_stops_no_other() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("sweep");
    let file = sweep_file(
        root.path(),
        "[[variant]]\nname = \"grpo\"\n[[variant]]\nname = \"rloo\"\nset = [\"rl.advantage=rloo\"]\n\
         [[variant]]\nname = \"broken\"\nset = [\"bupo={layer=9,steps=1}\"]\n",
    );
    fails(&["sweep", text(&file), "--dir", text(&dir), "--jobs", "2"], &["2 of 6 runs failed"]);
    let result = json(&dir.join("sweep.json"));
    assert_eq!((&result["sets"], &result["threads"]), (&json!(["longer", "other", "same"]), &json!(1)));
    let status = |variant: usize| {
        let runs = result["variants"][variant]["runs"].as_array().unwrap();
        runs.iter().map(|r| r["status"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!([status(0), status(1), status(2)], [["finished"; 2], ["finished"; 2], ["failed"; 2]]);
    let error = result["variants"][2]["runs"][0]["error"].as_str().unwrap();
    assert!(error.contains("bupo.layer = 9") && error.contains("1..=2"), "{error}");
    // The table's numbers are those of the runs' folders.
    for (i, variant) in ["grpo", "rloo"].iter().enumerate() {
        let one = |seed: usize| {
            let path = dir.join(format!("{variant}/seed-{seed}/evaluation-after/same/evaluation.json"));
            json(&path)["avg_at_n"]["mean"].as_f64().unwrap()
        };
        let scores = result["variants"][i]["scores"].as_array().unwrap().iter().find(|s| s["set"] == "same").unwrap();
        assert!((scores["after"]["mean"].as_f64().unwrap() - (one(1) + one(2)) / 2.0).abs() < 1e-12);
        assert_eq!(scores["difference"].is_null(), i == 0);
    }
    let markdown = fs::read_to_string(dir.join("sweep.md")).unwrap();
    assert!(markdown.contains("**") && markdown.contains("broken seed 1 failed"), "{markdown}");
    assert_eq!(fs::read_to_string(dir.join("sweep.csv")).unwrap().lines().count(), 1 + 2 * 3);
    // Once mended, finished runs are kept as they are and only the others begin.
    let before = fs::metadata(dir.join("grpo/seed-1/metrics.jsonl")).unwrap().modified().unwrap();
    let file = sweep_file(
        root.path(),
        "[[variant]]\nname = \"grpo\"\n[[variant]]\nname = \"rloo\"\nset = [\"rl.advantage=rloo\"]\n\
         [[variant]]\nname = \"broken\"\nset = [\"bupo={layer=2,steps=1}\"]\n",
    );
    let said = ok(&["sweep", text(&file), "--dir", text(&dir)]);
    assert!(said.contains("broken seed 2: begins") && !said.contains("grpo seed 1: begins"), "{said}");
    assert_eq!(fs::metadata(dir.join("grpo/seed-1/metrics.jsonl")).unwrap().modified().unwrap(), before);
    // A folder of another recipe is not taken for this one's.
    fails(&["sweep", text(&file), "--dir", text(&dir), "--set", "rl.lr=1e-2"], &["another recipe", "--dir"]);
}

#[test]
fn an_interrupted_sweep_saves_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("sweep");
    let file = sweep_file(root.path(), "[[variant]]\nname = \"one\"\nset = [\"rl.steps=60\"]\n");
    let args = ["sweep", text(&file), "--dir", text(&dir), "--threads", "2"];
    let mut child = common::binary().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = dir.join("one/seed-1/metrics.jsonl");
    let started = Instant::now();
    while fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let result = json(&dir.join("sweep.json"));
    let runs = result["variants"][0]["runs"].as_array().unwrap();
    assert!(runs.iter().all(|r| r["status"] == "pending" && r["error"].is_null()), "{runs:?}");
    let done = rows(&metrics).len();
    assert!((1..60).contains(&done), "{done}");
    let said = ok(&args[..4]);
    assert!(said.contains("one seed 1: goes on") && said.contains("one seed 2: begins"), "{said}");
    let steps: Vec<u64> = rows(&metrics).iter().map(|r| r["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=60).collect::<Vec<_>>());
}

/// A run's metrics without what differs between two that are the same: times.
fn timeless(dir: &Path, run: &str) -> Vec<Value> {
    let mut rows = rows(&dir.join(run).join("metrics.jsonl"));
    for row in &mut rows {
        row.as_object_mut().unwrap().retain(|key, _| key != "seconds" && !key.ends_with("per_second"));
    }
    rows
}

#[test]
fn a_killed_sweep_goes_on_to_what_it_would_have_been_and_its_runs_share_their_start() {
    let root = tempfile::tempdir().unwrap();
    let (whole, cut) = (root.path().join("whole"), root.path().join("cut"));
    let variants = "set = [\"rl.steps=30\", \"run.checkpoint_every=7\"]\n[[variant]]\nname = \"grpo\"\n[[variant]]\n\
                    name = \"bupo\"\nset = [\"bupo={layer=1,steps=3}\"]\n";
    let file = sweep_file(root.path(), variants);
    let said = ok(&["sweep", text(&file), "--dir", text(&whole)]);
    assert!(said.contains("bupo seed 2: finished"), "{said}");
    // One warm-up a seed, and the others took it.
    let log = |run: &str| fs::read_to_string(whole.join(format!("{run}.log"))).unwrap();
    for seed in [1, 2] {
        assert!(log(&format!("grpo/seed-{seed}")).contains("warm-up: 4 steps"));
        assert!(log(&format!("bupo/seed-{seed}")).contains("warm-up: taken from"));
    }
    // A run of a sweep is the run that train makes by itself.
    let alone = root.path().join("alone");
    ok(&[
        "train",
        text(run().0),
        "--dir",
        text(&alone),
        "--set",
        "seed=2",
        "--set",
        "rl.steps=30",
        "--set",
        "bupo={layer=1,steps=3}",
    ]);
    assert_eq!(timeless(&alone, ""), timeless(&whole, "bupo/seed-2"));
    let model = "checkpoints/step-000030/model.safetensors";
    let weights = |dir: &Path| fs::read(dir.join(model)).unwrap();
    assert!(weights(&alone) == weights(&whole.join("bupo/seed-2")));
    // Killed in the middle of its second run, without a word.
    let mut child = common::binary()
        .args(["sweep", text(&file), "--dir", text(&cut), "--threads", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = cut.join("bupo/seed-1/metrics.jsonl");
    let started = Instant::now();
    while fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Others may not work in the folder meanwhile; this sweep's own run ends with it.
    let said = ok(&["sweep", text(&file), "--dir", text(&cut)]);
    assert!(said.contains("bupo seed 1: goes on") && !said.contains("grpo seed 1: begins"), "{said}");
    let log = fs::read_to_string(cut.join("bupo/seed-1.log")).unwrap();
    assert!(
        log.contains("standard input ended: finishing what is under way") && log.contains("going on after step"),
        "{log}"
    );
    for run in ["grpo/seed-1", "bupo/seed-1", "grpo/seed-2", "bupo/seed-2"] {
        assert_eq!(timeless(&cut, run), timeless(&whole, run), "{run}");
        assert!(weights(&cut.join(run)) == weights(&whole.join(run)), "{run}");
    }
    assert_eq!(json(&cut.join("sweep.json")), json(&whole.join("sweep.json")));
    for file in ["sweep.md", "sweep.csv"] {
        assert_eq!(fs::read(cut.join(file)).unwrap(), fs::read(whole.join(file)).unwrap());
    }
    // A page shows the sweep before its runs.
    let page = root.path().join("page.html");
    let said = ok(&["report", text(&whole), "--out", text(&page)]);
    assert!(said.contains("shows 5"), "{said}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("\"kind\":\"sweep\""));
}

#[test]
fn two_processes_do_not_work_in_one_folder() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let recipe = text(run().0);
    let mut child = common::binary()
        .args(["train", recipe, "--dir", text(&dir), "--set", "rl.steps=100000", "--threads", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !dir.join("metrics.jsonl").exists() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    fails(&["train", text(&dir), "--resume"], &["another process works in", "choose another folder"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

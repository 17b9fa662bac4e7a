//! `bupo analyze` through the binary: interrupted in every way and gone on with, answers that are kept, both lenses, the
//! table as a file.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3")
}

fn command(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bupo"));
    command.arg("analyze").arg(model()).arg("--data").arg(data).arg("--out").arg(out);
    command.args(["--threads", "2"]).args(more);
    command
}

fn run(data: &Path, out: &Path, more: &[&str]) -> Output {
    command(data, out, more).output().expect("the binary runs")
}

fn ok(data: &Path, out: &Path, more: &[&str]) -> String {
    let output = run(data, out, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(data: &Path, out: &Path, more: &[&str], expected: &[&str]) {
    let output = run(data, out, more);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in expected {
        assert!(error.contains(part) && !error.contains("panicked"), "{part:?} is not in: {error}");
    }
}

fn start(data: &Path, out: &Path, more: &[&str]) -> Child {
    let mut command = command(data, out, more);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

/// Waits for a child to have done something.
fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        assert!(start.elapsed() < Duration::from_secs(60), "nothing happened for a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn rows(path: &Path, n: usize, row: impl Fn(usize) -> Value) -> PathBuf {
    fs::write(path, (0..n).map(|i| format!("{}\n", row(i))).collect::<String>()).unwrap();
    path.to_path_buf()
}

fn ids(seed: usize, n: usize) -> Vec<usize> {
    (0..n).map(|i| 3 + (seed * 31 + i * i * 7 + i * 13) % 90).collect()
}

/// Responses enough for many forwards.
fn responses(dir: &Path) -> PathBuf {
    let row = |i: usize| json!({"input_ids": ids(i, 20 + i % 40), "response_start": 1 + i % 7});
    rows(&dir.join("responses-in.jsonl"), 3000, row)
}

fn same(a: &Path, b: &Path, files: &[&str]) {
    for file in files {
        assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file} differs");
    }
}

fn analysis(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("analysis.json")).unwrap()).unwrap()
}

const FILES: [&str; 2] = ["analysis.json", "layers.parquet"];

#[test]
fn an_interrupted_analysis_goes_on_and_ends_with_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let data = responses(root.path());
    let (whole, killed, stopped) = (root.path().join("whole"), root.path().join("killed"), root.path().join("stopped"));
    ok(&data, &whole, &["--layer", "2"]);
    let often = ["--layer", "2", "--save-every", "0"];
    let begun = |dir: &Path| dir.join("progress.json").is_file();

    let mut child = start(&data, &killed, &often);
    wait_for(&mut child, || begun(&killed));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(begun(&killed) && !killed.join("analysis.json").exists());
    // Another analysis must not go on with these sums, and says what is different.
    fails(&data, &killed, &["--layer", "2", "--lens", "final_norm"], &["another lens", "raw", "final_norm", "--out"]);
    fails(&data, &killed, &["--layer", "3"], &["another layer", "remove"]);
    fails(&data, &killed, &["--layer", "2", "--limit", "2999"], &["another data"]);
    ok(&data, &killed, &often);
    same(&killed, &whole, &FILES);
    assert!(!begun(&killed), "what is finished needs no progress");

    let mut child = start(&data, &stopped, &often);
    wait_for(&mut child, || begun(&stopped));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("of 3000 samples") && said.contains("same command goes on"), "{said}");
    let sums = fs::read_to_string(stopped.join("progress.json")).unwrap();
    fs::write(stopped.join("progress.json"), &sums[..sums.len() / 2]).unwrap();
    fails(&data, &stopped, &often, &["progress.json", "remove"]);
    fs::write(stopped.join("progress.json"), sums).unwrap();
    ok(&data, &stopped, &["--layer", "2"]);
    same(&stopped, &whole, &FILES);
}

#[test]
fn answers_are_kept_as_they_end() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    // Every third row has a response already.
    let row = |i: usize| match i % 3 {
        0 => json!({"input_ids": ids(i, 12), "response_start": 4}),
        _ => json!({"input_ids": ids(i, 4 + i % 9)}),
    };
    let data = rows(&at("problems.jsonl"), 900, row);
    let more = ["--max-new-tokens", "40", "--seed", "5"];
    ok(&data, &at("whole"), &more);
    let lines = |dir: &str| {
        let text = fs::read_to_string(at(dir).join("responses.jsonl")).unwrap_or_default();
        text.lines().map(str::to_string).collect::<Vec<_>>()
    };
    let answers: Vec<Value> = lines("whole").iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let expected: Vec<usize> = (1..=900).filter(|row| (row - 1) % 3 > 0).collect();
    assert_eq!(answers.iter().map(|a| a["row"].as_u64().unwrap() as usize).collect::<Vec<_>>(), expected);
    assert_eq!(analysis(&at("whole"))["samples"], 900);

    let out = at("killed");
    let mut child = start(&data, &out, &more);
    wait_for(&mut child, || lines("killed").len() > 5);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.join("analysis.json").exists());
    // As a kill in the middle of a write leaves it.
    let text = fs::read_to_string(out.join("responses.jsonl")).unwrap();
    fs::write(out.join("responses.jsonl"), text + "{\"row\": 9").unwrap();
    fails(&data, &out, &["--max-new-tokens", "40", "--seed", "6"], &["responses.jsonl", "another seed", "--out"]);
    ok(&data, &out, &more);
    same(&out, &at("whole"), &["analysis.json", "layers.parquet", "responses.jsonl"]);
    // Another look at the same model keeps the answers, and what they say is data like any other.
    let before = lines("killed");
    ok(&data, &out, &["--max-new-tokens", "40", "--seed", "5", "--lens", "final_norm"]);
    assert_eq!(lines("killed"), before);
    ok(&out.join("responses.jsonl"), &at("again"), &[]);
    assert_eq!(analysis(&at("again"))["samples"], 600);
    // A file of somebody else's is not touched.
    fs::create_dir_all(at("strange")).unwrap();
    fs::write(at("strange").join("responses.jsonl"), "{\"response\": \"mine\"}\n").unwrap();
    fails(&data, &at("strange"), &more, &["responses.jsonl", "--out"]);
    assert_eq!(lines("strange"), ["{\"response\": \"mine\"}"]);
}

#[test]
fn both_lenses_and_the_chosen_layer_and_the_table_as_a_file() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let data = rows(&at("rows.jsonl"), 3, |i| json!({"input_ids": ids(i, 30), "response_start": 8}));
    let shown = ok(&data, &at("raw"), &[]);
    assert!(shown.contains("decided at layer") && shown.lines().all(|l| l.chars().count() <= 160), "{shown}");
    ok(&data, &at("normed"), &["--lens", "final_norm", "--layer", "3"]);
    let (raw, normed) = (analysis(&at("raw")), analysis(&at("normed")));
    assert_eq!((&raw["version"], &raw["lens"], &raw["chosen_layer"]), (&json!(2), &json!("raw"), &Value::Null));
    assert_eq!((&normed["lens"], &normed["chosen_layer"]), (&json!("final_norm"), &json!(3)));
    let last = &normed["per_layer"][3];
    assert_eq!(last["entropy"]["resid_post"], normed["final_entropy"]);
    assert_eq!((&last["final"]["kl_to"], &last["final"]["top1_agreement"]), (&json!(0.0), &json!(1.0)));
    assert_ne!(raw["per_layer"][3]["entropy"]["resid_post"], raw["final_entropy"]);
    // Norms and similarities are the stream's own, whatever the lens.
    assert_eq!(
        (&raw["similarity"], &raw["per_layer"][1]["residual_norm"]),
        (&normed["similarity"], &normed["per_layer"][1]["residual_norm"])
    );
    for (dir, analysis) in [("raw", &raw), ("normed", &normed)] {
        let file = fs::File::open(at(dir).join("layers.parquet")).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 4);
        for (row, layer) in reader.into_iter().zip(analysis["per_layer"].as_array().unwrap()) {
            let row = row.unwrap().to_json_value();
            assert_eq!(row["layer"], layer["layer"]);
            assert_eq!(row["spread_entropy_ffn_p50"], layer["spread"]["entropy"]["ffn"]["p50"]);
            assert_eq!(row["final_kl_from"], layer["final"]["kl_from"]);
            let chosen = layer["chosen"].get("kl_to").unwrap_or(&Value::Null);
            assert_eq!(&row["chosen_kl_to"], chosen);
        }
    }
    fails(&data, &at("no"), &["--layer", "9"], &["--layer", "1..=4"]);
    let bad = rows(&at("bad.jsonl"), 2, |i| json!({"input_ids": ids(i, 10 + 60 * i), "response_start": 8}));
    fails(&bad, &at("no"), &[], &["bad.jsonl row 2", "70 tokens"]);
    fs::write(at("empty.jsonl"), "\n").unwrap();
    fails(&at("empty.jsonl"), &at("no"), &[], &["empty"]);
    assert!(!at("no").exists(), "what fails leaves nothing behind");
}

//! Models without some of their modules, through the binary: `bupo ablate`, and `--ablate` of the verbs that run a model, which must
//! agree with it; interrupted and gone on with; wrong input.

mod common;

use bupo::model::LayerIndex;
use bupo::model::taps::Tap;
use common::{command, fails, json, ok, rows, said, text};
use parquet::file::reader::SerializedFileReader;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Four layers of two heads.
const MODEL: &str = "tests/golden/qwen2";

fn responses(dir: &Path, n: usize) -> PathBuf {
    let ids = |seed: usize, n: usize| (0..n).map(|i| 3 + (seed * 31 + i * i * 7 + i * 13) % 90).collect::<Vec<_>>();
    let row = |i: usize| json!({"input_ids": ids(i, 12 + i % 30), "response_start": 1 + i % 7});
    let path = dir.join("responses.jsonl");
    fs::write(&path, (0..n).map(|i| format!("{}\n", row(i))).collect::<String>()).unwrap();
    path
}

/// The mean over all response tokens of what `bupo score` says.
fn mean(scores: &Path, key: &str) -> f64 {
    let rows = rows(scores);
    let all: Vec<f64> = rows.iter().flat_map(|row| row[key].as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn a_study_says_what_scoring_without_a_module_says() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (responses(root.path(), 40), root.path().join("study"));
    let printed = ok(&["ablate", MODEL, "--data", text(&data), "--heads", "--out", text(&out)]);
    assert!(printed.contains("missed most") && printed.contains("head:"), "{printed}");
    let found = json(&out.join("ablation.json"));
    assert_eq!((&found["replace"], &found["samples"]), (&json!("zero"), &json!(40)));
    let layers = found["per_layer"].as_array().unwrap();
    assert!(layers.len() == 4 && layers.iter().all(|l| l["heads"].as_array().unwrap().len() == 2));

    let table: Vec<Value> = SerializedFileReader::new(fs::File::open(out.join("modules.parquet")).unwrap())
        .unwrap()
        .into_iter()
        .map(|row| row.unwrap().to_json_value())
        .collect();
    assert_eq!(table.len(), 4 * 5);
    let scores = root.path().join("scores.jsonl");
    let score = |more: &[&str]| {
        ok(&[&["score", MODEL, "--data", text(&data), "--out", text(&scores)], more].concat());
        [mean(&scores, "log_probs"), mean(&scores, "entropy")]
    };
    let whole = score(&[]);
    assert!((whole[0] - found["log_prob"].as_f64().unwrap()).abs() < 1e-5);
    assert!((whole[1] - found["entropy"].as_f64().unwrap()).abs() < 1e-5);
    for (name, effect) in [
        ("attn:1", &layers[0]["attn"]),
        ("ffn:3", &layers[2]["ffn"]),
        ("layer:4", &layers[3]["both"]),
        ("head:2.2", &layers[1]["heads"][1]),
    ] {
        let without = score(&["--ablate", name]);
        for (i, key) in ["log_prob_change", "entropy_change"].into_iter().enumerate() {
            let change = effect[key].as_f64().unwrap();
            assert!((without[i] - whole[i] - change).abs() < 1e-5, "{name} {key}: {change}");
        }
        let row = table.iter().find(|row| row["module"] == name).unwrap();
        assert_eq!((&row["kl"], &row["top1_agreement"]), (&effect["kl"], &effect["top1_agreement"]));
    }
}

#[test]
fn an_interrupted_study_goes_on_and_ends_with_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let (data, whole, killed) = (responses(root.path(), 2000), root.path().join("whole"), root.path().join("killed"));
    let args = |out: &Path, more: &[&str]| -> Vec<String> {
        let args =
            ["ablate", MODEL, "--data", text(&data), "--replace", "mean", "--out", text(out), "--save-every", "0"];
        args.iter().chain(more).map(|arg| arg.to_string()).collect()
    };
    fn refer(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    ok(&refer(&args(&whole, &[])));
    let mut child = command(&refer(&args(&killed, &[]))).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (begun, start) = (killed.join("ablation-progress.json"), Instant::now());
    while !begun.is_file() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was saved for a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(begun.is_file() && !killed.join("ablation.json").exists());
    // Another study must not go on with these sums, and says what is different.
    fails(&refer(&args(&killed, &["--layers", "2-3"])), &["another modules", "attn:1", "--out"]);
    fails(&refer(&args(&killed, &["--limit", "1999"])), &["another data"]);
    let zeros = ["ablate", MODEL, "--data", text(&data), "--out", text(&killed)];
    fails(&zeros, &["another replace", "mean", "zero"]);
    let (_, remarks) = said(&refer(&args(&killed, &[])));
    assert!(remarks.contains("of 2000 samples were done before") || remarks.contains("going on"), "{remarks}");
    for file in ["ablation.json", "modules.parquet"] {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(killed.join(file)).unwrap(), "{file} differs");
    }
    assert!(!begun.exists(), "what is finished needs no progress");
}

#[test]
fn a_model_can_be_looked_at_without_a_module() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (responses(root.path(), 5), root.path().join("out"));
    let analyze = |more: &[&str]| {
        ok(&[&["analyze", MODEL, "--data", text(&data), "--out", text(&out)], more].concat());
        json(&out.join("analysis.json"))
    };
    let (whole, without) = (analyze(&[]), analyze(&["--ablate", "ffn:2-3"]));
    assert_eq!(without["model"], format!("{MODEL} without ffn:2-3"));
    let of = |analysis: &Value, layer: usize| analysis["per_layer"][layer - 1]["entropy"].clone();
    // Below it nothing is different; a module that writes nothing says nothing; and it is the attention's stream that goes on.
    assert_eq!(of(&whole, 1), of(&without, 1));
    let nothing = of(&without, 2)["ffn"].as_f64().unwrap();
    assert!((nothing - f64::from(96f32.ln())).abs() < 1e-5, "{nothing}");
    assert_ne!(of(&whole, 4), of(&without, 4));

    let file = root.path().join("states.safetensors");
    ok(&[
        "states",
        MODEL,
        "--data",
        text(&data),
        "--states",
        "ffn:2,z:1",
        "--ablate",
        "layer:2,head:1.2",
        "--out",
        text(&file),
    ]);
    let bytes = fs::read(&file).unwrap();
    let states = SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| {
        let view = states.tensor(name).unwrap();
        let values: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (view.shape()[1], values)
    };
    assert!(of("ffn:2").1.iter().all(|x| *x == 0.0));
    let (width, z) = of("z:1");
    assert_eq!(
        width,
        Tap::Z(LayerIndex::from_one_based(1, 4).unwrap())
            .width(&bupo::model::ModelConfig::from_dir(Path::new(MODEL)).unwrap())
    );
    assert!(z.chunks_exact(width).all(|row| row[..width / 2].iter().any(|x| *x != 0.0)));
    assert!(z.chunks_exact(width).all(|row| row[width / 2..].iter().all(|x| *x == 0.0)));
}

#[test]
fn what_cannot_be_left_out_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (responses(root.path(), 2), root.path().join("out"));
    let ablate = ["ablate", MODEL, "--data", text(&data), "--out", text(&out)];
    fails(&[&ablate[..], &["--layers", "5"]].concat(), &["--layers 5", "from 1 to 4"]);
    let score = ["score", MODEL, "--data", text(&data), "--out", text(&out), "--ablate"];
    fails(&[&score[..], &["attn:2,head:1.3"]].concat(), &["--ablate \"head:1.3\"", "heads 1..=2"]);
    fails(&[&score[..], &["mlp:1"]].concat(), &["--ablate \"mlp:1\"", "attn, ffn or layer"]);
    fs::write(&data, "{\"input_ids\": [1, 2, 3]}\n").unwrap();
    fails(&ablate, &["1 of 1 rows", "no response", "bupo analyze"]);
    assert!(!out.exists());
}

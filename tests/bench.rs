//! `bupo bench` on a small model of random weights: what its scripts read is there.

mod common;

use common::{bupo, fails, ok, text};
use serde_json::{Value, json};
use std::fs;

const TINY: [&str; 2] = ["--shape", "tiny"];

/// The line of a bench on the small model.
fn line(args: &[&str]) -> Value {
    let out = ok(&[&["bench"], args, &TINY].concat());
    let line: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"));
    for key in ["seconds", "tokens_per_second"] {
        assert!(line[key].as_f64().is_some_and(|x| x > 0.0), "{args:?}: {key} of {line}");
    }
    assert!(line.get("peak_rss_mib").is_some() && line.get("peak_device_mib").is_none(), "{args:?}: {line}");
    line
}

/// Five rows as the benches write them.
fn batch() -> Value {
    let (rows, length, prompt) = (5, 12, 4);
    let each = |value: &dyn Fn(usize, usize) -> Value| -> Vec<Vec<Value>> {
        (0..rows).map(|row| (0..length).map(|at| value(row, at)).collect()).collect()
    };
    json!({
        "input_ids": each(&|row, at| json!(1 + (row * 91 + at * 17) % 511)),
        "response_mask": each(&|_, at| json!(u8::from(at >= prompt))),
        "advantages": each(&|row, _| json!(row as f64 - 1.5)),
        "old_log_probs": null,
    })
}

#[test]
fn an_update_takes_a_batch_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("batch.json");
    fs::write(&path, batch().to_string()).unwrap();
    let (grads, update) = (dir.path().join("grads.safetensors"), ["update", "--batch", text(&path), "--repeat", "2"]);
    let plain = line(&[&update[..], &["--grads", text(&grads)]].concat());
    let losses =
        |line: &Value| line["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect::<Vec<_>>();
    // The first ratio is 1: the loss is minus the mean advantage.
    assert!(losses(&plain).len() == 2 && (losses(&plain)[0] + 0.5).abs() < 1e-6, "{plain}");
    assert!(plain["gflops"].as_f64().is_some_and(|x| x > 0.0), "{plain}");
    assert!(fs::metadata(&grads).unwrap().len() > 4 * 512 * 64);
    let parts = line(&[&update[..], &["--recompute", "--micro-batch-tokens", "24"]].concat());
    let norm = |line: &Value| line["grad_norms"][0].as_f64().unwrap();
    assert!((norm(&parts) / norm(&plain) - 1.0).abs() < 1e-4, "micro-batches: {parts}, in one: {plain}");
    let layer = line(&[&update[..], &["--layer", "3", "--lora", "2"]].concat());
    assert!(norm(&layer) > 0.0, "{layer}");
}

#[test]
fn rollouts_analyses_and_steps_count_their_tokens() {
    let rollout = line(&["rollout", "--batch", "3", "--prompt", "4", "--new", "5", "--repeat", "1"]);
    assert_eq!(rollout["new_tokens"], json!(15));
    let analysis = line(&["analysis", "--rows", "2", "--length", "20", "--prompt", "4", "--repeat", "2"]);
    assert_eq!(analysis["tokens"], json!(32));
    assert!(analysis["gflops"].as_f64().is_some_and(|x| x > 0.0), "{analysis}");
    let entropy = analysis["final_entropy"].as_f64().unwrap();
    assert!(entropy > 0.0 && entropy < 512f64.ln(), "{analysis}");
    let sizes = [
        "--prompts",
        "2",
        "--group",
        "3",
        "--prompt",
        "4",
        "--new",
        "5",
        "--steps",
        "2",
        "--recompute",
        "--slots",
        "4",
        "--offload",
    ];
    let step = line(&[&["step"], &sizes[..]].concat());
    assert_eq!(step["tokens_per_step"], json!(30));
    let seconds = |key: &str| step[key].as_f64().unwrap();
    let parts = seconds("rollout_seconds") + seconds("update_seconds");
    assert!((seconds("seconds") - parts).abs() < 1e-9, "{step}");
}

#[test]
fn a_bench_asks_for_one_model_and_sizes_that_can_be() {
    for wrong in [&[][..], &["model", "--shape", "tiny"], &["--shape", "huge"]] {
        let output = bupo(&[&["bench", "rollout"], wrong].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains("--shape"), "{wrong:?}: {error}");
    }
    fails(&[&["bench", "rollout"], &TINY[..], &["--profile"]].concat(), &["--device cuda", "perf record"]);
    let analysis =
        |args: &[&str], expected: &[&str]| fails(&[&["bench", "analysis"], &TINY[..], args].concat(), expected);
    analysis(&["--rows", "0"], &["--rows 0", "at least one"]);
    analysis(&["--prompt", "16", "--length", "16"], &["--prompt 16", "fewer than the 16 of --length"]);
    analysis(&["--length", "40961", "--rows", "1"], &["40961 tokens", "context is 40960"]);
}

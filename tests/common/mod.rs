//! What tests share: places to compute on, what PyTorch said, running the binary, and reading what it left.

// Every test program uses some of it.
#![allow(dead_code)]

#[macro_use]
pub mod places;
pub mod golden;
pub mod pages;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The program under test: cargo's, or the one that `BUPO_TEST_BINARY` names, where the tests were carried elsewhere.
pub fn binary() -> Command {
    Command::new(std::env::var_os("BUPO_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_bupo").into()))
}

/// What makes a verb compute on the device that `BUPO_TEST_DEVICE` names; nothing without it.
pub fn on_device(verb: &str) -> Vec<String> {
    let Ok(device) = std::env::var("BUPO_TEST_DEVICE") else { return Vec::new() };
    match verb {
        "train" => vec!["--set".to_string(), format!("device={device}")],
        "sft" | "generate" | "score" | "evaluate" | "analyze" | "ablate" | "states" => {
            vec!["--device".to_string(), device]
        }
        _ => Vec::new(),
    }
}

/// The program, given these arguments, on two threads and on the tests' device.
pub fn command(args: &[&str]) -> Command {
    let mut command = binary();
    command.args(args).args(["--threads", "2"]).args(on_device(args.first().copied().unwrap_or_default()));
    command
}

pub fn bupo(args: &[&str]) -> Output {
    command(args).output().expect("the binary runs")
}

/// Succeeds; what it printed, standard output and standard error.
pub fn said(args: &[&str]) -> (String, String) {
    let output = bupo(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "bupo {args:?}\n{out}\n{error}");
    (out, error)
}

/// Succeeds; its standard output.
pub fn ok(args: &[&str]) -> String {
    said(args).0
}

/// Fails with one clear error, exit code 1 and no panic.
pub fn fails(args: &[&str], expected: &[&str]) {
    let output = bupo(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "bupo {args:?}: {error}");
    assert!(error.contains("error:") && !error.contains("panicked"), "{error}");
    for part in expected {
        assert!(error.contains(part), "bupo {args:?}: {part:?} is not in: {error}");
    }
}

/// Pseudo-random numbers in -1..1, the same on every run.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

pub fn rows(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A file, or a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// A run's metrics without the clock.
pub fn metrics(dir: &Path) -> Vec<Value> {
    let mut rows = rows(&dir.join("metrics.jsonl"));
    for row in &mut rows {
        for key in ["seconds", "rollout_tokens_per_second", "update_tokens_per_second"] {
            row.as_object_mut().unwrap().remove(key);
        }
    }
    rows
}

//! What tests through the binary share: running it, and reading what it left.

// Every test program uses some of it.
#![allow(dead_code)]

pub mod pages;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

pub fn bupo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bupo")).args(args).args(["--threads", "2"]).output().expect("the binary runs")
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

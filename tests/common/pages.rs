//! What the tests of pages share: one small run with token maps, made once a test program, and a server of it.

use super::{ok, text};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;

/// A folder with `runs/tiny`, whose analysis after training has token maps of two samples.
pub fn runs() -> &'static Path {
    static RUNS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, dir) = RUNS.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let recipe = root.path().join("tiny.toml");
        fs::write(&recipe, include_str!("../fixtures/tiny.toml")).unwrap();
        let runs = root.path().join("runs");
        let run = runs.join("tiny");
        ok(&["train", text(&recipe), "--dir", text(&run)]);
        let samples = root.path().join("samples.jsonl");
        let model = run.join("checkpoints/step-000004");
        let plain = ["--plain", "{problem}"];
        let generate = ["generate", text(&model), "--prompt", "2+2=", "-n", "2", "--max-new-tokens", "12"];
        ok(&[&generate[..], &plain, &["--out", text(&samples)]].concat());
        let after = run.join("analysis-after");
        let analyze = ["analyze", text(&model), "--data", text(&samples), "--tokens", "2", "--out", text(&after)];
        ok(&[&analyze[..], &plain].concat());
        (root, runs)
    });
    dir
}

/// `bupo serve` on a free port; it ends with this value.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    pub fn of(dir: &Path) -> Server {
        let mut child = super::binary()
            .args(["serve", text(dir), "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()?.parse().ok());
        Server { child, port: port.unwrap_or_else(|| panic!("no port in {line:?}")) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

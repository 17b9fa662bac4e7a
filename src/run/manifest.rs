//! Where a run's numbers come from: version, seed, machine, times.

use super::atomic::{read, write_file_atomic};
use anyhow::{Context, Result};
use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `manifest.json` of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub bupo_version: String,
    pub recipe: String,
    pub seed: u64,
    pub command: Vec<String>,
    pub machine: Machine,
    /// RFC 3339, UTC.
    pub started: String,
    pub finished: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub threads: usize,
    pub memory_mib: Option<u64>,
    pub os: String,
    pub arch: String,
}

impl Manifest {
    pub fn new(recipe: &str, seed: u64, threads: usize) -> Manifest {
        Manifest {
            bupo_version: env!("CARGO_PKG_VERSION").into(),
            recipe: recipe.into(),
            seed,
            command: std::env::args().collect(),
            machine: Machine::here(threads),
            started: now(),
            finished: None,
        }
    }

    /// For a run that goes on: it began when the manifest that it left says.
    pub fn go_on(&mut self, path: &Path) {
        if let Some(then) = read(path).ok().and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok()) {
            self.started = then.started;
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("the manifest cannot be written as JSON")?;
        write_file_atomic(path, format!("{text}\n").as_bytes())
    }
}

impl Machine {
    fn here(threads: usize) -> Machine {
        let field = |file: &str, key: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|l| l.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let memory = field("/proc/meminfo", "MemTotal").and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        Machine {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            threads,
            memory_mib: memory.map(|kib| kib / 1024),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
        }
    }
}

/// The time, as RFC 3339 in UTC.
pub fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Largest resident memory of this process so far, in MiB; none where the system does not say.
pub fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        let manifest = Manifest::new("r", 3, 2);
        manifest.write(&path).unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(&manifest.started).is_ok(), "{}", manifest.started);
        let read: Manifest = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read, manifest);
    }
}

//! An analysis under way, as it is saved now and then: an interrupted one goes on where it was.

use crate::analysis::flow::Sums;
use crate::analysis::{Flow, Lens, Reading};
use crate::compute::Backend;
use crate::compute::backend::Inspect;
use crate::model::{Compute, Model};
use crate::run::atomic::{read, remove, write_file_atomic};
use crate::run::fingerprint::Fingerprint;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// In the analysis's folder, while it is not finished.
pub const PROGRESS: &str = "progress.json";

/// Everything that the sums depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub bupo: String,
    /// Fingerprints.
    pub model: String,
    pub data: String,
    /// Of the responses that the model gave, where the data had none.
    pub answers: Option<String>,
    pub lens: Lens,
    pub layer: Option<usize>,
    pub compute: Compute,
}

#[derive(Deserialize)]
struct Saved {
    about: About,
    sums: Sums,
}

#[derive(Serialize)]
struct Saving<'a> {
    about: &'a About,
    sums: &'a Sums,
}

/// Where and when an analysis is saved. What it is about is worked out when it is first needed, since that takes a look at
/// every weight.
pub struct Progress<F: Fn() -> About> {
    path: PathBuf,
    about: F,
    every: Duration,
    last: Instant,
}

impl<F: Fn() -> About> Progress<F> {
    pub fn new(dir: &Path, every: Duration, about: F) -> Progress<F> {
        Progress { path: dir.join(PROGRESS), about, every, last: Instant::now() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An analysis at its beginning, or where it was interrupted.
    pub fn open<B: Inspect>(&self, layers: usize, reading: Reading) -> Result<Flow<B>> {
        if !self.path.is_file() {
            return Ok(Flow::new(layers, reading));
        }
        let path = self.path.display();
        let remedy = format!("choose another --out, or remove {path} to start again");
        let saved: Saved = serde_json::from_slice(&read(&self.path)?)
            .with_context(|| format!("{path} is not what bupo writes there: {remedy}"))?;
        let now = serde_json::to_value((self.about)()).context("settings that cannot be compared")?;
        let then = serde_json::to_value(&saved.about).context("settings that cannot be compared")?;
        for (key, now) in now.as_object().into_iter().flatten() {
            let was = &then[key];
            ensure!(was == now, "{path} belongs to an analysis with another {key} ({was}, now {now}): {remedy}");
        }
        Flow::go_on(layers, reading, saved.sums).with_context(|| format!("{path} is broken: {remedy}"))
    }

    /// Saves, if it is time or if it must be.
    pub fn save<B: Inspect>(&mut self, flow: &Flow<B>, now: bool) -> Result<()> {
        if now || self.last.elapsed() >= self.every {
            let text = serde_json::to_vec(&Saving { about: &(self.about)(), sums: flow.sums() });
            write_file_atomic(&self.path, &text.context("the sums cannot be written as JSON")?)?;
            self.last = Instant::now();
        }
        Ok(())
    }

    /// The analysis is finished.
    pub fn remove(&self) -> Result<()> {
        if self.path.is_file() { remove(&self.path) } else { Ok(()) }
    }
}

/// Of a model's configuration and of every weight.
pub fn of_model<B: Backend>(model: &Model<B>) -> String {
    let mut fingerprint = Fingerprint::new();
    fingerprint.text(&format!("{:?}", model.config));
    fingerprint.floats(&model.host_params());
    fingerprint.hex()
}

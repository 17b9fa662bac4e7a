//! Long work that is saved now and then: interrupted, it goes on where it was, for the same model, data and settings only.

use super::atomic::{read, remove, write_file_atomic};
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Saved<A, S> {
    about: A,
    sums: S,
}

#[derive(Serialize)]
struct Saving<'a, A, S> {
    about: &'a A,
    sums: &'a S,
}

/// Where and when work is saved. What it is about, everything that its sums depend on, is worked out when it is first needed, since
/// that may take a look at every weight.
pub struct Unfinished<F> {
    path: PathBuf,
    about: F,
    every: Duration,
    last: Instant,
}

impl<A: Serialize + DeserializeOwned, F: Fn() -> A> Unfinished<F> {
    /// In a file of this path, while it is not finished.
    pub fn new(path: PathBuf, every: Duration, about: F) -> Unfinished<F> {
        Unfinished { path, about, every, last: Instant::now() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to do with a file that cannot be gone on with.
    pub fn remedy(&self) -> String {
        format!("choose another --out, or remove {} to start again", self.path.display())
    }

    /// The sums so far, where work was interrupted. Errors: they belong to other work, or are broken.
    pub fn open<S: DeserializeOwned>(&self) -> Result<Option<S>> {
        if !self.path.is_file() {
            return Ok(None);
        }
        let (path, remedy) = (self.path.display(), self.remedy());
        let saved: Saved<A, S> = serde_json::from_slice(&read(&self.path)?)
            .with_context(|| format!("{path} is not what bupo writes there: {remedy}"))?;
        let now = serde_json::to_value((self.about)()).context("settings that cannot be compared")?;
        let then = serde_json::to_value(&saved.about).context("settings that cannot be compared")?;
        for (key, now) in now.as_object().into_iter().flatten() {
            let was = &then[key];
            let [was_shown, now_shown] = [was, now].map(shown);
            ensure!(was == now, "{path} was begun with another {key} ({was_shown}, now {now_shown}): {remedy}");
        }
        Ok(Some(saved.sums))
    }

    /// Saves, if it is time or if it must be.
    pub fn save<S: Serialize>(&mut self, sums: &S, now: bool) -> Result<()> {
        if now || self.last.elapsed() >= self.every {
            let text = serde_json::to_vec(&Saving { about: &(self.about)(), sums });
            write_file_atomic(&self.path, &text.context("the sums cannot be written as JSON")?)?;
            self.last = Instant::now();
        }
        Ok(())
    }

    /// The work is finished.
    pub fn remove(&self) -> Result<()> {
        if self.path.is_file() { remove(&self.path) } else { Ok(()) }
    }
}

/// A value in a message: one of a thousand names would hide the rest.
fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_on_with_the_same_work_alone() {
        let dir = tempfile::tempdir().unwrap();
        let of = |model: &'static str| {
            Unfinished::new(dir.path().join("progress.json"), Duration::ZERO, move || vec![model.to_string()])
        };
        let about = |model: &'static str| {
            let about = move || std::collections::BTreeMap::from([("model".to_string(), model.to_string())]);
            Unfinished::new(dir.path().join("progress.json"), Duration::from_secs(3600), about)
        };
        let mut first = about("a");
        assert_eq!(first.open::<Vec<u64>>().unwrap(), None);
        first.save(&vec![1u64, 2], false).unwrap();
        assert!(!first.path().exists(), "it is not time yet");
        first.save(&vec![1u64, 2], true).unwrap();
        assert_eq!(about("a").open::<Vec<u64>>().unwrap(), Some(vec![1, 2]));
        let error = format!("{:#}", about("b").open::<Vec<u64>>().unwrap_err());
        assert!(error.contains("another model (\"a\", now \"b\")") && error.contains("--out"), "{error}");
        assert!(of("a").open::<Vec<u64>>().is_err(), "settings of another shape");
        assert!(about("a").open::<String>().is_err(), "sums of another shape");
        first.remove().unwrap();
        first.remove().unwrap();
        assert_eq!(about("b").open::<Vec<u64>>().unwrap(), None);
    }
}

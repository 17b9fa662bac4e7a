//! Models and data by name: fetched from the HuggingFace hub into the cache that every HuggingFace tool shares.
//!
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` mean what they mean in Python. A revision is pinned
//! to its commit before the first file, files are checked against the hub's SHA-256 before anything reads them, a cut
//! connection is taken up where it broke, and a silent one is given up.

mod name;

pub use name::{RepoKind, RepoName};

use crate::run::progress::{Progress, say};
use crate::text::tokenizer;
use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::api::Progress as Reports;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often a file is asked for before giving up.
const ATTEMPTS: usize = 4;
/// Time without a byte after which a connection is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(300);

/// What a model folder may hold beside its weights and its tokenizer's files.
const MODEL_FILES: [&str; 3] = ["config.json", "generation_config.json", "model.safetensors.index.json"];

/// The folder of a checkpoint: one that is there, or a model of the hub, fetched where it is not cached yet.
pub fn checkpoint(name: &Path) -> Result<PathBuf> {
    if name.is_dir() {
        return Ok(name.to_path_buf());
    }
    let text = name.to_string_lossy();
    // Below a folder that is here, a path was meant.
    let path = name.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir());
    let Some(repo) = RepoName::model(&text).filter(|_| !path) else {
        bail!(
            "{text} is no folder, and no name on the hub: expected a HuggingFace checkpoint with config.json, or OWNER/NAME"
        );
    };
    Hub::from_env()?.model(&repo)
}

/// Files of problems of a data set of the hub: `hf://datasets/OWNER/NAME[@REVISION][/FILE]`. `None` if it is no such address.
pub fn data(address: &str) -> Result<Option<Vec<PathBuf>>> {
    let Some(rest) = address.strip_prefix("hf://") else { return Ok(None) };
    let (repo, file) = RepoName::dataset(rest)
        .with_context(|| format!("{address}: expected hf://datasets/OWNER/NAME[@REVISION][/FILE]"))?;
    Hub::from_env()?.data(&repo, file.as_deref()).map(Some)
}

/// A hub and the cache before it.
pub struct Hub {
    pub endpoint: String,
    pub cache: Cache,
    pub token: Option<String>,
    /// Only what is cached.
    pub offline: bool,
    /// Time without a byte after which a connection is given up.
    pub patience: Duration,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Result<Hub> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        // The token lies in HF_HOME, wherever the cache is.
        let home = (set("HF_HOME").is_some() || set("HOME").is_some()).then(Cache::from_env);
        let saved_token = home.as_ref().and_then(Cache::token);
        let cache = set("HF_HUB_CACHE").map(|dir| Cache::new(dir.into())).or(home);
        let cache =
            cache.context("the hub's cache has no place: expected HOME, HF_HOME or HF_HUB_CACHE in the environment")?;
        let yes = |value: String| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        ensure!(
            endpoint.starts_with("http://") || endpoint.starts_with("https://"),
            "HF_ENDPOINT = {endpoint}: expected an address that begins with https://"
        );
        Ok(Hub {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: set("HF_TOKEN").map(|t| t.trim().to_string()).or(saved_token),
            cache,
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
            patience: PATIENCE,
        })
    }

    /// The snapshot folder of a model: configuration, tokenizer, and safetensors weights.
    pub fn model(&self, name: &RepoName) -> Result<PathBuf> {
        let wanted = |files: &[String]| {
            let weights = weight_files(files);
            ensure!(
                files.iter().any(|f| f == "config.json") && !weights.is_empty(),
                "{name} holds no config.json with safetensors weights: expected a model of the transformers library"
            );
            let known = files.iter().filter(|f| [&MODEL_FILES[..], &tokenizer::FILES].concat().contains(&f.as_str()));
            Ok(known.cloned().chain(weights).collect())
        };
        let files = self.fetch(name, &wanted, "config.json")?;
        let config = files.iter().find(|f| f.file_name().is_some_and(|n| n == "config.json"));
        let dir = config.and_then(|f| f.parent());
        Ok(dir.with_context(|| format!("{name} came without a config.json"))?.to_path_buf())
    }

    /// A file of a data set; without a name, its parquet or JSONL files of the test split, or the only ones there are.
    pub fn data(&self, name: &RepoName, file: Option<&str>) -> Result<Vec<PathBuf>> {
        let wanted = |files: &[String]| match file {
            Some(file) => {
                ensure!(files.iter().any(|f| f == file), "{name} holds no {file}: it holds {}", some_of(files));
                Ok(vec![file.to_string()])
            }
            None => data_files(name, files),
        };
        self.fetch(name, &wanted, file.unwrap_or(""))
    }

    /// Files of a repository at one commit, those that `wanted` picks from its list. `sign` is a file without which a cached
    /// snapshot is not worth having.
    fn fetch(
        &self,
        name: &RepoName,
        wanted: &dyn Fn(&[String]) -> Result<Vec<String>>,
        sign: &str,
    ) -> Result<Vec<PathBuf>> {
        let revision = name.revision.as_deref().unwrap_or("main");
        if self.offline {
            return self.cached(name, revision, wanted, sign)?.with_context(|| {
                format!(
                    "{name} is not in the cache {}, and HF_HUB_OFFLINE is set: fetch it once without",
                    self.cache.path().display()
                )
            });
        }
        let api = self.api()?;
        let listed = {
            let repo = api.repo(self.repo(name, revision));
            self.patiently(move |_| repo.info().map_err(|e| anyhow!("{e}")))
        };
        let info = match listed {
            Ok(info) => info,
            Err(error) => {
                let text = format!("{error:#}");
                // What was refused is refused; what cannot be reached may be cached.
                let refused = ["401", "403", "404"].iter().any(|code| text.contains(&format!("status: {code}")));
                if let (false, Some(files)) = (refused, self.cached(name, revision, wanted, sign)?) {
                    say(&format!("{} cannot be reached ({text}): taking the cached {name}", self.endpoint));
                    return Ok(files);
                }
                return Err(self.explain(name, &text));
            }
        };
        let commit = info.sha;
        let safe = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        ensure!(safe, "{} names the commit {commit:?} for {name}: expected letters and digits", self.endpoint);
        let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).filter(|f| name::is_plain(f)).collect();
        let mut paths = Vec::new();
        for file in wanted(&files)? {
            let cached = self.cache.repo(self.repo(name, &commit)).pointer_path(&commit).join(&file);
            let path = if cached.is_file() { cached } else { self.download(&api, name, &commit, &file)? };
            paths.push(path);
        }
        // Only now is the snapshot whole: what is offline tomorrow finds it by its revision.
        let of_revision = self.cache.repo(self.repo(name, revision)).create_ref(&commit);
        of_revision.with_context(|| format!("cannot write to the cache {}", self.cache.path().display()))?;
        Ok(paths)
    }

    fn repo(&self, name: &RepoName, revision: &str) -> Repo {
        let kind = match name.kind {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(name.id.clone(), kind, revision.to_string())
    }

    fn api(&self) -> Result<Api> {
        let builder = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("bupo", env!("CARGO_PKG_VERSION"))
            .with_progress(false);
        builder.build().map_err(|e| anyhow!("the hub's client cannot start: {e}"))
    }

    /// The files of a revision that was fetched whole before; none if it was not.
    fn cached(
        &self,
        name: &RepoName,
        revision: &str,
        wanted: &dyn Fn(&[String]) -> Result<Vec<String>>,
        sign: &str,
    ) -> Result<Option<Vec<PathBuf>>> {
        let repo = self.cache.repo(self.repo(name, revision));
        // A revision may be the commit itself.
        let any = repo.pointer_path("-");
        let refs = any.ancestors().nth(2).map(|root| root.join("refs").join(revision));
        let commit = refs.and_then(|file| fs::read_to_string(file).ok());
        let dir = repo.pointer_path(commit.as_deref().map_or(revision, str::trim));
        if !dir.is_dir() || !sign.is_empty() && !dir.join(sign).is_file() {
            return Ok(None);
        }
        let mut files = Vec::new();
        list(&dir, "", &mut files);
        wanted(&files).map(|wanted| Some(wanted.into_iter().map(|file| dir.join(file)).collect()))
    }

    /// One file at a commit, whole and checked.
    fn download(&self, api: &Api, name: &RepoName, commit: &str, file: &str) -> Result<PathBuf> {
        let mut last = anyhow!("{file} was not asked for");
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                say(&format!("{name}: {file}: {last:#}; trying again"));
                std::thread::sleep(PAUSE * (1 << attempt));
            }
            match self.attempt(api, name, commit, file) {
                Ok(path) => return Ok(path),
                Err(error) => last = error,
            }
            let text = format!("{last:#}");
            if ["401", "403", "404"].iter().any(|code| text.contains(&format!("status: {code}"))) {
                return Err(self.explain(name, &text).context(format!("{file} of {name}")));
            }
        }
        let cache = self.cache.path().display();
        Err(last.context(format!(
            "{file} of {name} could not be fetched into {cache} in {ATTEMPTS} attempts: try again later"
        )))
    }

    fn attempt(&self, api: &Api, name: &RepoName, commit: &str, file: &str) -> Result<PathBuf> {
        let repo = api.repo(self.repo(name, commit));
        let (url, client) = (repo.url(file), api.clone());
        let metadata = self.patiently(move |_| client.metadata(&url).map_err(|e| anyhow!("{e}")))?;
        let etag = metadata.etag().to_string();
        let plain = !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        ensure!(plain, "the hub tags the file {etag:?}: expected letters and digits");
        let blob = self.cache.repo(self.repo(name, commit)).blob_path(&etag);
        let part = blob.with_extension("part");
        // A part that is as long as the whole cannot be gone on with.
        if fs::metadata(&part).is_ok_and(|m| m.len() >= metadata.size() as u64) {
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        let path = self.transfer(repo, file, metadata.size() as u64)?;
        if let Err(error) = check(&path, &etag, metadata.size() as u64) {
            // Whatever reads the cache next must not find it.
            for broken in [&path, &blob] {
                drop(fs::remove_file(broken));
            }
            return Err(error);
        }
        Ok(path)
    }

    fn transfer(&self, repo: ApiRepo, file: &str, size: u64) -> Result<PathBuf> {
        let mut progress = Progress::bytes(file, size);
        let (file, told) = (file.to_string(), &mut |n: u64| progress.inc(n));
        let path = self.watched(told, move |bytes| {
            repo.download_with_progress(&file, Told(bytes.clone())).map_err(|e| anyhow!("{e}"))
        });
        progress.finish();
        path
    }

    fn patiently<T: Send + 'static>(&self, job: impl FnOnce(&Sender<u64>) -> Result<T> + Send + 'static) -> Result<T> {
        self.watched(&mut |_| (), job)
    }

    /// Runs a job of the network in a thread of its own, which is left behind if nothing is heard of it for too long: the
    /// client has no time-outs of its own.
    fn watched<T: Send + 'static>(
        &self,
        told: &mut dyn FnMut(u64),
        job: impl FnOnce(&Sender<u64>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (bytes, heard) = channel();
        let (done, result) = channel();
        std::thread::spawn(move || {
            let outcome = job(&bytes);
            // Before the channel of bytes closes, so that the result is there when that is noticed.
            drop(done.send(outcome));
        });
        loop {
            match heard.recv_timeout(self.patience) {
                Ok(n) => told(n),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} was silent for {:.0} s", self.endpoint, self.patience.as_secs_f64())
                }
            }
        }
        result.recv().map_err(|_| anyhow!("the hub's client broke down"))?
    }

    /// What an answer of the hub means for who asked.
    fn explain(&self, name: &RepoName, error: &str) -> anyhow::Error {
        let page = format!("{}/{}", self.endpoint, name.page());
        if error.contains("status: 401") || error.contains("status: 403") {
            let token = match self.token {
                Some(_) => "the token was not accepted for it: accept the terms on its page with the token's account",
                None => "set HF_TOKEN to a token of an account that may read it",
            };
            return anyhow!("{page}: {error}. It is private, gated, or not there: check the name, or {token}");
        }
        if error.contains("status: 404") {
            return anyhow!(
                "{page}: {error}. There is no such repository or revision: check the name, OWNER/NAME[@REVISION]"
            );
        }
        anyhow!(
            "{page} cannot be reached: {error}. Check the connection and HF_ENDPOINT; cached files work with HF_HUB_OFFLINE=1"
        )
    }
}

/// Tells of bytes as they come.
struct Told(Sender<u64>);

impl Reports for Told {
    fn init(&mut self, _size: usize, _file: &str) {}

    fn update(&mut self, bytes: usize) {
        // Nobody listens any more after a silence that was too long.
        let _ = self.0.send(bytes as u64);
    }

    fn finish(&mut self) {}
}

/// Length, and the SHA-256 where the tag is one (the hub's large files; small ones are tagged with a git hash).
fn check(path: &Path, etag: &str, size: u64) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    ensure!(length == size, "the file is corrupt: it has {length} bytes, but the hub says {size}");
    if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let (mut hash, mut buffer) = (Sha256::new(), vec![0u8; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    ensure!(found == etag.to_lowercase(), "the file is corrupt: its SHA-256 is {found}, but the hub says {etag}");
    Ok(())
}

/// `model.safetensors`, or the shards of `model-00001-of-00004.safetensors`.
fn weight_files(files: &[String]) -> Vec<String> {
    let single: Vec<String> = files.iter().filter(|f| *f == "model.safetensors").cloned().collect();
    if !single.is_empty() {
        return single;
    }
    let shard = |f: &&String| f.starts_with("model-") && f.ends_with(".safetensors") && !f.contains('/');
    files.iter().filter(shard).cloned().collect()
}

fn data_files(name: &RepoName, files: &[String]) -> Result<Vec<String>> {
    let all: Vec<String> = files.iter().filter(|f| f.ends_with(".parquet") || f.ends_with(".jsonl")).cloned().collect();
    let last = |f: &str| f.rsplit('/').next().unwrap_or(f).to_lowercase();
    let test: Vec<String> = all.iter().filter(|f| last(f).contains("test")).cloned().collect();
    let chosen = if test.is_empty() { all.clone() } else { test };
    let folder = |f: &String| f.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_string());
    let one_set = chosen.first().is_some_and(|first| chosen.iter().all(|f| folder(f) == folder(first)));
    ensure!(
        one_set,
        "{name}: which file is meant? Name one, hf://{}/FILE: it holds {}",
        name.page(),
        some_of(if all.is_empty() { files } else { &all })
    );
    Ok(chosen)
}

fn some_of(files: &[String]) -> String {
    let shown = files.iter().take(12).cloned().collect::<Vec<_>>().join(", ");
    if files.len() > 12 { format!("{shown} and {} more", files.len() - 12) } else { shown }
}

/// Files below a folder, by their paths from it.
fn list(dir: &Path, prefix: &str, out: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_dir() {
            list(&path, &format!("{name}/"), out);
        } else if path.is_file() {
            out.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn weights_are_one_file_or_all_shards_and_nothing_else() {
        let single = names(&["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"]);
        assert_eq!(weight_files(&single), ["model.safetensors"]);
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let files = names(&[&shards[..], &["x/model-1.safetensors", "consolidated.safetensors"]].concat());
        assert_eq!(weight_files(&files), shards);
    }

    #[test]
    fn the_test_split_is_taken_and_doubt_is_an_error() {
        let repo = RepoName::dataset("datasets/o/n").unwrap().0;
        let chosen = |files: &[&str]| data_files(&repo, &names(files));
        assert_eq!(
            chosen(&["README.md", "data/train-0.parquet", "data/test-0.parquet"]).unwrap(),
            ["data/test-0.parquet"]
        );
        assert_eq!(chosen(&["README.md", "data/train-0.parquet"]).unwrap(), ["data/train-0.parquet"]);
        let error = chosen(&["a/test.parquet", "b/test.parquet"]).unwrap_err().to_string();
        assert!(error.contains("hf://datasets/o/n/FILE") && error.contains("a/test.parquet"), "{error}");
        assert!(chosen(&["README.md"]).unwrap_err().to_string().contains("README.md"));
    }
}

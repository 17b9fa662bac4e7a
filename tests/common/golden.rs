//! What PyTorch said, as tools/golden left it: folders of small models with numbers beside them.

use super::json;
use bupo::rl::batch::{Response, ResponseGroup};
use bupo::rl::update::LogProbs;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// The decoder's cases: every family, tied and untied, with norms of queries and keys, biases, scaled rotations.
pub const CASES: [&str; 4] = ["qwen3", "qwen2", "llama", "llama3"];

/// A case's folder. Tests are started in the source folder, or in a copy of it.
pub fn folder(name: &str) -> PathBuf {
    Path::new("tests/golden").join(name)
}

/// A file of tensors.
pub struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Tensors {
    pub fn open(path: &Path) -> Tensors {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Tensors { path: path.to_path_buf(), bytes }
    }

    fn data(&self, name: &str) -> Option<Vec<u8>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        tensors.tensor(name).ok().map(|view| view.data().to_vec())
    }

    fn expect<T>(&self, name: &str, found: Option<T>) -> T {
        found.unwrap_or_else(|| panic!("{} has no {name}", self.path.display()))
    }

    /// Of f32.
    pub fn find(&self, name: &str) -> Option<Vec<f32>> {
        Some(self.data(name)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    pub fn values(&self, name: &str) -> Vec<f32> {
        self.expect(name, self.find(name))
    }

    /// Of i32.
    pub fn counts(&self, name: &str) -> Vec<u32> {
        self.expect(name, self.data(name)).as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// Of i64.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.expect(name, self.data(name)).as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
    }

    /// Sequences of token ids whose responses begin at `starts`, as groups of one response, with the advantages that are there.
    pub fn groups(&self, starts: &[usize]) -> Vec<ResponseGroup> {
        let mut advantages = self.find("advantages").unwrap_or_default().into_iter();
        let mut group = |(s, start): (usize, &usize)| {
            let mut prompt = self.ids(&format!("input_ids.{s}"));
            let ids = prompt.split_off(*start);
            let advantages = advantages.by_ref().take(ids.len()).collect();
            ResponseGroup { prompt, responses: vec![Response { ids, advantages, ..Response::default() }] }
        };
        starts.iter().enumerate().map(&mut group).collect()
    }
}

/// Values that are stored one a response token, by group.
pub fn by_group(groups: &[ResponseGroup], values: Vec<f32>) -> LogProbs {
    let mut values = values.into_iter();
    groups.iter().map(|g| vec![values.by_ref().take(g.responses[0].ids.len()).collect()]).collect()
}

/// Which response tokens' ratios have met a clip, behind which they have no gradient. The log-probs are in the groups' order, one a token.
pub fn clipped<'a>(
    groups: &[ResponseGroup],
    log_probs: impl IntoIterator<Item = &'a f32>,
    old: &LogProbs,
    [clip, dual]: [f64; 2],
) -> Vec<bool> {
    let advantages = groups.iter().flat_map(|g| &g.responses[0].advantages);
    let clipped = |((p, old), advantage): ((&f32, &f32), &f32)| {
        let ratio = f64::from(p - old).exp();
        if *advantage > 0.0 { ratio > 1.0 + clip } else { ratio < 1.0 - clip || ratio > dual }
    };
    log_probs.into_iter().zip(old.iter().flatten().flatten()).zip(advantages).map(clipped).collect()
}

/// The log-probs that a gradient's forward found, one a token.
pub fn flat(log_probs: &[((usize, usize), Vec<f32>)]) -> impl Iterator<Item = &f32> {
    log_probs.iter().flat_map(|(_, log_probs)| log_probs)
}

/// The sequences of a decoder's case, each with where its response begins.
pub fn sequences(name: &str) -> Vec<(Vec<u32>, usize)> {
    let tensors = Tensors::open(&folder(name).join("golden.safetensors"));
    let starts = response_starts(name).into_iter().enumerate();
    starts.map(|(s, start)| (tensors.ids(&format!("input_ids.{s}")), start)).collect()
}

pub fn response_starts(name: &str) -> Vec<usize> {
    let starts = json(&folder(name).join("meta.json"))["response_starts"].clone();
    starts.as_array().unwrap().iter().map(|start| start.as_u64().unwrap() as usize).collect()
}

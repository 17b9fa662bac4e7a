//! What a page shows, as JSON items: found by what folders and files hold, read as it is.

use super::completions::{self, shown};
use super::lines::{lines, thin};
use super::place::Place;
use super::tokens::{Wanted, tokens};
use crate::run::lock;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// How much a page holds. What is left out is said on it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Completions of a run, and rows of a file of samples.
    pub completions: usize,
    /// Steps of metrics and of probes, evenly spread.
    pub steps: usize,
    /// Positions of a sample's token map.
    pub positions: usize,
    /// Cells of an analysis' token maps.
    pub cells: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { completions: 400, steps: 2000, positions: 256, cells: 120_000 }
    }
}

/// What a folder or file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Run,
    Sweep,
    Analysis,
    Ablation,
    Evaluation,
    Comparison,
    Diff,
    Samples,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Run => "run",
            Kind::Sweep => "sweep",
            Kind::Analysis => "analysis",
            Kind::Ablation => "ablation",
            Kind::Evaluation => "evaluation",
            Kind::Comparison => "comparison",
            Kind::Diff => "diff",
            Kind::Samples => "samples",
        }
    }
}

/// Kinds and the file that tells them, in a folder.
const SIGNS: [(Kind, &str); 7] = [
    (Kind::Run, "metrics.jsonl"),
    (Kind::Sweep, "sweep.json"),
    (Kind::Analysis, "analysis.json"),
    (Kind::Ablation, "ablation.json"),
    (Kind::Evaluation, "evaluation.json"),
    (Kind::Comparison, "comparison.json"),
    (Kind::Diff, "diff.json"),
];
const TOKENS: &str = "tokens.parquet";

/// What a folder is, if it is something that is shown.
pub fn kind_of_folder(place: &Place, dir: &Path) -> Option<Kind> {
    let begun = place.is_file(&dir.join("recipe.toml")) && place.is_file(&dir.join("manifest.json"));
    let signed = SIGNS.iter().find(|(_, file)| place.is_file(&dir.join(file))).map(|(kind, _)| *kind);
    if begun { Some(Kind::Run) } else { signed }
}

/// Items of the paths that a person named. A folder that is nothing itself stands for those below it, at most three deep.
///
/// Errors: a path that holds nothing to show, a file that is not what its name says.
pub fn collect(place: &Place, paths: &[PathBuf], limits: Limits) -> Result<Vec<Value>> {
    let mut items = Vec::new();
    for path in paths {
        let found = if path.is_dir() { find(place, path, 3) } else { vec![] };
        if path.is_dir() && found.is_empty() {
            bail!(
                "{} holds nothing to show: expected a run, a sweep, an analysis, an ablation, an evaluation, a comparison or a diff",
                path.display()
            );
        }
        for (dir, kind) in found {
            items.push(item(place, &dir, kind, limits)?);
        }
        if !path.is_dir() {
            items.push(from_file(place, path, limits)?);
        }
    }
    Ok(items)
}

/// Folders at or below `dir` that are something; what lies inside a run belongs to it. A sweep comes before its runs.
pub fn find(place: &Place, dir: &Path, depth: usize) -> Vec<(PathBuf, Kind)> {
    let own = kind_of_folder(place, dir);
    let below = match own {
        Some(kind) if kind != Kind::Sweep => Vec::new(),
        _ if depth == 0 => Vec::new(),
        _ => place.folders(dir),
    };
    let own = own.map(|kind| (dir.to_path_buf(), kind));
    own.into_iter().chain(below.iter().flat_map(|d| find(place, d, depth - 1))).collect()
}

fn from_file(place: &Place, path: &Path, limits: Limits) -> Result<Value> {
    let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !place.is_file(path) {
        bail!("{} is not there: expected a folder or a file that bupo wrote", path.display());
    }
    if name.ends_with(".jsonl") && name != "metrics.jsonl" {
        return samples(place, path, limits);
    }
    if name == TOKENS {
        return analysis(place, dir, limits);
    }
    if let Some((kind, _)) = SIGNS.iter().find(|(_, file)| *file == name) {
        return item(place, dir, *kind, limits);
    }
    // Any other name: told by what is inside.
    let value = place.json(path)?;
    let holds = |key: &str| value.get(key).is_some();
    let kind = match &value {
        Value::Array(_) => Kind::Comparison,
        _ if holds("per_layer") && holds("embedding") => Kind::Diff,
        _ if holds("per_layer") && holds("replace") => Kind::Ablation,
        _ if holds("per_layer") => Kind::Analysis,
        _ if holds("avg_at_n") => Kind::Evaluation,
        _ if holds("variants") && holds("sweep") => Kind::Sweep,
        _ => bail!(
            "{} is none of what bupo writes: expected a sweep, analysis, ablation, evaluation, comparison or diff",
            path.display()
        ),
    };
    Ok(whole(kind, path, json!({(kind.name()): value})))
}

/// A folder's item.
pub fn item(place: &Place, dir: &Path, kind: Kind, limits: Limits) -> Result<Value> {
    match kind {
        Kind::Run => run(place, dir, limits),
        Kind::Analysis => analysis(place, dir, limits),
        Kind::Samples => bail!("{} is a folder, samples are a file", dir.display()),
        Kind::Sweep | Kind::Ablation | Kind::Evaluation | Kind::Comparison | Kind::Diff => {
            let value = place.json(&dir.join(format!("{}.json", kind.name())))?;
            Ok(whole(kind, dir, json!({(kind.name()): value})))
        }
    }
}

fn whole(kind: Kind, path: &Path, mut rest: Value) -> Value {
    let mut item = Map::new();
    item.insert("kind".into(), json!(kind.name()));
    item.insert("name".into(), json!(name(path)));
    item.insert("path".into(), json!(path.display().to_string()));
    if let Some(rest) = rest.as_object_mut() {
        item.append(rest);
    }
    Value::Object(item)
}

/// The last two parts of a path: `grpo-1/analysis-after` says more than `analysis-after`.
fn name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let parts: Vec<_> = full.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    parts[parts.len().saturating_sub(2)..].join("/").trim_start_matches('/').to_string()
}

fn analysis(place: &Place, dir: &Path, limits: Limits) -> Result<Value> {
    let value = place.json(&dir.join("analysis.json"))?;
    if !value.is_null() && !value["per_layer"].is_array() {
        bail!("{} has no per_layer: was it written by bupo analyze?", dir.join("analysis.json").display());
    }
    let table = dir.join(TOKENS);
    let wanted = Wanted { sample: None, positions: limits.positions, cells: limits.cells };
    let maps = if place.is_file(&table) { tokens(place, &table, wanted)? } else { Value::Null };
    // A study of the same folder stands beside it.
    let ablation = place.json(&dir.join("ablation.json"))?;
    Ok(whole(Kind::Analysis, dir, json!({"analysis": value, "tokens": maps, "ablation": ablation})))
}

/// A run with what lies in it.
fn run(place: &Place, dir: &Path, limits: Limits) -> Result<Value> {
    let mut item = live(place, dir, 0, 0)?;
    for key in ["metrics", "probe"] {
        if let Some(Value::Array(rows)) = item[key].get_mut("rows") {
            *rows = thin(std::mem::take(rows), limits.steps);
        }
    }
    let steps: Vec<u64> =
        item["metrics"]["rows"].as_array().into_iter().flatten().filter_map(|m| m["step"].as_u64()).collect();
    item["completions"] = completions::some(place, &dir.join("completions.jsonl"), &steps, limits.completions)?;
    for (key, kind) in [("analyses", Kind::Analysis), ("ablations", Kind::Ablation), ("evaluations", Kind::Evaluation)]
    {
        let found: Result<Vec<Value>> =
            inner(place, dir, kind).iter().map(|d| self::item(place, d, kind, limits)).collect();
        item[key] = json!(found?);
    }
    Ok(item)
}

/// Folders of a kind right below a run's, those named `...after` last. The sets that were evaluated at one time stand in
/// that time's folder.
pub fn inner(place: &Place, dir: &Path, kind: Kind) -> Vec<PathBuf> {
    let mut below = place.folders(dir);
    below.sort_by_key(|d| d.file_name().is_some_and(|n| n.to_string_lossy().ends_with("after")));
    let named_sets = |d: &PathBuf| d.file_name().is_some_and(|n| n.to_string_lossy().starts_with("evaluation-"));
    let found = below.into_iter().flat_map(|d| match kind_of_folder(place, &d) {
        None if kind == Kind::Evaluation && named_sets(&d) => place.folders(&d),
        _ => vec![d],
    });
    found.filter(|d| kind_of_folder(place, d) == Some(kind)).collect()
}

/// What grows in a run: metrics from line `metrics` on, probes from line `probe` on, with recipe and manifest.
pub fn live(place: &Place, dir: &Path, metrics: usize, probe: usize) -> Result<Value> {
    let grown = |file: &str, from: usize| -> Result<Value> {
        let found = lines(place, &dir.join(file), from)?;
        Ok(json!({"from": from, "total": found.total, "bad": found.bad, "rows": found.rows}))
    };
    let recipe = dir.join("recipe.toml");
    let recipe =
        if place.is_file(&recipe) { json!(String::from_utf8_lossy(&place.read(&recipe)?)) } else { Value::Null };
    Ok(whole(
        Kind::Run,
        dir,
        json!({
            "manifest": place.json(&dir.join("manifest.json")).unwrap_or(Value::Null),
            "recipe": recipe,
            "age": age(place, &dir.join("metrics.jsonl")),
            "running": is_running(place, dir),
            "metrics": grown("metrics.jsonl", metrics)?,
            "probe": grown("probe.jsonl", probe)?,
        }),
    ))
}

/// Whether the process that writes a run is there: it holds the folder's lock for as long as it lives.
pub fn is_running(place: &Place, dir: &Path) -> bool {
    place.open(&dir.join(lock::NAME)).is_ok_and(|file| lock::is_held(&file))
}

/// Seconds since a file was last written to.
pub fn age(place: &Place, path: &Path) -> Option<u64> {
    let modified = place.open(path).ok()?.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.saturating_sub(modified).as_secs())
}

/// Rows of `bupo generate --out`: texts under one policy or several.
fn samples(place: &Place, path: &Path, limits: Limits) -> Result<Value> {
    let found = lines(place, path, 0)?;
    let is_sample = |row: &Value| row["policy"].is_string() && (row["text"].is_string() || row["response"].is_string());
    if !found.rows.iter().any(is_sample) {
        bail!("{} holds no samples: expected JSON lines that bupo generate --out wrote", path.display());
    }
    let compact = |mut row: Value| {
        let log_probs: Vec<f64> = row["log_probs"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let mean = log_probs.iter().sum::<f64>() / log_probs.len().max(1) as f64;
        row["tokens"] = json!(log_probs.len());
        row["mean_log_prob"] = if log_probs.is_empty() { Value::Null } else { json!(mean) };
        for key in ["log_probs", "input_ids"] {
            row.as_object_mut().map(|r| r.remove(key));
        }
        shown(row)
    };
    let rows: Vec<Value> = found.rows.into_iter().filter(is_sample).take(limits.completions).map(compact).collect();
    let of = found.total;
    Ok(whole(Kind::Samples, path, json!({"rows": rows, "total": of})))
}

/// A page's JSON.
pub fn bundle(items: &[Value]) -> Result<String> {
    serde_json::to_string(&json!({"bupo_version": env!("CARGO_PKG_VERSION"), "items": items}))
        .context("the page's data cannot be written as JSON")
}

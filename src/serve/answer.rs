//! The answers: JSON of what lies below the folder. Files are read on threads of their own, so that a large one holds
//! nobody up.

use crate::report::assets::asset;
use crate::report::collect::{Kind, Limits, age, find, inner, is_running, item as read_item, kind_of_folder, live};
use crate::report::completions::{Query as Wanted, page as completions_page};
use crate::report::page::shell;
use crate::report::tokens::{Wanted as WantedCells, tokens};
use crate::report::{Place, collect};
use anyhow::{Context, Result};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Shared = State<Arc<Place>>;

/// Folders below the served one that are looked into for runs.
const DEPTH: usize = 4;
/// Rows of one page of completions.
const MOST_ROWS: usize = 200;

pub async fn index() -> Html<String> {
    Html(shell("bupo"))
}

pub async fn script(UrlPath(name): UrlPath<String>) -> Response {
    match asset(&name) {
        Some(asset) => ([(header::CONTENT_TYPE, asset.media_type)], asset.text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub async fn items(State(place): Shared) -> Response {
    answer(move || {
        let root = place.root().context("nothing is served")?;
        let below: Vec<Value> =
            find(&place, root, DEPTH).iter().flat_map(|(dir, kind)| listed(&place, dir, *kind)).collect();
        Ok(Some(json!({"root": root.display().to_string(), "items": below})))
    })
    .await
}

/// A line of the list.
fn listed(place: &Place, dir: &Path, kind: Kind) -> Option<Value> {
    let path = relative(place, dir)?;
    let mut line =
        json!({"kind": kind.name(), "path": path, "name": if path.is_empty() { "(this folder)" } else { &path }});
    if kind == Kind::Run {
        let manifest = place.json(&dir.join("manifest.json")).unwrap_or(Value::Null);
        line["finished"] = manifest["finished"].clone();
        line["started"] = manifest["started"].clone();
        line["running"] = json!(is_running(place, dir));
        line["age"] = json!(age(place, &dir.join("metrics.jsonl")));
    }
    Some(line)
}

fn relative(place: &Place, path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    Some(path.strip_prefix(place.root()?).ok()?.to_string_lossy().into_owned())
}

#[derive(Deserialize)]
pub struct ItemQuery {
    path: String,
    #[serde(default)]
    metrics: usize,
    #[serde(default)]
    probe: usize,
    /// Only what a run has grown by; of its analyses and evaluations just the paths.
    #[serde(default)]
    grown: bool,
}

pub async fn item(State(place): Shared, Query(query): Query<ItemQuery>) -> Response {
    answer(move || {
        let Some(dir) = place.named(&query.path) else { return Ok(None) };
        let mut item = match kind_of_folder(&place, &dir) {
            Some(Kind::Run) => run(&place, &dir, &query)?,
            // Token maps are asked for sample by sample.
            Some(kind) => read_item(&place, &dir, kind, Limits { positions: 0, cells: 0, ..Limits::default() })?,
            None => match collect(&place, std::slice::from_ref(&dir), Limits::default()) {
                Ok(mut found) if found.len() == 1 && dir.is_file() => found.remove(0),
                _ => return Ok(None),
            },
        };
        item["path"] = json!(query.path);
        Ok(Some(item))
    })
    .await
}

/// A run with its analyses and evaluations, or only what it has grown by.
fn run(place: &Place, dir: &Path, query: &ItemQuery) -> Result<Value> {
    let mut item = live(place, dir, query.metrics, query.probe)?;
    let limits = Limits { positions: 0, cells: 0, ..Limits::default() };
    for (key, kind) in [("analyses", Kind::Analysis), ("ablations", Kind::Ablation), ("evaluations", Kind::Evaluation)]
    {
        let read = |d: &PathBuf| {
            let path = json!(relative(place, d)?);
            if query.grown {
                return Some(path);
            }
            // One that cannot be read leaves its place, so that the rest is shown.
            let broken = |e: anyhow::Error| json!({"kind": kind.name(), "error": e.to_string()});
            let mut inner = read_item(place, d, kind, limits).unwrap_or_else(broken);
            inner["path"] = path;
            Some(inner)
        };
        item[key] = json!(inner(place, dir, kind).iter().filter_map(read).collect::<Vec<Value>>());
    }
    Ok(item)
}

#[derive(Deserialize)]
pub struct CompletionsQuery {
    path: String,
    #[serde(default)]
    from: u64,
    limit: Option<usize>,
    step: Option<u64>,
    status: Option<String>,
    search: Option<String>,
}

pub async fn completions(State(place): Shared, Query(query): Query<CompletionsQuery>) -> Response {
    answer(move || {
        let Some(dir) = place.named(&query.path) else { return Ok(None) };
        let wanted = Wanted {
            step: query.step,
            status: query.status.filter(|s| !s.is_empty()),
            search: query.search,
            from: query.from,
            limit: query.limit.unwrap_or(50).clamp(1, MOST_ROWS),
        };
        completions_page(&place, &dir.join("completions.jsonl"), &wanted).map(Some)
    })
    .await
}

#[derive(Deserialize)]
pub struct TokensQuery {
    path: String,
    sample: u64,
}

pub async fn token_map(State(place): Shared, Query(query): Query<TokensQuery>) -> Response {
    answer(move || {
        let Some(table) = place.named(&query.path).map(|dir| dir.join("tokens.parquet")) else { return Ok(None) };
        if !place.is_file(&table) {
            return Ok(None);
        }
        let wanted = WantedCells { sample: Some(query.sample), positions: 2048, cells: usize::MAX };
        let mut found = tokens(&place, &table, wanted)?;
        let Some(sample) = found["samples"].as_array_mut().and_then(Vec::pop) else { return Ok(None) };
        Ok(Some(sample))
    })
    .await
}

/// Runs the reading elsewhere. What is not there, or may not be seen, is all the same not found.
async fn answer(read: impl FnOnce() -> Result<Option<Value>> + Send + 'static) -> Response {
    let read = move || -> Result<Option<String>> { read()?.map(|v| Ok(serde_json::to_string(&v)?)).transpose() };
    let json =
        |status: StatusCode, text: String| (status, [(header::CONTENT_TYPE, "application/json")], text).into_response();
    let found = match tokio::task::spawn_blocking(read).await {
        Ok(found) => found,
        Err(_) => Err(anyhow::anyhow!("the reading broke down")),
    };
    match found {
        Ok(Some(text)) => json(StatusCode::OK, text),
        Ok(None) => json(StatusCode::NOT_FOUND, json!({"error": "not found"}).to_string()),
        Err(error) => {
            let because: Vec<String> = error.chain().map(|e| e.to_string()).collect();
            json(StatusCode::INTERNAL_SERVER_ERROR, json!({"error": because.join(": ")}).to_string())
        }
    }
}

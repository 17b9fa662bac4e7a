//! Pages of `completions.jsonl`, which may hold gigabytes: a request reads on from a place in the file, never more than
//! [`BUDGET`], and a step is found by bisection, since steps only grow.

use super::place::Place;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes that one request reads at most.
pub const BUDGET: u64 = 64 << 20;
/// Characters of a prompt or response that are shown.
pub const LONGEST: usize = 20_000;

/// Which completions are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    pub step: Option<u64>,
    /// A verdict: `correct`, `wrong`, ...
    pub status: Option<String>,
    /// Text in prompt, response or gold answer; large and small letters are the same.
    pub search: Option<String>,
    /// Where in the file to go on, in bytes: 0, or a page's `next`.
    pub from: u64,
    pub limit: usize,
}

/// `{"rows": [...], "next": bytes, "more": whether the file goes on, "bad": unreadable lines, "reached": last step seen}`.
/// With few matches a page may be short or empty and still have `more`.
pub fn page(place: &Place, path: &Path, query: &Query) -> Result<Value> {
    page_within(place, path, query, BUDGET)
}

fn page_within(place: &Place, path: &Path, query: &Query, budget: u64) -> Result<Value> {
    if !place.is_file(path) {
        return Ok(json!({"rows": [], "next": 0, "more": false, "bad": 0, "reached": null}));
    }
    let mut file = place.open(path)?;
    let length = file.metadata()?.len();
    let mut at = match query.step {
        Some(step) if query.from == 0 => first_of_step(&mut file, length, step)?,
        _ => query.from.min(length),
    };
    file.seek(SeekFrom::Start(at))?;
    let end = at.saturating_add(budget);
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let needle = query.search.as_deref().map(str::to_lowercase).filter(|s| !s.is_empty());
    let (mut rows, mut bad, mut reached, mut more) = (Vec::new(), 0, Value::Null, false);
    let mut line = Vec::new();
    loop {
        if rows.len() >= query.limit.max(1) || at >= end {
            more = at < length;
            break;
        }
        line.clear();
        reader.by_ref().take(budget).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            if line.len() as u64 >= budget {
                bail!("{}: a line at byte {at} is longer than {budget} bytes", path.display());
            }
            break;
        }
        at += line.len() as u64;
        let Some(row) = serde_json::from_slice::<Value>(&line).ok().filter(Value::is_object) else {
            bad += 1;
            continue;
        };
        reached = row["step"].clone();
        if query.step.is_some_and(|s| row["step"].as_u64().is_some_and(|r| r > s)) {
            break;
        }
        if matches(&row, query, needle.as_deref()) {
            rows.push(shown(row));
        }
    }
    Ok(json!({"rows": rows, "next": at, "more": more, "bad": bad, "reached": reached}))
}

fn matches(row: &Value, query: &Query, needle: Option<&str>) -> bool {
    let status = query.status.as_deref().is_none_or(|s| row["status"] == s);
    let step = query.step.is_none_or(|s| row["step"].as_u64() == Some(s));
    let holds = |needle: &str| {
        let texts = ["prompt", "response", "gold"].into_iter().filter_map(|key| row[key].as_str());
        texts.into_iter().any(|t| t.to_lowercase().contains(needle))
    };
    step && status && needle.is_none_or(holds)
}

/// A row for a page: long texts are cut, and an id keeps its digits, which a browser's numbers would not.
pub fn shown(mut row: Value) -> Value {
    if let Some(id) = row["problem"].as_u64() {
        row["problem"] = json!(id.to_string());
    }
    for key in ["prompt", "response"] {
        let long = row[key].as_str().and_then(|t| t.char_indices().nth(LONGEST).map(|(end, _)| t[..end].to_string()));
        if let Some(cut) = long {
            row[key] = json!(cut + " […]");
        }
    }
    row
}

/// Where the first row of `step` or a later one begins, near enough: at the start of a line at or before it.
fn first_of_step(file: &mut File, length: u64, step: u64) -> Result<u64> {
    const NEAR: u64 = 1 << 16;
    // `low` is always the start of a line whose row, and all before, are of earlier steps.
    let (mut low, mut high) = (0, length);
    while high - low > NEAR {
        let middle = low + (high - low) / 2;
        match row_after(file, middle)? {
            Some((start, found)) if found < step && start < high => low = start,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The first readable row that begins after `at`: where, and its step.
fn row_after(file: &mut File, at: u64) -> Result<Option<(u64, u64)>> {
    file.seek(SeekFrom::Start(at)).context("cannot seek")?;
    let mut reader = BufReader::new(file.take(BUDGET));
    let mut line = Vec::new();
    let mut start = at + reader.read_until(b'\n', &mut line)? as u64;
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let row: Option<Value> = serde_json::from_slice(&line).ok();
        if let Some(step) = row.and_then(|r| r.get("step")?.as_u64()) {
            return Ok(Some((start, step)));
        }
        start += n as u64;
    }
}

/// Some completions of a whole run, for a page that cannot hold all: the first of up to eight steps from first to last.
/// `{"rows", "steps": [those shown], "all": whether nothing was left out, "bad"}`.
pub fn some(place: &Place, path: &Path, steps: &[u64], most: usize) -> Result<Value> {
    let everything = Query { limit: most, ..Query::default() };
    let first = page(place, path, &everything)?;
    if first["more"] == false || steps.len() < 2 {
        let all = first["more"] == false;
        return Ok(json!({"rows": first["rows"], "steps": null, "all": all, "bad": first["bad"]}));
    }
    let shown = steps.len().min(8);
    let mut rows = Vec::new();
    let chosen: Vec<u64> = (0..shown).map(|i| steps[i * (steps.len() - 1) / (shown - 1)]).collect();
    for step in &chosen {
        let query = Query { step: Some(*step), limit: (most / shown).max(1), ..Query::default() };
        if let Some(found) = page(place, path, &query)?["rows"].as_array_mut() {
            rows.append(found);
        }
    }
    Ok(json!({"rows": rows, "steps": chosen, "all": false, "bad": 0}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn file(dir: &Path, steps: u64, samples: u64) -> std::path::PathBuf {
        let mut text = String::new();
        for step in 1..=steps {
            for sample in 0..samples {
                let status = if sample % 2 == 0 { "correct" } else { "wrong" };
                let row = json!({"step": step, "problem": u64::MAX, "sample": sample, "prompt": "1+1=", "gold": "2",
                    "response": format!("Step {step}. {}", "x".repeat((step * 7 + sample) as usize % 90)), "status": status});
                writeln!(text, "{row}").unwrap();
            }
        }
        let path = dir.join("completions.jsonl");
        std::fs::write(&path, text + "{\"step\": 1, \"torn").unwrap();
        path
    }

    fn count(page: &Value) -> usize {
        page["rows"].as_array().unwrap().len()
    }

    #[test]
    fn pages_follow_each_other_and_a_step_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (place, path) = (Place::anywhere(), file(dir.path(), 200, 16));
        let (mut query, mut seen) = (Query { limit: 500, ..Query::default() }, 0);
        loop {
            let found = page(&place, &path, &query).unwrap();
            seen += count(&found);
            query.from = found["next"].as_u64().unwrap();
            if found["more"] == false {
                break;
            }
        }
        assert!(seen >= 3200, "{seen}");
        for step in [1, 2, 99, 100, 199, 200] {
            let found = page(&place, &path, &Query { step: Some(step), limit: 50, ..Query::default() }).unwrap();
            assert_eq!(count(&found), 16, "step {step}");
            assert!(found["rows"].as_array().unwrap().iter().all(|r| r["step"] == step));
            assert_eq!(found["rows"][0]["problem"], u64::MAX.to_string());
        }
        let none = page(&place, &path, &Query { step: Some(201), limit: 50, ..Query::default() }).unwrap();
        assert_eq!((count(&none), &none["more"]), (0, &json!(false)));
    }

    #[test]
    fn filters_and_a_small_budget_meet_every_match_once() {
        let dir = tempfile::tempdir().unwrap();
        let (place, path) = (Place::anywhere(), file(dir.path(), 20, 16));
        let search = Some("STEP 1".to_string());
        let mut query = Query { status: Some("wrong".into()), search, limit: 7, ..Query::default() };
        let mut seen = 0;
        for _ in 0..10_000 {
            let found = page_within(&place, &path, &query, 2000).unwrap();
            seen += count(&found);
            query.from = found["next"].as_u64().unwrap();
            if found["more"] == false {
                break;
            }
        }
        // Steps 1 and 10 to 19, half of the samples each.
        assert_eq!(seen, 11 * 8);
        // A place in the middle of a line: that line cannot be read, the next one can.
        let odd = page(&place, &path, &Query { from: 5, limit: 3, ..Query::default() }).unwrap();
        assert_eq!((count(&odd), &odd["bad"]), (3, &json!(1)));
        let past = page(&place, &path, &Query { from: u64::MAX, limit: 3, ..Query::default() }).unwrap();
        assert_eq!((count(&past), &past["more"]), (0, &json!(false)));
    }

    #[test]
    fn a_report_takes_some_of_a_large_run_and_all_of_a_small_one() {
        let dir = tempfile::tempdir().unwrap();
        let (place, path) = (Place::anywhere(), file(dir.path(), 20, 16));
        let steps: Vec<u64> = (1..=20).collect();
        let found = some(&place, &path, &steps, 80).unwrap();
        assert_eq!((count(&found), &found["all"], found["steps"].as_array().unwrap().len()), (80, &json!(false), 8));
        assert_eq!((&found["rows"][0]["step"], &found["rows"][79]["step"]), (&json!(1), &json!(20)));
        let whole = some(&place, &path, &steps, 400).unwrap();
        assert_eq!((count(&whole), &whole["all"]), (320, &json!(true)));
        let none = some(&place, &dir.path().join("no"), &[], 80).unwrap();
        assert_eq!((count(&none), &none["all"]), (0, &json!(true)));
    }
}

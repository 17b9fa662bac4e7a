//! Problems and token rows from files: parquet in verl's row layout, and JSON lines in the spellings people use.
//!
//! A bad row is an error that names the file and the line, or, where the caller goes on without it, a [`BadRow`] that does;
//! nothing is skipped in silence.

use super::choices::{choice_question, keys_read};
use super::numbers;
use super::problem::Problem;
use crate::text::chat::Message;
use crate::verify::boxed::last_boxed;
use anyhow::{Context, Result, anyhow, bail, ensure};
use parquet::file::reader::SerializedFileReader;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Keys under which a row may hold its gold answer, in the order they are looked for.
const GOLD: [&str; 6] = ["gold", "answer", "ground_truth", "final_answer", "target", "solution"];
/// verl's column, whose `ground_truth` is looked for first.
const REWARD_MODEL: &str = "reward_model";
/// Keys under which a row may hold its prompt.
const PROMPT: [&str; 5] = ["messages", "prompt", "problem", "question", "input"];

/// One row of a file of texts or tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// `{"input_ids": [...], "response_start": n}`: tokens, of which those from `response_start` on are the response.
    Tokens { input_ids: Vec<u32>, response_start: Option<usize> },
    /// `{"prompt" | "messages", "response"}`
    Text { messages: Vec<Message>, response: String },
    /// A prompt with a gold answer.
    Problem(Problem),
    /// A prompt alone.
    Prompt { messages: Vec<Message> },
}

/// A row that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    pub file: PathBuf,
    /// Its line (JSONL) or row (parquet), from 1.
    pub line: usize,
    pub reason: String,
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", place(&self.file, self.line), self.reason)
    }
}

/// Problems of a `.parquet` or JSONL file: `prompt` (a list of {role, content}, or text) and a gold answer under
/// `reward_model.ground_truth` or a plain key. The first bad row is an error.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let (problems, bad) = sort_rows(path, true)?;
    match bad.first() {
        None => Ok(problems),
        Some(first) => bail!("{first}"),
    }
}

/// As [`read_problems`], but the bad rows are handed back beside the good ones, which are the same with and without them.
/// `needs_gold`: a row without a gold answer is bad; otherwise its gold answer is empty, for rewards that need none.
///
/// Errors: a file that cannot be read, or without a single good row.
pub fn sort_rows(path: &Path, needs_gold: bool) -> Result<(Vec<Problem>, Vec<BadRow>)> {
    let source = source_of(path);
    let (mut problems, mut bad) = (Vec::new(), Vec::new());
    for numbered in values(path)? {
        let (line, value) = numbered?;
        let problem = value.and_then(|value| match parse(&value, &source, true)? {
            Row::Problem(problem) => Ok(problem),
            Row::Prompt { messages } if !needs_gold => {
                let key = PROMPT.into_iter().find(|key| value.get(*key).is_some_and(|v| !v.is_null()));
                let extra = extra(&value, key.as_slice());
                Ok(Problem::new(&source, messages, String::new(), None).with_extra(extra))
            }
            _ => bail!(
                "no problem with a gold answer: expected a prompt and reward_model.ground_truth, or one of the keys {}",
                GOLD.join(", ")
            ),
        });
        match problem {
            Ok(problem) => problems.push(problem),
            Err(reason) => bad.push(BadRow { file: path.into(), line, reason: format!("{reason:#}") }),
        }
    }
    match bad.first() {
        Some(first) if problems.is_empty() => bail!("{first}; and no other row of the {} is any better", bad.len()),
        None if problems.is_empty() => Err(empty(path)),
        _ => Ok((problems, bad)),
    }
}

/// Every row of a `.parquet` or JSONL file. An empty file is an error, and so is a bad row.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let rows = stream_rows(path)?.map(|row| row.map(|(_, row)| row)).collect::<Result<Vec<Row>>>()?;
    if rows.is_empty() { Err(empty(path)) } else { Ok(rows) }
}

/// [`read_rows`] one at a time, for files that need not fit into memory: each with its line (JSONL) or row (parquet), from 1.
/// An empty file has none.
pub fn stream_rows(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Row)>> + use<>> {
    let (source, path, values) = (source_of(path), path.to_path_buf(), values(path)?);
    Ok(values.map(move |numbered| {
        let (number, value) = numbered?;
        let row = value.and_then(|value| parse(&value, &source, false)).with_context(|| place(&path, number))?;
        Ok((number, row))
    }))
}

pub(super) fn empty(path: &Path) -> anyhow::Error {
    anyhow!("{}: the data set is empty: expected at least one row", path.display())
}

/// `FILE line N`, or `FILE row N` where the format has no lines.
pub fn place(path: &Path, number: usize) -> String {
    format!("{} {} {number}", path.display(), if is_parquet(path) { "row" } else { "line" })
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

fn source_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| "data".to_string(), |s| s.to_string_lossy().into_owned())
}

/// Numbered rows, each by itself readable or not. An error of the item itself is one of the file.
pub(super) type Values = Box<dyn Iterator<Item = Result<(usize, Result<Value>)>>>;

pub(super) fn values(path: &Path) -> Result<Values> {
    Ok(if is_parquet(path) { Box::new(parquet_rows(path)?) } else { Box::new(json_rows(path)?) })
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open the data file {}", path.display()))
}

fn parquet_rows(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Result<Value>)>> + use<>> {
    let what = format!("{} is no parquet file that can be read", path.display());
    let reader = SerializedFileReader::new(open(path)?).with_context(|| what.clone())?;
    // A column that cannot be decoded is no matter of one row.
    let row = move |(number, row): (usize, parquet::errors::Result<parquet::record::Row>)| {
        Ok((number, Ok(row.with_context(|| what.clone())?.to_json_value())))
    };
    Ok((1..).zip(reader).map(row))
}

fn json_rows(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Result<Value>)>> + use<>> {
    let (mut reader, path) = (BufReader::new(open(path)?), path.to_path_buf());
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            number += 1;
            match reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {}", path.display())) {
                Ok(0) => return None,
                Ok(_) if line.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            let text = std::str::from_utf8(&line).context("no UTF-8 text");
            let value = text.and_then(|t| {
                serde_json::from_str(&numbers::long_integers_as_text(t)).context("expected one JSON object a line")
            });
            return Some(Ok((number, value)));
        }
    }))
}

/// `asks`: the row is wanted as a problem, or a prompt, whatever tokens or response it holds beside.
fn parse(row: &Value, default_source: &str, asks: bool) -> Result<Row> {
    let fields = row.as_object().ok_or_else(|| anyhow!("expected a JSON object, got {}", kind(row)))?;
    // Columns of a table that this row leaves empty are null.
    let filled = fields.iter().filter(|(_, field)| !field.is_null());
    let value = &Value::Object(filled.map(|(key, field)| (key.clone(), field.clone())).collect());
    let asks = asks && PROMPT.iter().chain(&["Question"]).any(|key| value.get(*key).is_some());
    if let Some(ids) = value.get("input_ids").filter(|_| !asks) {
        return tokens(value, ids);
    }
    let source = value.get("data_source").and_then(Value::as_str).unwrap_or(default_source);
    if let Some(question) = choice_question(value)? {
        let message = Message { role: "user".into(), content: question.text };
        return Ok(Row::Problem(
            Problem::new(source, vec![message], question.gold, None).with_extra(extra(row, &keys_read(value))),
        ));
    }
    let (prompt, messages) = messages(value)?;
    if let Some(response) = value.get("response").filter(|_| !asks) {
        let response = response.as_str().ok_or_else(|| anyhow!("response: expected text, got {}", kind(response)))?;
        return Ok(Row::Text { messages, response: response.to_string() });
    }
    let nested = value.get(REWARD_MODEL).and_then(|r| r.get("ground_truth")).filter(|gold| !gold.is_null());
    let nested = nested.map(|gold| (REWARD_MODEL, gold));
    let Some((key, gold)) = nested.or_else(|| GOLD.into_iter().find_map(|key| Some((key, value.get(key)?)))) else {
        return Ok(Row::Prompt { messages });
    };
    let worked = value.get("worked").and_then(Value::as_str).map(str::to_string);
    Ok(Row::Problem(Problem::new(source, messages, gold_text(gold)?, worked).with_extra(extra(row, &[prompt, key]))))
}

/// What a row holds beside its prompt and its gold answer, which were read from the keys `used`, for rewards of the user's own; null if
/// there is nothing. They see the source by itself.
fn extra(value: &Value, used: &[&str]) -> Value {
    let mut rest: Map<String, Value> = value.as_object().cloned().unwrap_or_default();
    rest.retain(|key, _| key != "data_source" && (key == REWARD_MODEL || !used.contains(&key.as_str())));
    if used.contains(&REWARD_MODEL)
        && let Some(model) = rest.get_mut(REWARD_MODEL).and_then(Value::as_object_mut)
    {
        model.shift_remove("ground_truth");
        if model.is_empty() {
            rest.shift_remove(REWARD_MODEL);
        }
    }
    if rest.is_empty() { Value::Null } else { Value::Object(rest) }
}

fn tokens(value: &Value, ids: &Value) -> Result<Row> {
    let list = ids.as_array().ok_or_else(|| anyhow!("input_ids: expected a list of token ids, got {}", kind(ids)))?;
    let id = |v: &Value| {
        v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| anyhow!("input_ids: {v} is no token id"))
    };
    let input_ids = list.iter().map(id).collect::<Result<Vec<u32>>>()?;
    ensure!(!input_ids.is_empty(), "input_ids is empty: expected at least one token");
    let response_start = match value.get("response_start") {
        None => None,
        Some(start) => {
            let n = start.as_u64().map(|n| n as usize).filter(|n| (1..=input_ids.len()).contains(n));
            Some(n.ok_or_else(|| {
                anyhow!("response_start = {start}: expected 1 to {}, the row's length", input_ids.len())
            })?)
        }
    };
    Ok(Row::Tokens { input_ids, response_start })
}

/// The prompt, and the key that it was read from.
fn messages(value: &Value) -> Result<(&'static str, Vec<Message>)> {
    let Some((key, prompt)) = PROMPT.into_iter().find_map(|key| value.get(key).map(|v| (key, v))) else {
        bail!("no prompt: expected one of the keys {}, or input_ids", PROMPT.join(", "));
    };
    let messages = match prompt {
        Value::String(text) => vec![Message { role: "user".into(), content: text.clone() }],
        Value::Array(_) => serde_json::from_value(prompt.clone())
            .with_context(|| format!("{key}: expected a list of {{role, content}}"))?,
        other => bail!("{key}: expected text or a list of {{role, content}}, got {}", kind(other)),
    };
    ensure!(messages.iter().any(|m: &Message| !m.content.is_empty()), "{key} is empty: expected a prompt");
    Ok((key, messages))
}

/// A gold answer as text: text, a number, or a list with one of these.
fn gold_text(gold: &Value) -> Result<String> {
    match gold {
        Value::String(text) if !text.trim().is_empty() => Ok(final_answer(text).to_string()),
        Value::Number(number) => Ok(numbers::text(number)),
        Value::Array(list) if list.len() == 1 => gold_text(&list[0]),
        other => bail!("gold answer: expected text, a number or a list with one of them, got {other}"),
    }
}

/// The answer in a worked solution, as data sets hold it: behind the `####` of its last line (GSM8K), else in its last `\boxed{}`
/// (MATH). A text that is no such solution is the answer.
fn final_answer(text: &str) -> &str {
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    let marked =
        last.and_then(|line| line.trim().strip_prefix("####")).map(str::trim).filter(|answer| !answer.is_empty());
    marked.or_else(|| last_boxed(text)).unwrap_or(text)
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        (dir, path)
    }

    #[test]
    fn spellings_of_rows() {
        let (_dir, path) = file(concat!(
            r#"{"prompt": [{"role": "user", "content": "1+1"}], "reward_model": {"ground_truth": "2"}, "data_source": "d"}"#,
            "\n\n",
            r#"{"question": "1+2", "answer": 3}"#,
            "\n",
            r#"{"input_ids": [1, 2, 3], "response_start": 2}"#,
            "\n",
            r#"{"prompt": "a", "response": "b"}"#,
            "\n",
            r#"{"prompt": "a"}"#,
            "\n"
        ));
        let rows = read_rows(&path).unwrap();
        let Row::Problem(first) = &rows[0] else { panic!("{:?}", rows[0]) };
        assert_eq!((first.gold.as_str(), first.source.as_str()), ("2", "d"));
        let Row::Problem(second) = &rows[1] else { panic!("{:?}", rows[1]) };
        assert_eq!((second.gold.as_str(), second.source.as_str()), ("3", "rows"));
        assert_eq!(rows[2], Row::Tokens { input_ids: vec![1, 2, 3], response_start: Some(2) });
        assert!(matches!(&rows[3], Row::Text { response, .. } if response == "b"));
        assert!(matches!(&rows[4], Row::Prompt { .. }));
    }

    #[test]
    fn fields_of_null_are_not_there() {
        let whole = r#"{"problem": "a", "answer": "1"}"#;
        for row in [
            r#"{"problem": "a", "answer": "1", "options": null, "Correct Answer": null}"#,
            r#"{"messages": null, "prompt": null, "problem": "a", "answer": "1"}"#,
            r#"{"problem": "a", "answer": null, "ground_truth": "1", "reward_model": {"ground_truth": null}}"#,
            r#"{"problem": "a", "answer": "1", "response": null, "input_ids": null}"#,
        ] {
            let (_dir, path) = file(&format!("{whole}\n{row}"));
            let problems = read_problems(&path).unwrap();
            assert_eq!((&problems[0].messages, &problems[0].gold), (&problems[1].messages, &problems[1].gold), "{row}");
        }
    }

    #[test]
    fn the_gold_answer_of_a_worked_solution_is_its_answer() {
        for (solution, gold) in [
            ("He has 0+70 = <<0+70=70>>70.\n#### 70", "70"),
            ("Each.\n#### 1,200 \n", "1,200"),
            ("We get $\\boxed{\\frac{1}{2}}$. So $\\boxed{70}$ it is.", "70"),
            ("#### is no mark here\n70", "#### is no mark here\n70"),
            ("\\boxed{", "\\boxed{"),
            ("\\frac{1}{2}", "\\frac{1}{2}"),
        ] {
            let row = serde_json::json!({"question": "a", "answer": solution});
            let (_dir, path) = file(&row.to_string());
            assert_eq!(read_problems(&path).unwrap()[0].gold, gold);
        }
    }

    #[test]
    fn a_row_with_a_gold_answer_is_a_problem_whatever_else_it_holds() {
        let (_dir, path) = file(r#"{"prompt": "a", "answer": 1, "response": "b", "input_ids": [1, 2]}"#);
        let problem = read_problems(&path).unwrap().remove(0);
        assert_eq!((problem.question(), problem.gold.as_str()), ("a", "1"));
        assert_eq!(problem.extra, serde_json::json!({"response": "b", "input_ids": [1, 2]}));
        let (_dir, path) = file(r#"{"prompt": "a", "answer": 1, "response": "b"}"#);
        assert!(matches!(&read_rows(&path).unwrap()[0], Row::Text { response, .. } if response == "b"));
        // A reward that needs no gold answer.
        let (_dir, path) = file(r#"{"prompt": "a", "response": "b"}"#);
        assert_eq!(sort_rows(&path, false).unwrap().0.len(), 1);
        let (_dir, path) = file(r#"{"input_ids": [1, 2]}"#);
        assert!(read_problems(&path).unwrap_err().to_string().contains("no problem with a gold answer"));
    }

    #[test]
    fn bad_rows_are_named() {
        for (text, expected) in [
            ("", "empty"),
            ("{\"prompt\": \"a\"\n", "line 1"),
            ("{\"prompt\": \"a\"}\n[1]\n", "line 2"),
            (r#"{"input_ids": []}"#, "empty"),
            (r#"{"input_ids": [-1]}"#, "-1"),
            (r#"{"input_ids": [1], "response_start": 0}"#, "1 to 1"),
            (r#"{"input_ids": "x"}"#, "list of token ids"),
            (r#"{"prompt": 5}"#, "a number"),
            (r#"{"prompt": ""}"#, "empty"),
            (r#"{"prompt": "a", "answer": [1, 2]}"#, "gold answer"),
            (r#"{"text": "a"}"#, "no prompt"),
        ] {
            let (_dir, path) = file(text);
            let error = format!("{:#}", read_rows(&path).unwrap_err());
            assert!(error.contains(expected) && error.contains("rows.jsonl"), "{text}: {error}");
        }
        let error = format!("{:#}", read_rows(Path::new("/nonexistent/x.jsonl")).unwrap_err());
        assert!(error.contains("/nonexistent/x.jsonl"));
        let (_dir, path) = file("not parquet at all");
        let parquet = path.with_extension("parquet");
        std::fs::rename(&path, &parquet).unwrap();
        assert!(format!("{:#}", read_rows(&parquet).unwrap_err()).contains("parquet"));
    }

    #[test]
    fn bad_rows_are_told_by_line_and_change_nothing_for_the_others() {
        let good = [r#"{"prompt": "a", "answer": 1}"#, r#"{"question": "b", "options": ["x", "y"], "answer": "B"}"#];
        let (_dir, clean) = file(&good.join("\n"));
        let (_dir2, path) = file(&format!(
            "{}\n{{\"prompt\": \"no gold\"}}\n{{\"prompt\": \"\", \"answer\": 1}}\n\n{}\n{{\"prompt\": 3, \"answer\": 1}}\nnonsense\n[]",
            good[0], good[1]
        ));
        let (problems, bad) = sort_rows(&path, true).unwrap();
        assert_eq!(problems, read_problems(&clean).unwrap());
        let lines: Vec<usize> = bad.iter().map(|b| b.line).collect();
        assert_eq!(lines, [2, 3, 6, 7, 8]);
        let first = bad[0].to_string();
        assert!(first.contains("rows.jsonl line 2") && first.contains("gold"), "{first}");
        assert!(read_problems(&path).unwrap_err().to_string().contains("line 2"));
        // Where the reward needs no gold answer, a row without one is good.
        let (problems, bad) = sort_rows(&path, false).unwrap();
        assert_eq!((problems.len(), problems[1].gold.as_str(), bad.len()), (3, "", 4));
        let (_dir3, hopeless) = file("[1]\n[2]\n");
        assert!(sort_rows(&hopeless, true).unwrap_err().to_string().contains("no other row of the 2"));
        let (_dir4, bytes) = file("");
        std::fs::write(&bytes, b"\xff\xfe\n").unwrap();
        assert!(sort_rows(&bytes, true).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn what_else_a_row_holds_is_kept_for_rewards() {
        let (_dir, path) = file(r#"{"prompt": "a", "answer": 1, "tests": ["t"], "extra_info": {"index": 2}}"#);
        let problem = read_problems(&path).unwrap().remove(0);
        assert_eq!(problem.extra, serde_json::json!({"tests": ["t"], "extra_info": {"index": 2}}));
        // Only what was read as prompt and gold answer is gone, whatever the others are called.
        let (_dir, path) = file(concat!(
            r#"{"problem": "a", "answer": "1", "solution": "s", "target": 2, "input": "i", "worked": "w", "level": 3, "data_source": "d"}"#,
            "\n",
            r#"{"prompt": "a", "reward_model": {"ground_truth": "1", "style": "rule"}, "answer": "b"}"#,
            "\n",
            r#"{"question": "a", "options": ["x", "y"], "answer": "B", "solution": "s"}"#,
            "\n",
            r#"{"prompt": "a", "reward_model": {"ground_truth": "1"}}"#,
        ));
        let extras: Vec<Value> = read_problems(&path).unwrap().into_iter().map(|p| p.extra).collect();
        assert_eq!(
            Value::from(extras),
            serde_json::json!([
                {"solution": "s", "target": 2, "input": "i", "worked": "w", "level": 3},
                {"reward_model": {"style": "rule"}, "answer": "b"},
                {"options": ["x", "y"], "solution": "s"},
                null
            ])
        );
    }
}

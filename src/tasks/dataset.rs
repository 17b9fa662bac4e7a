//! Problems and token rows from files: parquet in verl's row layout, and JSON lines in the spellings people use.
//!
//! A bad row is an error that names the file and the row; nothing is skipped in silence.

use super::problem::Problem;
use crate::text::chat::Message;
use anyhow::{Context, Result, anyhow, bail, ensure};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Keys under which a row may hold its gold answer, in the order they are looked for.
const GOLD: [&str; 5] = ["gold", "answer", "ground_truth", "final_answer", "solution"];
/// Keys under which a row may hold its prompt.
const PROMPT: [&str; 4] = ["messages", "prompt", "problem", "question"];

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

/// Problems of a `.parquet` or JSONL file: `prompt` (a list of {role, content}, or text) and a gold answer under
/// `reward_model.ground_truth` or a plain key.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let rows = read_rows(path)?;
    let problem = |(i, row)| match row {
        Row::Problem(problem) => Ok(problem),
        _ => bail!(
            "{} row {}: no problem with a gold answer: expected a prompt and reward_model.ground_truth, or one of the keys {}",
            path.display(),
            i + 1,
            GOLD.join(", ")
        ),
    };
    rows.into_iter().enumerate().map(problem).collect()
}

/// Every row of a `.parquet` or JSONL file. An empty file is an error.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let values = if path.extension().is_some_and(|e| e == "parquet") { parquet_rows(path) } else { json_rows(path) }?;
    ensure!(!values.is_empty(), "{}: the data set is empty: expected at least one row", path.display());
    let source = path.file_stem().map_or_else(|| "data".to_string(), |s| s.to_string_lossy().into_owned());
    let row = |(line, value): (usize, Value)| {
        parse(&value, &source).with_context(|| format!("{} row {line}", path.display()))
    };
    values.into_iter().map(row).collect()
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open the data file {}", path.display()))
}

fn parquet_rows(path: &Path) -> Result<Vec<(usize, Value)>> {
    let what = || format!("{} is no parquet file that can be read", path.display());
    let reader = SerializedFileReader::new(open(path)?).with_context(what)?;
    let rows = reader.get_row_iter(None).with_context(what)?;
    rows.enumerate().map(|(i, row)| Ok((i + 1, row.with_context(what)?.to_json_value()))).collect()
}

fn json_rows(path: &Path) -> Result<Vec<(usize, Value)>> {
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(open(path)?).lines().enumerate() {
        let line = line.with_context(|| format!("{} line {} cannot be read as UTF-8 text", path.display(), i + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(&line)
            .with_context(|| format!("{} line {}: expected one JSON object a line", path.display(), i + 1))?;
        rows.push((i + 1, value));
    }
    Ok(rows)
}

fn parse(value: &Value, default_source: &str) -> Result<Row> {
    ensure!(value.is_object(), "expected a JSON object, got {}", kind(value));
    if let Some(ids) = value.get("input_ids") {
        return tokens(value, ids);
    }
    let messages = messages(value)?;
    if let Some(response) = value.get("response") {
        let response = response.as_str().ok_or_else(|| anyhow!("response: expected text, got {}", kind(response)))?;
        return Ok(Row::Text { messages, response: response.to_string() });
    }
    let nested = value.get("reward_model").and_then(|r| r.get("ground_truth"));
    let Some(gold) = nested.or_else(|| GOLD.iter().find_map(|key| value.get(*key))).filter(|g| !g.is_null()) else {
        return Ok(Row::Prompt { messages });
    };
    let source = value.get("data_source").and_then(Value::as_str).unwrap_or(default_source);
    let worked = value.get("worked").and_then(Value::as_str).map(str::to_string);
    Ok(Row::Problem(Problem::new(source, messages, gold_text(gold)?, worked)))
}

fn tokens(value: &Value, ids: &Value) -> Result<Row> {
    let list = ids.as_array().ok_or_else(|| anyhow!("input_ids: expected a list of token ids, got {}", kind(ids)))?;
    let id = |v: &Value| {
        v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| anyhow!("input_ids: {v} is no token id"))
    };
    let input_ids = list.iter().map(id).collect::<Result<Vec<u32>>>()?;
    ensure!(!input_ids.is_empty(), "input_ids is empty: expected at least one token");
    let response_start = match value.get("response_start") {
        None | Some(Value::Null) => None,
        Some(start) => {
            let n = start.as_u64().map(|n| n as usize).filter(|n| (1..=input_ids.len()).contains(n));
            Some(n.ok_or_else(|| {
                anyhow!("response_start = {start}: expected 1 to {}, the row's length", input_ids.len())
            })?)
        }
    };
    Ok(Row::Tokens { input_ids, response_start })
}

fn messages(value: &Value) -> Result<Vec<Message>> {
    let Some((key, prompt)) = PROMPT.iter().find_map(|key| value.get(*key).map(|v| (*key, v))) else {
        bail!("no prompt: expected one of the keys {}, or input_ids", PROMPT.join(", "));
    };
    let messages = match prompt {
        Value::String(text) => vec![Message { role: "user".into(), content: text.clone() }],
        Value::Array(_) => serde_json::from_value(prompt.clone())
            .with_context(|| format!("{key}: expected a list of {{role, content}}"))?,
        other => bail!("{key}: expected text or a list of {{role, content}}, got {}", kind(other)),
    };
    ensure!(messages.iter().any(|m: &Message| !m.content.is_empty()), "{key} is empty: expected a prompt");
    Ok(messages)
}

/// A gold answer as text: text, a number, or a list with one of these.
fn gold_text(gold: &Value) -> Result<String> {
    match gold {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(list) if list.len() == 1 => gold_text(&list[0]),
        other => bail!("gold answer: expected text, a number or a list with one of them, got {other}"),
    }
}

fn kind(value: &Value) -> &'static str {
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
    fn bad_rows_are_named() {
        for (text, expected) in [
            ("", "empty"),
            ("{\"prompt\": \"a\"\n", "line 1"),
            ("{\"prompt\": \"a\"}\n[1]\n", "row 2"),
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
}

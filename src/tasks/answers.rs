//! Answers to be judged, from JSON lines of {gold, answer}. A bad row is told with its line and holds up no other.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A gold answer and what was answered; either may be a bare answer or a whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRow {
    pub gold: String,
    pub answer: String,
}

/// Every line of a file that is not blank, in order: its number from 1, and the row or what is wrong with it.
pub fn read_answers(path: &Path) -> Result<Vec<(usize, Result<AnswerRow, String>)>> {
    let file = File::open(path).with_context(|| format!("cannot open the answers file {}", path.display()))?;
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.with_context(|| format!("cannot read {} at line {}", path.display(), i + 1))?;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        rows.push((i + 1, parse(&line)));
    }
    ensure!(!rows.is_empty(), "{} is empty: expected one JSON object {{gold, answer}} a line", path.display());
    Ok(rows)
}

fn parse(line: &[u8]) -> Result<AnswerRow, String> {
    let value: Value = serde_json::from_slice(line).map_err(|e| format!("expected one JSON object a line: {e}"))?;
    if !value.is_object() {
        return Err(format!("expected a JSON object {{gold, answer}}, got {}", shown(&value)));
    }
    let gold = field(&value, "gold")?;
    if gold.trim().is_empty() {
        return Err("gold is empty: expected an answer".to_string());
    }
    Ok(AnswerRow { gold, answer: field(&value, "answer")? })
}

fn field(row: &Value, key: &str) -> Result<String, String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => Err(format!("{key}: expected text or a number, got {}", shown(other))),
        None => Err(format!("no {key}: expected text or a number under that key")),
    }
}

/// A value as it is quoted in an error: its beginning.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain("...".chars()).collect() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn good_rows_are_read_and_bad_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let text = b"{\"gold\": \"1/2\", \"answer\": 0.5}\n\n{\"answer\": \"1\"}\n{\"gold\": [1], \"answer\": \"1\"}\n[]\n{\"gold\": \"1\"\n{\"gold\": \" \", \"answer\": \"\"}\n\xff\n{\"gold\": 3, \"answer\": \"\"}\n";
        File::create(&path).unwrap().write_all(text).unwrap();
        let rows = read_answers(&path).unwrap();
        assert_eq!(rows[0], (1, Ok(AnswerRow { gold: "1/2".into(), answer: "0.5".into() })));
        assert_eq!(rows[7], (9, Ok(AnswerRow { gold: "3".into(), answer: "".into() })));
        let bad: Vec<(usize, &str)> =
            rows[1..7].iter().map(|(line, row)| (*line, row.as_ref().unwrap_err().as_str())).collect();
        for ((line, error), (number, expected)) in bad.iter().zip([
            (3, "no gold"),
            (4, "gold: expected text or a number, got [1]"),
            (5, "got []"),
            (6, "one JSON object a line"),
            (7, "gold is empty"),
            (8, "one JSON object a line"),
        ]) {
            assert!(*line == number && error.contains(expected), "{line}: {error}");
        }
        File::create(&path).unwrap();
        assert!(format!("{:#}", read_answers(&path).unwrap_err()).contains("is empty"));
        assert!(read_answers(Path::new("/nonexistent/a.jsonl")).is_err());
    }
}

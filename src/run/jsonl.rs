//! JSON lines that grow: one object a line, whole lines only.

use super::atomic::write_file_atomic;
use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Appends rows to a file, one write a call.
#[derive(Debug)]
pub struct JsonlWriter {
    file: File,
    path: PathBuf,
}

impl JsonlWriter {
    /// Opens for appending; the file is made if it is not there.
    pub fn open(path: &Path) -> Result<JsonlWriter> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(JsonlWriter { file: file.with_context(|| format!("cannot open {}", path.display()))?, path: path.into() })
    }

    /// Appends rows. Numbers that are not finite become null, as JSON has none.
    pub fn append<T: Serialize>(&mut self, rows: &[T]) -> Result<()> {
        let bytes = lines(rows)?;
        self.file.write_all(&bytes).with_context(|| format!("cannot append to {}", self.path.display()))
    }
}

/// Writes a whole file of rows, atomically.
pub fn write_jsonl<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    write_file_atomic(path, &lines(rows)?)
}

fn lines<T: Serialize>(rows: &[T]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut bytes, row).context("a row cannot be written as JSON")?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// Rows of a file, whatever wrote it. A torn last line, as a killed writer leaves it, is dropped; any other bad line is an
/// error that names it. A file that is not there has no rows.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    // Without its last line feed a line is not whole, even if it parses.
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut rows = Vec::new();
    for (i, line) in bytes[..whole].split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = serde_json::from_slice(line);
        rows.push(row.with_context(|| format!("{} line {} is not what was written there", path.display(), i + 1))?);
    }
    Ok(rows)
}

/// Cuts a torn last line off, so that rows can be appended.
pub fn mend(path: &Path) -> Result<()> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(()) };
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole == bytes.len() { Ok(()) } else { write_file_atomic(path, &bytes[..whole]) }
}

/// Keeps the rows whose `step` is at most `last`: what a resumed run begins with. A torn last line is dropped; a file that
/// is not there stays so.
pub fn keep_steps_until(path: &Path, last: usize) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    let kept = text.lines().filter(|line| {
        let row: Option<serde_json::Value> = serde_json::from_str(line).ok();
        row.and_then(|r| r.get("step")?.as_u64()).is_some_and(|step| step <= last as u64)
    });
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    write_file_atomic(path, kept.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_after_a_checkpoint_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let mut writer = JsonlWriter::open(&path).unwrap();
        writer.append(&[json!({"step": 1}), json!({"step": 2, "x": f64::NAN})]).unwrap();
        writer.append(&[json!({"step": 3})]).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\": 1, \"to").unwrap();
        keep_steps_until(&path, 2).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2,\"x\":null}\n");
        keep_steps_until(&dir.path().join("none"), 2).unwrap();
    }

    #[test]
    fn a_torn_end_is_dropped_and_a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        assert!(read_jsonl::<serde_json::Value>(&path).unwrap().is_empty());
        std::fs::write(&path, "{\"a\": 1}\n\n{\"a\": 2}\n{\"a\": 3}").unwrap();
        let read = || read_jsonl::<serde_json::Value>(&path);
        assert_eq!(read().unwrap(), [json!({"a": 1}), json!({"a": 2})]);
        mend(&path).unwrap();
        JsonlWriter::open(&path).unwrap().append(&[json!({"a": 4})]).unwrap();
        assert_eq!(read().unwrap().len(), 3);
        std::fs::write(&path, "{\"a\": 1}\n{\"a\": \n{\"a\": 3}\n").unwrap();
        let error = format!("{:#}", read().unwrap_err());
        assert!(error.contains("line 2") && error.contains("r.jsonl"), "{error}");
    }
}

//! JSON lines that grow: one object a line, whole lines only.

use super::atomic::write_file_atomic;
use anyhow::{Context, Result};
use serde::Serialize;
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
}

//! JSON lines that grow: one object a line, whole lines only.

use super::atomic::{AtomicFile, write_file_atomic};
use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Appends rows to a file, one write a call.
#[derive(Debug)]
pub struct JsonlWriter {
    file: File,
    path: PathBuf,
}

impl JsonlWriter {
    /// Opens for appending; the file and its folder are made if they are not there.
    pub fn open(path: &Path) -> Result<JsonlWriter> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create the folder {}", dir.display()))?;
        }
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
    stream_jsonl(path)?.collect()
}

/// [`read_jsonl`] one row at a time, of a file that is there.
pub fn stream_jsonl<T: DeserializeOwned>(path: &Path) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
    let lines = whole_lines(path)?;
    let path = path.to_path_buf();
    let row = move |line: Result<(usize, Vec<u8>)>| {
        let (number, line) = line?;
        let row = serde_json::from_slice(&line);
        row.with_context(|| format!("{} line {number} is not what was written there", path.display()))
    };
    let written = |line: &Result<(usize, Vec<u8>)>| match line {
        Ok((_, line)) => !line.iter().all(u8::is_ascii_whitespace),
        Err(_) => true,
    };
    Ok(lines.filter(written).map(row))
}

/// Whole lines with their numbers. Without its last line feed a line is not whole, even if it parses.
fn whole_lines(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Vec<u8>)>> + use<>> {
    let what = format!("cannot read {}", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(|| what.clone())?);
    let mut next = move || {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).with_context(|| what.clone())?;
        Ok((line.last() == Some(&b'\n')).then_some(line))
    };
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        number += 1;
        next().transpose().map(|line| line.map(|line| (number, line)))
    }))
}

/// Cuts a torn last line off, so that rows can be appended.
pub fn mend(path: &Path) -> Result<()> {
    const STEP: u64 = 1 << 16;
    if !path.is_file() {
        return Ok(());
    }
    let cut = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut end = file.metadata()?.len();
        // Backwards to the last line feed: the file may be larger than memory.
        loop {
            let from = end.saturating_sub(STEP);
            let mut bytes = vec![0; (end - from) as usize];
            file.seek(SeekFrom::Start(from))?;
            file.read_exact(&mut bytes)?;
            let whole = bytes.iter().rposition(|b| *b == b'\n').map(|at| from + at as u64 + 1);
            match whole.or((from == 0).then_some(0)) {
                Some(whole) if whole == file.metadata()?.len() => return Ok(()),
                Some(whole) => return file.set_len(whole),
                None => end = from,
            }
        }
    };
    cut().with_context(|| format!("cannot mend the end of {}", path.display()))
}

/// Puts the lines of a file in the order of their keys, without holding them. Lines in order already stay as they are.
pub fn sort_jsonl<T: DeserializeOwned, K: Ord>(path: &Path, key: impl Fn(&T) -> K) -> Result<()> {
    let mut places = Vec::new();
    let mut at = 0;
    for line in whole_lines(path)? {
        let (number, line) = line?;
        let row = serde_json::from_slice(&line);
        let row: T = row.with_context(|| format!("{} line {number} is not what was written there", path.display()))?;
        places.push((key(&row), at, line.len()));
        at += line.len() as u64;
    }
    if places.is_sorted_by(|a, b| a.0 <= b.0) {
        return Ok(());
    }
    places.sort_by(|a, b| a.0.cmp(&b.0));
    let what = || format!("cannot sort {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let mut sorted = BufWriter::new(AtomicFile::create(path)?);
    for (_, at, len) in places {
        let mut line = vec![0; len];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut line)).with_context(what)?;
        sorted.write_all(&line).with_context(what)?;
    }
    sorted.into_inner().map_err(|e| e.into_error()).with_context(what)?.commit()
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
        // A torn line that is longer than one step backwards, and nothing but one.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &vec![b'x'; 200_000]].concat()).unwrap();
        mend(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
        mend(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        mend(&path).unwrap();
        mend(&dir.path().join("none")).unwrap();
        std::fs::write(&path, "{\"a\": 1}\n{\"a\": \n{\"a\": 3}\n").unwrap();
        let error = format!("{:#}", read().unwrap_err());
        assert!(error.contains("line 2") && error.contains("r.jsonl"), "{error}");
    }

    #[test]
    fn lines_are_put_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        std::fs::write(&path, "{\"a\": 3}\n{\"a\": 1, \"b\": 0}\n{\"a\": 2}\n{\"a\": 1}\n{\"a\": 0").unwrap();
        let sort = || sort_jsonl(&path, |row: &serde_json::Value| row["a"].as_u64());
        sort().unwrap();
        let sorted = "{\"a\": 1, \"b\": 0}\n{\"a\": 1}\n{\"a\": 2}\n{\"a\": 3}\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sorted);
        sort().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sorted);
    }
}

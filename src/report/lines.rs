//! JSON lines of files that may be growing, torn or damaged: what can be read is shown, the rest is counted.

use super::place::Place;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

/// Rows of a file from some line on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lines {
    pub rows: Vec<Value>,
    /// Whole lines in the file, those before the first one asked for too.
    pub total: usize,
    /// Whole lines, among those asked for, that hold no JSON object.
    pub bad: usize,
}

/// Rows from line `from` on (0: all). A last line without its line feed is still being written and is left for the next
/// reading. A file that is not there has no rows.
pub fn lines(place: &Place, path: &Path, from: usize) -> Result<Lines> {
    if !place.is_file(path) {
        return Ok(Lines::default());
    }
    let bytes = place.read(path)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').unwrap_or(0);
    let mut out = Lines::default();
    for line in bytes[..whole].split(|b| *b == b'\n').filter(|l| !l.iter().all(u8::is_ascii_whitespace)) {
        out.total += 1;
        if out.total <= from {
            continue;
        }
        match serde_json::from_slice::<Value>(line) {
            Ok(row) if row.is_object() => out.rows.push(row),
            _ => out.bad += 1,
        }
    }
    Ok(out)
}

/// At most `most` of the rows, evenly spread, the first and the last among them.
pub fn thin(rows: Vec<Value>, most: usize) -> Vec<Value> {
    let n = rows.len();
    if n <= most || most < 2 {
        return rows;
    }
    let kept: Vec<usize> = (0..most).map(|i| i * (n - 1) / (most - 1)).collect();
    let mut kept = kept.into_iter().peekable();
    let of = |(i, row)| kept.next_if_eq(&i).map(|_| row);
    rows.into_iter().enumerate().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_that_is_written_to_is_read_up_to_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let place = Place::anywhere();
        assert_eq!(lines(&place, &path, 0).unwrap(), Lines::default());
        for (text, from, rows, total, bad) in [
            ("", 0, 0, 0, 0),
            ("{\"a\"", 0, 0, 0, 0),
            ("{\"a\":1}\n{\"a\":2}\n{\"a\":3", 0, 2, 2, 0),
            ("{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n", 2, 1, 3, 0),
            ("{\"a\":1}\n{\"a\":2}\n", 7, 0, 2, 0),
            ("{\"a\":1}\n\0\0\n[1]\n\n{\"a\":2}\n", 0, 2, 4, 2),
        ] {
            std::fs::write(&path, text).unwrap();
            let found = lines(&place, &path, from).unwrap();
            assert_eq!((found.rows.len(), found.total, found.bad), (rows, total, bad), "{text:?}");
        }
    }

    #[test]
    fn thinning_keeps_both_ends() {
        let rows: Vec<Value> = (0..1001).map(|i| json!(i)).collect();
        let kept = thin(rows.clone(), 11);
        assert_eq!(kept, (0..11).map(|i| json!(i * 100)).collect::<Vec<_>>());
        assert_eq!(thin(rows[..5].to_vec(), 11).len(), 5);
    }
}

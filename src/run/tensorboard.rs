//! Scalars as TensorBoard reads them: event files of TFRecords that hold protobuf messages.
//!
//! The format is TensorBoard's `event.proto` and `summary.proto`, of which this is the part that scalars need. A record is the
//! length (u64), its masked CRC-32C, the message, and its masked CRC-32C, all little-endian.

use anyhow::{Context, Result};
use crc::{CRC_32_ISCSI, Crc};
use prost::Message;
use serde_json::Value as Json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// CRC-32C.
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// `SessionLog.SessionStatus.START`
const START: i32 = 1;
const PREFIX: &str = "events.out.tfevents.";

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    /// One of several kinds of value, so that a 0 must be there to be seen.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file that grows.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// A new file in a folder, for steps from `first_step` on. Files are not cut back when a run is taken up again: the new
    /// one says with which step it begins, and TensorBoard then drops what older ones have from there on.
    pub fn open(dir: &Path, first_step: usize) -> Result<TensorBoard> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
        let older = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)).count();
        // Read in the order of their names: by time, and by number within a second.
        let path = dir.join(format!("{PREFIX}{:010}.{older:04}.bupo", now() as u64));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        let mut board = TensorBoard { file, path };
        board.write(0, What::FileVersion("brain.Event:2".into()))?;
        board.write(first_step, What::SessionLog(SessionLog { status: START }))?;
        Ok(board)
    }

    /// Appends the scalars of a step, one write for all; those that are no finite numbers are left out.
    pub fn append(&mut self, step: usize, scalars: &[(String, f64)]) -> Result<()> {
        let finite = scalars.iter().filter(|(_, value)| value.is_finite());
        let values = finite.map(|(tag, value)| Scalar { tag: tag.clone(), simple_value: Some(*value as f32) });
        self.write(step, What::Summary(Summary { values: values.collect() }))
    }

    fn write(&mut self, step: usize, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        let bytes = record(&event.encode_to_vec());
        self.file.write_all(&bytes).with_context(|| format!("cannot append to {}", self.path.display()))
    }
}

/// Numbers of a JSON object by their paths (`prefix/rewards/mean`). A list is by layer, from 1 (`.../layer-06`); what is no
/// number is left out, and so is `step`, under which the others are shown.
pub fn scalars(prefix: &str, value: &Json) -> Vec<(String, f64)> {
    let mut out = Vec::new();
    collect(prefix.to_string(), value, &mut out);
    out
}

fn collect(path: String, value: &Json, out: &mut Vec<(String, f64)>) {
    match value {
        Json::Object(fields) => {
            for (key, value) in fields.iter().filter(|(key, _)| *key != "step") {
                collect(format!("{path}/{key}"), value, out);
            }
        }
        Json::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                collect(format!("{path}/layer-{:02}", i + 1), value, out);
            }
        }
        other => out.extend(other.as_f64().map(|number| (path, number))),
    }
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(message.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked(&length).to_le_bytes());
    bytes.extend_from_slice(message);
    bytes.extend_from_slice(&masked(message).to_le_bytes());
    bytes
}

/// A checksum of data that holds checksums would be weak: TFRecords rotate it and add a constant.
fn masked(bytes: &[u8]) -> u32 {
    CHECKSUM.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every event of a file, its checksums checked.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        let number = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().unwrap());
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let (head, body) = (&rest[..8], &rest[12..12 + n]);
            assert_eq!((number(&rest[8..]), number(&rest[12 + n..])), (masked(head), masked(body)));
            events.push(Event::decode(body).unwrap());
            rest = &rest[16 + n..];
        }
        events
    }

    #[test]
    fn what_is_written_decodes_to_the_same_scalars_and_every_start_has_its_own_file() {
        let dir = tempfile::tempdir().unwrap();
        for first in [0, 3] {
            let mut board = TensorBoard::open(dir.path(), first).unwrap();
            let tags = [("a/b".to_string(), 1.5), ("c".into(), f64::NAN), ("d".into(), 0.0)];
            board.append(first + 1, &tags).unwrap();
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 2);
        for (file, first) in files.iter().zip([0, 3]) {
            let events = read(file);
            assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
            let start = What::SessionLog(SessionLog { status: START });
            assert_eq!((events[1].step, events[1].what.clone()), (first, Some(start)));
            let scalar = |tag: &str, value| Scalar { tag: tag.into(), simple_value: Some(value) };
            let summary = Summary { values: vec![scalar("a/b", 1.5), scalar("d", 0.0)] };
            assert_eq!((events[2].step, events[2].what.clone()), (first + 1, Some(What::Summary(summary))));
            assert!(events.len() == 3 && events[2].wall_time > 1.6e9);
        }
    }

    /// The check value of CRC-32C, masked by hand: 0xe3069283 rotated right by 15 is 0x2507c60d.
    #[test]
    fn checksums_are_those_of_the_format() {
        assert_eq!(CHECKSUM.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(masked(b"123456789"), 0x2507_c60d_u32.wrapping_add(0xa282_ead8));
    }

    #[test]
    fn nested_numbers_become_paths_and_lists_layers() {
        let row = json!({"step": 3, "policy": "final", "lr": 0.5, "on": true, "no": null, "kl": {"to": [1.0, 2]}});
        let found = scalars("probe", &row);
        let expected = [("probe/lr", 0.5), ("probe/kl/to/layer-01", 1.0), ("probe/kl/to/layer-02", 2.0)];
        assert_eq!(found, expected.map(|(tag, value)| (tag.to_string(), value)));
    }
}

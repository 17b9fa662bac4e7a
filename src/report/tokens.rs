//! Token maps (`tokens.parquet`) as a page wants them: for every sample one block of numbers a state, layer by layer, in
//! place of a row a cell.

use super::place::Place;
use anyhow::{Context, Result, bail};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::statistics::Statistics;
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Numbers of a cell, each a column of the file.
const QUANTITIES: [&str; 4] = ["entropy", "kl_to_final", "log_prob", "rank"];

/// How much of a file is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Only this sample.
    pub sample: Option<u64>,
    /// Positions of a sample; later ones are left out and counted.
    pub positions: usize,
    /// Cells (rows of the file) of all samples together; samples that would begin beyond are left out and counted.
    pub cells: usize,
}

/// A sample's cells on their way.
#[derive(Default)]
struct Sample {
    /// Position, with the token that came: its id and text.
    tokens: BTreeMap<u64, (u64, String)>,
    left_out: BTreeSet<u64>,
    cells: BTreeMap<(String, u64, u64), Cell>,
}

struct Cell {
    numbers: [f64; 4],
    top: Vec<(u64, String, f64)>,
}

/// `{"samples": [{"sample", "positions", "token_ids", "tokens", "left_out", "vocabulary", "ids", "states": {state:
/// {"layers", "entropy", "kl_to_final", "log_prob", "rank", "top", "top_probs"}}}], "all": [samples in the file]}`. Blocks are
/// flat, `[layers, positions]`, and for the top tokens `[layers, positions, k]`: indices into `vocabulary` and `ids`.
pub fn tokens(place: &Place, path: &Path, wanted: Wanted) -> Result<Value> {
    let what = || format!("{} is no table of token maps", path.display());
    let reader = SerializedFileReader::new(place.open(path)?).with_context(what)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<String> = schema.get_fields().iter().map(|f| f.name().to_string()).collect();
    for needed in ["sample", "position", "token", "state", "layer", "entropy"] {
        if !names.iter().any(|n| n == needed) {
            bail!("{}: column {needed} is missing, it has {}", what(), names.join(", "));
        }
    }
    let column = names.iter().position(|n| n == "sample").unwrap_or(0);
    let (mut samples, mut cells, mut all) = (BTreeMap::<u64, Sample>::new(), 0usize, BTreeSet::new());
    for group in 0..reader.num_row_groups() {
        let metadata = reader.metadata().row_group(group);
        let range = metadata.column(column).statistics().and_then(range);
        if let (Some(only), Some((low, high))) = (wanted.sample, range)
            && !(low..=high).contains(&only)
        {
            all.extend(low..=high);
            continue;
        }
        for row in reader.get_row_group(group).with_context(what)?.get_row_iter(None).with_context(what)? {
            let row = row.with_context(what)?;
            let Some(sample) = field(&row, "sample").map(number) else { continue };
            let sample = sample as u64;
            all.insert(sample);
            let skip = wanted.sample.is_some_and(|only| only != sample);
            if skip || (cells >= wanted.cells && !samples.contains_key(&sample)) {
                continue;
            }
            cells += samples.entry(sample).or_default().add(&row, wanted.positions) as usize;
        }
    }
    let samples: Vec<Value> = samples.into_iter().map(|(n, s)| s.json(n)).collect();
    Ok(json!({"samples": samples, "all": all}))
}

impl Sample {
    /// Takes a row; false if its position was one too many.
    fn add(&mut self, row: &Row, positions: usize) -> bool {
        let int = |name: &str| field(row, name).map_or(0, |f| number(f) as u64);
        let text = |name: &str| field(row, name).map_or(String::new(), string);
        let position = int("position");
        if !self.tokens.contains_key(&position) {
            if self.tokens.len() >= positions {
                self.left_out.insert(position);
                return false;
            }
            self.tokens.insert(position, (int("token_id"), text("token")));
        }
        let numbers = QUANTITIES.map(|q| field(row, q).map_or(f64::NAN, number));
        let list = |name: &str| field(row, name).map_or(Vec::new(), elements);
        let (ids, words, probs) = (list("top_ids"), list("top_tokens"), list("top_probs"));
        let top = ids.into_iter().zip(words).zip(probs);
        let top = top.map(|((id, word), p)| (number(id) as u64, string(word), number(p))).collect();
        self.cells.insert((text("state"), int("layer"), position), Cell { numbers, top });
        true
    }

    fn json(&self, sample: u64) -> Value {
        let positions: Vec<u64> = self.tokens.keys().copied().collect();
        let mut vocabulary: BTreeMap<(u64, &str), usize> = BTreeMap::new();
        for (id, word, _) in self.cells.values().flat_map(|c| &c.top) {
            let next = vocabulary.len();
            vocabulary.entry((*id, word)).or_insert(next);
        }
        let mut words = vec![("", 0); vocabulary.len()];
        vocabulary.iter().for_each(|((id, word), at)| words[*at] = (word, *id));
        let k = self.cells.values().map(|c| c.top.len()).max().unwrap_or(0);
        let mut states = Map::new();
        let names: BTreeSet<&String> = self.cells.keys().map(|(state, _, _)| state).collect();
        for state in names {
            let layers: BTreeSet<u64> = self.cells.keys().filter(|c| c.0 == *state).map(|c| c.1).collect();
            let cell = |layer: u64, position: u64| self.cells.get(&(state.clone(), layer, position));
            let grid: Vec<Option<&Cell>> = layers.iter().flat_map(|l| positions.iter().map(|p| cell(*l, *p))).collect();
            let mut block = Map::new();
            block.insert("layers".into(), json!(layers));
            for (i, quantity) in QUANTITIES.iter().enumerate() {
                let values: Vec<Value> = grid.iter().map(|c| short(c.map_or(f64::NAN, |c| c.numbers[i]))).collect();
                block.insert((*quantity).into(), json!(values));
            }
            let tops = || grid.iter().flat_map(|c| (0..k).map(move |i| c.and_then(|c| c.top.get(i))));
            let at: Vec<Option<usize>> =
                tops().map(|t| t.and_then(|(id, word, _)| vocabulary.get(&(*id, word.as_str())).copied())).collect();
            block.insert("top".into(), json!(at));
            let probs: Vec<Value> = tops().map(|t| short(t.map_or(f64::NAN, |t| t.2))).collect();
            block.insert("top_probs".into(), json!(probs));
            states.insert(state.clone(), Value::Object(block));
        }
        let (ids, texts): (Vec<u64>, Vec<&str>) = self.tokens.values().map(|(id, text)| (*id, text.as_str())).unzip();
        let (vocabulary, vocabulary_ids): (Vec<&str>, Vec<u64>) = words.into_iter().unzip();
        json!({
            "sample": sample, "positions": positions, "token_ids": ids, "tokens": texts, "left_out": self.left_out.len(),
            "k": k, "vocabulary": vocabulary, "ids": vocabulary_ids, "states": states,
        })
    }
}

/// Smallest and largest value of a column of whole numbers.
fn range(statistics: &Statistics) -> Option<(u64, u64)> {
    match statistics {
        Statistics::Int32(s) => Some((u64::try_from(*s.min_opt()?).ok()?, u64::try_from(*s.max_opt()?).ok()?)),
        Statistics::Int64(s) => Some((u64::try_from(*s.min_opt()?).ok()?, u64::try_from(*s.max_opt()?).ok()?)),
        _ => None,
    }
}

/// Five digits: what a picture needs. Null for what is no number.
fn short(x: f64) -> Value {
    let rounded = format!("{x:.4e}").parse::<f64>().unwrap_or(f64::NAN);
    if rounded == rounded.trunc() && rounded.abs() < 1e15 { json!(rounded as i64) } else { json!(rounded) }
}

fn field<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(n, _)| *n == name).map(|(_, f)| f)
}

fn number(field: &Field) -> f64 {
    match field {
        Field::Int(x) => f64::from(*x),
        Field::UInt(x) => f64::from(*x),
        Field::Long(x) => *x as f64,
        Field::ULong(x) => *x as f64,
        Field::Short(x) => f64::from(*x),
        Field::UShort(x) => f64::from(*x),
        Field::Byte(x) => f64::from(*x),
        Field::UByte(x) => f64::from(*x),
        Field::Float(x) => f64::from(*x),
        Field::Double(x) => *x,
        _ => f64::NAN,
    }
}

fn string(field: &Field) -> String {
    match field {
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned(),
        _ => String::new(),
    }
}

fn elements(field: &Field) -> Vec<&Field> {
    match field {
        Field::ListInternal(list) => list.elements().iter().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::parquet::{Column, write_parquet};

    const ALL: Wanted = Wanted { sample: None, positions: 100, cells: 100 };

    /// Sample, position, state, layer.
    type Key = (u32, u32, &'static str, u32);

    /// Two samples of two positions, two layers and the final policy.
    fn file(path: &Path) {
        let cells: Vec<Key> = (1..=2)
            .flat_map(|s| {
                (5..7).flat_map(move |p| [("layer", 1), ("layer", 2), ("final", 2)].map(|(n, l)| (s, p, n, l)))
            })
            .collect();
        let each = |f: &dyn Fn(&Key) -> f32| cells.iter().map(f).collect::<Vec<f32>>();
        write_parquet(
            path,
            &[
                ("sample", Column::U32(cells.iter().map(|c| c.0).collect())),
                ("position", Column::U32(cells.iter().map(|c| c.1).collect())),
                ("token_id", Column::U32(cells.iter().map(|c| c.1 * 10).collect())),
                ("token", Column::Text(cells.iter().map(|c| format!("<b>{}", c.1)).collect())),
                ("state", Column::Text(cells.iter().map(|c| c.2.to_string()).collect())),
                ("layer", Column::U32(cells.iter().map(|c| c.3).collect())),
                ("entropy", Column::F32(each(&|c| c.0 as f32 + c.3 as f32 / 4.0))),
                ("kl_to_final", Column::F32(each(&|c| c.1 as f32 / 3.0))),
                ("log_prob", Column::F32(each(&|_| -0.5))),
                ("rank", Column::U32(cells.iter().map(|_| 1).collect())),
                ("top_ids", Column::U32Lists(cells.iter().map(|c| vec![c.3, 9]).collect())),
                (
                    "top_tokens",
                    Column::TextLists(cells.iter().map(|c| vec![format!("t{}", c.3), "x".into()]).collect()),
                ),
                ("top_probs", Column::F32Lists(cells.iter().map(|_| vec![0.75, 0.125]).collect())),
            ],
        )
        .unwrap();
    }

    #[test]
    fn rows_become_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.parquet");
        file(&path);
        let found = tokens(&Place::anywhere(), &path, ALL).unwrap();
        assert_eq!(found["all"], json!([1, 2]));
        let second = &found["samples"][1];
        assert_eq!((&second["positions"], &second["tokens"]), (&json!([5, 6]), &json!(["<b>5", "<b>6"])));
        let layer = &second["states"]["layer"];
        assert_eq!((&layer["layers"], &layer["entropy"]), (&json!([1, 2]), &json!([2.25, 2.25, 2.5, 2.5])));
        assert_eq!(layer["kl_to_final"], json!([1.6667, 2, 1.6667, 2]));
        let words = second["vocabulary"].as_array().unwrap();
        let at = |i: usize| words[layer["top"][i].as_u64().unwrap() as usize].clone();
        assert_eq!((at(0), at(1), at(4)), (json!("t1"), json!("x"), json!("t2")));
        assert_eq!((&layer["top_probs"][1], &second["states"]["final"]["layers"]), (&json!(0.125), &json!([2])));
        // Limits: one position a sample; no second sample; only the second.
        let cut = tokens(&Place::anywhere(), &path, Wanted { positions: 1, ..ALL }).unwrap();
        assert_eq!((&cut["samples"][0]["left_out"], &cut["samples"][0]["positions"]), (&json!(1), &json!([5])));
        let first = tokens(&Place::anywhere(), &path, Wanted { cells: 3, ..ALL }).unwrap();
        assert_eq!((first["samples"].as_array().unwrap().len(), &first["all"]), (1, &json!([1, 2])));
        let only = tokens(&Place::anywhere(), &path, Wanted { sample: Some(2), ..ALL }).unwrap();
        assert_eq!((&only["samples"][0]["sample"], only["samples"].as_array().unwrap().len()), (&json!(2), 1));
    }

    #[test]
    fn other_tables_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        write_parquet(&path, &[("sample", Column::U32(vec![1]))]).unwrap();
        let error = tokens(&Place::anywhere(), &path, ALL).unwrap_err().to_string();
        assert!(error.contains("position"), "{error}");
        std::fs::write(&path, "PAR1 no").unwrap();
        assert!(tokens(&Place::anywhere(), &path, ALL).is_err());
    }
}

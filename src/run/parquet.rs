//! Tables as Parquet files, which pandas, Polars, DuckDB and R open: written a row group at a time, there whole or not at all.

use super::atomic::AtomicFile;
use anyhow::{Context, Result, ensure};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Values of a column, one a row. Only [`Column::OptionalF64`] knows null; a list may be empty.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    U32(Vec<u32>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    OptionalF64(Vec<Option<f64>>),
    Text(Vec<String>),
    U32Lists(Vec<Vec<u32>>),
    F32Lists(Vec<Vec<f32>>),
    TextLists(Vec<Vec<String>>),
}

impl Column {
    fn rows(&self) -> usize {
        match self {
            Column::U32(v) => v.len(),
            Column::F32(v) => v.len(),
            Column::F64(v) => v.len(),
            Column::OptionalF64(v) => v.len(),
            Column::Text(v) => v.len(),
            Column::U32Lists(v) => v.len(),
            Column::F32Lists(v) => v.len(),
            Column::TextLists(v) => v.len(),
        }
    }

    /// Its field of the schema, in Parquet's own notation.
    fn field(&self, name: &str) -> String {
        const U32: &str = "int32";
        let list = |kind: &str, logical: &str| {
            format!("required group {name} (LIST) {{ repeated group list {{ required {kind} element{logical}; }} }}")
        };
        match self {
            Column::U32(_) => format!("required {U32} {name} (INTEGER(32,false));"),
            Column::F32(_) => format!("required float {name};"),
            Column::F64(_) => format!("required double {name};"),
            Column::OptionalF64(_) => format!("optional double {name};"),
            Column::Text(_) => format!("required byte_array {name} (STRING);"),
            Column::U32Lists(_) => list(U32, " (INTEGER(32,false))"),
            Column::F32Lists(_) => list("float", ""),
            Column::TextLists(_) => list("byte_array", " (STRING)"),
        }
    }

    fn write(&self, group: &mut Group<'_>) -> Result<()> {
        match self {
            Column::U32(v) => write::<Int32Type>(group, &bits(v), None, None),
            Column::F32(v) => write::<FloatType>(group, v, None, None),
            Column::F64(v) => write::<DoubleType>(group, v, None, None),
            Column::OptionalF64(v) => {
                let (there, values): (Vec<i16>, Vec<f64>) =
                    (v.iter().map(|x| x.is_some() as i16).collect(), v.iter().flatten().copied().collect());
                write::<DoubleType>(group, &values, Some(&there), None)
            }
            Column::Text(v) => write::<ByteArrayType>(group, &bytes(v), None, None),
            Column::U32Lists(v) => write_lists::<Int32Type, _>(group, v, bits),
            Column::F32Lists(v) => write_lists::<FloatType, _>(group, v, <[f32]>::to_vec),
            Column::TextLists(v) => write_lists::<ByteArrayType, _>(group, v, bytes),
        }
    }
}

type Group<'a> = SerializedRowGroupWriter<'a, BufWriter<AtomicFile>>;

/// Parquet keeps unsigned numbers as the signed ones of the same bits.
fn bits(values: &[u32]) -> Vec<i32> {
    values.iter().map(|v| v.cast_signed()).collect()
}

fn bytes(values: &[String]) -> Vec<ByteArray> {
    values.iter().map(|v| ByteArray::from(v.as_str())).collect()
}

/// The next column of a group. `there`: 1 for a value, 0 for none; `of_list`: 0 where a list begins, 1 where it goes on.
fn write<T: DataType>(
    group: &mut Group<'_>,
    values: &[T::T],
    there: Option<&[i16]>,
    of_list: Option<&[i16]>,
) -> Result<()> {
    let mut column = group.next_column()?.context("more columns than the table has")?;
    column.typed::<T>().write_batch(values, there, of_list)?;
    Ok(column.close()?)
}

fn write_lists<T: DataType, V>(
    group: &mut Group<'_>,
    lists: &[Vec<V>],
    convert: impl Fn(&[V]) -> Vec<T::T>,
) -> Result<()> {
    let (mut values, mut there, mut of_list) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        values.extend(convert(list));
        // An empty list is one place without a value.
        for i in 0..list.len().max(1) {
            there.push(!list.is_empty() as i16);
            of_list.push((i > 0) as i16);
        }
    }
    write::<T>(group, &values, Some(&there), Some(&of_list))
}

/// A table on its way to a file.
pub struct ParquetWriter {
    path: PathBuf,
    /// Opened with the first rows, which say what the columns are.
    open: Option<(String, SerializedFileWriter<BufWriter<AtomicFile>>)>,
}

impl ParquetWriter {
    /// The file takes its name in [`ParquetWriter::finish`].
    pub fn new(path: &Path) -> ParquetWriter {
        ParquetWriter { path: path.into(), open: None }
    }

    /// Appends rows as a group of their own: the more rows a group has, the smaller the file. Columns keep the names, the
    /// order and the kinds that they have in the first group.
    pub fn append(&mut self, columns: &[(&str, Column)]) -> Result<()> {
        let what = || format!("cannot write rows to {}", self.path.display());
        let rows = columns.first().map_or(0, |(_, c)| c.rows());
        for (name, column) in columns {
            ensure!(column.rows() == rows, "column {name} has {} rows, the first has {rows}", column.rows());
        }
        let fields: Vec<String> = columns.iter().map(|(name, column)| column.field(name)).collect();
        let schema = format!("message rows {{ {} }}", fields.join(" "));
        if self.open.is_none() {
            let level = ZstdLevel::try_new(3)?;
            let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
            let message = Arc::new(parse_message_type(&schema).with_context(what)?);
            let file = BufWriter::new(AtomicFile::create(&self.path)?);
            let writer = SerializedFileWriter::new(file, message, Arc::new(properties)).with_context(what)?;
            self.open = Some((schema.clone(), writer));
        }
        let Some((first, writer)) = &mut self.open else { return Ok(()) };
        ensure!(*first == schema, "the table has the columns {first}, and these rows {schema}");
        let mut group = writer.next_row_group().with_context(what)?;
        for (name, column) in columns {
            column.write(&mut group).with_context(|| format!("{}: column {name}", what()))?;
        }
        group.close().with_context(what)?;
        Ok(())
    }

    /// Writes the end of the file and gives it its name. Errors: no rows were ever appended.
    pub fn finish(self) -> Result<()> {
        let what = || format!("cannot write {}", self.path.display());
        let (_, writer) = self.open.with_context(|| format!("{} would have no rows", self.path.display()))?;
        let file = writer.into_inner().with_context(what)?;
        let file = file.into_inner().map_err(|e| e.into_error()).with_context(what)?;
        file.commit()
    }
}

/// Writes a whole table of one row group.
pub fn write_parquet(path: &Path, columns: &[(&str, Column)]) -> Result<()> {
    let mut writer = ParquetWriter::new(path);
    writer.append(columns)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::SerializedFileReader;
    use serde_json::{Value, json};
    use std::fs::File;

    fn read(path: &Path) -> Vec<Value> {
        let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        reader.into_iter().map(|row| row.unwrap().to_json_value()).collect()
    }

    #[test]
    fn every_kind_of_column_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let group = |n: u32| {
            [
                ("id", Column::U32(vec![n, u32::MAX])),
                ("a", Column::F32(vec![0.5, -1.0])),
                ("b", Column::F64(vec![1e300, -0.25])),
                ("c", Column::OptionalF64(vec![None, Some(2.5)])),
                ("text", Column::Text(vec!["é\n".into(), String::new()])),
                ("ids", Column::U32Lists(vec![vec![], vec![1, 2]])),
                ("probs", Column::F32Lists(vec![vec![0.5, 0.25], vec![1.0]])),
                ("tokens", Column::TextLists(vec![vec!["x".into()], vec![]])),
            ]
        };
        let mut writer = ParquetWriter::new(&path);
        writer.append(&group(1)).unwrap();
        writer.append(&group(3)).unwrap();
        assert!(!path.exists(), "a table that is not finished has no name yet");
        writer.finish().unwrap();
        let rows = read(&path);
        assert_eq!(rows.len(), 4);
        let first = json!({"id": 1, "a": 0.5, "b": 1e300, "c": null, "text": "é\n", "ids": [], "probs": [0.5, 0.25], "tokens": ["x"]});
        let second = json!({"id": u32::MAX, "a": -1.0, "b": -0.25, "c": 2.5, "text": "", "ids": [1, 2], "probs": [1.0], "tokens": []});
        assert_eq!((&rows[0], &rows[1], &rows[2]["id"]), (&first, &second, &json!(3)));
    }

    #[test]
    fn what_makes_no_table_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let uneven = [("a", Column::U32(vec![1])), ("b", Column::U32(vec![]))];
        assert!(write_parquet(&path, &uneven).unwrap_err().to_string().contains("column b"));
        let mut writer = ParquetWriter::new(&path);
        writer.append(&[("a", Column::U32(vec![1]))]).unwrap();
        assert!(writer.append(&[("b", Column::U32(vec![1]))]).is_err());
        drop(writer);
        assert!(ParquetWriter::new(&path).finish().unwrap_err().to_string().contains("no rows"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

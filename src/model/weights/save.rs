//! The flat array to a folder that transformers opens.

use super::{INDEX_FILE, SINGLE_FILE};
use crate::model::{ModelConfig, ParamLayout, TensorSpec};
use anyhow::{Context, Result, ensure};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaveDtype {
    /// Exact: what is loaded again equals what was saved, bit for bit.
    #[default]
    F32,
    /// Half the size, rounded to nearest.
    Bf16,
}

impl SaveDtype {
    fn bytes(self) -> usize {
        match self {
            SaveDtype::F32 => 4,
            SaveDtype::Bf16 => 2,
        }
    }

    fn stored(self) -> Dtype {
        match self {
            SaveDtype::F32 => Dtype::F32,
            SaveDtype::Bf16 => Dtype::BF16,
        }
    }

    /// The name in `config.json`.
    fn torch_name(self) -> &'static str {
        match self {
            SaveDtype::F32 => "float32",
            SaveDtype::Bf16 => "bfloat16",
        }
    }
}

/// What [`save`] is free to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    pub dtype: SaveDtype,
    /// For `generation_config.json`; the first end-of-text token if there is none.
    pub pad_token_id: Option<u32>,
    /// Weights are split into files of at most so many bytes of data each (a larger tensor gets its own file).
    pub max_shard_bytes: usize,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions { dtype: SaveDtype::F32, pad_token_id: None, max_shard_bytes: 5_000_000_000 }
    }
}

/// Writes `config.json`, `generation_config.json` and the weights to `dir`, which is made if it is not there.
///
/// `params`: `[layout.len()]` f32. Each file appears whole or not at all (written beside, synced, renamed); that
/// the *folder* does is up to the caller. Fails, before anything is written, when a parameter is not finite.
pub fn save(
    dir: &Path,
    config: &ModelConfig,
    layout: &ParamLayout,
    params: &[f32],
    options: &SaveOptions,
) -> Result<()> {
    ensure!(
        params.len() == layout.len(),
        "{} parameters do not fit a model of {} ({} layers)",
        params.len(),
        layout.len(),
        config.layers
    );
    let broken = layout.tensors.par_iter().find_first(|spec| !params[spec.range()].iter().all(|x| x.is_finite()));
    if let Some(spec) = broken {
        anyhow::bail!("{} holds values that are not finite: nothing was written to {}", spec.name, dir.display());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;

    let shards = split(&layout.tensors, options);
    if let [all] = shards.as_slice() {
        write_shard(dir, SINGLE_FILE, all, params, options.dtype)?;
        // A reader prefers the single file, but nobody should find two sets of weights.
        remove_if_there(&dir.join(INDEX_FILE))?;
    } else {
        let mut weight_map = Map::new();
        for (i, tensors) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
            write_shard(dir, &name, tensors, params, options.dtype)?;
            weight_map.extend(tensors.iter().map(|spec| (spec.name.clone(), json!(name))));
        }
        let total_size = layout.len() * options.dtype.bytes();
        let metadata = json!({"total_parameters": layout.len(), "total_size": total_size});
        write_json(dir, INDEX_FILE, &json!({"metadata": metadata, "weight_map": weight_map}))?;
        remove_if_there(&dir.join(SINGLE_FILE))?;
    }

    let mut config_json = config.to_json();
    for key in ["dtype", "torch_dtype"] {
        config_json[key] = json!(options.dtype.torch_name());
    }
    if layout.value_head.is_some() {
        as_value_model(&mut config_json, config);
    }
    write_json(dir, "config.json", &config_json)?;
    let generation = json!({
        "bos_token_id": config_json["bos_token_id"],
        "eos_token_id": config_json["eos_token_id"],
        "pad_token_id": options.pad_token_id.or(config.eos_token_ids.first().copied()),
    });
    write_json(dir, "generation_config.json", &generation)
}

/// The class of transformers that reads a value head: its one label is the value.
fn as_value_model(config_json: &mut Value, config: &ModelConfig) {
    config_json["architectures"] =
        json!([config.family.architecture().replace("ForCausalLM", "ForTokenClassification")]);
    config_json["id2label"] = json!({"0": "value"});
    config_json["label2id"] = json!({"value": 0});
    config_json["classifier_dropout"] = json!(0.0);
}

/// Writes values laid out as [`ParamLayout::trainable`] (a gradient, say) to one safetensors file, under the parameters' names.
pub fn save_tensors(path: &Path, layout: &ParamLayout, values: &[f32]) -> Result<()> {
    let trainable = layout.trainable();
    ensure!(values.len() == trainable.len(), "{} values for {} parameters", values.len(), trainable.len());
    let name = path.file_name().and_then(|n| n.to_str());
    let name = name.with_context(|| format!("{} names no file that could be written", path.display()))?;
    let shifted = |spec: &TensorSpec| TensorSpec { offset: spec.offset - trainable.start, ..spec.clone() };
    let specs: Vec<TensorSpec> = layout.trainable_tensors().iter().map(shifted).collect();
    write_shard(path.parent().unwrap_or(Path::new("")), name, &specs, values, SaveDtype::F32)
}

/// Neighbouring tensors of the flat array, at most `max_shard_bytes` together.
fn split<'a>(tensors: &'a [TensorSpec], options: &SaveOptions) -> Vec<&'a [TensorSpec]> {
    let mut shards = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (i, spec) in tensors.iter().enumerate() {
        let more = spec.len() * options.dtype.bytes();
        if i > first && bytes + more > options.max_shard_bytes {
            shards.push(&tensors[first..i]);
            (first, bytes) = (i, 0);
        }
        bytes += more;
    }
    shards.push(&tensors[first..]);
    shards
}

pub(super) fn write_shard(
    dir: &Path,
    name: &str,
    tensors: &[TensorSpec],
    params: &[f32],
    dtype: SaveDtype,
) -> Result<()> {
    let header = header(tensors, dtype).with_context(|| format!("cannot describe the tensors of {name}"))?;
    write_whole(dir, name, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for spec in tensors {
            write_values(out, &params[spec.range()], dtype)?;
        }
        Ok(())
    })
}

/// The JSON header, padded with spaces to keep the data 8-byte aligned.
fn header(tensors: &[TensorSpec], dtype: SaveDtype) -> Result<Vec<u8>> {
    let mut end = 0;
    let infos = tensors.iter().map(|spec| {
        let start = end;
        end += spec.len() * dtype.bytes();
        let info = TensorInfo { dtype: dtype.stored(), shape: spec.shape.clone(), data_offsets: (start, end) };
        (spec.name.clone(), info)
    });
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(format), infos.collect())?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn write_values(out: &mut dyn Write, values: &[f32], dtype: SaveDtype) -> std::io::Result<()> {
    const BUFFER: usize = 1 << 16;
    match dtype {
        SaveDtype::F32 => out.write_all(bytemuck::cast_slice(values)),
        SaveDtype::Bf16 => {
            let mut rounded = vec![bf16::ZERO; BUFFER.min(values.len())];
            for values in values.chunks(BUFFER) {
                let rounded = &mut rounded[..values.len()];
                rounded.convert_from_f32_slice(values);
                out.write_all(bytemuck::cast_slice(rounded))?;
            }
            Ok(())
        }
    }
}

pub(super) fn write_json(dir: &Path, name: &str, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).with_context(|| format!("cannot write {name}"))?;
    write_whole(dir, name, |out| writeln!(out, "{text}"))
}

/// Writes `dir/name` beside, syncs and renames, so that a reader sees the old file or the new one, both whole.
fn write_whole(dir: &Path, name: &str, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let partial = dir.join(format!(".{name}.partial"));
    let written = write_synced(&partial, fill).and_then(|()| std::fs::rename(&partial, dir.join(name)));
    if written.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", dir.join(name).display()))
}

fn write_synced(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    fill(&mut out)?;
    out.into_inner().map_err(|error| error.into_error())?.sync_all()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}, which is out of date", path.display()))
        }
        _ => Ok(()),
    }
}

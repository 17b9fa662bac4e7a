//! A checkpoint's tensors one at a time: for whoever needs no model, and no more memory than its largest tensor.

use super::adapter::read_adapter;
use super::load::{Tensors, convert, open};
use super::shard::Shard;
use crate::model::{ModelConfig, ParamLayout, TensorSpec};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// An open checkpoint, its weights mapped to memory and checked as [`super::load`] checks them.
pub struct TensorReader {
    pub config: ModelConfig,
    pub layout: ParamLayout,
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Of a checkpoint that is an adapter beside the one that is read: the layout with it, and its values.
    adapter: Option<(ParamLayout, Vec<f32>)>,
}

impl TensorReader {
    /// Opens a HuggingFace checkpoint folder. Errors: those of [`super::load`], but for values that are not finite.
    pub fn open(dir: &Path) -> Result<TensorReader> {
        let config = ModelConfig::from_dir(dir)?;
        let layout = ParamLayout::new(&config);
        let shards = open(dir)?;
        Tensors::find(dir, &shards)?.check(&config, &layout)?;
        Ok(TensorReader { config, layout, dir: dir.to_path_buf(), shards, adapter: None })
    }

    /// Opens an adapter, whose base is in the folder `base`: as the two are when merged.
    pub fn open_adapter(dir: &Path, base: &Path) -> Result<TensorReader> {
        let reader = TensorReader::open(base)?;
        let adapter = Some(read_adapter(dir, &reader.config, &reader.layout)?);
        Ok(TensorReader { adapter, ..reader })
    }

    /// The values of one tensor of the layout, `[spec.len()]`. Errors: a value that is not finite.
    pub fn read(&self, spec: &TensorSpec, values: &mut Vec<f32>) -> Result<()> {
        values.resize(spec.len(), 0.0);
        convert(Tensors::find(&self.dir, &self.shards)?.pieces(&spec.name, values)?)?;
        if let Some((layout, adapter)) = &self.adapter {
            layout.merge_into(spec, adapter, values);
        }
        Ok(())
    }
}

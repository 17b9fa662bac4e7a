//! A checkpoint's tensors one at a time, or a part of the flat array after the other: for whoever needs them not all at once.

use super::adapter::read_adapter;
use super::load::{Tensors, convert, open};
use super::shard::Shard;
use crate::model::{ModelConfig, ParamLayout, TensorSpec};
use anyhow::{Context, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An open checkpoint, its headers checked as [`super::load`] checks them.
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

    /// Opens an adapter, whose base is in the folder `base`: [`TensorReader::read`] gives the two as they are when merged.
    pub fn open_adapter(dir: &Path, base: &Path) -> Result<TensorReader> {
        let reader = TensorReader::open(base).with_context(|| format!("the base of the adapter {}", dir.display()))?;
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

    /// The layout of a model with the adapter beside its weights; without an adapter the checkpoint's own.
    pub fn whole_layout(&self) -> &ParamLayout {
        self.adapter.as_ref().map_or(&self.layout, |(layout, _)| layout)
    }

    /// The flat array of [`TensorReader::whole_layout`]: the adapter's values, and zeros for [`TensorReader::fill`], which take no memory
    /// before they are touched.
    pub fn unfilled(&self) -> Vec<f32> {
        let mut params = vec![0.0; self.whole_layout().len()];
        if let Some((layout, values)) = &self.adapter {
            params[layout.trainable()].copy_from_slice(values);
        }
        params
    }

    /// Reads the checkpoint's tensors in `part` of the flat array, whose ends are tensors' ends. Errors: a value that is not finite; a
    /// tied checkpoint's own unembedding, where it differs from the embedding.
    pub fn fill(&self, params: &mut [f32], part: Range<usize>) -> Result<()> {
        let place = |at: usize| self.layout.tensors.partition_point(|spec| spec.offset < at);
        let tensors = Tensors::find(&self.dir, &self.shards)?;
        let end = part.end.min(self.layout.len());
        tensors.fill(&self.config, &self.layout.tensors[place(part.start)..place(end)], &mut params[part.start..end])
    }
}

//! The model: one decoder for every family. A family is a [`ModelConfig`], never a file of its own.

pub mod ablation;
pub mod backward;
pub mod config;
pub mod decoder;
pub mod init;
pub mod kv_cache;
mod linear;
pub mod lora;
pub mod packed;
pub mod params;
pub mod taps;
pub mod trained;
pub mod value;
pub mod weights;

use crate::compute::Backend;
use crate::compute::backend::Unembedding;
use crate::compute::cpu::Cpu;
use crate::compute::cpu::head::Head;
use ablation::Ablation;
use anyhow::{Result, bail, ensure};
use packed::PackedModel;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use weights::TensorReader;

pub use crate::compute::cpu::gemm::Compute;
pub use config::ModelConfig;
pub use decoder::{Keep, Workspace};
pub use lora::{LoraConfig, Target};
pub use params::{ParamLayout, TensorSpec};
pub use taps::{LayerIndex, Tap};
pub use trained::Trained;

/// A decoder's configuration and weights; the weights are one flat array with named ranges, on the device that computes.
#[derive(Clone, Debug)]
pub struct Model<B: Backend = Cpu> {
    pub config: ModelConfig,
    pub layout: ParamLayout,
    pub params: B::Params,
    pub backend: B,
    /// The weights as decoding reads them, where they are there as nothing else ([`Model::for_sampling`]).
    packed: Option<Arc<PackedModel<B>>>,
    /// What stands in for some modules' outputs ([`Model::ablate`]).
    ablation: Option<Arc<Ablation<B>>>,
}

impl<B: Backend> Model<B> {
    /// The values of one range of the layout.
    pub fn param(&self, range: &Range<usize>) -> B::View<'_> {
        let given_up = self.packed.as_ref().is_some_and(|packed| packed.replaces(range));
        assert!(
            !given_up,
            "weights {range:?} are there only as decoding reads them: the model can be sampled from, no more"
        );
        B::params(&self.params, range)
    }

    /// The unembedding `E_u` as a distribution over tokens.
    pub fn unembedding(&self, temperature: f32) -> Unembedding<B::View<'_>> {
        Unembedding {
            weight: self.param(&self.layout.unembed),
            vocab: self.config.vocab_size,
            hidden_size: self.config.hidden_size,
            temperature,
        }
    }

    /// The same model on the host, which multiplies in f32.
    pub fn into_host(self) -> Model {
        self.assert_whole();
        let params = self.backend.unload(self.params);
        Model {
            config: self.config,
            layout: self.layout,
            params,
            backend: Cpu::default(),
            packed: None,
            ablation: None,
        }
    }

    /// The parameters on the host, `[layout.len()]`.
    pub fn host_params(&self) -> Cow<'_, [f32]> {
        self.assert_whole();
        self.backend.store(&self.params)
    }

    fn assert_whole(&self) {
        assert!(
            self.packed.is_none(),
            "some weights are there only as decoding reads them: the model can be sampled from, no more"
        );
    }

    /// Fails if a sequence does not fit the context or holds an id outside of the vocabulary.
    pub fn check_tokens(&self, ids: &[u32]) -> Result<()> {
        let (n, c) = (ids.len(), &self.config);
        ensure!(
            n <= c.max_position_embeddings,
            "{n} tokens, but the model's context is {}: shorten the sequence",
            c.max_position_embeddings
        );
        match ids.iter().find(|id| **id as usize >= c.vocab_size) {
            Some(id) => bail!("token id {id}, but the model's vocabulary ends at {}", c.vocab_size - 1),
            None => Ok(()),
        }
    }

    fn rope_table(&self) -> B::Rope {
        self.backend.rope(self.config.inverse_frequencies())
    }
}

impl Model {
    /// `params` `[layout.len()]`, in the layout's order.
    pub fn new(config: ModelConfig, params: Vec<f32>) -> Model {
        let layout = ParamLayout::new(&config);
        assert_eq!(params.len(), layout.len(), "parameters do not match the layout");
        Model { config, layout, params, backend: Cpu::default(), packed: None, ablation: None }
    }

    /// Opens a HuggingFace checkpoint folder: `config.json` and safetensors.
    pub fn open(dir: &Path) -> Result<Model> {
        Model::read(TensorReader::open(dir)?)
    }

    /// The model of a checkpoint that is open, with its adapter beside the weights.
    pub fn read(weights: TensorReader) -> Result<Model> {
        let (mut params, layout) = (weights.unfilled(), weights.whole_layout().clone());
        weights.fill(&mut params, 0..layout.len())?;
        Ok(Model { config: weights.config, layout, params, backend: Cpu::default(), packed: None, ablation: None })
    }

    /// The unembedding `E_u` as a distribution over tokens.
    pub fn head(&self, temperature: f32) -> Head<'_> {
        Head {
            embedding: self.param(&self.layout.unembed),
            hidden_size: self.config.hidden_size,
            temperature,
            compute: self.backend.compute,
        }
    }

    /// The same model on a device.
    pub fn on<B: Backend>(self, backend: B) -> Model<B> {
        self.assert_whole();
        let params = backend.load(self.params);
        Model { config: self.config, layout: self.layout, params, backend, packed: None, ablation: None }
    }
}

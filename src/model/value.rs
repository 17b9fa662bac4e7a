//! A decoder that gives a state a value instead of a distribution: a critic, made of a policy.

use super::backward::StateGradients;
use super::params::ValueHead;
use super::{Keep, Model, ModelConfig, ParamLayout, Tap, Trained, Workspace, weights};
use crate::compute::backend::Kind;
use crate::compute::cpu::Cpu;
use crate::compute::{Backend, Packing};
use anyhow::{Context, Result};
use std::path::Path;

/// A value model reads no unembedding: its configuration is a tied one, so that none is stored.
fn value_config(config: &ModelConfig) -> ModelConfig {
    ModelConfig { tie_word_embeddings: true, ..config.clone() }
}

impl Model {
    /// A value model that begins as this policy's decoder, with a head of zeros. Every value is then 0 at first, whatever the
    /// state: a random head would put noise into the first advantages, and a linear layer needs none to break a symmetry.
    pub fn value_model(&self) -> Model {
        let config = value_config(&self.config);
        let layout = ParamLayout::with_value_head(&config);
        let mut params = vec![0.0; layout.len()];
        for tensor in &layout.tensors {
            if let Some(own) = self.layout.tensors.iter().find(|own| own.name == tensor.name) {
                params[tensor.range()].copy_from_slice(&self.params[own.range()]);
            }
        }
        Model { config, layout, params, backend: self.backend, packed: None, ablation: None }
    }

    /// Opens a value model's folder, as [`weights::save`] writes it: a HuggingFace checkpoint of `...ForTokenClassification`
    /// with one label.
    pub fn open_value_model(dir: &Path) -> Result<Model> {
        let config = value_config(&ModelConfig::from_dir(dir)?);
        let layout = ParamLayout::with_value_head(&config);
        let params = weights::load(dir, &config, &layout)?;
        Ok(Model { config, layout, params, backend: Cpu::default(), packed: None, ablation: None })
    }
}

impl<B: Backend> Model<B> {
    /// Values of some rows' states, `[rows]`: what is expected of the tokens that follow. Errors: a model without a value head.
    pub fn values(&self, ws: &mut Workspace<B>, packing: &Packing, rows: &[usize]) -> Result<Vec<f32>> {
        let head = self.value_head()?;
        self.forward(ws, packing, Tap::Final, Keep::Nothing);
        Ok(self.backend.values(ws.state(), rows, self.param(&head.weight), self.param(&head.bias)))
    }

    /// [`Model::values`], and the gradient of a loss of them, added to `grads` (laid out as the parameters): of the head, and of
    /// what is in `trained` below it. `loss` gives its derivative for every value.
    #[allow(clippy::too_many_arguments)]
    pub fn value_gradient(
        &self,
        ws: &mut Workspace<B>,
        packing: &Packing,
        rows: &[usize],
        keep: Keep,
        trained: &Trained,
        grads: &mut B::Array,
        loss: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<Vec<f32>> {
        let head = self.value_head()?;
        let batched = self.batched(packing);
        self.forward_for(ws, &batched, Tap::Final, keep, trained, None);
        let w = self.param(&head.weight);
        let values = self.backend.values(ws.state(), rows, w, self.param(&head.bias));
        let d_values = loss(&values);
        let mut d_state = std::mem::take(&mut ws.head.d_state);
        self.backend.resize(&mut d_state, packing.rows() * self.config.hidden_size, Kind::F32);
        self.backend.zero(&mut d_state);
        let d_head = B::part(grads, head.weight.start..head.bias.end);
        self.backend.values_backward(ws.state(), rows, w, &d_values, &mut d_state, d_head);
        let states = StateGradients { d_state: &mut d_state, beside: None };
        self.backward(ws, &batched, Tap::Final, states, trained, grads);
        ws.head.d_state = d_state;
        Ok(values)
    }

    fn value_head(&self) -> Result<&ValueHead> {
        self.layout.value_head.as_ref().context("this model has no value head")
    }
}

//! The optimizer's state, and one step of it.

use super::optimizer::OptimizerConfig;
use crate::compute::Backend;
use crate::compute::backend::AdamwStep;
use crate::compute::cpu::Cpu;
use crate::model::{Model, ParamLayout, Tap, Trained};
use std::ops::Range;

/// AdamW's moments, and how often each tensor was updated.
///
/// Tensors above an internal policy are not touched during its phase, neither by decay nor by stale moments, and their
/// bias correction starts with their first update, as PyTorch's does for parameters without a gradient. Frozen tensors have no
/// moments at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer<B: Backend = Cpu> {
    /// First and second moments of the tensors that are not frozen, in the layout's order.
    pub m: B::Array,
    pub v: B::Array,
    /// Updates so far, one for each tensor of the layout.
    pub tensor_steps: Vec<u64>,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Steps skipped because the gradient was not finite.
    pub skipped: u64,
    /// Factor on the learning rate of every tensor; 0 is frozen.
    lr_scales: Vec<f64>,
}

/// What one call of [`Optimizer::step`] did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// The gradient was not finite and nothing was changed.
    pub skipped: bool,
}

impl Optimizer {
    /// On the CPU. Everything that can be trained learns at the full rate.
    pub fn new(layout: &ParamLayout) -> Optimizer {
        Optimizer::new_on(&Cpu::default(), layout)
    }

    /// On the CPU. With a factor on the learning rate of every tensor, `[tensors]` ([`super::groups::lr_scales`]).
    pub fn with_scales(layout: &ParamLayout, lr_scales: Vec<f64>) -> Optimizer {
        Optimizer::begin(&Cpu::default(), layout, lr_scales)
    }

    /// The same state on a device.
    pub fn on<B: Backend>(self, backend: &B) -> Optimizer<B> {
        let [m, v] = [self.m, self.v].map(|values| {
            let mut moments = backend.moments(values.len());
            backend.upload(values.f32(), &mut moments);
            moments
        });
        let Optimizer { tensor_steps, steps, skipped, lr_scales, .. } = self;
        Optimizer { m, v, tensor_steps, steps, skipped, lr_scales }
    }
}

impl<B: Backend> Optimizer<B> {
    /// On a device. Everything that can be trained learns at the full rate.
    pub fn new_on(backend: &B, layout: &ParamLayout) -> Optimizer<B> {
        let (all, trainable) = (layout.tensors.len(), layout.trainable_tensors().len());
        Optimizer::begin(backend, layout, [vec![0.0; all - trainable], vec![1.0; trainable]].concat())
    }

    /// On a device. With a factor on the learning rate of every tensor, `[tensors]` ([`super::groups::lr_scales`]).
    pub fn begin(backend: &B, layout: &ParamLayout, lr_scales: Vec<f64>) -> Optimizer<B> {
        let n = layout.tensors.iter().zip(&lr_scales).filter(|(_, s)| **s > 0.0).map(|(t, _)| t.len()).sum();
        let tensor_steps = vec![0; layout.tensors.len()];
        let [m, v] = std::array::from_fn(|_| backend.moments(n));
        Optimizer { m, v, tensor_steps, steps: 0, skipped: 0, lr_scales }
    }

    /// What a policy reading `tap` trains, less what is frozen.
    pub fn trained(&self, layout: &ParamLayout, tap: Tap) -> Trained {
        layout.trained_by(tap).and(&self.lr_scales.iter().map(|s| *s > 0.0).collect::<Vec<_>>())
    }

    /// Clips the gradient by its norm (as `torch.nn.utils.clip_grad_norm_`) and updates the parameters in `trained`, none of
    /// them frozen ([`Optimizer::trained`]); `grads` are laid out as [`ParamLayout::trainable`]. A gradient that is not finite
    /// changes nothing and is counted.
    pub fn step(
        &mut self,
        model: &mut Model<B>,
        grads: &B::Array,
        trained: &Trained,
        config: &OptimizerConfig,
        lr: f64,
    ) -> StepOutcome {
        let from = model.layout.trainable().start;
        let runs: Vec<_> = trained.runs().iter().map(|run| run.start - from..run.end - from).collect();
        let grad_norm = model.backend.sum_of_squares(grads, &runs).sqrt();
        if !grad_norm.is_finite() {
            self.skipped += 1;
            return StepOutcome { grad_norm, lr, skipped: true };
        }
        // clip_grad_norm_'s 1e-6 keeps the quotient finite; grad_clip = 0 leaves the gradient as it is.
        let clip = if config.grad_clip > 0.0 { (config.grad_clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let (tensors, mut first, mut moments) = (model.layout.tensors.len(), 0, 0);
        while first < tensors {
            // Neighbours that share everything are one run of the kernel.
            let fate =
                |at: usize| (trained.tensor(at), self.lr_scales[at] > 0.0, self.lr_scales[at], self.tensor_steps[at]);
            let (touched, kept, scale, count) = fate(first);
            let run = (first..tensors).take_while(|at| fate(*at) == (touched, kept, scale, count)).count();
            let params: Range<usize> =
                model.layout.tensors[first].offset..model.layout.tensors[first + run - 1].range().end;
            let own = moments..moments + if kept { params.len() } else { 0 };
            moments = own.end;
            if touched && kept {
                let step = AdamwStep {
                    lr: (lr * scale) as f32,
                    beta1: config.beta1 as f32,
                    beta2: config.beta2 as f32,
                    eps: config.eps as f32,
                    weight_decay: config.weight_decay as f32,
                    step: count + 1,
                    grad_scale: clip as f32,
                };
                let (m, v) = (B::part(&mut self.m, own.clone()), B::part(&mut self.v, own));
                let in_grads = params.start - from;
                model.backend.adamw(&mut model.params, params, grads, in_grads, m, v, step);
                self.tensor_steps[first..first + run].fill(count + 1);
            }
            first += run;
        }
        StepOutcome { grad_norm, lr, skipped: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LayerIndex;
    use crate::model::init::{InitConfig, random_params};

    fn model() -> Model {
        let init =
            InitConfig { layers: 3, hidden_size: 8, heads: 1, kv_heads: 1, head_dim: 8, ..InitConfig::default() };
        let config = init.model_config(20).unwrap();
        let params = random_params(&config, &ParamLayout::new(&config), 0.1, 1);
        Model::new(config, params)
    }

    /// One step on a gradient of ones; what each layer's first tensor moved by, and the embedding.
    fn moved(optimizer: &mut Optimizer, model: &mut Model, policy: Tap) -> Vec<f32> {
        let before = model.params.clone();
        let trained = optimizer.trained(&model.layout, policy);
        // Never clipped: the gradient is the same in every step.
        let config = OptimizerConfig { weight_decay: 0.0, grad_clip: 1e30, ..OptimizerConfig::default() };
        let grads = vec![1.0; model.layout.len()].into();
        optimizer.step(model, &grads, &trained, &config, 1e-2);
        let first = |range: &Range<usize>| before[range.start] - model.params[range.start];
        let layers = model.layout.layers.iter().map(|p| first(&p.qkv));
        std::iter::once(first(&model.layout.embed)).chain(layers).collect()
    }

    fn close(got: &[f32], expected: &[f32]) {
        assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-6), "{got:?} {expected:?}");
    }

    #[test]
    fn groups_learn_at_their_rate_and_frozen_ones_neither_move_nor_take_memory() {
        let mut model = model();
        let layer_of = |name: &str| name.strip_prefix("model.layers.").and_then(|n| n[..1].parse::<usize>().ok());
        // Layer 1 frozen, layer 3 at a tenth. AdamW's first step on a gradient of one sign is the learning rate.
        let scale = |t: &crate::model::TensorSpec| match layer_of(&t.name) {
            Some(0) => 0.0,
            Some(2) => 0.1,
            _ => 1.0,
        };
        let scales: Vec<f64> = model.layout.tensors.iter().map(scale).collect();
        let mut optimizer = Optimizer::with_scales(&model.layout, scales);
        let p = &model.layout.layers[0];
        assert_eq!(optimizer.m.len(), model.layout.len() - (p.down.end - p.attn_norm.start));
        let (last, second) = (Tap::Final, Tap::ResidPost(LayerIndex::from_one_based(2, 3).unwrap()));
        close(&moved(&mut optimizer, &mut model, last), &[1e-2, 0.0, 1e-2, 1e-3]);
        // Below layer 3 only; its moments wait where they were.
        close(&moved(&mut optimizer, &mut model, second), &[1e-2, 0.0, 1e-2, 0.0]);
        close(&moved(&mut optimizer, &mut model, last), &[1e-2, 0.0, 1e-2, 1e-3]);
        let steps = |range: &Range<usize>| {
            let at = model.layout.tensors.iter().position(|t| t.offset == range.start).unwrap();
            optimizer.tensor_steps[at]
        };
        assert_eq!(model.layout.layers.iter().map(|p| steps(&p.qkv)).collect::<Vec<_>>(), [0, 3, 2]);
    }
}

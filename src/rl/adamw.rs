//! The optimizer's state, and one step of it.

use super::optimizer::OptimizerConfig;
use crate::compute::cpu::adamw::{AdamwStep, adamw, sum_of_squares};
use crate::model::{Model, ParamLayout};
use std::ops::Range;

/// AdamW's moments, laid out as the parameters, and how often each tensor was updated.
///
/// Tensors above an internal policy are not touched during its phase, neither by decay nor by stale moments, and their
/// bias correction starts with their first update, as PyTorch's does for parameters without a gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// First and second moments, `[n]` each.
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    /// Updates so far, one for each tensor of the layout.
    pub tensor_steps: Vec<u64>,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Steps skipped because the gradient was not finite.
    pub skipped: u64,
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
    pub fn new(layout: &ParamLayout) -> Optimizer {
        let n = layout.len();
        Optimizer {
            m: vec![0.0; n],
            v: vec![0.0; n],
            tensor_steps: vec![0; layout.tensors.len()],
            steps: 0,
            skipped: 0,
        }
    }

    /// One without tensors, to stand in while another is elsewhere.
    pub fn empty() -> Optimizer {
        Optimizer { m: Vec::new(), v: Vec::new(), tensor_steps: Vec::new(), steps: 0, skipped: 0 }
    }

    /// Clips the gradient by its norm (as `torch.nn.utils.clip_grad_norm_`) and updates the parameters in `trained`, a
    /// prefix of the layout. A gradient that is not finite changes nothing and is counted.
    pub fn step(
        &mut self,
        model: &mut Model,
        grads: &[f32],
        trained: Range<usize>,
        config: &OptimizerConfig,
        lr: f64,
    ) -> StepOutcome {
        let grad_norm = sum_of_squares(&grads[trained.clone()]).sqrt();
        if !grad_norm.is_finite() {
            self.skipped += 1;
            return StepOutcome { grad_norm, lr, skipped: true };
        }
        // clip_grad_norm_'s 1e-6 keeps the quotient finite; grad_clip = 0 leaves the gradient as it is.
        let clip = if config.grad_clip > 0.0 { (config.grad_clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let touched = model.layout.tensors.iter().take_while(|t| t.offset < trained.end).count();
        let mut first = 0;
        while first < touched {
            // Neighbours with the same count are one run of the kernel.
            let count = self.tensor_steps[first];
            let run = self.tensor_steps[first..touched].iter().take_while(|c| **c == count).count();
            let range = model.layout.tensors[first].offset..model.layout.tensors[first + run - 1].range().end;
            let step = AdamwStep {
                lr: lr as f32,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                eps: config.eps as f32,
                weight_decay: config.weight_decay as f32,
                step: count + 1,
                grad_scale: clip as f32,
            };
            let (m, v) = (&mut self.m[range.clone()], &mut self.v[range.clone()]);
            adamw(&mut model.params[range.clone()], &grads[range], m, v, step);
            self.tensor_steps[first..first + run].fill(count + 1);
            first += run;
        }
        StepOutcome { grad_norm, lr, skipped: false }
    }
}

//! A linear layer of the decoder, with the low-rank path beside it where it has an adapter: the same sums for one row as for
//! many, so that sampling and training see the same bits.

use super::backward::Grads;
use super::lora::{LayerAdapters, LinearAdapter, low_rank};
use super::taps::LayerIndex;
use super::{Compute, Model, Trained};
use crate::compute::cpu::gemm::{PackedWeight, Write, linear, linear_backward_input, linear_backward_weight};
use crate::compute::cpu::low_rank::LowRank;
use std::ops::Range;

/// `y = W x + s B (A x)`, of `inputs` to `outputs`.
pub(super) struct Linear<'a> {
    compute: Compute,
    inputs: usize,
    outputs: usize,
    /// `[outputs, inputs]`, and where it lies.
    weight: &'a [f32],
    range: Range<usize>,
    /// The path beside it, and where its parameters lie.
    beside: Option<(LowRank<'a>, Range<usize>)>,
}

/// The four products of a layer; q, k and v are one, as are gate and up.
pub(super) struct LayerLinears<'a> {
    pub qkv: Linear<'a>,
    pub o: Linear<'a>,
    pub gate_up: Linear<'a>,
    pub down: Linear<'a>,
}

impl Model {
    pub(super) fn linears(&self, layer: LayerIndex) -> LayerLinears<'_> {
        let (c, p) = (&self.config, &self.layout.layers[layer.index()]);
        let adapter = self.layout.adapter.as_ref();
        let linear = |range: &Range<usize>, of: fn(&LayerAdapters) -> &Option<LinearAdapter>, inputs, outputs| Linear {
            compute: self.compute,
            inputs,
            outputs,
            weight: self.param(range),
            range: range.clone(),
            beside: adapter.and_then(|adapter| {
                let of = of(&adapter.layers[layer.index()]).as_ref()?;
                let values = |range: &Range<usize>| self.param(range);
                Some((low_rank(&adapter.config, of, (inputs, outputs), self.compute, values), of.range()))
            }),
        };
        let (d, f) = (c.hidden_size, c.intermediate_size);
        LayerLinears {
            qkv: linear(&p.qkv, |l| &l.qkv, d, c.qkv_dim()),
            o: linear(&p.o, |l| &l.o, c.q_dim(), d),
            gate_up: linear(&p.gate_up, |l| &l.gate_up, d, 2 * f),
            down: linear(&p.down, |l| &l.down, f, d),
        }
    }
}

impl Linear<'_> {
    /// The layer's output for rows `[t, inputs]`, added to y or in its place, with the weight as it lies or as it was packed.
    /// `inner` is scratch.
    pub fn forward(
        &self,
        packed: Option<&PackedWeight>,
        x: &[f32],
        y: &mut [f32],
        t: usize,
        write: Write,
        inner: &mut Vec<f32>,
    ) {
        match packed {
            Some(packed) => packed.linear(x, y, t, write),
            None => linear(self.compute, x, self.weight, y, t, self.inputs, self.outputs, write),
        }
        if let Some((beside, _)) = &self.beside {
            beside.forward(x, y, t, inner);
        }
    }

    /// Whether [`Linear::backward_weight`] has anything to do, and needs the layer's input.
    pub fn is_trained(&self, trained: &Trained) -> bool {
        trained.has(&self.range) || self.beside.as_ref().is_some_and(|(_, range)| trained.has(range))
    }

    /// Gradients of the weight, or of the adapter, where they are trained: x `[t, inputs]`, dy `[t, outputs]`.
    pub fn backward_weight(&self, x: &[f32], dy: &[f32], t: usize, grads: &mut Grads<'_>, inner: &mut Vec<f32>) {
        if let Some(dw) = grads.of(&self.range) {
            linear_backward_weight(self.compute, dy, x, dw, t, self.inputs, self.outputs);
        }
        let Some((beside, range)) = &self.beside else { return };
        if let Some(d) = grads.of(range) {
            beside.backward_weight(x, dy, d.split_at_mut(beside.a.len()), t, inner);
        }
    }

    /// Gradient of the input, in place of what dx held.
    pub fn backward_input(&self, dy: &[f32], dx: &mut [f32], t: usize, inner: &mut Vec<f32>) {
        linear_backward_input(self.compute, dy, self.weight, dx, t, self.inputs, self.outputs, Write::Replace);
        if let Some((beside, _)) = &self.beside {
            beside.backward_input(dy, dx, t, inner);
        }
    }
}

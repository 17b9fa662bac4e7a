//! A linear layer of the decoder, with the low-rank path beside it where it has an adapter: the same sums for one row as for
//! many, so that sampling and training see the same bits.

use super::backward::Grads;
use super::lora::{LayerAdapters, LinearAdapter, low_rank};
use super::taps::LayerIndex;
use super::{Model, Trained};
use crate::compute::Backend;
use crate::compute::backend::{LinearShape, LowRank, Weight};
use std::ops::Range;

/// `y = W x + s B (A x)`, of `inputs` to `outputs`.
pub(super) struct Linear<'a, B: Backend> {
    model: &'a Model<B>,
    inputs: usize,
    outputs: usize,
    /// Where the weight lies, `[outputs, inputs]`.
    range: Range<usize>,
    /// The path beside it, and where its parameters lie.
    beside: Option<(LowRank<B::View<'a>>, Range<usize>)>,
}

/// The four products of a layer; q, k and v are one, as are gate and up.
pub(super) struct LayerLinears<'a, B: Backend> {
    pub qkv: Linear<'a, B>,
    pub o: Linear<'a, B>,
    pub gate_up: Linear<'a, B>,
    pub down: Linear<'a, B>,
}

impl<B: Backend> Model<B> {
    pub(super) fn linears(&self, layer: LayerIndex) -> LayerLinears<'_, B> {
        let (c, p) = (&self.config, &self.layout.layers[layer.index()]);
        let adapter = self.layout.adapter.as_ref();
        let linear = |range: &Range<usize>, of: fn(&LayerAdapters) -> &Option<LinearAdapter>, inputs, outputs| Linear {
            model: self,
            inputs,
            outputs,
            range: range.clone(),
            beside: adapter.and_then(|adapter| {
                let of = of(&adapter.layers[layer.index()]).as_ref()?;
                let values = |range: &Range<usize>| self.param(range);
                Some((low_rank(&adapter.config, of, (inputs, outputs), values), of.range()))
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

impl<B: Backend> Linear<'_, B> {
    fn shape(&self, t: usize) -> LinearShape {
        LinearShape { t, inputs: self.inputs, outputs: self.outputs }
    }

    fn weight(&self) -> B::View<'_> {
        self.model.param(&self.range)
    }

    /// The layer's output for rows `[t, inputs]`, with the weight as it lies or as it was packed. `inner` is scratch.
    pub fn forward(
        &self,
        packed: Option<&B::Packed>,
        x: &B::Array,
        bias: Option<B::View<'_>>,
        y: &mut B::Array,
        t: usize,
        inner: &mut B::Array,
    ) {
        let weight = packed.map_or_else(|| Weight::AsItLies(self.weight()), Weight::Packed);
        self.model.backend.linear(x, weight, bias, y, self.shape(t));
        if let Some((beside, _)) = &self.beside {
            self.model.backend.low_rank(beside, x, y, t, inner);
        }
    }

    /// Whether [`Linear::backward_weight`] has anything to do, and needs the layer's input.
    pub fn is_trained(&self, trained: &Trained) -> bool {
        trained.has(&self.range) || self.beside.as_ref().is_some_and(|(_, range)| trained.has(range))
    }

    /// Gradients of the weight, or of the adapter, where they are trained: x `[t, inputs]`, dy `[t, outputs]`.
    pub fn backward_weight(
        &self,
        x: &B::Array,
        dy: &B::Array,
        t: usize,
        grads: &mut Grads<'_, B>,
        inner: &mut B::Array,
    ) {
        if let Some(dw) = grads.of(&self.range) {
            self.model.backend.linear_backward_weight(dy, x, dw, self.shape(t));
        }
        let Some((beside, range)) = &self.beside else { return };
        if let Some(d) = grads.of(range) {
            self.model.backend.low_rank_backward_weight(beside, x, dy, d, t, inner);
        }
    }

    /// Gradient of the input, in place of what dx held.
    pub fn backward_input(&self, dy: &B::Array, dx: &mut B::Array, t: usize, inner: &mut B::Array) {
        self.model.backend.linear_backward_input(dy, self.weight(), dx, self.shape(t));
        if let Some((beside, _)) = &self.beside {
            self.model.backend.low_rank_backward_input(beside, dy, dx, t, inner);
        }
    }
}

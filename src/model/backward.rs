//! The backward pass, written out: from the gradient of one hidden state down to the embedding.
//!
//! It starts where the forward stopped. Layers above get nothing, because nothing above took part; that is exact and
//! is what makes an update of `Layer(k)` cost about `k / L` of a full one (paper, equations 14 and 15).

use super::decoder::{Keep, Workspace, resize};
use super::taps::{LayerIndex, Tap};
use super::{Model, Trained};
use crate::compute::Packing;
use crate::compute::cpu::attention::{AttentionSaved, attention_backward};
use crate::compute::cpu::embedding::embed_backward;
use crate::compute::cpu::norm::{rms_norm_again, rms_norm_backward};
use crate::compute::cpu::swiglu::{swiglu, swiglu_backward};
use std::ops::Range;

/// The part of a layer through which the gradient enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// `H^l`: both modules and the stream around them.
    Layer,
    /// `F^l` alone: the FFN, then the stream below it.
    Ffn,
    /// `A^l` alone: the attention, then the stream below it.
    Attention,
}

impl Tap {
    /// Part of its layer where a backward from this tap starts.
    fn entry(self) -> Entry {
        match self {
            Tap::Final | Tap::ResidPost(_) | Tap::Normed(_) => Entry::Layer,
            Tap::Ffn(_) => Entry::Ffn,
            Tap::Attn(_) => Entry::Attention,
            other => unreachable!("no policy reads {other:?}"),
        }
    }
}

/// The gradients as a backward sees them: parts of an array laid out as [`ParamLayout::trainable`], of trained tensors only.
pub(super) struct Grads<'a> {
    flat: &'a mut [f32],
    /// The parameter that the array begins with.
    from: usize,
    trained: &'a Trained,
    /// Takes what is computed of frozen norms on the way to their input's gradient.
    spare: Vec<f32>,
}

impl Grads<'_> {
    /// Where a tensor's gradient is added up; none if it is frozen.
    pub fn of(&mut self, range: &Range<usize>) -> Option<&mut [f32]> {
        self.trained.has(range).then(|| &mut self.flat[range.start - self.from..range.end - self.from])
    }

    fn norm(&mut self, range: &Range<usize>) -> &mut [f32] {
        if self.trained.has(range) {
            return &mut self.flat[range.start - self.from..range.end - self.from];
        }
        resize(&mut self.spare, range.len());
        &mut self.spare
    }
}

/// The gradient of the states that a loss reads, `[T, d]` each.
#[derive(Debug)]
pub struct StateGradients<'a> {
    /// Of the tap's state; consumed.
    pub d_state: &'a mut Vec<f32>,
    /// Of `H^l`, a stream below the tap that is read as well: it joins on the way down.
    pub beside: Option<(LayerIndex, &'a [f32])>,
}

impl Model {
    /// Adds to `grads` (laid out as [`ParamLayout::trainable`]) the gradient of every parameter in `trained`, which lies below `tap`
    /// ([`ParamLayout::trained_by`]); below the lowest of them nothing is computed. The workspace holds the forward of the same
    /// batch to the same tap, with [`Keep::Activations`] or [`Keep::LayerInputs`], for as much ([`Model::forward_for`]) or for
    /// everything; it is spent.
    pub fn backward(
        &self,
        ws: &mut Workspace,
        packing: &Packing,
        tap: Tap,
        states: StateGradients<'_>,
        trained: &Trained,
        grads: &mut [f32],
    ) {
        assert!(ws.keep != Keep::Nothing, "the forward kept nothing for a backward");
        let StateGradients { d_state, beside } = states;
        let top = tap.layer().or_else(|| LayerIndex::all(self.config.layers).next_back());
        let mut entry = tap.entry();
        let from = self.layout.trainable().start;
        let mut grads = Grads { flat: grads, from, trained, spare: Vec::new() };
        if matches!(tap, Tap::Final | Tap::Normed(_)) {
            let mut d_stream = std::mem::take(&mut ws.branch);
            resize(&mut d_stream, d_state.len());
            let range = &self.layout.final_norm;
            let stream = &ws.streams[top.map_or(0, LayerIndex::one_based)];
            let dw = grads.norm(range);
            rms_norm_backward(stream, self.param(range), &ws.inv_rms_final, d_state, &mut d_stream, dw, false);
            ws.branch = std::mem::replace(d_state, d_stream);
        }
        let Some((top, floor)) = top.zip(trained.floor(&self.layout)) else { return };
        assert!(ws.keeps(floor.index()), "the forward kept less than this backward goes down to");
        for layer in LayerIndex::all(top.one_based()).rev().take_while(|layer| *layer >= floor) {
            if let Some((_, d_beside)) = beside.filter(|(at, _)| *at == layer) {
                d_state.iter_mut().zip(d_beside).for_each(|(sum, d)| *sum += d);
            }
            if ws.keep == Keep::LayerInputs {
                self.recompute(ws, packing, layer);
            }
            self.backward_layer(ws, packing, layer, entry, d_state, &mut grads);
            entry = Entry::Layer;
        }
        if let Some(d_embed) = grads.of(&self.layout.embed) {
            embed_backward(d_state, packing.ids(), d_embed, self.config.hidden_size);
        }
    }

    /// The layer's activations again, from its saved input.
    fn recompute(&self, ws: &mut Workspace, packing: &Packing, layer: LayerIndex) {
        let x = std::mem::take(&mut ws.streams[layer.index()]);
        let mut post = std::mem::take(&mut ws.d_wide);
        // No tap to stop at: the whole layer is wanted, and its output only as a by-product.
        self.forward_layer(ws, layer, &x, &mut post, packing.positions(), &mut &*packing, Tap::Final, &mut |_, _| ());
        ws.d_wide = post;
        ws.streams[layer.index()] = x;
    }

    /// One layer: dh is the gradient of the entry's state and becomes that of `H^{l-1}`.
    fn backward_layer(
        &self,
        ws: &mut Workspace,
        packing: &Packing,
        layer: LayerIndex,
        entry: Entry,
        dh: &mut [f32],
        grads: &mut Grads<'_>,
    ) {
        let (c, p) = (&self.config, &self.layout.layers[layer.index()]);
        let (t, d, f) = (packing.rows(), c.hidden_size, c.intermediate_size);
        let slot = ws.acts_slot(layer.index());
        let Workspace { rope, streams, layers, normed, branch, qk, act, d_wide, d_inner, low_rank, .. } = ws;
        let linears = self.linears(layer);
        let (x, a) = (&streams[layer.index()], &mut layers[slot]);
        for (buffer, len) in [(&mut *normed, t * d), (&mut *branch, t * d), (&mut *act, t * f)] {
            resize(buffer, len);
        }

        if entry != Entry::Attention {
            // F = down(swiglu(gate_up(norm(M)))); dh is dF and, in a whole layer, also flows around it.
            swiglu(&a.gate_up, act, f);
            linears.down.backward_weight(act, dh, t, grads, low_rank);
            linears.down.backward_input(dh, act, t, low_rank);
            swiglu_backward(&mut a.gate_up, act, f);
            if linears.gate_up.is_trained(grads.trained) {
                rms_norm_again(&a.mid, self.param(&p.ffn_norm), &a.inv_rms_ffn, normed);
                linears.gate_up.backward_weight(normed, &a.gate_up, t, grads, low_rank);
            }
            linears.gate_up.backward_input(&a.gate_up, branch, t, low_rank);
            let (w, dw) = (self.param(&p.ffn_norm), grads.norm(&p.ffn_norm));
            rms_norm_backward(&a.mid, w, &a.inv_rms_ffn, branch, dh, dw, entry == Entry::Layer);
        }

        // A = o(attention(rope(qkv(norm(x))))); dh is dA and, unless A alone is read, also flows around it.
        resize(d_inner, t * c.q_dim());
        linears.o.backward_weight(&a.attn, dh, t, grads, low_rank);
        linears.o.backward_input(dh, d_inner, t, low_rank);
        resize(qk, t * (c.q_dim() + c.kv_dim()));
        resize(d_wide, t * c.qkv_dim());
        let qk_rope = self.qk_rope(p, rope, packing.positions());
        qk_rope.forward(&a.qkv, qk);
        let saved = AttentionSaved { qk, qkv: &a.qkv, out: &a.attn, lse: &a.lse };
        attention_backward(self.attention_shape(), packing, saved, d_inner, d_wide);
        let norms = p.q_norm.as_ref().zip(p.k_norm.as_ref()).filter(|(q, _)| grads.trained.has(q));
        let norms = norms.map(|(q, k)| grads.flat[q.start - grads.from..k.end - grads.from].split_at_mut(q.len()));
        qk_rope.backward(&a.qkv, d_wide, norms);
        if let Some(bias) = p.qkv_bias.as_ref().and_then(|range| grads.of(range)) {
            for row in d_wide.chunks_exact(c.qkv_dim()) {
                for (sum, x) in bias.iter_mut().zip(row) {
                    *sum += x;
                }
            }
        }
        if linears.qkv.is_trained(grads.trained) {
            rms_norm_again(x, self.param(&p.attn_norm), &a.inv_rms_attn, normed);
            linears.qkv.backward_weight(normed, d_wide, t, grads, low_rank);
        }
        linears.qkv.backward_input(d_wide, branch, t, low_rank);
        let (w, dw) = (self.param(&p.attn_norm), grads.norm(&p.attn_norm));
        rms_norm_backward(x, w, &a.inv_rms_attn, branch, dh, dw, entry != Entry::Attention);
    }
}

//! The backward pass, written out: from the gradient of one hidden state down to the embedding.
//!
//! It starts where the forward stopped. Layers above get nothing, because nothing above took part; that is exact and
//! is what makes an update of `Layer(k)` cost about `k / L` of a full one (paper, equations 14 and 15).

use super::decoder::{Keep, Workspace, resize};
use super::taps::{LayerIndex, Tap};
use super::{Model, ParamLayout};
use crate::compute::Packing;
use crate::compute::cpu::attention::{AttentionSaved, attention_backward};
use crate::compute::cpu::embedding::embed_backward;
use crate::compute::cpu::gemm::{Write, linear_backward_input, linear_backward_weight};
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
    /// Layer and part where a backward from this tap starts; none for [`Tap::Final`], which starts above them all.
    fn entry(self) -> Option<(LayerIndex, Entry)> {
        match self {
            Tap::Final => None,
            Tap::ResidPost(l) => Some((l, Entry::Layer)),
            Tap::Ffn(l) => Some((l, Entry::Ffn)),
            Tap::Attn(l) => Some((l, Entry::Attention)),
            other => unreachable!("no policy reads {other:?}"),
        }
    }
}

impl ParamLayout {
    /// The prefix of the flat array that a policy reading `tap` trains: embedding, unembedding, and the layers up to
    /// the tap (for an attention output without that layer's FFN).
    pub fn trained_by(&self, tap: Tap) -> Range<usize> {
        match tap.entry() {
            None => 0..self.len(),
            Some((layer, Entry::Attention)) => 0..self.layers[layer.index()].o.end,
            Some((layer, _)) => 0..self.layers[layer.index()].down.end,
        }
    }
}

/// Disjoint mutable parts of one layer's gradients, cut from the flat array at `range`.
fn part<'a>(grads: &'a mut [f32], range: &Range<usize>) -> &'a mut [f32] {
    &mut grads[range.clone()]
}

impl Model {
    /// Adds to `grads` (laid out as the parameters, at least [`ParamLayout::trained_by`] long) the gradient of every
    /// parameter below `tap`. `d_state` `[T, d]`, the gradient of the tap's state, is consumed. The workspace holds the
    /// forward of the same batch to the same tap, with [`Keep::Activations`] or [`Keep::LayerInputs`]; it is spent.
    pub fn backward(&self, ws: &mut Workspace, packing: &Packing, tap: Tap, d_state: &mut Vec<f32>, grads: &mut [f32]) {
        assert!(ws.keep != Keep::Nothing, "the forward kept nothing for a backward");
        let (top, mut entry) = match tap.entry() {
            Some(start) => start,
            None => {
                let mut d_stream = std::mem::take(&mut ws.branch);
                resize(&mut d_stream, d_state.len());
                let range = &self.layout.final_norm;
                let stream = &ws.streams[self.config.layers];
                let dw = part(grads, range);
                rms_norm_backward(stream, self.param(range), &ws.inv_rms_final, d_state, &mut d_stream, dw, false);
                ws.branch = std::mem::replace(d_state, d_stream);
                let Some(last) = LayerIndex::all(self.config.layers).next_back() else { return };
                (last, Entry::Layer)
            }
        };
        for layer in LayerIndex::all(top.one_based()).rev() {
            if ws.keep == Keep::LayerInputs {
                self.recompute(ws, packing, layer);
            }
            self.backward_layer(ws, packing, layer, entry, d_state, grads);
            entry = Entry::Layer;
        }
        embed_backward(d_state, packing.ids(), part(grads, &self.layout.embed), self.config.hidden_size);
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
        grads: &mut [f32],
    ) {
        let (c, p) = (&self.config, &self.layout.layers[layer.index()]);
        let (t, d, f) = (packing.rows(), c.hidden_size, c.intermediate_size);
        let slot = ws.acts_slot(layer.index());
        let Workspace { rope, streams, layers, normed, branch, qk, act, d_wide, d_inner, .. } = ws;
        let (x, a) = (&streams[layer.index()], &mut layers[slot]);
        for (buffer, len) in [(&mut *normed, t * d), (&mut *branch, t * d), (&mut *act, t * f)] {
            resize(buffer, len);
        }

        if entry != Entry::Attention {
            // F = down(swiglu(gate_up(norm(M)))); dh is dF and, in a whole layer, also flows around it.
            swiglu(&a.gate_up, act, f);
            linear_backward_weight(self.compute, dh, act, part(grads, &p.down), t, f, d);
            linear_backward_input(self.compute, dh, self.param(&p.down), act, t, f, d, Write::Replace);
            swiglu_backward(&mut a.gate_up, act, f);
            rms_norm_again(&a.mid, self.param(&p.ffn_norm), &a.inv_rms_ffn, normed);
            linear_backward_weight(self.compute, &a.gate_up, normed, part(grads, &p.gate_up), t, d, 2 * f);
            linear_backward_input(
                self.compute,
                &a.gate_up,
                self.param(&p.gate_up),
                branch,
                t,
                d,
                2 * f,
                Write::Replace,
            );
            let (w, dw) = (self.param(&p.ffn_norm), part(grads, &p.ffn_norm));
            rms_norm_backward(&a.mid, w, &a.inv_rms_ffn, branch, dh, dw, entry == Entry::Layer);
        }

        // A = o(attention(rope(qkv(norm(x))))); dh is dA and, unless A alone is read, also flows around it.
        resize(d_inner, t * c.q_dim());
        linear_backward_weight(self.compute, dh, &a.attn, part(grads, &p.o), t, c.q_dim(), d);
        linear_backward_input(self.compute, dh, self.param(&p.o), d_inner, t, c.q_dim(), d, Write::Replace);
        resize(qk, t * (c.q_dim() + c.kv_dim()));
        resize(d_wide, t * c.qkv_dim());
        let qk_rope = self.qk_rope(p, rope, packing.positions());
        qk_rope.forward(&a.qkv, qk);
        let saved = AttentionSaved { qk, qkv: &a.qkv, out: &a.attn, lse: &a.lse };
        attention_backward(self.attention_shape(), packing, saved, d_inner, d_wide);
        let norms = p.q_norm.as_ref().zip(p.k_norm.as_ref()).map(|(q, k)| grads[q.start..k.end].split_at_mut(q.len()));
        qk_rope.backward(&a.qkv, d_wide, norms);
        if let Some(range) = &p.qkv_bias {
            let bias = part(grads, range);
            for row in d_wide.chunks_exact(c.qkv_dim()) {
                for (sum, x) in bias.iter_mut().zip(row) {
                    *sum += x;
                }
            }
        }
        rms_norm_again(x, self.param(&p.attn_norm), &a.inv_rms_attn, normed);
        linear_backward_weight(self.compute, d_wide, normed, part(grads, &p.qkv), t, d, c.qkv_dim());
        linear_backward_input(self.compute, d_wide, self.param(&p.qkv), branch, t, d, c.qkv_dim(), Write::Replace);
        let (w, dw) = (self.param(&p.attn_norm), part(grads, &p.attn_norm));
        rms_norm_backward(x, w, &a.inv_rms_attn, branch, dh, dw, entry != Entry::Attention);
    }
}

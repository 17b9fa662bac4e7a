//! The backward pass, written out: from the gradient of one hidden state down to the embedding.
//!
//! It starts where the forward stopped. Layers above get nothing, because nothing above took part; that is exact and
//! is what makes an update of `Layer(k)` cost about `k / L` of a full one (paper, equations 14 and 15).

use super::decoder::{Batched, Keep, Packed, Rows, Watch, Workspace};
use super::taps::{LayerIndex, Tap};
use super::{Model, Trained};
use crate::compute::Backend;
use crate::compute::backend::{AttentionForward, Kind};
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
pub(super) struct Grads<'a, B: Backend> {
    flat: &'a mut B::Array,
    /// The parameter that the array begins with.
    from: usize,
    trained: &'a Trained,
}

impl<B: Backend> Grads<'_, B> {
    /// Where a tensor's gradient is added up; none if it is frozen.
    pub fn of(&mut self, range: &Range<usize>) -> Option<B::Part<'_>> {
        self.trained.has(range).then(|| B::part(self.flat, range.start - self.from..range.end - self.from))
    }
}

/// The gradient of the states that a loss reads, `[T, d]` each.
#[derive(Debug)]
pub struct StateGradients<'a, A> {
    /// Of the tap's state; consumed.
    pub d_state: &'a mut A,
    /// Of `H^l`, a stream below the tap that is read as well: it joins on the way down.
    pub beside: Option<(LayerIndex, &'a A)>,
}

impl<B: Backend> Model<B> {
    /// Adds to `grads` (laid out as [`ParamLayout::trainable`]) the gradient of every parameter in `trained`, which lies below `tap`
    /// ([`ParamLayout::trained_by`]); below the lowest of them nothing is computed. The workspace holds the forward of the same
    /// batch to the same tap, with [`Keep::Activations`] or [`Keep::LayerInputs`], for as much ([`Model::forward_for`]) or for
    /// everything; it is spent.
    pub fn backward(
        &self,
        ws: &mut Workspace<B>,
        batched: &Batched<'_, B>,
        tap: Tap,
        states: StateGradients<'_, B::Array>,
        trained: &Trained,
        grads: &mut B::Array,
    ) {
        assert!(ws.keep != Keep::Nothing, "the forward kept nothing for a backward");
        assert!(!self.is_ablated(), "a model without some of its modules can be looked at, not trained");
        let StateGradients { d_state, beside } = states;
        let top = tap.layer().or_else(|| LayerIndex::all(self.config.layers).next_back());
        let mut entry = tap.entry();
        let from = self.layout.trainable().start;
        let mut grads = Grads { flat: grads, from, trained };
        // Whether the gradient's last norm left it as products read it, too.
        let mut is_rounded = false;
        if matches!(tap, Tap::Final | Tap::Normed(_)) {
            let mut d_stream = std::mem::take(&mut ws.branch);
            self.backend.resize(&mut d_stream, B::len(d_state), Kind::F32);
            let range = &self.layout.final_norm;
            let stream = &ws.streams[top.map_or(0, LayerIndex::one_based)];
            let (w, dw) = (self.param(range), grads.of(range));
            self.backend.rms_norm_backward(
                stream,
                w,
                &ws.inv_rms_final,
                d_state,
                &mut d_stream,
                &mut ws.d_factor,
                dw,
                false,
            );
            is_rounded = true;
            ws.branch = std::mem::replace(d_state, d_stream);
        }
        let Some((top, floor)) = top.zip(trained.floor(&self.layout)) else { return };
        assert!(ws.keeps(floor.index()), "the forward kept less than this backward goes down to");
        let (batch, rows) = (&batched.batch, batched.rows());
        for layer in LayerIndex::all(top.one_based()).rev().take_while(|layer| *layer >= floor) {
            if let Some((_, d_beside)) = beside.filter(|(at, _)| *at == layer) {
                self.backend.accumulate(d_beside, d_state);
                is_rounded = false;
            }
            // The topmost layer was the last that the forward did.
            if ws.keep == Keep::LayerInputs && ws.latest != Some(layer.index()) {
                self.recompute(ws, batch, rows, layer);
            }
            self.backward_layer(ws, batch, rows, layer, entry, d_state, is_rounded, &mut grads);
            (entry, is_rounded) = (Entry::Layer, true);
        }
        if let Some(d_embed) = grads.of(&self.layout.embed) {
            self.backend.embed_backward(d_state, batch, d_embed, self.config.hidden_size);
        }
    }

    /// The layer's activations again, from its saved input; its output is not wanted.
    fn recompute(&self, ws: &mut Workspace<B>, batch: &B::Batch<'_>, rows: Rows<B::Tokens<'_>>, layer: LayerIndex) {
        let x = std::mem::take(&mut ws.streams[layer.index()]);
        let mut watch = Watch { until: Tap::Final, observe: &mut |_, _| () };
        self.forward_to_act(ws, layer, &x, false, rows, &mut Packed(batch), &mut watch);
        ws.streams[layer.index()] = x;
    }

    /// One layer: dh is the gradient of the entry's state and becomes that of `H^{l-1}`, in [`Workspace::d_factor`] as products read it,
    /// where it is already if `is_rounded`.
    #[allow(clippy::too_many_arguments)]
    fn backward_layer(
        &self,
        ws: &mut Workspace<B>,
        batch: &B::Batch<'_>,
        rows: Rows<B::Tokens<'_>>,
        layer: LayerIndex,
        entry: Entry,
        dh: &mut B::Array,
        mut is_rounded: bool,
        grads: &mut Grads<'_, B>,
    ) {
        let (c, p, backend) = (&self.config, &self.layout.layers[layer.index()], &self.backend);
        let (t, d, f, heads) = (rows.count, c.hidden_size, c.intermediate_size, self.heads());
        let slot = ws.acts_slot(layer.index());
        // What the forward of this very layer left in buffers that all layers share need not be made again.
        let latest = ws.latest.take() == Some(layer.index());
        let Workspace { rope, streams, layers, normed, branch, qk, act, d_wide, d_inner, d_factor, low_rank, .. } = ws;
        let linears = self.linears(layer);
        let (x, a) = (&streams[layer.index()], &mut layers[slot]);
        for (buffer, len) in [
            (&mut *normed, t * d),
            (&mut *branch, t * d),
            (&mut *act, t * f),
            (&mut *d_inner, t * c.q_dim()),
            (&mut *qk, t * heads.qk_dim()),
            (&mut *d_wide, t * heads.qkv_dim()),
        ] {
            backend.resize(buffer, len, Kind::Factor);
        }

        if entry != Entry::Attention {
            // F = down(swiglu(gate_up(norm(M)))); dh is dF and, in a whole layer, also flows around it.
            let d_branch = if is_rounded { backend.left_factor(dh, d_factor) } else { backend.factor(dh, d_factor) };
            if !latest {
                backend.swiglu(&a.gate_up, act, f);
            }
            linears.down.backward_weight(act, d_branch, t, grads, low_rank);
            linears.down.backward_input(d_branch, act, t, low_rank);
            backend.swiglu_backward(&mut a.gate_up, act, f);
            if linears.gate_up.is_trained(grads.trained) {
                if !latest {
                    backend.rms_norm_again(&a.mid, self.param(&p.ffn_norm), &a.inv_rms_ffn, normed);
                }
                linears.gate_up.backward_weight(normed, &a.gate_up, t, grads, low_rank);
            }
            linears.gate_up.backward_input(&a.gate_up, branch, t, low_rank);
            let (w, dw) = (self.param(&p.ffn_norm), grads.of(&p.ffn_norm));
            backend.rms_norm_backward(&a.mid, w, &a.inv_rms_ffn, branch, dh, d_factor, dw, entry == Entry::Layer);
            is_rounded = true;
        }

        // A = o(attention(rope(qkv(norm(x))))); dh is dA and, unless A alone is read, also flows around it.
        let d_branch = if is_rounded { backend.left_factor(dh, d_factor) } else { backend.factor(dh, d_factor) };
        linears.o.backward_weight(&a.attn, d_branch, t, grads, low_rank);
        linears.o.backward_input(d_branch, d_inner, t, low_rank);
        let norms = self.qk_norms(p);
        if !latest {
            backend.qk_rope(heads, norms, c.rms_norm_eps, rope, rows.tokens, &a.qkv, qk);
        }
        let forward = AttentionForward { qk, qkv: &a.qkv, out: &a.attn, lse: &a.lse };
        backend.attention_backward(heads, batch, forward, d_inner, d_wide);
        // The two lie beside each other.
        let d_norms = p
            .q_norm
            .as_ref()
            .zip(p.k_norm.as_ref())
            .filter(|(q, _)| grads.trained.has(q))
            .map(|(q, k)| B::part(grads.flat, q.start - grads.from..k.end - grads.from));
        backend.qk_rope_backward(heads, norms, c.rms_norm_eps, rope, rows.tokens, &a.qkv, d_wide, d_norms);
        if let Some(d_bias) = p.qkv_bias.as_ref().and_then(|range| grads.of(range)) {
            backend.bias_backward(d_wide, d_bias);
        }
        if linears.qkv.is_trained(grads.trained) {
            backend.rms_norm_again(x, self.param(&p.attn_norm), &a.inv_rms_attn, normed);
            linears.qkv.backward_weight(normed, d_wide, t, grads, low_rank);
        }
        linears.qkv.backward_input(d_wide, branch, t, low_rank);
        let (w, dw) = (self.param(&p.attn_norm), grads.of(&p.attn_norm));
        backend.rms_norm_backward(x, w, &a.inv_rms_attn, branch, dh, d_factor, dw, entry != Entry::Attention);
    }
}

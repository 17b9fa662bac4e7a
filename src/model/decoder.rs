//! The forward pass, with taps: `H^l = H^{l-1} + A^l + F^l`, stopped wherever the caller's hidden state is reached.
//!
//! One function serves training, analysis, prompt prefill and decoding; they differ in what is kept
//! ([`Keep`]), who looks on (an observer), and in how a token finds its keys and values ([`Attend`]).

use super::packed::PackedModel;
use super::taps::{LayerIndex, Tap};
use super::{Model, Trained, params::LayerParams};
use crate::compute::Packing;
use crate::compute::cpu::attention::{AttentionShape, attention};
use crate::compute::cpu::embedding::embed;
use crate::compute::cpu::gemm::{PackedWeight, Write};
use crate::compute::cpu::norm::{add_rms_norm, rms_norm};
use crate::compute::cpu::rope::{QkRope, RopeTable};
use crate::compute::cpu::swiglu::swiglu;
use rayon::prelude::*;
use std::sync::Arc;

/// What a forward keeps for a backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: scoring, analysis, decoding.
    Nothing,
    /// Each layer's input only; the backward computes the layer again. Less memory, about a third more time.
    LayerInputs,
    /// Everything that the backward reads.
    Activations,
}

/// How queries meet keys and values. `qk` `[T, (H + KV) hd]` is rotated, `qkv` `[T, (H + 2 KV) hd]` holds the values.
pub trait Attend {
    /// Writes out `[T, H hd]`, and lse `[T, H]` where a backward may follow.
    fn attend(
        &mut self,
        layer: usize,
        shape: AttentionShape,
        qk: &[f32],
        qkv: &[f32],
        out: &mut [f32],
        lse: &mut [f32],
    );
}

impl Attend for &Packing {
    fn attend(&mut self, _: usize, shape: AttentionShape, qk: &[f32], qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
        attention(shape, self, qk, qkv, out, lse);
    }
}

/// One layer's activations, as the backward reads them.
#[derive(Debug, Default)]
pub(super) struct LayerActs {
    /// `[T]`
    pub inv_rms_attn: Vec<f32>,
    /// `[T, qkv_dim]`, before the head norms and RoPE
    pub qkv: Vec<f32>,
    /// `[T, q_dim]`, before the output projection
    pub attn: Vec<f32>,
    /// `[T, H]`
    pub lse: Vec<f32>,
    /// `M^l` `[T, d]`
    pub mid: Vec<f32>,
    /// `[T]`
    pub inv_rms_ffn: Vec<f32>,
    /// `[T, 2 f]`
    pub gate_up: Vec<f32>,
}

/// Rows at the head, and the gradients that come back from it.
#[derive(Debug, Default)]
pub struct HeadScratch {
    /// `[R, d]`
    pub hidden: Vec<f32>,
    /// `[R, d]`
    pub d_hidden: Vec<f32>,
    /// `[T, d]`
    pub d_state: Vec<f32>,
    /// `[T, d]`, of the state that is read beside
    pub d_beside: Vec<f32>,
    /// A block of rows against the vocabulary.
    pub logits: Vec<f32>,
}

/// Buffers of the forward and backward pass. Allocated once per shape and reused.
pub struct Workspace {
    pub(super) rope: RopeTable,
    pub(super) keep: Keep,
    /// Index of the lowest layer for which anything is kept.
    kept_from: usize,
    /// `H^0..H^L` where they are kept; two that take turns where not.
    pub(super) streams: Vec<Vec<f32>>,
    pub(super) layers: Vec<LayerActs>,
    pub(super) inv_rms_final: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) branch: Vec<f32>,
    pub(super) qk: Vec<f32>,
    pub(super) act: Vec<f32>,
    pub(super) d_wide: Vec<f32>,
    pub(super) d_inner: Vec<f32>,
    /// Between the two factors of an adapter.
    pub(super) low_rank: Vec<f32>,
    /// The state of the tap at which the last forward stopped, `[T, d]`.
    state: Vec<f32>,
    /// Of the head's gradient, which works beside the decoder.
    pub head: HeadScratch,
    /// The weights as decoding reads them, while a rollout lasts.
    packed: Option<Arc<PackedModel>>,
}

impl Workspace {
    pub fn new(model: &Model) -> Workspace {
        Workspace {
            rope: model.rope_table(),
            keep: Keep::Nothing,
            kept_from: 0,
            streams: Vec::new(),
            layers: Vec::new(),
            inv_rms_final: Vec::new(),
            normed: Vec::new(),
            branch: Vec::new(),
            qk: Vec::new(),
            act: Vec::new(),
            d_wide: Vec::new(),
            d_inner: Vec::new(),
            low_rank: Vec::new(),
            state: Vec::new(),
            head: HeadScratch::default(),
            packed: None,
        }
    }

    /// Lays out the weights below `until` for many forwards of few rows, until [`Workspace::unpack`]. The weights must not
    /// change in between. Values stay the same, bit for bit.
    pub fn pack(&mut self, model: &Model, until: Tap) {
        self.packed = PackedModel::new(model, until).map(Arc::new);
    }

    /// A workspace for another thread, which shares what [`Workspace::pack`] made.
    pub fn beside(&self, model: &Model) -> Workspace {
        Workspace { packed: self.packed.clone(), ..Workspace::new(model) }
    }

    /// Frees what [`Workspace::pack`] made.
    pub fn unpack(&mut self) {
        self.packed = None;
    }

    /// The unembedding as [`Workspace::pack`] laid it out.
    pub fn packed_unembed(&self) -> Option<&PackedWeight> {
        self.packed.as_ref().map(|p| &p.unembed)
    }

    /// The state of the tap at which the last forward stopped, `[T, d]`.
    pub fn state(&self) -> &[f32] {
        &self.state
    }

    /// `H^l` `[T, d]` of the last forward, which kept something for a backward and came as far.
    pub fn stream(&self, layer: LayerIndex) -> &[f32] {
        assert!(self.keeps(layer.one_based()), "the forward did not keep the stream of layer {}", layer.one_based());
        &self.streams[layer.one_based()]
    }

    /// Whether the last forward kept `H^layer`, and what a backward reads of the layer above it.
    pub(super) fn keeps(&self, layer: usize) -> bool {
        self.keep != Keep::Nothing && layer >= self.kept_from
    }

    /// Where `H^layer` is. What is not kept takes turns in two slots; they are below all that are.
    pub(super) fn stream_slot(&self, layer: usize) -> usize {
        if self.keeps(layer) { layer } else { layer % 2 }
    }

    /// What is not kept is overwritten by the next layer.
    pub(super) fn acts_slot(&self, layer: usize) -> usize {
        if self.keep == Keep::Activations { layer.max(self.kept_from).min(self.layers.len() - 1) } else { 0 }
    }
}

pub(super) fn resize(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

impl Model {
    pub(super) fn attention_shape(&self) -> AttentionShape {
        let c = &self.config;
        AttentionShape { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim, compute: self.compute }
    }

    pub(super) fn qk_rope<'a>(&'a self, p: &LayerParams, table: &'a RopeTable, positions: &'a [u32]) -> QkRope<'a> {
        let c = &self.config;
        QkRope {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            q_norm: p.q_norm.as_ref().map(|r| self.param(r)),
            k_norm: p.k_norm.as_ref().map(|r| self.param(r)),
            eps: c.rms_norm_eps,
            table,
            positions,
        }
    }

    /// Runs the decoder on a packed batch until `until` is known, and no further: a policy of depth k costs k layers.
    /// Its state `[T, d]` is then in [`Workspace::state`].
    pub fn forward(&self, ws: &mut Workspace, packing: &Packing, until: Tap, keep: Keep) {
        ws.kept_from = 0;
        self.forward_with(ws, packing.ids(), packing.positions(), &mut &*packing, until, keep, &mut |_, _| ());
    }

    /// [`Model::forward`] for a backward to what is in `trained`: of the layers below the lowest of them nothing is kept, but for
    /// the stream of `beside`, which a loss reads.
    pub fn forward_for(
        &self,
        ws: &mut Workspace,
        packing: &Packing,
        until: Tap,
        keep: Keep,
        trained: &Trained,
        beside: Option<LayerIndex>,
    ) {
        let top = until.layer().map_or(self.config.layers, LayerIndex::one_based);
        let floor = trained.floor(&self.layout).map_or(top, LayerIndex::index);
        ws.kept_from = beside.map_or(floor, |beside| floor.min(beside.one_based()));
        self.forward_with(ws, packing.ids(), packing.positions(), &mut &*packing, until, keep, &mut |_, _| ());
    }

    /// [`Model::forward`] without keeping anything, showing every hidden state on the way to `observe`.
    pub fn forward_observed(
        &self,
        ws: &mut Workspace,
        packing: &Packing,
        until: Tap,
        observe: &mut dyn FnMut(Tap, &[f32]),
    ) {
        self.forward_with(ws, packing.ids(), packing.positions(), &mut &*packing, until, Keep::Nothing, observe);
    }

    /// The general form. ids and positions `[T]`; ids must be below the vocabulary's size.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_with(
        &self,
        ws: &mut Workspace,
        ids: &[u32],
        positions: &[u32],
        attend: &mut dyn Attend,
        until: Tap,
        keep: Keep,
        observe: &mut dyn FnMut(Tap, &[f32]),
    ) {
        let (t, d, layers) = (ids.len(), self.config.hidden_size, self.config.layers);
        ws.rope.reserve(positions.iter().max().map_or(0, |p| *p as usize + 1));
        ws.keep = keep;
        ws.streams.resize_with(if keep == Keep::Nothing { 2 } else { layers + 1 }, Vec::new);
        ws.layers.resize_with(if keep == Keep::Activations { layers } else { 1 }, LayerActs::default);
        resize(&mut ws.streams[0], t * d);
        embed(self.param(&self.layout.embed), ids, &mut ws.streams[0], d);
        for layer in LayerIndex::all(layers) {
            let i = layer.index();
            let (input, output) = (ws.stream_slot(i), ws.stream_slot(i + 1));
            let x = std::mem::take(&mut ws.streams[input]);
            let mut post = std::mem::take(&mut ws.streams[output]);
            observe(Tap::ResidPre(layer), &x);
            let stopped = self.forward_layer(ws, layer, &x, &mut post, positions, attend, until, observe);
            ws.streams[input] = x;
            ws.streams[output] = post;
            if stopped {
                return;
            }
            if until == Tap::Normed(layer) {
                self.norm_stream(ws, output, t);
                return observe(until, &ws.state);
            }
        }
        let last = ws.stream_slot(layers);
        self.norm_stream(ws, last, t);
        observe(Tap::Final, &ws.state);
    }

    /// The final norm of a stream, as the workspace's state.
    fn norm_stream(&self, ws: &mut Workspace, slot: usize, t: usize) {
        resize(&mut ws.state, t * self.config.hidden_size);
        resize(&mut ws.inv_rms_final, t);
        let w = self.param(&self.layout.final_norm);
        rms_norm(&ws.streams[slot], w, self.config.rms_norm_eps, &mut ws.state, &mut ws.inv_rms_final);
    }

    /// One layer: `x = H^{l-1}` to `post = H^l`. True if `until` lies in this layer, with its state saved.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward_layer(
        &self,
        ws: &mut Workspace,
        layer: LayerIndex,
        x: &[f32],
        post: &mut Vec<f32>,
        positions: &[u32],
        attend: &mut dyn Attend,
        until: Tap,
        observe: &mut dyn FnMut(Tap, &[f32]),
    ) -> bool {
        let (c, p) = (&self.config, &self.layout.layers[layer.index()]);
        let (t, d, f) = (positions.len(), c.hidden_size, c.intermediate_size);
        let slot = ws.acts_slot(layer.index());
        let Workspace { rope, layers, normed, branch, qk, act, low_rank, state, packed, .. } = ws;
        let a = &mut layers[slot];
        let packed = packed.as_ref().map(|p| &p.layers[layer.index()]);
        let linears = self.linears(layer);
        for (buffer, len) in [
            (&mut *normed, t * d),
            (&mut *branch, t * d),
            (&mut *qk, t * (c.q_dim() + c.kv_dim())),
            (&mut *act, t * f),
            (&mut a.inv_rms_attn, t),
            (&mut a.inv_rms_ffn, t),
            (&mut a.qkv, t * c.qkv_dim()),
            (&mut a.attn, t * c.q_dim()),
            (&mut a.lse, t * c.heads),
            (&mut a.mid, t * d),
            (&mut a.gate_up, t * 2 * f),
            (&mut *post, t * d),
        ] {
            resize(buffer, len);
        }
        let mut reached = |tap: Tap, x: &[f32]| {
            observe(tap, x);
            if tap == until {
                state.clear();
                state.extend_from_slice(x);
            }
            tap == until
        };

        rms_norm(x, self.param(&p.attn_norm), c.rms_norm_eps, normed, &mut a.inv_rms_attn);
        if reached(Tap::AttnIn(layer), normed) {
            return true;
        }
        let write = self.write_bias(p, &mut a.qkv);
        linears.qkv.forward(packed.map(|p| &p.qkv), normed, &mut a.qkv, t, write, low_rank);
        self.qk_rope(p, rope, positions).forward(&a.qkv, qk);
        attend.attend(layer.index(), self.attention_shape(), qk, &a.qkv, &mut a.attn, &mut a.lse);
        linears.o.forward(packed.map(|p| &p.o), &a.attn, branch, t, Write::Replace, low_rank);
        if reached(Tap::Attn(layer), branch) {
            return true;
        }

        let w = self.param(&p.ffn_norm);
        add_rms_norm(x, branch, w, c.rms_norm_eps, &mut a.mid, normed, &mut a.inv_rms_ffn);
        if reached(Tap::ResidMid(layer), &a.mid) || reached(Tap::FfnIn(layer), normed) {
            return true;
        }
        linears.gate_up.forward(packed.map(|p| &p.gate_up), normed, &mut a.gate_up, t, Write::Replace, low_rank);
        swiglu(&a.gate_up, act, f);
        linears.down.forward(packed.map(|p| &p.down), act, branch, t, Write::Replace, low_rank);
        if reached(Tap::Ffn(layer), branch) {
            return true;
        }
        add(&a.mid, branch, post);
        reached(Tap::ResidPost(layer), post)
    }

    /// Puts the bias into every row of qkv, if the family has one, and says how the product is to be written.
    fn write_bias(&self, p: &LayerParams, qkv: &mut [f32]) -> Write {
        let Some(bias) = p.qkv_bias.as_ref().map(|r| self.param(r)) else {
            return Write::Replace;
        };
        qkv.par_chunks_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
        Write::Add
    }
}

fn add(a: &[f32], b: &[f32], sum: &mut [f32]) {
    const BLOCK: usize = 1 << 14;
    sum.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK))).for_each(|(sum, (a, b))| {
        for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
            *sum = a + b;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::{InitConfig, random_params};
    use crate::model::params::ParamLayout;

    #[test]
    fn nothing_is_kept_of_layers_below_all_that_is_trained() {
        let init = InitConfig { layers: 5, ..InitConfig::default() };
        let config = init.model_config(40).unwrap();
        let layout = ParamLayout::new(&config);
        let model = Model::new(config.clone(), random_params(&config, &layout, 0.1, 3));
        let packing = Packing::single(&[3, 1, 4, 1, 5]);
        let trained_from = |at: usize| -> Trained {
            let flags: Vec<bool> = layout.tensors.iter().map(|t| t.offset >= at).collect();
            layout.trained_by(Tap::Final).and(&flags)
        };
        let fourth = trained_from(layout.layers[3].attn_norm.start);
        let kept = |keep: Keep, trained: &Trained, beside: Option<usize>| {
            let mut ws = Workspace::new(&model);
            let beside = beside.map(|l| LayerIndex::from_one_based(l, 5).unwrap());
            model.forward_for(&mut ws, &packing, Tap::Final, keep, trained, beside);
            assert_eq!(ws.state(), {
                let mut whole = Workspace::new(&model);
                model.forward(&mut whole, &packing, Tap::Final, Keep::Activations);
                whole.state().to_vec()
            });
            let streams = ws.streams.iter().filter(|s| !s.is_empty()).count();
            (streams, ws.layers.iter().filter(|a| !a.qkv.is_empty()).count())
        };
        // H^0..H^5 and five layers; H^3 to H^5 and two layers, beside the two streams that take turns below.
        assert_eq!(kept(Keep::Activations, &Trained::everything(&layout), None), (6, 5));
        assert_eq!(kept(Keep::Activations, &fourth, None), (5, 2));
        assert_eq!(kept(Keep::LayerInputs, &fourth, None), (5, 1));
        assert_eq!(kept(Keep::Activations, &fourth, Some(2)), (6, 3));
        // The final norm alone: its input.
        assert_eq!(kept(Keep::Activations, &trained_from(layout.final_norm.start), None), (3, 1));
    }
}

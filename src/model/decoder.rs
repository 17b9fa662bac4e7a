//! The forward pass, with taps: `H^l = H^{l-1} + A^l + F^l`, stopped wherever the caller's hidden state is reached.
//!
//! One function serves training, analysis, prompt prefill and decoding; they differ in what is kept
//! ([`Keep`]), who looks on (an observer), and in how a token finds its keys and values ([`Attend`]).

use super::packed::PackedModel;
use super::taps::{LayerIndex, Tap};
use super::{Model, Trained, params::LayerParams};
use crate::compute::backend::{Heads, Kind, QkNorms};
use crate::compute::cpu::Cpu;
use crate::compute::{Backend, Packing};
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

impl Keep {
    /// For a backward that computes layers again, or not.
    pub fn for_backward(recompute: bool) -> Keep {
        if recompute { Keep::LayerInputs } else { Keep::Activations }
    }
}

/// The tokens of a forward.
#[derive(Clone, Copy, Debug)]
pub struct Rows<T> {
    /// Ids and positions, on the device.
    pub tokens: T,
    pub count: usize,
    /// One more than the highest position.
    pub positions: usize,
}

impl<T> Rows<T> {
    /// The tokens of a packed batch.
    pub fn packed<'a, B: Backend<Tokens<'a> = T>>(batch: &'a B::Batch<'_>, packing: &Packing) -> Rows<T> {
        let positions = packing.positions().iter().max().map_or(0, |p| *p as usize + 1);
        Rows { tokens: B::tokens(batch), count: packing.rows(), positions }
    }
}

/// A packed batch as the device has it, for a forward and the backward after it.
pub struct Batched<'a, B: Backend> {
    pub(super) packing: &'a Packing,
    pub(super) batch: B::Batch<'a>,
}

impl<B: Backend> Batched<'_, B> {
    pub(super) fn rows(&self) -> Rows<B::Tokens<'_>> {
        Rows::packed::<B>(&self.batch, self.packing)
    }
}

/// Where a forward stops, and who is shown the hidden states on the way there.
pub(super) struct Watch<'a, B: Backend> {
    pub until: Tap,
    pub observe: &'a mut dyn FnMut(Tap, &B::Array),
}

impl<B: Backend> Watch<'_, B> {
    /// True at the end, whose state is then kept.
    fn reached(&mut self, backend: &B, tap: Tap, x: &B::Array, state: &mut B::Array) -> bool {
        (self.observe)(tap, x);
        if tap == self.until {
            backend.copy(x, state);
        }
        tap == self.until
    }
}

/// How queries and keys are made ready, and meet each other and the values. `qk` `[T, (H + KV) hd]` is rotated, `qkv` `[T, (H + 2 KV) hd]`
/// holds the values.
pub trait Attend<B: Backend> {
    /// [`Backend::qk_rope`]; here also what is kept of keys and values may go to its place.
    #[allow(clippy::too_many_arguments)]
    fn rotate(
        &mut self,
        backend: &B,
        _layer: usize,
        heads: Heads,
        norms: Option<QkNorms<B::View<'_>>>,
        eps: f32,
        rope: &B::Rope,
        tokens: B::Tokens<'_>,
        qkv: &B::Array,
        qk: &mut B::Array,
    ) {
        backend.qk_rope(heads, norms, eps, rope, tokens, qkv, qk);
    }

    /// Writes out `[T, H hd]`, and lse `[T, H]` where a backward may follow.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &mut self,
        backend: &B,
        layer: usize,
        heads: Heads,
        qk: &B::Array,
        qkv: &B::Array,
        out: &mut B::Array,
        lse: &mut B::Array,
    );
}

/// Packed sequences attend to themselves.
pub(super) struct Packed<'a, 'b, B: Backend>(pub &'a B::Batch<'b>);

impl<B: Backend> Attend<B> for Packed<'_, '_, B> {
    fn attend(
        &mut self,
        backend: &B,
        _: usize,
        heads: Heads,
        qk: &B::Array,
        qkv: &B::Array,
        out: &mut B::Array,
        lse: &mut B::Array,
    ) {
        backend.attention(heads, self.0, qk, qkv, out, lse);
    }
}

/// One layer's activations, as the backward reads them.
#[derive(Debug, Default)]
pub(super) struct LayerActs<A> {
    /// `[T]`
    pub inv_rms_attn: A,
    /// `[T, qkv_dim]`, before the head norms and RoPE
    pub qkv: A,
    /// `[T, q_dim]`, before the output projection
    pub attn: A,
    /// `[T, H]`
    pub lse: A,
    /// `M^l` `[T, d]`
    pub mid: A,
    /// `[T]`
    pub inv_rms_ffn: A,
    /// `[T, 2 f]`
    pub gate_up: A,
}

/// Rows at the head, and the gradients that come back from it.
#[derive(Debug, Default)]
pub struct HeadScratch<A> {
    /// `[R, d]`
    pub hidden: A,
    /// `[R, d]`
    pub d_hidden: A,
    /// `[T, d]`
    pub d_state: A,
    /// `[T, d]`, of the state that is read beside
    pub d_beside: A,
    /// A block of rows against the vocabulary.
    pub logits: A,
}

/// Buffers of the forward and backward pass. Allocated once per shape and reused.
pub struct Workspace<B: Backend = Cpu> {
    pub(super) rope: B::Rope,
    pub(super) keep: Keep,
    /// Index of the lowest layer for which anything is kept.
    kept_from: usize,
    /// `H^0..H^L` where they are kept; two that take turns where not.
    pub(super) streams: Vec<B::Array>,
    pub(super) layers: Vec<LayerActs<B::Array>>,
    pub(super) inv_rms_final: B::Array,
    pub(super) normed: B::Array,
    pub(super) branch: B::Array,
    pub(super) qk: B::Array,
    pub(super) act: B::Array,
    pub(super) d_wide: B::Array,
    pub(super) d_inner: B::Array,
    /// A stream's gradient as products read it, where that is not as it is kept.
    pub(super) d_factor: B::Array,
    /// Between the two factors of an adapter.
    pub(super) low_rank: B::Array,
    /// The layer (its index) of which [`Workspace::normed`], [`Workspace::qk`], [`Workspace::act`] and the activations' slot hold
    /// what its forward left there.
    pub(super) latest: Option<usize>,
    /// The state of the tap at which the last forward stopped, `[T, d]`.
    state: B::Array,
    /// Of the head's gradient, which works beside the decoder.
    pub head: HeadScratch<B::Array>,
    /// The weights as decoding reads them, while a rollout lasts.
    packed: Option<Arc<PackedModel<B>>>,
}

impl<B: Backend> Workspace<B> {
    pub fn new(model: &Model<B>) -> Workspace<B> {
        Workspace {
            rope: model.rope_table(),
            keep: Keep::Nothing,
            kept_from: 0,
            streams: Vec::new(),
            layers: Vec::new(),
            inv_rms_final: B::Array::default(),
            normed: B::Array::default(),
            branch: B::Array::default(),
            qk: B::Array::default(),
            act: B::Array::default(),
            d_wide: B::Array::default(),
            d_inner: B::Array::default(),
            d_factor: B::Array::default(),
            low_rank: B::Array::default(),
            latest: None,
            state: B::Array::default(),
            head: HeadScratch::default(),
            packed: None,
        }
    }

    /// Gives up all buffers, where the device would have them serve something else meanwhile ([`Backend::release`]).
    pub fn release(&mut self, backend: &B) {
        (self.keep, self.latest) = (Keep::Nothing, None);
        backend.release_rope(&mut self.rope);
        let Workspace { streams, layers, head, .. } = self;
        let HeadScratch { hidden, d_hidden, d_state, d_beside, logits } = head;
        let of_layers = layers.iter_mut().flat_map(|a| {
            [&mut a.inv_rms_attn, &mut a.qkv, &mut a.attn, &mut a.lse, &mut a.mid, &mut a.inv_rms_ffn, &mut a.gate_up]
        });
        let shared = [
            &mut self.inv_rms_final,
            &mut self.normed,
            &mut self.branch,
            &mut self.qk,
            &mut self.act,
            &mut self.d_wide,
            &mut self.d_inner,
            &mut self.d_factor,
            &mut self.low_rank,
            &mut self.state,
        ];
        let of_head = [hidden, d_hidden, d_state, d_beside, logits];
        streams.iter_mut().chain(of_layers).chain(shared).chain(of_head).for_each(|array| backend.release(array));
    }

    /// Lays out the weights below `until` for many forwards of few rows, until [`Workspace::unpack`]. The weights must not
    /// change in between. Values stay the same, bit for bit.
    pub fn pack(&mut self, model: &Model<B>, until: Tap) {
        self.packed = PackedModel::of(model, until);
    }

    /// A workspace for another thread, which shares what [`Workspace::pack`] made.
    pub fn beside(&self, model: &Model<B>) -> Workspace<B> {
        Workspace { packed: self.packed.clone(), ..Workspace::new(model) }
    }

    /// Frees what [`Workspace::pack`] made.
    pub fn unpack(&mut self) {
        self.packed = None;
    }

    /// The unembedding as [`Workspace::pack`] laid it out.
    pub fn packed_unembed(&self) -> Option<&B::Packed> {
        self.packed.as_ref().map(|p| &p.unembed)
    }

    /// The state of the tap at which the last forward stopped, `[T, d]`.
    pub fn state(&self) -> &B::Array {
        &self.state
    }

    /// `H^l` `[T, d]` of the last forward, which kept something for a backward and came as far.
    pub fn stream(&self, layer: LayerIndex) -> &B::Array {
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

impl<B: Backend> Model<B> {
    pub(super) fn heads(&self) -> Heads {
        let c = &self.config;
        Heads { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim }
    }

    pub(super) fn qk_norms(&self, p: &LayerParams) -> Option<QkNorms<B::View<'_>>> {
        let (q, k) = p.q_norm.as_ref().zip(p.k_norm.as_ref())?;
        Some(QkNorms { q: self.param(q), k: self.param(k) })
    }

    /// A packed batch for [`Model::forward_for`] and [`Model::backward`].
    pub fn batched<'a>(&self, packing: &'a Packing) -> Batched<'a, B> {
        Batched { packing, batch: self.backend.batch(packing, self.heads()) }
    }

    /// Runs the decoder on a packed batch until `until` is known, and no further: a policy of depth k costs k layers.
    /// Its state `[T, d]` is then in [`Workspace::state`].
    pub fn forward(&self, ws: &mut Workspace<B>, packing: &Packing, until: Tap, keep: Keep) {
        self.forward_on(ws, &self.batched(packing), until, keep);
    }

    /// [`Model::forward`] of a batch that the device has.
    pub fn forward_on(&self, ws: &mut Workspace<B>, batched: &Batched<'_, B>, until: Tap, keep: Keep) {
        ws.kept_from = 0;
        self.forward_batched(ws, batched, until, keep, &mut |_, _| ());
    }

    /// [`Model::forward`] for a backward to what is in `trained`: of the layers below the lowest of them nothing is kept, but for
    /// the stream of `beside`, which a loss reads.
    pub fn forward_for(
        &self,
        ws: &mut Workspace<B>,
        batched: &Batched<'_, B>,
        until: Tap,
        keep: Keep,
        trained: &Trained,
        beside: Option<LayerIndex>,
    ) {
        let top = until.layer().map_or(self.config.layers, LayerIndex::one_based);
        let floor = trained.floor(&self.layout).map_or(top, LayerIndex::index);
        ws.kept_from = beside.map_or(floor, |beside| floor.min(beside.one_based()));
        self.forward_batched(ws, batched, until, keep, &mut |_, _| ());
    }

    /// [`Model::forward`] without keeping anything, showing every hidden state on the way to `observe`.
    pub fn forward_observed(
        &self,
        ws: &mut Workspace<B>,
        packing: &Packing,
        until: Tap,
        observe: &mut dyn FnMut(Tap, &B::Array),
    ) {
        self.forward_batched(ws, &self.batched(packing), until, Keep::Nothing, observe);
    }

    fn forward_batched(
        &self,
        ws: &mut Workspace<B>,
        batched: &Batched<'_, B>,
        until: Tap,
        keep: Keep,
        observe: &mut dyn FnMut(Tap, &B::Array),
    ) {
        self.forward_with(ws, batched.rows(), &mut Packed(&batched.batch), until, keep, observe);
    }

    /// Runs layers from `first` on again, up to the final state, on the stream below them that a forward of the same batch kept. What it
    /// kept of the streams above is overwritten; what lies below `first` stays.
    pub fn forward_again(&self, ws: &mut Workspace<B>, batched: &Batched<'_, B>, first: LayerIndex) {
        assert!(ws.keeps(first.index()), "the forward did not keep the stream below layer {first}");
        let watch = Watch { until: Tap::Final, observe: &mut |_, _| () };
        self.climb(ws, first, batched.rows(), &mut Packed(&batched.batch), watch);
    }

    /// The general form. Ids must be below the vocabulary's size.
    pub fn forward_with(
        &self,
        ws: &mut Workspace<B>,
        rows: Rows<B::Tokens<'_>>,
        attend: &mut dyn Attend<B>,
        until: Tap,
        keep: Keep,
        observe: &mut dyn FnMut(Tap, &B::Array),
    ) {
        let (t, d, layers) = (rows.count, self.config.hidden_size, self.config.layers);
        self.backend.reserve(&mut ws.rope, rows.positions);
        ws.keep = keep;
        ws.streams.resize_with(if keep == Keep::Nothing { 2 } else { layers + 1 }, Default::default);
        ws.layers.resize_with(if keep == Keep::Activations { layers } else { 1 }, Default::default);
        self.backend.resize(&mut ws.streams[0], t * d, Kind::F32);
        self.backend.embed(self.embedding(), rows.tokens, &mut ws.streams[0], d);
        if let Some(first) = LayerIndex::all(layers).next() {
            self.climb(ws, first, rows, attend, Watch { until, observe });
        }
    }

    /// Goes on from layer `first`, whose input [`Workspace::streams`] has, to where the watch ends.
    fn climb(
        &self,
        ws: &mut Workspace<B>,
        first: LayerIndex,
        rows: Rows<B::Tokens<'_>>,
        attend: &mut dyn Attend<B>,
        mut watch: Watch<'_, B>,
    ) {
        for layer in LayerIndex::all(self.config.layers).skip(first.index()) {
            let i = layer.index();
            let (input, output) = (ws.stream_slot(i), ws.stream_slot(i + 1));
            let x = std::mem::take(&mut ws.streams[input]);
            let mut post = std::mem::take(&mut ws.streams[output]);
            let stopped = watch.reached(&self.backend, Tap::ResidPre(layer), &x, &mut ws.state)
                || self.forward_layer(ws, layer, &x, layer > first, &mut post, rows, attend, &mut watch);
            ws.streams[input] = x;
            ws.streams[output] = post;
            if stopped {
                return;
            }
            if watch.until == Tap::Normed(layer) {
                return (watch.observe)(watch.until, &ws.state);
            }
        }
        (watch.observe)(Tap::Final, &ws.state);
    }

    /// One layer: `x = H^{l-1}` to `post = H^l`. `is_normed`: the layer below left the norm of x. True if the watch ends in this layer, with its state saved.
    #[allow(clippy::too_many_arguments)]
    fn forward_layer(
        &self,
        ws: &mut Workspace<B>,
        layer: LayerIndex,
        x: &B::Array,
        is_normed: bool,
        post: &mut B::Array,
        rows: Rows<B::Tokens<'_>>,
        attend: &mut dyn Attend<B>,
        watch: &mut Watch<'_, B>,
    ) -> bool {
        if self.forward_to_act(ws, layer, x, is_normed, rows, attend, watch) {
            return true;
        }
        let Workspace { branch, act, low_rank, state, packed, .. } = &mut *ws;
        let packed = packed.as_ref().map(|p| &p.layers[layer.index()].down);
        self.linears(layer).down.forward(packed, act, None, branch, rows.count, low_rank);
        self.replace_ffn(layer, branch);
        if watch.reached(&self.backend, Tap::Ffn(layer), branch, state) {
            return true;
        }
        self.add_ffn(ws, layer, post, rows.count, watch.until);
        watch.reached(&self.backend, Tap::ResidPost(layer), post, &mut ws.state)
    }

    /// `post = M^l + F^l`, and in the same pass the norm through which it is read next, if any: that of the layer above, or the final
    /// one, whose output is the workspace's state.
    fn add_ffn(&self, ws: &mut Workspace<B>, layer: LayerIndex, post: &mut B::Array, t: usize, until: Tap) {
        let (backend, len) = (&self.backend, t * self.config.hidden_size);
        let [slot, slot_above] = [layer.index(), layer.index() + 1].map(|layer| ws.acts_slot(layer));
        let above = self.layout.layers.get(layer.index() + 1).filter(|_| until != Tap::Normed(layer));
        let Workspace { layers, branch, normed, state, inv_rms_final, .. } = ws;
        backend.resize(post, len, Kind::F32);
        if until == Tap::ResidPost(layer) {
            return backend.add(&layers[slot].mid, branch, post);
        }
        // Taken out: where activations are not kept, both layers have one slot.
        let mid = std::mem::take(&mut layers[slot].mid);
        let (w, y, inv_rms) = match above {
            Some(above) => (&above.attn_norm, normed, &mut layers[slot_above].inv_rms_attn),
            None => (&self.layout.final_norm, state, inv_rms_final),
        };
        backend.resize(y, len, Kind::Factor);
        backend.resize(inv_rms, t, Kind::F32);
        backend.add_rms_norm(&mid, branch, self.param(w), self.config.rms_norm_eps, post, y, inv_rms);
        layers[slot].mid = mid;
    }

    /// A layer up to the last of what its backward reads, the activation `[T, f]` that the product down takes: what is done again
    /// where activations were not kept. `is_normed`: the layer below left the norm of x. True if the watch ends before it.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward_to_act(
        &self,
        ws: &mut Workspace<B>,
        layer: LayerIndex,
        x: &B::Array,
        is_normed: bool,
        rows: Rows<B::Tokens<'_>>,
        attend: &mut dyn Attend<B>,
        watch: &mut Watch<'_, B>,
    ) -> bool {
        let (c, p, backend) = (&self.config, &self.layout.layers[layer.index()], &self.backend);
        let (t, d, f, heads) = (rows.count, c.hidden_size, c.intermediate_size, self.heads());
        let slot = ws.acts_slot(layer.index());
        ws.latest = Some(layer.index());
        let Workspace { rope, layers, normed, branch, qk, act, low_rank, state, packed, .. } = ws;
        let a = &mut layers[slot];
        let packed = packed.as_ref().map(|p| &p.layers[layer.index()]);
        let linears = self.linears(layer);
        for (buffer, len, kind) in [
            (&mut *normed, t * d, Kind::Factor),
            (&mut *branch, t * d, Kind::Factor),
            (&mut *qk, t * heads.qk_dim(), Kind::Factor),
            (&mut *act, t * f, Kind::Factor),
            (&mut a.inv_rms_attn, t, Kind::F32),
            (&mut a.inv_rms_ffn, t, Kind::F32),
            (&mut a.qkv, t * heads.qkv_dim(), Kind::Factor),
            (&mut a.attn, t * c.q_dim(), Kind::Factor),
            (&mut a.lse, t * c.heads, Kind::F32),
            (&mut a.mid, t * d, Kind::F32),
            (&mut a.gate_up, t * 2 * f, Kind::Factor),
        ] {
            backend.resize(buffer, len, kind);
        }

        if !is_normed {
            backend.rms_norm(x, self.param(&p.attn_norm), c.rms_norm_eps, normed, &mut a.inv_rms_attn);
        }
        if watch.reached(backend, Tap::AttnIn(layer), normed, state) {
            return true;
        }
        let bias = p.qkv_bias.as_ref().map(|range| self.param(range));
        linears.qkv.forward(packed.map(|p| &p.qkv), normed, bias, &mut a.qkv, t, low_rank);
        let norms = self.qk_norms(p);
        attend.rotate(backend, layer.index(), heads, norms, c.rms_norm_eps, rope, rows.tokens, &a.qkv, qk);
        attend.attend(backend, layer.index(), heads, qk, &a.qkv, &mut a.attn, &mut a.lse);
        self.replace_heads(layer, &mut a.attn);
        if watch.reached(backend, Tap::Z(layer), &a.attn, state) {
            return true;
        }
        linears.o.forward(packed.map(|p| &p.o), &a.attn, None, branch, t, low_rank);
        self.replace_attention(layer, branch);
        if watch.reached(backend, Tap::Attn(layer), branch, state) {
            return true;
        }

        let w = self.param(&p.ffn_norm);
        backend.add_rms_norm(x, branch, w, c.rms_norm_eps, &mut a.mid, normed, &mut a.inv_rms_ffn);
        if watch.reached(backend, Tap::ResidMid(layer), &a.mid, state)
            || watch.reached(backend, Tap::FfnIn(layer), normed, state)
        {
            return true;
        }
        linears.gate_up.forward(packed.map(|p| &p.gate_up), normed, None, &mut a.gate_up, t, low_rank);
        backend.swiglu(&a.gate_up, act, f);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::{InitConfig, random_params};
    use crate::model::params::ParamLayout;

    #[test]
    fn a_forward_stops_at_any_state_that_it_shows() {
        let init = InitConfig { layers: 2, ..InitConfig::default() };
        let config = init.model_config(40).unwrap();
        let model = Model::new(config.clone(), random_params(&config, &ParamLayout::new(&config), 0.1, 3));
        let shown = |until: Tap| {
            let (mut ws, mut taps) = (Workspace::new(&model), Vec::new());
            let mut last = Vec::new();
            model.forward_observed(&mut ws, &Packing::single(&[3, 1, 4]), until, &mut |tap, state| {
                taps.push(tap);
                last = state.to_f32().to_vec();
            });
            assert_eq!((taps.last(), ws.state().to_f32().to_vec()), (Some(&until), last));
            taps
        };
        let all = shown(Tap::Final);
        for (i, until) in all.iter().enumerate() {
            assert_eq!(shown(*until), all[..=i]);
        }
    }

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
            model.forward_for(&mut ws, &model.batched(&packing), Tap::Final, keep, trained, beside);
            assert_eq!(ws.state().to_f32(), {
                let mut whole = Workspace::new(&model);
                model.forward(&mut whole, &packing, Tap::Final, Keep::Activations);
                whole.state().to_f32().to_vec()
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

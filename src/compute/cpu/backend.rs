//! The operations of this folder as a [`Backend`].

use super::array::{Array, Element, convert};
use super::attention::{AttentionSaved, AttentionShape, attention, attention_backward};
use super::embedding::{embed, embed_backward};
use super::gemm::{Compute, PackedWeight, Write, linear, linear_backward_input, linear_backward_weight};
use super::head::Head;
use super::norm::{add_rms_norm, rms_norm, rms_norm_again, rms_norm_backward};
use super::rope::{QkRope, RopeTable};
use super::simd::vectorize;
use super::swiglu::{swiglu, swiglu_backward};
use super::value::{values, values_backward};
use super::{adamw, low_rank};
use crate::compute::Packing;
use crate::compute::backend::{
    AdamwStep, AttentionForward, Backend, HeadStats, Heads, Kind, LinearShape, QkNorms, RowGradients, Unembedding,
    Weight,
};
use crate::compute::memory::give_back;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The CPU. Arrays of factors are in the format that products multiply in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// What linear layers, attention and the head multiply in.
    pub compute: Compute,
}

/// Ids and positions of a forward's tokens, `[T]` each.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    pub ids: &'a [u32],
    pub positions: &'a [u32],
}

impl Cpu {
    pub(crate) fn attention_shape(self, heads: Heads) -> AttentionShape {
        let Heads { heads, kv_heads, head_dim } = heads;
        AttentionShape { heads, kv_heads, head_dim, compute: self.compute }
    }

    /// In what arrays of a kind are stored.
    fn format(self, kind: Kind) -> Compute {
        match kind {
            Kind::F32 => Compute::F32,
            Kind::Factor => self.compute.here(),
        }
    }

    pub(super) fn head_of<'a>(self, head: Unembedding<&'a [f32]>) -> Head<'a> {
        let Unembedding { weight, hidden_size, temperature, .. } = head;
        Head { embedding: weight, hidden_size, temperature, compute: self.compute }
    }
}

fn qk_rope<'a>(
    heads: Heads,
    norms: Option<QkNorms<&'a [f32]>>,
    eps: f32,
    table: &'a RopeTable,
    tokens: Tokens<'a>,
) -> QkRope<'a> {
    let (q_norm, k_norm) = norms.map(|n| (n.q, n.k)).unzip();
    let Heads { heads, kv_heads, head_dim } = heads;
    QkRope { heads, kv_heads, head_dim, q_norm, k_norm, eps, table, positions: tokens.positions }
}

/// A body for arrays of either format: for these, which have the same.
macro_rules! in_format {
    ([$array:ident] $body:expr) => {
        match $array {
            Array::F32($array) => $body,
            Array::Bf16($array) => $body,
        }
    };
    ([$($array:ident),+] $body:expr) => {
        match ($($array,)+) {
            ($(Array::F32($array),)+) => $body,
            ($(Array::Bf16($array),)+) => $body,
            _ => panic!("arrays of factors in different formats"),
        }
    };
}
pub(super) use in_format;

/// Elements that a thread takes at a time where there are no rows.
const BLOCK: usize = 1 << 14;

/// `sum = a + b`.
fn add<E: Element>(a: &[f32], b: &[E], sum: &mut [f32]) {
    sum.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK))).for_each(|(sum, (a, b))| {
        vectorize(
            #[inline(always)]
            || {
                for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                    *sum = a + b.get();
                }
            },
        )
    });
}

/// Adds the rows of x to a bias.
fn bias_backward<E: Element>(x: &[E], d_bias: &mut [f32]) {
    for row in x.chunks_exact(d_bias.len()) {
        for (sum, x) in d_bias.iter_mut().zip(row) {
            *sum += x.get();
        }
    }
}

/// Every row of y becomes the bias, to which a product is then added.
fn begin_with_bias<E: Element>(bias: &[f32], y: &mut [E]) {
    y.par_chunks_mut(bias.len()).for_each(|row| convert(bias, row));
}

/// Some columns of every row become the same values.
fn fill_columns<E: Element>(values: &[f32], x: &mut [E], width: usize, first: usize) {
    x.par_chunks_mut(width).for_each(|row| convert(values, &mut row[first..first + values.len()]));
}

/// Rows of a state, one after the other.
fn gather_rows<A: Element, B: Element>(state: &[A], rows: &[usize], d: usize, out: &mut [B]) {
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(d)) {
        convert(&state[row * d..(row + 1) * d], out);
    }
}

/// `d_state[rows[r]] += d_hidden[r]`.
fn scatter_rows<E: Element>(d_hidden: &[E], rows: &[usize], d: usize, d_state: &mut [f32]) {
    for (row, dx) in rows.iter().zip(d_hidden.chunks_exact(d)) {
        for (sum, x) in d_state[row * d..(row + 1) * d].iter_mut().zip(dx) {
            *sum += x.get();
        }
    }
}

impl Backend for Cpu {
    type Array = Array;
    type Params = Vec<f32>;
    type View<'a> = &'a [f32];
    type Part<'a> = &'a mut [f32];
    type Rope = RopeTable;
    type Batch<'a> = &'a Packing;
    type Tokens<'a> = Tokens<'a>;
    type Packed = PackedWeight;

    fn resize(&self, array: &mut Array, len: usize, kind: Kind) {
        array.resize(len, self.format(kind));
    }

    fn len(array: &Array) -> usize {
        array.len()
    }

    fn zero(&self, array: &mut Array) {
        in_format!([array] array.fill(Default::default()));
    }

    fn copy(&self, from: &Array, to: &mut Array) {
        match (from, to) {
            (Array::F32(from), Array::F32(to)) => to.clone_from(from),
            (Array::Bf16(from), Array::Bf16(to)) => to.clone_from(from),
            (from, to) => *to = from.clone(),
        }
    }

    /// Keeps it: fresh pages of this size would cost more than they are worth.
    fn release(&self, _: &mut Array) {}

    fn moments(&self, len: usize) -> Array {
        vec![0.0; len].into()
    }

    fn upload(&self, values: &[f32], array: &mut Array) {
        array.resize(values.len(), Compute::F32);
        array.f32_mut().copy_from_slice(values);
    }

    fn host<'a>(&self, array: &'a Array) -> Cow<'a, [f32]> {
        array.to_f32()
    }

    fn compute(&self) -> Compute {
        self.compute
    }

    fn status(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn load(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn store<'a>(&self, params: &'a Vec<f32>) -> Cow<'a, [f32]> {
        Cow::Borrowed(params)
    }

    fn unload(&self, params: Vec<f32>) -> Vec<f32> {
        params
    }

    fn params<'a>(params: &'a Vec<f32>, range: &Range<usize>) -> &'a [f32] {
        &params[range.clone()]
    }

    fn part(array: &mut Array, range: Range<usize>) -> &mut [f32] {
        &mut array.f32_mut()[range]
    }

    fn zero_part(&self, part: &mut [f32]) {
        part.fill(0.0);
    }

    fn pack(&self, weight: &[f32], outputs: usize, inputs: usize) -> Option<PackedWeight> {
        Some(PackedWeight::new(self.compute, weight, outputs, inputs))
    }

    fn is_exact(packed: &PackedWeight) -> bool {
        packed.is_exact()
    }

    fn give_up(&self, params: &mut Vec<f32>, range: &Range<usize>) {
        give_back(&mut params[range.clone()]);
    }

    fn batch<'a>(&self, packing: &'a Packing, _: Heads) -> &'a Packing {
        packing
    }

    fn tokens<'a>(batch: &'a &Packing) -> Tokens<'a> {
        Tokens { ids: batch.ids(), positions: batch.positions() }
    }

    fn rope(&self, inv_freq: Vec<f32>) -> RopeTable {
        RopeTable::new(inv_freq)
    }

    fn reserve(&self, rope: &mut RopeTable, positions: usize) {
        rope.reserve(positions);
    }

    fn release_rope(&self, _: &mut RopeTable) {}

    fn embed(&self, table: Weight<'_, Cpu>, tokens: Tokens<'_>, out: &mut Array, d: usize) {
        match table {
            Weight::AsItLies(table) => embed(table, tokens.ids, out.f32_mut(), d),
            Weight::Packed(table) => {
                for (id, out) in tokens.ids.iter().zip(out.f32_mut().chunks_exact_mut(d)) {
                    table.row(*id as usize, out);
                }
            }
        }
    }

    fn embed_backward(&self, d_out: &Array, batch: &&Packing, d_table: &mut [f32], d: usize) {
        embed_backward(d_out.f32(), batch.ids(), d_table, d);
    }

    fn rms_norm(&self, x: &Array, w: &[f32], eps: f32, y: &mut Array, inv_rms: &mut Array) {
        in_format!([y] rms_norm(x.f32(), w, eps, y, inv_rms.f32_mut()));
    }

    fn add_rms_norm(
        &self,
        x: &Array,
        branch: &Array,
        w: &[f32],
        eps: f32,
        sum: &mut Array,
        y: &mut Array,
        inv_rms: &mut Array,
    ) {
        let (sum, inv_rms) = (sum.f32_mut(), inv_rms.f32_mut());
        in_format!([branch, y] add_rms_norm(x.f32(), branch, w, eps, sum, y, inv_rms));
    }

    fn rms_norm_again(&self, x: &Array, w: &[f32], inv_rms: &Array, y: &mut Array) {
        in_format!([y] rms_norm_again(x.f32(), w, inv_rms.f32(), y));
    }

    fn rms_norm_backward(
        &self,
        x: &Array,
        w: &[f32],
        inv_rms: &Array,
        dy: &Array,
        dx: &mut Array,
        rounded: &mut Array,
        dw: Option<&mut [f32]>,
        accumulate: bool,
    ) {
        let mut unwanted = Vec::new();
        let dw = dw.unwrap_or_else(|| {
            unwanted.resize(w.len(), 0.0);
            &mut unwanted
        });
        let wanted = if self.format(Kind::Factor) == Compute::F32 { 0 } else { dx.len() };
        self.resize(rounded, wanted, Kind::Factor);
        let rounded = if let Array::Bf16(rounded) = rounded { Some(&mut rounded[..]) } else { None };
        let (x, inv_rms, dx) = (x.f32(), inv_rms.f32(), dx.f32_mut());
        in_format!([dy] rms_norm_backward(x, w, inv_rms, dy, dx, rounded, dw, accumulate));
    }

    fn add(&self, a: &Array, branch: &Array, sum: &mut Array) {
        in_format!([branch] add(a.f32(), branch, sum.f32_mut()));
    }

    fn accumulate(&self, x: &Array, sum: &mut Array) {
        sum.f32_mut().iter_mut().zip(x.f32()).for_each(|(sum, x)| *sum += x);
    }

    fn fill_columns(&self, values: &Array, x: &mut Array, width: usize, first: usize) {
        in_format!([x] fill_columns(values.f32(), x, width, first));
    }

    fn factor<'a>(&self, x: &'a Array, room: &'a mut Array) -> &'a Array {
        if self.format(Kind::Factor) == Compute::F32 {
            return x;
        }
        self.resize(room, x.len(), Kind::Factor);
        in_format!([room] {
            room.par_chunks_mut(BLOCK).zip(x.f32().par_chunks(BLOCK)).for_each(|(to, from)| convert(from, to));
        });
        room
    }

    fn left_factor<'a>(&self, dx: &'a Array, rounded: &'a Array) -> &'a Array {
        if self.format(Kind::Factor) == Compute::F32 { dx } else { rounded }
    }

    fn linear(&self, x: &Array, w: Weight<'_, Cpu>, bias: Option<&[f32]>, y: &mut Array, shape: LinearShape) {
        let write = match bias {
            Some(bias) => {
                in_format!([y] begin_with_bias(bias, y));
                Write::Add
            }
            None => Write::Replace,
        };
        match w {
            Weight::Packed(packed) => packed.linear(x, y, shape.t, write),
            Weight::AsItLies(w) => linear(self.compute, x, w, y, shape.t, shape.inputs, shape.outputs, write),
        }
    }

    fn linear_backward_input(&self, dy: &Array, w: &[f32], dx: &mut Array, shape: LinearShape) {
        let LinearShape { t, inputs, outputs } = shape;
        linear_backward_input(self.compute, dy, w, dx, t, inputs, outputs, Write::Replace);
    }

    fn linear_backward_weight(&self, dy: &Array, x: &Array, dw: &mut [f32], shape: LinearShape) {
        linear_backward_weight(self.compute, dy, x, dw, shape.t, shape.inputs, shape.outputs);
    }

    fn bias_backward(&self, dy: &Array, d_bias: &mut [f32]) {
        in_format!([dy] bias_backward(dy, d_bias));
    }

    fn low_rank(&self, path: &low_rank::LowRank<'_>, x: &Array, y: &mut Array, t: usize, inner: &mut Array) {
        path.forward(self.compute, x, y, t, inner.f32_mut());
    }

    fn low_rank_backward_weight(
        &self,
        path: &low_rank::LowRank<'_>,
        x: &Array,
        dy: &Array,
        d: &mut [f32],
        t: usize,
        inner: &mut Array,
    ) {
        path.backward_weight(self.compute, x, dy, d.split_at_mut(path.a.len()), t, inner.f32_mut());
    }

    fn low_rank_backward_input(
        &self,
        path: &low_rank::LowRank<'_>,
        dy: &Array,
        dx: &mut Array,
        t: usize,
        inner: &mut Array,
    ) {
        path.backward_input(self.compute, dy, dx, t, inner.f32_mut());
    }

    fn qk_rope(
        &self,
        heads: Heads,
        norms: Option<QkNorms<&[f32]>>,
        eps: f32,
        rope: &RopeTable,
        tokens: Tokens<'_>,
        qkv: &Array,
        qk: &mut Array,
    ) {
        in_format!([qkv, qk] qk_rope(heads, norms, eps, rope, tokens).forward(qkv, qk));
    }

    fn qk_rope_backward(
        &self,
        heads: Heads,
        norms: Option<QkNorms<&[f32]>>,
        eps: f32,
        rope: &RopeTable,
        tokens: Tokens<'_>,
        qkv: &Array,
        d_qkv: &mut Array,
        d_norms: Option<&mut [f32]>,
    ) {
        let (op, d_norms) = (qk_rope(heads, norms, eps, rope, tokens), d_norms.map(|d| d.split_at_mut(heads.head_dim)));
        in_format!([qkv, d_qkv] op.backward(qkv, d_qkv, d_norms));
    }

    fn attention(&self, heads: Heads, batch: &&Packing, qk: &Array, qkv: &Array, out: &mut Array, lse: &mut Array) {
        let shape = self.attention_shape(heads);
        in_format!([qk, qkv, out] attention(shape, batch, qk, qkv, out, lse.f32_mut()));
    }

    fn attention_backward(
        &self,
        heads: Heads,
        batch: &&Packing,
        forward: AttentionForward<'_, Array>,
        d_out: &Array,
        d_qkv: &mut Array,
    ) {
        let (shape, AttentionForward { qk, qkv, out, lse }) = (self.attention_shape(heads), forward);
        in_format!([qk, qkv, out, d_out, d_qkv] {
            let saved = AttentionSaved { qk, qkv, out, lse: lse.f32() };
            attention_backward(shape, batch, saved, d_out, d_qkv);
        });
    }

    fn swiglu(&self, gate_up: &Array, act: &mut Array, f: usize) {
        in_format!([gate_up, act] swiglu(gate_up, act, f));
    }

    fn swiglu_backward(&self, gate_up: &mut Array, d_act: &Array, f: usize) {
        in_format!([gate_up, d_act] swiglu_backward(gate_up, d_act, f));
    }

    fn gather_rows(&self, state: &Array, rows: &[usize], d: usize, out: &mut Array) {
        self.resize(out, rows.len() * d, Kind::Factor);
        in_format!([state] in_format!([out] gather_rows(state, rows, d, out)));
    }

    fn scatter_rows(&self, d_hidden: &Array, rows: &[usize], d: usize, d_state: &mut Array) {
        in_format!([d_hidden] scatter_rows(d_hidden, rows, d, d_state.f32_mut()));
    }

    fn head(&self, head: Unembedding<&[f32]>, hidden: &Array, targets: Option<&[u32]>, _: &mut Array) -> HeadStats {
        self.head_of(head).forward(hidden, targets)
    }

    fn head_backward<E>(
        &self,
        head: Unembedding<&[f32]>,
        hidden: &Array,
        targets: &[u32],
        d_hidden: &mut Array,
        d_unembed: Option<&mut [f32]>,
        room: &mut Array,
        loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let (head, room) = (self.head_of(head), room.f32_mut());
        in_format!([d_hidden] head.forward_backward(hidden, targets, d_hidden, d_unembed, room, loss))
    }

    fn values(&self, states: &Array, rows: &[usize], w: &[f32], b: &[f32]) -> Vec<f32> {
        in_format!([states] values(states, rows, w, b[0]))
    }

    fn values_backward(
        &self,
        states: &Array,
        rows: &[usize],
        w: &[f32],
        d_values: &[f32],
        d_states: &mut Array,
        d_head: &mut [f32],
    ) {
        let ((d_w, d_b), d_states) = (d_head.split_at_mut(w.len()), d_states.f32_mut());
        in_format!([states] values_backward(states, rows, w, d_values, d_states, d_w, &mut d_b[0]));
    }

    fn sum_of_squares(&self, array: &Array, ranges: &[Range<usize>]) -> f64 {
        ranges.iter().map(|range| adamw::sum_of_squares(&array.f32()[range.clone()])).sum()
    }

    fn adamw(
        &self,
        params: &mut Vec<f32>,
        range: Range<usize>,
        grads: &Array,
        from: usize,
        m: &mut [f32],
        v: &mut [f32],
        step: AdamwStep,
    ) {
        let grads = &grads.f32()[from..from + range.len()];
        adamw::adamw(&mut params[range], grads, m, v, step);
    }
}

#[cfg(test)]
mod tests;

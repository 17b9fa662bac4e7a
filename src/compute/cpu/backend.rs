//! The operations of this folder as a [`Backend`].

use super::attention::{AttentionSaved, AttentionShape, attention, attention_backward};
use super::embedding::{embed, embed_backward};
use super::gemm::{Compute, PackedWeight, Write, linear, linear_backward_input, linear_backward_weight};
use super::head::Head;
use super::norm::{add_rms_norm, rms_norm, rms_norm_again, rms_norm_backward};
use super::rope::{QkRope, RopeTable};
use super::swiglu::{swiglu, swiglu_backward};
use super::value::{values, values_backward};
use super::{adamw, low_rank};
use crate::compute::Packing;
use crate::compute::backend::{
    AdamwStep, AttentionForward, Backend, HeadStats, Heads, Kind, LinearShape, QkNorms, RowGradients, Unembedding,
};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The CPU. Arrays are slices of f32, whatever their kind.
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

impl Backend for Cpu {
    type Array = Vec<f32>;
    type Params = Vec<f32>;
    type View<'a> = &'a [f32];
    type Part<'a> = &'a mut [f32];
    type Rope = RopeTable;
    type Batch<'a> = &'a Packing;
    type Tokens<'a> = Tokens<'a>;
    type Packed = PackedWeight;

    fn resize(&self, array: &mut Vec<f32>, len: usize, _: Kind) {
        if array.is_empty() && array.capacity() < len {
            // Zeros that the system makes where they are touched: a buffer of gradients has parts that an internal policy never is at.
            *array = vec![0.0; len];
        } else {
            array.resize(len, 0.0);
        }
    }

    fn len(array: &Vec<f32>) -> usize {
        array.len()
    }

    fn zero(&self, array: &mut Vec<f32>) {
        array.fill(0.0);
    }

    fn copy(&self, from: &Vec<f32>, to: &mut Vec<f32>) {
        to.clear();
        to.extend_from_slice(from);
    }

    /// Keeps it: fresh pages of this size would cost more than they are worth.
    fn release(&self, _: &mut Vec<f32>) {}

    fn moments(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn upload(&self, values: &[f32], array: &mut Vec<f32>) {
        array.clear();
        array.extend_from_slice(values);
    }

    fn host<'a>(&self, array: &'a Vec<f32>) -> Cow<'a, [f32]> {
        Cow::Borrowed(array)
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

    fn part(array: &mut Vec<f32>, range: Range<usize>) -> &mut [f32] {
        &mut array[range]
    }

    fn zero_part(&self, part: &mut [f32]) {
        part.fill(0.0);
    }

    fn pack(&self, weight: &[f32], outputs: usize, inputs: usize) -> Option<PackedWeight> {
        Some(PackedWeight::new(self.compute, weight, outputs, inputs))
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

    fn embed(&self, table: &[f32], tokens: Tokens<'_>, out: &mut Vec<f32>, d: usize) {
        embed(table, tokens.ids, out, d);
    }

    fn embed_backward(&self, d_out: &Vec<f32>, batch: &&Packing, d_table: &mut [f32], d: usize) {
        embed_backward(d_out, batch.ids(), d_table, d);
    }

    fn rms_norm(&self, x: &Vec<f32>, w: &[f32], eps: f32, y: &mut Vec<f32>, inv_rms: &mut Vec<f32>) {
        rms_norm(x, w, eps, y, inv_rms);
    }

    fn add_rms_norm(
        &self,
        x: &Vec<f32>,
        branch: &Vec<f32>,
        w: &[f32],
        eps: f32,
        sum: &mut Vec<f32>,
        y: &mut Vec<f32>,
        inv_rms: &mut Vec<f32>,
    ) {
        add_rms_norm(x, branch, w, eps, sum, y, inv_rms);
    }

    fn rms_norm_again(&self, x: &Vec<f32>, w: &[f32], inv_rms: &Vec<f32>, y: &mut Vec<f32>) {
        rms_norm_again(x, w, inv_rms, y);
    }

    fn rms_norm_backward(
        &self,
        x: &Vec<f32>,
        w: &[f32],
        inv_rms: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
        _: &mut Vec<f32>,
        dw: Option<&mut [f32]>,
        accumulate: bool,
    ) {
        match dw {
            Some(dw) => rms_norm_backward(x, w, inv_rms, dy, dx, dw, accumulate),
            None => rms_norm_backward(x, w, inv_rms, dy, dx, &mut vec![0.0; w.len()], accumulate),
        }
    }

    fn add(&self, a: &Vec<f32>, branch: &Vec<f32>, sum: &mut Vec<f32>) {
        const BLOCK: usize = 1 << 14;
        sum.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK).zip(branch.par_chunks(BLOCK))).for_each(|(sum, (a, b))| {
            for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                *sum = a + b;
            }
        });
    }

    fn accumulate(&self, x: &Vec<f32>, sum: &mut Vec<f32>) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }

    fn factor<'a>(&self, x: &'a Vec<f32>, _: &'a mut Vec<f32>) -> &'a Vec<f32> {
        x
    }

    fn left_factor<'a>(&self, dx: &'a Vec<f32>, _: &'a Vec<f32>) -> &'a Vec<f32> {
        dx
    }

    fn linear(
        &self,
        x: &Vec<f32>,
        w: &[f32],
        packed: Option<&PackedWeight>,
        bias: Option<&[f32]>,
        y: &mut Vec<f32>,
        shape: LinearShape,
    ) {
        let write = match bias {
            // The product is added to what is there.
            Some(bias) => {
                y.par_chunks_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
                Write::Add
            }
            None => Write::Replace,
        };
        match packed {
            Some(packed) => packed.linear(x, y, shape.t, write),
            None => linear(self.compute, x, w, y, shape.t, shape.inputs, shape.outputs, write),
        }
    }

    fn linear_backward_input(&self, dy: &Vec<f32>, w: &[f32], dx: &mut Vec<f32>, shape: LinearShape) {
        let LinearShape { t, inputs, outputs } = shape;
        linear_backward_input(self.compute, dy, w, dx, t, inputs, outputs, Write::Replace);
    }

    fn linear_backward_weight(&self, dy: &Vec<f32>, x: &Vec<f32>, dw: &mut [f32], shape: LinearShape) {
        linear_backward_weight(self.compute, dy, x, dw, shape.t, shape.inputs, shape.outputs);
    }

    fn bias_backward(&self, dy: &Vec<f32>, d_bias: &mut [f32]) {
        for row in dy.chunks_exact(d_bias.len()) {
            for (sum, x) in d_bias.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }

    fn low_rank(&self, path: &low_rank::LowRank<'_>, x: &Vec<f32>, y: &mut Vec<f32>, t: usize, inner: &mut Vec<f32>) {
        path.forward(self.compute, x, y, t, inner);
    }

    fn low_rank_backward_weight(
        &self,
        path: &low_rank::LowRank<'_>,
        x: &Vec<f32>,
        dy: &Vec<f32>,
        d: &mut [f32],
        t: usize,
        inner: &mut Vec<f32>,
    ) {
        path.backward_weight(self.compute, x, dy, d.split_at_mut(path.a.len()), t, inner);
    }

    fn low_rank_backward_input(
        &self,
        path: &low_rank::LowRank<'_>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
        t: usize,
        inner: &mut Vec<f32>,
    ) {
        path.backward_input(self.compute, dy, dx, t, inner);
    }

    fn qk_rope(
        &self,
        heads: Heads,
        norms: Option<QkNorms<&[f32]>>,
        eps: f32,
        rope: &RopeTable,
        tokens: Tokens<'_>,
        qkv: &Vec<f32>,
        qk: &mut Vec<f32>,
    ) {
        qk_rope(heads, norms, eps, rope, tokens).forward(qkv, qk);
    }

    fn qk_rope_backward(
        &self,
        heads: Heads,
        norms: Option<QkNorms<&[f32]>>,
        eps: f32,
        rope: &RopeTable,
        tokens: Tokens<'_>,
        qkv: &Vec<f32>,
        d_qkv: &mut Vec<f32>,
        d_norms: Option<&mut [f32]>,
    ) {
        qk_rope(heads, norms, eps, rope, tokens).backward(qkv, d_qkv, d_norms.map(|d| d.split_at_mut(heads.head_dim)));
    }

    fn attention(
        &self,
        heads: Heads,
        batch: &&Packing,
        qk: &Vec<f32>,
        qkv: &Vec<f32>,
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
    ) {
        attention(self.attention_shape(heads), batch, qk, qkv, out, lse);
    }

    fn attention_backward(
        &self,
        heads: Heads,
        batch: &&Packing,
        forward: AttentionForward<'_, Vec<f32>>,
        d_out: &Vec<f32>,
        d_qkv: &mut Vec<f32>,
    ) {
        let AttentionForward { qk, qkv, out, lse } = forward;
        let saved = AttentionSaved { qk, qkv, out, lse };
        attention_backward(self.attention_shape(heads), batch, saved, d_out, d_qkv);
    }

    fn swiglu(&self, gate_up: &Vec<f32>, act: &mut Vec<f32>, f: usize) {
        swiglu(gate_up, act, f);
    }

    fn swiglu_backward(&self, gate_up: &mut Vec<f32>, d_act: &Vec<f32>, f: usize) {
        swiglu_backward(gate_up, d_act, f);
    }

    fn gather_rows(&self, state: &Vec<f32>, rows: &[usize], d: usize, out: &mut Vec<f32>) {
        out.clear();
        for row in rows {
            out.extend_from_slice(&state[row * d..(row + 1) * d]);
        }
    }

    fn scatter_rows(&self, d_hidden: &Vec<f32>, rows: &[usize], d: usize, d_state: &mut Vec<f32>) {
        for (row, dx) in rows.iter().zip(d_hidden.chunks_exact(d)) {
            for (sum, x) in d_state[row * d..(row + 1) * d].iter_mut().zip(dx) {
                *sum += x;
            }
        }
    }

    fn head(
        &self,
        head: Unembedding<&[f32]>,
        hidden: &Vec<f32>,
        targets: Option<&[u32]>,
        _: &mut Vec<f32>,
    ) -> HeadStats {
        self.head_of(head).forward(hidden, targets)
    }

    fn head_backward<E>(
        &self,
        head: Unembedding<&[f32]>,
        hidden: &Vec<f32>,
        targets: &[u32],
        d_hidden: &mut Vec<f32>,
        d_unembed: Option<&mut [f32]>,
        room: &mut Vec<f32>,
        loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        self.head_of(head).forward_backward(hidden, targets, d_hidden, d_unembed, room, loss)
    }

    fn values(&self, states: &Vec<f32>, rows: &[usize], w: &[f32], b: &[f32]) -> Vec<f32> {
        values(states, rows, w, b[0])
    }

    fn values_backward(
        &self,
        states: &Vec<f32>,
        rows: &[usize],
        w: &[f32],
        d_values: &[f32],
        d_states: &mut Vec<f32>,
        d_head: &mut [f32],
    ) {
        let (d_w, d_b) = d_head.split_at_mut(w.len());
        values_backward(states, rows, w, d_values, d_states, d_w, &mut d_b[0]);
    }

    fn sum_of_squares(&self, array: &Vec<f32>, ranges: &[Range<usize>]) -> f64 {
        ranges.iter().map(|range| adamw::sum_of_squares(&array[range.clone()])).sum()
    }

    fn adamw(
        &self,
        params: &mut Vec<f32>,
        range: Range<usize>,
        grads: &Vec<f32>,
        from: usize,
        m: &mut [f32],
        v: &mut [f32],
        step: AdamwStep,
    ) {
        let grads = &grads[from..from + range.len()];
        adamw::adamw(&mut params[range], grads, m, v, step);
    }
}

//! The operations of a decoder on a CUDA device: a [`Backend`] whose arrays lie in an arena, over any [`Runtime`].
//!
//! Streams, statistics, sums, gradients of parameters, master weights and moments are f32; factors of products, and what modules
//! hand each other, are [`Real`]. Products add up in f32. Every sum over rows has an order that depends on shapes alone, so the same
//! input gives the same bytes on the same device.
//!
//! A product's weight is read from a copy in REAL, which is made when parameters are loaded, and by the optimizer with every step. The
//! embedding's rows, norms and biases are read from the masters.

mod arrays;
mod attention;
pub mod decode;
mod head;
mod inspect;
mod launch;
mod linear;
mod rows;
mod shared;

pub use arrays::{Array, Params, Part, View};
pub use attention::Rope;
pub use rows::{Batch, Tokens};

use super::arena::{Arena, Growth};
use super::array::DeviceArray;
use super::kernels::Real;
use super::rehearsal::Rehearsal;
use super::runtime::{Arg, CudaError, Runtime};
use crate::compute::Packing;
use crate::compute::backend::{
    AdamwStep, AttentionForward, Backend, HeadStats, Heads, Kind, LinearShape, LowRank, QkNorms, RowGradients,
    Unembedding, Weight,
};
use crate::compute::cpu::gemm::Compute;
use half::bf16;
use launch::{chunk_rows, int, long, row_threads};
use std::borrow::Cow;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

/// By how much memory grows that is not bounded.
const GROWTH: usize = 256 << 20;

/// Rows that meet the vocabulary at once, at most: more make no product faster.
const HEAD_ROWS: usize = 4096;

/// Logits that are only looked at, 256 MiB of them. Tiles that a GPU's second-level cache holds (16 MiB) would save their way to memory and
/// back, but leave a state 1,024 columns at a time: too few blocks for its multiprocessors, and nine times as many launches. By
/// counting, the latter costs an analysis more. `bupo bench analysis --head-tile` tells.
const HEAD_TILE: usize = 64 << 20;

/// A device, its memory, and the format of what products read.
#[derive(Clone, Debug)]
pub struct Cuda {
    arena: Arc<Arena>,
    real: Real,
    head_rows: usize,
    head_tile: usize,
    /// Whether the optimizer's moments lie in the host's memory.
    offload: bool,
}

impl Cuda {
    /// Takes `memory` bytes of the device, which are then all that it uses; with 0 it takes what it needs when it needs it.
    pub fn new(runtime: Arc<dyn Runtime>, memory: usize, real: Real) -> Result<Cuda, CudaError> {
        let growth = if memory == 0 { Growth::By(GROWTH) } else { Growth::Never };
        Ok(Cuda {
            arena: Arena::new(runtime, memory, growth)?,
            real,
            head_rows: HEAD_ROWS,
            head_tile: HEAD_TILE,
            offload: false,
        })
    }

    /// With a head that meets the vocabulary with so many rows at once, at most: what its logits take of the memory. Rounded up to a
    /// multiple of 64.
    pub fn with_head_rows(self, rows: usize) -> Cuda {
        Cuda { head_rows: rows.max(1).next_multiple_of(64), ..self }
    }

    /// With tiles of so many logits, where they are only looked at.
    pub fn with_head_tile(self, logits: usize) -> Cuda {
        Cuda { head_tile: logits, ..self }
    }

    /// Columns of a tile of logits of so many rows: a multiple of `unit`, or all of the vocabulary.
    fn tile_columns(&self, rows: usize, unit: usize, vocab: usize) -> usize {
        // Rows of logits begin at multiples of 32 bytes.
        (self.head_tile / rows.max(1) / unit * unit).max(unit).min(vocab.next_multiple_of(8))
    }

    /// The same on a device that only counts, with so many bytes of memory.
    pub fn rehearsing(&self, bytes: usize) -> Result<Cuda, CudaError> {
        let runtime = Arc::new(Rehearsal::new(self.runtime().info().clone()));
        Ok(Cuda { arena: Arena::new(runtime, bytes, Growth::Never)?, ..self.clone() })
    }

    /// With the optimizer's moments in the host's memory, 8 bytes a parameter, which a step then reads and writes over the bus.
    pub fn with_offload(self, offload: bool) -> Cuda {
        Cuda { offload, ..self }
    }

    pub fn runtime(&self) -> &dyn Runtime {
        self.arena.runtime().as_ref()
    }

    /// What arrays and parameters are pieces of.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The format of factors.
    pub fn real(&self) -> Real {
        self.real
    }

    /// An array's numbers on the host; of no use (NaN) once work has failed, as [`Backend::status`] tells.
    fn numbers(&self, array: &Array) -> Vec<f32> {
        let download = |to: &mut [u8]| to.is_empty() || self.runtime().download(array.address(), to).is_ok();
        let (mut floats, mut halves) = (vec![f32::NAN; array.len()], Vec::new());
        match array.real() {
            Real::F32 if !download(bytemuck::cast_slice_mut(&mut floats)) => floats.fill(f32::NAN),
            Real::F32 => {}
            Real::Bf16 => {
                halves.resize(array.len(), bf16::NAN);
                if download(bytemuck::cast_slice_mut(&mut halves)) {
                    floats.iter_mut().zip(&halves).for_each(|(to, x)| *to = x.to_f32());
                }
            }
        }
        floats
    }
}

impl Backend for Cuda {
    type Array = Array;
    type Params = Params;
    type View<'a> = View<'a>;
    type Part<'a> = Part<'a>;
    type Rope = Rope;
    type Batch<'a> = Batch;
    type Tokens<'a> = Tokens<'a>;
    type Packed = Infallible;

    fn resize(&self, array: &mut Array, len: usize, kind: Kind) {
        self.resize_to(array, len, self.real_of(kind));
    }

    fn len(array: &Array) -> usize {
        array.len()
    }

    fn zero(&self, array: &mut Array) {
        if array.len() > 0 {
            self.runtime().zero(array.address(), array.bytes());
        }
    }

    fn copy(&self, from: &Array, to: &mut Array) {
        self.resize_to(to, from.len(), from.real());
        if from.len() > 0 {
            self.runtime().copy(from.address(), to.address(), from.bytes());
        }
    }

    fn release(&self, array: &mut Array) {
        *array = Array::default();
    }

    fn moments(&self, len: usize) -> Array {
        self.zeros_for_steps(len)
    }

    fn upload(&self, values: &[f32], array: &mut Array) {
        self.resize_to(array, values.len(), Real::F32);
        if !values.is_empty() {
            self.runtime().upload(bytemuck::cast_slice(values), array.address());
        }
    }

    fn host<'a>(&self, array: &'a Array) -> Cow<'a, [f32]> {
        Cow::Owned(self.numbers(array))
    }

    fn compute(&self) -> Compute {
        self.real.pick(Compute::F32, Compute::Bf16)
    }

    fn status(&self) -> anyhow::Result<()> {
        Ok(self.runtime().status()?)
    }

    fn load(&self, values: Vec<f32>) -> Params {
        let master = DeviceArray::from_host(&self.arena, &values);
        let copy = (self.real == Real::Bf16).then(|| DeviceArray::new(&self.arena, values.len()));
        if let Some(copy) = &copy {
            let args = [master.arg(), copy.arg(), long(values.len())];
            self.launch_over("round_to_real", values.len(), &args);
        }
        Params { master, copy }
    }

    fn store<'a>(&self, params: &'a Params) -> Cow<'a, [f32]> {
        Cow::Owned(params.master.to_host().unwrap_or_else(|_| vec![f32::NAN; params.master.len()]))
    }

    fn unload(&self, params: Params) -> Vec<f32> {
        self.store(&params).into_owned()
    }

    fn params<'a>(params: &'a Params, range: &Range<usize>) -> View<'a> {
        params.view(range)
    }

    fn part(array: &mut Array, range: Range<usize>) -> Part<'_> {
        array.part(range)
    }

    fn zero_part(&self, part: Part<'_>) {
        if part.len > 0 {
            self.runtime().zero(part.at, 4 * part.len);
        }
    }

    fn pack(&self, _: View<'_>, _: usize, _: usize) -> Option<Infallible> {
        None
    }

    fn is_exact(packed: &Infallible) -> bool {
        match *packed {}
    }

    /// Nothing is packed here, so that nothing is ever given up.
    fn give_up(&self, _: &mut Params, _: &Range<usize>) {}

    fn batch(&self, packing: &Packing, heads: Heads) -> Batch {
        self.batch_of(packing, heads)
    }

    fn tokens<'a>(batch: &'a Batch) -> Tokens<'a> {
        batch.tokens()
    }

    fn rope(&self, inv_freq: Vec<f32>) -> Rope {
        Rope::new(inv_freq)
    }

    fn reserve(&self, rope: &mut Rope, positions: usize) {
        rope.reserve(&self.arena, positions);
    }

    fn release_rope(&self, rope: &mut Rope) {
        rope.release();
    }

    fn embed(&self, table: Weight<'_, Cuda>, tokens: Tokens<'_>, out: &mut Array, d: usize) {
        match table {
            Weight::AsItLies(table) => self.embed_rows(table, tokens, out, d),
            Weight::Packed(never) => match *never {},
        }
    }

    fn embed_backward(&self, d_out: &Array, batch: &Batch, d_table: Part<'_>, d: usize) {
        self.add_rows_of_tokens(d_out, batch, d_table, d);
    }

    fn rms_norm(&self, x: &Array, w: View<'_>, eps: f32, y: &mut Array, inv_rms: &mut Array) {
        let (t, d) = (inv_rms.len(), w.len);
        if self.in_eights("rms_norm", d) {
            let args = [x.arg(), w.arg(), Arg::Float(eps), y.arg(), inv_rms.arg(), int(d)];
            self.launch("rms_norm", [t, 1, 1], row_threads(d), 0, &args);
        }
    }

    fn add_rms_norm(
        &self,
        x: &Array,
        branch: &Array,
        w: View<'_>,
        eps: f32,
        sum: &mut Array,
        y: &mut Array,
        inv_rms: &mut Array,
    ) {
        let (t, d) = (inv_rms.len(), w.len);
        if self.in_eights("add_rms_norm", d) {
            let eps = Arg::Float(eps);
            let args = [x.arg(), branch.arg(), w.arg(), eps, sum.arg(), y.arg(), inv_rms.arg(), int(d)];
            self.launch("add_rms_norm", [t, 1, 1], row_threads(d), 0, &args);
        }
    }

    fn rms_norm_again(&self, x: &Array, w: View<'_>, inv_rms: &Array, y: &mut Array) {
        let (t, d) = (inv_rms.len(), w.len);
        if self.in_eights("rms_norm_again", d) {
            let args = [x.arg(), w.arg(), inv_rms.arg(), y.arg(), int(d)];
            self.launch("rms_norm_again", [t, 1, 1], row_threads(d), 0, &args);
        }
    }

    fn rms_norm_backward(
        &self,
        x: &Array,
        w: View<'_>,
        inv_rms: &Array,
        dy: &Array,
        dx: &mut Array,
        rounded: &mut Array,
        dw: Option<Part<'_>>,
        accumulate: bool,
    ) {
        let (t, d) = (inv_rms.len(), w.len);
        if !self.in_eights("rms_norm_backward", d) {
            return;
        }
        let rounds = dx.real() != self.real;
        if rounds {
            self.resize_to(rounded, dx.len(), self.real);
        }
        let kernel = match dy.real() {
            Real::F32 => "rms_norm_backward_f32",
            Real::Bf16 => "rms_norm_backward",
        };
        let rows = chunk_rows(t);
        let chunks = t.div_ceil(rows);
        let partial = dw.as_ref().map(|_| self.scratch(chunks * d, Real::F32));
        let args = [
            x.arg(),
            w.arg(),
            inv_rms.arg(),
            dy.arg(),
            dx.arg(),
            if rounds { rounded.arg() } else { Arg::Null },
            partial.as_ref().map_or(Arg::Null, Array::arg),
            int(t),
            int(d),
            int(rows),
            int(usize::from(accumulate)),
        ];
        self.launch(kernel, [chunks, 1, 1], row_threads(d), 4 * d, &args);
        if let Some((dw, partial)) = dw.zip(partial) {
            self.add_chunks(partial.arg(), dw.arg(), chunks, d);
        }
    }

    fn add(&self, a: &Array, branch: &Array, sum: &mut Array) {
        let n = sum.len();
        if n == 0 || self.in_eights("add", n) {
            self.launch_over("add", n, &[a.arg(), branch.arg(), sum.arg(), long(n)]);
        }
    }

    fn accumulate(&self, x: &Array, sum: &mut Array) {
        let n = sum.len();
        self.launch_over("scaled_add", n, &[Arg::Float(1.0), x.arg(), sum.arg(), long(n)]);
    }

    fn fill_columns(&self, values: &Array, x: &mut Array, width: usize, first: usize) {
        let (n, t) = (values.len(), x.len() / width);
        if [n, width, first + n].into_iter().all(|n| self.in_eights("fill_columns", n)) {
            let args = [values.arg(), x.arg(), int(t), int(n), int(width), int(first)];
            self.launch_over("fill_columns", t * n, &args);
        }
    }

    fn factor<'a>(&self, x: &'a Array, room: &'a mut Array) -> &'a Array {
        if x.real() == self.real {
            return x;
        }
        self.resize_to(room, x.len(), self.real);
        self.launch_over("round_to_real", x.len(), &[x.arg(), room.arg(), long(x.len())]);
        room
    }

    fn left_factor<'a>(&self, dx: &'a Array, rounded: &'a Array) -> &'a Array {
        if dx.real() == self.real { dx } else { rounded }
    }

    fn linear(&self, x: &Array, w: Weight<'_, Cuda>, bias: Option<View<'_>>, y: &mut Array, shape: LinearShape) {
        match w {
            Weight::AsItLies(w) => self.multiply_linear(x, w, bias, y, shape),
            Weight::Packed(never) => match *never {},
        }
    }

    fn linear_backward_input(&self, dy: &Array, w: View<'_>, dx: &mut Array, shape: LinearShape) {
        self.multiply_backward_input(dy, w, dx, shape);
    }

    fn linear_backward_weight(&self, dy: &Array, x: &Array, dw: Part<'_>, shape: LinearShape) {
        self.multiply_backward_weight(dy, x, dw, shape);
    }

    fn bias_backward(&self, dy: &Array, d_bias: Part<'_>) {
        self.add_column_sums(dy, d_bias);
    }

    fn low_rank(&self, path: &LowRank<View<'_>>, x: &Array, y: &mut Array, t: usize, inner: &mut Array) {
        self.low_rank_forward(path, x, y, t, inner);
    }

    fn low_rank_backward_weight(
        &self,
        path: &LowRank<View<'_>>,
        x: &Array,
        dy: &Array,
        d: Part<'_>,
        t: usize,
        inner: &mut Array,
    ) {
        self.low_rank_weights(path, x, dy, d, t, inner);
    }

    fn low_rank_backward_input(
        &self,
        path: &LowRank<View<'_>>,
        dy: &Array,
        dx: &mut Array,
        t: usize,
        inner: &mut Array,
    ) {
        self.low_rank_input(path, dy, dx, t, inner);
    }

    fn qk_rope(
        &self,
        heads: Heads,
        norms: Option<QkNorms<View<'_>>>,
        eps: f32,
        rope: &Rope,
        tokens: Tokens<'_>,
        qkv: &Array,
        qk: &mut Array,
    ) {
        self.rotate(heads, norms, eps, rope, tokens, qkv, qk);
    }

    fn qk_rope_backward(
        &self,
        heads: Heads,
        norms: Option<QkNorms<View<'_>>>,
        eps: f32,
        rope: &Rope,
        tokens: Tokens<'_>,
        qkv: &Array,
        d_qkv: &mut Array,
        d_norms: Option<Part<'_>>,
    ) {
        self.rotate_back(heads, norms, eps, rope, tokens, qkv, d_qkv, d_norms);
    }

    fn attention(&self, heads: Heads, batch: &Batch, qk: &Array, qkv: &Array, out: &mut Array, lse: &mut Array) {
        self.attend(heads, batch, qk, qkv, out, lse);
    }

    fn attention_backward(
        &self,
        heads: Heads,
        batch: &Batch,
        forward: AttentionForward<'_, Array>,
        d_out: &Array,
        d_qkv: &mut Array,
    ) {
        self.attend_backward(heads, batch, forward, d_out, d_qkv);
    }

    fn swiglu(&self, gate_up: &Array, act: &mut Array, f: usize) {
        if self.in_eights("swiglu", f) {
            let args = [gate_up.arg(), act.arg(), int(act.len() / f), int(f)];
            self.launch_over("swiglu", act.len(), &args);
        }
    }

    fn swiglu_backward(&self, gate_up: &mut Array, d_act: &Array, f: usize) {
        if self.in_eights("swiglu_backward", f) {
            let args = [gate_up.arg(), d_act.arg(), Arg::Null, int(d_act.len() / f), int(f)];
            self.launch_over("swiglu_backward", d_act.len(), &args);
        }
    }

    fn gather_rows(&self, state: &Array, rows: &[usize], d: usize, out: &mut Array) {
        self.gather(state, rows, d, out);
    }

    fn scatter_rows(&self, d_hidden: &Array, rows: &[usize], d: usize, d_state: &mut Array) {
        self.scatter(d_hidden, rows, d, d_state);
    }

    fn head(
        &self,
        head: Unembedding<View<'_>>,
        hidden: &Array,
        targets: Option<&[u32]>,
        room: &mut Array,
    ) -> HeadStats {
        self.head_stats(head, hidden, targets, room)
    }

    fn head_backward<E>(
        &self,
        head: Unembedding<View<'_>>,
        hidden: &Array,
        targets: &[u32],
        d_hidden: &mut Array,
        d_unembed: Option<Part<'_>>,
        room: &mut Array,
        loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        self.head_gradient(head, hidden, targets, d_hidden, d_unembed, room, loss)
    }

    fn values(&self, states: &Array, rows: &[usize], w: View<'_>, b: View<'_>) -> Vec<f32> {
        self.values_of(states, rows, w, b)
    }

    fn values_backward(
        &self,
        states: &Array,
        rows: &[usize],
        w: View<'_>,
        d_values: &[f32],
        d_states: &mut Array,
        d_head: Part<'_>,
    ) {
        self.values_gradient(states, rows, w, d_values, d_states, d_head);
    }

    fn sum_of_squares(&self, array: &Array, ranges: &[Range<usize>]) -> f64 {
        self.squares(array, ranges)
    }

    fn adamw(
        &self,
        params: &mut Params,
        range: Range<usize>,
        grads: &Array,
        from: usize,
        m: Part<'_>,
        v: Part<'_>,
        step: AdamwStep,
    ) {
        // f64: beta2^step is too close to 1 for f32 in the first steps.
        let steps = step.step.min(i32::MAX as u64) as i32;
        let [correction1, correction2] = [step.beta1, step.beta2].map(|beta| 1.0 - f64::from(beta).powi(steps));
        let n = range.len();
        let scalars = [
            (f64::from(step.lr) / correction1) as f32,
            (1.0 / correction2.sqrt()) as f32,
            1.0 - step.lr * step.weight_decay,
            step.beta1,
            step.beta2,
            step.eps,
            step.grad_scale,
        ];
        let params_at = params.master.slice(range.clone()).arg();
        let copy = params.copy.as_ref().map_or(Arg::Null, |copy| copy.slice(range).arg());
        let arrays = [params_at, Arg::At(grads.at(from)), m.arg(), v.arg(), copy, long(n)];
        let args: Vec<Arg> = arrays.into_iter().chain(scalars.map(Arg::Float)).collect();
        self.launch_over("adamw", n, &args);
    }
}

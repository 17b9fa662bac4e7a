//! What a decoder asks of a device: fused Transformer operations, forward and backward, on arrays that stay where they are.
//!
//! The decoder, its backward and the policies are written once over this trait. [`super::cpu::Cpu`] has the operations of
//! [`super::cpu`] on slices. An array is f32 wherever sums and statistics are kept ([`Kind::F32`]); what products read and write
//! may be stored in a shorter format ([`Kind::Factor`]), which is the device's business: bf16 where that is what they multiply.
//!
//! Rows are tokens; matrices are row-major. Shapes are checked by whoever calls.

mod inspect;

pub use inspect::{BranchComparison, Branches, Comparison, Divergences, FinalNorm, Inspect, Placed};

use super::cpu::gemm::Compute;
use super::packing::Packing;
use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt::Debug;
use std::ops::Range;

/// What an array holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Streams and their gradients, statistics, gradients of parameters.
    #[default]
    F32,
    /// What modules hand to products and get from them: normed states, queries, keys, values, activations, branches.
    Factor,
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Columns of rotated queries and keys.
    pub fn qk_dim(&self) -> usize {
        (self.heads + self.kv_heads) * self.head_dim
    }

    /// Columns of queries, keys and values.
    pub fn qkv_dim(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// The norms of queries and keys (Qwen3), `[head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct QkNorms<V> {
    pub q: V,
    pub k: V,
}

/// A linear layer `[t, inputs]` to `[t, outputs]`, of weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    pub t: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// A linear layer's weight `[outputs, inputs]`.
#[derive(Debug)]
pub enum Weight<'a, B: Backend> {
    AsItLies(B::View<'a>),
    /// As [`Backend::pack`] made it.
    Packed(&'a B::Packed),
}

/// The low-rank path beside a (fused) linear layer, `y += B (s A x)`.
#[derive(Clone, Debug)]
pub struct LowRank<V> {
    pub inputs: usize,
    pub outputs: usize,
    /// Of every part.
    pub rank: usize,
    /// `alpha / r`, or as rsLoRA has it.
    pub scale: f32,
    /// `[parts * rank, inputs]`
    pub a: V,
    /// B `[columns, rank]` of every part, and the columns of the output that it writes to.
    pub b: Vec<(V, Range<usize>)>,
}

impl<V> LowRank<V> {
    /// Width of what lies between A and B, for all parts together.
    pub fn width(&self) -> usize {
        self.rank * self.b.len()
    }
}

/// The unembedding E `[V, d]` as a distribution over tokens, and the temperature that divides the logits.
#[derive(Clone, Copy, Debug)]
pub struct Unembedding<V> {
    pub weight: V,
    pub vocab: usize,
    pub hidden_size: usize,
    pub temperature: f32,
}

/// What an attention's backward needs from its forward.
#[derive(Debug)]
pub struct AttentionForward<'a, A> {
    /// `[T, (H + KV) hd]`, rotated.
    pub qk: &'a A,
    /// `[T, (H + 2 KV) hd]`, for the values.
    pub qkv: &'a A,
    /// `[T, H hd]`
    pub out: &'a A,
    /// `[T, H]`
    pub lse: &'a A,
}

/// Per row: the log-sum-exp of the scaled logits, the entropy in nats, and the target's log-probability.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadStats {
    pub lse: Vec<f32>,
    pub entropy: Vec<f32>,
    /// Empty if no targets were given.
    pub log_probs: Vec<f32>,
}

impl HeadStats {
    pub fn with_capacity(rows: usize) -> HeadStats {
        let empty = || Vec::with_capacity(rows);
        HeadStats { lse: empty(), entropy: empty(), log_probs: empty() }
    }

    pub fn append(&mut self, mut other: HeadStats) {
        self.lse.append(&mut other.lse);
        self.entropy.append(&mut other.entropy);
        self.log_probs.append(&mut other.log_probs);
    }
}

/// Derivatives of a loss for the log-probs and entropies of some rows; no entropies where the loss has none.
#[derive(Clone, Debug, Default)]
pub struct RowGradients {
    pub d_log_probs: Vec<f32>,
    pub d_entropies: Vec<f32>,
}

impl RowGradients {
    /// Those of some of the rows.
    pub fn part(&self, rows: Range<usize>) -> RowGradients {
        let d_entropies = self.d_entropies.get(rows.clone()).unwrap_or_default().to_vec();
        RowGradients { d_log_probs: self.d_log_probs[rows].to_vec(), d_entropies }
    }

    /// One row's.
    pub fn of(&self, row: usize) -> (f32, f32) {
        (self.d_log_probs[row], self.d_entropies.get(row).copied().unwrap_or(0.0))
    }
}

/// One AdamW step's scalars (decoupled weight decay, as `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug)]
pub struct AdamwStep {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// How many updates this tensor has had, this one included.
    pub step: u64,
    /// Factor on the gradient: the clipping coefficient.
    pub grad_scale: f32,
}

/// A device's arrays, and the operations on them.
///
/// Operations do not fail one by one: a device that fails (a GPU's memory runs out) keeps the first reason, does nothing from then
/// on, and [`Backend::status`] has it, which is asked before numbers that came from the device are used.
pub trait Backend: Clone + Debug + Send + Sync + 'static {
    /// An array, empty by default. Its memory is kept when it shrinks.
    type Array: Default + Debug + Send + Sync;
    /// All parameters of a model, flat.
    type Params: Debug + Send + Sync;
    /// Some of the parameters.
    type View<'a>: Copy + Debug;
    /// A part of an array, to be written.
    type Part<'a>: Debug;
    /// Cosines and sines of positions.
    type Rope: Debug + Send + Sync;
    /// A packed batch.
    type Batch<'a>;
    /// Ids and positions of a forward's tokens, packed or one for each sequence.
    type Tokens<'a>: Copy;
    /// A weight laid out for many products of few rows.
    type Packed: Debug + Send + Sync;

    // ---- arrays ----

    /// Makes room for `len` elements. What it held is lost if the kind changes or the array grows out of its memory.
    fn resize(&self, array: &mut Self::Array, len: usize, kind: Kind);
    /// Elements.
    fn len(array: &Self::Array) -> usize;
    fn zero(&self, array: &mut Self::Array);
    /// Gives the array's memory to whoever needs it before it is resized next, where having it again costs little; what it held is
    /// lost.
    fn release(&self, array: &mut Self::Array);
    /// `len` f32 of zeros that only an optimizer's steps read and write.
    fn moments(&self, len: usize) -> Self::Array;
    /// `to` becomes what `from` is, its kind included.
    fn copy(&self, from: &Self::Array, to: &mut Self::Array);
    /// An array of f32 from the host.
    fn upload(&self, values: &[f32], array: &mut Self::Array);
    /// An array's elements on the host, as f32.
    fn host<'a>(&self, array: &'a Self::Array) -> Cow<'a, [f32]>;
    /// What products multiply in.
    fn compute(&self) -> Compute;
    /// The first failure of an operation so far.
    fn status(&self) -> anyhow::Result<()>;

    // ---- parameters ----

    /// Parameters from the host.
    fn load(&self, values: Vec<f32>) -> Self::Params;
    /// Parameters on the host.
    fn store<'a>(&self, params: &'a Self::Params) -> Cow<'a, [f32]>;
    /// Parameters that are taken back to the host.
    fn unload(&self, params: Self::Params) -> Vec<f32>;
    fn params<'a>(params: &'a Self::Params, range: &Range<usize>) -> Self::View<'a>;
    fn part<'a>(array: &'a mut Self::Array, range: Range<usize>) -> Self::Part<'a>;
    fn zero_part(&self, part: Self::Part<'_>);
    /// A layout for products of few rows, of a weight `[outputs, inputs]`; none where the weight serves as it lies.
    fn pack(&self, weight: Self::View<'_>, outputs: usize, inputs: usize) -> Option<Self::Packed>;
    /// Whether what was packed still has the weight's own bits.
    fn is_exact(packed: &Self::Packed) -> bool;
    /// Gives the memory of some of the parameters back: they hold nothing any more. Only where the device packs weights.
    fn give_up(&self, params: &mut Self::Params, range: &Range<usize>);

    // ---- batches ----

    fn batch<'a>(&self, packing: &'a Packing, heads: Heads) -> Self::Batch<'a>;
    fn tokens<'a>(batch: &'a Self::Batch<'_>) -> Self::Tokens<'a>;
    /// Inverse frequencies `[head_dim / 2]`, scaling already applied.
    fn rope(&self, inv_freq: Vec<f32>) -> Self::Rope;
    /// Makes positions `0..positions` available.
    fn reserve(&self, rope: &mut Self::Rope, positions: usize);
    /// [`Backend::release`], of what is reserved.
    fn release_rope(&self, rope: &mut Self::Rope);

    // ---- embedding ----

    /// `out[t] = table[ids[t]]`, out `[T, d]` f32. A table that is packed must be [`Backend::is_exact`].
    fn embed(&self, table: Weight<'_, Self>, tokens: Self::Tokens<'_>, out: &mut Self::Array, d: usize);
    /// `d_table[ids[t]] += d_out[t]`.
    fn embed_backward(&self, d_out: &Self::Array, batch: &Self::Batch<'_>, d_table: Self::Part<'_>, d: usize);

    // ---- norms and the stream ----

    /// `y = x / rms(x) * w`: x f32 `[T, d]`, y a factor `[T, d]`, inv_rms `[T]`.
    fn rms_norm(&self, x: &Self::Array, w: Self::View<'_>, eps: f32, y: &mut Self::Array, inv_rms: &mut Self::Array);
    /// `sum = x + branch`, `y = rms_norm(sum)`: branch a factor, sum f32.
    #[allow(clippy::too_many_arguments)]
    fn add_rms_norm(
        &self,
        x: &Self::Array,
        branch: &Self::Array,
        w: Self::View<'_>,
        eps: f32,
        sum: &mut Self::Array,
        y: &mut Self::Array,
        inv_rms: &mut Self::Array,
    );
    /// [`Backend::rms_norm`] with the roots that it left.
    fn rms_norm_again(&self, x: &Self::Array, w: Self::View<'_>, inv_rms: &Self::Array, y: &mut Self::Array);
    /// dy of either kind; dx f32: added to if `accumulate`, else written; `rounded`: room for it as products read it, for
    /// [`Backend::left_factor`]. dw `[d]` is added to, where it is wanted.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_backward(
        &self,
        x: &Self::Array,
        w: Self::View<'_>,
        inv_rms: &Self::Array,
        dy: &Self::Array,
        dx: &mut Self::Array,
        rounded: &mut Self::Array,
        dw: Option<Self::Part<'_>>,
        accumulate: bool,
    );
    /// `sum = a + branch`: a, sum f32, branch a factor.
    fn add(&self, a: &Self::Array, branch: &Self::Array, sum: &mut Self::Array);
    /// `sum += x`, both f32.
    fn accumulate(&self, x: &Self::Array, sum: &mut Self::Array);
    /// `x[t, first..first + n] = values` in every row: values f32 `[n]`, x a factor `[T, width]`.
    fn fill_columns(&self, values: &Self::Array, x: &mut Self::Array, width: usize, first: usize);
    /// x as products read it: itself, or rounded into `room`.
    fn factor<'a>(&self, x: &'a Self::Array, room: &'a mut Self::Array) -> &'a Self::Array;
    /// [`Backend::factor`] of a dx that [`Backend::rms_norm_backward`] has rounded already.
    fn left_factor<'a>(&self, dx: &'a Self::Array, rounded: &'a Self::Array) -> &'a Self::Array;

    // ---- linear layers ----

    /// `y = x W^T (+ bias)`, y a factor.
    fn linear(
        &self,
        x: &Self::Array,
        w: Weight<'_, Self>,
        bias: Option<Self::View<'_>>,
        y: &mut Self::Array,
        shape: LinearShape,
    );
    /// `dx = dy W`, a factor.
    fn linear_backward_input(&self, dy: &Self::Array, w: Self::View<'_>, dx: &mut Self::Array, shape: LinearShape);
    /// `dw += dy^T x`, in f32.
    fn linear_backward_weight(&self, dy: &Self::Array, x: &Self::Array, dw: Self::Part<'_>, shape: LinearShape);
    /// `d_bias += sum of the rows of dy`, `[T, n]`.
    fn bias_backward(&self, dy: &Self::Array, d_bias: Self::Part<'_>);
    /// `y += B (s A x)`; `inner` is scratch.
    fn low_rank(
        &self,
        path: &LowRank<Self::View<'_>>,
        x: &Self::Array,
        y: &mut Self::Array,
        t: usize,
        inner: &mut Self::Array,
    );
    /// Gradients of A, then of every B, added to `d`.
    fn low_rank_backward_weight(
        &self,
        path: &LowRank<Self::View<'_>>,
        x: &Self::Array,
        dy: &Self::Array,
        d: Self::Part<'_>,
        t: usize,
        inner: &mut Self::Array,
    );
    /// `dx += s A^T B^T dy`.
    fn low_rank_backward_input(
        &self,
        path: &LowRank<Self::View<'_>>,
        dy: &Self::Array,
        dx: &mut Self::Array,
        t: usize,
        inner: &mut Self::Array,
    );

    // ---- attention ----

    /// Norms and rotates: qkv `[T, (H + 2 KV) hd]` to qk `[T, (H + KV) hd]`.
    #[allow(clippy::too_many_arguments)]
    fn qk_rope(
        &self,
        heads: Heads,
        norms: Option<QkNorms<Self::View<'_>>>,
        eps: f32,
        rope: &Self::Rope,
        tokens: Self::Tokens<'_>,
        qkv: &Self::Array,
        qk: &mut Self::Array,
    );
    /// In place on d_qkv: the gradient of the rotated q and k becomes that of the raw ones. `d_norms` `[2 hd]`, q's and k's
    /// beside each other, are added to.
    #[allow(clippy::too_many_arguments)]
    fn qk_rope_backward(
        &self,
        heads: Heads,
        norms: Option<QkNorms<Self::View<'_>>>,
        eps: f32,
        rope: &Self::Rope,
        tokens: Self::Tokens<'_>,
        qkv: &Self::Array,
        d_qkv: &mut Self::Array,
        d_norms: Option<Self::Part<'_>>,
    );
    /// Causal attention over packed sequences: out `[T, H hd]`, lse `[T, H]`.
    fn attention(
        &self,
        heads: Heads,
        batch: &Self::Batch<'_>,
        qk: &Self::Array,
        qkv: &Self::Array,
        out: &mut Self::Array,
        lse: &mut Self::Array,
    );
    /// d_qkv `[T, (H + 2 KV) hd]`: the gradient of the rotated queries and keys, and of the values.
    fn attention_backward(
        &self,
        heads: Heads,
        batch: &Self::Batch<'_>,
        forward: AttentionForward<'_, Self::Array>,
        d_out: &Self::Array,
        d_qkv: &mut Self::Array,
    );

    // ---- feed-forward ----

    /// gate_up `[T, 2 f]` to act `[T, f]`.
    fn swiglu(&self, gate_up: &Self::Array, act: &mut Self::Array, f: usize);
    /// Replaces gate_up by its gradient, given d_act `[T, f]`.
    fn swiglu_backward(&self, gate_up: &mut Self::Array, d_act: &Self::Array, f: usize);

    // ---- the head ----

    /// Copies rows of a state `[T, d]` of either kind together, as a factor.
    fn gather_rows(&self, state: &Self::Array, rows: &[usize], d: usize, out: &mut Self::Array);
    /// `d_state[rows[r]] += d_hidden[r]`: d_hidden a factor `[R, d]`, d_state f32 `[T, d]`.
    fn scatter_rows(&self, d_hidden: &Self::Array, rows: &[usize], d: usize, d_state: &mut Self::Array);
    /// Statistics of each row of hidden `[R, d]`; targets `[R]` token ids, or none.
    fn head(
        &self,
        head: Unembedding<Self::View<'_>>,
        hidden: &Self::Array,
        targets: Option<&[u32]>,
        room: &mut Self::Array,
    ) -> HeadStats;
    /// [`Backend::head`], and the gradient of a loss of these statistics: d_hidden `[R, d]` is overwritten, d_unembed `[V, d]` added
    /// to where it is wanted. `loss` is called for blocks of rows, in order.
    #[allow(clippy::too_many_arguments)]
    fn head_backward<E>(
        &self,
        head: Unembedding<Self::View<'_>>,
        hidden: &Self::Array,
        targets: &[u32],
        d_hidden: &mut Self::Array,
        d_unembed: Option<Self::Part<'_>>,
        room: &mut Self::Array,
        loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E>;
    /// A value for each of some rows of the states `[T, d]`: `w . state + b`.
    fn values(&self, states: &Self::Array, rows: &[usize], w: Self::View<'_>, b: Self::View<'_>) -> Vec<f32>;
    /// The gradient of [`Backend::values`], added to d_states f32 `[T, d]` and to `d_head`, which is w's and b's.
    fn values_backward(
        &self,
        states: &Self::Array,
        rows: &[usize],
        w: Self::View<'_>,
        d_values: &[f32],
        d_states: &mut Self::Array,
        d_head: Self::Part<'_>,
    );

    // ---- the optimizer ----

    /// Sum of the squares of some ranges of an array of f32.
    fn sum_of_squares(&self, array: &Self::Array, ranges: &[Range<usize>]) -> f64;
    /// One step for `params[range]`: the gradient is `grads` from element `from` on, the moments are as long.
    #[allow(clippy::too_many_arguments)]
    fn adamw(
        &self,
        params: &mut Self::Params,
        range: Range<usize>,
        grads: &Self::Array,
        from: usize,
        m: Self::Part<'_>,
        v: Self::Part<'_>,
        step: AdamwStep,
    );
}

/// A result that cannot be an error.
pub fn sure<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

//! What an analysis asks of a device, beside what a decoder does: states side by side, and what they say.

use super::{Backend, Unembedding};
use std::ops::Range;

/// Statistics of S states of each of R tokens, `[R, S]`: the states of a token follow each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// In nats.
    pub entropy: Vec<f32>,
    /// Of the targets; empty if none were given.
    pub log_probs: Vec<f32>,
    /// The likeliest token; the lowest id of several.
    pub top: Vec<u32>,
    /// One for each reference, in the order that they were asked for.
    pub divergences: Vec<Divergences>,
}

impl Comparison {
    /// Another's tokens, of as many references, behind these.
    pub fn append(&mut self, mut other: Comparison) {
        self.entropy.append(&mut other.entropy);
        self.log_probs.append(&mut other.log_probs);
        self.top.append(&mut other.top);
        self.divergences.resize_with(other.divergences.len(), Divergences::default);
        for (mine, mut other) in self.divergences.iter_mut().zip(other.divergences) {
            mine.to.append(&mut other.to);
            mine.from.append(&mut other.from);
        }
    }
}

/// Where what a residual stream is the sum of lies: [`Branches::places`] rows of width d for each token, a factor
/// `[R, 2 L + 2, d]`. Even places have `A^1..A^L`, then `H^0`; odd ones `F^1..F^L`, then the final state, which is read as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branches {
    pub layers: usize,
}

impl Branches {
    /// Rows of a token.
    pub fn places(self) -> usize {
        2 * self.layers + 2
    }

    /// Of `A^(layer + 1)`.
    pub fn attn(self, layer: usize) -> usize {
        2 * layer
    }

    /// Of `F^(layer + 1)`.
    pub fn ffn(self, layer: usize) -> usize {
        2 * layer + 1
    }

    /// Of `H^0`.
    pub fn embedding(self) -> usize {
        2 * self.layers
    }

    /// Of the final state.
    pub fn last(self) -> usize {
        2 * self.layers + 1
    }
}

/// What branches and the streams that they add up to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BranchComparison {
    /// Of every place of [`Branches`], `[R, 2 L + 2]`, in nats.
    pub entropy: Vec<f32>,
    /// Of `H^1..H^L` and the final state, `[R, L + 1]`.
    pub streams: Comparison,
}

/// Kullback-Leibler divergences of each state, `[R, S]`, in nats, never negative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergences {
    /// `D(state || reference)`
    pub to: Vec<f32>,
    /// `D(reference || state)`
    pub from: Vec<f32>,
}

/// Rows of width d in an array: the first begins at element `first`, each `stride` elements after the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub first: usize,
    pub stride: usize,
    pub d: usize,
}

/// The final norm, through which a lens reads the first `states` of a token's states.
#[derive(Clone, Copy, Debug)]
pub struct FinalNorm<V> {
    /// `[d]`
    pub weight: V,
    pub eps: f32,
    pub states: usize,
}

/// The operations of an analysis.
pub trait Inspect: Backend {
    /// Copies rows of a state `[T, d]` of either kind to their places in `out`, which is of either kind and long enough.
    fn place_rows(&self, state: &Self::Array, rows: &[usize], out: &mut Self::Array, at: Placed);
    /// Cosines of n rows of a, a factor, from element `first` on, with b's, f32 `[n, d]`, summed in f64.
    fn row_cosines(&self, a: &Self::Array, first: usize, b: &Self::Array, d: usize) -> Vec<f64>;
    /// `x / rms(x) * w` in place: x a factor `[R, d]`.
    fn norm_rows(&self, x: &mut Self::Array, w: Self::View<'_>, eps: f32, d: usize);
    /// Inner products of the first `layers` of a token's states f32 `[R, S, d]`, shape (S, d), with each other, `i >= j` in order of i, summed in f64;
    /// of the first `tokens` tokens: `[tokens, layers (layers + 1) / 2]`.
    fn gram(&self, states: &Self::Array, shape: (usize, usize), layers: usize, tokens: usize) -> Vec<f64>;
    /// Statistics of states f32 `[R, S, d]`, S to a token, for targets `[R]`, read through the final norm. `references`, two at most,
    /// are the places of the states that every state's divergences are taken to and from. The states are of no use afterwards.
    #[allow(clippy::too_many_arguments)]
    fn compare(
        &self,
        head: Unembedding<Self::View<'_>>,
        norm: FinalNorm<Self::View<'_>>,
        states: &mut Self::Array,
        places: usize,
        references: &[usize],
        targets: &[u32],
        room: &mut Self::Array,
    ) -> Comparison;
    /// Statistics of what [`Branches`] say, and of the streams `H^l` that they add up to and the final state, as
    /// [`Inspect::compare`] has them; `references` count those: 0 is `H^1`, L the final state.
    ///
    /// Logits are linear in the state, and nothing but the sum is done to a stream before it is read (paper, equation 5), so a
    /// layer's logits are those of the layer below and of its two branches, added up: `z(H^l) = z(H^(l-1)) + z(A^l) + z(F^l)`. A
    /// fifth of an analysis's products is not made.
    #[allow(clippy::too_many_arguments)]
    fn compare_branches(
        &self,
        head: Unembedding<Self::View<'_>>,
        branches: &Self::Array,
        of: Branches,
        references: &[usize],
        targets: &[u32],
        room: &mut Self::Array,
    ) -> BranchComparison;
    /// The states themselves of `tokens` tokens from `first` on, f32 `[tokens, L + 1, d]`: `H^1..H^L`, added up in the decoder's
    /// order from `H^0` f32 `[R, d]`, and the final state.
    fn add_branches(
        &self,
        embedding: &Self::Array,
        branches: &Self::Array,
        of: Branches,
        d: usize,
        tokens: Range<usize>,
        states: &mut Self::Array,
    );
    /// Whole rows of logits of hidden's rows from `first` on, `[n, V]`, on the host.
    fn logits(
        &self,
        head: Unembedding<Self::View<'_>>,
        hidden: &Self::Array,
        first: usize,
        n: usize,
        room: &mut Self::Array,
    ) -> Vec<f32>;
}

//! The low-rank path beside a linear layer (LoRA): `y += B (s A x)`, forward and backward.
//!
//! Where linear layers are fused (q, k and v; gate and up), the A of every adapted part lie under each other, so that one product
//! reads the input for them all; each B writes to the columns of its own part.

use super::array::{Elements, ElementsMut};
use super::gemm::{Compute, Mat, MatMut, Write, linear, linear_backward_input, linear_backward_weight, matmul};
use crate::compute::backend;

/// The adapters of one (fused) linear layer, on slices.
pub type LowRank<'a> = backend::LowRank<&'a [f32]>;

impl LowRank<'_> {
    /// `y += B (s A x)`: x `[t, inputs]`, y `[t, outputs]`; `inner` is scratch and becomes `s A x`, `[t, parts * rank]`.
    pub fn forward<'a>(
        &self,
        compute: Compute,
        x: impl Into<Elements<'a>>,
        y: impl Into<ElementsMut<'a>>,
        t: usize,
        inner: &mut Vec<f32>,
    ) {
        let mut y = y.into();
        self.inner(compute, x.into(), t, inner);
        let width = self.width();
        for (part, (b, columns)) in self.b.iter().enumerate() {
            let y = MatMut::strided(y.reborrow().skip(columns.start), t, columns.len(), self.outputs);
            let inner = Mat::strided(&inner[part * self.rank..], t, self.rank, width);
            matmul(compute, y, inner, Mat::new(*b, columns.len(), self.rank).t(), Write::Add);
        }
    }

    /// Gradients of A and of every B, added to `d_a` and, one after the other, to `d_b`.
    pub fn backward_weight<'a>(
        &self,
        compute: Compute,
        x: impl Into<Elements<'a>>,
        dy: impl Into<Elements<'a>>,
        (d_a, mut d_b): (&mut [f32], &mut [f32]),
        t: usize,
        inner: &mut Vec<f32>,
    ) {
        let (x, dy) = (x.into(), dy.into());
        self.inner(compute, x, t, inner);
        let width = self.width();
        for (part, (b, columns)) in self.b.iter().enumerate() {
            let (own, rest) = d_b.split_at_mut(b.len());
            let dy = Mat::strided(dy.part(columns.start..dy.len()), t, columns.len(), self.outputs);
            let inner = Mat::strided(&inner[part * self.rank..], t, self.rank, width);
            matmul(compute, MatMut::new(own, columns.len(), self.rank), dy.t(), inner, Write::Add);
            d_b = rest;
        }
        self.d_inner(compute, dy, t, inner);
        linear_backward_weight(compute, &*inner, x, d_a, t, self.inputs, width);
    }

    /// `dx += s A^T B^T dy`.
    pub fn backward_input<'a>(
        &self,
        compute: Compute,
        dy: impl Into<Elements<'a>>,
        dx: impl Into<ElementsMut<'a>>,
        t: usize,
        inner: &mut Vec<f32>,
    ) {
        self.d_inner(compute, dy.into(), t, inner);
        linear_backward_input(compute, &*inner, self.a, dx, t, self.inputs, self.width(), Write::Add);
    }

    /// `s A x`
    fn inner(&self, compute: Compute, x: Elements<'_>, t: usize, inner: &mut Vec<f32>) {
        inner.resize(t * self.width(), 0.0);
        linear(compute, x, self.a, &mut *inner, t, self.inputs, self.width(), Write::Replace);
        self.scaled(inner);
    }

    /// `s B^T dy`
    fn d_inner(&self, compute: Compute, dy: Elements<'_>, t: usize, inner: &mut Vec<f32>) {
        let width = self.width();
        inner.resize(t * width, 0.0);
        for (part, (b, columns)) in self.b.iter().enumerate() {
            let dy = Mat::strided(dy.part(columns.start..dy.len()), t, columns.len(), self.outputs);
            let inner = MatMut::strided(&mut inner[part * self.rank..], t, self.rank, width);
            matmul(compute, inner, dy, Mat::new(*b, columns.len(), self.rank), Write::Replace);
        }
        self.scaled(inner);
    }

    fn scaled(&self, inner: &mut [f32]) {
        inner.iter_mut().for_each(|x| *x *= self.scale);
    }
}

/// `W += s B A`: w `[o, i]`, a `[r, i]`, b `[o, r]`. In f32, since a merged weight is kept.
pub fn merge(w: &mut [f32], a: &[f32], b: &[f32], scale: f32, (o, i, r): (usize, usize, usize)) {
    let scaled: Vec<f32> = b.iter().map(|x| x * scale).collect();
    matmul(Compute::F32, MatMut::new(w, o, i), Mat::new(&scaled, o, r), Mat::new(a, r, i), Write::Add);
}

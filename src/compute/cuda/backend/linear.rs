//! Linear layers: products with the weights' copies, biases, and the low-rank path beside them.

use super::launch::{chunk_rows, int, long, row_threads};
use super::{Array, Cuda, Part, View};
use crate::compute::backend::{LinearShape, LowRank};
use crate::compute::cpu::gemm::Write;
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{Address, Arg, Matrix, Product};
use std::ops::Range;

/// Columns `from..` of rows of `matrix`.
fn columns(matrix: Matrix, from: usize) -> Matrix {
    Matrix { at: Address(matrix.at.0 + (from * matrix.real.bytes()) as u64), ..matrix }
}

impl Cuda {
    pub(super) fn multiply_linear(
        &self,
        x: &Array,
        w: View<'_>,
        bias: Option<View<'_>>,
        y: &mut Array,
        LinearShape { t, inputs, outputs }: LinearShape,
    ) {
        let (x, w, to) = (x.matrix(inputs), self.weight(&w, inputs), y.matrix(outputs));
        self.runtime().product(&Product::linear(x, w, to, [t, inputs, outputs], Write::Replace));
        let Some(bias) = bias else { return };
        if self.in_eights("add_bias", outputs) {
            self.launch_over("add_bias", t * outputs, &[y.arg(), bias.arg(), int(t), int(outputs)]);
        }
    }

    pub(super) fn multiply_backward_input(
        &self,
        dy: &Array,
        w: View<'_>,
        dx: &mut Array,
        LinearShape { t, inputs, outputs }: LinearShape,
    ) {
        let (dy, w, dx) = (dy.matrix(outputs), self.weight(&w, inputs), dx.matrix(inputs));
        self.runtime().product(&Product::linear_backward_input(dy, w, dx, [t, inputs, outputs], Write::Replace));
    }

    pub(super) fn multiply_backward_weight(
        &self,
        dy: &Array,
        x: &Array,
        dw: Part<'_>,
        LinearShape { t, inputs, outputs }: LinearShape,
    ) {
        let (dy, x, dw) = (dy.matrix(outputs), x.matrix(inputs), dw.matrix(inputs));
        self.runtime().product(&Product::linear_backward_weight(dy, x, dw, [t, inputs, outputs], Write::Add));
    }

    /// `out += ` the sum of the rows of x, `[t, out]`, a factor.
    pub(super) fn add_column_sums(&self, x: &Array, out: Part<'_>) {
        let n = out.len;
        if n == 0 || !self.in_eights("column_sums_partial", n) {
            return;
        }
        let (t, threads) = (x.len() / n, row_threads(n).min(256));
        let rows = chunk_rows(t);
        let chunks = t.div_ceil(rows);
        let partial = self.scratch(chunks * n, Real::F32);
        let grid = [(n / 8).div_ceil(threads), chunks, 1];
        let args = [x.arg(), partial.arg(), int(t), int(n), int(rows)];
        self.launch("column_sums_partial", grid, threads, 0, &args);
        self.add_chunks(partial.arg(), out.arg(), chunks, n);
    }

    pub(super) fn low_rank_forward(
        &self,
        path: &LowRank<View<'_>>,
        x: &Array,
        y: &mut Array,
        t: usize,
        inner: &mut Array,
    ) {
        self.low_rank_inner(path, x, t, inner);
        for (part, (b, range)) in path.b.iter().enumerate() {
            let y = columns(y.matrix(path.outputs), range.start);
            let inner = columns(inner.matrix(path.width()), part * path.rank);
            let sizes = [t, path.rank, range.len()];
            self.runtime().product(&Product::linear(inner, self.weight(b, path.rank), y, sizes, Write::Add));
        }
    }

    /// d: of A, then of every B.
    pub(super) fn low_rank_weights(
        &self,
        path: &LowRank<View<'_>>,
        x: &Array,
        dy: &Array,
        d: Part<'_>,
        t: usize,
        inner: &mut Array,
    ) {
        let (d_a, mut d_b) = d.split(path.a.len);
        self.low_rank_inner(path, x, t, inner);
        for (part, (b, range)) in path.b.iter().enumerate() {
            let (own, rest) = d_b.split(b.len);
            let dy = columns(dy.matrix(path.outputs), range.start);
            let inner = columns(inner.matrix(path.width()), part * path.rank);
            let sizes = [t, path.rank, range.len()];
            let product = Product::linear_backward_weight(dy, inner, own.matrix(path.rank), sizes, Write::Add);
            self.runtime().product(&product);
            d_b = rest;
        }
        self.low_rank_d_inner(path, dy, t, inner);
        let (d_inner, x) = (inner.matrix(path.width()), x.matrix(path.inputs));
        let sizes = [t, path.inputs, path.width()];
        let product = Product::linear_backward_weight(d_inner, x, d_a.matrix(path.inputs), sizes, Write::Add);
        self.runtime().product(&product);
    }

    pub(super) fn low_rank_input(
        &self,
        path: &LowRank<View<'_>>,
        dy: &Array,
        dx: &mut Array,
        t: usize,
        inner: &mut Array,
    ) {
        self.low_rank_d_inner(path, dy, t, inner);
        let (d_inner, a, dx) = (inner.matrix(path.width()), self.weight(&path.a, path.inputs), dx.matrix(path.inputs));
        let sizes = [t, path.inputs, path.width()];
        self.runtime().product(&Product::linear_backward_input(d_inner, a, dx, sizes, Write::Add));
    }

    /// `s A x`, `[t, parts * rank]`, a factor.
    fn low_rank_inner(&self, path: &LowRank<View<'_>>, x: &Array, t: usize, inner: &mut Array) {
        self.resize_to(inner, t * path.width(), self.real);
        let (x, a) = (x.matrix(path.inputs), self.weight(&path.a, path.inputs));
        let (to, sizes) = (inner.matrix(path.width()), [t, path.inputs, path.width()]);
        self.runtime().product(&Product::linear(x, a, to, sizes, Write::Replace));
        self.scaled(inner, path.scale);
    }

    /// `s B^T dy`, `[t, parts * rank]`, a factor.
    fn low_rank_d_inner(&self, path: &LowRank<View<'_>>, dy: &Array, t: usize, inner: &mut Array) {
        self.resize_to(inner, t * path.width(), self.real);
        for (part, (b, range)) in path.b.iter().enumerate() {
            let dy = columns(dy.matrix(path.outputs), range.start);
            let to = columns(inner.matrix(path.width()), part * path.rank);
            let sizes = [t, path.rank, range.len()];
            let product = Product::linear_backward_input(dy, self.weight(b, path.rank), to, sizes, Write::Replace);
            self.runtime().product(&product);
        }
        self.scaled(inner, path.scale);
    }

    fn scaled(&self, x: &Array, factor: f32) {
        // An element a thread.
        self.launch_over("scale", 8 * x.len(), &[Arg::Float(factor), x.arg(), long(x.len())]);
    }

    /// Sum of the squares of ranges of an array of f32, each cut into blocks by its length alone.
    pub(super) fn squares(&self, array: &Array, ranges: &[Range<usize>]) -> f64 {
        const THREADS: usize = 512;
        const MOST: usize = 1024;
        let blocks = |range: &Range<usize>| range.len().div_ceil(8 * THREADS).min(MOST);
        // Every range's sums begin at a multiple of 16 bytes; what is between stays zero.
        let room = |range: &Range<usize>| blocks(range).next_multiple_of(2);
        let all: usize = ranges.iter().map(room).sum();
        if all == 0 {
            return 0.0;
        }
        let (partial, sum) = (DeviceArray::<f64>::zeros(&self.arena, all), DeviceArray::<f64>::new(&self.arena, 1));
        let mut first = 0;
        for range in ranges {
            let args = [Arg::At(array.at(range.start)), long(range.len()), Arg::At(partial.at(first))];
            self.launch("sum_of_squares", [blocks(range), 1, 1], THREADS, 0, &args);
            first += room(range);
        }
        self.launch("sum_f64", [1, 1, 1], 1024, 0, &[partial.arg(), int(all), sum.arg(), int(0)]);
        sum.to_host().map_or(f64::NAN, |sum| sum[0])
    }
}

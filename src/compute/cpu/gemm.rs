//! Matrix products: views with strides, split between threads over the output's rows and columns.
//!
//! They are made of packed panels ([`blocked`], [`pack`], [`panels`]) by the [`kernel`] of the machine's instruction set. Those in bf16
//! convert while packing what lies in memory as f32, and round a result that is to lie there as bf16 when its sums are complete.

mod blocked;
mod kernel;
mod pack;
mod panels;

use super::array::{Element, Elements, ElementsMut};
use kernel::Isa;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::ops::Range;

/// The number format that a product multiplies in. Sums are f32 in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    #[default]
    F32,
    /// Operands rounded to bf16 (nearest even), products and sums in f32: AVX512-BF16. f32 where the machine has it not.
    Bf16,
}

impl Compute {
    /// What this machine will do when asked for it.
    pub fn here(self) -> Compute {
        if Isa::here(self) == Isa::Avx512Bf16 { Compute::Bf16 } else { Compute::F32 }
    }
}

/// Below this many multiply-adds a product is not worth waking other threads for (about 30 us of one core).
const PARALLEL_FROM: usize = 1 << 21;

/// A read-only matrix view.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: Elements<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// `data` as `[rows, cols]`, row-major and dense.
    pub fn new(data: impl Into<Elements<'a>>, rows: usize, cols: usize) -> Mat<'a> {
        Mat::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` elements that begin `row_stride` elements apart.
    pub fn strided(data: impl Into<Elements<'a>>, rows: usize, cols: usize, row_stride: usize) -> Mat<'a> {
        let data = data.into();
        assert!(
            fits(data.len(), rows, cols, row_stride),
            "matrix {rows}x{cols}/{row_stride} in {} elements",
            data.len()
        );
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Mat<'a> {
        Mat {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A mutable row-major matrix view.
pub struct MatMut<'a> {
    data: ElementsMut<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    pub fn new(data: impl Into<ElementsMut<'a>>, rows: usize, cols: usize) -> MatMut<'a> {
        MatMut::strided(data, rows, cols, cols)
    }

    pub fn strided(data: impl Into<ElementsMut<'a>>, rows: usize, cols: usize, row_stride: usize) -> MatMut<'a> {
        let data = data.into();
        assert!(
            fits(data.len(), rows, cols, row_stride),
            "matrix {rows}x{cols}/{row_stride} in {} elements",
            data.len()
        );
        MatMut { data, rows, cols, row_stride }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    rows == 0 || cols == 0 || (cols <= row_stride && (rows - 1) * row_stride + cols <= len)
}

/// What happens to the destination's old values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Replace,
    Add,
}

/// `c = a b` or `c += a b`, over all threads of the current pool.
pub fn matmul(compute: Compute, mut c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    let threads = rayon::current_num_threads();
    if threads == 1 || m * n * k < PARALLEL_FROM {
        return matmul_seq(compute, c, a, b, write);
    }
    check(compute, &c, &a, &b);
    let out = Destination { place: place(&mut c.data), row_stride: c.row_stride };
    let (by_rows, by_cols) = grid(m, n, threads);
    (0..by_rows * by_cols).into_par_iter().with_max_len(1).for_each(|i| {
        let (i, j) = (i / by_cols, i % by_cols);
        let (rows, cols) = (part(m, by_rows, i)..part(m, by_rows, i + 1), part(n, by_cols, j)..part(n, by_cols, j + 1));
        // SAFETY: the parts tile the destination without overlap; shapes were checked above.
        unsafe { out.product(compute, rows, cols, &a, &b, write) };
    });
}

/// Rows x columns of parts. Every part packs its own rows of a and columns of b, so the parts should be as square as can
/// be; twice as many as threads, where they stay large, even out threads that are not equally fast.
fn grid(m: usize, n: usize, threads: usize) -> (usize, usize) {
    const LARGE: usize = 1 << 18;
    let parts = if m * n >= 2 * threads * LARGE { 2 * threads } else { threads };
    let packed = |by_rows: usize| by_rows * n + parts / by_rows * m;
    let by_rows = (1..=parts).filter(|r| parts.is_multiple_of(*r)).min_by_key(|r| packed(*r)).unwrap_or(1);
    (by_rows.min(m.div_ceil(16)), (parts / by_rows).min(n.div_ceil(32)))
}

/// Start of part `i` of `parts`, at multiples of 32 where that is possible.
fn part(total: usize, parts: usize, i: usize) -> usize {
    if i >= parts { total } else { (total * i / parts).next_multiple_of(32).min(total) }
}

/// [`matmul`] on the calling thread only: for use inside a parallel loop.
pub fn matmul_seq(compute: Compute, mut c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    check(compute, &c, &a, &b);
    let out = Destination { place: place(&mut c.data), row_stride: c.row_stride };
    // SAFETY: the destination is borrowed mutably and as large as the shapes say.
    unsafe { out.product(compute, 0..c.rows, 0..c.cols, &a, &b, write) }
}

fn check(compute: Compute, c: &MatMut<'_>, a: &Mat<'_>, b: &Mat<'_>) {
    let in_f32 = matches!((&c.data, a.data, b.data), (ElementsMut::F32(_), Elements::F32(_), Elements::F32(_)));
    assert!(in_f32 || compute.here() == Compute::Bf16, "operands or a result in bf16 of a product in f32");
    assert!(
        c.rows == a.rows && c.cols == b.cols && a.cols == b.rows,
        "shapes [{}, {}] = [{}, {}] x [{}, {}]",
        c.rows,
        c.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
}

fn place(c: &mut ElementsMut<'_>) -> blocked::Place {
    match c {
        ElementsMut::F32(c) => blocked::Place::F32(c.as_mut_ptr()),
        ElementsMut::Bf16(c) => blocked::Place::Bf16(c.as_mut_ptr()),
    }
}

/// A destination whose blocks several threads write.
#[derive(Clone, Copy)]
struct Destination {
    place: blocked::Place,
    row_stride: usize,
}

// SAFETY: `product` writes only to the block that it is given; callers give disjoint blocks.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    /// Its first element, and the distance between its rows.
    fn whole(self) -> (blocked::Place, usize) {
        (self.place, self.row_stride)
    }

    /// A block of the product.
    ///
    /// # Safety
    /// The block lies in the destination, in a's rows and in b's columns, and no other thread touches it.
    unsafe fn product(
        self,
        compute: Compute,
        rows: Range<usize>,
        cols: Range<usize>,
        a: &Mat<'_>,
        b: &Mat<'_>,
        write: Write,
    ) {
        let (m, n, k) = (rows.len(), cols.len(), a.cols);
        if m == 0 || n == 0 {
            return;
        }
        let c = self.place.wrapping_add(rows.start * self.row_stride + cols.start);
        if k == 0 && write == Write::Replace {
            // Sums of nothing, of which no block of the inner dimension would come.
            for row in 0..m {
                // SAFETY: the block lies in the destination.
                unsafe {
                    match c.wrapping_add(row * self.row_stride) {
                        blocked::Place::F32(c) => zeros(c, n),
                        blocked::Place::Bf16(c) => zeros(c, n),
                    }
                }
            }
            return;
        }
        let (a, b) = (view(a), view(b));
        let a = blocked::View { data: a.data.wrapping_add(rows.start * a.row_stride), ..a };
        let b = blocked::View { data: b.data.wrapping_add(cols.start * b.col_stride), ..b };
        blocked::Out::with((c, self.row_stride), (m, n, k), write == Write::Add, |out| {
            // SAFETY: pointers and strides stay inside the views' bounds, which were asserted when they were built.
            unsafe { blocked::product(Isa::here(compute), (m, n, k), a, b, out) }
        });
    }
}

/// # Safety
/// `n` elements may be written.
unsafe fn zeros<E: Element>(c: *mut E, n: usize) {
    // SAFETY: by the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(c, n) }.fill(E::default());
}

/// A linear layer's weight, laid out once for many products with few rows: a decoding step would spend more time on
/// packing it than on multiplying. A copy of the weight, in the number format of its products.
#[derive(Debug)]
pub struct PackedWeight {
    outputs: usize,
    inputs: usize,
    columns: blocked::PackedColumns,
}

impl PackedWeight {
    /// w `[o, i]`.
    pub fn new(compute: Compute, w: &[f32], o: usize, i: usize) -> PackedWeight {
        assert_eq!(w.len(), o * i, "a weight of [{o}, {i}]");
        let columns = view(&Mat::new(w, o, i).t());
        // SAFETY: the instructions are here; the view is of W^T, `[i, o]`, whose size was checked above.
        let columns = unsafe { blocked::PackedColumns::new(Isa::here(compute), columns, i, o) };
        PackedWeight { outputs: o, inputs: i, columns }
    }

    /// `y = x W^T`, or added to y: x `[t, i]`, y `[t, o]`. The same sums in the same order as [`linear`].
    pub fn linear<'a, 'b>(&self, x: impl Into<Elements<'a>>, y: impl Into<ElementsMut<'b>>, t: usize, write: Write) {
        let (x, mut y) = (x.into(), y.into());
        assert!(
            x.len() == t * self.inputs && y.len() == t * self.outputs,
            "linear layer [{}, {}] with {t} rows of {} to {}",
            self.outputs,
            self.inputs,
            x.len(),
            y.len()
        );
        let in_f32 = matches!((x, &y), (Elements::F32(_), ElementsMut::F32(_)));
        assert!(in_f32 || self.columns.are_bf16(), "operands or a result in bf16 of a product in f32");
        let n = self.outputs;
        let (x, y) = (view(&Mat::new(x, t, self.inputs)), Destination { place: place(&mut y), row_stride: n });
        let parts = if t * n * self.inputs < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
        (0..parts).into_par_iter().with_max_len(1).for_each(|i| {
            // SAFETY: x and y were measured above; parts own columns of their own.
            unsafe { self.columns.product(t, (i, parts), x, y.whole(), write == Write::Add) };
        });
    }

    /// Whether the weight's own bits are here: in f32.
    pub fn is_exact(&self) -> bool {
        !self.columns.are_bf16()
    }

    /// Row `output` of the weight `[outputs, inputs]`, which is exact.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        let (outputs, inputs) = (self.outputs, self.inputs);
        assert!(output < outputs && row.len() == inputs, "row {output} of [{outputs}, {inputs}] to {}", row.len());
        assert!(self.is_exact(), "a row of a weight that was rounded when it was packed");
        self.columns.column(output, row);
    }
}

/// Rows that many right-hand sides are multiplied with, packed once for all of them, in blocks.
pub struct PackedRows<'a> {
    rows: Mat<'a>,
    block: usize,
    panels: blocked::PackedRows,
}

impl<'a> PackedRows<'a> {
    /// a `[m, k]`, in blocks of so many rows; the last may have fewer.
    pub fn new(compute: Compute, rows: Mat<'a>, block: usize) -> PackedRows<'a> {
        let (isa, shape) = (Isa::here(compute), (rows.rows, rows.cols));
        // SAFETY: the instructions are here; the view is as large as the matrix, as was checked when it was made.
        let panels = unsafe { blocked::PackedRows::new(isa, view(&rows), shape, block) };
        PackedRows { rows, block, panels }
    }

    /// Calls `f` with every block's first row and its product with b `[k, n]`, on the calling thread: in `whole` `[m, n]`, where all of it
    /// is wanted, else in the same place one after the other. The same sums in the same order as [`matmul_seq`]. `f` must not come
    /// here again.
    pub fn multiply(&self, b: Mat<'_>, whole: Option<&mut [f32]>, f: impl FnMut(usize, &mut [f32])) {
        let (m, n) = (self.rows.rows, b.cols);
        assert_eq!(b.rows, self.rows.cols, "rows of the right-hand side");
        let block = self.block.min(m) * n;
        match whole {
            Some(whole) => self.multiply_into(b, whole, block, f),
            None => PRODUCT.with_borrow_mut(|c| {
                c.resize(c.len().max(block), 0.0);
                self.multiply_into(b, c, 0, f);
            }),
        }
    }

    /// Blocks begin `apart` elements behind each other in c.
    fn multiply_into(&self, b: Mat<'_>, c: &mut [f32], apart: usize, mut f: impl FnMut(usize, &mut [f32])) {
        let (m, n) = (self.rows.rows, b.cols);
        let blocks = (0..m).step_by(self.block).map(|from| (from, self.block.min(m - from)));
        let blocks = blocks.enumerate().map(|(i, (from, rows))| (i, from, i * apart..i * apart + rows * n));
        // SAFETY: the view is as large as the matrix, as was checked when it was made; the block of c is.
        unsafe {
            self.panels.with_columns(view(&b), n, |columns| {
                for (i, from, at) in blocks {
                    let c = &mut c[at];
                    let out = blocked::Out { c: c.as_mut_ptr(), row_stride: n, add: false, rounded: None };
                    self.panels.product(i, columns, out);
                    f(from, c);
                }
            });
        }
    }
}

thread_local! {
    /// A block of a product, kept for the next.
    static PRODUCT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn view(mat: &Mat<'_>) -> blocked::View {
    let data = match mat.data {
        Elements::F32(data) => blocked::Pointer::F32(data.as_ptr()),
        Elements::Bf16(data) => blocked::Pointer::Bf16(data.as_ptr()),
    };
    blocked::View { data, row_stride: mat.row_stride, col_stride: mat.col_stride }
}

/// Linear layer: `y = x W^T`, x `[t, i]`, w `[o, i]`, y `[t, o]`.
#[allow(clippy::too_many_arguments)]
pub fn linear<'a, 'b>(
    compute: Compute,
    x: impl Into<Elements<'a>>,
    w: &[f32],
    y: impl Into<ElementsMut<'b>>,
    t: usize,
    i: usize,
    o: usize,
    write: Write,
) {
    matmul(compute, MatMut::new(y, t, o), Mat::new(x, t, i), Mat::new(w, o, i).t(), write);
}

/// Gradient of [`linear`] for its input: `dx = dy W`.
#[allow(clippy::too_many_arguments)]
pub fn linear_backward_input<'a, 'b>(
    compute: Compute,
    dy: impl Into<Elements<'a>>,
    w: &[f32],
    dx: impl Into<ElementsMut<'b>>,
    t: usize,
    i: usize,
    o: usize,
    write: Write,
) {
    matmul(compute, MatMut::new(dx, t, i), Mat::new(dy, t, o), Mat::new(w, o, i), write);
}

/// Gradient of [`linear`] for its weight, accumulated: `dW += dy^T x`.
#[allow(clippy::too_many_arguments)]
pub fn linear_backward_weight<'a>(
    compute: Compute,
    dy: impl Into<Elements<'a>>,
    x: impl Into<Elements<'a>>,
    dw: &mut [f32],
    t: usize,
    i: usize,
    o: usize,
) {
    matmul(compute, MatMut::new(dw, o, i), Mat::new(dy, t, o).t(), Mat::new(x, t, i), Write::Add);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
        let at = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] as f64 * b[l * n + j] as f64).sum::<f64>() as f32;
        (0..m * n).map(|x| at(x / n, x % n)).collect()
    }

    fn fill(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 24) as f32) - 0.5)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_equal_the_textbook(m in 0usize..90, n in 0usize..90, k in 0usize..60, seed in 0u32..1000) {
            let (a, b) = (fill(m * k, seed), fill(k * n, seed + 1));
            let expected = naive(&a, &b, m, n, k);
            let mut c = vec![1f32; m * n];
            matmul(Compute::F32, MatMut::new(&mut c, m, n), Mat::new(&a, m, k), Mat::new(&b, k, n), Write::Replace);
            let mut bt = vec![0f32; k * n];
            for i in 0..k { for j in 0..n { bt[j * k + i] = b[i * n + j]; } }
            let mut d = c.clone();
            matmul(Compute::F32, MatMut::new(&mut d, m, n), Mat::new(&a, m, k), Mat::new(&bt, n, k).t(), Write::Add);
            for i in 0..m * n {
                prop_assert!((c[i] - expected[i]).abs() < 1e-5);
                prop_assert!((d[i] - 2.0 * expected[i]).abs() < 2e-5);
            }
        }
    }

    /// Round to bf16 and back.
    fn rounded(x: &[f32]) -> Vec<f32> {
        x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Products of rounded operands are exact in f32; only the order of the sums differs.
        #[test]
        fn products_are_those_of_the_operands_as_rounded(m in 1usize..70, n in 1usize..70, k in 1usize..80, seed in 0u32..1000) {
            let (a, b) = (fill(m * k, seed), fill(k * n, seed + 1));
            let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            let operands = [
                (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                (Mat::new(&a, m, k), Mat::new(&bt, n, k).t()),
                (Mat::new(&at, k, m).t(), Mat::new(&b, k, n)),
            ];
            for compute in [Compute::F32, Compute::Bf16] {
                let round = |x: &[f32]| if compute.here() == Compute::Bf16 { rounded(x) } else { x.to_vec() };
                let expected = naive(&round(&a), &round(&b), m, n, k);
                for (a, b) in operands {
                    let mut c = vec![0f32; m * n];
                    matmul(compute, MatMut::new(&mut c, m, n), a, b, Write::Replace);
                    for i in 0..m * n {
                        prop_assert!((c[i] - expected[i]).abs() < 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn packed_weights_give_the_same_bytes() {
        for compute in [Compute::F32, Compute::Bf16] {
            for (t, i, o) in [(1, 40, 7), (64, 1100, 300), (5, 33, 64), (300, 64, 513)] {
                let (x, w) = (fill(t * i, 1), fill(o * i, 2));
                let packed = PackedWeight::new(compute, &w, o, i);
                let (mut y, mut z) = (fill(t * o, 3), fill(t * o, 3));
                for write in [Write::Replace, Write::Add] {
                    packed.linear(&x, &mut y, t, write);
                    matmul(compute, MatMut::new(&mut z, t, o), Mat::new(&x, t, i), Mat::new(&w, o, i).t(), write);
                    assert!(y.iter().zip(&z).all(|(y, z)| y.to_bits() == z.to_bits()), "[{t}, {i}] x [{o}, {i}]");
                }
            }
        }
    }

    #[test]
    fn packed_rows_give_the_same_bytes() {
        for compute in [Compute::F32, Compute::Bf16] {
            for (m, k, n, block) in [(1, 3, 5, 4), (37, 1100, 130, 10), (300, 40, 33, 128), (64, 600, 300, 200)] {
                let (a, b) = (fill(m * k, 1), fill(n * k, 2));
                let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, n, k).t());
                let mut expected = vec![0f32; m * n];
                matmul_seq(compute, MatMut::new(&mut expected, m, n), a, b, Write::Replace);
                let rows = PackedRows::new(compute, a, block);
                let (mut got, mut whole) = (Vec::new(), vec![f32::NAN; m * n]);
                rows.multiply(b, None, |from, c| {
                    assert_eq!(from * n, got.len());
                    got.extend_from_slice(c);
                });
                let mut seen = 0;
                rows.multiply(b, Some(&mut whole), |_, c| seen += c.len());
                assert_eq!(seen, m * n);
                let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
                assert_eq!(bits(&got), bits(&expected), "[{m}, {k}] x [{k}, {n}]");
                assert_eq!(bits(&whole), bits(&expected), "[{m}, {k}] x [{k}, {n}]");
            }
        }
    }

    #[test]
    fn the_parallel_split_covers_the_whole_product() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (m, n, k) in [(301, 100, 129), (8, 1030, 300), (130, 130, 130)] {
            let (a, b) = (fill(m * k, 1), fill(k * n, 2));
            let expected = naive(&a, &b, m, n, k);
            let mut c = vec![f32::NAN; m * n];
            pool.install(|| {
                matmul(Compute::F32, MatMut::new(&mut c, m, n), Mat::new(&a, m, k), Mat::new(&b, k, n), Write::Replace)
            });
            assert!(c.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-4));
        }
    }
}

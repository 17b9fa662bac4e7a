//! Matrix products on the `gemm` crate: views with strides, split over output rows or columns.

use gemm::Parallelism;
use rayon::prelude::*;

/// Below this many multiply-adds a product is not worth waking other threads for (about 30 us of one core).
const PARALLEL_FROM: usize = 1 << 21;

/// A read-only matrix view.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// `data` as `[rows, cols]`, row-major and dense.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Mat<'a> {
        Mat::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` elements that begin `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Mat<'a> {
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
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        MatMut::strided(data, rows, cols, cols)
    }

    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> MatMut<'a> {
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Replace,
    Add,
}

/// `c = a b` or `c += a b`, over all threads of the current pool.
pub fn matmul(c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    let threads = rayon::current_num_threads();
    let (m, n, k) = (c.rows, c.cols, a.cols);
    if threads == 1 || m * n * k < PARALLEL_FROM {
        return matmul_seq(c, a, b, write);
    }
    check(&c, &a, &b);
    let out = Out { data: c.data.as_mut_ptr(), row_stride: c.row_stride };
    // Tall products are split by rows. Thin ones (decoding) by columns, so that each thread reads its own part of b.
    let by_rows = m >= n.min(16 * threads);
    let total = if by_rows { m } else { n };
    let parts = threads.min(total.div_ceil(16));
    (0..parts).into_par_iter().for_each(|i| {
        let (start, end) = (part(total, parts, i), part(total, parts, i + 1));
        // SAFETY: the parts tile the destination's rows (or columns) without overlap; shapes were checked above.
        unsafe {
            if by_rows {
                out.product(start, 0, end - start, n, &a, &b, write);
            } else {
                out.product(0, start, m, end - start, &a, &b, write);
            }
        }
    });
}

/// Start of part `i` of `parts`, at multiples of 16 where that is possible.
fn part(total: usize, parts: usize, i: usize) -> usize {
    if i >= parts { total } else { (total * i / parts).next_multiple_of(16).min(total) }
}

/// [`matmul`] on the calling thread only: for use inside a parallel loop.
pub fn matmul_seq(c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    check(&c, &a, &b);
    let out = Out { data: c.data.as_mut_ptr(), row_stride: c.row_stride };
    // SAFETY: the destination is borrowed mutably and as large as the shapes say.
    unsafe { out.product(0, 0, c.rows, c.cols, &a, &b, write) }
}

fn check(c: &MatMut<'_>, a: &Mat<'_>, b: &Mat<'_>) {
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

#[derive(Clone, Copy)]
struct Out {
    data: *mut f32,
    row_stride: usize,
}

// SAFETY: `product` writes only to the block that it is given; callers give disjoint blocks.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// The block of `rows x cols` at (`row`, `col`) of the product.
    ///
    /// # Safety
    /// The block lies in the destination, no other thread touches it, and a and b have rows `row..row + rows` and
    /// columns `col..col + cols`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn product(self, row: usize, col: usize, rows: usize, cols: usize, a: &Mat<'_>, b: &Mat<'_>, write: Write) {
        if rows == 0 || cols == 0 {
            return;
        }
        // SAFETY: pointers and strides stay inside the views' bounds, which were asserted when they were built.
        unsafe {
            gemm::gemm(
                rows,
                cols,
                a.cols,
                self.data.add(row * self.row_stride + col),
                1,
                self.row_stride as isize,
                write == Write::Add,
                a.data.as_ptr().add(row * a.row_stride),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr().add(col * b.col_stride),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// Linear layer: `y = x W^T`, x `[t, i]`, w `[o, i]`, y `[t, o]`.
pub fn linear(x: &[f32], w: &[f32], y: &mut [f32], t: usize, i: usize, o: usize, write: Write) {
    #[cfg(target_arch = "x86_64")]
    if super::thin::applies(t, i) {
        return super::thin::linear(x, w, y, t, i, o, write == Write::Add);
    }
    matmul(MatMut::new(y, t, o), Mat::new(x, t, i), Mat::new(w, o, i).t(), write);
}

/// Gradient of [`linear`] for its input: `dx = dy W`.
pub fn linear_backward_input(dy: &[f32], w: &[f32], dx: &mut [f32], t: usize, i: usize, o: usize, write: Write) {
    matmul(MatMut::new(dx, t, i), Mat::new(dy, t, o), Mat::new(w, o, i), write);
}

/// Gradient of [`linear`] for its weight, accumulated: `dW += dy^T x`.
pub fn linear_backward_weight(dy: &[f32], x: &[f32], dw: &mut [f32], t: usize, i: usize, o: usize) {
    matmul(MatMut::new(dw, o, i), Mat::new(dy, t, o).t(), Mat::new(x, t, i), Write::Add);
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
        fn products_equal_the_textbook(m in 0usize..90, n in 0usize..90, k in 1usize..60, seed in 0u32..1000) {
            let (a, b) = (fill(m * k, seed), fill(k * n, seed + 1));
            let expected = naive(&a, &b, m, n, k);
            let mut c = vec![1f32; m * n];
            matmul(MatMut::new(&mut c, m, n), Mat::new(&a, m, k), Mat::new(&b, k, n), Write::Replace);
            let mut bt = vec![0f32; k * n];
            for i in 0..k { for j in 0..n { bt[j * k + i] = b[i * n + j]; } }
            let mut d = c.clone();
            matmul(MatMut::new(&mut d, m, n), Mat::new(&a, m, k), Mat::new(&bt, n, k).t(), Write::Add);
            for i in 0..m * n {
                prop_assert!((c[i] - expected[i]).abs() < 1e-5);
                prop_assert!((d[i] - 2.0 * expected[i]).abs() < 2e-5);
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
            pool.install(|| matmul(MatMut::new(&mut c, m, n), Mat::new(&a, m, k), Mat::new(&b, k, n), Write::Replace));
            assert!(c.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-4));
        }
    }
}

//! `y = x W^T` for few rows of x: a decoding step's linear layers.
//!
//! A general product repacks the weights on every call, which costs more than the product itself when there are few
//! rows. Here rows of x and rows of W, both contiguous, meet as dot products: a block of 6 x 4 of them keeps 24
//! accumulators in registers and reads each weight from memory once.

use super::shared::SharedMut;
use rayon::prelude::*;

/// Above this many rows the general product is faster.
pub const MAX_ROWS: usize = 160;

/// Rows of x and of W in a block.
const ROWS: usize = 6;
const COLS: usize = 4;
/// Rows of W that a task takes at a time.
const TASK: usize = 32;

/// True where this machine has the instructions and the shape fits: inner dimension a multiple of 16.
pub fn applies(t: usize, i: usize) -> bool {
    t <= MAX_ROWS && i.is_multiple_of(16) && i > 0 && std::arch::is_x86_feature_detected!("avx512f")
}

/// x `[t, i]`, w `[o, i]`, y `[t, o]`; added to y if `add`. Only where [`applies`] says so.
pub fn linear(x: &[f32], w: &[f32], y: &mut [f32], t: usize, i: usize, o: usize, add: bool) {
    assert!(
        applies(t, i) && x.len() == t * i && w.len() == o * i && y.len() == t * o,
        "thin product [{t}, {i}] x [{o}, {i}]"
    );
    let y = SharedMut::new(y);
    (0..o.div_ceil(TASK)).into_par_iter().with_min_len(2).for_each(|task| {
        let (from, to) = (task * TASK, ((task + 1) * TASK).min(o));
        for col in (from..to).step_by(COLS) {
            let cols = COLS.min(to - col);
            for row in (0..t).step_by(ROWS) {
                let rows = ROWS.min(t - row);
                // SAFETY: `applies` found AVX-512; the slices were measured above.
                let sums = unsafe {
                    match (rows, cols) {
                        (ROWS, COLS) => block::<ROWS, COLS>(&x[row * i..], &w[col * i..], i),
                        (4.., COLS) => pad(
                            block::<4, COLS>(&x[row * i..], &w[col * i..], i),
                            rest::<COLS>(x, w, row + 4, rows - 4, col, i),
                        ),
                        (_, COLS) => pad([[0.0; COLS]; 0], rest::<COLS>(x, w, row, rows, col, i)),
                        _ => edge(x, w, row, rows, col, cols, i),
                    }
                };
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    // SAFETY: this task alone writes columns from..to.
                    let out = unsafe { y.slice((row + r) * o + col, cols) };
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = if add { *out + sum } else { *sum };
                    }
                }
            }
        }
    });
}

/// Puts the rows of a smaller block and those after it together.
fn pad<const R: usize>(first: [[f32; COLS]; R], rest: [[f32; COLS]; ROWS]) -> [[f32; COLS]; ROWS] {
    let mut out = [[0.0; COLS]; ROWS];
    out[..R].copy_from_slice(&first);
    for (out, row) in out[R..].iter_mut().zip(rest) {
        *out = row;
    }
    out
}

/// Up to three rows, one at a time.
///
/// # Safety
/// AVX-512, and rows `row..row + rows` of x and `col..col + C` of w exist.
unsafe fn rest<const C: usize>(
    x: &[f32],
    w: &[f32],
    row: usize,
    rows: usize,
    col: usize,
    i: usize,
) -> [[f32; C]; ROWS] {
    let mut out = [[0.0; C]; ROWS];
    for (r, out) in out.iter_mut().enumerate().take(rows) {
        // SAFETY: by the caller's promise.
        *out = unsafe { block::<1, C>(&x[(row + r) * i..], &w[col * i..], i) }[0];
    }
    out
}

/// Any block, dot by dot.
///
/// # Safety
/// AVX-512, and rows `row..row + rows` of x and `col..col + cols` of w exist.
unsafe fn edge(
    x: &[f32],
    w: &[f32],
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    i: usize,
) -> [[f32; COLS]; ROWS] {
    let mut out = [[0.0; COLS]; ROWS];
    for (r, out) in out.iter_mut().enumerate().take(rows) {
        for (c, out) in out.iter_mut().enumerate().take(cols) {
            // SAFETY: by the caller's promise.
            *out = unsafe { block::<1, 1>(&x[(row + r) * i..], &w[(col + c) * i..], i) }[0][0];
        }
    }
    out
}

/// `R x C` dot products of length i, a multiple of 16.
///
/// # Safety
/// The machine has AVX-512F; x holds at least R rows of i, and w at least C.
#[target_feature(enable = "avx512f")]
unsafe fn block<const R: usize, const C: usize>(x: &[f32], w: &[f32], i: usize) -> [[f32; C]; R] {
    use std::arch::x86_64::*;
    assert!(x.len() >= R * i && w.len() >= C * i);
    let mut acc = [[_mm512_setzero_ps(); C]; R];
    for k in (0..i).step_by(16) {
        // SAFETY: k + 16 <= i, and row r (c) begins at r i (c i), inside the asserted lengths.
        unsafe {
            let wk: [__m512; C] = std::array::from_fn(|c| _mm512_loadu_ps(w.as_ptr().add(c * i + k)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let xk = _mm512_loadu_ps(x.as_ptr().add(r * i + k));
                for (acc, wk) in acc.iter_mut().zip(wk) {
                    *acc = _mm512_fmadd_ps(xk, wk, *acc);
                }
            }
        }
    }
    acc.map(|row| row.map(|v| _mm512_reduce_add_ps(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_equals_the_textbook() {
        for (t, o) in [(1, 1), (6, 4), (7, 33), (11, 70), (3, 66), (64, 130), (5, 2)] {
            let i = 48;
            if !applies(t, i) {
                continue;
            }
            let fill = |n: usize, s: usize| (0..n).map(|k| ((k * 37 + s) % 19) as f32 - 9.0).collect::<Vec<_>>();
            let (x, w) = (fill(t * i, 1), fill(o * i, 2));
            for add in [false, true] {
                let mut y = vec![5.0; t * o];
                linear(&x, &w, &mut y, t, i, o, add);
                for (at, y) in y.iter().enumerate() {
                    let (row, col) = (at / o, at % o);
                    // Whole numbers: the sums are exact.
                    let sum: f32 = (0..i).map(|k| x[row * i + k] * w[col * i + k]).sum();
                    assert_eq!(*y, if add { sum + 5.0 } else { sum }, "[{t}, {i}] x [{o}, {i}] at {row}, {col}");
                }
            }
        }
        assert!(!applies(4, 17) && !applies(MAX_ROWS + 1, 16));
    }
}

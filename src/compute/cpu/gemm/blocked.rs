//! A product cut into blocks that fit the caches: panels of A in L2, panels of B in L3, sums in registers.
//!
//! Operands are packed as they are met, in buffers that each thread keeps; where the inner dimension is long, C is
//! added up over blocks of it, always in the same order, so that the result does not depend on how rows and columns
//! were split between threads.

use super::Compute;
use super::kernel::{Block, MR, NR, block};
use super::pack::{Source, panel};
use std::cell::RefCell;

/// Units of the inner dimension in a block: a panel of A takes 28 KiB, of B 64 KiB.
const INNER: usize = 512;
/// Rows of A packed at a time: 504 KiB at most, half of an L2 cache.
const ROWS: usize = 18 * MR;
/// Columns of B packed at a time: 4 MiB at most.
const COLS: usize = 2048;

/// A matrix by its first element and its strides, one of which is 1.
#[derive(Clone, Copy)]
pub struct View {
    pub data: *const f32,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl View {
    /// The view that begins at (`row`, `col`).
    fn at(self, row: usize, col: usize) -> *const f32 {
        self.data.wrapping_add(row * self.row_stride + col * self.col_stride)
    }
}

thread_local! {
    static PACKED: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// True where this machine has the instructions.
pub fn supported(compute: Compute) -> bool {
    use std::arch::is_x86_feature_detected as has;
    match compute {
        Compute::F32 => has!("avx512f"),
        Compute::Bf16 => has!("avx512f") && has!("avx512bf16") && has!("avx512bw") && has!("avx512vl"),
    }
}

/// `C = A B`, or `C += A B` if `add`: A `[m, k]`, B `[k, n]`, C row-major, `[m, n]`, rows `c_stride` apart.
///
/// # Safety
/// [`supported`]; the views hold elements of their shapes; C may be written and nobody else touches it.
#[allow(clippy::too_many_arguments)]
pub unsafe fn product(
    compute: Compute,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    PACKED.with_borrow_mut(|[packed_a, packed_b]| {
        let widest = if compute == Compute::F32 { INNER } else { 2 * INNER };
        // Even: a pair of bf16 never straddles two blocks.
        let inner = k.div_ceil(k.div_ceil(widest).max(1)).next_multiple_of(2);
        for k0 in (0..k).step_by(inner.max(1)) {
            let depth = inner.min(k - k0);
            let units = compute.units(depth);
            for n0 in (0..n).step_by(COLS) {
                let cols = COLS.min(n - n0);
                room(packed_b, cols.next_multiple_of(NR) * units);
                for j in (0..cols).step_by(NR) {
                    let source =
                        Source { data: b.at(k0, n0 + j), width_stride: b.col_stride, inner_stride: b.row_stride };
                    // SAFETY: columns n0 + j.. and rows k0.. are B's; the buffer was sized above.
                    unsafe {
                        panel(compute, source, NR.min(cols - j), depth, NR, packed_b.as_mut_ptr().add(j * units))
                    };
                }
                let blocks = m.div_ceil(ROWS);
                for i in 0..blocks {
                    let rows = m * i / blocks..m * (i + 1) / blocks;
                    room(packed_a, rows.len() * units);
                    for panel_rows in panels(rows.len()) {
                        let source = Source {
                            data: a.at(rows.start + panel_rows.start, k0),
                            width_stride: a.row_stride,
                            inner_stride: a.col_stride,
                        };
                        let width = panel_rows.len();
                        // SAFETY: rows and columns k0.. are A's; the buffer was sized above.
                        unsafe {
                            let to = packed_a.as_mut_ptr().add(panel_rows.start * units);
                            panel(compute, source, width, depth, width, to);
                        }
                    }
                    for j in (0..cols).step_by(NR) {
                        for panel_rows in panels(rows.len()) {
                            // SAFETY: the block lies in C; the panels were just packed.
                            unsafe {
                                let out = Block {
                                    c: c.add((rows.start + panel_rows.start) * c_stride + n0 + j),
                                    row_stride: c_stride,
                                    cols: NR.min(cols - j),
                                    add: add || k0 > 0,
                                };
                                let pa = packed_a.as_ptr().add(panel_rows.start * units);
                                block(compute, panel_rows.len(), units, pa, packed_b.as_ptr().add(j * units), out);
                            }
                        }
                    }
                }
            }
        }
    });
}

/// Rows in panels of at most [`MR`], as even as can be: no panel is so thin that its sums wait for each other.
fn panels(rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let n = rows.div_ceil(MR);
    (0..n).map(move |i| rows * i / n..rows * (i + 1) / n)
}

/// At least `units` and a register more.
fn room(buffer: &mut Vec<u32>, units: usize) {
    if buffer.len() < units + 16 {
        buffer.resize(units + 16, 0);
    }
}

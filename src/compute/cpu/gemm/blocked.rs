//! A product cut into blocks that fit the caches: panels of A in L2, panels of B in L3, sums in registers.
//!
//! Operands are packed as they are met, in buffers that each thread keeps; where the inner dimension is long, C is
//! added up over blocks of it, always in the same order, so that the result does not depend on how rows and columns
//! were split between threads.

use super::kernel::{Block, Isa, LINE, block, block_unpacked};
use super::pack::{Source, panel};
use rayon::prelude::*;
use std::cell::RefCell;

/// Columns of B packed at a time: 4 MiB at most.
const COLS: usize = 2048;
/// Columns that a task packs at a time where the whole of B is packed: a multiple of every block's.
const COLUMNS_A_TASK: usize = 256;

impl Isa {
    /// Units of the inner dimension in a block. AVX-512: a panel of A takes 28 KiB, of B 64 KiB. AVX2: a panel of B takes
    /// 24 KiB, most of the first cache; the panels of A that pass it come from the second in time.
    fn inner(self) -> usize {
        if self == Isa::Avx2 { 384 } else { 512 }
    }

    /// Up to so many columns of a B that is met once, packing A costs more than it saves: attention's products with values, for
    /// one. On AVX2 it pays earlier: an update of a model 128 wide takes 4 to 7 % less with 64 than with 128. bf16 is made by packing.
    fn few_columns(self) -> usize {
        match self {
            Isa::Avx2 => 64,
            Isa::Avx512 => 128,
            Isa::Avx512Bf16 => 0,
        }
    }

    /// Rows of A packed at a time: half of an L2 cache at most, 504 KiB of a large one, 252 KiB where AVX2 is all there is.
    fn rows_a_time(self) -> usize {
        if self == Isa::Avx2 { 28 * self.rows() } else { 18 * self.rows() }
    }
}

/// A matrix by its first element and its strides, one of which is 1.
#[derive(Clone, Copy)]
pub struct View {
    pub data: *const f32,
    pub row_stride: usize,
    pub col_stride: usize,
}

// SAFETY: views are only read through, for as long as the borrow behind them lasts, which their makers see to.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The view that begins at (`row`, `col`).
    fn at(self, row: usize, col: usize) -> *const f32 {
        self.data.wrapping_add(row * self.row_stride + col * self.col_stride)
    }
}

thread_local! {
    static PACKED: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    static COLUMNS: RefCell<PackedColumns> = const { RefCell::new(PackedColumns::none(Isa::Avx2)) };
}

/// Lengths of the blocks of an inner dimension `k`: (first index, length), in order.
fn inner_blocks(isa: Isa, k: usize) -> impl Iterator<Item = (usize, usize)> {
    let widest = if isa == Isa::Avx512Bf16 { 2 * isa.inner() } else { isa.inner() };
    // Even: a pair of bf16 never straddles two blocks.
    let inner = k.div_ceil(k.div_ceil(widest).max(1)).next_multiple_of(2).max(2);
    (0..k).step_by(inner).map(move |from| (from, inner.min(k - from)))
}

/// `C = A B`, or `C += A B` if `add`: A `[m, k]`, B `[k, n]`, C row-major, `[m, n]`, rows `c_stride` apart.
///
/// # Safety
/// [`Isa::is_here`]; the views hold elements of their shapes; C may be written and nobody else touches it.
#[allow(clippy::too_many_arguments)]
pub unsafe fn product(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    PACKED.with_borrow_mut(|[packed_a, packed_b]| {
        for (k0, depth) in inner_blocks(isa, k) {
            let units = isa.units(depth);
            for n0 in (0..n).step_by(COLS) {
                let cols = COLS.min(n - n0);
                room(packed_b, cols.next_multiple_of(isa.columns()) * units);
                let b = View { data: b.at(k0, n0), ..b };
                // SAFETY: columns n0.. and rows k0.. are B's, and C's block as the caller says; the buffer was sized above.
                unsafe {
                    pack_columns(isa, b, cols, depth, packed_b.as_mut_ptr());
                    let a = View { data: a.at(0, k0), ..a };
                    let c = Block { c: c.add(n0), row_stride: c_stride, cols, add: add || k0 > 0 };
                    if cols <= isa.few_columns() {
                        as_it_lies(isa, (m, depth), a, packed_b.as_ptr(), c);
                    } else {
                        against_panels(isa, (m, depth), a, packed_b.as_ptr(), packed_a, c);
                    }
                }
            }
        }
    });
}

/// Packs B `[depth, cols]` into panels of [`Isa::columns`].
///
/// # Safety
/// As [`product`]; the buffer holds the panels and a register more.
unsafe fn pack_columns(isa: Isa, b: View, cols: usize, depth: usize, out: *mut u32) {
    let units = isa.units(depth);
    for j in (0..cols).step_by(isa.columns()) {
        let source = Source { data: b.at(0, j), width_stride: b.col_stride, inner_stride: b.row_stride };
        // SAFETY: by the caller's promise.
        unsafe { panel(isa, source, isa.columns().min(cols - j), depth, isa.columns(), out.add(j * units)) };
    }
}

/// [`against_panels`] without packing A: never in bf16.
///
/// # Safety
/// As [`against_panels`].
unsafe fn as_it_lies(isa: Isa, (m, depth): (usize, usize), a: View, b: *const u32, c: Block) {
    for rows in panels(isa, m) {
        for j in (0..c.cols).step_by(isa.columns()) {
            // SAFETY: the block lies in C, its rows in A; the panel of B is packed.
            unsafe {
                let out = Block { c: c.c.add(rows.start * c.row_stride + j), cols: isa.columns().min(c.cols - j), ..c };
                let strides = (a.row_stride, a.col_stride);
                block_unpacked(isa, rows.len(), depth, a.at(rows.start, 0), strides, b.add(j * isa.units(depth)), out);
            }
        }
    }
}

/// `C (+)= A B` for A `[m, depth]` and panels of B that are packed already.
///
/// # Safety
/// As [`product`]; the panels hold `c.cols` columns of `depth` elements.
unsafe fn against_panels(
    isa: Isa,
    (m, depth): (usize, usize),
    a: View,
    b: *const u32,
    packed_a: &mut Vec<u32>,
    c: Block,
) {
    let units = isa.units(depth);
    let blocks = m.div_ceil(isa.rows_a_time());
    for i in 0..blocks {
        let rows = m * i / blocks..m * (i + 1) / blocks;
        room(packed_a, rows.len() * units);
        // SAFETY: rows and columns are A's; the buffer was sized above.
        unsafe { pack_rows(isa, View { data: a.at(rows.start, 0), ..a }, rows.len(), depth, packed_a.as_mut_ptr()) };
        // SAFETY: the block lies in C; the panels are packed.
        unsafe {
            let c = Block { c: c.c.add(rows.start * c.row_stride), ..c };
            meet(isa, rows.len(), units, packed_a.as_ptr(), b, c);
        }
    }
}

/// `C (+)= A B` of panels alone: as many of A as fit a cache, [`panels`] of `rows`, and all of B.
///
/// # Safety
/// As [`product`]; panels of A hold `rows` rows, those of B `c.cols` columns, of `units` units.
unsafe fn meet(isa: Isa, rows: usize, units: usize, a: *const u32, b: *const u32, c: Block) {
    // A pass over the panels of A asks for a part of the next panel of B, which may have to come from memory.
    let asked = isa.lines_ahead(units) * LINE;
    let passes = (isa.columns() * units).div_ceil(asked.max(1));
    for j in (0..c.cols).step_by(isa.columns()) {
        for (pass, panel_rows) in panels(isa, rows).enumerate() {
            // SAFETY: by the caller's promise.
            unsafe {
                let out =
                    Block { c: c.c.add(panel_rows.start * c.row_stride + j), cols: isa.columns().min(c.cols - j), ..c };
                let ahead = b.wrapping_add((j + isa.columns()) * units + pass % passes * asked);
                block(isa, panel_rows.len(), units, a.add(panel_rows.start * units), b.add(j * units), ahead, out);
            }
        }
    }
}

/// Packs some rows of A `[rows, depth]` into [`panels`].
///
/// # Safety
/// As [`product`]; the buffer holds the panels and a register more.
unsafe fn pack_rows(isa: Isa, a: View, rows: usize, depth: usize, out: *mut u32) {
    let units = isa.units(depth);
    for panel_rows in panels(isa, rows) {
        let source = Source { data: a.at(panel_rows.start, 0), width_stride: a.row_stride, inner_stride: a.col_stride };
        let width = panel_rows.len();
        // SAFETY: by the caller's promise.
        unsafe { panel(isa, source, width, depth, width, out.add(panel_rows.start * units)) };
    }
}

/// Blocks of rows of A `[m, k]`, packed once for many products.
pub struct PackedRows {
    isa: Isa,
    k: usize,
    m: usize,
    /// Rows of a block; the last may have fewer.
    rows: usize,
    /// Of the blocks, one behind the other: for each block of the inner dimension its panels.
    panels: Vec<u32>,
}

impl PackedRows {
    /// # Safety
    /// [`Isa::is_here`]; the view holds `[m, k]` elements.
    pub unsafe fn new(isa: Isa, a: View, (m, k): (usize, usize), rows: usize) -> PackedRows {
        let rows = rows.clamp(1, m.max(1));
        let mut packed = PackedRows { isa, k, m, rows, panels: Vec::new() };
        let length = packed.length();
        packed.panels.resize(m.div_ceil(rows) * length, 0);
        packed.panels.par_chunks_mut(length).enumerate().for_each(|(i, out)| {
            let (from, rows) = (i * rows, rows.min(m - i * rows));
            let mut done = 0;
            for (k0, depth) in inner_blocks(isa, k) {
                // SAFETY: by the caller's promise; the buffer has a register more than the panels.
                unsafe {
                    pack_rows(isa, View { data: a.at(from, k0), ..a }, rows, depth, out.as_mut_ptr().add(done));
                }
                done += rows * isa.units(depth);
            }
        });
        packed
    }

    /// Units of a block of rows: its panels, and a register that packing may write beyond them.
    fn length(&self) -> usize {
        self.rows * inner_blocks(self.isa, self.k).map(|(_, depth)| self.isa.units(depth)).sum::<usize>() + 16
    }

    /// Packs B `[k, n]` for [`PackedRows::product`], in memory that the thread keeps.
    ///
    /// # Safety
    /// The view holds `[k, n]` elements.
    pub unsafe fn with_columns(&self, b: View, n: usize, f: impl FnOnce(&PackedColumns)) {
        COLUMNS.with_borrow_mut(|columns| {
            columns.isa = self.isa;
            columns.pieces(self.k, n).for_each(|piece| {
                // SAFETY: the view holds B; the instructions are here, as when the rows were packed.
                unsafe { piece.pack(b) }
            });
            f(columns);
        })
    }

    /// C `[rows, n]` of block `i` with all of B's columns.
    ///
    /// # Safety
    /// As [`product`].
    pub unsafe fn product(&self, i: usize, b: &PackedColumns, c: *mut f32, c_stride: usize) {
        assert!(self.isa == b.isa, "operands packed for {:?} and {:?}", self.isa, b.isa);
        let rows = self.rows.min(self.m - i * self.rows);
        let mut a = self.panels[i * self.length()..].as_ptr();
        for (k0, depth, panels) in &b.blocks {
            let units = self.isa.units(*depth);
            // SAFETY: by the caller's promise; both were packed in the same blocks of the inner dimension.
            unsafe {
                meet(
                    self.isa,
                    rows,
                    units,
                    a,
                    panels.as_ptr(),
                    Block { c, row_stride: c_stride, cols: b.n, add: *k0 > 0 },
                );
                a = a.add(rows * units);
            }
        }
    }
}

/// Columns of B that are packed at a time, in a block of the inner dimension.
struct Piece<'a> {
    isa: Isa,
    /// The first row and column.
    from: (usize, usize),
    depth: usize,
    cols: usize,
    /// Whole ones: nothing is written beyond.
    panels: &'a mut [u32],
}

impl Piece<'_> {
    /// # Safety
    /// [`Isa::is_here`]; the view holds all of B.
    unsafe fn pack(self, b: View) {
        let view = View { data: b.at(self.from.0, self.from.1), ..b };
        // SAFETY: by the caller's promise.
        unsafe { pack_columns(self.isa, view, self.cols, self.depth, self.panels.as_mut_ptr()) };
    }
}

/// The whole of B `[k, n]`, packed once for many products.
pub struct PackedColumns {
    isa: Isa,
    n: usize,
    /// One for each block of the inner dimension: its first index, its length, its panels.
    blocks: Vec<(usize, usize, Vec<u32>)>,
}

impl PackedColumns {
    /// # Safety
    /// [`Isa::is_here`]; the view holds `[k, n]` elements.
    pub unsafe fn new(isa: Isa, b: View, k: usize, n: usize) -> PackedColumns {
        let mut packed = PackedColumns::none(isa);
        let pieces: Vec<Piece> = packed.pieces(k, n).collect();
        // SAFETY: by the caller's promise.
        pieces.into_par_iter().for_each(|piece| unsafe { piece.pack(b) });
        packed
    }

    const fn none(isa: Isa) -> PackedColumns {
        PackedColumns { isa, n: 0, blocks: Vec::new() }
    }

    /// Takes on the shape `[k, n]`, in the memory that is there where it is enough; what is to be packed of it, piece by piece.
    fn pieces(&mut self, k: usize, n: usize) -> impl Iterator<Item = Piece<'_>> {
        let (isa, width) = (self.isa, n.next_multiple_of(self.isa.columns()));
        self.n = n;
        self.blocks.resize_with(inner_blocks(isa, k).count(), Default::default);
        self.blocks.iter_mut().zip(inner_blocks(isa, k)).flat_map(move |(block, (k0, depth))| {
            let (units, (first, length, panels)) = (isa.units(depth), block);
            (*first, *length) = (k0, depth);
            if panels.len() < width * units {
                *panels = vec![0; width * units];
            }
            let pieces = panels[..width * units].chunks_mut(COLUMNS_A_TASK * units).enumerate();
            pieces.map(move |(i, panels)| {
                let from = i * COLUMNS_A_TASK;
                Piece { isa, from: (k0, from), depth, cols: COLUMNS_A_TASK.min(n - from), panels }
            })
        })
    }

    /// [`product`] for columns `from..from + cols`, `from` a multiple of [`Isa::columns`]; `c` is column `from` of C.
    ///
    /// # Safety
    /// As [`product`].
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn product(
        &self,
        m: usize,
        (from, cols): (usize, usize),
        a: View,
        c: *mut f32,
        c_stride: usize,
        add: bool,
    ) {
        assert!(
            from.is_multiple_of(self.isa.columns()) && from + cols <= self.n,
            "columns {from}+{cols} of {}",
            self.n
        );
        PACKED.with_borrow_mut(|[packed_a, _]| {
            for (k0, depth, panels) in &self.blocks {
                let b = panels[from * self.isa.units(*depth)..].as_ptr();
                let a = View { data: a.at(0, *k0), ..a };
                let c = Block { c, row_stride: c_stride, cols, add: add || *k0 > 0 };
                // SAFETY: by the caller's promise.
                unsafe { against_panels(self.isa, (m, *depth), a, b, packed_a, c) };
            }
        });
    }
}

/// Rows in panels of at most [`Isa::rows`], as even as can be: no panel is so thin that its sums wait for each other.
fn panels(isa: Isa, rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let n = rows.div_ceil(isa.rows());
    (0..n).map(move |i| rows * i / n..rows * (i + 1) / n)
}

/// At least `units` and a register more.
fn room(buffer: &mut Vec<u32>, units: usize) {
    if buffer.len() < units + 16 {
        buffer.resize(units + 16, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::gemm::Compute;
    use proptest::prelude::*;

    /// `C (+)= A B` by every instruction set of this machine, also what it would not choose, of operands that lie by rows or by
    /// columns. Small integers are exact in bf16 and their sums in f32.
    fn multiplies_alike((m, n, k): (usize, usize, usize), a_by_rows: bool, b_by_rows: bool, add: bool) {
        let small = |i: usize| (((i * 2_654_435_761) >> 7) % 8) as f32 - 3.0;
        let a: Vec<f32> = (0..m * k).map(small).collect();
        let b: Vec<f32> = (0..k * n).map(|i| small(i + 77)).collect();
        let view = |data: &[f32], rows: usize, cols: usize, by_rows: bool| match by_rows {
            true => View { data: data.as_ptr(), row_stride: cols, col_stride: 1 },
            false => View { data: data.as_ptr(), row_stride: 1, col_stride: rows },
        };
        let (va, vb) = (view(&a, m, k, a_by_rows), view(&b, k, n, b_by_rows));
        let at = |data: &[f32], view: View, i: usize, j: usize| data[i * view.row_stride + j * view.col_stride];
        // A column of C beyond the product, which must stay as it is.
        let before: Vec<f32> = (0..m * (n + 1)).map(small).collect();
        let mut expected = before.clone();
        for i in 0..m {
            for j in 0..n {
                let sum: f32 = (0..k).map(|l| at(&a, va, i, l) * at(&b, vb, l, j)).sum();
                expected[i * (n + 1) + j] = if add { before[i * (n + 1) + j] + sum } else { sum };
            }
        }
        for isa in [Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16].into_iter().filter(|isa| isa.is_here()) {
            let mut c = before.clone();
            // SAFETY: the instructions are here; the views are of a and b, and c is borrowed mutably.
            unsafe { product(isa, (m, n, k), va, vb, c.as_mut_ptr(), n + 1, add) };
            assert!(c == expected, "{isa:?}: [{m}, {k}] x [{k}, {n}]");
        }
    }

    /// Each number of rows is a kernel of its own; 130 columns are too many to leave A unpacked.
    #[test]
    fn panels_of_every_height_multiply_alike() {
        for m in 1..=16 {
            for n in [33, 130] {
                multiplies_alike((m, n, 37), true, true, false);
                multiplies_alike((m, n, 140), false, false, true);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_instruction_set_multiplies_alike(
            shape in (1usize..60, 1usize..300, 1usize..1200),
            (a_by_rows, b_by_rows, add) in any::<(bool, bool, bool)>(),
        ) {
            multiplies_alike(shape, a_by_rows, b_by_rows, add);
            prop_assert!(Isa::here(Compute::F32) != Some(Isa::Avx2) || !Isa::Avx512.is_here());
        }
    }
}

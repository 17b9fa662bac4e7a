//! A product cut into blocks that fit the caches: panels of A in L2, panels of B in L3, sums in registers.
//!
//! Operands are packed as they are met, in buffers that each thread keeps; where the inner dimension is long, C is
//! added up over blocks of it, always in the same order, so that the result does not depend on how rows and columns
//! were split between threads.

use super::kernel::{Block, Isa, Rounded, block, block_unpacked};
pub use super::pack::Pointer;
use super::pack::{Source, panels};
use super::panels::{ColumnPanels, Panels, evenly, row_panels};
use crate::compute::cpu::prefetch::LINE;
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;

/// Columns of B packed at a time: 4 MiB at most.
const COLS: usize = 2048;
/// Panels of columns that are packed together: rows of 2 KiB.
const PANELS_TOGETHER: usize = 16;
/// Panels that a task packs at a time where the whole of B is packed.
const PANELS_A_TASK: usize = 8;

impl Isa {
    /// Units of the inner dimension in a block. AVX-512: a panel of A takes 56 KiB, of B 128 KiB, both read from the second cache; what the sums
    /// wait for is C, which is met less often in longer blocks (2 to 4 % of a product's time on Zen 5 with 512). AVX2: of A 6 KiB, of B
    /// 36 KiB. NEON: of A 16 KiB, of B 24 KiB.
    fn inner(self) -> usize {
        match self {
            Isa::Avx512 | Isa::Avx512Bf16 => 1024,
            Isa::Avx2 => 384,
            Isa::Neon | Isa::Portable => 512,
        }
    }

    /// Up to so many columns of a B that is met once, packing A costs more than it saves: attention's products with values, for
    /// one. On AVX2 it pays earlier: an update of a model 128 wide takes 4 to 7 % less with 64 than with 128. bf16 is made by packing.
    fn few_columns(self) -> usize {
        match self {
            Isa::Avx2 | Isa::Neon | Isa::Portable => 64,
            Isa::Avx512 => 128,
            Isa::Avx512Bf16 => 0,
        }
    }

    /// Rows of A of so many units packed at a time: half of an L2 cache at most, 504 KiB of a large one, 252 KiB where AVX2 is all there is,
    /// 336 KiB of an ARM's.
    fn rows_a_time(self, units: usize) -> usize {
        match self {
            Isa::Avx512 | Isa::Avx512Bf16 => 9 * self.inner() / units.max(1) * self.rows(),
            _ => 168,
        }
    }
}

/// A matrix by its first element and its strides, one of which is 1.
#[derive(Clone, Copy)]
pub struct View {
    pub data: Pointer,
    pub row_stride: usize,
    pub col_stride: usize,
}

// SAFETY: views are only read through, for as long as the borrow behind them lasts, which their makers see to.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The view that begins at (`row`, `col`).
    fn at(self, row: usize, col: usize) -> Pointer {
        self.data.wrapping_add(row * self.row_stride + col * self.col_stride)
    }
}

thread_local! {
    static PACKED: RefCell<[Panels; 2]> = const { RefCell::new([Panels::new(), Panels::new()]) };
    static COLUMNS: RefCell<PackedColumns> = const { RefCell::new(PackedColumns::none(Isa::Portable)) };
    /// Sums of a product whose result is rounded, between two blocks of the inner dimension.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lengths of the blocks of an inner dimension `k`: (first index, length), in order.
fn inner_blocks(isa: Isa, k: usize) -> impl Iterator<Item = (usize, usize)> {
    let widest = if isa == Isa::Avx512Bf16 { 2 * isa.inner() } else { isa.inner() };
    // Even: a pair of bf16 never straddles two blocks.
    let inner = k.div_ceil(k.div_ceil(widest).max(1)).next_multiple_of(2).max(2);
    (0..k).step_by(inner).map(move |from| (from, inner.min(k - from)))
}

/// `C = A B`, or `C += A B`, as C says: A `[m, k]`, B `[k, n]`, C row-major, `[m, n]`.
///
/// # Safety
/// [`Isa::is_here`]; the views hold elements of their shapes; C may be written and nobody else touches it.
pub unsafe fn product(isa: Isa, (m, n, k): (usize, usize, usize), a: View, b: View, c: Out) {
    PACKED.with_borrow_mut(|[packed_a, packed_b]| {
        for (k0, depth) in inner_blocks(isa, k) {
            let units = isa.units(depth);
            for n0 in (0..n).step_by(COLS) {
                let columns = ColumnPanels::of(isa, COLS.min(n - n0));
                let panels = packed_b.room(columns.width() * units);
                let b = View { data: b.at(k0, n0), ..b };
                // SAFETY: columns n0.. and rows k0.. are B's, and C's block as the caller says; the buffer was sized above.
                unsafe {
                    pack_columns(isa, b, columns, depth, panels.as_mut_ptr());
                    let a = View { data: a.at(0, k0), ..a };
                    let c = c.at_column(n0).for_inner(k0, k0 + depth == k);
                    if columns.width() <= isa.few_columns() {
                        as_it_lies(isa, (m, depth), a, (columns, panels.as_ptr()), c);
                    } else {
                        against_panels(isa, (m, depth), a, (columns, panels.as_ptr()), packed_a, c);
                    }
                }
            }
        }
    });
}

/// Where a product goes: its first element, the distance between its rows.
#[derive(Clone, Copy)]
pub struct Out {
    pub c: *mut f32,
    pub row_stride: usize,
    /// Add to what is there, or replace it.
    pub add: bool,
    /// Where the result is in bf16.
    pub rounded: Option<Rounded>,
}

/// A result's first element, in either format.
#[derive(Clone, Copy)]
pub enum Place {
    F32(*mut f32),
    Bf16(*mut bf16),
}

impl Place {
    /// So many elements further.
    pub fn wrapping_add(self, n: usize) -> Place {
        match self {
            Place::F32(c) => Place::F32(c.wrapping_add(n)),
            Place::Bf16(c) => Place::Bf16(c.wrapping_add(n)),
        }
    }
}

impl Out {
    /// Calls `f` with a place for a product `[m, n]` over an inner dimension `k`: itself or, where the result is rounded and comes of
    /// several blocks of the inner dimension, together with memory for its sums, which the thread keeps.
    pub fn with((place, row_stride): (Place, usize), (m, n, k): (usize, usize, usize), add: bool, f: impl FnOnce(Out)) {
        let c = match place {
            Place::F32(c) => return f(Out { c, row_stride, add, rounded: None }),
            Place::Bf16(c) => c,
        };
        let rounded = Some(Rounded { c, row_stride, read: false, write: false });
        SUMS.with_borrow_mut(|sums| {
            if inner_blocks(Isa::Avx512Bf16, k).nth(1).is_some() && sums.len() < m * n {
                *sums = vec![0.0; m * n];
            }
            f(Out { c: sums.as_mut_ptr(), row_stride: n, add, rounded });
        });
    }

    /// The same rows from a column on.
    fn at_column(self, column: usize) -> Out {
        let rounded = self.rounded.map(|rounded| Rounded { c: rounded.c.wrapping_add(column), ..rounded });
        Out { c: self.c.wrapping_add(column), rounded, ..self }
    }

    /// The same from a row on.
    fn at_row(self, row: usize) -> Out {
        let rounded = self.rounded.map(|x| Rounded { c: x.c.wrapping_add(row * x.row_stride), ..x });
        Out { c: self.c.wrapping_add(row * self.row_stride), rounded, ..self }
    }

    /// For the block of the inner dimension that begins at `k0`: all but the first add to what is there, and the last rounds.
    fn for_inner(self, k0: usize, last: bool) -> Out {
        let rounded = self.rounded.map(|x| Rounded { read: self.add && k0 == 0, write: last, ..x });
        Out { add: self.add || k0 > 0, rounded, ..self }
    }

    /// From (`row`, `column`) on, a block with so many columns in C.
    fn block(self, row: usize, column: usize, cols: usize) -> Block {
        let Out { c, row_stride, add, rounded } = self.at_row(row).at_column(column);
        Block { c, row_stride, cols, add, rounded }
    }
}

/// Packs columns of B, of `depth` elements each: `b` is the view of all of them.
///
/// # Safety
/// As [`product`]; the buffer holds the panels and a register more, or the panels are whole.
unsafe fn pack_columns(isa: Isa, b: View, columns: ColumnPanels, depth: usize, out: *mut u32) {
    let source = Source { data: b.data, width_stride: b.col_stride, inner_stride: b.row_stride };
    for together in columns.chunks(PANELS_TOGETHER) {
        let at = (together.first() - columns.first()) * isa.units(depth);
        // SAFETY: by the caller's promise.
        unsafe { panels(isa, source, together.iter(), depth, out.add(at)) };
    }
}

/// [`against_panels`] without packing A: never in bf16.
///
/// # Safety
/// As [`against_panels`].
unsafe fn as_it_lies(isa: Isa, (m, depth): (usize, usize), a: View, (columns, b): (ColumnPanels, *const u32), c: Out) {
    let units = isa.units(depth);
    for rows in row_panels(isa, m) {
        for (panel, there) in columns.iter() {
            let (shape, j) = ((rows.len(), panel.len()), panel.start - columns.first());
            let (Pointer::F32(rows_of_a), strides) = (a.at(rows.start, 0), (a.row_stride, a.col_stride)) else {
                unreachable!("bf16 is made by packing")
            };
            // SAFETY: the block lies in C, its rows in A; the panel of B is packed.
            unsafe {
                let out = c.block(rows.start, j, there);
                block_unpacked(isa, shape, depth, rows_of_a, strides, b.add(j * units), out);
            }
        }
    }
}

/// `C (+)= A B` for A `[m, depth]` and panels of B that are packed already.
///
/// # Safety
/// As [`product`]; the panels have columns of `depth` elements.
unsafe fn against_panels(
    isa: Isa,
    (m, depth): (usize, usize),
    a: View,
    b: (ColumnPanels, *const u32),
    packed_a: &mut Panels,
    c: Out,
) {
    let units = isa.units(depth);
    for rows in evenly(m, isa.rows_a_time(units)) {
        let panels = packed_a.room(rows.len() * units);
        // SAFETY: rows and columns are A's; the buffer was sized above; the block lies in C.
        unsafe {
            pack_rows(isa, View { data: a.at(rows.start, 0), ..a }, rows.len(), depth, panels.as_mut_ptr());
            meet(isa, rows.len(), units, panels.as_ptr(), b, c.at_row(rows.start));
        }
    }
}

/// `C (+)= A B` of panels alone: as many of A as fit a cache, [`row_panels`] of `rows`, and those of B, whose first column is C's.
///
/// # Safety
/// As [`product`]; panels of A hold `rows` rows, all panels are of `units` units.
unsafe fn meet(isa: Isa, rows: usize, units: usize, a: *const u32, (columns, b): (ColumnPanels, *const u32), c: Out) {
    // A pass over the panels of A asks for a part of the next panel of B, which may have to come from memory.
    let asked = isa.lines_ahead(units) * LINE;
    let passes = (isa.columns() * units).div_ceil(asked.max(1));
    for (panel, there) in columns.iter() {
        let j = panel.start - columns.first();
        for (pass, panel_rows) in row_panels(isa, rows).enumerate() {
            // SAFETY: by the caller's promise.
            unsafe {
                let ahead = b.wrapping_add((j + panel.len()) * units + pass % passes * asked);
                let (a, b) = (a.add(panel_rows.start * units), b.add(j * units));
                block(isa, (panel_rows.len(), panel.len()), units, a, b, ahead, c.block(panel_rows.start, j, there));
            }
        }
    }
}

/// Packs some rows of A `[rows, depth]` into [`row_panels`].
///
/// # Safety
/// As [`product`]; the buffer holds the panels and a register more.
unsafe fn pack_rows(isa: Isa, a: View, rows: usize, depth: usize, out: *mut u32) {
    let source = Source { data: a.data, width_stride: a.row_stride, inner_stride: a.col_stride };
    let all_there = row_panels(isa, rows).map(|rows| (rows.clone(), rows.len()));
    // SAFETY: by the caller's promise.
    unsafe { panels(isa, source, all_there, depth, out) };
}

/// Blocks of rows of A `[m, k]`, packed once for many products.
pub struct PackedRows {
    isa: Isa,
    k: usize,
    m: usize,
    /// Rows of a block; the last may have fewer.
    rows: usize,
    /// Of the blocks, one behind the other: for each block of the inner dimension its panels.
    panels: Panels,
}

impl PackedRows {
    /// # Safety
    /// [`Isa::is_here`]; the view holds `[m, k]` elements.
    pub unsafe fn new(isa: Isa, a: View, (m, k): (usize, usize), rows: usize) -> PackedRows {
        let rows = rows.clamp(1, m.max(1));
        let mut packed = PackedRows { isa, k, m, rows, panels: Panels::new() };
        let length = packed.length();
        let panels = &mut packed.panels.room(m.div_ceil(rows) * length)[..m.div_ceil(rows) * length];
        panels.par_chunks_mut(length).enumerate().for_each(|(i, out)| {
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

    /// Units of a block of rows: its panels, and a register that packing may write beyond them; whole lines of the cache.
    fn length(&self) -> usize {
        let units: usize = inner_blocks(self.isa, self.k).map(|(_, depth)| self.isa.units(depth)).sum();
        (self.rows * units + 16).next_multiple_of(LINE)
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
    pub unsafe fn product(&self, i: usize, b: &PackedColumns, c: Out) {
        assert!(self.isa == b.isa, "operands packed for {:?} and {:?}", self.isa, b.isa);
        let rows = self.rows.min(self.m - i * self.rows);
        let mut a = self.panels.as_slice()[i * self.length()..].as_ptr();
        for (k0, depth, panels) in &b.blocks {
            let (units, columns) = (self.isa.units(*depth), ColumnPanels::of(b.isa, b.n));
            // SAFETY: by the caller's promise; both were packed in the same blocks of the inner dimension.
            unsafe {
                let c = c.for_inner(*k0, k0 + depth == self.k);
                meet(self.isa, rows, units, a, (columns, panels.as_slice().as_ptr()), c);
                a = a.add(rows * units);
            }
        }
    }
}

/// Columns of B that are packed at a time, in a block of the inner dimension.
struct Piece<'a> {
    isa: Isa,
    /// The block's first index, its length.
    inner: (usize, usize),
    columns: ColumnPanels,
    /// Whole ones: nothing is written beyond.
    panels: &'a mut [u32],
}

impl Piece<'_> {
    /// # Safety
    /// [`Isa::is_here`]; the view holds all of B.
    unsafe fn pack(self, b: View) {
        let (k0, depth) = self.inner;
        // SAFETY: by the caller's promise.
        unsafe {
            pack_columns(self.isa, View { data: b.at(k0, 0), ..b }, self.columns, depth, self.panels.as_mut_ptr())
        };
    }
}

/// The whole of B `[k, n]`, packed once for many products.
#[derive(Debug)]
pub struct PackedColumns {
    isa: Isa,
    n: usize,
    /// One for each block of the inner dimension: its first index, its length, its panels.
    blocks: Vec<(usize, usize, Panels)>,
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

    /// Column `j` of B, in f32.
    pub fn column(&self, j: usize, column: &mut [f32]) {
        let (panel, _) = ColumnPanels::of(self.isa, self.n).holding(j);
        for (k0, depth, panels) in &self.blocks {
            let units = &panels.as_slice()[panel.start * depth..][..panel.len() * depth];
            for (x, units) in column[*k0..*k0 + *depth].iter_mut().zip(units.chunks_exact(panel.len())) {
                *x = f32::from_bits(units[j - panel.start]);
            }
        }
    }

    /// Whether products with them are in bf16.
    pub fn are_bf16(&self) -> bool {
        self.isa == Isa::Avx512Bf16
    }

    const fn none(isa: Isa) -> PackedColumns {
        PackedColumns { isa, n: 0, blocks: Vec::new() }
    }

    /// Takes on the shape `[k, n]`, in the memory that is there where it is enough; what is to be packed of it, piece by piece.
    fn pieces(&mut self, k: usize, n: usize) -> impl Iterator<Item = Piece<'_>> {
        let (isa, columns) = (self.isa, ColumnPanels::of(self.isa, n));
        self.n = n;
        self.blocks.resize_with(inner_blocks(isa, k).count(), Default::default);
        self.blocks.iter_mut().zip(inner_blocks(isa, k)).flat_map(move |(block, inner)| {
            let units = isa.units(inner.1);
            (block.0, block.1) = inner;
            let mut left = block.2.room(columns.width() * units);
            columns.chunks(PANELS_A_TASK).map(move |columns| {
                let (panels, rest) = std::mem::take(&mut left).split_at_mut(columns.width() * units);
                left = rest;
                Piece { isa, inner, columns, panels }
            })
        })
    }

    /// [`product`] for part `i` of `parts` of the panels, added to C or in its place: `c` is all of C, and the distance between its rows.
    ///
    /// # Safety
    /// As [`product`].
    pub unsafe fn product(
        &self,
        m: usize,
        (i, parts): (usize, usize),
        a: View,
        (c, row_stride): (Place, usize),
        add: bool,
    ) {
        let columns = ColumnPanels::of(self.isa, self.n).part(i, parts);
        let width = columns.width().min(self.n - columns.first());
        if width == 0 {
            return;
        }
        let k = self.blocks.last().map_or(0, |(k0, depth, _)| k0 + depth);
        let c = (c.wrapping_add(columns.first()), row_stride);
        let product = |c: Out, packed_a: &mut Panels| {
            for (k0, depth, panels) in &self.blocks {
                let b = panels.as_slice()[columns.first() * self.isa.units(*depth)..].as_ptr();
                let (a, c) = (View { data: a.at(0, *k0), ..a }, c.for_inner(*k0, k0 + depth == k));
                // SAFETY: by the caller's promise; the first column is C's, since the part has some.
                unsafe { against_panels(self.isa, (m, *depth), a, (columns, b), packed_a, c) };
            }
        };
        PACKED.with_borrow_mut(|[packed_a, _]| Out::with(c, (m, width, k), add, |c| product(c, packed_a)));
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
            true => View { data: Pointer::F32(data.as_ptr()), row_stride: cols, col_stride: 1 },
            false => View { data: Pointer::F32(data.as_ptr()), row_stride: 1, col_stride: rows },
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
        for isa in Isa::F32.into_iter().chain([Isa::Avx512Bf16]).filter(|isa| isa.is_here()) {
            let mut c = before.clone();
            // SAFETY: the instructions are here; the views are of a and b, and c is borrowed mutably.
            Out::with((Place::F32(c.as_mut_ptr()), n + 1), (m, n, k), add, |out| unsafe {
                product(isa, (m, n, k), va, vb, out)
            });
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

    /// Several blocks of rows, of columns packed together, of the inner dimension, and of what is copied at a time.
    #[test]
    fn large_products_multiply_alike() {
        for (a_by_rows, b_by_rows) in [(true, true), (true, false), (false, true), (false, false)] {
            multiplies_alike((270, 530, 1101), a_by_rows, b_by_rows, true);
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
            prop_assert!(Isa::here(Compute::F32) != Isa::Avx2 || !Isa::Avx512.is_here());
        }
    }
}

//! What goes by rows that a list names: a batch's tokens, rows of states for a head, and the sums that bring gradients back.

use super::arrays::bits;
use super::launch::{at, int, row_threads};
use super::{Array, Cuda, Part, View};
use crate::compute::Packing;
use crate::compute::backend::Heads;
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::lists::{AttentionLists, RowLists};
use crate::compute::cuda::runtime::{Address, Arg};
use std::marker::PhantomData;

/// A packed batch: its tokens and the lists that kernels follow, in one piece of memory.
#[derive(Debug)]
pub struct Batch {
    _lists: DeviceArray<u32>,
    count: usize,
    ids: Address,
    positions: Address,
    pub(super) segments: Address,
    pub(super) query_tiles: Address,
    pub(super) query_tile_count: usize,
    pub(super) key_tiles: Address,
    pub(super) key_tile_count: usize,
    /// The tokens by id: `lists.rs` `RowLists`.
    rows: Address,
    chunks: Address,
    chunk_count: usize,
    of_place: Address,
    to: Address,
    place_count: usize,
}

/// Ids and positions of tokens, `[count]` each.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    pub(super) ids: Address,
    pub(super) positions: Address,
    pub(super) count: usize,
    batch: PhantomData<&'a Batch>,
}

impl Tokens<'_> {
    /// u32 `[count]` each.
    pub(super) fn at(ids: Address, positions: Address, count: usize) -> Self {
        Tokens { ids, positions, count, batch: PhantomData }
    }
}

impl Batch {
    pub(super) fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: self.ids, positions: self.positions, count: self.count, batch: PhantomData }
    }
}

/// Rows as kernels have them.
fn places(rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|row| *row as u32).collect()
}

impl Cuda {
    pub(super) fn batch_of(&self, packing: &Packing, heads: Heads) -> Batch {
        let attention = AttentionLists::new(packing, heads.heads / heads.kv_heads);
        let by_id = RowLists::new(packing.ids());
        let (places, lists) = self.lists([
            packing.ids(),
            packing.positions(),
            &attention.segments,
            &attention.query_tiles,
            &attention.key_tiles,
            &by_id.rows,
            &by_id.chunks,
            &by_id.of_place,
            &by_id.to,
        ]);
        let [ids, positions, segments, query_tiles, key_tiles, rows, chunks, of_place, to] = places;
        Batch {
            _lists: lists,
            count: packing.rows(),
            ids,
            positions,
            segments,
            query_tiles,
            query_tile_count: attention.query_tiles.len() / 2,
            key_tiles,
            key_tile_count: attention.key_tiles.len() / 3,
            rows,
            chunks,
            chunk_count: by_id.chunks.len() - 1,
            of_place,
            to,
            place_count: by_id.to.len(),
        }
    }

    pub(super) fn embed_rows(&self, table: View<'_>, tokens: Tokens<'_>, out: &mut Array, d: usize) {
        if self.in_eights("embed", d) {
            let args = [table.arg(), at(tokens.ids), out.arg(), int(d)];
            self.launch("embed", [tokens.count, 1, 1], row_threads(d), 0, &args);
        }
    }

    /// `table[ids[t]] += x[t]`: x, table f32. A token's rows are added up in chunks, then the chunks.
    pub(super) fn add_rows_of_tokens(&self, x: &Array, batch: &Batch, table: Part<'_>, d: usize) {
        if !self.in_eights("sum_rows_partial", d) {
            return;
        }
        let partial = self.scratch(batch.chunk_count * d, Real::F32);
        let args = [x.arg(), at(batch.rows), at(batch.chunks), partial.arg(), int(d)];
        self.launch("sum_rows_partial", [batch.chunk_count, 1, 1], row_threads(d), 0, &args);
        let args = [partial.arg(), at(batch.of_place), at(batch.to), table.arg(), int(d)];
        self.launch("add_partial_rows", [batch.place_count, 1, 1], row_threads(d), 0, &args);
    }

    pub(super) fn gather(&self, state: &Array, rows: &[usize], d: usize, out: &mut Array) {
        self.resize_to(out, rows.len() * d, self.real);
        let ([list], _memory) = self.lists([&places(rows)]);
        self.gather_at(state.real(), state.address(), list, rows.len(), d, out.address());
    }

    /// Rows `[count]` of a state `[T, d]` in f32 or REAL to out REAL `[count, d]`.
    pub(super) fn gather_at(&self, real: Real, state: Address, rows: Address, count: usize, d: usize, out: Address) {
        let kernel = match real {
            Real::F32 => "gather_rows",
            Real::Bf16 => "gather_rows_real",
        };
        if self.in_eights(kernel, d) {
            self.launch(kernel, [count, 1, 1], row_threads(d), 0, &[at(state), at(rows), at(out), int(d)]);
        }
    }

    pub(super) fn scatter(&self, d_hidden: &Array, rows: &[usize], d: usize, d_state: &mut Array) {
        let by_row = RowLists::new(&places(rows));
        let ([rows, starts, to], _memory) = self.lists([&by_row.rows, &by_row.starts, &by_row.to]);
        let kernel = match d_hidden.real() {
            Real::F32 => "scatter_rows_add_f32",
            Real::Bf16 => "scatter_rows_add",
        };
        if self.in_eights(kernel, d) {
            let args = [d_hidden.arg(), at(rows), at(starts), at(to), d_state.arg(), int(d)];
            self.launch(kernel, [by_row.to.len(), 1, 1], row_threads(d), 0, &args);
        }
    }

    pub(super) fn values_of(&self, states: &Array, rows: &[usize], w: View<'_>, b: View<'_>) -> Vec<f32> {
        let d = w.len;
        if rows.is_empty() || !self.reads_factors("values", states, d) {
            return vec![f32::NAN; rows.len()];
        }
        let ([list], _memory) = self.lists([&places(rows)]);
        let out = self.scratch(rows.len(), Real::F32);
        let args = [states.arg(), at(list), w.arg(), b.arg(), out.arg(), int(d)];
        self.launch("values", [rows.len(), 1, 1], row_threads(d), 0, &args);
        self.numbers(&out)
    }

    pub(super) fn values_gradient(
        &self,
        states: &Array,
        rows: &[usize],
        w: View<'_>,
        d_values: &[f32],
        d_states: &mut Array,
        d_head: Part<'_>,
    ) {
        const THREADS: usize = 256;
        let d = w.len;
        if rows.is_empty() || !self.reads_factors("values_backward_weight", states, d) {
            return;
        }
        let (d_w, d_b) = d_head.split(d);
        let list = places(rows);
        let by_row = RowLists::new(&list);
        let (all, _memory) = self.lists([bits(d_values), &list, &by_row.rows, &by_row.starts, &by_row.to]);
        let [d_values, list, of_row, starts, to] = all.map(at);
        let args = [d_values, of_row, starts, to, w.arg(), d_states.arg(), int(d)];
        self.launch("values_backward", [by_row.to.len(), 1, 1], THREADS, 0, &args);
        let args = [states.arg(), list, d_values, d_w.arg(), d_b.arg(), int(rows.len()), int(d)];
        self.launch("values_backward_weight", [d / 8, 1, 1], THREADS, 0, &args);
    }

    /// Whether a state is what a kernel reads that takes REAL alone, in rows of d.
    fn reads_factors(&self, kernel: &str, state: &Array, d: usize) -> bool {
        if state.real() != self.real {
            let expected = self.real.pick("f32", "bf16, as the final norm leaves it");
            self.refuse(kernel, "a state in f32".to_string(), expected);
        }
        state.real() == self.real && self.in_eights(kernel, d)
    }
}

/// A pointer, or none.
pub(super) fn or_null(address: Option<Address>) -> Arg {
    address.map_or(Arg::Null, Arg::At)
}

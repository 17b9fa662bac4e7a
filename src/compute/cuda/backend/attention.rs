//! Attention over packed sequences, and what makes queries and keys ready for it.

use super::launch::{at, chunk_rows, int};
use super::rows::{Batch, Tokens};
use super::shared::Tiled;
use super::{Array, Cuda, Part, View};
use crate::compute::backend::{AttentionForward, Heads, QkNorms};
use crate::compute::cpu::rope::RopeTable;
use crate::compute::cuda::arena::Arena;
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{Address, Arg};
use std::sync::Arc;

/// Threads of a block (`attention.cuh`: THREADS).
const THREADS: usize = 128;

/// Heads that a block of head norms and rotations takes side by side (`rope.cu`: WARPS).
pub(super) const WARPS: usize = 8;

/// The table of cosines and sines on the host, and its copy on the device.
#[derive(Debug)]
pub struct Rope {
    table: RopeTable,
    /// Cosines, sines, `[positions, head_dim / 2]` each.
    device: Option<[DeviceArray<f32>; 2]>,
}

impl Rope {
    pub(super) fn new(inv_freq: Vec<f32>) -> Rope {
        Rope { table: RopeTable::new(inv_freq), device: None }
    }

    pub(super) fn reserve(&mut self, arena: &Arc<Arena>, positions: usize) {
        self.table.reserve(positions);
        let [cos, sin] = self.table.values();
        if self.device.as_ref().is_none_or(|[have, _]| have.len() < cos.len()) {
            self.device = None;
            self.device = Some([cos, sin].map(|x| DeviceArray::from_host(arena, x)));
        }
    }

    /// Leaves the table on the host alone, until more is reserved.
    pub(super) fn release(&mut self) {
        self.device = None;
    }

    /// Cosines and sines; nowhere before [`Rope::reserve`].
    pub(super) fn args(&self) -> [Arg; 2] {
        self.device.as_ref().map_or([Arg::At(Address::default()); 2], |device| device.each_ref().map(DeviceArray::arg))
    }
}

/// Norm weights as arguments.
pub(super) fn norm_args(norms: Option<&QkNorms<View<'_>>>) -> [Arg; 2] {
    norms.map_or([Arg::Null; 2], |norms| [norms.q.arg(), norms.k.arg()])
}

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn rotate(
        &self,
        heads: Heads,
        norms: Option<QkNorms<View<'_>>>,
        eps: f32,
        rope: &Rope,
        tokens: Tokens<'_>,
        qkv: &Array,
        qk: &mut Array,
    ) {
        if !self.takes_head_dim("qk_rope", heads.head_dim) {
            return;
        }
        let ([q_norm, k_norm], [cos, sin]) = (norm_args(norms.as_ref()), rope.args());
        let Heads { heads, kv_heads, head_dim } = heads;
        let args = [
            qkv.arg(),
            qk.arg(),
            q_norm,
            k_norm,
            Arg::Float(eps),
            cos,
            sin,
            at(tokens.positions),
            int(tokens.count),
            int(heads),
            int(kv_heads),
            int(head_dim),
        ];
        let grid = [(tokens.count * (heads + kv_heads)).div_ceil(WARPS), 1, 1];
        self.launch("qk_rope", grid, 32 * WARPS, 0, &args);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn rotate_back(
        &self,
        heads: Heads,
        norms: Option<QkNorms<View<'_>>>,
        eps: f32,
        rope: &Rope,
        tokens: Tokens<'_>,
        qkv: &Array,
        d_qkv: &mut Array,
        d_norms: Option<Part<'_>>,
    ) {
        let (t, hd) = (tokens.count, heads.head_dim);
        if !self.takes_head_dim("qk_rope_backward", hd) {
            return;
        }
        let d_norms = d_norms.filter(|_| norms.is_some());
        // Without sums, a few tokens a block.
        let rows = if d_norms.is_some() { chunk_rows(t) } else { 4 };
        let chunks = t.div_ceil(rows);
        let partial = d_norms.as_ref().map(|_| self.scratch(chunks * 2 * hd, Real::F32));
        let ([q_norm, k_norm], [cos, sin]) = (norm_args(norms.as_ref()), rope.args());
        let args = [
            qkv.arg(),
            d_qkv.arg(),
            q_norm,
            k_norm,
            Arg::Float(eps),
            cos,
            sin,
            at(tokens.positions),
            partial.as_ref().map_or(Arg::Null, Array::arg),
            int(t),
            int(heads.heads),
            int(heads.kv_heads),
            int(hd),
            int(rows),
        ];
        self.launch("qk_rope_backward", [chunks, 1, 1], 32 * WARPS, WARPS * 2 * hd * 4, &args);
        if let Some((d, partial)) = d_norms.zip(partial) {
            self.add_chunks(partial.arg(), d.arg(), chunks, 2 * hd);
        }
    }

    pub(super) fn attend(
        &self,
        heads: Heads,
        batch: &Batch,
        qk: &Array,
        qkv: &Array,
        out: &mut Array,
        lse: &mut Array,
    ) {
        let hd = heads.head_dim;
        let Some(shared) = self.tiles(Tiled::Forward, hd) else { return };
        let args = [
            qk.arg(),
            qkv.arg(),
            at(batch.segments),
            at(batch.query_tiles),
            out.arg(),
            lse.arg(),
            int(heads.heads),
            int(heads.kv_heads),
        ];
        let grid = [batch.query_tile_count, heads.kv_heads, 1];
        self.launch(&format!("attention_{hd}"), grid, THREADS, shared, &args);
    }

    pub(super) fn attend_backward(
        &self,
        heads: Heads,
        batch: &Batch,
        forward: AttentionForward<'_, Array>,
        d_out: &Array,
        d_qkv: &mut Array,
    ) {
        let hd = heads.head_dim;
        let tiles = [Tiled::BackwardQueries, Tiled::BackwardKeys].map(|kernel| self.tiles(kernel, hd));
        let [Some(of_queries), Some(of_keys)] = tiles else { return };
        let AttentionForward { qk, qkv, out, lse } = forward;
        let rows = lse.len();
        let pull = self.scratch(rows, Real::F32);
        let args = [out.arg(), d_out.arg(), pull.arg(), int(rows), int(hd)];
        self.launch("attention_pull", [rows.div_ceil(8), 1, 1], 256, 0, &args);
        for (kernel, tiles, count, shared) in [
            (Tiled::BackwardQueries, batch.query_tiles, batch.query_tile_count, of_queries),
            (Tiled::BackwardKeys, batch.key_tiles, batch.key_tile_count, of_keys),
        ] {
            let args = [
                qk.arg(),
                qkv.arg(),
                d_out.arg(),
                lse.arg(),
                pull.arg(),
                at(batch.segments),
                at(tiles),
                d_qkv.arg(),
                int(heads.heads),
                int(heads.kv_heads),
            ];
            self.launch(&format!("{kernel}_{hd}"), [count, heads.kv_heads, 1], THREADS, shared, &args);
        }
    }

    /// Whether there are kernels for a head dimension; else the device's work has failed.
    pub(super) fn takes_head_dim(&self, what: &str, head_dim: usize) -> bool {
        let takes = head_dim.is_multiple_of(16) && (16..=256).contains(&head_dim);
        if !takes {
            self.refuse(what, format!("a head_dim of {head_dim}"), "a multiple of 16, up to 256");
        }
        takes
    }
}

//! The operations of an analysis: states side by side, and what they say.

use super::launch::{at, int, long, row_threads};
use super::{Array, Cuda, View};
use crate::compute::backend::{
    BranchComparison, Branches, Comparison, Divergences, FinalNorm, Inspect, Placed, Unembedding,
};
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{Address, Arg};
use std::ops::Range;

/// Rows of a block of tokens' states, at most: more make no product faster.
const ROWS: usize = 4096;

/// Columns that one block of `compare_fold` adds up, and what a row adds up to (divergence.cu: SEGMENT, Sums).
const SEGMENT: usize = 1024;
const SUMS: usize = 64;

/// Threads that add up logits, four columns each.
const ADD_THREADS: usize = 256;

/// Threads of the products of a token's states: eight warps take turns.
const GRAM_THREADS: usize = 256;

impl Inspect for Cuda {
    fn place_rows(&self, state: &Array, rows: &[usize], out: &mut Array, to: Placed) {
        let Placed { first, stride, d } = to;
        if !self.in_eights("place_rows", d) || !self.in_eights("place_rows", stride) {
            return;
        }
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let ([list], _memory) = self.lists([&rows]);
        let (grid, threads) = ([rows.len(), 1, 1], row_threads(d));
        let (from, list, to) = (state.arg(), at(list), at(out.at(first)));
        match (state.real(), out.real()) {
            (Real::F32, Real::F32) => {
                self.launch("hold_rows", grid, threads, 0, &[from, list, to, long(stride), int(d)])
            }
            (Real::Bf16, Real::F32) => {
                self.launch("hold_rows_real", grid, threads, 0, &[from, list, to, long(stride), int(d)]);
            }
            (real, Real::Bf16) => {
                let kernel = if real == Real::F32 { "read_states" } else { "read_states_real" };
                let args = [from, list, Arg::Null, Arg::Float(0.0), to, long(stride), int(d)];
                self.launch(kernel, grid, threads, 0, &args);
            }
        }
    }

    fn row_cosines(&self, a: &Array, first: usize, b: &Array, d: usize) -> Vec<f64> {
        let n = b.len() / d.max(1);
        if n == 0 || !self.in_eights("row_cosines", d) {
            return Vec::new();
        }
        let out = DeviceArray::<f64>::new(&self.arena, n);
        let args = [at(a.at(first)), b.arg(), Arg::Null, out.arg(), int(d)];
        self.launch("row_cosines", [n, 1, 1], row_threads(d), 0, &args);
        numbers(&out)
    }

    fn norm_rows(&self, x: &mut Array, w: View<'_>, eps: f32, d: usize) {
        if !self.in_eights("norm_rows", d) {
            return;
        }
        let kernel = if x.real() == Real::F32 { "read_states" } else { "read_states_real" };
        let args = [x.arg(), Arg::Null, w.arg(), Arg::Float(eps), x.arg(), long(d), int(d)];
        self.launch(kernel, [x.len() / d, 1, 1], row_threads(d), 0, &args);
    }

    fn gram(&self, states: &Array, (places, d): (usize, usize), layers: usize, tokens: usize) -> Vec<f64> {
        let width = layers * (layers + 1) / 2;
        if tokens * width == 0 || !self.in_eights("gram", d) {
            return Vec::new();
        }
        let out = DeviceArray::<f64>::new(&self.arena, tokens * width);
        let args = [states.arg(), int(places), int(d), int(layers), out.arg()];
        self.launch("gram", [tokens, 1, 1], GRAM_THREADS, 0, &args);
        numbers(&out)
    }

    fn compare(
        &self,
        head: Unembedding<View<'_>>,
        norm: FinalNorm<View<'_>>,
        states: &mut Array,
        places: usize,
        references: &[usize],
        targets: &[u32],
        room: &mut Array,
    ) -> Comparison {
        let (tokens, d) = (targets.len(), head.hidden_size);
        let mut out =
            Comparison { divergences: vec![Divergences::default(); references.len()], ..Comparison::default() };
        if tokens == 0 || !self.in_eights("compare", d) {
            return out;
        }
        let walk = self.walk(&head, tokens, places, room);
        let ([targets], _memory) = self.lists([targets]);
        let read = self.scratch(walk.tokens.min(tokens) * places * d, self.real());
        for block in walk.blocks() {
            self.read_tokens(norm, states, &block, (places, d), &read);
            let of = Side { tokens: block.len(), places, references, inv_temperature: 1.0 / head.temperature };
            let (sums, targets) = (self.side_sums(of), at(targets.offset(4 * block.start)));
            for tile in walk.tiles() {
                self.tile_of_logits(&head, &read, &(0..of.rows()), &tile, room.address(), walk.columns);
                let logits = Logits { from: room.address(), stride: walk.columns };
                self.fold_side_by_side(of, &tile, targets, logits, &sums);
            }
            self.finish_side_by_side(of, &sums, &mut out);
        }
        out
    }

    fn compare_branches(
        &self,
        head: Unembedding<View<'_>>,
        branches: &Array,
        shape: Branches,
        references: &[usize],
        targets: &[u32],
        room: &mut Array,
    ) -> BranchComparison {
        let (tokens, places) = (targets.len(), shape.places());
        let mut out = BranchComparison::default();
        out.streams.divergences.resize_with(references.len(), Divergences::default);
        if tokens == 0 || !self.in_eights("compare_branches", head.hidden_size) {
            return out;
        }
        let walk = self.walk(&head, tokens, places, room);
        let ([targets], _memory) = self.lists([targets]);
        let mut of_branches = Comparison::default();
        for block in walk.blocks() {
            let inv_temperature = 1.0 / head.temperature;
            let branch = Side { tokens: block.len(), places, references: &[], inv_temperature };
            let stream = Side { places: shape.layers + 1, references, ..branch };
            let (branch_sums, stream_sums) = (self.side_sums(branch), self.side_sums(stream));
            let (rows, targets) = (block.start * places..block.end * places, at(targets.offset(4 * block.start)));
            for tile in walk.tiles() {
                self.tile_of_logits(&head, branches, &rows, &tile, room.address(), walk.columns);
                let logits = Logits { from: room.address(), stride: walk.columns };
                self.fold_side_by_side(branch, &tile, Arg::Null, logits, &branch_sums);
                let grid = [block.len(), tile.len().div_ceil(4 * ADD_THREADS), 1];
                let args = [room.arg(), long(walk.columns), int(tile.len()), int(shape.layers)];
                self.launch("add_up_logits", grid, ADD_THREADS, 0, &args);
                // Every second row is a stream's now, from the first layer's FFN on.
                let logits = Logits { from: room.at(walk.columns), stride: 2 * walk.columns };
                self.fold_side_by_side(stream, &tile, targets, logits, &stream_sums);
            }
            self.finish_side_by_side(branch, &branch_sums, &mut of_branches);
            self.finish_side_by_side(stream, &stream_sums, &mut out.streams);
        }
        out.entropy = of_branches.entropy;
        out
    }

    fn add_branches(
        &self,
        embedding: &Array,
        branches: &Array,
        of: Branches,
        d: usize,
        tokens: Range<usize>,
        states: &mut Array,
    ) {
        self.resize_to(states, tokens.len() * (of.layers + 1) * d, Real::F32);
        if tokens.is_empty() || !self.in_eights("add_branches", d) {
            return;
        }
        let (embedding, branches) = (embedding.at(tokens.start * d), branches.at(tokens.start * of.places() * d));
        let args = [at(embedding), at(branches), int(of.layers), int(d), states.arg()];
        self.launch("add_branches", [tokens.len(), 1, 1], row_threads(d), 0, &args);
    }

    fn logits(
        &self,
        head: Unembedding<View<'_>>,
        hidden: &Array,
        first: usize,
        n: usize,
        room: &mut Array,
    ) -> Vec<f32> {
        let stride = head.vocab.next_multiple_of(8);
        self.resize_to(room, n * stride, Real::F32);
        self.tile_of_logits(&head, hidden, &(first..first + n), &(0..head.vocab), room.address(), stride);
        let mut rows = self.numbers(room);
        let inv_temperature = 1.0 / head.temperature;
        for row in 0..n {
            rows.copy_within(row * stride..row * stride + head.vocab, row * head.vocab);
        }
        rows.truncate(n * head.vocab);
        rows.iter_mut().for_each(|z| *z *= inv_temperature);
        rows
    }
}

/// How tokens meet the vocabulary: blocks of their states, each with every tile of it.
struct Walk {
    all: usize,
    vocab: usize,
    /// Tokens of a block, at most.
    tokens: usize,
    /// Columns of a tile, at most: a row of logits is as long.
    columns: usize,
}

impl Walk {
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.all).step_by(self.tokens).map(|from| from..(from + self.tokens).min(self.all))
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.vocab).step_by(self.columns).map(|first| first..(first + self.columns).min(self.vocab))
    }
}

/// A block of tokens' states, side by side, and their logits.
#[derive(Clone, Copy)]
struct Side<'a> {
    tokens: usize,
    places: usize,
    references: &'a [usize],
    inv_temperature: f32,
}

impl Side<'_> {
    fn rows(self) -> usize {
        self.tokens * self.places
    }

    /// How many references there are, and where they are, as kernels are told.
    fn references(self) -> [Arg; 3] {
        let place = |k: usize| int(self.references.get(k).copied().unwrap_or(0));
        [int(self.references.len()), place(0), place(1)]
    }
}

/// Rows of logits on the device, `stride` elements apart.
#[derive(Clone, Copy)]
struct Logits {
    from: Address,
    stride: usize,
}

impl Cuda {
    /// How so many tokens, of so many states each, meet the vocabulary; `room` becomes as large as a tile's logits.
    fn walk(&self, head: &Unembedding<View<'_>>, all: usize, places: usize, room: &mut Array) -> Walk {
        // Fours: a block's targets begin where 16 bytes do.
        let tokens = (ROWS / places / 4 * 4).max(4);
        let rows = tokens.min(all) * places;
        let columns = self.tile_columns(rows, SEGMENT, head.vocab);
        self.resize_to(room, rows * columns, Real::F32);
        Walk { all, vocab: head.vocab, tokens, columns }
    }

    /// Room for what the rows of a block add up to.
    fn side_sums(&self, of: Side<'_>) -> DeviceArray<u64> {
        DeviceArray::new(&self.arena, of.rows() * SUMS / 8)
    }

    /// The states of a block of tokens as the unembedding reads them, `[tokens * places, d]` in REAL: through the final norm, but for
    /// those behind the ones that it reads.
    fn read_tokens(
        &self,
        norm: FinalNorm<View<'_>>,
        states: &Array,
        block: &Range<usize>,
        (places, d): (usize, usize),
        read: &Array,
    ) {
        let (states, threads) = (at(states.at(block.start * places * d)), row_threads(d));
        let (w, eps) = (norm.weight.arg(), Arg::Float(norm.eps));
        let args = [states, Arg::Null, w, eps, read.arg(), long(d), int(d)];
        self.launch("read_states", [block.len() * places, 1, 1], threads, 0, &args);
        for place in norm.states..places {
            let rows: Vec<u32> = (0..block.len()).map(|token| (token * places + place) as u32).collect();
            let ([list], _memory) = self.lists([&rows]);
            let to = at(read.at(place * d));
            let args = [states, at(list), Arg::Null, Arg::Float(0.0), to, long(places * d), int(d)];
            self.launch("read_states", [block.len(), 1, 1], threads, 0, &args);
        }
    }

    /// Adds a tile's logits to the sums of their states; the first tile begins them.
    fn fold_side_by_side(
        &self,
        of: Side<'_>,
        tile: &Range<usize>,
        targets: Arg,
        logits: Logits,
        sums: &DeviceArray<u64>,
    ) {
        let (Side { tokens, places, inv_temperature, .. }, segments) = (of, tile.len().div_ceil(SEGMENT));
        let ([count, a, b], first) = (of.references(), int(tile.start));
        let parts = DeviceArray::<u64>::new(&self.arena, of.rows() * segments * SUMS / 8);
        let args = [
            at(logits.from),
            long(logits.stride),
            int(tile.len()),
            Arg::Float(inv_temperature),
            int(places),
            count,
            a,
            b,
            targets,
            first,
            parts.arg(),
        ];
        self.launch("compare_fold", [tokens, segments, 1], 32 * places.min(8), 0, &args);
        let begin = int(usize::from(tile.start == 0));
        let args = [parts.arg(), int(segments), int(places), count, a, b, first, sums.arg(), begin];
        self.launch("compare_merge", [tokens, 1, 1], 32 * places.min(16), places * SUMS, &args);
    }

    /// What a block's sums say of every state, behind what `out` has of the blocks before.
    fn finish_side_by_side(&self, of: Side<'_>, sums: &DeviceArray<u64>, out: &mut Comparison) {
        let (rows, count) = (of.rows(), of.references.len());
        // Entropies, log-probs, tops, then both divergences of every reference: each begins where 16 bytes do.
        let apart = rows.next_multiple_of(4);
        let results = DeviceArray::<u32>::new(&self.arena, 3 * apart);
        let result = |which: usize| at(results.at(which * apart));
        // The kernel has the references' results one behind the other, rows apart.
        let divergences = DeviceArray::<f32>::new(&self.arena, 2 * count * rows + 8);
        let from = (count * rows).next_multiple_of(4);
        let [references, a, b] = of.references();
        let args = [
            sums.arg(),
            int(rows),
            int(of.places),
            references,
            a,
            b,
            result(0),
            result(1),
            result(2),
            divergences.arg(),
            at(divergences.at(from.min(divergences.len()))),
        ];
        self.launch("compare_finish", [rows.div_ceil(128), 1, 1], 128, 0, &args);
        let results = numbers(&results);
        let floats = |which: usize| results[which * apart..][..rows].iter().map(|bits| f32::from_bits(*bits));
        out.entropy.extend(floats(0));
        out.log_probs.extend(floats(1));
        out.top.extend(&results[2 * apart..][..rows]);
        let values = numbers(&divergences);
        for (k, of) in out.divergences.iter_mut().enumerate() {
            of.to.extend(&values[k * rows..][..rows]);
            of.from.extend(&values[from + k * rows..][..rows]);
        }
    }
}

/// An array's elements; zeros once work has failed, as [`Backend::status`](crate::compute::Backend::status) tells.
fn numbers<T: bytemuck::Pod>(array: &DeviceArray<T>) -> Vec<T> {
    array.to_host().unwrap_or_else(|_| vec![T::zeroed(); array.len()])
}

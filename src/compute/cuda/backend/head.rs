//! The unembedding as a distribution. For statistics alone a block of rows meets the vocabulary in tiles that stay in the device's
//! cache; for a gradient it meets all of it in one product, whose logits live until the gradient is taken.

use super::arrays::bits;
use super::launch::{at, int, long};
use super::rows::or_null;
use super::{Array, Cuda, Part, View};
use crate::compute::backend::{HeadStats, RowGradients, Unembedding};
use crate::compute::cpu::gemm::Write;
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{Address, Arg, Matrix, Product};
use std::ops::Range;

/// Logits of a block in f32, at most; their gradient in REAL lies beside them.
const LOGIT_BYTES: usize = 1 << 30;

/// A head, and how the rows that it reads are cut.
#[derive(Clone, Copy)]
struct Shape {
    vocab: usize,
    d: usize,
    inv_temperature: f32,
    /// Rows of a block, at most.
    most: usize,
    /// Of logits: rows begin at multiples of 32 bytes.
    stride: usize,
}

impl Shape {
    fn of(head: &Unembedding<View<'_>>, rows: usize, most_rows: usize) -> Shape {
        let stride = head.vocab.next_multiple_of(8);
        let most = rows_of_a_block(stride, rows, most_rows);
        let inv_temperature = 1.0 / head.temperature;
        Shape { vocab: head.vocab, d: head.hidden_size, inv_temperature, most, stride }
    }

    fn blocks(self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        (0..rows).step_by(self.most.max(1)).map(move |from| from..(from + self.most).min(rows))
    }

    /// A thread for sixteen of so many logits: with fewer each, what threads tell each other takes longer than what they do.
    fn threads(width: usize) -> usize {
        width.div_ceil(16).next_multiple_of(32).min(1024)
    }
}

/// Into what so many rows are cut: as few blocks as [`LOGIT_BYTES`] and the most rows allow, all nearly as long, as a short one would
/// leave most of a GPU idle. Whole tiles of a product.
fn rows_of_a_block(stride: usize, rows: usize, most_rows: usize) -> usize {
    let most = (LOGIT_BYTES / (4 * stride).max(1) / 64 * 64).clamp(64, most_rows);
    let blocks = rows.div_ceil(most).max(1);
    rows.div_ceil(blocks).next_multiple_of(64)
}

/// Sums of a block's rows on the way to their statistics (head.cu).
struct Sums {
    m: Array,
    s: DeviceArray<f64>,
    a: DeviceArray<f64>,
    target: Array,
}

/// Columns multiples of which the width of a tile is: whole tiles of a product, and rows that begin at multiples of 32 bytes.
const TILE_UNIT: usize = 128;

/// Statistics of rows on the device: lse, entropies, log-probs, `stride` apart.
struct Stats {
    values: Array,
    stride: usize,
}

impl Stats {
    /// Of `rows` rows; four are 16 bytes.
    fn new(cuda: &Cuda, rows: usize) -> Stats {
        let stride = rows.next_multiple_of(4);
        Stats { values: cuda.scratch(3 * stride, Real::F32), stride }
    }

    fn at(&self, which: usize, row: usize) -> Arg {
        Arg::At(self.values.at(which * self.stride + row))
    }

    fn to_host(&self, cuda: &Cuda, rows: usize, targets: bool) -> HeadStats {
        let mut values = cuda.numbers(&self.values);
        let mut log_probs = values.split_off(2 * self.stride);
        let mut entropy = values.split_off(self.stride);
        values.truncate(rows);
        entropy.truncate(rows);
        log_probs.truncate(if targets { rows } else { 0 });
        HeadStats { lse: values, entropy, log_probs }
    }
}

impl Cuda {
    /// One product for the logits f32 of a block of rows and some of the vocabulary, rows `stride` apart.
    pub(super) fn tile_of_logits(
        &self,
        head: &Unembedding<View<'_>>,
        hidden: &Array,
        block: &Range<usize>,
        tile: &Range<usize>,
        to: Address,
        stride: usize,
    ) {
        let d = head.hidden_size;
        let hidden = Matrix { at: hidden.at(block.start * d), ..hidden.matrix(d) };
        let weight = self.weight(&head.weight, d);
        let weight = Matrix { at: weight.at.offset(tile.start * d * weight.real.bytes()), ..weight };
        let (logits, sizes) = (Matrix::new(to, Real::F32, stride), [block.len(), d, tile.len()]);
        self.runtime().product(&Product::linear(hidden, weight, logits, sizes, Write::Replace));
    }

    fn sums(&self, n: usize) -> Sums {
        let [s, a] = [(); 2].map(|()| DeviceArray::<f64>::new(&self.arena, n));
        let [m, target] = [(); 2].map(|()| self.scratch(n, Real::F32));
        Sums { m, s, a, target }
    }

    /// Adds a tile's logits to the sums of their n rows; the first tile begins them.
    #[allow(clippy::too_many_arguments)]
    fn fold(
        &self,
        n: usize,
        inv_temperature: f32,
        logits: Address,
        stride: usize,
        tile: &Range<usize>,
        targets: Option<Address>,
        sums: &Sums,
    ) {
        let args = [
            at(logits),
            long(stride),
            int(tile.len()),
            Arg::Float(inv_temperature),
            or_null(targets),
            int(tile.start),
            sums.m.arg(),
            sums.s.arg(),
            sums.a.arg(),
            sums.target.arg(),
            int(usize::from(tile.start == 0)),
        ];
        self.launch("head_fold", [n, 1, 1], Shape::threads(tile.len()), 0, &args);
    }

    /// What n rows' sums say, to the rows from `row` on.
    fn finish(&self, n: usize, sums: &Sums, targets: bool, stats: &Stats, row: usize) {
        let log_probs = if targets { stats.at(2, row) } else { Arg::Null };
        let Sums { m, s, a, target } = sums;
        let args = [m.arg(), s.arg(), a.arg(), target.arg(), stats.at(0, row), stats.at(1, row), log_probs, int(n)];
        self.launch("head_finish", [n.div_ceil(128), 1, 1], 128, 0, &args);
    }

    pub(super) fn head_stats(
        &self,
        head: Unembedding<View<'_>>,
        hidden: &Array,
        targets: Option<&[u32]>,
        room: &mut Array,
    ) -> HeadStats {
        let (vocab, rows, inv_temperature) = (head.vocab, hidden.len() / head.hidden_size, 1.0 / head.temperature);
        if rows == 0 {
            return HeadStats::default();
        }
        let most = rows.min(self.head_rows);
        let columns = self.tile_columns(most, TILE_UNIT, vocab);
        self.resize_to(room, most * columns, Real::F32);
        let stats = Stats::new(self, rows);
        let ([list], _memory) = self.lists([targets.unwrap_or_default()]);
        for from in (0..rows).step_by(most) {
            let block = from..(from + most).min(rows);
            let (sums, of_block) = (self.sums(block.len()), targets.map(|_| list.offset(4 * from)));
            for first in (0..vocab).step_by(columns) {
                let tile = first..(first + columns).min(vocab);
                self.tile_of_logits(&head, hidden, &block, &tile, room.address(), columns);
                self.fold(block.len(), inv_temperature, room.address(), columns, &tile, of_block, &sums);
            }
            self.finish(block.len(), &sums, targets.is_some(), &stats, from);
        }
        stats.to_host(self, rows, targets.is_some())
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn head_gradient<E>(
        &self,
        head: Unembedding<View<'_>>,
        hidden: &Array,
        targets: &[u32],
        d_hidden: &mut Array,
        d_unembed: Option<Part<'_>>,
        room: &mut Array,
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let rows = targets.len();
        let shape = Shape::of(&head, rows, self.head_rows);
        let mut all = HeadStats::with_capacity(rows);
        // Logits, and behind them their gradient in REAL.
        let elements = shape.most.min(rows) * shape.stride;
        self.resize_to(room, elements + elements * self.real.bytes() / 4, Real::F32);
        let (logits, d_logits) = (room.address(), room.at(elements));
        for block in shape.blocks(rows) {
            let n = block.len();
            let ([of_block], _memory) = self.lists([&targets[block.clone()]]);
            let (whole, sums, stats) = (0..shape.vocab, self.sums(n), Stats::new(self, n));
            self.tile_of_logits(&head, hidden, &block, &whole, logits, shape.stride);
            self.fold(n, shape.inv_temperature, logits, shape.stride, &whole, Some(of_block), &sums);
            self.finish(n, &sums, true, &stats, 0);
            let on_host = stats.to_host(self, n, true);
            let gradients = loss(block.clone(), &on_host)?;
            all.append(on_host);

            let alive: Vec<u32> = (0..n as u32).filter(|row| gradients.of(*row as usize) != (0.0, 0.0)).collect();
            let to = d_hidden.at(block.start * shape.d);
            if alive.is_empty() {
                self.runtime().zero(to, n * shape.d * d_hidden.real().bytes());
                continue;
            }
            // Where every row's gradient is found; what has none finds the row behind all that have.
            let mut found = vec![alive.len() as u32; n];
            for (place, row) in (0..).zip(&alive) {
                found[*row as usize] = place;
            }
            let entropies = &gradients.d_entropies;
            let lists = [&alive[..], &found, bits(&gradients.d_log_probs), bits(entropies)];
            let ([alive_at, found, d_log_probs, d_entropies], _memory) = self.lists(lists);
            let args = [
                at(logits),
                long(shape.stride),
                int(shape.vocab),
                Arg::Float(shape.inv_temperature),
                at(alive_at),
                at(of_block),
                int(0),
                stats.at(0, 0),
                stats.at(1, 0),
                at(d_log_probs),
                or_null((!entropies.is_empty()).then_some(d_entropies)),
                at(d_logits),
                long(shape.stride),
            ];
            self.launch("head_d_logits", [alive.len(), 1, 1], Shape::threads(shape.vocab), 0, &args);

            let own = Matrix { at: hidden.at(block.start * shape.d), ..hidden.matrix(shape.d) };
            let (live, whole) = (alive.len(), alive.len() == n);
            let dz = Matrix::new(d_logits, self.real, shape.stride);
            let sizes = [live, shape.d, shape.vocab];
            if let Some(d_unembed) = &d_unembed {
                let gathered = (!whole).then(|| {
                    let gathered = self.scratch(live * shape.d, self.real);
                    self.gather_at(own.real, own.at, alive_at, live, shape.d, gathered.address());
                    gathered
                });
                let x = gathered.as_ref().map_or(own, |gathered| gathered.matrix(shape.d));
                let dw = d_unembed.matrix(shape.d);
                self.runtime().product(&Product::linear_backward_weight(dz, x, dw, sizes, Write::Add));
            }
            let weight = self.weight(&head.weight, shape.d);
            let backward = |dx: Matrix| {
                self.runtime().product(&Product::linear_backward_input(dz, weight, dx, sizes, Write::Replace));
            };
            if whole {
                backward(Matrix::new(to, self.real, shape.d));
                continue;
            }
            let mut compact = self.scratch((live + 1) * shape.d, self.real);
            backward(compact.matrix(shape.d));
            self.zero_row(&mut compact, live, shape.d);
            self.gather_at(self.real, compact.address(), found, n, shape.d, to);
        }
        Ok(all)
    }

    fn zero_row(&self, array: &mut Array, row: usize, d: usize) {
        self.runtime().zero(array.at(row * d), d * array.real().bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::HEAD_ROWS;
    use super::*;

    #[test]
    fn targets_are_cut_evenly() {
        let rows = |vocab, rows| rows_of_a_block(vocab, rows, HEAD_ROWS);
        // Of 1,728 rows at most: four blocks and one of 1,536, in place of one of 1,280.
        assert_eq!(rows(151_936, 8192), 1664);
        assert_eq!((rows(151_936, 1728), rows(151_936, 1729)), (1728, 896));
        assert_eq!((rows(1000, 4096), rows(1000, 4097)), (4096, 2112));
        assert_eq!((rows(1000, 1), rows(1000, 0)), (64, 0));
    }
}

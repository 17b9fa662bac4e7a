//! The unembedding as a distribution: a block of rows meets the whole vocabulary in one product, whose logits live until the block's
//! gradient is taken.

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
    fn of(head: &Unembedding<View<'_>>, most_rows: usize) -> Shape {
        let stride = head.vocab.next_multiple_of(8);
        // Whole tiles of a product, and lists of rows that begin at multiples of 16 bytes.
        let most = (LOGIT_BYTES / (4 * stride).max(1) / 64 * 64).clamp(64, most_rows);
        let inv_temperature = 1.0 / head.temperature;
        Shape { vocab: head.vocab, d: head.hidden_size, inv_temperature, most, stride }
    }

    fn blocks(self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        (0..rows).step_by(self.most).map(move |from| from..(from + self.most).min(rows))
    }

    /// A thread for four logits.
    fn threads(self) -> usize {
        self.vocab.div_ceil(4).next_multiple_of(32).min(1024)
    }
}

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
    /// One product for all logits f32 `[n, stride]` of a block of rows, from `first` on.
    fn logits(&self, head: &Unembedding<View<'_>>, shape: Shape, hidden: &Array, block: &Range<usize>, to: Address) {
        let hidden = Matrix { at: hidden.at(block.start * shape.d), ..hidden.matrix(shape.d) };
        let logits = Matrix::new(to, Real::F32, shape.stride);
        let (weight, sizes) = (self.weight(&head.weight, shape.d), [block.len(), shape.d, shape.vocab]);
        self.runtime().product(&Product::linear(hidden, weight, logits, sizes, Write::Replace));
    }

    /// Statistics of a block's logits, to the rows from `row` on.
    fn fold(&self, shape: Shape, n: usize, logits: Address, targets: Option<Address>, stats: &Stats, row: usize) {
        let [s, a] = [(); 2].map(|()| DeviceArray::<f64>::new(&self.arena, n));
        let [m, target] = [(); 2].map(|()| self.scratch(n, Real::F32));
        let args = [
            at(logits),
            long(shape.stride),
            int(shape.vocab),
            Arg::Float(shape.inv_temperature),
            or_null(targets),
            int(0),
            m.arg(),
            s.arg(),
            a.arg(),
            target.arg(),
            int(1),
        ];
        self.launch("head_fold", [n, 1, 1], shape.threads(), 0, &args);
        let log_probs = if targets.is_some() { stats.at(2, row) } else { Arg::Null };
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
        let shape = Shape::of(&head, self.head_rows);
        let rows = hidden.len() / shape.d;
        if rows == 0 {
            return HeadStats::default();
        }
        self.resize_to(room, shape.most.min(rows) * shape.stride, Real::F32);
        let stats = Stats::new(self, rows);
        let ([list], _memory) = self.lists([targets.unwrap_or_default()]);
        for block in shape.blocks(rows) {
            self.logits(&head, shape, hidden, &block, room.address());
            let targets = targets.map(|_| list.offset(4 * block.start));
            self.fold(shape, block.len(), room.address(), targets, &stats, block.start);
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
        let (shape, rows) = (Shape::of(&head, self.head_rows), targets.len());
        let mut all = HeadStats::with_capacity(rows);
        // Logits, and behind them their gradient in REAL.
        let elements = shape.most.min(rows) * shape.stride;
        self.resize_to(room, elements + elements * self.real.bytes() / 4, Real::F32);
        let (logits, d_logits) = (room.address(), room.at(elements));
        for block in shape.blocks(rows) {
            let n = block.len();
            let ([of_block], _memory) = self.lists([&targets[block.clone()]]);
            self.logits(&head, shape, hidden, &block, logits);
            let stats = Stats::new(self, n);
            self.fold(shape, n, logits, Some(of_block), &stats, 0);
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
            self.launch("head_d_logits", [alive.len(), 1, 1], shape.threads(), 0, &args);

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

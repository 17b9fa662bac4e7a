//! What sampling asks of a device beside a decoder's operations: keys and values in pages, one new token a sequence against them, and
//! tokens drawn from logits.
//!
//! What the steps of a block are told is made on the host for all of them ([`Plan`]) and uploaded once. Each step then works on fixed
//! places ([`DecodeRoom`]), so that it can be captured: a copy brings what it is told, a copy keeps what it drew, and the tokens that
//! it drew are where the next step reads its ids.

use super::attention::{WARPS, norm_args};
use super::launch::{at, int, long};
use super::rows::Tokens;
use super::shared::Tiled;
use super::{Array, Cuda, Rope, View};
use crate::compute::backend::{Heads, QkNorms, Unembedding};
use crate::compute::cuda::arena::Piece;
use crate::compute::cuda::array::DeviceArray;
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{ALIGNMENT, Address, Arg, CudaError};

/// Tokens of a page (attention_decode.cu).
pub const PAGE: usize = 16;

/// Pages of a sequence that one block goes through, 256 tokens. Fixed, so that a sequence's numbers do not depend on who else is decoded.
const PAGES_PER_SPLIT: usize = 16;

/// A page of zeros, which rows without a sequence read.
pub const SPARE_PAGE: u32 = 0;

/// Where the key and the value of a token go that are not kept.
const NOWHERE: u32 = u32::MAX;

/// Logits that are there at once, in bytes: one block of rows for most models.
const LOGITS: usize = 256 << 20;

/// Rows are padded to these: few shapes of products, and of captured work. At least 8, so that all of a step's lists are aligned.
pub fn padded_rows(rows: usize) -> usize {
    if rows <= 16 { rows.next_multiple_of(8).max(8) } else { rows.next_multiple_of(32) }
}

/// Pages for so many tokens.
pub fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

/// Keys and values of the lowest layers of a model, REAL `[layers, pages, KV, 16, hd]` each.
#[derive(Debug)]
pub struct KvPages {
    memory: Piece,
    heads: Heads,
    real: Real,
    layers: usize,
    pages: usize,
}

impl KvPages {
    /// Bytes of keys and values.
    pub fn bytes(heads: Heads, real: Real, layers: usize, pages: usize) -> usize {
        2 * layers * pages * PAGE * heads.kv_heads * heads.head_dim * real.bytes()
    }

    /// Where a layer's keys and values begin.
    fn layer(&self, layer: usize) -> [Address; 2] {
        assert!(layer < self.layers, "layer {layer} of a cache of {}", self.layers);
        let of_layer = KvPages::bytes(self.heads, self.real, 1, self.pages) / 2;
        [layer, self.layers + layer].map(|part| self.memory.address().offset(part * of_layer))
    }
}

/// Places of tokens in a cache, on the device: page times 16 and the place in the page.
#[derive(Debug)]
pub struct Places(DeviceArray<u32>);

/// What one row of one step is told.
#[derive(Clone, Copy, Debug)]
pub struct StepRow {
    /// Of the new token.
    pub position: u32,
    /// Where its key and value go, as in [`Places`]; none: they are not kept.
    pub place: Option<u32>,
    /// Tokens of the shared prompt.
    pub prompt: u32,
    /// Tokens behind it, the new one included.
    pub own: u32,
    /// Where the sequence's list of pages begins: its prompt's, then its own.
    pub first_page: u32,
    /// For the draw, in `[0, 1)`.
    pub uniform: f64,
}

/// What the steps of a block are told.
#[derive(Clone, Debug)]
pub struct Plan {
    rows: usize,
    steps: usize,
    /// `[rows]`: what the first step reads.
    ids: Vec<u32>,
    /// Of all sequences, one list after the other.
    pages: Vec<u32>,
    /// `[steps, WORDS rows]`; a step's: positions, places, sequences (three words each), uniforms (two).
    words: Vec<u32>,
}

/// Words of a row of a plan's step.
const WORDS: usize = 7;

impl Plan {
    /// Steps of rows without a sequence, harmless to run; `rows` as [`padded_rows`] gives them.
    pub fn new(rows: usize, steps: usize) -> Plan {
        assert!(rows.is_multiple_of(8), "{rows} rows");
        let mut words = vec![0; steps * WORDS * rows];
        for step in words.chunks_exact_mut(WORDS * rows) {
            step[rows..2 * rows].fill(NOWHERE);
            // A sequence of one token, on the spare page, is the shortest that there is.
            step[2 * rows..5 * rows].iter_mut().skip(1).step_by(3).for_each(|own| *own = 1);
        }
        Plan { rows, steps, ids: vec![0; rows], pages: vec![SPARE_PAGE], words }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    /// A sequence's last token, and its pages; where its list begins.
    pub fn sequence(&mut self, row: usize, id: u32, pages: impl Iterator<Item = u32>) -> u32 {
        self.ids[row] = id;
        let first = self.pages.len();
        self.pages.extend(pages);
        first as u32
    }

    pub fn set(&mut self, step: usize, row: usize, what: StepRow) {
        let rows = self.rows;
        let words = &mut self.words[step * WORDS * rows..][..WORDS * rows];
        words[row] = what.position;
        words[rows + row] = what.place.unwrap_or(NOWHERE);
        words[2 * rows + 3 * row..][..3].copy_from_slice(&[what.prompt, what.own, what.first_page]);
        self.set_uniform(step, row, what.uniform);
    }

    /// A row's uniform number alone, for draws without a step.
    pub fn set_uniform(&mut self, step: usize, row: usize, uniform: f64) {
        let words = &mut self.words[step * WORDS * self.rows..][5 * self.rows + 2 * row..];
        words[..2].copy_from_slice(&bytemuck::cast::<f64, [u32; 2]>(uniform));
    }

    /// Pages of each row of each step, and where its list begins.
    fn lists(&self) -> impl Iterator<Item = (usize, usize)> {
        let rows = self.rows;
        let sequences =
            self.words.chunks_exact(WORDS * rows).flat_map(move |step| step[2 * rows..5 * rows].chunks_exact(3));
        sequences.map(|s| (pages_of(s[0] as usize) + pages_of(s[1] as usize), s[2] as usize))
    }

    /// Blocks that the longest sequence is split among, rounded up to a power of two: few shapes of captured work.
    pub fn splits(&self) -> usize {
        splits_of(self.lists().map(|(pages, _)| pages).max().unwrap_or(1))
    }
}

fn splits_of(pages: usize) -> usize {
    pages.div_ceil(PAGES_PER_SPLIT).next_power_of_two()
}

/// How much a decode may have to hold.
#[derive(Clone, Copy, Debug)]
pub struct DecodeShape {
    pub heads: Heads,
    pub vocab: usize,
    /// Rows of a step, as [`padded_rows`] gives them.
    pub rows: usize,
    /// Steps of a block.
    pub steps: usize,
    /// Tokens of the longest sequence: an end of the positions.
    pub positions: usize,
    /// Pages of the longest sequence.
    pub pages: usize,
}

/// The places that a step reads and writes, and what a block is told and draws. All begin at multiples of 16 bytes.
#[derive(Debug)]
pub struct DecodeRoom {
    shape: DecodeShape,
    layout: Layout,
    memory: Piece,
}

/// Where each begins, in bytes.
#[derive(Debug)]
struct Layout {
    /// u32 `[WORDS rows]`, what the step is told.
    told: usize,
    /// `[3 rows]`: tokens u32, log-probs f32, entropies f32.
    drawn: usize,
    /// u32, every sequence's list.
    pages: usize,
    /// f32 `[rows, H, splits, hd]` and `[rows, H, splits, 2]`.
    parts: usize,
    part_sums: usize,
    /// f32 `[head_rows, V]`.
    logits: usize,
    /// Rows of logits that are there at once.
    head_rows: usize,
    /// `[steps, WORDS rows]`.
    all_told: usize,
    /// `[steps, 3 rows]`.
    all_drawn: usize,
    end: usize,
}

impl Layout {
    fn new(shape: DecodeShape) -> Layout {
        let DecodeShape { heads, vocab, rows, steps, pages, .. } = shape;
        let head_rows = (LOGITS / (4 * vocab) / 32 * 32).clamp(8, rows);
        let parts = rows * heads.heads * splits_of(pages);
        let mut end = 0;
        let mut place = |words: usize| {
            let begin = end;
            end += (4 * words).next_multiple_of(ALIGNMENT);
            begin
        };
        Layout {
            told: place(WORDS * rows),
            drawn: place(3 * rows),
            pages: place(1 + rows * pages),
            parts: place(parts * heads.head_dim),
            part_sums: place(2 * parts),
            logits: place(head_rows * vocab),
            head_rows,
            all_told: place(steps * WORDS * rows),
            all_drawn: place(steps * 3 * rows),
            end,
        }
    }
}

impl DecodeRoom {
    /// What such a room takes.
    pub fn bytes(shape: DecodeShape) -> usize {
        Layout::new(shape).end
    }

    /// An end of all positions.
    pub fn positions(&self) -> usize {
        self.shape.positions
    }

    /// Panics where there is no room for so many rows, or no such step.
    fn check(&self, rows: usize, step: usize) {
        let DecodeShape { rows: most, steps, .. } = self.shape;
        assert!(rows <= most && step < steps, "{rows} rows of {most}, step {step} of {steps}");
    }

    fn address(&self, place: usize) -> Address {
        self.memory.address().offset(place)
    }
}

/// How tokens are drawn (rollout/sampler.rs).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawing {
    pub greedy: bool,
    /// 0: all.
    pub top_k: usize,
    /// 1: all.
    pub top_p: f32,
}

/// What a block drew, `[steps, rows]` each.
#[derive(Clone, Debug)]
pub struct Drawn {
    rows: usize,
    words: Vec<u32>,
}

impl Drawn {
    /// Token, log-prob and entropy.
    pub fn of(&self, step: usize, row: usize) -> (u32, f32, f32) {
        let [token, log_prob, entropy] = [0, 1, 2].map(|part| self.words[(3 * step + part) * self.rows + row]);
        (token, f32::from_bits(log_prob), f32::from_bits(entropy))
    }
}

impl Cuda {
    /// A cache, whose first page is the spare one. No failure of the device's work if there is no room.
    pub fn kv_pages(&self, heads: Heads, layers: usize, pages: usize) -> Result<KvPages, CudaError> {
        let real = self.real();
        let memory = self.arena().take(KvPages::bytes(heads, real, layers, pages))?;
        let cache = KvPages { memory, heads, real, layers, pages };
        for place in (0..layers).flat_map(|layer| cache.layer(layer)) {
            self.runtime().zero(place, KvPages::bytes(heads, real, 1, 1) / 2);
        }
        Ok(cache)
    }

    /// Room for the steps of a decode. No failure of the device's work if there is none.
    pub fn decode_room(&self, shape: DecodeShape) -> Result<DecodeRoom, CudaError> {
        let layout = Layout::new(shape);
        Ok(DecodeRoom { shape, memory: self.arena().take(layout.end)?, layout })
    }

    /// Places of a cache. Panics where there are none such.
    pub fn places(&self, cache: &KvPages, places: &[u32]) -> Places {
        assert!(
            places.iter().all(|place| (*place as usize) < cache.pages * PAGE),
            "a place behind the cache's last page"
        );
        Places(DeviceArray::from_host(self.arena(), places))
    }

    /// Keys and values of rows, qk `[T, (H + KV) hd]` and qkv `[T, (H + 2 KV) hd]`, to their places `[T]` in a layer of the cache.
    pub fn write_keys_and_values(&self, cache: &KvPages, layer: usize, qk: &Array, qkv: &Array, places: &Places) {
        let (places, rows) = (places.0.address(), places.0.len());
        let Heads { heads, kv_heads, head_dim } = cache.heads;
        let [keys, values] = cache.layer(layer);
        let chunk = 16 / cache.real.bytes();
        let threads = (kv_heads * head_dim / chunk).next_multiple_of(32).clamp(32, 256);
        let args = [qk.arg(), qkv.arg(), at(places), at(keys), at(values), int(heads), int(kv_heads), int(head_dim)];
        self.launch("kv_write", [rows, 1, 1], threads, 0, &args);
    }

    /// Uploads what a block's steps are told. Panics where that is not possible for the cache, the vocabulary and the room.
    pub fn load_plan(&self, room: &DecodeRoom, cache: &KvPages, plan: &Plan) {
        let DecodeShape { vocab, rows, steps, positions, pages, .. } = room.shape;
        assert!(plan.rows <= rows && plan.steps <= steps, "{} rows in {} steps", plan.rows, plan.steps);
        assert!(plan.ids.iter().all(|id| (*id as usize) < vocab), "a token behind the vocabulary's last");
        assert!(plan.pages.len() <= 1 + rows * pages, "{} pages", plan.pages.len());
        assert!(plan.pages.iter().all(|page| (*page as usize) < cache.pages), "a page behind the cache's last");
        assert!(plan.lists().all(|(len, first)| len <= pages && first + len <= plan.pages.len()), "a sequence's pages");
        for step in plan.words.chunks_exact(WORDS * plan.rows) {
            let (of_positions, of_places) = (&step[..plan.rows], &step[plan.rows..2 * plan.rows]);
            assert!(of_positions.iter().all(|position| (*position as usize) < positions), "a position behind the last");
            let known = |place: &u32| *place == NOWHERE || (*place as usize) < cache.pages * PAGE;
            assert!(of_places.iter().all(known), "a place behind the cache's last page");
        }
        let runtime = self.runtime();
        runtime.upload(bytemuck::cast_slice(&plan.ids), room.address(room.layout.drawn));
        runtime.upload(bytemuck::cast_slice(&plan.pages), room.address(room.layout.pages));
        runtime.upload(bytemuck::cast_slice(&plan.words), room.address(room.layout.all_told));
    }

    /// Brings what a step is told to where it reads it.
    pub fn begin_step(&self, room: &DecodeRoom, rows: usize, step: usize) {
        room.check(rows, step);
        let bytes = 4 * WORDS * rows;
        self.runtime().copy(room.address(room.layout.all_told + step * bytes), room.address(room.layout.told), bytes);
    }

    /// Keeps what a step drew.
    pub fn end_step(&self, room: &DecodeRoom, rows: usize, step: usize) {
        room.check(rows, step);
        let bytes = 4 * 3 * rows;
        self.runtime().copy(room.address(room.layout.drawn), room.address(room.layout.all_drawn + step * bytes), bytes);
    }

    /// What the steps of a block drew, once they are done; or why they failed.
    pub fn drawn(&self, room: &DecodeRoom, rows: usize, steps: usize) -> Result<Drawn, CudaError> {
        room.check(rows, steps - 1);
        let mut words = vec![0u32; steps * 3 * rows];
        self.runtime().download(room.address(room.layout.all_drawn), bytemuck::cast_slice_mut(&mut words))?;
        Ok(Drawn { rows, words })
    }

    /// The tokens of a step: those that the step before it drew, at the positions that it was told.
    pub fn step_tokens<'a>(&self, room: &'a DecodeRoom, rows: usize) -> Tokens<'a> {
        Tokens::at(room.address(room.layout.drawn), room.address(room.layout.told), rows)
    }

    /// Norms and rotates a step's queries, to qk `[rows, (H + KV) hd]`, and its keys, which go to their places with the values.
    #[allow(clippy::too_many_arguments)]
    pub fn rotate_to_pages(
        &self,
        room: &DecodeRoom,
        cache: &KvPages,
        layer: usize,
        norms: Option<QkNorms<View<'_>>>,
        eps: f32,
        rope: &Rope,
        rows: usize,
        qkv: &Array,
        qk: &mut Array,
    ) {
        let Heads { heads, kv_heads, head_dim } = cache.heads;
        if !self.takes_head_dim("qk_rope_to_pages", head_dim) {
            return;
        }
        room.check(rows, 0);
        let told = |words: usize| at(room.address(room.layout.told + 4 * words));
        let ([q_norm, k_norm], [cos, sin]) = (norm_args(norms.as_ref()), rope.args());
        let [keys, values] = cache.layer(layer).map(at);
        let arrays = [qkv.arg(), qk.arg(), q_norm, k_norm, Arg::Float(eps), cos, sin];
        let places = [told(0), told(rows), keys, values];
        let args = [&arrays[..], &places, &[rows, heads, kv_heads, head_dim].map(int)].concat();
        let grid = [(rows * (heads + 2 * kv_heads)).div_ceil(WARPS), 1, 1];
        self.launch("qk_rope_to_pages", grid, 32 * WARPS, 0, &args);
    }

    /// A step's queries against each sequence's pages: out `[rows, H hd]`.
    pub fn decode_attention(
        &self,
        room: &DecodeRoom,
        cache: &KvPages,
        layer: usize,
        [rows, splits]: [usize; 2],
        qk: &Array,
        out: &mut Array,
    ) {
        let Heads { heads, kv_heads, head_dim } = cache.heads;
        assert!(splits <= splits_of(room.shape.pages), "{splits} splits");
        room.check(rows, 0);
        let Some(shared) = self.tiles(Tiled::Decode, head_dim) else { return };
        let [keys, values] = cache.layer(layer);
        let sequences = at(room.address(room.layout.told + 4 * 2 * rows));
        let (parts, part_sums) = (at(room.address(room.layout.parts)), at(room.address(room.layout.part_sums)));
        let per_split = int(PAGES_PER_SPLIT);
        let args = [
            qk.arg(),
            int(cache.heads.qk_dim()),
            at(keys),
            at(values),
            sequences,
            at(room.address(room.layout.pages)),
            parts,
            part_sums,
            int(heads),
            int(kv_heads),
            per_split,
        ];
        let grid = [splits, kv_heads * (heads / kv_heads).div_ceil(16), rows];
        self.launch(&format!("attention_decode_{head_dim}"), grid, 128, shared, &args);
        let args = [parts, part_sums, sequences, out.arg(), int(head_dim), int(splits), per_split];
        self.launch("attention_decode_merge", [heads, rows, 1], head_dim.next_multiple_of(32), 0, &args);
    }

    /// Draws a token for each row of hidden `[rows, d]`, a factor, with the step's uniform numbers.
    pub fn draw(&self, room: &DecodeRoom, rows: usize, head: &Unembedding<View<'_>>, hidden: &Array, drawing: Drawing) {
        let (v, d) = (head.vocab, head.hidden_size);
        if hidden.real() != self.real() || hidden.len() < rows * d {
            let got = format!("{} states in {:?}", hidden.len() / d, hidden.real());
            return self.refuse("sample", got, "a state in REAL for every row");
        }
        room.check(rows, 0);
        let logits = room.address(room.layout.logits);
        let drawn = |part: usize, row: usize| at(room.address(room.layout.drawn + 4 * (part * rows + row)));
        for first in (0..rows).step_by(room.layout.head_rows) {
            let count = room.layout.head_rows.min(rows - first);
            self.tile_of_logits(head, hidden, &(first..first + count), &(0..v), logits, v);
            let args = [
                at(logits),
                long(v),
                int(v),
                Arg::Float(1.0 / head.temperature),
                int(usize::from(drawing.greedy)),
                int(drawing.top_k.min(v)),
                Arg::Float(drawing.top_p),
                at(room.address(room.layout.told + 4 * (5 * rows + 2 * first))),
                drawn(0, first),
                drawn(1, first),
                drawn(2, first),
            ];
            let threads = v.next_multiple_of(32).min(1024);
            self.launch("sample", [count, 1, 1], threads, 16 * v.div_ceil(256), &args);
        }
    }

    /// Rows of a state `[T, d]`, as factors, to the rows of `to` from `first` on.
    pub fn gather_rows_to(&self, state: &Array, rows: &[u32], d: usize, to: &mut Array, first: usize) {
        assert!((first + rows.len()) * d <= to.len() && to.real() == self.real(), "room for {} rows", rows.len());
        assert!(
            rows.iter().all(|row| (*row as usize + 1) * d <= state.len()),
            "rows of a state of {}",
            state.len() / d
        );
        let list = DeviceArray::from_host(self.arena(), rows);
        self.gather_at(state.real(), state.address(), list.address(), rows.len(), d, to.at(first * d));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_few_shapes() {
        let padded: Vec<usize> = [1, 8, 9, 16, 17, 32, 33, 250, 256].map(padded_rows).to_vec();
        assert_eq!(padded, [8, 8, 16, 16, 32, 32, 64, 256, 256]);
        assert_eq!([1, 16, 17, 33, 64, 65].map(splits_of), [1, 1, 2, 4, 4, 8]);
    }

    #[test]
    fn a_plan_has_each_rows_words_where_the_kernels_look() {
        let mut plan = Plan::new(8, 2);
        assert_eq!((plan.splits(), plan.lists().all(|list| list == (1, 0))), (1, true));
        let first_page = plan.sequence(2, 77, [5, 6, 9].into_iter());
        let what = StepRow { position: 20, place: Some(147), prompt: 18, own: 3, first_page, uniform: 0.25 };
        plan.set(1, 2, what);
        let step = &plan.words[WORDS * 8..];
        assert_eq!((plan.ids[2], &plan.pages[..], first_page), (77, &[SPARE_PAGE, 5, 6, 9][..], 1));
        assert_eq!((step[2], step[8 + 2], &step[16 + 6..16 + 9]), (20, 147, &[18, 3, 1][..]));
        assert_eq!((step[8], step[16 + 3..16 + 6].to_vec()), (NOWHERE, vec![0, 1, 0]));
        assert_eq!(bytemuck::cast_slice::<u32, f64>(&step[40..56])[2], 0.25);
        assert_eq!(plan.lists().max(), Some((3, 1)));
    }

    #[test]
    fn what_is_drawn_is_read_by_step_and_row() {
        let words = (0..48).map(|x| if x % 24 < 8 { x } else { (x as f32).to_bits() }).collect();
        let drawn = Drawn { rows: 8, words };
        assert_eq!(drawn.of(1, 3), (27, 35.0, 43.0));
    }
}

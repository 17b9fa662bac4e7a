//! How queries on a device meet keys and values in pages.

use crate::compute::Backend;
use crate::compute::backend::{Heads, QkNorms};
use crate::compute::cuda::backend::Cuda;
use crate::compute::cuda::backend::decode::{DecodeRoom, KvPages, Places};
use crate::model::decoder::Attend;

type Array = <Cuda as Backend>::Array;

/// Packed prompts attend to themselves, and their keys and values go to their places.
pub(super) struct Prefill<'a> {
    pub batch: &'a <Cuda as Backend>::Batch<'a>,
    pub cache: &'a KvPages,
    /// `[T]`
    pub places: &'a Places,
}

impl Attend<Cuda> for Prefill<'_> {
    fn attend(
        &mut self,
        cuda: &Cuda,
        layer: usize,
        heads: Heads,
        qk: &Array,
        qkv: &Array,
        out: &mut Array,
        lse: &mut Array,
    ) {
        cuda.attention(heads, self.batch, qk, qkv, out, lse);
        cuda.write_keys_and_values(self.cache, layer, qk, qkv, self.places);
    }
}

/// One new token for each of several sequences.
pub(super) struct Decode<'a> {
    pub room: &'a DecodeRoom,
    pub cache: &'a KvPages,
    pub rows: usize,
    pub splits: usize,
}

impl Attend<Cuda> for Decode<'_> {
    fn rotate(
        &mut self,
        cuda: &Cuda,
        layer: usize,
        _: Heads,
        norms: Option<QkNorms<<Cuda as Backend>::View<'_>>>,
        eps: f32,
        rope: &<Cuda as Backend>::Rope,
        _: <Cuda as Backend>::Tokens<'_>,
        qkv: &Array,
        qk: &mut Array,
    ) {
        cuda.rotate_to_pages(self.room, self.cache, layer, norms, eps, rope, self.rows, qkv, qk);
    }

    fn attend(&mut self, cuda: &Cuda, layer: usize, _: Heads, qk: &Array, _: &Array, out: &mut Array, _: &mut Array) {
        cuda.decode_attention(self.room, self.cache, layer, [self.rows, self.splits], qk, out);
    }
}

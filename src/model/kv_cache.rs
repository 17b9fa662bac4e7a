//! Keys and values of past tokens: shared prompts, and each sequence's own tokens.

use super::Model;
use super::decoder::{Attend, Keep, Rows, Workspace};
use super::taps::Tap;
use crate::compute::Packing;
use crate::compute::backend::{Backend, Heads};
use crate::compute::cpu::array::{Array, Elements, convert};
use crate::compute::cpu::attention::AttentionShape;
use crate::compute::cpu::attention_decode::{KV_BLOCK, KvSpan, attention_decode, block_units, write_key_value};
use crate::compute::cpu::{Cpu, Tokens};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Blocks of a piece of a sequence's cache: few, so that short answers do not reserve room for long ones. A piece stays where it is:
/// one memory that grew would be copied, and leave holes of its former sizes behind.
const GROWTH: usize = 4;

/// Rotated keys and values of consecutive tokens, by layer.
#[derive(Clone, Debug, Default)]
pub struct KvTokens {
    layers: Vec<LayerTokens>,
}

/// One layer's, laid out as [`KvSpan`] says.
#[derive(Clone, Debug, Default)]
struct LayerTokens {
    tokens: usize,
    keys: Vec<Vec<u32>>,
    values: Vec<Vec<u32>>,
}

impl KvTokens {
    fn push(&mut self, shape: AttentionShape, layer: usize, key: Elements<'_>, value: Elements<'_>) {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, Default::default);
        }
        let LayerTokens { tokens, keys, values } = &mut self.layers[layer];
        let (heads, (of_keys, of_values)) = (shape.kv_heads, block_units(shape.compute, shape.head_dim));
        let keys = last_block(keys, heads * of_keys, *tokens);
        let values = last_block(values, heads * of_values, *tokens);
        let slot = *tokens % KV_BLOCK;
        let AttentionShape { compute, head_dim, .. } = shape;
        match (key, value) {
            (Elements::F32(key), Elements::F32(value)) => {
                write_key_value(compute, keys, values, slot, key, value, head_dim);
            }
            (Elements::Bf16(key), Elements::Bf16(value)) => {
                write_key_value(compute, keys, values, slot, key, value, head_dim);
            }
            _ => unreachable!("keys and values are factors, which have one format"),
        }
        *tokens += 1;
    }

    fn span(&self, layer: usize) -> KvSpan<'_> {
        let layer = self.layers.get(layer);
        layer.map_or(KvSpan::default(), |l| KvSpan { tokens: l.tokens, keys: &l.keys, values: &l.values })
    }
}

/// The block of the token after so many, made if it is the first of it.
fn last_block(pieces: &mut Vec<Vec<u32>>, block: usize, tokens: usize) -> &mut [u32] {
    let blocks = tokens / KV_BLOCK;
    if tokens.is_multiple_of(KV_BLOCK * GROWTH) {
        pieces.push(Vec::with_capacity(GROWTH * block));
    }
    let piece = &mut pieces[blocks / GROWTH];
    if tokens.is_multiple_of(KV_BLOCK) {
        piece.resize(piece.len() + block, 0);
    }
    &mut piece[blocks % GROWTH * block..]
}

/// A sequence in the making: a prompt that others may share, and its own tokens after it.
#[derive(Clone, Debug)]
pub struct KvSequence {
    prompt: Arc<KvTokens>,
    own: KvTokens,
    len: usize,
}

impl KvSequence {
    /// A sequence that continues a prompt of `prompt_len` tokens.
    pub fn new(prompt: Arc<KvTokens>, prompt_len: usize) -> KvSequence {
        KvSequence { prompt, own: KvTokens::default(), len: prompt_len }
    }

    /// Tokens whose keys and values are cached.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Keys of row `row` in qk, and values in qkv.
fn key_value<'a>(shape: AttentionShape, qk: &'a Array, qkv: &'a Array, row: usize) -> (Elements<'a>, Elements<'a>) {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let (key, value) = (row * (q + kv) + q, row * (q + 2 * kv) + q + kv);
    (Elements::from(qk).part(key..key + kv), Elements::from(qkv).part(value..value + kv))
}

/// Packed attention that also stores the keys and values of every segment.
struct Prefill<'a> {
    packing: &'a Packing,
    caches: Vec<KvTokens>,
}

impl Attend<Cpu> for Prefill<'_> {
    fn attend(
        &mut self,
        cpu: &Cpu,
        layer: usize,
        heads: Heads,
        qk: &Array,
        qkv: &Array,
        out: &mut Array,
        lse: &mut Array,
    ) {
        let shape = cpu.attention_shape(heads);
        cpu.attention(heads, &self.packing, qk, qkv, out, lse);
        self.packing.segments().par_iter().zip(&mut self.caches).for_each(|(segment, cache)| {
            for row in segment.rows.clone() {
                let (key, value) = key_value(shape, qk, qkv, row);
                cache.push(shape, layer, key, value);
            }
        });
    }
}

/// One new token for each of several sequences.
struct Decode<'a> {
    sequences: &'a mut [&'a mut KvSequence],
}

impl Attend<Cpu> for Decode<'_> {
    fn attend(
        &mut self,
        cpu: &Cpu,
        layer: usize,
        heads: Heads,
        qk: &Array,
        qkv: &Array,
        out: &mut Array,
        _: &mut Array,
    ) {
        let shape = cpu.attention_shape(heads);
        self.sequences.par_iter_mut().enumerate().with_min_len(8).for_each(|(row, sequence)| {
            let (key, value) = key_value(shape, qk, qkv, row);
            sequence.own.push(shape, layer, key, value);
        });
        let spans: Vec<_> = self.sequences.iter().map(|s| [s.prompt.span(layer), s.own.span(layer)]).collect();
        let stride = (shape.heads + shape.kv_heads) * shape.head_dim;
        match out {
            Array::F32(out) => attention_decode(shape, &qk.to_f32(), stride, &spans, out),
            Array::Bf16(out) => {
                let mut exact = vec![0.0; out.len()];
                attention_decode(shape, &qk.to_f32(), stride, &spans, &mut exact);
                convert(&exact, out);
            }
        }
    }
}

impl Model {
    /// Runs prompts (each a segment of its own, no continuations) to `tap` and returns the cache of each.
    /// The states are in [`Workspace::state`]; the last row of a prompt predicts its first new token.
    pub fn prefill(&self, ws: &mut Workspace, packing: &Packing, tap: Tap) -> Vec<(Arc<KvTokens>, Range<usize>)> {
        let caches = vec![KvTokens::default(); packing.segments().len()];
        let mut attend = Prefill { packing, caches };
        self.forward_with(ws, Rows::packed::<Cpu>(&packing, packing), &mut attend, tap, Keep::Nothing, &mut |_, _| ());
        let rows = packing.segments().iter().map(|s| s.rows.clone());
        attend.caches.into_iter().map(Arc::new).zip(rows).collect()
    }

    /// Appends one token to each sequence and runs them to `tap`; states `[B, d]` in [`Workspace::state`].
    pub fn decode(&self, ws: &mut Workspace, ids: &[u32], sequences: &mut [&mut KvSequence], tap: Tap) {
        let positions: Vec<u32> = sequences.iter().map(|s| s.len as u32).collect();
        for sequence in sequences.iter_mut() {
            sequence.len += 1;
        }
        // Reborrow: the attention context holds the sequences for as long as the forward runs.
        let mut held: Vec<&mut KvSequence> = sequences.iter_mut().map(|s| &mut **s).collect();
        let mut attend = Decode { sequences: &mut held };
        let until = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let rows = Rows { tokens: Tokens { ids, positions: &positions }, count: ids.len(), positions: until };
        self.forward_with(ws, rows, &mut attend, tap, Keep::Nothing, &mut |_, _| ());
    }
}

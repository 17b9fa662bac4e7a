//! Attention over packings, forward and backward, and of one token against the cache.

use super::{Arg, Memory, Real, close, kernels, numbers};
use crate::compute::Packing;
use crate::compute::cpu::attention::{AttentionSaved, AttentionShape, attention, attention_backward};
use crate::compute::cpu::attention_decode::{KV_BLOCK, KvSpan, attention_decode, block_units, write_key_value};
use crate::compute::cpu::gemm::Compute;
use crate::compute::cuda::lists::AttentionLists;
use std::slice::from_ref;

/// Trees: a prompt's length, and those of its continuations.
fn packing(trees: &[(usize, &[usize])]) -> Packing {
    let mut packing = Packing::new();
    for (prompt, continuations) in trees {
        packing.push(&vec![1; *prompt]);
        for len in *continuations {
            packing.push_continuation(&vec![2; *len]);
        }
    }
    packing
}

/// Probabilities and their gradients are rounded to bf16 in between, and so is the result: 2^-9 each, in sums that partly cancel.
const BF16: f32 = 8e-3;

fn check(real: Real, (heads, kv_heads, hd): (usize, usize, usize), packing: &Packing) {
    let gpu = kernels(real);
    let shape = AttentionShape { heads, kv_heads, head_dim: hd, compute: Compute::F32 };
    let t = packing.rows();
    let (q_dim, qk_dim, qkv_dim) = (heads * hd, (heads + kv_heads) * hd, (heads + 2 * kv_heads) * hd);
    let (qk, qkv) = (real.stored(&numbers(t * qk_dim, 1)), real.stored(&numbers(t * qkv_dim, 2)));
    let d_out = real.stored(&numbers(t * q_dim, 3));
    let (mut out, mut lse, mut d_qkv) = (vec![0f32; t * q_dim], vec![0f32; t * heads], vec![0f32; t * qkv_dim]);
    attention(shape, packing, &qk, &qkv, &mut out, &mut lse);
    let saved = AttentionSaved { qk: &qk, qkv: &qkv, out: &out, lse: &lse };
    attention_backward(shape, packing, saved, &d_out, &mut d_qkv);

    let lists = AttentionLists::new(packing, heads / kv_heads);
    let (segments, queries, keys) =
        (Memory::u32(&lists.segments), Memory::u32(&lists.query_tiles), Memory::u32(&lists.key_tiles));
    let (query_tiles, key_tiles) = (lists.query_tiles.len() / 2, lists.key_tiles.len() / 3);
    let stride = hd * real.bytes() + 16;
    let step = real.pick(32, 64);
    let backward_step = if hd > 64 { 32 } else { step };
    let (qk, qkv, d_out) = (Memory::real(real, &qk), Memory::real(real, &qkv), Memory::real(real, &d_out));
    let (mut m_out, mut m_lse) = (Memory::real_room(real, t * q_dim), Memory::room(t * heads));
    gpu.launch(
        &format!("attention_{hd}"),
        [query_tiles, kv_heads, 1],
        128,
        (64 + 4 * step) * stride,
        &mut [
            Arg::In(&qk),
            Arg::In(&qkv),
            Arg::In(&segments),
            Arg::In(&queries),
            Arg::Out(&mut m_out),
            Arg::Out(&mut m_lse),
            Arg::Int(heads),
            Arg::Int(kv_heads),
        ],
    );
    close("out", &m_out.floats(), &out, real.pick(2e-6, BF16));
    close("lse", &m_lse.floats(), &lse, 2e-6);

    let (mut pull, mut md) = (Memory::room(t * heads), Memory::real_room(real, t * qkv_dim));
    gpu.launch(
        "attention_pull",
        [(t * heads).div_ceil(8), 1, 1],
        256,
        0,
        &mut [Arg::In(&m_out), Arg::In(&d_out), Arg::Out(&mut pull), Arg::Int(t * heads), Arg::Int(hd)],
    );
    let tiles = (128 + 4 * backward_step) * stride;
    let sizes = [tiles, tiles + 16 * backward_step];
    for (kernel, tiles, count, shared) in
        [("queries", &queries, query_tiles, sizes[0]), ("keys", &keys, key_tiles, sizes[1])]
    {
        gpu.launch(
            &format!("attention_backward_{kernel}_{hd}"),
            [count, kv_heads, 1],
            128,
            shared,
            &mut [
                Arg::In(&qk),
                Arg::In(&qkv),
                Arg::In(&d_out),
                Arg::In(&m_lse),
                Arg::In(&pull),
                Arg::In(&segments),
                Arg::In(tiles),
                Arg::Out(&mut md),
                Arg::Int(heads),
                Arg::Int(kv_heads),
            ],
        );
    }
    let md = md.floats();
    let columns = |x: &[f32], from: usize, to: usize| -> Vec<f32> {
        x.chunks_exact(qkv_dim).flat_map(|row| row[from..to].to_vec()).collect()
    };
    for (what, from, to) in [("d_q", 0, q_dim), ("d_k", q_dim, qk_dim), ("d_v", qk_dim, qkv_dim)] {
        close(what, &columns(&md, from, to), &columns(&d_qkv, from, to), real.pick(4e-6, BF16));
    }
}

#[test]
fn one_token_and_one_sequence() {
    for real in Real::BOTH {
        check(real, (1, 1, 32), &packing(&[(1, &[])]));
        check(real, (2, 2, 64), &packing(&[(67, &[])]));
    }
}

#[test]
fn prompts_with_continuations_and_groups() {
    for real in Real::BOTH {
        check(real, (2, 1, 32), &packing(&[(5, &[3, 1]), (2, &[])]));
        // A group that divides no tile, a prompt and a continuation of more than one tile.
        check(real, (3, 1, 64), &packing(&[(66, &[30, 70, 1]), (3, &[])]));
        check(real, (4, 2, 32), &packing(&[(1, &[64]), (64, &[]), (40, &[2, 2])]));
    }
}

#[test]
fn heads_of_128_and_of_16() {
    for real in Real::BOTH {
        for hd in [128, 16] {
            check(real, (2, 1, hd), &packing(&[(20, &[9]), (1, &[40])]));
        }
    }
}

/// One layer's pages, and where the sequences' are.
struct Cache {
    keys: Memory,
    values: Memory,
    sequences: Vec<u32>,
    pages: Vec<u32>,
    most_pages: usize,
}

/// Writes the keys and values of sequences (tokens of the prompt, own tokens) to pages that lie in disorder.
fn cached(
    real: Real,
    (heads, kv_heads, hd): (usize, usize, usize),
    lens: &[(usize, usize)],
    qk: &[f32],
    qkv: &[f32],
) -> Cache {
    let all: usize = lens.iter().map(|(p, o)| p.div_ceil(16) + o.div_ceil(16)).sum();
    let rows: usize = lens.iter().map(|(p, o)| p + o).sum();
    let (mut next, mut slots, mut sequences, mut pages, mut most_pages) = (0, vec![], vec![], vec![], 0);
    for (prompt, own) in lens {
        sequences.extend([*prompt as u32, *own as u32, pages.len() as u32]);
        let before = next;
        for span in [prompt, own] {
            for token in 0..*span {
                let page = all - 1 - (next + token / 16);
                slots.push((page * 16 + token % 16) as u32);
                if token % 16 == 0 {
                    pages.push(page as u32);
                }
            }
            next += span.div_ceil(16);
        }
        most_pages = most_pages.max(next - before);
    }
    // A row that is not kept.
    slots.push(u32::MAX);
    let size = all * kv_heads * 16 * hd;
    // Rooms are NaN: places of a page without a token must not be read.
    let (mut keys, mut values) = (Memory::real_room(real, size), Memory::real_room(real, size));
    kernels(real).launch(
        "kv_write",
        [rows + 1, 1, 1],
        32,
        0,
        &mut [
            Arg::In(&Memory::real(real, qk)),
            Arg::In(&Memory::real(real, qkv)),
            Arg::In(&Memory::u32(&slots)),
            Arg::Out(&mut keys),
            Arg::Out(&mut values),
            Arg::Int(heads),
            Arg::Int(kv_heads),
            Arg::Int(hd),
        ],
    );
    Cache { keys, values, sequences, pages, most_pages }
}

/// The CPU's cache of some rows of qk and qkv.
fn span_units(shape: AttentionShape, rows: std::ops::Range<usize>, qk: &[f32], qkv: &[f32]) -> (Vec<u32>, Vec<u32>) {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let (of_keys, of_values) = block_units(Compute::F32, shape.head_dim);
    let (mut k, mut v) = (vec![], vec![]);
    for (at, row) in rows.enumerate() {
        if at % KV_BLOCK == 0 {
            k.resize(k.len() + shape.kv_heads * of_keys, 0);
            v.resize(v.len() + shape.kv_heads * of_values, 0);
        }
        let (from_k, from_v) = (k.len() - shape.kv_heads * of_keys, v.len() - shape.kv_heads * of_values);
        let key = &qk[row * (q + kv) + q..(row + 1) * (q + kv)];
        let value = &qkv[row * (q + 2 * kv) + q + kv..(row + 1) * (q + 2 * kv)];
        write_key_value(Compute::F32, &mut k[from_k..], &mut v[from_v..], at % KV_BLOCK, key, value, shape.head_dim);
    }
    (k, v)
}

#[test]
fn one_token_against_the_cache() {
    for real in Real::BOTH {
        for (heads, kv_heads, hd, pages_per_split, lens) in [
            (1, 1, 32, 4, vec![(1, 1)]),
            (4, 2, 64, 2, vec![(37, 5), (16, 1), (5, 100)]),
            // More heads in a group than a product has rows.
            (20, 1, 32, 1, vec![(20, 3), (3, 30)]),
            (8, 2, 128, 8, vec![(33, 17), (64, 1)]),
            (4, 2, 16, 2, vec![(37, 5), (1, 1)]),
        ] {
            let (qk_dim, qkv_dim, q_dim) = ((heads + kv_heads) * hd, (heads + 2 * kv_heads) * hd, heads * hd);
            let rows: usize = lens.iter().map(|(p, o)| p + o).sum();
            let (qk, qkv) =
                (real.stored(&numbers((rows + 1) * qk_dim, 1)), real.stored(&numbers((rows + 1) * qkv_dim, 2)));
            let queries = real.stored(&numbers(lens.len() * qk_dim, 3));
            let shape = AttentionShape { heads, kv_heads, head_dim: hd, compute: Compute::F32 };
            let mut units = vec![];
            let mut from = 0;
            for (prompt, own) in &lens {
                units.push([(*prompt, from..from + prompt), (*own, from + prompt..from + prompt + own)]);
                from += prompt + own;
            }
            let units: Vec<_> =
                units.into_iter().map(|spans| spans.map(|(n, rows)| (n, span_units(shape, rows, &qk, &qkv)))).collect();
            let spans: Vec<[KvSpan<'_>; 2]> = units
                .iter()
                .map(|s| {
                    [0, 1].map(|i| KvSpan { tokens: s[i].0, keys: from_ref(&s[i].1.0), values: from_ref(&s[i].1.1) })
                })
                .collect();
            let mut expected = vec![0f32; lens.len() * q_dim];
            attention_decode(shape, &queries, qk_dim, &spans, &mut expected);

            let cache = cached(real, (heads, kv_heads, hd), &lens, &qk, &qkv);
            let splits = cache.most_pages.div_ceil(pages_per_split);
            let gpu = kernels(real);
            let parts = lens.len() * heads * splits;
            let (mut outs, mut sums) = (Memory::f32(&vec![0.0; parts * hd]), Memory::f32(&vec![0.0; parts * 2]));
            let sequences = Memory::u32(&cache.sequences);
            let shared = (272 * (hd * real.bytes() + 16)).max(64 * (hd + 2) * 4);
            let grid = [splits, kv_heads * (heads / kv_heads).div_ceil(16), lens.len()];
            gpu.launch(
                &format!("attention_decode_{hd}"),
                grid,
                128,
                shared,
                &mut [
                    Arg::In(&Memory::real(real, &queries)),
                    Arg::Int(qk_dim),
                    Arg::In(&cache.keys),
                    Arg::In(&cache.values),
                    Arg::In(&sequences),
                    Arg::In(&Memory::u32(&cache.pages)),
                    Arg::Out(&mut outs),
                    Arg::Out(&mut sums),
                    Arg::Int(heads),
                    Arg::Int(kv_heads),
                    Arg::Int(pages_per_split),
                ],
            );
            let mut out = Memory::real_room(real, lens.len() * q_dim);
            gpu.launch(
                "attention_decode_merge",
                [heads, lens.len(), 1],
                32,
                0,
                &mut [
                    Arg::In(&outs),
                    Arg::In(&sums),
                    Arg::In(&sequences),
                    Arg::Out(&mut out),
                    Arg::Int(hd),
                    Arg::Int(splits),
                    Arg::Int(pages_per_split),
                ],
            );
            close("decode", &out.floats(), &expected, real.pick(2e-6, BF16));
        }
    }
}

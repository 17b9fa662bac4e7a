use super::*;
use proptest::prelude::*;

fn number(i: usize, seed: usize) -> f32 {
    ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 2001) as f32 / 1000.0 - 1.0
}

/// One span in the cache's layout, from keys and values `[tokens, kv_heads * head_dim]`.
fn cached(compute: Compute, keys: &[f32], values: &[f32], row: usize, hd: usize) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let (of_keys, of_values) = block_units(compute, hd);
    let heads = row / hd;
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for (t, (key, value)) in keys.chunks_exact(row).zip(values.chunks_exact(row)).enumerate() {
        if t % KV_BLOCK == 0 {
            k.resize(k.len() + heads * of_keys, 0);
            v.resize(v.len() + heads * of_values, 0);
        }
        let (from_k, from_v) = (k.len() - heads * of_keys, v.len() - heads * of_values);
        write_key_value(compute, &mut k[from_k..], &mut v[from_v..], t % KV_BLOCK, key, value, hd);
    }
    let pieces = |x: Vec<u32>, block: usize| x.chunks(2 * block).map(<[u32]>::to_vec).collect();
    (pieces(k, heads * of_keys), pieces(v, heads * of_values))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Every head dimension, group and length, the prompt's length not a multiple of the block's neither.
    #[test]
    fn equals_the_textbook(
        hd in (1usize..41).prop_map(|x| 2 * x), kv_heads in 1usize..4, group in 1usize..4,
        prompt in 1usize..40, own in 1usize..40, seed in 0usize..1000,
    ) {
        let shape = |compute| AttentionShape { heads: kv_heads * group, kv_heads, head_dim: hd, compute };
        let (row, tokens) = (kv_heads * hd, prompt + own);
        let fill = |n: usize, seed: usize| -> Vec<f32> { (0..n).map(|i| number(i, seed)).collect() };
        let (query, keys, values) = (fill(kv_heads * group * hd, seed), fill(tokens * row, seed + 1), fill(tokens * row, seed + 2));
        for compute in [Compute::F32, Compute::Bf16] {
            let (a, b) = (prompt * row, tokens * row);
            let (k0, v0) = cached(compute, &keys[..a], &values[..a], row, hd);
            let (k1, v1) = cached(compute, &keys[a..b], &values[a..b], row, hd);
            let spans = [[
                KvSpan { tokens: prompt, keys: &k0, values: &v0 },
                KvSpan { tokens: own, keys: &k1, values: &v1 },
            ]];
            let mut out = vec![f32::NAN; kv_heads * group * hd];
            attention_decode(shape(compute), &query, query.len(), &spans, &mut out);
            for head in 0..kv_heads * group {
                let kv = head / group * hd;
                let score = |t: usize| -> f64 {
                    let dot: f64 = (0..hd).map(|i| query[head * hd + i] as f64 * keys[t * row + kv + i] as f64).sum();
                    dot / (hd as f64).sqrt()
                };
                let weights: Vec<f64> = (0..tokens).map(|t| score(t).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..hd {
                    let sum: f64 = weights.iter().enumerate().map(|(t, w)| w * values[t * row + kv + i] as f64).sum();
                    // bf16: an operand is off by 2^-9 of itself, a score of up to ten of these; values are below 1.
                    let bound = if compute.here() == Compute::F32 { 1e-5 } else { 0.02 };
                    prop_assert!((out[head * hd + i] as f64 - sum / total).abs() < bound);
                }
            }
        }
    }
}

fn spans_of(shape: AttentionShape, tokens: usize) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let n = tokens * shape.kv_heads * shape.head_dim;
    let fill = |seed: usize| -> Vec<f32> { (0..n).map(|i| number(i, seed)).collect() };
    cached(shape.compute, &fill(1), &fill(2), shape.kv_heads * shape.head_dim, shape.head_dim)
}

/// One chat's answer is work for as many threads as it has key/value heads, to the same bits.
#[test]
fn few_sequences_are_cut_between_their_heads_and_no_bit_changes() {
    for compute in [Compute::F32, Compute::Bf16] {
        let shape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, compute };
        let (k0, v0) = spans_of(shape, 600);
        let (k1, v1) = spans_of(shape, 45);
        let spans = [KvSpan { tokens: 600, keys: &k0, values: &v0 }, KvSpan { tokens: 45, keys: &k1, values: &v1 }];
        let (q_dim, stride) = (9 * 64, 12 * 64);
        let decode = |threads: usize, sequences: usize| -> Vec<u32> {
            let queries: Vec<f32> = (0..sequences * stride).map(|i| number(i, 5)).collect();
            let mut out = vec![f32::NAN; sequences * q_dim];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| attention_decode(shape, &queries, stride, &vec![spans; sequences], &mut out));
            out.iter().map(|x| x.to_bits()).collect()
        };
        for sequences in 1..4 {
            assert_eq!(Cut::of(shape, &vec![spans; sequences], 4), Cut { kv_heads: 1, fewest: 1 });
            assert!(decode(1, sequences) == decode(4, sequences));
        }
    }
    let shape = AttentionShape { heads: 8, kv_heads: 4, head_dim: 32, compute: Compute::F32 };
    let of = |tokens: usize| [KvSpan { tokens, ..KvSpan::default() }, KvSpan::default()];
    // Enough sequences are taken whole; a short one is not worth another thread.
    assert_eq!(Cut::of(shape, &[of(4000); 8], 2), Cut { kv_heads: 4, fewest: 4 });
    assert_eq!(Cut::of(shape, &[of(128)], 2), Cut { kv_heads: 1, fewest: 8 });
}

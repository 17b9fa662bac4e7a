use super::*;
use proptest::prelude::*;

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 2001) as f32 / 1000.0 - 1.0;
    (0..n).map(number).collect()
}

/// Bits of the output, of the log-sum-exp and of the gradient, by so many threads.
fn bits(threads: usize, shape: AttentionShape, packing: &Packing) -> [Vec<u32>; 3] {
    let t = packing.rows();
    let (qk, qkv) = (numbers(t * shape.qk_dim(), 1), numbers(t * shape.qkv_dim(), 2));
    let (mut out, mut lse) = (vec![f32::NAN; t * shape.q_dim()], vec![f32::NAN; t * shape.heads]);
    let mut d_qkv = vec![f32::NAN; t * shape.qkv_dim()];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        attention(shape, packing, &qk, &qkv, &mut out, &mut lse);
        let saved = AttentionSaved { qk: &qk, qkv: &qkv, out: &out, lse: &lse };
        attention_backward(shape, packing, saved, &numbers(t * shape.q_dim(), 3), &mut d_qkv);
    });
    [out, lse, d_qkv].map(|x| x.iter().map(|x| x.to_bits()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// One thread cuts nothing; more of them cut long trees between queries and keys.
    #[test]
    fn the_cuts_change_no_bit(
        hd in prop_oneof![Just(8usize), Just(20), Just(64)], kv_heads in 1usize..3, group in prop_oneof![Just(1usize), Just(3), Just(8)],
        lengths in prop::collection::vec((1usize..700, any::<bool>()), 1..4), bf16 in any::<bool>(),
    ) {
        let compute = if bf16 { Compute::Bf16 } else { Compute::F32 };
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: hd, compute };
        let mut packing = Packing::new();
        for (n, continues) in lengths {
            let ids = vec![0; n];
            let _ = if continues { packing.push_continuation(&ids) } else { packing.push(&ids) };
        }
        let whole = bits(1, shape, &packing);
        for threads in [2, 7, 16] {
            prop_assert!(whole == bits(threads, shape, &packing), "{} threads", threads);
        }
    }
}

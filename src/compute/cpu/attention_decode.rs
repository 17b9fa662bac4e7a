//! Attention of one new token a sequence against cached keys and values. Bound by memory: each is read once.

use super::attention::{AttentionShape, exp_sum};
use super::simd::{axpy, dot, max, vectorize};
use rayon::prelude::*;

/// Cached keys and values of consecutive tokens, token-major: `[tokens, kv_heads * head_dim]` each.
#[derive(Clone, Copy)]
pub struct KvSpan<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
}

/// queries: rows of `query_stride` elements that begin with the sequence's rotated query `[H hd]`, one a sequence.
/// spans: for each sequence its shared prompt and its own tokens, the newest included. out `[B, H hd]`.
pub fn attention_decode(
    shape: AttentionShape,
    queries: &[f32],
    query_stride: usize,
    spans: &[[KvSpan<'_>; 2]],
    out: &mut [f32],
) {
    let (hd, kv_dim) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let (q_dim, group) = (shape.heads * hd, shape.heads / shape.kv_heads);
    let scale = 1.0 / (hd as f32).sqrt();
    let rows = out.par_chunks_mut(q_dim).zip(queries.par_chunks(query_stride)).zip(spans);
    rows.with_min_len(4).for_each_init(Vec::new, |scores: &mut Vec<f32>, ((out, query), spans)| {
        let tokens: usize = spans.iter().map(|s| s.keys.len() / kv_dim).sum();
        scores.clear();
        scores.resize(group * tokens, 0.0);
        vectorize(
            #[inline(always)]
            || {
                for kv_head in 0..shape.kv_heads {
                    let heads = kv_head * group * hd..(kv_head + 1) * group * hd;
                    let mut at = 0;
                    for span in spans {
                        for key in span.keys.chunks_exact(kv_dim) {
                            let key = &key[kv_head * hd..(kv_head + 1) * hd];
                            for (i, q) in query[heads.clone()].chunks_exact(hd).enumerate() {
                                scores[i * tokens + at] = dot(q, key) * scale;
                            }
                            at += 1;
                        }
                    }
                    let out = &mut out[heads];
                    out.fill(0.0);
                    for (i, out) in out.chunks_exact_mut(hd).enumerate() {
                        let scores = &mut scores[i * tokens..(i + 1) * tokens];
                        let m = max(scores);
                        let inv = 1.0 / exp_sum(scores, m);
                        let mut at = 0;
                        for span in spans {
                            for value in span.values.chunks_exact(kv_dim) {
                                axpy(scores[at] * inv, &value[kv_head * hd..(kv_head + 1) * hd], out);
                                at += 1;
                            }
                        }
                    }
                }
            },
        )
    });
}

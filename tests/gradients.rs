//! Every operation's backward against finite differences, and the whole decoder's for every kind of policy.
//!
//! The loss is a fixed random weighting of an operation's outputs, summed in f64. For a random direction `u`, the
//! central difference `(f(x + eps u) - f(x - eps u)) / 2 eps` must equal `grad . u`. In f32 the difference carries a
//! rounding error of about `1e-7 |f| / eps` and, after extrapolation, a curvature error of `eps^4`, which is what the tolerance allows for;
//! agreement to 1e-4 is the golden tests' job.

mod common;

use bupo::compute::Packing;
use bupo::compute::cpu::Array;
use bupo::compute::cpu::attention::{AttentionSaved, AttentionShape, attention, attention_backward};
use bupo::compute::cpu::embedding::{embed, embed_backward};
use bupo::compute::cpu::gemm::{Compute, Write, linear, linear_backward_input, linear_backward_weight};
use bupo::compute::cpu::head::{Head, HeadStats, RowGradients};
use bupo::compute::cpu::low_rank::{LowRank, merge};
use bupo::compute::cpu::norm::{add_rms_norm, rms_norm, rms_norm_backward};
use bupo::compute::cpu::rope::{QkRope, RopeTable};
use bupo::compute::cpu::swiglu::{swiglu, swiglu_backward};
use bupo::model::config::Family;
use bupo::model::{Keep, LayerIndex, LoraConfig, Model, ModelConfig, ParamLayout, Tap, Target, Trained, Workspace};
use bupo::policy::{InternalPolicy, Part, Pass, Targets};
use common::noise;
use std::convert::Infallible;
use std::ops::Range;

const TOLERANCE: f64 = 1e-2;

fn weighted(y: &[f32], c: &[f32]) -> f64 {
    assert_eq!(y.len(), c.len());
    y.iter().zip(c).map(|(y, c)| *y as f64 * *c as f64).sum()
}

/// Checks `grad` of `f` at `x` along several random directions.
fn check(name: &str, x: &[f32], grad: &[f32], f: impl Fn(&[f32]) -> f64) {
    let norm = grad.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 0.0, "{name}: the gradient is zero, so the check could not fail");
    for seed in 0..4 {
        let u = noise(x.len(), 77 + seed);
        let u_squared: f64 = u.iter().map(|u| (*u as f64).powi(2)).sum();
        let difference = |eps: f32| {
            let moved = |sign: f32| -> Vec<f32> { x.iter().zip(&u).map(|(x, u)| x + sign * eps * u).collect() };
            let (up, down) = (moved(1.0), moved(-1.0));
            // The step that was really taken, after rounding.
            let step: f64 = up.iter().zip(&down).zip(&u).map(|((a, b), u)| (a - b) as f64 * *u as f64).sum();
            (f(&up) - f(&down)) / (step / u_squared)
        };
        let scale = norm * (u_squared / x.len() as f64).sqrt();
        // A step that changes `f` by about 0.01, far above its rounding, where that step is neither tiny nor large.
        let eps = (0.01 / scale).clamp(5e-4, 2e-2) as f32;
        // Richardson: the curvature's part of the error falls out.
        let numeric = (4.0 * difference(eps) - difference(2.0 * eps)) / 3.0;
        let exact = weighted(grad, &u);
        assert!(
            (numeric - exact).abs() < TOLERANCE * scale,
            "{name}: finite difference {numeric}, gradient {exact}, scale {scale}"
        );
    }
}

#[test]
fn linear_layer() {
    let (t, i, o) = (5, 7, 6);
    let (x, w, c) = (noise(t * i, 1), noise(o * i, 2), noise(t * o, 3));
    let f = |x: &[f32], w: &[f32]| {
        let mut y = vec![0.0; t * o];
        linear(Compute::F32, x, w, &mut y, t, i, o, Write::Replace);
        weighted(&y, &c)
    };
    let (mut dx, mut dw) = (vec![0.0; t * i], vec![0.0; o * i]);
    linear_backward_input(Compute::F32, &c, &w, &mut dx, t, i, o, Write::Replace);
    linear_backward_weight(Compute::F32, &c, &x, &mut dw, t, i, o);
    check("linear input", &x, &dx, |x| f(x, &w));
    check("linear weight", &w, &dw, |w| f(&x, w));
}

#[test]
fn low_rank_path_of_a_fused_layer() {
    // Three parts, of which the second has no adapter; a row stride that is not the width of a part.
    let (t, i, o, r) = (6, 7, 11, 2);
    let (x, a, c) = (noise(t * i, 1), noise(2 * r * i, 2), noise(t * o, 3));
    let (b0, b2) = (noise(4 * r, 4), noise(5 * r, 5));
    let path = |a: &[f32], b0: &[f32], b2: &[f32], run: &mut dyn FnMut(LowRank<'_>)| {
        let b = vec![(b0, 0..4), (b2, 6..11)];
        run(LowRank { inputs: i, outputs: o, rank: r, scale: 1.7, a, b })
    };
    let f = |x: &[f32], a: &[f32], b0: &[f32], b2: &[f32]| {
        let mut y = vec![0.25; t * o];
        path(a, b0, b2, &mut |path| path.forward(Compute::F32, x, &mut y, t, &mut vec![]));
        assert!(y.chunks(o).all(|row| row[4..6] == [0.25, 0.25]), "columns of no adapter");
        weighted(&y, &c)
    };
    let (mut dx, mut da, mut db) = (vec![0.0; t * i], vec![0.0; 2 * r * i], vec![0.0; 9 * r]);
    path(&a, &b0, &b2, &mut |path| {
        path.backward_weight(Compute::F32, &x, &c, (&mut da, &mut db), t, &mut vec![]);
        path.backward_input(Compute::F32, &c, &mut dx, t, &mut vec![]);
    });
    check("low-rank input", &x, &dx, |x| f(x, &a, &b0, &b2));
    check("low-rank A", &a, &da, |a| f(&x, a, &b0, &b2));
    check("low-rank first B", &b0, &db[..4 * r], |b| f(&x, &a, b, &b2));
    check("low-rank last B", &b2, &db[4 * r..], |b| f(&x, &a, &b0, b));
    // Beside a weight of zeros, the path is what it merges to.
    let mut w = vec![0.0; o * i];
    merge(&mut w[..4 * i], &a[..r * i], &b0, 1.7, (4, i, r));
    merge(&mut w[6 * i..], &a[r * i..], &b2, 1.7, (5, i, r));
    let (mut y, mut merged) = (vec![0.0; t * o], vec![0.0; t * o]);
    path(&a, &b0, &b2, &mut |path| path.forward(Compute::F32, &x, &mut y, t, &mut vec![]));
    linear(Compute::F32, &x, &w, &mut merged, t, i, o, Write::Replace);
    assert!(y.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn rms_norm_alone_and_after_an_addition() {
    let (t, d, eps) = (70, 19, 1e-6);
    let (x, b, w, c) = (noise(t * d, 1), noise(t * d, 2), noise(d, 3), noise(t * d, 4));
    let f = |x: &[f32], w: &[f32]| {
        let (mut y, mut inv) = (vec![0.0; t * d], vec![0.0; t]);
        rms_norm(x, w, eps, &mut y, &mut inv);
        weighted(&y, &c)
    };
    let (mut y, mut inv) = (vec![0.0; t * d], vec![0.0; t]);
    rms_norm(&x, &w, eps, &mut y, &mut inv);
    let (mut dx, mut dw) = (vec![0.5; t * d], vec![0.0; d]);
    rms_norm_backward(&x, &w, &inv, &c, &mut dx, None, &mut dw, false);
    check("norm input", &x, &dx, |x| f(x, &w));
    check("norm weight", &w, &dw, |w| f(&x, w));

    let (mut dx_added, mut again) = (vec![0.5; t * d], vec![0.0; d]);
    rms_norm_backward(&x, &w, &inv, &c, &mut dx_added, None, &mut again, true);
    assert!(dx.iter().zip(&dx_added).all(|(a, b)| (a + 0.5 - b).abs() < 1e-5));

    let (mut sum, mut fused, mut inv_fused) = (vec![0.0; t * d], vec![0.0; t * d], vec![0.0; t]);
    add_rms_norm(&x, &b, &w, eps, &mut sum, &mut fused, &mut inv_fused);
    let added: Vec<f32> = x.iter().zip(&b).map(|(x, b)| x + b).collect();
    rms_norm(&added, &w, eps, &mut y, &mut inv);
    assert_eq!((sum, fused, inv_fused), (added, y, inv));
}

#[test]
fn head_norms_and_rope() {
    let (t, heads, kv_heads, head_dim) = (37, 4, 2, 6);
    let (qkv_dim, qk_dim) = ((heads + 2 * kv_heads) * head_dim, (heads + kv_heads) * head_dim);
    let mut table = RopeTable::new(vec![1.0, 0.3, 0.05]);
    table.reserve(t + 3);
    let positions: Vec<u32> = (3..t as u32 + 3).collect();
    let (x, qw, kw, c) = (noise(t * qkv_dim, 1), noise(head_dim, 2), noise(head_dim, 3), noise(t * qk_dim, 4));
    for normed in [true, false] {
        let op = |qw: &[f32], kw: &[f32], run: &mut dyn FnMut(QkRope<'_>)| {
            let (q_norm, k_norm) = if normed { (Some(qw), Some(kw)) } else { (None, None) };
            run(QkRope { heads, kv_heads, head_dim, q_norm, k_norm, eps: 1e-6, table: &table, positions: &positions })
        };
        let f = |x: &[f32], qw: &[f32], kw: &[f32]| {
            let mut y = vec![0.0; t * qk_dim];
            op(qw, kw, &mut |op| op.forward(x, &mut y));
            weighted(&y, &c)
        };
        let mut d = vec![0.0; t * qkv_dim];
        for (d, c) in d.chunks_exact_mut(qkv_dim).zip(c.chunks_exact(qk_dim)) {
            d[..qk_dim].copy_from_slice(c);
        }
        let (mut dq, mut dk) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        op(&qw, &kw, &mut |op| op.backward(&x, &mut d, Some((&mut dq, &mut dk))));
        check("rope input", &x, &d, |x| f(x, &qw, &kw));
        if normed {
            check("query norm", &qw, &dq, |qw| f(&x, qw, &kw));
            check("key norm", &kw, &dk, |kw| f(&x, &qw, kw));
        }
    }
}

#[test]
fn attention_with_shared_prompts() {
    let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 5, compute: Compute::F32 };
    let mut packing = Packing::new();
    packing.push(&[0; 4]);
    packing.push_continuation(&[0; 3]);
    packing.push_continuation(&[0; 60]);
    packing.push(&[0; 1]);
    packing.push(&[0; 9]);
    let t = packing.rows();
    let (qk_dim, qkv_dim) = (8 * 5, 10 * 5);
    let (x, c) = (noise(t * qkv_dim, 1), noise(t * 30, 2));
    let split = |x: &[f32]| -> Vec<f32> { x.chunks_exact(qkv_dim).flat_map(|row| row[..qk_dim].to_vec()).collect() };
    let run = |x: &[f32]| {
        let (mut out, mut lse) = (vec![0.0; t * 30], vec![0.0; t * 6]);
        attention(shape, &packing, &split(x), x, &mut out, &mut lse);
        (out, lse)
    };
    let (out, lse) = run(&x);
    let mut d = vec![f32::NAN; t * qkv_dim];
    let saved = AttentionSaved { qk: &split(&x), qkv: &x, out: &out, lse: &lse };
    attention_backward(shape, &packing, saved, &c, &mut d);
    check("attention", &x, &d, |x| weighted(&run(x).0, &c));
}

#[test]
fn gated_activation() {
    let (t, f) = (5, 21);
    let (x, c) = (noise(t * 2 * f, 1).iter().map(|x| 3.0 * x).collect::<Vec<_>>(), noise(t * f, 2));
    let run = |x: &[f32]| {
        let mut y = vec![0.0; t * f];
        swiglu(x, &mut y, f);
        weighted(&y, &c)
    };
    let mut d = x.clone();
    swiglu_backward(&mut d, &c, f);
    check("swiglu", &x, &d, run);
}

#[test]
fn embedding_with_repeated_tokens() {
    let (v, d, ids) = (5, 3, [4u32, 1, 4, 4, 0]);
    let (table, c) = (noise(v * d, 1), noise(ids.len() * d, 2));
    let mut grad = vec![0.0; v * d];
    embed_backward(&c, &ids, &mut grad, d);
    check("embedding", &table, &grad, |table| {
        let mut out = vec![0.0; ids.len() * d];
        embed(table, &ids, &mut out, d);
        weighted(&out, &c)
    });
}

#[test]
fn head_log_probs_and_entropy() {
    // More rows than a block and more entries than a tile; every third row without a gradient.
    let (rows, v, d) = (600, 1100, 4);
    let (hidden, table) = (noise(rows * d, 1), noise(v * d, 2));
    let targets: Vec<u32> = (0..rows as u32).map(|r| r * 8 % v as u32).collect();
    let sparse = |c: Vec<f32>| c.iter().enumerate().map(|(i, c)| if i % 3 == 0 { 0.0 } else { *c }).collect::<Vec<_>>();
    let (cp, ce) = (sparse(noise(rows, 3)), sparse(noise(rows, 4)));
    for (temperature, cp, ce) in [(1.0, &cp, vec![]), (0.7, &cp, ce.clone()), (1.3, &vec![0.0; rows], ce)] {
        let f = |hidden: &[f32], table: &[f32]| {
            let s = Head { embedding: table, hidden_size: d, temperature, compute: Compute::F32 }
                .forward(hidden, Some(&targets));
            let entropy = if ce.is_empty() { 0.0 } else { weighted(&s.entropy, &ce) };
            weighted(&s.log_probs, cp) + entropy
        };
        let head = Head { embedding: &table, hidden_size: d, temperature, compute: Compute::F32 };
        let (mut dh, mut de) = (vec![f32::NAN; rows * d], vec![0.0; v * d]);
        let stats =
            head.forward_backward(&hidden, &targets, &mut dh, Some(&mut de), &mut vec![], constant(cp, &ce)).unwrap();
        let mut alone = vec![f32::NAN; rows * d];
        head.forward_backward(&hidden, &targets, &mut alone, None, &mut vec![], constant(cp, &ce)).unwrap();
        assert_eq!(alone, dh, "a frozen unembedding changes the gradient of the states");
        assert_eq!(stats, head.forward(&hidden, Some(&targets)));
        check("head hidden", &hidden, &dh, |x| f(x, &table));
        check("head unembedding", &table, &de, |x| f(&hidden, x));
    }
}

/// A loss with the derivatives cp for log-probs and ce for entropies, whatever they are.
fn constant(cp: &[f32], ce: &[f32]) -> impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, Infallible> {
    move |rows, _| {
        let d_entropies = if ce.is_empty() { vec![] } else { ce[rows.clone()].to_vec() };
        Ok(RowGradients { d_log_probs: cp[rows].to_vec(), d_entropies })
    }
}

fn config(family: Family, tied: bool) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 40,
        hidden_size: 12,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        intermediate_size: 20,
        rms_norm_eps: 1e-6,
        rope_theta: 100.0,
        rope_scaling: None,
        tie_word_embeddings: tied,
        max_position_embeddings: 64,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

fn model(family: Family, tied: bool) -> Model {
    let config = config(family, tied);
    let layout = ParamLayout::new(&config);
    let mut params: Vec<f32> = noise(layout.len(), 5).iter().map(|x| 0.5 * x).collect();
    for tensor in layout.tensors.iter().filter(|t| t.name.contains("norm")) {
        params[tensor.range()].iter_mut().for_each(|w| *w += 1.0);
    }
    Model::new(config, params)
}

fn batch() -> (Packing, Targets) {
    let ids = |n: u32, seed: u32| -> Vec<u32> { (0..n).map(|i| (i * i * 7 + i + seed) % 40).collect() };
    let (mut packing, mut targets) = (Packing::new(), Targets::default());
    let prompt = packing.push(&ids(5, 1));
    for (n, seed) in [(4, 2), (7, 3)] {
        let response = ids(n, seed);
        let rows = packing.push_continuation(&response);
        targets.push_continuation(&response, prompt.end - 1, rows.start);
    }
    let alone = ids(9, 4);
    let rows = packing.push(&alone);
    targets.push_response(&alone, rows.start, 3);
    (packing, targets)
}

#[test]
fn whole_decoder_for_every_kind_of_policy() {
    let (packing, targets) = batch();
    let (cp, ce) = (noise(targets.len(), 6), noise(targets.len(), 7));
    for (family, tied) in [(Family::Qwen3, true), (Family::Qwen2, false), (Family::Llama, true)] {
        let model = model(family, tied);
        for policy in ["final", "layer:2", "layer:3", "attn:2", "ffn:3", "normed:2", "normed:3"] {
            let policy = InternalPolicy::parse(policy, 3).unwrap();
            let trained = model.layout.trained_by(policy.tap());
            let f = |params: &[f32]| {
                let moved = Model::new(model.config.clone(), params.to_vec());
                let s = policy.score(&moved, &mut Workspace::new(&moved), &packing, &targets, 0.9);
                weighted(&s.log_probs, &cp) + weighted(&s.entropy, &ce)
            };
            let mut by_mode = vec![];
            for (keep, whole) in [(Keep::Activations, false), (Keep::LayerInputs, false), (Keep::Activations, true)] {
                let pass = Pass { temperature: 0.9, keep, whole, trained: &trained };
                let mut ws = Workspace::new(&model);
                let mut grads = Array::from(vec![0f32; model.layout.len()]);
                let loss = constant(&cp, &ce);
                policy.gradient(&model, &mut ws, &packing, &targets, pass, &mut grads, loss).unwrap();
                by_mode.push(grads.into_f32());
            }
            assert_eq!(by_mode[0], by_mode[1], "recomputing changes the gradient of {policy}");
            assert_eq!(by_mode[0], by_mode[2], "a loss that is asked once changes the gradient of {policy}");
            let grads = &by_mode[0];
            // Tensor by tensor, so that a large gradient cannot hide a small one's error.
            for tensor in &model.layout.tensors {
                let range = tensor.range();
                if !trained.has(&range) {
                    assert!(grads[range].iter().all(|g| *g == 0.0), "{policy} reaches above itself");
                    continue;
                }
                let name = format!("{family:?} {policy} {}", tensor.name);
                check(&name, &model.params[range.clone()], &grads[range.clone()], |part| {
                    let mut params = model.params.clone();
                    params[range.clone()].copy_from_slice(part);
                    f(&params)
                });
            }
        }
    }
}

/// A model with an adapter whose B are not zero, so that A has a gradient.
fn adapted(family: Family, tied: bool, lora: &LoraConfig) -> Model {
    let mut model = model(family, tied);
    model.add_adapter(lora, "base", 3).unwrap();
    let range = model.layout.trainable();
    let values: Vec<f32> = noise(range.len(), 8).iter().map(|x| 0.4 * x).collect();
    model.params[range].copy_from_slice(&values);
    model
}

#[test]
fn adapters_for_every_kind_of_policy() {
    let (packing, targets) = batch();
    let (cp, ce) = (noise(targets.len(), 6), noise(targets.len(), 7));
    let all = LoraConfig { rank: 3, alpha: 4.0, ..LoraConfig::default() };
    let some =
        LoraConfig { targets: vec![Target::KProj, Target::UpProj], layers: Some("2-3".into()), rslora: true, ..all };
    for (family, tied, lora) in
        [(Family::Qwen3, true, &all), (Family::Qwen2, false, &some), (Family::Llama, true, &some)]
    {
        let model = adapted(family, tied, lora);
        let trainable = model.layout.trainable();
        for policy in ["final", "layer:2", "layer:3", "attn:2", "ffn:3", "normed:2"] {
            let policy = InternalPolicy::parse(policy, 3).unwrap();
            let trained = model.layout.trained_by(policy.tap());
            let f = |model: &Model| {
                let s = policy.score(model, &mut Workspace::new(model), &packing, &targets, 0.9);
                weighted(&s.log_probs, &cp) + weighted(&s.entropy, &ce)
            };
            let mut by_mode = vec![];
            for keep in [Keep::Activations, Keep::LayerInputs] {
                let pass = Pass { temperature: 0.9, keep, whole: false, trained: &trained };
                // No room for anything but the adapter's gradients.
                let (mut ws, mut grads) = (Workspace::new(&model), Array::from(vec![0f32; trainable.len()]));
                let loss = constant(&cp, &ce);
                policy.gradient(&model, &mut ws, &packing, &targets, pass, &mut grads, loss).unwrap();
                by_mode.push(grads.into_f32());
            }
            assert_eq!(by_mode[0], by_mode[1], "recomputing changes the gradient of {policy}");
            for tensor in model.layout.trainable_tensors() {
                let own = tensor.offset - trainable.start..tensor.range().end - trainable.start;
                let name = format!("{family:?} {policy} {}", tensor.name);
                if !trained.has(&tensor.range()) {
                    assert!(by_mode[0][own].iter().all(|g| *g == 0.0), "{name} lies above");
                    continue;
                }
                check(&name, &model.params[tensor.range()], &by_mode[0][own], |part| {
                    let mut moved = model.clone();
                    moved.params[tensor.range()].copy_from_slice(part);
                    f(&moved)
                });
            }
        }
        // Off, it is the base; merged, it is what it was beside it.
        let mut merged = model.clone();
        let score =
            |model: &Model| InternalPolicy::Final.score(model, &mut Workspace::new(model), &packing, &targets, 1.0);
        let base = Model::new(model.config.clone(), model.params[..trainable.start].to_vec());
        assert_eq!(merged.without_adapter(score), score(&base));
        let beside = score(&model);
        assert_ne!(beside, score(&base));
        merged.merge_adapter();
        assert_eq!(merged.layout.tensors, base.layout.tensors);
        let worst =
            beside.log_probs.iter().zip(score(&merged).log_probs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-5, "{family:?}: {worst}");
    }
}

#[test]
fn sharing_a_prompt_changes_neither_values_nor_gradients() {
    let model = model(Family::Qwen3, true);
    let (prompt, responses) = (vec![3u32, 9, 27, 1], [vec![5u32, 6, 7], vec![8u32, 2, 30, 31, 12]]);
    let (mut shared, mut apart) = ((Packing::new(), Targets::default()), (Packing::new(), Targets::default()));
    let rows = shared.0.push(&prompt);
    for response in &responses {
        let own = shared.0.push_continuation(response);
        shared.1.push_continuation(response, rows.end - 1, own.start);
        let whole = [&prompt[..], response].concat();
        let rows = apart.0.push(&whole);
        apart.1.push_response(&whole, rows.start, prompt.len());
    }
    let c = noise(8, 9);
    let run = |(packing, targets): &(Packing, Targets)| {
        let mut ws = Workspace::new(&model);
        let policy = InternalPolicy::Final;
        let mut grads = Array::from(vec![0f32; model.layout.len()]);
        let trained = Trained::everything(&model.layout);
        let pass = Pass { temperature: 1.0, keep: Keep::Activations, whole: false, trained: &trained };
        let stats = policy.gradient(&model, &mut ws, packing, targets, pass, &mut grads, constant(&c, &[])).unwrap();
        (stats.log_probs, grads.into_f32())
    };
    let ((p, g), (q, h)) = (run(&shared), run(&apart));
    let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let size = h.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(worst(&p, &q) < 1e-5 && worst(&g, &h) < 1e-5 * size, "{} {}", worst(&p, &q), worst(&g, &h) / size);
}

/// The gradient of `final` and, times 0.7, of a layer beside it, from one forward.
fn joint(model: &Model, layer: usize, keep: Keep, whole: bool, trained: &Trained) -> Vec<f32> {
    let (packing, targets) = batch();
    let (cp, ce, cb) = (noise(targets.len(), 6), noise(targets.len(), 7), noise(targets.len(), 8));
    let mut grads = Array::from(vec![0f32; model.layout.len()]);
    let layer = LayerIndex::from_one_based(layer, model.config.layers).unwrap();
    let pass = Pass { temperature: 0.9, keep, whole, trained };
    let loss = |part: Part, rows: Range<usize>, _: &HeadStats| -> Result<RowGradients, Infallible> {
        Ok(match part {
            Part::Policy => RowGradients { d_log_probs: cp[rows.clone()].to_vec(), d_entropies: ce[rows].to_vec() },
            Part::Beside => {
                RowGradients { d_log_probs: cb[rows].iter().map(|c| 0.7 * c).collect(), d_entropies: vec![] }
            }
        })
    };
    let mut ws = Workspace::new(model);
    let policy = InternalPolicy::Final;
    let (stats, beside) =
        policy.joint_gradient(Some(layer), model, &mut ws, &packing, &targets, pass, &mut grads, loss).unwrap();
    let score = |p: InternalPolicy| p.score(model, &mut Workspace::new(model), &packing, &targets, 0.9);
    assert_eq!((stats, beside.unwrap()), (score(InternalPolicy::Final), score(InternalPolicy::Layer(layer))));
    grads.into_f32()
}

#[test]
fn a_joint_gradient_is_the_sum_of_two_and_the_slope_of_the_sum() {
    let (packing, targets) = batch();
    let (cp, ce, cb) = (noise(targets.len(), 6), noise(targets.len(), 7), noise(targets.len(), 8));
    for (family, tied, layer) in [(Family::Qwen3, true, 1), (Family::Qwen2, false, 2), (Family::Llama, true, 3)] {
        let model = model(family, tied);
        let lower = InternalPolicy::Layer(LayerIndex::from_one_based(layer, 3).unwrap());
        let everything = Trained::everything(&model.layout);
        let grads = joint(&model, layer, Keep::Activations, false, &everything);
        for (keep, whole) in [(Keep::LayerInputs, false), (Keep::Activations, true)] {
            assert_eq!(joint(&model, layer, keep, whole, &everything), grads);
        }
        let mut apart = Array::from(vec![0f32; model.layout.len()]);
        for (policy, cp, ce) in
            [(InternalPolicy::Final, cp.clone(), ce.clone()), (lower, cb.iter().map(|c| 0.7 * c).collect(), vec![])]
        {
            let trained = model.layout.trained_by(policy.tap());
            let pass = Pass { temperature: 0.9, keep: Keep::Activations, whole: false, trained: &trained };
            let mut ws = Workspace::new(&model);
            policy.gradient(&model, &mut ws, &packing, &targets, pass, &mut apart, constant(&cp, &ce)).unwrap();
        }
        let apart = apart.into_f32();
        let norm = |x: &[f32]| x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
        for tensor in &model.layout.tensors {
            let range = tensor.range();
            let difference: Vec<f32> =
                grads[range.clone()].iter().zip(&apart[range.clone()]).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) < 1e-5 * norm(&apart[range.clone()]), "{family:?} {}", tensor.name);
            check(
                &format!("joint {family:?} {}", tensor.name),
                &model.params[range.clone()],
                &grads[range.clone()],
                |part| {
                    let mut params = model.params.clone();
                    params[range.clone()].copy_from_slice(part);
                    let moved = Model::new(model.config.clone(), params);
                    let score =
                        |p: InternalPolicy| p.score(&moved, &mut Workspace::new(&moved), &packing, &targets, 0.9);
                    let upper = score(InternalPolicy::Final);
                    weighted(&upper.log_probs, &cp)
                        + weighted(&upper.entropy, &ce)
                        + 0.7 * weighted(&score(lower).log_probs, &cb)
                },
            );
        }
    }
}

#[test]
fn frozen_parameters_get_nothing_and_change_nothing_for_the_others() {
    for (family, tied) in [(Family::Qwen3, true), (Family::Qwen2, false), (Family::Llama, false)] {
        let model = model(family, tied);
        let (layout, everything) = (&model.layout, Trained::everything(&model.layout));
        let whole = joint(&model, 2, Keep::Activations, false, &everything);
        let layer = |n: usize| layout.layers[n - 1].attn_norm.start..layout.layers[n - 1].down.end;
        for frozen in [
            vec![layout.embed.clone(), layer(1)],
            vec![layer(2)],
            vec![layout.embed.clone(), layer(1), layer(2)],
            vec![layout.unembed.clone(), layout.final_norm.clone()],
            vec![layout.embed.clone(), layer(1), layer(2), layer(3)],
        ] {
            let flags: Vec<bool> =
                layout.tensors.iter().map(|t| !frozen.iter().any(|range| range.contains(&t.offset))).collect();
            let trained = layout.trained_by(Tap::Final).and(&flags);
            for keep in [Keep::Activations, Keep::LayerInputs] {
                let grads = joint(&model, 2, keep, false, &trained);
                for tensor in &layout.tensors {
                    let (range, name) = (tensor.range(), &tensor.name);
                    match trained.has(&range) {
                        true => assert_eq!(grads[range.clone()], whole[range], "{family:?} {name}"),
                        false => assert!(grads[range].iter().all(|g| *g == 0.0), "{family:?} {name} is frozen"),
                    }
                }
            }
        }
    }
}

//! Kernels that go row by row: norms, head norms with RoPE, the gated activation.

use super::{Arg, Memory, Real, close, kernels, numbers, row_threads};
use crate::compute::cpu::norm::{add_rms_norm, rms_norm, rms_norm_again, rms_norm_backward};
use crate::compute::cpu::rope::{QkRope, RopeTable};
use crate::compute::cpu::swiglu::{swiglu, swiglu_backward};

const EPS: f32 = 1e-6;
/// Sums in another order; one rounding of a stored number besides.
fn bound(real: Real) -> f32 {
    real.pick(1e-6, 4e-3)
}

const SHAPES: [(usize, usize); 4] = [(1, 8), (3, 64), (65, 136), (7, 1032)];

#[test]
fn norms_equal_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (t, d) in SHAPES {
            let (x, w) = (numbers(t * d, 1), numbers(d, 2));
            let branch = real.stored(&numbers(t * d, 3));
            let (mut y, mut inv) = (vec![0f32; t * d], vec![0f32; t]);
            let (mx, mw) = (Memory::f32(&x), Memory::f32(&w));
            let (mut my, mut minv) = (Memory::real_room(real, t * d), Memory::room(t));
            let grid = [t, 1, 1];

            rms_norm(&x, &w, EPS, &mut y, &mut inv);
            gpu.launch(
                "rms_norm",
                grid,
                row_threads(d),
                0,
                &mut [Arg::In(&mx), Arg::In(&mw), Arg::Float(EPS), Arg::Out(&mut my), Arg::Out(&mut minv), Arg::Int(d)],
            );
            close("rms_norm", &my.floats(), &y, bound(real));
            close("inv_rms", &minv.floats(), &inv, 1e-6);

            rms_norm_again(&x, &w, &inv, &mut y);
            let mut again = Memory::real_room(real, t * d);
            gpu.launch(
                "rms_norm_again",
                grid,
                row_threads(d),
                0,
                &mut [Arg::In(&mx), Arg::In(&mw), Arg::In(&Memory::f32(&inv)), Arg::Out(&mut again), Arg::Int(d)],
            );
            close("rms_norm_again", &again.floats(), &y, bound(real));

            let mut sum = vec![0f32; t * d];
            add_rms_norm(&x, &branch, &w, EPS, &mut sum, &mut y, &mut inv);
            let mut msum = Memory::room(t * d);
            gpu.launch(
                "add_rms_norm",
                grid,
                row_threads(d),
                0,
                &mut [
                    Arg::In(&mx),
                    Arg::In(&Memory::real(real, &branch)),
                    Arg::In(&mw),
                    Arg::Float(EPS),
                    Arg::Out(&mut msum),
                    Arg::Out(&mut my),
                    Arg::Out(&mut minv),
                    Arg::Int(d),
                ],
            );
            assert_eq!(msum.floats(), sum, "the stream is added in f32");
            close("add_rms_norm", &my.floats(), &y, bound(real));
        }
    }
}

#[test]
fn norms_backward_equals_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (t, d) in SHAPES {
            for (kernel, accumulate) in
                [("rms_norm_backward", false), ("rms_norm_backward", true), ("rms_norm_backward_f32", true)]
            {
                let stored = if kernel.ends_with("f32") { Real::F32 } else { real };
                let (x, w, dy) = (numbers(t * d, 4), numbers(d, 5), stored.stored(&numbers(t * d, 6)));
                let (mut y, mut inv) = (vec![0f32; t * d], vec![0f32; t]);
                rms_norm(&x, &w, EPS, &mut y, &mut inv);
                let (mut dx, mut dw) = (numbers(t * d, 7), numbers(d, 8));
                let rows = 16;
                let blocks = t.div_ceil(rows);
                let (mut mdx, mut mdw) = (Memory::f32(&dx), Memory::f32(&dw));
                let (mut partial, mut rounded) = (Memory::room(blocks * d), Memory::real_room(real, t * d));
                rms_norm_backward(&x, &w, &inv, &dy, &mut dx, None, &mut dw, accumulate);
                gpu.launch(
                    kernel,
                    [blocks, 1, 1],
                    row_threads(d),
                    4 * d,
                    &mut [
                        Arg::In(&Memory::f32(&x)),
                        Arg::In(&Memory::f32(&w)),
                        Arg::In(&Memory::f32(&inv)),
                        Arg::In(&Memory::real(stored, &dy)),
                        Arg::Out(&mut mdx),
                        if accumulate { Arg::Out(&mut rounded) } else { Arg::Null },
                        Arg::Out(&mut partial),
                        Arg::Int(t),
                        Arg::Int(d),
                        Arg::Int(rows),
                        Arg::Int(accumulate as usize),
                    ],
                );
                gpu.launch(
                    "add_column_sums",
                    [d.div_ceil(32), 1, 1],
                    64,
                    0,
                    &mut [Arg::In(&partial), Arg::Out(&mut mdw), Arg::Int(blocks), Arg::Int(d)],
                );
                close("dx", &mdx.floats(), &dx, 2e-6);
                if accumulate {
                    assert_eq!(rounded.floats(), real.stored(&mdx.floats()));
                }
                close("dw", &mdw.floats(), &dw, 2e-6);
            }
        }
    }
}

#[test]
fn head_norms_and_rope_equal_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (t, heads, kv_heads, hd, normed) in [
            (1, 1, 1, 8, false),
            (5, 2, 1, 32, true),
            (9, 4, 2, 64, true),
            (3, 3, 1, 128, true),
            (2, 2, 2, 128, false),
            (2, 1, 1, 256, true),
        ] {
            let (rotated, all) = ((heads + kv_heads) * hd, (heads + 2 * kv_heads) * hd);
            let inv_freq: Vec<f32> = (0..hd / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / hd as f32)).collect();
            let positions: Vec<u32> = (0..t as u32).map(|p| p * 7 % 19).collect();
            let mut table = RopeTable::new(inv_freq.clone());
            table.reserve(20);
            let angle = |p: usize, f: &f32| (p as f32 * f) as f64;
            let cos: Vec<f32> = (0..20).flat_map(|p| inv_freq.iter().map(move |f| angle(p, f).cos() as f32)).collect();
            let sin: Vec<f32> = (0..20).flat_map(|p| inv_freq.iter().map(move |f| angle(p, f).sin() as f32)).collect();
            let (q_norm, k_norm) = (numbers(hd, 1), numbers(hd, 2));
            let qkv = real.stored(&numbers(t * all, 3));
            let op = QkRope {
                heads,
                kv_heads,
                head_dim: hd,
                q_norm: normed.then_some(&q_norm),
                k_norm: normed.then_some(&k_norm),
                eps: EPS,
                table: &table,
                positions: &positions,
            };
            let mut qk = vec![0f32; t * rotated];
            op.forward(&qkv, &mut qk);
            let (mqkv, mq, mk) = (Memory::real(real, &qkv), Memory::f32(&q_norm), Memory::f32(&k_norm));
            let (mcos, msin, mpos) = (Memory::f32(&cos), Memory::f32(&sin), Memory::u32(&positions));
            let norm = |m| if normed { Arg::In(m) } else { Arg::Null };
            let mut mqk = Memory::real_room(real, t * rotated);
            gpu.launch(
                "qk_rope",
                [(t * (heads + kv_heads)).div_ceil(8), 1, 1],
                256,
                0,
                &mut [
                    Arg::In(&mqkv),
                    Arg::Out(&mut mqk),
                    norm(&mq),
                    norm(&mk),
                    Arg::Float(EPS),
                    Arg::In(&mcos),
                    Arg::In(&msin),
                    Arg::In(&mpos),
                    Arg::Int(t),
                    Arg::Int(heads),
                    Arg::Int(kv_heads),
                    Arg::Int(hd),
                ],
            );
            close("qk_rope", &mqk.floats(), &qk, bound(real));

            // Two pages; the last token is not kept.
            let mut slots: Vec<u32> = (0..t as u32).map(|token| 30 - 3 * token).collect();
            slots[t - 1] = if t > 1 { u32::MAX } else { slots[0] };
            let mut to_qk = Memory::real_room(real, t * rotated);
            let [mut keys, mut values] = [(); 2].map(|()| Memory::real_room(real, 2 * 16 * kv_heads * hd));
            gpu.launch(
                "qk_rope_to_pages",
                [(t * (heads + 2 * kv_heads)).div_ceil(8), 1, 1],
                256,
                0,
                &mut [
                    Arg::In(&mqkv),
                    Arg::Out(&mut to_qk),
                    norm(&mq),
                    norm(&mk),
                    Arg::Float(EPS),
                    Arg::In(&mcos),
                    Arg::In(&msin),
                    Arg::In(&mpos),
                    Arg::In(&Memory::u32(&slots)),
                    Arg::Out(&mut keys),
                    Arg::Out(&mut values),
                    Arg::Int(t),
                    Arg::Int(heads),
                    Arg::Int(kv_heads),
                    Arg::Int(hd),
                ],
            );
            let (rotated_rows, keys, values) = (mqk.floats(), keys.floats(), values.floats());
            let kept = slots.iter().filter(|slot| **slot != u32::MAX).count();
            for pages in [&keys, &values] {
                assert_eq!(
                    pages.iter().filter(|x| !x.is_nan()).count(),
                    kept * kv_heads * hd,
                    "other places are left alone"
                );
            }
            for (token, row) in rotated_rows.chunks_exact(rotated).enumerate() {
                assert_eq!(to_qk.floats()[token * rotated..][..heads * hd], row[..heads * hd]);
                let Some(slot) = Some(slots[token] as usize).filter(|_| slots[token] != u32::MAX) else { continue };
                for head in 0..kv_heads {
                    let place = ((slot / 16 * kv_heads + head) * 16 + slot % 16) * hd;
                    assert_eq!(keys[place..][..hd], row[(heads + head) * hd..][..hd], "the bits of qk_rope");
                    assert_eq!(values[place..][..hd], qkv[token * all + rotated + head * hd..][..hd]);
                }
            }

            let mut d_qkv = real.stored(&numbers(t * all, 4));
            let mut md = Memory::real(real, &d_qkv);
            let (mut d_q, mut d_k) = (vec![0f32; hd], vec![0f32; hd]);
            op.backward(&qkv, &mut d_qkv, normed.then_some((&mut d_q, &mut d_k)));
            let rows = 4;
            let blocks = t.div_ceil(rows);
            let mut partial = Memory::f32(&vec![0f32; blocks * 2 * hd]);
            gpu.launch(
                "qk_rope_backward",
                [blocks, 1, 1],
                256,
                64 * hd,
                &mut [
                    Arg::In(&mqkv),
                    Arg::Out(&mut md),
                    norm(&mq),
                    norm(&mk),
                    Arg::Float(EPS),
                    Arg::In(&mcos),
                    Arg::In(&msin),
                    Arg::In(&mpos),
                    if normed { Arg::Out(&mut partial) } else { Arg::Null },
                    Arg::Int(t),
                    Arg::Int(heads),
                    Arg::Int(kv_heads),
                    Arg::Int(hd),
                    Arg::Int(rows),
                ],
            );
            close("qk_rope_backward", &md.floats(), &d_qkv, bound(real));
            let mut sums = Memory::f32(&vec![0f32; 2 * hd]);
            gpu.launch(
                "add_column_sums",
                [(2 * hd).div_ceil(32), 1, 1],
                256,
                0,
                &mut [Arg::In(&partial), Arg::Out(&mut sums), Arg::Int(blocks), Arg::Int(2 * hd)],
            );
            close("d_norms", &sums.floats(), &[d_q, d_k].concat(), 2e-6);
        }
    }
}

#[test]
fn the_gated_activation_equals_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (t, f) in [(1, 8), (5, 40), (3, 264)] {
            let scaled: Vec<f32> = numbers(t * 2 * f, 1).iter().map(|x| 4.0 * x).collect();
            let (mut gate_up, d_act) = (real.stored(&scaled), real.stored(&numbers(t * f, 2)));
            let mut act = vec![0f32; t * f];
            swiglu(&gate_up, &mut act, f);
            let mut m_gate_up = Memory::real(real, &gate_up);
            let (mut m_act, mut again) = (Memory::real_room(real, t * f), Memory::real_room(real, t * f));
            gpu.launch(
                "swiglu",
                [2, 1, 1],
                32,
                0,
                &mut [Arg::In(&m_gate_up), Arg::Out(&mut m_act), Arg::Int(t), Arg::Int(f)],
            );
            close("swiglu", &m_act.floats(), &act, bound(real));
            swiglu_backward(&mut gate_up, &d_act, f);
            gpu.launch(
                "swiglu_backward",
                [1, 1, 1],
                64,
                0,
                &mut [
                    Arg::Out(&mut m_gate_up),
                    Arg::In(&Memory::real(real, &d_act)),
                    Arg::Out(&mut again),
                    Arg::Int(t),
                    Arg::Int(f),
                ],
            );
            close("swiglu_backward", &m_gate_up.floats(), &gate_up, bound(real));
            close("swiglu again", &again.floats(), &act, bound(real));
        }
    }
}

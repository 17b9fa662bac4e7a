//! The head: statistics from tiles of logits, and the logits' gradient.

use super::{Arg, Memory, Real, close, kernels, numbers};
use crate::compute::cpu::gemm::Compute;
use crate::compute::cpu::head::{Head, RowGradients};
use std::convert::Infallible;

/// With the identity as unembedding, hidden states are logits, and their gradient is that of the logits.
fn identity(v: usize) -> Vec<f32> {
    (0..v * v).map(|i| if i % v == i / v { 1.0 } else { 0.0 }).collect()
}

#[test]
fn statistics_and_gradients_of_logits_equal_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (rows, v, width, stride, scale) in
            [(1, 7, 7, 7, 1.0), (3, 700, 512, 512, 3.0), (5, 1030, 300, 303, 12.0), (2, 64, 64, 67, 0.01)]
        {
            let mut z: Vec<f32> = numbers(rows * v, 1).iter().map(|z| z * scale).collect();
            // Of the last row every logit is the largest so far.
            z[(rows - 1) * v..].sort_by(f32::total_cmp);
            let targets: Vec<u32> = (0..rows).map(|r| ((r * 397 + 3) % v) as u32).collect();
            let unit = identity(v);
            let head = Head { embedding: &unit, hidden_size: v, temperature: 0.7, compute: Compute::F32 };
            let gradients = RowGradients { d_log_probs: numbers(rows, 2), d_entropies: numbers(rows, 3) };
            let (mut d_hidden, mut scratch) = (vec![0f32; rows * v], Vec::new());
            let loss = |rows: std::ops::Range<usize>, _: &_| Ok::<_, Infallible>(gradients.part(rows));
            let Ok(stats) = head.forward_backward(&z, &targets, &mut d_hidden, None, &mut scratch, loss);

            let inv_t = 1.0 / 0.7f32;
            let m_targets = Memory::u32(&targets);
            let (mut m, mut target_logit) = (Memory::room(rows), Memory::room(rows));
            let (mut s, mut a) = (Memory::f64(&vec![0.0; rows]), Memory::f64(&vec![0.0; rows]));
            let (mut best, mut top) = (Memory::room(rows), Memory::u32(&vec![0; rows]));
            // A tile as a product leaves it: rows `stride` apart.
            let tile = |first: usize| {
                let width = width.min(v - first);
                let mut tile = vec![f32::NAN; rows * stride];
                for row in 0..rows {
                    tile[row * stride..row * stride + width]
                        .copy_from_slice(&z[row * v + first..row * v + first + width]);
                }
                (Memory::f32(&tile), width)
            };
            for first in (0..v).step_by(width) {
                let (logits, width) = tile(first);
                gpu.launch(
                    "head_fold",
                    [rows, 1, 1],
                    64,
                    0,
                    &mut [
                        Arg::In(&logits),
                        Arg::Long(stride),
                        Arg::Int(width),
                        Arg::Float(inv_t),
                        Arg::In(&m_targets),
                        Arg::Int(first),
                        Arg::Out(&mut m),
                        Arg::Out(&mut s),
                        Arg::Out(&mut a),
                        Arg::Out(&mut target_logit),
                        Arg::Int((first == 0) as usize),
                    ],
                );
                gpu.launch(
                    "head_top",
                    [rows, 1, 1],
                    32,
                    0,
                    &mut [
                        Arg::In(&logits),
                        Arg::Long(stride),
                        Arg::Int(width),
                        Arg::Int(first),
                        Arg::Out(&mut best),
                        Arg::Out(&mut top),
                        Arg::Int((first == 0) as usize),
                    ],
                );
            }
            let (mut lse, mut entropy, mut log_probs) = (Memory::room(rows), Memory::room(rows), Memory::room(rows));
            gpu.launch(
                "head_finish",
                [1, 1, 1],
                32,
                0,
                &mut [
                    Arg::In(&m),
                    Arg::In(&s),
                    Arg::In(&a),
                    Arg::In(&target_logit),
                    Arg::Out(&mut lse),
                    Arg::Out(&mut entropy),
                    Arg::Out(&mut log_probs),
                    Arg::Int(rows),
                ],
            );
            close("lse", &lse.floats(), &stats.lse, 5e-7);
            close("entropy", &entropy.floats(), &stats.entropy, 1e-6);
            close("log_probs", &log_probs.floats(), &stats.log_probs, 5e-7);
            assert_eq!(top.u32s(), head.compare(&z, 1, &[], None).top);

            let (lse, entropy) = (Memory::f32(&stats.lse), Memory::f32(&stats.entropy));
            let (g, h) = (Memory::f32(&gradients.d_log_probs), Memory::f32(&gradients.d_entropies));
            let mut got = vec![0f32; rows * v];
            // Of the rows backwards, as a list may name some of them.
            let list: Vec<u32> = (0..rows as u32).rev().collect();
            for first in (0..v).step_by(width) {
                let (logits, width) = tile(first);
                let mut dz = Memory::real_room(real, rows * width);
                gpu.launch(
                    "head_d_logits",
                    [rows, 1, 1],
                    64,
                    0,
                    &mut [
                        Arg::In(&logits),
                        Arg::Long(stride),
                        Arg::Int(width),
                        Arg::Float(inv_t),
                        Arg::In(&Memory::u32(&list)),
                        Arg::In(&m_targets),
                        Arg::Int(first),
                        Arg::In(&lse),
                        Arg::In(&entropy),
                        Arg::In(&g),
                        Arg::In(&h),
                        Arg::Out(&mut dz),
                        Arg::Long(width),
                    ],
                );
                for (dz, row) in dz.floats().chunks_exact(width).zip(&list) {
                    got[*row as usize * v + first..][..width].copy_from_slice(dz);
                }
            }
            close("d_logits", &got, &d_hidden, real.pick(2e-6, 4e-3));
        }
    }
}

#[test]
fn the_gradient_may_take_the_place_of_the_logits() {
    let gpu = kernels(Real::F32);
    let (rows, v) = (2, 40);
    let z = Memory::f32(&numbers(rows * v, 1));
    let (targets, lse, entropy) = (Memory::u32(&[3, 39]), Memory::f32(&[4.0, 4.1]), Memory::f32(&[3.0, 3.1]));
    let g = Memory::f32(&[0.0, -0.5]);
    let run = |logits: Arg<'_>, out: Arg<'_>| {
        gpu.launch(
            "head_d_logits",
            [rows, 1, 1],
            32,
            0,
            &mut [
                logits,
                Arg::Long(v),
                Arg::Int(v),
                Arg::Float(1.0),
                Arg::Null,
                Arg::In(&targets),
                Arg::Int(0),
                Arg::In(&lse),
                Arg::In(&entropy),
                Arg::In(&g),
                Arg::Null,
                out,
                Arg::Long(v),
            ],
        );
    };
    let mut out = Memory::room(rows * v);
    run(Arg::In(&z), Arg::Out(&mut out));
    let dz = out.floats();
    assert!(dz[..v].iter().all(|d| *d == 0.0), "a row without a gradient has none");
    let p = (z.floats()[v] - 4.1).exp();
    assert!((dz[v] - 0.5 * p).abs() < 1e-6 && dz[2 * v - 1] < 0.0, "{dz:?}");
}

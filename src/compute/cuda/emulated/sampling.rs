//! The sampler's draws against the rollout's own.

#[cfg(test)] // Upwards, which only a test may look: the kernel stands in for what lies above the CPU's operations.
use crate::rollout::sampler::{SampleRng, Sampling, sample};

use super::{Arg, Memory, Real, kernels, numbers};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Draws from rows of logits on both sides: the CPU's token, log-prob and entropy, then the kernel's.
#[allow(clippy::type_complexity)]
fn draws(logits: &[f32], v: usize, sampling: &Sampling) -> [(Vec<u32>, Vec<f32>, Vec<f32>); 2] {
    let rows = logits.len() / v;
    let inv_t = 1.0 / sampling.head_temperature();
    let (mut cpu, mut uniforms) = ((vec![], vec![], vec![]), vec![]);
    for (seed, row) in logits.chunks_exact(v).enumerate() {
        let mut row: Vec<f32> = row.iter().map(|z| if inv_t == 1.0 { *z } else { z * inv_t }).collect();
        let draw = sample(&mut row, sampling, &mut SampleRng::new(seed as u64));
        cpu.0.push(draw.token);
        cpu.1.push(draw.log_prob);
        cpu.2.push(draw.entropy);
        uniforms.push((ChaCha8Rng::seed_from_u64(seed as u64).next_u64() >> 11) as f64 / (1u64 << 53) as f64);
    }
    let mut token = Memory::u32(&vec![0; rows]);
    let before = Memory::f32(logits);
    let (mut log_prob, mut entropy, mut logits) = (Memory::room(rows), Memory::room(rows), before.clone());
    kernels(Real::F32).launch(
        "sample",
        [rows, 1, 1],
        128,
        16 * v.div_ceil(256),
        &mut [
            Arg::Out(&mut logits),
            Arg::Long(v),
            Arg::Int(v),
            Arg::Float(inv_t),
            Arg::Int((sampling.temperature == 0.0) as usize),
            Arg::Int(sampling.top_k),
            Arg::Float(sampling.top_p),
            Arg::In(&Memory::f64(&uniforms)),
            Arg::Out(&mut token),
            Arg::Out(&mut log_prob),
            Arg::Out(&mut entropy),
        ],
    );
    let restricted = sampling.temperature > 0.0 && ((sampling.top_k > 0 && sampling.top_k < v) || sampling.top_p < 1.0);
    assert!(restricted || logits == before, "logits of a plain draw are only read");
    [cpu, (token.u32s(), log_prob.floats(), entropy.floats())]
}

fn same(logits: &[f32], v: usize, sampling: Sampling) {
    let [cpu, gpu] = draws(logits, v, &sampling);
    assert_eq!(cpu.0, gpu.0, "{sampling:?}, {v} tokens");
    // The sums have the same bits; logarithms are the machine's.
    for (a, b) in cpu.1.iter().chain(&cpu.2).zip(gpu.1.iter().chain(&gpu.2)) {
        assert!((a - b).abs() <= 2e-7 * (1.0 + a.abs()), "{a} {b}");
    }
}

const ALL: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 1 };

#[test]
fn the_same_uniform_number_draws_the_same_token() {
    for v in [1, 15, 256, 257, 1900] {
        for (temperature, scale) in [(1.0, 1.0), (0.6, 3.0), (1.3, 0.01)] {
            let logits: Vec<f32> = numbers(24 * v, v as u64).iter().map(|z| z * scale).collect();
            same(&logits, v, Sampling { temperature, ..ALL });
        }
        same(&vec![0.5; 8 * v], v, ALL);
    }
}

#[test]
fn restricted_draws_keep_the_same_tokens() {
    for v in [1, 40, 900] {
        let mut logits: Vec<f32> = numbers(16 * v, v as u64).iter().map(|z| z * 2.0).collect();
        // Half of the rows with many equal logits: ties go by id.
        logits[8 * v..].iter_mut().for_each(|z| *z = z.round());
        for (top_k, top_p) in [(1, 1.0), (3, 1.0), (0, 0.9), (0, 0.3), (20, 0.8), (v, 1e-6), (0, 0.999_999), (39, 0.99)]
        {
            same(&logits, v, Sampling { top_k, top_p, temperature: 0.8, ..ALL });
        }
        same(&vec![0.0; 8 * v], v, Sampling { top_k: 7, top_p: 0.5, ..ALL });
    }
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    let mut logits = numbers(3 * 700, 1);
    (logits[690], logits[300], logits[700 + 5]) = (9.0, 9.0, 9.0);
    same(&logits, 700, Sampling { temperature: 0.0, ..ALL });
}

//! The sampler's draws against the rollout's own.

#[cfg(test)] // Upwards, which only a test may look: the kernel stands in for what lies above the CPU's operations.
use crate::rollout::sampler::{Sampling, sample_at};

use super::{Arg, Memory, Real, kernels, numbers};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Uniform numbers as samples' generators make them.
fn uniforms(rows: usize) -> Vec<f64> {
    let first = |seed| (ChaCha8Rng::seed_from_u64(seed).next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    (0..rows as u64).map(first).collect()
}

/// Draws from rows of logits on both sides: the CPU's token, log-prob and entropy, then the kernel's.
#[allow(clippy::type_complexity)]
fn draws(logits: &[f32], v: usize, sampling: &Sampling, uniforms: &[f64]) -> [(Vec<u32>, Vec<f32>, Vec<f32>); 2] {
    let rows = logits.len() / v;
    let inv_t = 1.0 / sampling.head_temperature();
    let mut cpu = (vec![], vec![], vec![]);
    for (u, row) in uniforms.iter().zip(logits.chunks_exact(v)) {
        let mut row: Vec<f32> = row.iter().map(|z| if inv_t == 1.0 { *z } else { z * inv_t }).collect();
        let draw = sample_at(&mut row, sampling, || *u);
        cpu.0.push(draw.token);
        cpu.1.push(draw.log_prob);
        cpu.2.push(draw.entropy);
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
            Arg::In(&Memory::f64(uniforms)),
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
    same_at(logits, v, sampling, &uniforms(logits.len() / v));
}

/// Returns the tokens.
fn same_at(logits: &[f32], v: usize, sampling: Sampling, uniforms: &[f64]) -> Vec<u32> {
    let [cpu, gpu] = draws(logits, v, &sampling, uniforms);
    assert_eq!(cpu.0, gpu.0, "{sampling:?}, {v} tokens");
    // The sums have the same bits; logarithms are the machine's.
    for (a, b) in cpu.1.iter().chain(&cpu.2).zip(gpu.1.iter().chain(&gpu.2)) {
        assert!((a - b).abs() <= 2e-7 * (1.0 + a.abs()), "{a} {b}");
    }
    gpu.0
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

/// A block's sum, added up in 16 parts in f32, may be above that of its weights one by one; the sum of all blocks above theirs, too.
#[test]
fn a_draw_that_rounding_takes_out_of_its_block_is_the_blocks_heaviest() {
    let (block, v) = (256, 3 * 256);
    // One lane of the block: 1, and then 6.8e-8 fifteen times, each of which the sum rounds up to 1.2e-7: a gap of 7.7e-7.
    let gap = |logits: &mut [f32], from: usize| {
        logits[from..from + block].iter_mut().step_by(16).for_each(|z| *z = -16.5);
        logits[from] = 0.0;
    };
    let end = 1.0 - f64::EPSILON / 2.0;
    for (at, u) in [(1, 1.0 - 2e-7), (2, 1.0 - 2e-7), (2, end)] {
        let mut logits = vec![-80.0; v];
        gap(&mut logits, at * block);
        assert_eq!(same_at(&logits, v, ALL, &[u]), [(at * block) as u32], "{u}");
    }
    // Behind a first block of 1, nine of three quarters of what is between two f64 there: each rounds the sum up by a quarter.
    let mut logits = vec![-200.0; 10 * block];
    logits.iter_mut().step_by(block).for_each(|z| *z = (0.75 * f64::EPSILON).ln() as f32);
    logits[0] = 0.0;
    assert_eq!(same_at(&logits, 10 * block, ALL, &[end]), [0]);
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

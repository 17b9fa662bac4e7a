//! What an analysis computes: policies side by side, products of states, whole rows of logits, states as a lens shows them.

use super::{Arg, Kernels, Memory, Real, close, kernels, numbers, row_threads};
use crate::compute::cpu::gemm::Compute;
use crate::compute::cpu::gram::{gram, pairs, row_cosine};
use crate::compute::cpu::head::{Comparison, Divergences, Head, LogitRow};
use crate::compute::cpu::norm::rms_norm_in_place;

/// Columns of a segment, and bytes of a row's sums (divergence.cu).
const SEGMENT: usize = 1024;
const SUMS: usize = 64;
/// Of the hidden states whose logits are compared.
const D: usize = 8;

/// Small whole numbers times a power of two: logits are exact in f32, so only the statistics are on trial.
fn whole(n: usize, seed: u32, scale: f32) -> Vec<f32> {
    let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) % 9;
    (0..n as u32).map(|i| (value(i) as f32 - 4.0) * scale).collect()
}

/// Logits `[R, V]`, exact ones, not divided by the temperature.
fn logits_of(embedding: &[f32], hidden: &[f32]) -> Vec<f32> {
    let dot = |x: &[f32], e: &[f32]| x.iter().zip(e).map(|(x, e)| x * e).sum();
    hidden.chunks_exact(D).flat_map(|x| embedding.chunks_exact(D).map(move |e| dot(x, e))).collect()
}

/// How logits meet the kernels: tiles of `width` columns, rows `stride` apart, blocks of `threads`.
struct Tiles {
    width: usize,
    stride: usize,
    threads: usize,
}

/// `Head::compare` of logits `[T, S, V]`, as a host drives the kernels.
fn compare(
    gpu: &Kernels,
    logits: &[f32],
    (states, v): (usize, usize),
    temperature: f32,
    references: &[usize],
    targets: Option<&[u32]>,
    tiles: &Tiles,
) -> Comparison {
    let rows = logits.len() / v;
    let tokens = rows / states;
    let place = |k: usize| Arg::Int(references.get(k).copied().unwrap_or(0));
    let m_targets = targets.map(Memory::u32);
    let mut sums = Memory::room(rows * SUMS / 4);
    for first in (0..v).step_by(tiles.width) {
        let width = tiles.width.min(v - first);
        let mut tile = vec![f32::NAN; rows * tiles.stride];
        for (to, from) in tile.chunks_exact_mut(tiles.stride).zip(logits.chunks_exact(v)) {
            to[..width].copy_from_slice(&from[first..first + width]);
        }
        let segments = width.div_ceil(SEGMENT);
        let mut parts = Memory::room(rows * segments * SUMS / 4);
        gpu.launch(
            "compare_fold",
            [tokens, segments, 1],
            tiles.threads,
            0,
            &mut [
                Arg::In(&Memory::f32(&tile)),
                Arg::Long(tiles.stride),
                Arg::Int(width),
                Arg::Float(1.0 / temperature),
                Arg::Int(states),
                Arg::Int(references.len()),
                place(0),
                place(1),
                m_targets.as_ref().map_or(Arg::Null, Arg::In),
                Arg::Int(first),
                Arg::Out(&mut parts),
            ],
        );
        gpu.launch(
            "compare_merge",
            [tokens, 1, 1],
            tiles.threads,
            states * SUMS,
            &mut [
                Arg::In(&parts),
                Arg::Int(segments),
                Arg::Int(states),
                Arg::Int(references.len()),
                place(0),
                place(1),
                Arg::Int(first),
                Arg::Out(&mut sums),
                Arg::Int((first == 0) as usize),
            ],
        );
    }
    let (mut entropy, mut log_probs, mut top) = (Memory::room(rows), Memory::room(rows), Memory::u32(&vec![0; rows]));
    let (mut to, mut from) = (Memory::room(references.len() * rows), Memory::room(references.len() * rows));
    gpu.launch(
        "compare_finish",
        [rows.div_ceil(32), 1, 1],
        32,
        0,
        &mut [
            Arg::In(&sums),
            Arg::Int(rows),
            Arg::Int(states),
            Arg::Int(references.len()),
            place(0),
            place(1),
            Arg::Out(&mut entropy),
            if targets.is_some() { Arg::Out(&mut log_probs) } else { Arg::Null },
            Arg::Out(&mut top),
            Arg::Out(&mut to),
            Arg::Out(&mut from),
        ],
    );
    let (to, from) = (to.floats(), from.floats());
    let divergences = to.chunks_exact(rows).zip(from.chunks_exact(rows));
    Comparison {
        entropy: entropy.floats(),
        log_probs: if targets.is_some() { log_probs.floats() } else { Vec::new() },
        top: top.u32s(),
        divergences: divergences.map(|(to, from)| Divergences { to: to.into(), from: from.into() }).collect(),
    }
}

/// The largest difference, as a share of 1 and the expected number: what a few ulp are of either.
fn off(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let of = |(got, expected): (&f32, &f32)| (got - expected).abs() / (1.0 + expected.abs());
    let off: Vec<f32> = got.iter().zip(expected).map(of).collect();
    assert!(off.iter().all(|off| off.is_finite()), "{got:?}");
    off.iter().fold(0.0, |a, b| a.max(*b))
}

#[test]
fn policies_side_by_side_equal_the_cpus() {
    let (no, one): (&[usize], &[usize]) = (&[], &[0]);
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (tokens, states, v, width, stride, references, threads) in [
            (1, 1, 7, 7, 7, one, 32),
            (3, 4, 700, 512, 512, &[3], 64),
            (2, 3, 3100, 3100, 3100, &[2, 0], 64),
            (4, 2, 2500, 1301, 1303, &[1, 1], 32),
            (1, 37, 1030, 1024, 1024, &[36, 5], 256),
            (2, 5, 5000, 2048, 2052, &[4, 2], 128),
            (3, 2, 1500, 1100, 1100, no, 64),
        ] {
            // Logits are f32 in both formats, so one look is enough at the second.
            let scales = [(0.25, 0.7), (0.03125, 1.0), (1.0, 1.0), (8.0, 1.0)];
            for (scale, temperature) in scales.into_iter().take(real.pick(4, 1)) {
                let (embedding, hidden) = (whole(v * D, 5, 1.0), whole(tokens * states * D, 82, scale));
                let targets: Vec<u32> = (0..tokens as u32).map(|t| (t * 379 + 5) % v as u32).collect();
                let head = Head { embedding: &embedding, hidden_size: D, temperature, compute: Compute::F32 };
                let expected = head.compare(&hidden, states, references, Some(&targets));
                let logits = logits_of(&embedding, &hidden);
                let tiles = Tiles { width, stride, threads };
                let got = compare(&gpu, &logits, (states, v), temperature, references, Some(&targets), &tiles);
                assert_eq!(got.top, expected.top);
                let near = |what: &str, got: &[f32], expected: &[f32]| {
                    let (off, bound) = (off(got, expected), 1e-6);
                    assert!(off <= bound, "{what} of {tokens} x {states} x {v}, scale {scale}: off by {off:e}");
                };
                near("entropy", &got.entropy, &expected.entropy);
                near("log_probs", &got.log_probs, &expected.log_probs);
                for ((got, expected), reference) in got.divergences.iter().zip(&expected.divergences).zip(references) {
                    near("to", &got.to, &expected.to);
                    near("from", &got.from, &expected.from);
                    for row in (0..tokens).map(|token| token * states + reference) {
                        assert_eq!((got.to[row], got.from[row]), (0.0, 0.0), "a state from itself");
                    }
                }
                if temperature != 1.0 {
                    let untold = compare(&gpu, &logits, (states, v), temperature, references, None, &tiles);
                    assert_eq!(untold, Comparison { log_probs: Vec::new(), ..got }, "without targets");
                }
            }
        }
    }
}

#[test]
fn small_entropies_and_divergences_keep_their_digits_wherever_the_maximum_lies() {
    let gpu = kernels(Real::F32);
    let v = 4200;
    // One token stands out, by less and less, in the first tile or a later one; the last state is nearly the first.
    let row = |at: usize, by: f32, step: f32| -> Vec<f32> {
        (0..v).map(|j| if j == at { by } else { ((j * 7) % 16) as f32 * step }).collect()
    };
    let states = [row(3, 20.0, 0.25), row(2047, 14.0, 0.25), row(4199, 10.0, 0.25), row(3, 20.03125, 0.25)];
    let exact: Vec<Vec<f64>> = states
        .iter()
        .map(|z| {
            let m = z.iter().fold(f64::NEG_INFINITY, |m, z| m.max(*z as f64));
            let lse = m + z.iter().map(|z| (*z as f64 - m).exp()).sum::<f64>().ln();
            z.iter().map(|z| *z as f64 - lse).collect()
        })
        .collect();
    let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    for width in [4200, 1024, 1000, 333] {
        let tiles = Tiles { width, stride: width, threads: 64 };
        let got = compare(&gpu, &states.concat(), (4, v), 1.0, &[0, 2], Some(&[3]), &tiles);
        assert_eq!(got.top, [3, 2047, 4199, 3]);
        for (state, p) in exact.iter().enumerate() {
            let near = |what: &str, got: f32, expected: f64| {
                // The lane that has the maximum adds 31 smaller numbers to its 1 in f32, as a lane of the CPU does.
                let bound = 3e-7 + 1e-7 * expected.abs();
                assert!(
                    (got as f64 - expected).abs() <= bound,
                    "{what} of state {state}: {got} {expected}, tiles of {width}"
                );
            };
            near("entropy", got.entropy[state], -p.iter().map(|p| p.exp() * p).sum::<f64>());
            near("log-prob", got.log_probs[state], p[3]);
            for (d, q) in got.divergences.iter().zip([&exact[0], &exact[2]]) {
                near("to", d.to[state], kl(p, q));
                near("from", d.from[state], kl(q, p));
            }
        }
    }
}

#[test]
fn equal_states_are_nothing_apart_and_a_broken_one_stays_broken_alone() {
    let gpu = kernels(Real::F32);
    let (v, states) = (2500, 4);
    let mut logits = numbers(2 * states * v, 1);
    // State 3 is the reference over again; of the second token state 2 is broken in the second tile.
    for token in 0..2 {
        let at = token * states * v;
        logits.copy_within(at..at + v, at + 3 * v);
    }
    logits[(states + 2) * v + 1500] = f32::NAN;
    let got = compare(&gpu, &logits, (states, v), 0.7, &[0], None, &Tiles { width: 1200, stride: 1200, threads: 64 });
    let d = &got.divergences[0];
    for row in [0, 3, 4, 7] {
        assert_eq!((d.to[row], d.from[row]), (0.0, 0.0), "row {row}");
    }
    assert_eq!((got.entropy[0], got.top[0]), (got.entropy[3], got.top[3]));
    let broken = |row: usize| [got.entropy[row], d.to[row], d.from[row]].map(f32::is_nan);
    for row in 0..2 * states {
        assert_eq!(broken(row), [row == states + 2; 3], "row {row}");
    }
}

#[test]
fn products_and_cosines_of_states_equal_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (tokens, s, n, d, threads) in
            [(1, 1, 1, 8, 32), (3, 2, 2, 136, 64), (2, 6, 5, 64, 32), (1, 14, 13, 520, 256), (2, 8, 8, 1032, 96)]
        {
            let states = numbers(tokens * s * d, 1);
            let width = pairs(n).count();
            let mut expected = vec![0f64; tokens * width];
            gram(&states, (s, d), n, &mut expected);
            let mut out = Memory::f64(&vec![f64::NAN; tokens * width]);
            gpu.launch(
                "gram",
                [tokens, 1, 1],
                threads,
                0,
                &mut [Arg::In(&Memory::f32(&states)), Arg::Int(s), Arg::Int(d), Arg::Int(n), Arg::Out(&mut out)],
            );
            // Products of f32 are exact in f64: sums in another order are all that may differ.
            for (got, expected) in out.f64s().iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-12 * d as f64, "{got} {expected}");
            }

            let (mut a, b) = (real.stored(&states), numbers(tokens * s * d, 2));
            a[..d].fill(0.0);
            let rows: Vec<u32> = (0..(tokens * s) as u32).rev().step_by(2).collect();
            let expected = a.chunks(d).zip(b.chunks(d)).map(|(a, b)| row_cosine(a, b)).collect::<Vec<f64>>();
            for list in [None, Some(rows)] {
                let of = list.clone().unwrap_or_else(|| (0..(tokens * s) as u32).collect());
                let m_list = list.as_deref().map(Memory::u32);
                let mut out = Memory::f64(&vec![f64::NAN; of.len()]);
                gpu.launch(
                    "row_cosines",
                    [of.len(), 1, 1],
                    row_threads(d),
                    0,
                    &mut [
                        Arg::In(&Memory::real(real, &a)),
                        Arg::In(&Memory::f32(&b)),
                        m_list.as_ref().map_or(Arg::Null, Arg::In),
                        Arg::Out(&mut out),
                        Arg::Int(d),
                    ],
                );
                for (got, row) in out.f64s().iter().zip(of) {
                    let expected = expected[row as usize];
                    assert!((got - expected).abs() <= 1e-14, "row {row}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn ranks_and_likeliest_tokens_of_whole_rows_equal_the_cpus() {
    let gpu = kernels(Real::F32);
    for (tokens, states, v, stride, k, threads) in
        [(1, 1, 1, 1, 1, 32), (2, 3, 700, 700, 5, 64), (3, 2, 1031, 1040, 12, 256), (1, 2, 40, 41, 40, 32)]
    {
        for scale in [0.001, 1.0, 5.0] {
            let rows = tokens * states;
            // Few different values, so that there are ties, and a zero of either sign.
            let z: Vec<f32> = whole(rows * v, 3, scale).iter().map(|z| if *z == scale { -0.0 } else { *z }).collect();
            let mut padded = vec![f32::NAN; rows * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(z.chunks_exact(v)) {
                to[..v].copy_from_slice(from);
            }
            let (logits, targets) = (Memory::f32(&padded), (0..tokens).map(|t| ((t * 397 + 3) % v) as u32));
            let targets: Vec<u32> = targets.collect();
            let mut rank = Memory::u32(&vec![0; rows]);
            gpu.launch(
                "row_rank",
                [rows, 1, 1],
                threads,
                0,
                &mut [
                    Arg::In(&logits),
                    Arg::Long(stride),
                    Arg::Int(v),
                    Arg::Int(states),
                    Arg::In(&Memory::u32(&targets)),
                    Arg::Out(&mut rank),
                ],
            );
            let (mut top, mut probabilities) = (Memory::u32(&vec![0; rows * k]), Memory::room(rows * k));
            gpu.launch(
                "row_top",
                [rows, 1, 1],
                threads,
                0,
                &mut [
                    Arg::In(&logits),
                    Arg::Long(stride),
                    Arg::Int(v),
                    Arg::Int(k),
                    Arg::Out(&mut top),
                    Arg::Out(&mut probabilities),
                ],
            );
            let (rank, top, probabilities) = (rank.u32s(), top.u32s(), probabilities.floats());
            for (row, z) in z.chunks_exact(v).enumerate() {
                let expected = LogitRow::new(z);
                assert_eq!(rank[row], expected.rank(targets[row / states]));
                let (ids, likely): (Vec<u32>, Vec<f32>) = expected.top(k).into_iter().unzip();
                assert_eq!(top[row * k..(row + 1) * k], ids);
                close("probabilities", &probabilities[row * k..(row + 1) * k], &likely, 1e-6);
            }
        }
    }
}

#[test]
fn states_are_read_under_either_lens_and_lie_side_by_side() {
    const EPS: f32 = 1e-6;
    for real in Real::BOTH {
        let gpu = kernels(real);
        for (t, d, states) in [(1, 8, 1), (5, 136, 3), (7, 1032, 2)] {
            let (state, w) = (numbers(t * d, 1), numbers(d, 2));
            let rows: Vec<u32> = (0..t as u32).rev().chain([0]).collect();
            let (m_rows, m_w) = (Memory::u32(&rows), Memory::f32(&w));
            for (kernel, from, to, normed) in [
                ("read_states", Real::F32, real, true),
                ("read_states", Real::F32, real, false),
                ("read_states_real", real, real, true),
                ("read_states_real", real, real, false),
                ("hold_rows", Real::F32, Real::F32, false),
            ] {
                let stored = from.stored(&state);
                let gathered = rows.iter().flat_map(|row| &stored[*row as usize * d..][..d]);
                let mut expected: Vec<f32> = gathered.copied().collect();
                if normed {
                    rms_norm_in_place(&mut expected, &w, EPS);
                }
                // The first state of each token; what lies beside it stays as it was.
                let before = to.stored(&numbers(rows.len() * states * d, 3));
                let (mut out, m_state) = (Memory::real(to, &before), Memory::real(from, &state));
                let mut args = vec![Arg::In(&m_state), Arg::In(&m_rows)];
                if kernel != "hold_rows" {
                    args.extend([if normed { Arg::In(&m_w) } else { Arg::Null }, Arg::Float(EPS)]);
                }
                args.extend([Arg::Out(&mut out), Arg::Long(states * d), Arg::Int(d)]);
                gpu.launch(kernel, [rows.len(), 1, 1], row_threads(d), 0, &mut args);
                let out = out.floats();
                let of_tokens = out.chunks_exact(states * d).zip(before.chunks_exact(states * d));
                for ((got, before), expected) in of_tokens.zip(expected.chunks_exact(d)) {
                    if normed {
                        close(kernel, &got[..d], expected, to.pick(1e-6, 4e-3));
                    } else {
                        assert_eq!(got[..d], to.stored(expected), "{kernel} copies, and rounds once");
                    }
                    assert_eq!(got[d..], before[d..], "{kernel}");
                }
            }
        }
    }
}

#[test]
fn a_row_of_what_is_no_number_still_names_every_token_once() {
    let gpu = kernels(Real::F32);
    let nan = [f32::from_bits(0x7fff_ffff), f32::NAN, -f32::NAN, 1.0, f32::from_bits(0xffff_ffff)];
    let (mut top, mut probabilities) = (Memory::u32(&[9; 5]), Memory::f32(&[0.0; 5]));
    gpu.launch(
        "row_top",
        [1, 1, 1],
        32,
        0,
        &mut [
            Arg::In(&Memory::f32(&nan)),
            Arg::Long(5),
            Arg::Int(5),
            Arg::Int(5),
            Arg::Out(&mut top),
            Arg::Out(&mut probabilities),
        ],
    );
    let mut tokens = top.u32s();
    tokens.sort_unstable();
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
    assert!(probabilities.floats().iter().all(|p| p.is_nan()));
}

//! What an analysis computes: products of states, states as a lens shows them.

use super::{Arg, Memory, Real, close, kernels, numbers, row_threads};
use crate::compute::cpu::gram::{gram, pairs, row_cosines};
use crate::compute::cpu::norm::rms_norm_in_place;

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
            let expected = row_cosines(&a, &b, d);
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

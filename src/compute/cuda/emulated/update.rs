//! The embedding, sums over rows, the optimizer, the value head.

use super::{Arg, Memory, Real, close, kernels, numbers};
use crate::compute::backend::AdamwStep;
use crate::compute::cpu::adamw::{adamw, sum_of_squares};
use crate::compute::cpu::embedding::{embed, embed_backward};
use crate::compute::cpu::value::{values, values_backward};
use crate::compute::cuda::lists::RowLists;

#[test]
fn the_embedding_and_its_gradient_equal_the_cpus() {
    let gpu = kernels(Real::F32);
    for (v, d, t) in [(3, 8, 1), (11, 24, 200), (50, 520, 33)] {
        let ids: Vec<u32> = (0..t).map(|i| if i % 3 == 0 { 1 } else { (i * i % v) as u32 }).collect();
        let (table, d_out) = (numbers(v * d, 1), numbers(t * d, 2));
        let (mut out, mut d_table) = (vec![0f32; t * d], numbers(v * d, 3));
        embed(&table, &ids, &mut out, d);
        let mut got = Memory::room(t * d);
        gpu.launch(
            "embed",
            [t, 1, 1],
            32,
            0,
            &mut [Arg::In(&Memory::f32(&table)), Arg::In(&Memory::u32(&ids)), Arg::Out(&mut got), Arg::Int(d)],
        );
        assert_eq!(got.floats(), out);

        let mut got = Memory::f32(&d_table);
        embed_backward(&d_out, &ids, &mut d_table, d);
        let lists = RowLists::new(&ids);
        let chunks = lists.chunks.len() - 1;
        let mut partial = Memory::room(chunks * d);
        gpu.launch(
            "sum_rows_partial",
            [chunks, 1, 1],
            32,
            0,
            &mut [
                Arg::In(&Memory::f32(&d_out)),
                Arg::In(&Memory::u32(&lists.rows)),
                Arg::In(&Memory::u32(&lists.chunks)),
                Arg::Out(&mut partial),
                Arg::Int(d),
            ],
        );
        gpu.launch(
            "add_partial_rows",
            [lists.to.len(), 1, 1],
            32,
            0,
            &mut [
                Arg::In(&partial),
                Arg::In(&Memory::u32(&lists.of_place)),
                Arg::In(&Memory::u32(&lists.to)),
                Arg::Out(&mut got),
                Arg::Int(d),
            ],
        );
        close("embed_backward", &got.floats(), &d_table, 2e-6);
    }
}

#[test]
fn rows_are_gathered_and_their_gradients_brought_back() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        let (t, d) = (9, 40);
        let rows = [4u32, 4, 0, 8, 4];
        let state = numbers(t * d, 1);
        let picked = |x: &[f32]| -> Vec<f32> { rows.iter().flat_map(|r| x[*r as usize * d..][..d].to_vec()).collect() };
        for (kernel, stored) in [("gather_rows", Real::F32), ("gather_rows_real", real)] {
            let mut out = Memory::real_room(real, rows.len() * d);
            gpu.launch(
                kernel,
                [rows.len(), 1, 1],
                32,
                0,
                &mut [
                    Arg::In(&Memory::real(stored, &state)),
                    Arg::In(&Memory::u32(&rows)),
                    Arg::Out(&mut out),
                    Arg::Int(d),
                ],
            );
            assert_eq!(out.floats(), real.stored(&picked(&state)));
        }
        let lists = RowLists::new(&rows);
        for (kernel, stored) in [("scatter_rows_add_f32", Real::F32), ("scatter_rows_add", real)] {
            let d_hidden = stored.stored(&numbers(rows.len() * d, 2));
            let mut expected = numbers(t * d, 3);
            let mut got = Memory::f32(&expected);
            embed_backward(&d_hidden, &rows, &mut expected, d);
            gpu.launch(
                kernel,
                [lists.to.len(), 1, 1],
                32,
                0,
                &mut [
                    Arg::In(&Memory::real(stored, &d_hidden)),
                    Arg::In(&Memory::u32(&lists.rows)),
                    Arg::In(&Memory::u32(&lists.starts)),
                    Arg::In(&Memory::u32(&lists.to)),
                    Arg::Out(&mut got),
                    Arg::Int(d),
                ],
            );
            assert_eq!(got.floats(), expected, "the same sums in the same order");
        }
    }
}

#[test]
fn a_step_of_adamw_has_the_cpus_bits() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for n in [1, 8, 1003] {
            let (mut p, mut m, mut v) = (numbers(n, 1), vec![0f32; n], vec![0f32; n]);
            let (mut mp, mut mm, mut mv) = (Memory::f32(&p), Memory::f32(&m), Memory::f32(&v));
            let mut copy = Memory::real_room(real, n);
            for step in 1..4u64 {
                let grads = numbers(n, 10 + step);
                let s = AdamwStep {
                    lr: 1e-2,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step,
                    grad_scale: 0.7,
                };
                adamw(&mut p, &grads, &mut m, &mut v, s);
                let (c1, c2) = (1.0 - (s.beta1 as f64).powi(step as i32), 1.0 - (s.beta2 as f64).powi(step as i32));
                gpu.launch(
                    "adamw",
                    [2, 1, 1],
                    32,
                    0,
                    &mut [
                        Arg::Out(&mut mp),
                        Arg::In(&Memory::f32(&grads)),
                        Arg::Out(&mut mm),
                        Arg::Out(&mut mv),
                        Arg::Out(&mut copy),
                        Arg::Long(n),
                        Arg::Float((s.lr as f64 / c1) as f32),
                        Arg::Float((1.0 / c2.sqrt()) as f32),
                        Arg::Float(1.0 - s.lr * s.weight_decay),
                        Arg::Float(s.beta1),
                        Arg::Float(s.beta2),
                        Arg::Float(s.eps),
                        Arg::Float(s.grad_scale),
                    ],
                );
                assert_eq!((mp.floats(), mm.floats(), mv.floats()), (p.clone(), m.clone(), v.clone()));
                assert_eq!(copy.floats(), real.stored(&p));
            }
        }
    }
}

#[test]
fn sums_and_additions_equal_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        for n in [1, 40, 4003] {
            let g = numbers(n, 1);
            let (mut partial, mut sum) = (Memory::f64(&[f64::NAN; 3]), Memory::f64(&[0.5]));
            gpu.launch(
                "sum_of_squares",
                [3, 1, 1],
                64,
                0,
                &mut [Arg::In(&Memory::f32(&g)), Arg::Long(n), Arg::Out(&mut partial)],
            );
            gpu.launch(
                "sum_f64",
                [1, 1, 1],
                64,
                0,
                &mut [Arg::In(&partial), Arg::Int(3), Arg::Out(&mut sum), Arg::Int(1)],
            );
            let expected = 0.5 + sum_of_squares(&g);
            assert!((sum.f64s()[0] / expected - 1.0).abs() < 1e-14, "{:?} {expected}", sum.f64s());

            let x = numbers(n, 2);
            let mut y = Memory::f32(&x);
            gpu.launch(
                "scaled_add",
                [2, 1, 1],
                32,
                0,
                &mut [Arg::Float(0.3), Arg::In(&Memory::f32(&g)), Arg::Out(&mut y), Arg::Long(n)],
            );
            let expected: Vec<f32> = g.iter().zip(&x).map(|(g, x)| 0.3f32.mul_add(*g, *x)).collect();
            assert_eq!(y.floats(), expected);

            let mut y = Memory::real_room(real, n);
            gpu.launch(
                "round_to_real",
                [2, 1, 1],
                32,
                0,
                &mut [Arg::In(&Memory::f32(&g)), Arg::Out(&mut y), Arg::Long(n)],
            );
            assert_eq!(y.floats(), real.stored(&g));
            let mut wide = Memory::room(n);
            gpu.launch("widen_to_f32", [2, 1, 1], 32, 0, &mut [Arg::In(&y), Arg::Out(&mut wide), Arg::Long(n)]);
            assert_eq!(wide.floats(), y.floats());
            gpu.launch("scale", [2, 1, 1], 32, 0, &mut [Arg::Float(0.25), Arg::Out(&mut y), Arg::Long(n)]);
            assert_eq!(y.floats(), real.stored(&wide.floats().iter().map(|x| x * 0.25).collect::<Vec<_>>()));
        }
        let (t, n, rows) = (13, 48, 4);
        let (x, stream, bias) = (real.stored(&numbers(t * n, 3)), numbers(t * n, 4), numbers(n, 5));
        let mx = Memory::real(real, &x);
        let (mut partial, mut sums) = (Memory::room(t.div_ceil(rows) * n), Memory::f32(&bias));
        gpu.launch(
            "column_sums_partial",
            [1, t.div_ceil(rows), 1],
            32,
            0,
            &mut [Arg::In(&mx), Arg::Out(&mut partial), Arg::Int(t), Arg::Int(n), Arg::Int(rows)],
        );
        gpu.launch(
            "add_column_sums",
            [2, 1, 1],
            32,
            0,
            &mut [Arg::In(&partial), Arg::Out(&mut sums), Arg::Int(t.div_ceil(rows)), Arg::Int(n)],
        );
        let expected: Vec<f32> = (0..n).map(|c| bias[c] + (0..t).map(|r| x[r * n + c]).sum::<f32>()).collect();
        close("column sums", &sums.floats(), &expected, 1e-6);
        for (chunks, threads) in [(1, 32), (1, 1024), (5, 64), (70, 1024), (1000, 1024)] {
            let partial = numbers(chunks * n, 6);
            let mut sums = Memory::f32(&bias);
            let args = &mut [Arg::In(&Memory::f32(&partial)), Arg::Out(&mut sums), Arg::Int(chunks), Arg::Int(n)];
            gpu.launch("add_column_sums", [2, 1, 1], threads, 0, args);
            let sum = |c: usize| (0..chunks).map(|chunk| f64::from(partial[chunk * n + c])).sum::<f64>();
            let expected: Vec<f32> = (0..n).map(|c| (f64::from(bias[c]) + sum(c)) as f32).collect();
            close("sums of chunks", &sums.floats(), &expected, 2e-6);
        }
        let mut y = mx.clone();
        gpu.launch(
            "add_bias",
            [2, 1, 1],
            32,
            0,
            &mut [Arg::Out(&mut y), Arg::In(&Memory::f32(&bias)), Arg::Int(t), Arg::Int(n)],
        );
        let expected: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % n]).collect();
        assert_eq!(y.floats(), real.stored(&expected));
        // The last columns of every row, whatever stood there.
        let (mut filled, first) = (mx.clone(), n - 16);
        let values = Memory::f32(&bias[..16]);
        let args =
            &mut [Arg::In(&values), Arg::Out(&mut filled), Arg::Int(t), Arg::Int(16), Arg::Int(n), Arg::Int(first)];
        gpu.launch("fill_columns", [2, 1, 1], 32, 0, args);
        let expected: Vec<f32> =
            x.iter().enumerate().map(|(i, x)| if i % n < first { *x } else { bias[i % n - first] }).collect();
        assert_eq!(filled.floats(), real.stored(&expected));
        let mut sum = Memory::room(t * n);
        gpu.launch(
            "add",
            [2, 1, 1],
            32,
            0,
            &mut [Arg::In(&Memory::f32(&stream)), Arg::In(&mx), Arg::Out(&mut sum), Arg::Long(t * n)],
        );
        assert_eq!(sum.floats(), stream.iter().zip(&x).map(|(a, b)| a + b).collect::<Vec<_>>());
    }
}

#[test]
fn the_value_head_equals_the_cpus() {
    for real in Real::BOTH {
        let gpu = kernels(real);
        let (t, d, rows) = (9, 40, [2usize, 7, 2]);
        let (states, w, b) = (real.stored(&numbers(t * d, 1)), numbers(d, 2), 0.3);
        let places: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
        let (m_states, m_rows, m_w) = (Memory::real(real, &states), Memory::u32(&places), Memory::f32(&w));
        let mut out = Memory::room(3);
        gpu.launch(
            "values",
            [3, 1, 1],
            32,
            0,
            &mut [
                Arg::In(&m_states),
                Arg::In(&m_rows),
                Arg::In(&m_w),
                Arg::In(&Memory::f32(&[b])),
                Arg::Out(&mut out),
                Arg::Int(d),
            ],
        );
        close("values", &out.floats(), &values(&states, &rows, &w, b), 3e-7);

        let d_values = numbers(3, 3);
        let (mut d_states, mut d_w, mut d_b) = (numbers(t * d, 4), numbers(d, 5), 0.1);
        let (mut m_states_d, mut m_d_w, mut m_d_b) = (Memory::f32(&d_states), Memory::f32(&d_w), Memory::f32(&[d_b]));
        values_backward(&states, &rows, &w, &d_values, &mut d_states, &mut d_w, &mut d_b);
        let lists = RowLists::new(&places);
        gpu.launch(
            "values_backward",
            [lists.to.len(), 1, 1],
            32,
            0,
            &mut [
                Arg::In(&Memory::f32(&d_values)),
                Arg::In(&Memory::u32(&lists.rows)),
                Arg::In(&Memory::u32(&lists.starts)),
                Arg::In(&Memory::u32(&lists.to)),
                Arg::In(&m_w),
                Arg::Out(&mut m_states_d),
                Arg::Int(d),
            ],
        );
        gpu.launch(
            "values_backward_weight",
            [d / 8, 1, 1],
            64,
            0,
            &mut [
                Arg::In(&m_states),
                Arg::In(&m_rows),
                Arg::In(&Memory::f32(&d_values)),
                Arg::Out(&mut m_d_w),
                Arg::Out(&mut m_d_b),
                Arg::Int(3),
                Arg::Int(d),
            ],
        );
        close("d_states", &m_states_d.floats(), &d_states, 3e-7);
        close("d_w", &m_d_w.floats(), &d_w, 3e-7);
        close("d_b", &m_d_b.floats(), &[d_b], 3e-7);
    }
}

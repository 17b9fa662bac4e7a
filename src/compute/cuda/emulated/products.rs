//! Products on the device against the CPU's: every format, every transposition, sizes that divide nothing, rows within longer ones.

use super::{Real, close, gpu, numbers};
use crate::compute::cpu::gemm::{Compute, Mat, MatMut, Write, matmul};
use crate::compute::cuda::emulator::{Emulator, Order};
use crate::compute::cuda::runtime::{Address, Matrix, Product, Runtime};
use half::bf16;
use std::sync::Arc;

/// Elements behind each row, and before the first: a matrix may be a part of another.
#[derive(Clone, Copy, Debug)]
struct Inset {
    before: usize,
    behind: usize,
}

/// What lies around a matrix's own elements.
const AROUND: f32 = 7.0;

fn bytes(real: Real, x: &[f32]) -> Vec<u8> {
    match real {
        Real::F32 => bytemuck::cast_slice(x).to_vec(),
        Real::Bf16 => x.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
    }
}

fn floats(real: Real, bytes: &[u8]) -> Vec<f32> {
    match real {
        Real::F32 => bytes.chunks_exact(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect(),
        Real::Bf16 => bytes.chunks_exact(2).map(|x| bf16::from_ne_bytes([x[0], x[1]]).to_f32()).collect(),
    }
}

/// A matrix on the device, with its own elements in the middle of others.
struct There {
    all: Address,
    matrix: Matrix,
    size: usize,
}

fn there(runtime: &dyn Runtime, real: Real, x: &[f32], [rows, columns]: [usize; 2], inset: Inset) -> There {
    let stride = columns + inset.behind;
    let mut all = vec![AROUND; inset.before + rows * stride];
    for (row, values) in x.chunks_exact(columns).enumerate() {
        all[inset.before + row * stride..][..columns].copy_from_slice(values);
    }
    let bytes = bytes(real, &all);
    let at = runtime.allocate(bytes.len()).unwrap();
    runtime.upload(&bytes, at);
    There { all: at, matrix: Matrix::new(at.offset(inset.before * real.bytes()), real, stride), size: bytes.len() }
}

/// One product of `[m, n, k]` on the device, twice, against the CPU's.
fn check(
    runtime: &dyn Runtime,
    [of_ab, of_c]: [Real; 2],
    [m, n, k]: [usize; 3],
    [a_transposed, b_transposed]: [bool; 2],
    write: Write,
    inset: Inset,
) {
    let what = format!("{of_ab:?} to {of_c:?}, {m} x {n} x {k}, {a_transposed} {b_transposed} {write:?} {inset:?}");
    let (a, b) = (of_ab.stored(&numbers(m * k, 1)), of_ab.stored(&numbers(k * n, 2)));
    let c = of_c.stored(&numbers(m * n, 3));
    let mut expected = c.clone();
    let x = if a_transposed { Mat::new(&a, k, m).t() } else { Mat::new(&a, m, k) };
    let y = if b_transposed { Mat::new(&b, n, k).t() } else { Mat::new(&b, k, n) };
    matmul(Compute::F32, MatMut::new(&mut expected, m, n), x, y, write);

    let shape_a = if a_transposed { [k, m] } else { [m, k] };
    let shape_b = if b_transposed { [n, k] } else { [k, n] };
    let [on_a, on_b] = [(&a, shape_a), (&b, shape_b)].map(|(x, shape)| there(runtime, of_ab, x, shape, inset));
    let mut before = None;
    for _ in 0..2 {
        let on_c = there(runtime, of_c, &c, [m, n], inset);
        let (a, b) = (on_a.matrix, on_b.matrix);
        runtime.product(&Product { m, n, k, a, a_transposed, b, b_transposed, c: on_c.matrix, write });
        let mut bytes = vec![0u8; on_c.size];
        runtime.download(on_c.all, &mut bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        runtime.free(on_c.all);
        let all = floats(of_c, &bytes);
        let (front, rows) = all.split_at(inset.before);
        let rows: Vec<(&[f32], &[f32])> = rows.chunks_exact(n + inset.behind).map(|row| row.split_at(n)).collect();
        let around = rows.iter().flat_map(|row| row.1).chain(front);
        assert!(around.into_iter().all(|x| *x == AROUND), "{what}: written around the matrix");
        let got: Vec<f32> = rows.iter().flat_map(|row| row.0).copied().collect();
        // Sums in another order: k roundings of 2^-24, which as a rule are of either sign; once to bf16, and twice where C is added to:
        // cublasLt rounds the product first.
        let bf16 = if write == Write::Add { 8e-3 } else { 4e-3 };
        close(&what, &got, &expected, of_c.pick(2e-6, bf16));
        assert_eq!(*before.get_or_insert_with(|| bytes.clone()), bytes, "{what}: the same product, other bits");
    }
    [on_a, on_b].iter().for_each(|matrix| runtime.free(matrix.all));
}

fn runtime() -> Arc<dyn Runtime> {
    gpu().unwrap_or_else(|| Arc::new(Emulator::new(Order::Forward, super::EMULATED_BYTES)))
}

const FORMATS: [[Real; 2]; 3] = [[Real::F32, Real::F32], [Real::Bf16, Real::Bf16], [Real::Bf16, Real::F32]];
const TRANSPOSED: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

#[test]
fn products_equal_the_cpus_in_every_format_and_transposition() {
    let runtime = runtime();
    for formats in FORMATS {
        for transposed in TRANSPOSED {
            for write in [Write::Replace, Write::Add] {
                for sizes in [[1, 1, 1], [1, 64, 40], [3, 5, 7], [16, 48, 32], [70, 33, 129], [128, 256, 264]] {
                    check(runtime.as_ref(), formats, sizes, transposed, write, Inset { before: 0, behind: 0 });
                }
            }
        }
    }
}

#[test]
fn products_of_parts_of_matrices_touch_nothing_else() {
    let runtime = runtime();
    for formats in FORMATS {
        for transposed in TRANSPOSED {
            for (before, behind) in [(0, 8), (8, 24), (3, 1)] {
                check(runtime.as_ref(), formats, [9, 24, 16], transposed, Write::Replace, Inset { before, behind });
                check(runtime.as_ref(), formats, [33, 7, 20], transposed, Write::Add, Inset { before, behind });
            }
        }
    }
}

#[test]
fn nothing_to_add_up_is_zero_and_no_rows_are_nothing_to_do() {
    let runtime = runtime();
    let c = there(runtime.as_ref(), Real::F32, &numbers(6, 1), [2, 3], Inset { before: 1, behind: 2 });
    let other = Matrix::new(c.all, Real::F32, 8);
    for (m, k, write) in [(0, 4, Write::Replace), (2, 0, Write::Add), (2, 0, Write::Replace)] {
        let mut bytes = vec![0u8; c.size];
        runtime.download(c.all, &mut bytes).unwrap();
        let before = floats(Real::F32, &bytes);
        let (a_transposed, b_transposed) = (false, false);
        runtime.product(&Product { m, n: 3, k, a: other, a_transposed, b: other, b_transposed, c: c.matrix, write });
        runtime.download(c.all, &mut bytes).unwrap();
        let zero = m == 2 && write == Write::Replace;
        let within = |i: usize| zero && i > 0 && (i - 1) % 5 < 3;
        let expected: Vec<f32> = before.iter().enumerate().map(|(i, x)| if within(i) { 0.0 } else { *x }).collect();
        assert_eq!(floats(Real::F32, &bytes), expected);
    }
    runtime.free(c.all);
}

//! Run-time SIMD dispatch, and the few scalar functions that must vectorise.
//!
//! Kernels are plain loops inside [`vectorize`]; the compiler turns them into AVX-512 or AVX2 code as the machine
//! has it. Reductions keep sixteen partial sums by hand, because the compiler may not reorder float additions.

use super::array::Element;
use pulp::Arch;

/// Width of the hand-kept partial sums.
pub const LANES: usize = 16;

/// Runs `f` compiled for the best instruction set of this machine. `f` must be an `#[inline(always)]` closure.
#[inline(always)]
pub fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// `e^x` to about 2 ulp, saturating at the ends of the normal range (never zero, never infinite).
///
/// Cephes' range reduction and polynomial: `x = n ln 2 + r`, `e^x = 2^n e^r`; without branches, so that it vectorises.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    let x = x.clamp(-87.3, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_2e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    e * scale
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `sum_i a_i b_i` in f32 with [`LANES`] partial sums.
#[inline(always)]
pub fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut acc = [0f32; LANES];
    let mut xs = a.chunks_exact(LANES);
    let mut ys = b.chunks_exact(LANES);
    for (x, y) in (&mut xs).zip(&mut ys) {
        for i in 0..LANES {
            acc[i] = x[i].get().mul_add(y[i].get(), acc[i]);
        }
    }
    let mut sum = horizontal(acc);
    for (x, y) in xs.remainder().iter().zip(ys.remainder()) {
        sum = x.get().mul_add(y.get(), sum);
    }
    sum
}

/// `sum_i a_i b_i` with products and [`LANES`] partial sums in f64.
#[inline(always)]
pub fn dot_f64<A: Element, B: Element>(a: &[A], b: &[B]) -> f64 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut acc = [0f64; LANES];
    let mut xs = a.chunks_exact(LANES);
    let mut ys = b.chunks_exact(LANES);
    for (x, y) in (&mut xs).zip(&mut ys) {
        for i in 0..LANES {
            acc[i] = (x[i].get() as f64).mul_add(y[i].get() as f64, acc[i]);
        }
    }
    let mut sum: f64 = acc.iter().sum();
    for (x, y) in xs.remainder().iter().zip(ys.remainder()) {
        sum = (x.get() as f64).mul_add(y.get() as f64, sum);
    }
    sum
}

/// Largest element; `-inf` for none. NaNs are passed over.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let larger = |x: f32, m: f32| if x > m { x } else { m };
    // Two registers' worth of maxima, so that a comparison need not wait for the one before it.
    let mut acc = [f32::NEG_INFINITY; 2 * LANES];
    let mut xs = a.chunks_exact(2 * LANES);
    for x in &mut xs {
        for i in 0..2 * LANES {
            acc[i] = larger(x[i], acc[i]);
        }
    }
    for (m, x) in acc.iter_mut().zip(xs.remainder()) {
        *m = larger(*x, *m);
    }
    let mut width = LANES;
    while width > 0 {
        for i in 0..width {
            acc[i] = larger(acc[i + width], acc[i]);
        }
        width /= 2;
    }
    acc[0]
}

/// Sum of the partial sums, pairwise.
#[inline(always)]
pub fn horizontal(acc: [f32; LANES]) -> f32 {
    let mut acc = acc;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// `y += a * x`.
#[inline(always)]
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the dispatch may choose is a feature of a dependency: without it a machine runs its loops one element at a time.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_machines_vectors_are_used() {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") {
            assert!(!matches!(Arch::new(), Arch::Scalar), "AVX2 is there, and the loops are scalar");
        }
    }

    #[test]
    fn exp_matches_f64_over_the_whole_normal_range() {
        let mut worst = 0f64;
        for i in 0..=200_000 {
            let x = -87.0 + i as f32 * (175.0 / 200_000.0);
            let exact = (x as f64).exp();
            worst = worst.max(
                ((vectorize(
                    #[inline(always)]
                    || exp(x),
                ) as f64
                    - exact)
                    / exact)
                    .abs(),
            );
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) > 0.0 && exp(1e30).is_finite());
    }

    #[test]
    fn reductions_handle_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f32 = (0..n).map(|i| (i * i) as f32).sum();
            assert_eq!(dot(&a, &a), expected);
            assert_eq!(dot_f64(&a, &a), expected as f64);
            assert_eq!(max(&a), if n == 0 { f32::NEG_INFINITY } else { (n - 1) as f32 });
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_lies() {
        for n in 1..70 {
            for at in 0..n {
                let mut a: Vec<f32> = (0..n).map(|i| -1.0 - i as f32).collect();
                a[at] = 0.5;
                assert_eq!(max(&a), 0.5);
                a[(at + 1) % n] = f32::NAN;
                assert_eq!(max(&a), if n == 1 { f32::NEG_INFINITY } else { 0.5 });
            }
        }
    }
}

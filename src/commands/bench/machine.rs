//! What the machine does at best.

use crate::compute::cpu::gemm::{Write, linear};
use crate::model::Compute;
use anyhow::Result;
use rayon::prelude::*;
use serde_json::json;
use std::cell::RefCell;
use std::time::Instant;

/// The most that the product does, over sizes that a decoder has, and the rate at which all threads together read memory; with the
/// feature `cuda` also what CUDA offers, of which nothing is timed.
pub fn run() -> Result<()> {
    let best = |seconds: &dyn Fn() -> f64| (0..7).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    let gflops = |compute: Compute| {
        let sizes = [(2048, 2048, 1024), (2048, 3072, 512), (4096, 1024, 1024)];
        let rate = |(m, n, k): (usize, usize, usize)| {
            let fill = |len: usize| (0..len).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<_>>();
            let (x, w, y) = (fill(m * k), fill(n * k), RefCell::new(vec![0f32; m * n]));
            let seconds = best(&|| {
                let start = Instant::now();
                linear(compute, &x, &w, &mut y.borrow_mut()[..], m, k, n, Write::Replace);
                start.elapsed().as_secs_f64()
            });
            2e-9 * (m * n * k) as f64 / seconds
        };
        sizes.into_iter().map(rate).fold(0.0, f64::max)
    };
    // Far more than any cache holds.
    let memory = vec![1u64; 1 << 26];
    let read = best(&|| {
        let start = Instant::now();
        let sum: u64 = memory.par_chunks(1 << 20).map(|part| part.iter().fold(0, |sum, x| sum ^ x)).sum();
        std::hint::black_box(sum);
        start.elapsed().as_secs_f64()
    });
    let line = json!({
        "threads": rayon::current_num_threads(),
        "f32_gflops": gflops(Compute::F32),
        "bf16_gflops": gflops(Compute::Bf16),
        "bf16_is": if Compute::Bf16.here() == Compute::Bf16 { "AVX512-BF16" } else { "f32: this machine has no AVX512-BF16" },
        "memory_read_gb_per_second": memory.len() as f64 * 8e-9 / read,
    });
    #[cfg(feature = "cuda")]
    let line = {
        let mut line = line;
        line["cuda"] = super::cuda::offers(&crate::compute::cuda::libraries::Search::from_env());
        line
    };
    println!("{line}");
    Ok(())
}

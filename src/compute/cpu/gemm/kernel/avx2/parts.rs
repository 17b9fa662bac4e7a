//! Blocks of fewer rows or columns than a whole one.

use crate::compute::cpu::gemm::kernel::registers::kernels;
use crate::compute::cpu::gemm::kernel::{Block, Isa, LINE, UNROLLED, by_constants, fetch, prefetch};
use std::arch::x86_64::{__m256 as Register, _mm256_broadcast_ss, _mm256_fmadd_ps as multiply_add};
use std::arch::x86_64::{
    _mm256_add_ps as add, _mm256_loadu_ps as load, _mm256_setzero_ps as zero, _mm256_storeu_ps as store,
};

const LANES: usize = Isa::Avx2.column_step();

/// # Safety
/// There is a number.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn splat(from: *const f32) -> Register {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_broadcast_ss(&*from) }
}

kernels!([#[target_feature(enable = "avx2,fma")]] 1, 1; 1, 2; 1, 3; 2, 1; 2, 2; 2, 3; 3, 1; 3, 2; 3, 3; 4, 1; 4, 2;);

//! The kernel on NEON: the sums of an 8 x 12 block stay in 24 of the 32 registers.

use super::registers::kernels;
use super::{Block, Isa, LINE, UNROLLED, by_constants, fetch, prefetch};
use std::arch::aarch64::{float32x4_t as Register, vaddq_f32 as add, vdupq_n_f32, vfmaq_f32};
use std::arch::aarch64::{vld1q_dup_f32 as splat, vld1q_f32 as load, vst1q_f32 as store};

const LANES: usize = Isa::Neon.column_step();

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> Register {
    vdupq_n_f32(0.0)
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply_add(x: Register, y: Register, sum: Register) -> Register {
    vfmaq_f32(sum, x, y)
}

kernels!([#[target_feature(enable = "neon")]]
    1, 1; 1, 2; 1, 3; 2, 1; 2, 2; 2, 3; 3, 1; 3, 2; 3, 3; 4, 1; 4, 2; 4, 3;
    5, 1; 5, 2; 5, 3; 6, 1; 6, 2; 6, 3; 7, 1; 7, 2; 7, 3; 8, 1; 8, 2; 8, 3;);

//! Whole blocks in assembly: sums, columns of B and an element of A take all 16 registers, so that the compiler, which reads ahead,
//! would keep some of them in memory.

use super::WHOLE;
use super::parts::write_out;
use crate::compute::cpu::gemm::kernel::{Block, Isa, UNROLLED, fetch};
use crate::compute::cpu::prefetch::{LINE, prefetch};
use std::arch::asm;
use std::arch::x86_64::_mm256_setzero_ps;

const MR: usize = WHOLE.0;
const NR: usize = WHOLE.1;
const REGISTERS: usize = NR / Isa::Avx2.column_step();

/// One inner index: `sums += a b`. The four elements of A lie at the addresses given, made of the operands given.
macro_rules! step {
    ($sums:ident, [$a0:literal $a1:literal $a2:literal $a3:literal], $b:expr, $b_from:expr, $($operands:tt)*) => {
        asm!(
            concat!("vbroadcastss {x}, dword ptr [", $a0, "]"),
            "vmovups {b0}, ymmword ptr [{b} + {from}]",
            "vfmadd231ps {s00}, {x}, {b0}",
            "vmovups {b1}, ymmword ptr [{b} + {from} + 32]",
            "vfmadd231ps {s01}, {x}, {b1}",
            "vmovups {b2}, ymmword ptr [{b} + {from} + 64]",
            "vfmadd231ps {s02}, {x}, {b2}",
            concat!("vbroadcastss {x}, dword ptr [", $a1, "]"),
            "vfmadd231ps {s10}, {x}, {b0}",
            "vfmadd231ps {s11}, {x}, {b1}",
            "vfmadd231ps {s12}, {x}, {b2}",
            concat!("vbroadcastss {x}, dword ptr [", $a2, "]"),
            "vfmadd231ps {s20}, {x}, {b0}",
            "vfmadd231ps {s21}, {x}, {b1}",
            "vfmadd231ps {s22}, {x}, {b2}",
            concat!("vbroadcastss {x}, dword ptr [", $a3, "]"),
            "vfmadd231ps {s30}, {x}, {b0}",
            "vfmadd231ps {s31}, {x}, {b1}",
            "vfmadd231ps {s32}, {x}, {b2}",
            b = in(reg) $b,
            from = const $b_from,
            $($operands)*,
            x = out(ymm_reg) _,
            b0 = out(ymm_reg) _,
            b1 = out(ymm_reg) _,
            b2 = out(ymm_reg) _,
            s00 = inout(ymm_reg) $sums[0][0],
            s01 = inout(ymm_reg) $sums[0][1],
            s02 = inout(ymm_reg) $sums[0][2],
            s10 = inout(ymm_reg) $sums[1][0],
            s11 = inout(ymm_reg) $sums[1][1],
            s12 = inout(ymm_reg) $sums[1][2],
            s20 = inout(ymm_reg) $sums[2][0],
            s21 = inout(ymm_reg) $sums[2][1],
            s22 = inout(ymm_reg) $sums[2][2],
            s30 = inout(ymm_reg) $sums[3][0],
            s31 = inout(ymm_reg) $sums[3][1],
            s32 = inout(ymm_reg) $sums[3][2],
            options(readonly, nostack, preserves_flags)
        )
    };
}

/// Inner index `i` behind a and b, of packed panels.
macro_rules! packed_step {
    ($sums:ident, $a:expr, $b:expr, $i:literal) => {
        step!(
            $sums,
            ["{a} + {a_from}" "{a} + {a_from} + 4" "{a} + {a_from} + 8" "{a} + {a_from} + 12"],
            $b,
            4 * NR * $i,
            a = in(reg) $a,
            a_from = const 4 * MR * $i
        )
    };
}

/// # Safety
/// As [`super::block`], with all rows and columns.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn packed(units: usize, a: *const f32, b: *const f32, ahead: *const u32, out: Block) {
    let (mut a, mut b) = (a, b);
    let mut sums = [[_mm256_setzero_ps(); REGISTERS]; MR];
    fetch::<MR>(units, NR, out);
    // SAFETY: within the panels, by the caller's promise.
    unsafe {
        for i in 0..units / UNROLLED {
            prefetch::<2>(ahead.wrapping_add(i * LINE).cast());
            packed_step!(sums, a, b, 0);
            packed_step!(sums, a, b, 1);
            packed_step!(sums, a, b, 2);
            packed_step!(sums, a, b, 3);
            a = a.add(UNROLLED * MR);
            b = b.add(UNROLLED * NR);
        }
        for _ in 0..units % UNROLLED {
            packed_step!(sums, a, b, 0);
            a = a.add(MR);
            b = b.add(NR);
        }
        write_out(&sums, out)
    }
}

/// # Safety
/// As [`super::block_unpacked`], with all rows and columns.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn unpacked(
    units: usize,
    a: *const f32,
    (row_stride, inner_stride): (usize, usize),
    b: *const f32,
    out: Block,
) {
    let (mut a, mut b) = (a, b);
    let mut sums = [[_mm256_setzero_ps(); REGISTERS]; MR];
    fetch::<MR>(units, NR, out);
    // SAFETY: within A and the panel, by the caller's promise.
    unsafe {
        for _ in 0..units {
            step!(
                sums,
                ["{a}" "{a} + {stride}" "{a} + 2*{stride}" "{a} + {thrice}"],
                b,
                0,
                a = in(reg) a,
                stride = in(reg) 4 * row_stride,
                thrice = in(reg) 12 * row_stride
            );
            // The last step may lead past the end, where nothing is read.
            a = a.wrapping_add(inner_stride);
            b = b.add(NR);
        }
        write_out(&sums, out)
    }
}

//! Inner products of packed panels: the loop in which nearly all of the time goes. One file beside this one for each
//! instruction set.
//!
//! A panel of A holds up to [`Isa::rows`] rows, a panel of B [`Isa::columns`] columns, both unit by unit along the inner
//! dimension, so that the loop reads them straight through. A *unit* is 32 bits: one f32, or two neighbouring bf16.

mod avx2;
mod avx512;

use super::Compute;
use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// The instructions that a product is made of, which decide its number format and the shape of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX2 with FMA, in f32.
    Avx2,
    /// AVX-512F, in f32.
    Avx512,
    /// AVX512-BF16 (with VL and BW to pack): operands in bf16, sums in f32.
    Avx512Bf16,
}

impl Isa {
    /// The best that this machine has for a number format; none if it has nothing.
    pub fn here(compute: Compute) -> Option<Isa> {
        match compute {
            Compute::F32 => [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_here()),
            Compute::Bf16 => Some(Isa::Avx512Bf16).filter(|isa| isa.is_here()),
        }
    }

    /// True where this machine has the instructions.
    pub fn is_here(self) -> bool {
        match self {
            Isa::Avx2 => has!("avx2") && has!("fma"),
            Isa::Avx512 => has!("avx512f"),
            Isa::Avx512Bf16 => has!("avx512f") && has!("avx512bf16") && has!("avx512bw") && has!("avx512vl"),
        }
    }

    /// Rows of a block, at most.
    pub fn rows(self) -> usize {
        if self == Isa::Avx2 { avx2::MR } else { avx512::MR }
    }

    /// Columns of a block, at most.
    pub fn columns(self) -> usize {
        if self == Isa::Avx2 { avx2::NR } else { avx512::NR }
    }

    /// Columns of a block are a multiple of this.
    pub fn column_step(self) -> usize {
        if self == Isa::Avx2 { avx2::LANES } else { avx512::NR }
    }

    /// Lines of the cache that a block of so many units asks for ahead of their use.
    pub fn lines_ahead(self, units: usize) -> usize {
        if self == Isa::Avx2 { units / avx2::UNROLLED } else { units }
    }

    /// Units of `k` inner elements.
    pub fn units(self, k: usize) -> usize {
        if self == Isa::Avx512Bf16 { k.div_ceil(2) } else { k }
    }
}

/// One block of C.
#[derive(Clone, Copy)]
pub struct Block {
    pub c: *mut f32,
    pub row_stride: usize,
    /// Those of the panel that C has.
    pub cols: usize,
    /// Add to what is there, or replace it.
    pub add: bool,
}

/// Calls a function of constants: those listed that the value, a tuple, consists of.
macro_rules! by_constants {
    ($value:expr, $f:ident $args:tt, $($($n:literal),+;)*) => {
        match $value {
            $(($($n,)+) => $f::<$($n),+> $args,)*
            other => unreachable!("a block of {other:?}"),
        }
    };
}
use by_constants;

/// Elements of a line of the cache.
pub const LINE: usize = 16;
/// From so many units on, a block's sums take longer than its lines of C do to come from memory.
const LONG: usize = 128;

/// Asks for a block's lines of C before its sums are made: its rows lie far apart, so nothing else foresees them.
#[inline(always)]
fn fetch<const ROWS: usize>(units: usize, columns: usize, out: Block) {
    if units < LONG {
        return;
    }
    for row in 0..ROWS {
        let row = out.c.wrapping_add(row * out.row_stride);
        for line in [0, columns / 2, columns - 1] {
            // SAFETY: a prefetch of any address reads nothing; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(line).cast()) };
        }
    }
}

/// `C (+)= A B` for one panel of each: a `[units][rows]`, b `[units][columns]`, rows 1 to [`Isa::rows`], columns up to
/// [`Isa::columns`] in [`Isa::column_step`]s. `ahead` is a part of the
/// panel of B that comes next, to be asked for meanwhile: [`Isa::lines_ahead`] of the cache, which are not read.
///
/// # Safety
/// [`Isa::is_here`]; the panels are as long as stated; the block of `rows x cols` may be written.
pub unsafe fn block(
    isa: Isa,
    (rows, columns): (usize, usize),
    units: usize,
    a: *const u32,
    b: *const u32,
    ahead: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match isa {
            Isa::Avx2 => avx2::block((rows, columns), units, a, b, ahead, out),
            Isa::Avx512 => avx512::block(rows, units, a, b, ahead, out),
            Isa::Avx512Bf16 => avx512::block_bf16(rows, units, a, b, ahead, out),
        }
    }
}

/// [`block`] in f32 with A as it lies: element (r, k) at `a + r * row_stride + k * inner_stride`.
///
/// # Safety
/// As [`block`].
pub unsafe fn block_unpacked(
    isa: Isa,
    (rows, columns): (usize, usize),
    units: usize,
    a: *const f32,
    strides: (usize, usize),
    b: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match isa {
            Isa::Avx2 => avx2::block_unpacked((rows, columns), units, a, strides, b, out),
            Isa::Avx512 => avx512::block_unpacked(rows, units, a, strides, b, out),
            Isa::Avx512Bf16 => unreachable!("bf16 is made by packing"),
        }
    }
}

//! Inner products of packed panels: the loop in which nearly all of the time goes. One file beside this one for each
//! instruction set.
//!
//! A panel of A holds up to [`Isa::rows`] rows, a panel of B [`Isa::columns`] columns, both unit by unit along the inner
//! dimension, so that the loop reads them straight through. A *unit* is 32 bits: one f32, or two neighbouring bf16.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod registers;

use super::Compute;
use crate::compute::cpu::prefetch::{LINE, prefetch};
use half::bf16;

/// The instructions that a product is made of, which decide its number format and the shape of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX2 with FMA, in f32.
    Avx2,
    /// AVX-512F, in f32.
    Avx512,
    /// AVX512-BF16 (with VL and BW to pack): operands in bf16, sums in f32.
    Avx512Bf16,
    /// ARM's, in f32.
    Neon,
    /// What the compiler makes of it, in f32.
    Portable,
}

impl Isa {
    /// All there are in f32, the best first.
    pub const F32: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// The best that this machine has for a number format; f32 where it has nothing for bf16.
    pub fn here(compute: Compute) -> Isa {
        match compute {
            Compute::Bf16 if Isa::Avx512Bf16.is_here() => Isa::Avx512Bf16,
            _ => Isa::F32.into_iter().find(|isa| isa.is_here()).unwrap_or(Isa::Portable),
        }
    }

    /// True where this machine has the instructions.
    #[cfg(target_arch = "x86_64")]
    pub fn is_here(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Avx2 => has!("avx2") && has!("fma"),
            Isa::Avx512 => has!("avx512f"),
            Isa::Avx512Bf16 => has!("avx512f") && has!("avx512bf16") && has!("avx512bw") && has!("avx512vl"),
            Isa::Neon => false,
            Isa::Portable => true,
        }
    }

    /// True where this machine has the instructions: NEON is a part of every 64-bit ARM.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_here(self) -> bool {
        self == Isa::Portable || (self == Isa::Neon && cfg!(target_arch = "aarch64"))
    }

    /// Rows of a block, at most.
    pub const fn rows(self) -> usize {
        match self {
            Isa::Avx2 | Isa::Portable => 4,
            Isa::Avx512 | Isa::Avx512Bf16 => 14,
            Isa::Neon => 8,
        }
    }

    /// Columns of a block, at most.
    pub const fn columns(self) -> usize {
        match self {
            Isa::Avx2 => 24,
            Isa::Avx512 | Isa::Avx512Bf16 => 32,
            Isa::Neon => 12,
            Isa::Portable => 8,
        }
    }

    /// Columns of a block are a multiple of this.
    pub const fn column_step(self) -> usize {
        match self {
            Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Avx512Bf16 => 32,
            Isa::Neon | Isa::Portable => 4,
        }
    }

    /// Lines of the cache that a block of so many units asks for ahead of their use.
    pub fn lines_ahead(self, units: usize) -> usize {
        if matches!(self, Isa::Avx512 | Isa::Avx512Bf16) { units } else { units / UNROLLED }
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
    /// Of a product in bf16, whose result is in bf16 too.
    pub rounded: Option<Rounded>,
}

/// The place of a result in bf16, of which only the first sums read and only the last ones write anything: between them they are
/// kept in f32.
#[derive(Clone, Copy)]
pub struct Rounded {
    pub c: *mut bf16,
    pub row_stride: usize,
    /// What is added to is here.
    pub read: bool,
    /// The sums are written here.
    pub write: bool,
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

/// Units between two requests for lines ahead, where a unit takes less time than one of them.
const UNROLLED: usize = 4;
/// From so many units on, a block's sums take longer than its lines of C do to come from memory.
const LONG: usize = 128;

/// Asks for a block's lines of C before its sums are made: its rows lie far apart, so nothing else foresees them.
#[inline(always)]
fn fetch<const ROWS: usize>(units: usize, columns: usize, out: Block) {
    for row in 0..ROWS {
        fetch_row(units, columns, out, row);
    }
}

/// [`fetch`] for one row, of a kernel that asks for them one after the other while it makes the sums.
#[inline(always)]
fn fetch_row(units: usize, columns: usize, out: Block, row: usize) {
    if units < LONG {
        return;
    }
    if let Some(Rounded { c, row_stride, .. }) = out.rounded {
        let row = c.wrapping_add(row * row_stride);
        prefetch::<1>(row.cast());
        prefetch::<1>(row.wrapping_add(columns - 1).cast());
    }
    if out.rounded.is_none_or(|rounded| out.add != rounded.read || !rounded.write) {
        let row = out.c.wrapping_add(row * out.row_stride);
        for line in [0, columns / 2, columns - 1] {
            prefetch::<1>(row.wrapping_add(line));
        }
    }
}

/// `C (+)= A B` for one panel of each: a `[units][rows]`, b `[units][columns]`. The shape is (rows, columns): 1 to [`Isa::rows`], and up to
/// [`Isa::columns`] in [`Isa::column_step`]s. `ahead` is a part of the panel of B that comes next, to be asked for meanwhile:
/// [`Isa::lines_ahead`] of the cache, which are not read.
///
/// # Safety
/// [`Isa::is_here`]; the panels are as long as stated; the block of `rows x cols` may be written.
pub unsafe fn block(
    isa: Isa,
    shape: (usize, usize),
    units: usize,
    a: *const u32,
    b: *const u32,
    ahead: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::block(shape, units, a, b, ahead, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::block(shape.0, units, a, b, ahead, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::block_bf16(shape.0, units, a, b, ahead, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::block(shape, units, a, b, ahead, out),
            Isa::Portable => portable::block(shape, units, a, b, ahead, out),
            other => unreachable!("{other:?} is not of this machine"),
        }
    }
}

/// [`block`] in f32 with A as it lies: element (r, k) at `a + r * row_stride + k * inner_stride`.
///
/// # Safety
/// As [`block`].
pub unsafe fn block_unpacked(
    isa: Isa,
    shape: (usize, usize),
    units: usize,
    a: *const f32,
    strides: (usize, usize),
    b: *const u32,
    out: Block,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::block_unpacked(shape, units, a, strides, b, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::block_unpacked(shape.0, units, a, strides, b, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::block_unpacked(shape, units, a, strides, b, out),
            Isa::Portable => portable::block_unpacked(shape, units, a, strides, b, out),
            other => unreachable!("{other:?} is not of this machine, or bf16, which is made by packing"),
        }
    }
}

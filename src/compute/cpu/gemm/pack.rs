//! Matrices cut into panels for the kernel, converted to bf16 on the way where that is asked for and they are not yet. One file
//! beside this one for each instruction set.
//!
//! A panel of width W is `[units][W]`. Where the source is contiguous along the inner dimension it is transposed in
//! blocks in registers; else its rows are copied (bf16: two rows interleaved).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::kernel::Isa;
use half::bf16;
use std::ops::Range;

/// Where a matrix begins, in either format.
#[derive(Clone, Copy)]
pub enum Pointer {
    F32(*const f32),
    Bf16(*const bf16),
}

impl Pointer {
    /// So many elements further.
    pub fn wrapping_add(self, n: usize) -> Pointer {
        match self {
            Pointer::F32(data) => Pointer::F32(data.wrapping_add(n)),
            Pointer::Bf16(data) => Pointer::Bf16(data.wrapping_add(n)),
        }
    }
}

/// A source: `at(i, k)` is element `i` of the panel's width at inner index `k`.
#[derive(Clone, Copy)]
pub struct Source<P> {
    pub data: P,
    /// Distance between neighbours across the panel's width.
    pub width_stride: usize,
    /// Distance between neighbours along the inner dimension.
    pub inner_stride: usize,
}

impl<P> Source<P> {
    fn at<Q>(self, data: Q) -> Source<Q> {
        Source { data, width_stride: self.width_stride, inner_stride: self.inner_stride }
    }
}

/// Inner elements that are copied for all panels before the next: rows of the source are read through, where a panel by itself would
/// read a part of each line, and the next panel the rest of it, from far away.
const COPIED: usize = 128;

/// Packs neighbouring panels, one behind the other: where each lies across the width, and how many of its elements the source has;
/// `k` inner elements.
///
/// # Safety
/// As [`panel`], for each.
pub unsafe fn panels(
    isa: Isa,
    source: Source<Pointer>,
    panels: impl Iterator<Item = (Range<usize>, usize)> + Clone,
    k: usize,
    out: *mut u32,
) {
    let first = panels.clone().next().map_or(0, |(place, _)| place.start);
    let most = if source.inner_stride == 1 { k } else { COPIED };
    for from in (0..k).step_by(most.max(1)) {
        for (place, there) in panels.clone() {
            let at = place.start * source.width_stride + from * source.inner_stride;
            let here = source.at(source.data.wrapping_add(at));
            let behind = (place.start - first) * isa.units(k) + isa.units(from) * place.len();
            // SAFETY: by the caller's promise; a pair of bf16 never straddles two of these parts.
            unsafe { panel(isa, here, there, most.min(k - from), place.len(), out.add(behind)) };
        }
    }
}

/// Packs `width` elements by `k` into `[units][step]`, with zeros between width and step. Where the source is contiguous along the
/// inner dimension whole registers are written: up to 16 units beyond the panel's end, which the next panel overwrites.
///
/// # Safety
/// [`Isa::is_here`]; the source has `width x k` elements and one of its strides is 1; the destination has room for
/// `units * step + 16`.
unsafe fn panel(isa: Isa, source: Source<Pointer>, width: usize, k: usize, step: usize, out: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (isa, source.data) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Pointer::F32(data)) => avx512::panel_bf16(source.at(data), width, k, step, out),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Pointer::Bf16(data)) => avx512::panel_bf16(source.at(data), width, k, step, out),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Pointer::F32(data)) => avx512::panel(source.at(data), width, k, step, out),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Pointer::F32(data)) => avx2::panel(source.at(data), width, k, step, out),
            (_, Pointer::F32(data)) => portable::panel(source.at(data), width, k, step, out),
            (_, Pointer::Bf16(_)) => unreachable!("an operand in bf16 of a product in f32, which its maker refuses"),
        }
    }
}

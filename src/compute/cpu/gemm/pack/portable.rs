//! Packing as the compiler makes it.

use super::Source;
use crate::compute::cpu::prefetch::prefetch;

/// # Safety
/// As [`super::panel`].
pub unsafe fn panel(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        match source.inner_stride {
            1 => transpose(source, width, k, step, out),
            _ => copy(source, width, k, step, out),
        }
    }
}

/// # Safety
/// As [`super::panel`].
unsafe fn copy(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    for i in 0..k {
        // SAFETY: the source's elements; the destination by the caller's promise.
        unsafe {
            let (row, out) = (source.data.add(i * source.inner_stride), out.add(i * step).cast::<f32>());
            // The rows lie far apart, so nothing else foresees them.
            prefetch::<1>(row.wrapping_add(8 * source.inner_stride));
            std::ptr::copy_nonoverlapping(row, out, width);
            std::slice::from_raw_parts_mut(out.add(width), step - width).fill(0.0);
        }
    }
}

/// # Safety
/// As [`super::panel`].
unsafe fn transpose(source: Source<*const f32>, width: usize, k: usize, step: usize, out: *mut u32) {
    // A few inner elements at a time, so that a line of the panel is filled while it is near.
    const INNER: usize = 16;
    for k0 in (0..k).step_by(INNER) {
        for element in 0..step {
            for i in k0..k.min(k0 + INNER) {
                // SAFETY: the source's elements; the destination by the caller's promise.
                unsafe {
                    let x = if element < width { *source.data.add(element * source.width_stride + i) } else { 0.0 };
                    out.add(i * step + element).cast::<f32>().write(x);
                }
            }
        }
    }
}

//! Huge pages for large buffers, and memory that is given back.
//!
//! Weights, gradients and activations are read with strides of whole rows while they are packed for a product; with
//! 4 KiB pages nearly every row is another page, and a fresh buffer costs a fault for each. Linux gives 2 MiB pages to
//! memory that asks for them (`transparent_hugepage = madvise`, most distributions' default).

use std::alloc::{GlobalAlloc, Layout, System};

/// Smaller allocations stay as they are.
const LARGE: usize = 4 << 20;

/// The system's allocator, asking for huge pages where an allocation is large.
#[derive(Clone, Copy, Debug, Default)]
pub struct HugePages;

// SAFETY: every call goes to the system's allocator as it came; the advice changes no contents.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        advised(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        advised(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: by the caller's promise.
        advised(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(target_os = "linux")]
fn advised(block: *mut u8, size: usize) -> *mut u8 {
    const PAGE: usize = 4096;
    if size >= LARGE && !block.is_null() {
        // Every page that the block touches, the first and the last too: advice for a part would split the mapping, and a block in
        // several parts is copied when it grows, where one that is whole is moved without a second copy of it.
        let start = block.addr() / PAGE * PAGE;
        let len = (block.addr() + size).next_multiple_of(PAGE) - start;
        // SAFETY: the pages are mapped, for the block lies in them, and advice changes nothing that they hold; a kernel that knows
        // nothing of huge pages refuses, which is fine.
        unsafe { libc::madvise(block.with_addr(start).cast(), len, libc::MADV_HUGEPAGE) };
    }
    block
}

#[cfg(not(target_os = "linux"))]
fn advised(block: *mut u8, _: usize) -> *mut u8 {
    block
}

/// Gives the pages that lie wholly in an array back to the system, which makes them again, of zeros, when they are touched. Where it
/// cannot, nothing happens.
pub fn give_back(values: &mut [f32]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let (start, end) = (values.as_ptr().addr(), values.as_ptr_range().end.addr());
        let (from, to) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        if from < to {
            let pages = values.as_mut_ptr().cast::<u8>().wrapping_add(from - start);
            // SAFETY: the pages lie in the array, which is borrowed mutably; zeros are numbers as any other bytes are.
            unsafe { libc::madvise(pages.cast(), to - from, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = values;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_are_given_back_and_what_lies_around_them_stays() {
        let mut values = vec![1f32; 5 * 1024];
        give_back(&mut values[7..4 * 1024 + 3]);
        assert!(values[..7].iter().chain(&values[4 * 1024 + 3..]).all(|x| *x == 1.0));
        assert!(values[1024 + 7..3 * 1024].iter().all(|x| *x == 0.0));
        give_back(&mut values[..0]);
    }
}

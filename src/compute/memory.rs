//! Huge pages for large buffers.
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

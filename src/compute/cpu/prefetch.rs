//! Asking for memory ahead of its use, where nothing else foresees it.

/// Elements of a line of the cache.
pub const LINE: usize = 16;

/// Asks for the line of the cache at an address, whatever it is: nothing is read. Into the first cache or, as LEVEL says, the second.
#[inline(always)]
pub fn prefetch<const LEVEL: u8>(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch of any address reads nothing; every x86-64 has it.
        unsafe {
            match LEVEL {
                1 => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
                _ => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::asm;
        // SAFETY: a prefetch of any address reads nothing; every 64-bit ARM has it.
        unsafe {
            match LEVEL {
                1 => asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags)),
                _ => asm!("prfm pldl2keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags)),
            }
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

//! What an NVIDIA GPU needs to compute: its libraries, the device, its kernels, its memory and its work. The feature `cuda`.
//!
//! Nothing of CUDA is linked: [`libraries`] finds it when the program runs and says what is missing, [`device`] opens a GPU,
//! [`compile`] makes a kernel's source into code for it through [`nvrtc`], and [`cache`] keeps that code between runs. [`kernels`]
//! are the operations of [`super::cpu`], for which the host prepares [`lists`]. A [`runtime`] carries them out: [`driver`]'s on a GPU,
//! the emulator's in tests; [`arena`] and [`array`] are its memory.

mod api;
pub mod arena;
pub mod array;
pub mod backend;
pub mod cache;
pub mod compile;
pub mod device;
pub mod driver;
#[cfg(test)]
pub(crate) mod emulated;
#[cfg(any(test, feature = "emulator"))]
pub mod emulator;
pub mod kernels;
pub mod libraries;
pub mod lists;
pub mod nvrtc;
pub mod profile;
pub mod rehearsal;
pub mod runtime;
mod work;

use std::fmt;

/// A version of CUDA, as the driver and the compiler give theirs: 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a device can do, as NVIDIA numbers it: 8.0 is an A100, 9.0 an H100, 10.0 a B200.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    pub major: u32,
    pub minor: u32,
}

impl Capability {
    /// The architecture that the compiler makes code for: `sm_90` for 9.0.
    pub fn architecture(self) -> String {
        format!("sm_{}{}", self.major, self.minor)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

//! Where numbers are crunched: fused Transformer operations on f32 slices, forward and backward.
//!
//! Everything above works on slices and shapes; nothing above knows about threads or instruction sets. A second
//! device becomes a second folder beside [`cpu`] with the same names.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod memory;
pub mod packing;

pub use packing::{Packing, Segment};

//! Where numbers are crunched: fused Transformer operations on f32 slices, forward and backward.
//!
//! Everything above works on a [`Backend`]'s arrays and on shapes; nothing above knows about threads or instruction sets. A
//! device is a folder, and the operations have the same names in each.

pub mod backend;
pub mod choice;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod memory;
pub mod packing;

pub use backend::Backend;
pub use choice::DeviceChoice;
pub use packing::{Packing, Segment};

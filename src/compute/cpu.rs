//! The CPU kernels, one file an operation. Matrices are row-major; rows are tokens.
//!
//! Work is split over rows, heads or output columns, never over a reduction, so that a sum is always taken in the
//! same order: the same input gives the same bytes on the same machine, whichever thread computes it.

pub mod adamw;
pub mod array;
pub mod attention;
pub mod attention_decode;
mod backend;
pub mod embedding;
pub mod gemm;
pub mod gram;
pub mod head;
mod inspect;
pub mod low_rank;
pub mod norm;
mod prefetch;
pub mod rope;
mod shared;
pub mod simd;
pub mod swiglu;
pub mod value;

pub use array::Array;
pub use backend::{Cpu, Tokens};

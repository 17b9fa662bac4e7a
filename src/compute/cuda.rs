//! The operations of [`super::cpu`] as CUDA kernels (`cuda/*.cu`), and what the host prepares for them.

#[cfg(test)]
mod emulated;
pub mod lists;

//! Shared memory of attention's blocks: what each kernel takes of it, and whether the device gives as much.
//!
//! A training that is rehearsed asks before it begins, so that what no block can hold is said there and not after a rollout.

use super::Cuda;
use crate::compute::cuda::kernels::Real;
use std::fmt;

/// Stacked rows of a block (`attention.cuh`: ROWS).
const ROWS: usize = 64;

/// A kernel of attention that keeps tiles in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tiled {
    Forward,
    BackwardQueries,
    BackwardKeys,
    Decode,
}

impl fmt::Display for Tiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tiled::Forward => "attention",
            Tiled::BackwardQueries => "attention_backward_queries",
            Tiled::BackwardKeys => "attention_backward_keys",
            Tiled::Decode => "attention_decode",
        })
    }
}

impl Tiled {
    /// Dynamic shared memory of a block in bytes, as the kernel's documentation has it.
    pub fn bytes(self, real: Real, head_dim: usize) -> usize {
        // A row of a tile (`mma.cuh`: padded).
        let row = head_dim * real.bytes() + 16;
        let step = |largest: usize| if real == Real::Bf16 && head_dim <= largest { 64 } else { 32 };
        match self {
            Tiled::Forward => (ROWS + 4 * step(128)) * row,
            Tiled::BackwardQueries => (2 * ROWS + 4 * step(64)) * row,
            Tiled::BackwardKeys => (2 * ROWS + 4 * step(64)) * row + 16 * step(64),
            Tiled::Decode => (272 * row).max(256 * (head_dim + 2)),
        }
    }
}

impl Cuda {
    /// The shared memory of a block of this kernel, if there is one for the head dimension and the device has as much; else the
    /// device's work has failed.
    pub(super) fn tiles(&self, kernel: Tiled, head_dim: usize) -> Option<usize> {
        let (info, format) = (self.runtime().info(), self.real.pick("f32", "bf16"));
        let most = info.shared_bytes;
        let (bytes, in_bf16) = (kernel.bytes(self.real, head_dim), kernel.bytes(Real::Bf16, head_dim));
        if !self.takes_head_dim(&kernel.to_string(), head_dim) {
            return None;
        }
        if bytes > most {
            let got = format!("a head_dim of {head_dim} in {format}, whose blocks take {bytes} bytes of shared memory");
            let instead = if in_bf16 <= most { "take compute = \"bf16\", or the CPU" } else { "take the CPU" };
            self.refuse(&kernel.to_string(), got, &format!("{most} bytes at most, which {info} has: {instead}"));
            return None;
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_what_its_kernels_documentation_says() {
        let of = |real, head_dim| {
            use Tiled::{BackwardKeys, BackwardQueries, Decode, Forward};
            [Forward, BackwardQueries, BackwardKeys, Decode].map(|kernel| kernel.bytes(real, head_dim))
        };
        assert_eq!(of(Real::Bf16, 64), [46_080, 55_296, 56_320, 39_168]);
        assert_eq!(of(Real::Bf16, 128), [87_040, 69_632, 70_144, 73_984]);
        assert_eq!(of(Real::Bf16, 256), [101_376, 135_168, 135_680, 143_616]);
        assert_eq!(of(Real::F32, 64), [52_224, 69_632, 70_144, 73_984]);
        assert_eq!(of(Real::F32, 128), [101_376, 135_168, 135_680, 143_616]);
    }

    #[test]
    fn the_largest_heads_of_a_gpu_are_those_of_the_documentation() {
        use Tiled::{BackwardKeys, BackwardQueries, Decode, Forward};
        let largest = |kernels: &[Tiled], real, most: usize| {
            let fits = |head_dim: &usize| kernels.iter().all(|kernel| kernel.bytes(real, *head_dim) <= most);
            (16..=256).step_by(16).filter(fits).max()
        };
        let all = [Forward, BackwardQueries, BackwardKeys, Decode];
        for (kib, bf16, f32, forward) in [(99, 176, 80, 128), (163, 256, 144, 208), (227, 256, 208, 256)] {
            let most = kib << 10;
            assert_eq!(largest(&all, Real::Bf16, most), Some(bf16));
            assert_eq!(largest(&all, Real::F32, most), Some(f32));
            assert_eq!(largest(&[Forward], Real::F32, most), Some(forward));
        }
    }
}

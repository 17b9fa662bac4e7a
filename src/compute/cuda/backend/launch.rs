//! Launches: how work is cut into blocks, and what is refused before it reaches a kernel.

use super::Cuda;
use crate::compute::cuda::runtime::{Address, Arg, CudaError, Launch};

/// Where what a kernel reads begins: it loads 16 bytes at a time.
const VECTOR: u64 = 16;

/// A block of what goes over elements, eight a thread.
const ELEMENTWISE: usize = 256;

/// Blocks that fill any GPU several times; threads go on to the elements behind.
const MOST_BLOCKS: usize = 4096;

/// Blocks into which rows are cut whose sums are added up afterwards, in their order: enough to fill any GPU, also where a block waits
/// for every row's sum before the next row.
const CHUNKS: usize = 1024;

/// Rows of such a block: a function of the number of rows alone, so that sums have one order on any GPU.
pub(super) fn chunk_rows(t: usize) -> usize {
    t.div_ceil(CHUNKS).max(8)
}

/// Threads for a row of d elements, eight each.
pub(super) fn row_threads(d: usize) -> usize {
    d.div_ceil(8).next_multiple_of(32).clamp(32, 1024)
}

/// An `int` of a kernel. One that is too large is of another type than the kernel's, and refused.
pub(super) fn int(x: usize) -> Arg {
    i32::try_from(x).map_or(Arg::Long(x as u64), Arg::Int)
}

/// An `unsigned long long` of a kernel.
pub(super) fn long(x: usize) -> Arg {
    Arg::Long(x as u64)
}

pub(super) fn at(address: Address) -> Arg {
    Arg::At(address)
}

impl Cuda {
    /// One of the kernels for this backend's REAL.
    pub(super) fn launch(&self, kernel: &str, grid: [usize; 3], threads: usize, shared: usize, args: &[Arg]) {
        if grid.contains(&0) {
            return;
        }
        let misplaced = |arg: &&Arg| matches!(arg, Arg::At(Address(at)) if at % VECTOR != 0);
        if let Some(arg) = args.iter().find(misplaced) {
            let expected = "a multiple of 16 bytes: sizes of a model that are multiples of 8";
            return self.refuse(kernel, format!("an array that begins at {arg:?}"), expected);
        }
        // SAFETY: only the operations of this folder call this; each hands its kernel what the kernel's documentation asks for, of
        // arrays that are as long as the operation's shapes say.
        unsafe { self.runtime().launch(Launch { real: self.real, kernel, grid, threads, shared, args }) }
    }

    /// A kernel over n elements, eight a thread, with any grid.
    pub(super) fn launch_over(&self, kernel: &str, n: usize, args: &[Arg]) {
        let blocks = n.div_ceil(8 * ELEMENTWISE).min(MOST_BLOCKS);
        self.launch(kernel, [blocks, 1, 1], ELEMENTWISE, 0, args);
    }

    /// `out[c] += ` the sum of the chunks `[chunks, n]`.
    pub(super) fn add_chunks(&self, partial: Arg, out: Arg, chunks: usize, n: usize) {
        // A warp for four chunks, so that few chunks are not many warps' nothing.
        let threads = 32 * chunks.div_ceil(4).clamp(1, 32);
        self.launch("add_column_sums", [n.div_ceil(32), 1, 1], threads, 0, &[partial, out, int(chunks), int(n)]);
    }

    /// Whether kernels can go through rows of n elements, which they read eight at a time; else the device's work has failed.
    pub(super) fn in_eights(&self, what: &str, n: usize) -> bool {
        let takes = n > 0 && n.is_multiple_of(8);
        if !takes {
            self.refuse(what, format!("rows of {n} elements"), "a multiple of 8");
        }
        takes
    }

    pub(super) fn refuse(&self, what: &str, got: String, expected: &str) {
        let (what, expected) = (what.to_string(), expected.to_string());
        self.runtime().fail(CudaError::Refused { what, got, expected });
    }
}

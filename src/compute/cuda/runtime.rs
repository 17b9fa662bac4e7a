//! What carries out a device's work: memory, copies, launches, products. NVIDIA's driver is one, the kernels'
//! emulator another.
//!
//! Work is put on one stream and done in its order, mostly after the call has returned; [`Runtime::download`] and
//! [`Runtime::synchronize`] wait. A failure sticks, as in CUDA itself: the first one is kept, what follows it does nothing, and it is
//! told where numbers come to the host, so that a decoder's operations return no `Result`.

use super::compile::CompileError;
use super::device::{DeviceError, DeviceInfo};
use super::kernels::Real;
use super::libraries::MissingLibrary;
use super::nvrtc::NvrtcError;
use super::profile::Profile;
use crate::compute::cpu::gemm::Write;
use std::any::Any;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Where pieces of memory begin, in bytes: what vector loads and cublasLt's fastest algorithms ask for.
pub const ALIGNMENT: usize = 256;

/// A place in a device's memory. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u64);

impl Address {
    /// `bytes` further on.
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// An argument of a kernel, of the type that its signature has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer.
    At(Address),
    /// A pointer to nothing, where a kernel may do without.
    Null,
    /// `int` or `unsigned`.
    Int(i32),
    /// `unsigned long long`.
    Long(u64),
    Float(f32),
    Double(f64),
}

/// One kernel on a grid of blocks. A grid without a block is nothing to do.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Which of a kernel's two compilations: the format that REAL is there.
    pub real: Real,
    /// The function's name: `rms_norm`.
    pub kernel: &'a str,
    pub grid: [usize; 3],
    /// Of a block: whole warps, up to 1024.
    pub threads: usize,
    /// Bytes of dynamic shared memory a block.
    pub shared: usize,
    pub args: &'a [Arg],
}

/// A row-major matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    pub at: Address,
    pub real: Real,
    /// Elements from the beginning of a row to that of the next.
    pub stride: usize,
}

impl Matrix {
    pub fn new(at: Address, real: Real, stride: usize) -> Matrix {
        Matrix { at, real, stride }
    }
}

/// `C = op(A) op(B)`, or added to C: products and sums in f32 (never TF32), rounded once to C's format. A and B are of one format,
/// C of the same or f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of C and of op(A).
    pub m: usize,
    /// Columns of C and of op(B).
    pub n: usize,
    /// Columns of op(A), rows of op(B).
    pub k: usize,
    /// `[m, k]`, or `[k, m]` if transposed.
    pub a: Matrix,
    pub a_transposed: bool,
    /// `[k, n]`, or `[n, k]` if transposed.
    pub b: Matrix,
    pub b_transposed: bool,
    /// `[m, n]`; must not overlap A or B.
    pub c: Matrix,
    pub write: Write,
}

impl Product {
    /// Linear layer: `y = x W^T`, x `[t, i]`, w `[o, i]`, y `[t, o]` (cpu/gemm.rs `linear`).
    pub fn linear(x: Matrix, w: Matrix, y: Matrix, [t, i, o]: [usize; 3], write: Write) -> Product {
        Product { m: t, n: o, k: i, a: x, a_transposed: false, b: w, b_transposed: true, c: y, write }
    }

    /// Gradient of [`Product::linear`] for its input: `dx = dy W`.
    pub fn linear_backward_input(dy: Matrix, w: Matrix, dx: Matrix, [t, i, o]: [usize; 3], write: Write) -> Product {
        Product { m: t, n: i, k: o, a: dy, a_transposed: false, b: w, b_transposed: false, c: dx, write }
    }

    /// Gradient of [`Product::linear`] for its weight: `dW = dy^T x`, as a rule added.
    pub fn linear_backward_weight(dy: Matrix, x: Matrix, dw: Matrix, [t, i, o]: [usize; 3], write: Write) -> Product {
        Product { m: o, n: i, k: t, a: dy, a_transposed: true, b: x, b_transposed: false, c: dw, write }
    }
}

impl Product {
    /// Whether rows are as long as the matrices say, and formats go together.
    pub(super) fn check(&self) -> Result<(), CudaError> {
        let Product { m, n, k, a, b, c, .. } = *self;
        let columns = |rows, columns, transposed| if transposed { rows } else { columns };
        let short = |matrix: Matrix, columns| matrix.stride < columns;
        let rows_overlap =
            short(a, columns(m, k, self.a_transposed)) || short(b, columns(k, n, self.b_transposed)) || short(c, n);
        if rows_overlap || a.real != b.real || (c.real != a.real && c.real != Real::F32) {
            return Err(CudaError::Refused {
                what: "a product".to_string(),
                got: format!("{self:?}"),
                expected: "strides of a row or more, A and B of one format, C of theirs or f32".to_string(),
            });
        }
        Ok(())
    }
}

/// Memory of a device in bytes, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    pub free: usize,
    pub total: usize,
}

/// What went wrong on a device, or on the way there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error(
        "{device} has no room for {}: {} of {} are free; `nvidia-smi` shows who uses the rest",
        Size(*.wanted), Size(.memory.free), Size(.memory.total)
    )]
    OutOfMemory { device: String, wanted: usize, memory: DeviceMemory },
    /// `taken` of `size` bytes are in use, `largest` is the longest free piece.
    #[error(
        "this run needs {} more on {device}: of the {} that it took at its start {} are in use, and the longest free piece is {}; \
         give it more of the device's memory, or make batches smaller",
        Size(*.wanted), Size(*.size), Size(*.taken), Size(*.largest)
    )]
    ArenaFull { device: String, wanted: usize, size: usize, taken: usize, largest: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Missing(#[from] MissingLibrary),
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Work that cannot be what was meant.
    #[error("{what} cannot run: got {got}, expected {expected}")]
    Refused { what: String, got: String, expected: String },
    /// A library's or the device's refusal; a kernel's own failure shows in whatever is called after it.
    #[error("{device} could not {what}: {reason}; {next}")]
    Failed { device: String, what: String, reason: String, next: String },
}

/// Bytes as a person reads them.
pub struct Size(pub usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 30 => write!(f, "{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
            bytes if bytes >= 1 << 20 => write!(f, "{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

/// A device that work can be given to, from any thread. Calls of several threads are taken in the order in which they come; while work
/// is captured only one thread may call.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// Free memory, without what this program has taken.
    fn memory(&self) -> Result<DeviceMemory, CudaError>;

    /// Takes memory, aligned to [`ALIGNMENT`]; what it holds is not known. Slow: an [`Arena`](super::arena::Arena) asks once.
    fn allocate(&self, bytes: usize) -> Result<Address, CudaError>;

    /// Gives back what [`Runtime::allocate`] gave, once all work before it is done.
    fn free(&self, at: Address);

    /// Memory of the host, pinned and of zeros, at an address of the device's as well: its kernels read and write it over the bus.
    fn allocate_host(&self, bytes: usize) -> Result<Address, CudaError>;

    /// Gives back what [`Runtime::allocate_host`] gave, once all work before it is done.
    fn free_host(&self, at: Address);

    /// Copies to the device. The bytes may be changed as soon as this returns. Not while work is captured.
    fn upload(&self, from: &[u8], to: Address);

    /// Waits for all work and copies to the host; or the first failure of that work. Not while work is captured.
    fn download(&self, from: Address, to: &mut [u8]) -> Result<(), CudaError>;

    /// Copies on the device; the two places must not overlap.
    fn copy(&self, from: Address, to: Address, bytes: usize);

    /// Sets every bit to zero.
    fn zero(&self, at: Address, bytes: usize);

    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments are what the kernel's documentation (its `.cu` file) asks for, and arrays are as long as it says: it reads and
    /// writes where they point to, and the emulator's memory is the host's.
    unsafe fn launch(&self, launch: Launch<'_>);

    /// Multiplies matrices. The same shapes, strides and alignments give the same bits.
    fn product(&self, product: &Product);

    /// Waits for all work; the first failure.
    fn synchronize(&self) -> Result<(), CudaError>;

    /// The first failure so far, without waiting for work that may still fail.
    fn status(&self) -> Result<(), CudaError>;

    /// Keeps a failure of what belongs to this device's work, if it is the first.
    fn fail(&self, error: CudaError);

    /// From here on work is not done but kept, until [`Runtime::end_capture`]. The same work must have run once before: what is
    /// compiled, loaded or chosen at first use is not to be in the middle of it.
    fn begin_capture(&self);

    /// The work since [`Runtime::begin_capture`].
    fn end_capture(&self) -> Result<Box<dyn Graph>, CudaError>;

    /// A point in the order of the work. Not while work is captured.
    fn mark(&self) -> Result<Mark, CudaError>;

    /// Seconds from a point to a later one, once the work before that is done.
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64, CudaError>;

    /// Where the time went since it was asked last, where that is followed.
    fn profile(&self) -> Option<Profile> {
        None
    }
}

/// A point in the order of a device's work, as its runtime knows it.
#[derive(Debug)]
pub struct Mark(pub(super) Box<dyn Any + Send>);

impl Mark {
    /// As the runtime made it that is asked about it.
    pub(super) fn of<T: 'static>(&self) -> Result<&T, CudaError> {
        self.0.downcast_ref().ok_or_else(|| CudaError::Refused {
            what: "a mark".to_string(),
            got: "another runtime's".to_string(),
            expected: "one that this runtime made".to_string(),
        })
    }
}

/// Captured work. It holds addresses: the memory that it works on must be there, and in the same place, whenever it runs.
pub trait Graph: fmt::Debug + Send + Sync {
    /// Puts the work on the stream once more.
    fn replay(&self);
}

/// The first failure of a device's work.
#[derive(Debug, Default)]
pub(super) struct Sticky(Mutex<Option<CudaError>>);

impl Sticky {
    /// Keeps it, if it is the first.
    pub fn keep(&self, error: CudaError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub fn status(&self) -> Result<(), CudaError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    pub fn is_clear(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Does this, unless something failed before, and keeps its failure.
    pub fn attempt(&self, work: impl FnOnce() -> Result<(), CudaError>) {
        if self.is_clear()
            && let Err(error) = work()
        {
            self.keep(error);
        }
    }
}

//! The kernels' emulator as a device: their source, compiled by g++, on the host's memory. For tests; the feature `emulator`.
//!
//! Work is done at once, a block's threads as fibers of the calling thread. Memory begins as NaN, addresses are looked up before
//! anything touches them, and a kernel's arguments are held against its signature.

use super::Capability;
use super::device::DeviceInfo;
use super::kernels::{HEADERS, KERNELS, Real};
use super::libraries::symbol;
use super::runtime::{
    ALIGNMENT, Address, Arg, CudaError, DeviceMemory, Graph, Launch, Mark, Matrix, Product, Runtime, Sticky,
};
use super::work::Work;
use crate::compute::cpu::gemm::{Compute, Mat, MatMut, Write, matmul_seq};
use half::bf16;
use libloading::Library;
use sha2::{Digest, Sha256};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// In which order a grid's threads and blocks run. A kernel that lacks a barrier gives different bytes in different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they count, all warps in step.
    Forward,
    /// Warps run ahead of each other as far as barriers let them.
    Backward,
    Shuffled,
}

impl Order {
    pub const ALL: [Order; 3] = [Order::Forward, Order::Backward, Order::Shuffled];
}

/// Shared memory of an A100's block at most, as the capability that the emulator has.
const SHARED_BYTES: usize = 163 << 10;

/// The emulator's files, with their names.
const SOURCES: [(&str, &str); 5] = [
    ("emulator.cpp", include_str!("emulator/emulator.cpp")),
    ("emulator.h", include_str!("emulator/emulator.h")),
    ("fiber.h", include_str!("emulator/fiber.h")),
    ("kernels.cpp", include_str!("emulator/kernels.cpp")),
    ("launch.h", include_str!("emulator/launch.h")),
];

/// No contraction: a product and a sum round twice where the kernel does not say fmaf, as they are written.
const FLAGS: [&str; 12] = [
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-DBUPO_EMULATED",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
    "-Wno-sign-compare",
];

/// `emulated_launch` of emulator.cpp.
type Entry = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    u32,
    *mut *mut c_void,
    *const c_char,
    i32,
) -> *const c_char;

/// All kernels, compiled for one REAL.
struct Compiled(Entry);

/// The compiled kernels of one format. Locked: they have one set of fibers.
fn compiled(real: Real) -> MutexGuard<'static, Compiled> {
    static COMPILED: OnceLock<[Mutex<Compiled>; 2]> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        // Side by side: each takes the compiler seconds.
        std::thread::scope(|scope| {
            let start = |real| scope.spawn(move || Mutex::new(compile(real)));
            Real::BOTH
                .map(start)
                .map(|compiling| compiling.join().unwrap_or_else(|said| std::panic::resume_unwind(said)))
        })
    });
    compiled[real.pick(0, 1)].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compiles the kernels, or finds them beside this program's binary, where a process of the same source left them. Panics with what
/// the compiler says, as this is a part of tests.
fn compile(real: Real) -> Compiled {
    let define = real.pick("-DREAL=float", "-DREAL=bf16");
    let faults = ("faults.cu", include_str!("emulator/faults.cu"));
    let mut hash = Sha256::new();
    for (name, text) in SOURCES.iter().chain(KERNELS).chain(HEADERS).chain([&faults]) {
        hash.update(format!("{name} {} {text}", text.len()));
    }
    hash.update(format!("{FLAGS:?}{define}"));
    let hex: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let binary = std::env::current_exe().expect("a test knows its binary");
    let folder = binary.parent().expect("a binary lies in a folder");
    let library = folder.join(format!("emulated-{}-{hex}.so", real.pick("f32", "bf16")));
    if !library.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compute/cuda/emulator");
        let made = library.with_extension(format!("so.{}", std::process::id()));
        let files = ["emulator.cpp", "kernels.cpp"].map(|name| source.join(name));
        let ran = Command::new("g++").args(FLAGS).arg(define).args(files).arg("-o").arg(&made).output();
        let ran = ran.unwrap_or_else(|error| {
            panic!("the CUDA kernels' tests compile them for the CPU and need g++, which could not be started: {error}; install it (Debian: apt-get install g++)")
        });
        assert!(ran.status.success(), "g++ refused the kernels:\n{}", String::from_utf8_lossy(&ran.stderr));
        std::fs::rename(&made, &library).expect("the compiled kernels get their name");
    }
    // SAFETY: the library was made from this crate's source; nothing runs when it is loaded.
    let library = unsafe { Library::new(&library) }.expect("the compiled kernels load");
    // SAFETY: the emulator's only entry point, of this type (emulator.cpp).
    let entry = unsafe { symbol::<Entry>(Box::leak(Box::new(library)), c"emulated_launch") };
    Compiled(entry.expect("the emulator's entry point"))
}

/// A device on the host.
#[derive(Clone, Debug)]
pub struct Emulator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    info: DeviceInfo,
    order: Order,
    sticky: Sticky,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Allocations by their addresses: bytes.
    memory: BTreeMap<u64, usize>,
    /// The same of what is not the device's own.
    of_host: BTreeMap<u64, usize>,
    /// Work while it is captured.
    captured: Option<Vec<Work>>,
}

impl Emulator {
    /// A device with `memory` bytes.
    pub fn new(order: Order, memory: usize) -> Emulator {
        let info = DeviceInfo {
            index: 0,
            name: "emulator".to_string(),
            capability: Capability { major: 8, minor: 0 },
            memory_bytes: memory,
            shared_bytes: SHARED_BYTES,
        };
        Emulator::of(info, order)
    }

    fn of(info: DeviceInfo, order: Order) -> Emulator {
        Emulator(Arc::new(Shared { info, order, sticky: Sticky::default(), state: Mutex::default() }))
    }

    /// A new device like this one whose blocks can have so many bytes of shared memory.
    pub fn with_shared(&self, bytes: usize) -> Emulator {
        Emulator::of(DeviceInfo { shared_bytes: bytes, ..self.0.info.clone() }, self.0.order)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this work, or keeps it while work is captured.
    fn work(&self, work: Work) {
        self.0.sticky.attempt(|| {
            let mut state = self.state();
            match &mut state.captured {
                Some(captured) => captured.push(work),
                None => self.done(&state, &work)?,
            }
            Ok(())
        });
    }

    fn done(&self, state: &State, work: &Work) -> Result<(), CudaError> {
        match work {
            Work::Copy { from, to, bytes } => {
                state.holds("a copy", *from, *bytes)?;
                state.holds("a copy", *to, *bytes)?;
                // SAFETY: both places are of allocated memory, which only work under the lock touches.
                unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, *bytes) };
            }
            Work::Zero { at, bytes } => {
                state.holds("setting memory to zero", *at, *bytes)?;
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(at.0 as *mut u8, 0, *bytes) };
            }
            Work::Launch { real, kernel, grid, threads, shared, args } => {
                for arg in args {
                    if let Arg::At(at) = arg
                        && at.0 != 0
                    {
                        state.holds(kernel, *at, 1)?;
                    }
                }
                self.launched(*real, kernel, *grid, [*threads, *shared], args)?;
            }
            Work::Product(product) => multiply(state, product)?,
        }
        Ok(())
    }

    fn launched(
        &self,
        real: Real,
        kernel: &str,
        grid: [usize; 3],
        [threads, shared]: [usize; 2],
        args: &[Arg],
    ) -> Result<(), CudaError> {
        if shared > self.0.info.shared_bytes {
            let reason =
                format!("a block can have {} of its {shared} bytes of shared memory", self.0.info.shared_bytes);
            return Err(self.failed(kernel, reason));
        }
        let kinds: String = args
            .iter()
            .map(|arg| match arg {
                Arg::At(_) | Arg::Null => 'p',
                Arg::Int(_) => 'i',
                Arg::Long(_) => 'l',
                Arg::Float(_) => 'f',
                Arg::Double(_) => 'd',
            })
            .collect();
        let value = |arg: &Arg| match arg {
            Arg::At(at) => at.0,
            Arg::Null => 0,
            Arg::Int(x) => u64::from(*x as u32),
            Arg::Long(x) => *x,
            Arg::Float(x) => u64::from(x.to_bits()),
            Arg::Double(x) => x.to_bits(),
        };
        let mut values: Vec<u64> = args.iter().map(value).collect();
        let mut places: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let (name, kinds) = (CString::new(kernel).unwrap_or_default(), CString::new(kinds).unwrap_or_default());
        let (grid, block) = (grid.map(|x| x as u32), [threads as u32, 1, 1]);
        let compiled = compiled(real);
        // SAFETY: every argument lies behind its place and is of the kind that is said; that arrays are long enough the caller of
        // `launch` promised.
        let message = unsafe {
            let order = self.0.order as i32;
            let (grid, block, places) = (grid.as_ptr(), block.as_ptr(), places.as_mut_ptr());
            (compiled.0)(name.as_ptr(), grid, block, shared as u32, places, kinds.as_ptr(), order)
        };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: a message ends in NUL and lives until the next launch, and the lock is held.
        let reason = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
        Err(self.failed(kernel, reason))
    }

    fn failed(&self, kernel: &str, reason: String) -> CudaError {
        CudaError::Failed {
            device: self.0.info.to_string(),
            what: format!("run {kernel}"),
            reason,
            next: "mend the kernel, or what it was given".to_string(),
        }
    }

    /// Frees an allocation that was just forgotten.
    fn given_back(&self, at: Address, bytes: Option<usize>) {
        match bytes {
            // SAFETY: allocated with this layout, once.
            Some(bytes) => unsafe { dealloc(at.0 as *mut u8, layout(bytes)) },
            None => self.fail(refused("giving back memory", format!("{:#x}", at.0), "what was allocated, once")),
        }
    }

    fn not_captured(&self, what: &str) -> Result<(), CudaError> {
        match self.state().captured {
            Some(_) => Err(refused(what, "a call while work is captured", "launches, products, copies on the device")),
            None => Ok(()),
        }
    }
}

fn refused(what: &str, got: impl ToString, expected: &str) -> CudaError {
    CudaError::Refused { what: what.to_string(), got: got.to_string(), expected: expected.to_string() }
}

impl State {
    /// Whether so many bytes from there on are of one allocation.
    fn holds(&self, what: &str, at: Address, bytes: usize) -> Result<(), CudaError> {
        let within = |(from, len): (&u64, &usize)| at.0 + bytes as u64 <= from + *len as u64;
        let among = |all: &BTreeMap<u64, usize>| all.range(..=at.0).next_back().is_some_and(within);
        if bytes == 0 || among(&self.memory) || among(&self.of_host) {
            return Ok(());
        }
        Err(refused(what, format!("{bytes} bytes at {:#x}", at.0), "memory that was allocated"))
    }
}

/// New memory.
fn filled(bytes: usize, with: u8) -> Address {
    let layout = layout(bytes);
    // SAFETY: the layout has a size.
    let at = unsafe { alloc(layout) };
    if at.is_null() {
        std::alloc::handle_alloc_error(layout);
    }
    // SAFETY: just allocated with this size.
    unsafe { std::ptr::write_bytes(at, with, layout.size()) };
    Address(at as u64)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), ALIGNMENT).unwrap_or(Layout::new::<u8>())
}

impl Runtime for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn memory(&self) -> Result<DeviceMemory, CudaError> {
        let total = self.0.info.memory_bytes;
        Ok(DeviceMemory { free: total - self.state().memory.values().sum::<usize>(), total })
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        self.status()?;
        self.not_captured("an allocation")?;
        let memory = self.memory()?;
        if bytes > memory.free {
            return Err(CudaError::OutOfMemory { device: self.0.info.to_string(), wanted: bytes, memory });
        }
        // All ones are a NaN in every format.
        let at = filled(bytes, 0xff);
        self.state().memory.insert(at.0, bytes);
        Ok(at)
    }

    fn free(&self, at: Address) {
        let bytes = self.state().memory.remove(&at.0);
        self.given_back(at, bytes);
    }

    fn allocate_host(&self, bytes: usize) -> Result<Address, CudaError> {
        self.status()?;
        self.not_captured("an allocation")?;
        let at = filled(bytes, 0);
        self.state().of_host.insert(at.0, bytes);
        Ok(at)
    }

    fn free_host(&self, at: Address) {
        let bytes = self.state().of_host.remove(&at.0);
        self.given_back(at, bytes);
    }

    fn upload(&self, from: &[u8], to: Address) {
        self.0.sticky.attempt(|| {
            self.not_captured("an upload")?;
            let state = self.state();
            state.holds("an upload", to, from.len())?;
            // SAFETY: the place is of allocated memory, which only work under the lock touches.
            unsafe { std::ptr::copy(from.as_ptr(), to.0 as *mut u8, from.len()) };
            Ok(())
        });
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
        self.0.sticky.attempt(|| {
            self.not_captured("a download")?;
            let state = self.state();
            state.holds("a download", from, to.len())?;
            // SAFETY: as for an upload.
            unsafe { std::ptr::copy(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
            Ok(())
        });
        self.status()
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) {
        self.work(Work::Copy { from, to, bytes });
    }

    fn zero(&self, at: Address, bytes: usize) {
        self.work(Work::Zero { at, bytes });
    }

    unsafe fn launch(&self, launch: Launch<'_>) {
        self.work(Work::of(launch));
    }

    fn product(&self, product: &Product) {
        self.work(Work::Product(*product));
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.status()
    }

    fn status(&self) -> Result<(), CudaError> {
        self.0.sticky.status()
    }

    fn fail(&self, error: CudaError) {
        self.0.sticky.keep(error);
    }

    fn begin_capture(&self) {
        self.state().captured = Some(Vec::new());
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, CudaError> {
        let captured = self.state().captured.take();
        self.status()?;
        let none = || refused("the end of a capture", "none that was begun", "begin_capture before it");
        let work = captured.ok_or_else(none).inspect_err(|error| self.fail(error.clone()))?;
        Ok(Box::new(Captured { emulator: self.clone(), work }))
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        Ok(Mark(Box::new(Instant::now())))
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64, CudaError> {
        Ok(to.of::<Instant>()?.duration_since(*from.of()?).as_secs_f64())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let State { memory, of_host, .. } = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (at, bytes) in memory.iter().chain(of_host.iter()) {
            // SAFETY: allocated with this layout, and nobody can ask for work on it any more.
            unsafe { dealloc(*at as *mut u8, layout(*bytes)) };
        }
    }
}

#[derive(Debug)]
struct Captured {
    emulator: Emulator,
    work: Vec<Work>,
}

impl Graph for Captured {
    fn replay(&self) {
        for work in &self.work {
            self.emulator.work(work.clone());
        }
    }
}

/// A matrix as f32, row by row; bytes of its rows that are not its are not read.
fn read(state: &State, matrix: Matrix, rows: usize, columns: usize) -> Result<Vec<f32>, CudaError> {
    let of_row = columns * matrix.real.bytes();
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let at = matrix.at.offset(row * matrix.stride * matrix.real.bytes());
        state.holds("a product", at, of_row)?;
        let mut bytes = vec![0u8; of_row];
        // SAFETY: the row is of allocated memory, which only work under the lock touches.
        unsafe { std::ptr::copy(at.0 as *const u8, bytes.as_mut_ptr(), of_row) };
        match matrix.real {
            Real::F32 => values.extend(bytes.chunks_exact(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]]))),
            Real::Bf16 => {
                values.extend(bytes.chunks_exact(2).map(|x| bf16::from_ne_bytes([x[0], x[1]]).to_f32()));
            }
        }
    }
    Ok(values)
}

/// The CPU's product of copies in f32.
fn multiply(state: &State, product: &Product) -> Result<(), CudaError> {
    product.check()?;
    let Product { m, n, k, a, b, c, a_transposed, b_transposed, write } = *product;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let of_a = read(state, a, if a_transposed { k } else { m }, if a_transposed { m } else { k })?;
    let of_b = read(state, b, if b_transposed { n } else { k }, if b_transposed { k } else { n })?;
    let mut of_c = match write {
        Write::Add => read(state, c, m, n)?,
        Write::Replace => vec![0.0; m * n],
    };
    if k > 0 {
        let x = if a_transposed { Mat::new(&of_a, k, m).t() } else { Mat::new(&of_a, m, k) };
        let y = if b_transposed { Mat::new(&of_b, n, k).t() } else { Mat::new(&of_b, k, n) };
        // On this thread: one that waits for others may take up other work, which could ask for this device and its lock.
        matmul_seq(Compute::F32, MatMut::new(&mut of_c, m, n), x, y, write);
    }
    for (row, values) in of_c.chunks_exact(n).enumerate() {
        let bytes: Vec<u8> = match c.real {
            Real::F32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Real::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        };
        let at = c.at.offset(row * c.stride * c.real.bytes());
        state.holds("a product", at, bytes.len())?;
        // SAFETY: the row is of allocated memory, which only work under the lock touches.
        unsafe { std::ptr::copy(bytes.as_ptr(), at.0 as *mut u8, bytes.len()) };
    }
    Ok(())
}

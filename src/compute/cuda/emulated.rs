//! The kernels' numbers without a GPU: their source, compiled by g++ with the emulator beside it, against the CPU's operations.
//!
//! Every launch runs three times, with the threads and blocks of a grid in their order, backwards and shuffled, and must give the
//! same bytes: what a missing barrier leaves to chance shows. Memory behind every array is watched.

mod analysis;
mod attention;
mod faults;
mod head;
mod rows;
mod sampling;
mod update;

use super::kernels::Real;
use half::bf16;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

impl Real {
    pub const BOTH: [Real; 2] = [Real::F32, Real::Bf16];

    /// What is left of numbers when they are stored.
    pub fn stored(self, x: &[f32]) -> Vec<f32> {
        match self {
            Real::F32 => x.to_vec(),
            Real::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Real::F32 => 4,
            Real::Bf16 => 2,
        }
    }

    /// `f32` or `bf16`.
    pub fn pick<T>(self, f32: T, bf16: T) -> T {
        match self {
            Real::F32 => f32,
            Real::Bf16 => bf16,
        }
    }
}

/// An array as a kernel sees it: aligned as on the device, with a guard behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    words: Vec<u128>,
    bytes: usize,
    real: Real,
}

const GUARD: u8 = 0xa5;

impl Memory {
    fn new(content: &[u8], real: Real) -> Memory {
        let mut words = vec![u128::from_ne_bytes([GUARD; 16]); content.len().div_ceil(16) + 4];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..content.len()].copy_from_slice(content);
        Memory { words, bytes: content.len(), real }
    }

    pub fn f32(x: &[f32]) -> Memory {
        Memory::new(bytemuck::cast_slice(x), Real::F32)
    }

    pub fn real(real: Real, x: &[f32]) -> Memory {
        match real {
            Real::F32 => Memory::f32(x),
            Real::Bf16 => {
                let x: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
                Memory::new(bytemuck::cast_slice(&x), Real::Bf16)
            }
        }
    }

    pub fn u32(x: &[u32]) -> Memory {
        Memory::new(bytemuck::cast_slice(x), Real::F32)
    }

    pub fn f64(x: &[f64]) -> Memory {
        Memory::new(bytemuck::cast_slice(x), Real::F32)
    }

    /// An output of `len` f32, NaN until it is written.
    pub fn room(len: usize) -> Memory {
        Memory::f32(&vec![f32::NAN; len])
    }

    /// An output of `len` REAL.
    pub fn real_room(real: Real, len: usize) -> Memory {
        Memory::real(real, &vec![f32::NAN; len])
    }

    fn content(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    /// What an array of f32 or REAL holds.
    pub fn floats(&self) -> Vec<f32> {
        match self.real {
            Real::F32 => bytemuck::cast_slice(self.content()).to_vec(),
            Real::Bf16 => {
                let x: &[bf16] = bytemuck::cast_slice(self.content());
                x.iter().map(|x| x.to_f32()).collect()
            }
        }
    }

    pub fn u32s(&self) -> Vec<u32> {
        bytemuck::cast_slice(self.content()).to_vec()
    }

    pub fn f64s(&self) -> Vec<f64> {
        bytemuck::cast_slice(self.content()).to_vec()
    }

    fn check_guard(&self, kernel: &str) {
        let behind = &bytemuck::cast_slice::<u128, u8>(&self.words)[self.bytes..];
        assert!(behind.iter().all(|b| *b == GUARD), "{kernel} wrote past the end of an array");
    }
}

/// An argument of a kernel.
pub enum Arg<'a> {
    In(&'a Memory),
    /// Read and written.
    Out(&'a mut Memory),
    Null,
    Int(usize),
    Long(usize),
    Float(f32),
}

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *mut *mut c_void, i32) -> *const c_char;

/// All kernels, compiled for one REAL.
pub struct Kernels {
    library: Library,
}

/// The compiled kernels. Locked: the emulator has one set of fibers.
pub fn kernels(real: Real) -> MutexGuard<'static, Kernels> {
    static COMPILED: OnceLock<[Mutex<Kernels>; 2]> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        // Side by side: each takes the compiler seconds.
        std::thread::scope(|scope| {
            Real::BOTH.map(|real| scope.spawn(move || Mutex::new(compile(real)))).map(|t| t.join().expect("compiled"))
        })
    });
    compiled[real.pick(0, 1)].lock().unwrap_or_else(PoisonError::into_inner)
}

fn compile(real: Real) -> Kernels {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compute/cuda/emulator");
    let folder = tempfile::tempdir().expect("a folder for the compiled kernels");
    let out = folder.path().join("kernels.so");
    let mut command = Command::new("g++");
    // No contraction: a product and a sum round twice where the kernel does not say fmaf, as they are written.
    command.args(["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-DBUPO_EMULATED"]);
    command.arg(real.pick("-DREAL=float", "-DREAL=bf16"));
    command.args(["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-variable", "-Wno-sign-compare"]);
    command.args([source.join("emulator.cpp"), source.join("kernels.cpp")]).arg("-o").arg(&out);
    let ran = command.output().unwrap_or_else(|error| {
        panic!("the CUDA kernels' tests compile them for the CPU and need g++, which could not be started: {error}; install it (Debian: apt-get install g++)")
    });
    assert!(ran.status.success(), "g++ refused the kernels:\n{}", String::from_utf8_lossy(&ran.stderr));
    // SAFETY: the library was just made from this crate's source; nothing runs when it is loaded.
    let library = unsafe { Library::new(&out) }.expect("the compiled kernels load");
    Kernels { library }
}

impl Kernels {
    /// Runs a kernel on grid `[x, y, z]` and blocks of `threads`, in three orders that must agree.
    pub fn launch(&self, kernel: &str, grid: [usize; 3], threads: usize, shared: usize, args: &mut [Arg<'_>]) {
        self.try_launch(kernel, grid, threads, shared, args).unwrap_or_else(|message| panic!("{message}"));
    }

    /// [`Kernels::launch`], or what the emulator found wrong.
    pub fn try_launch(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &mut [Arg<'_>],
    ) -> Result<(), String> {
        let mut first: Option<Vec<Memory>> = None;
        for order in 0..3 {
            let mut outputs = Vec::new();
            for arg in args.iter() {
                if let Arg::Out(memory) = arg {
                    outputs.push((**memory).clone());
                }
            }
            self.launch_once(kernel, grid, threads, shared, args, &mut outputs, order)?;
            outputs.iter().for_each(|memory| memory.check_guard(kernel));
            match &first {
                None => first = Some(outputs),
                // Bytes: a NaN is not equal to itself.
                Some(first) if first.iter().zip(&outputs).any(|(a, b)| a.words != b.words) => {
                    return Err(format!("{kernel}: the order in which its threads run shows in what it writes"));
                }
                Some(_) => {}
            }
        }
        let mut results = first.into_iter().flatten();
        for arg in args {
            if let Arg::Out(memory) = arg {
                **memory = results.next().expect("an output for each");
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn launch_once(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &[Arg<'_>],
        outputs: &mut [Memory],
        order: i32,
    ) -> Result<(), String> {
        let mut outputs = outputs.iter_mut();
        let mut values: Vec<u64> = Vec::with_capacity(args.len());
        for arg in args {
            values.push(match arg {
                Arg::In(memory) => memory.words.as_ptr() as u64,
                Arg::Out(_) => outputs.next().expect("a copy of each output").words.as_mut_ptr() as u64,
                Arg::Null => 0,
                Arg::Int(x) => i32::try_from(*x).expect("an int") as u64,
                Arg::Long(x) => *x as u64,
                Arg::Float(x) => x.to_bits() as u64,
            });
        }
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| (v as *mut u64).cast()).collect();
        let name = CString::new(kernel).expect("a kernel's name");
        let (grid, block) = (grid.map(|x| x as u32), [threads as u32, 1, 1]);
        // SAFETY: the emulator's only entry point, whose type is Launch (emulator.cpp).
        let launch = unsafe { self.library.get::<Launch>(c"emulated_launch") }.expect("the emulator's entry point");
        // SAFETY: every argument lies behind its pointer, arrays live for as long as the call; the caller gives what the
        // kernel's documentation asks for, and the guards behind arrays are looked at afterwards.
        let message = unsafe {
            launch(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared as u32, pointers.as_mut_ptr(), order)
        };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: a message lives until the next launch, and the lock is held.
        Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
    }
}

/// Numbers that look normal, the same for a seed.
pub fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678);
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // Twelve uniform numbers have a variance of one.
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// Every number within `bound` of the expected one, relative to the largest of them.
pub fn close(what: &str, got: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let off = (got - expected).abs() / largest;
        assert!(
            off <= bound,
            "{what}: element {i} is {got}, expected {expected}: off by {off:e} of the largest, bound {bound:e}"
        );
    }
}

/// Threads for a row of d elements, as the kernels' documentation has it; few, so that rows need several rounds.
pub fn row_threads(d: usize) -> usize {
    d.div_ceil(8).next_multiple_of(32).min(64)
}

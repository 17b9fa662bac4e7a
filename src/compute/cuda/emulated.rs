//! The kernels' numbers against the CPU's operations: on the emulator, or on the GPU that `BUPO_TEST_DEVICE` names (`cuda:0`).
//!
//! Every launch runs three times and must give the same bytes. On the emulator the threads and blocks of a grid go in their order,
//! backwards and shuffled: what a missing barrier leaves to chance shows. Memory behind every array is watched.

mod analysis;
mod attention;
mod faults;
mod head;
mod memory;
mod operations;
mod products;
mod rows;
mod sampling;
mod shared;
mod update;

use super::device::{Chosen, DeviceChoice};
use super::driver::Gpu;
use super::emulator::{Emulator, Order};
use super::kernels::Real;
use super::libraries::Search;
use super::runtime::{Address, Arg as Value, CudaError, Launch, Runtime};
use half::bf16;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The variable that names a GPU for these tests; the emulator where there is none.
const TEST_DEVICE: &str = "BUPO_TEST_DEVICE";

/// Memory of an emulated device.
const EMULATED_BYTES: usize = 1 << 30;

/// A GPU of its own stream, if the tests are to run on one.
fn own_gpu() -> Option<Gpu> {
    let name = std::env::var(TEST_DEVICE).ok()?;
    let choice: DeviceChoice = name.parse().unwrap_or_else(|error| panic!("{TEST_DEVICE}: {error}"));
    let search = Search::from_env();
    match choice.open(&search).unwrap_or_else(|error| panic!("{TEST_DEVICE}: {error}")) {
        Chosen::Cpu { .. } => None,
        Chosen::Cuda(device) => Some(Gpu::new(device, &search, None).unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// The GPU that kernels run on, one for all tests, with all of them compiled.
fn gpu() -> Option<Arc<dyn Runtime>> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        let gpu = own_gpu()?;
        gpu.load(&Real::BOTH).unwrap_or_else(|error| panic!("{error}"));
        Some(Arc::new(gpu))
    });
    gpu.clone().map(|gpu| gpu as Arc<dyn Runtime>)
}

/// A device to be used by one test alone.
pub fn device() -> Arc<dyn Runtime> {
    // One at a time, so that their compilers and pinned memory do not add up.
    static OPENING: Mutex<()> = Mutex::new(());
    let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    match own_gpu() {
        Some(gpu) => Arc::new(gpu),
        None => Arc::new(Emulator::new(Order::Forward, EMULATED_BYTES)),
    }
}

impl Real {
    /// What is left of numbers when they are stored.
    pub fn stored(self, x: &[f32]) -> Vec<f32> {
        match self {
            Real::F32 => x.to_vec(),
            Real::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
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

/// All kernels, in one format.
pub struct Kernels(Real);

pub fn kernels(real: Real) -> Kernels {
    Kernels(real)
}

impl Kernels {
    /// Runs a kernel on grid `[x, y, z]` and blocks of `threads` three times, which must agree.
    pub fn launch(&self, kernel: &str, grid: [usize; 3], threads: usize, shared: usize, args: &mut [Arg<'_>]) {
        self.try_launch(kernel, grid, threads, shared, args).unwrap_or_else(|message| panic!("{message}"));
    }

    /// [`Kernels::launch`], or what was wrong.
    pub fn try_launch(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &mut [Arg<'_>],
    ) -> Result<(), String> {
        let mut first: Option<Vec<Memory>> = None;
        for order in Order::ALL {
            let runtime = gpu().unwrap_or_else(|| Arc::new(Emulator::new(order, EMULATED_BYTES)));
            let launched = self.launched(runtime.as_ref(), kernel, grid, [threads, shared], args);
            let outputs = launched.map_err(|error| error.to_string())?;
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

    /// Runs it once, on copies of all arrays in the device's memory; what is then in those that it may write.
    fn launched(
        &self,
        runtime: &dyn Runtime,
        kernel: &str,
        grid: [usize; 3],
        [threads, shared]: [usize; 2],
        args: &[Arg<'_>],
    ) -> Result<Vec<Memory>, CudaError> {
        let mut places = Vec::new();
        let mut there = |memory: &Memory| -> Result<Address, CudaError> {
            let bytes = bytemuck::cast_slice(&memory.words);
            let at = runtime.allocate(bytes.len())?;
            places.push(at);
            runtime.upload(bytes, at);
            Ok(at)
        };
        let (mut values, mut outputs) = (Vec::new(), Vec::new());
        for arg in args {
            values.push(match arg {
                Arg::In(memory) => Value::At(there(memory)?),
                Arg::Out(memory) => {
                    let at = there(memory)?;
                    outputs.push((at, (**memory).clone()));
                    Value::At(at)
                }
                Arg::Null => Value::Null,
                Arg::Int(x) => Value::Int(i32::try_from(*x).expect("an int")),
                Arg::Long(x) => Value::Long(*x as u64),
                Arg::Float(x) => Value::Float(*x),
            });
        }
        let launch = Launch { real: self.0, kernel, grid, threads, shared, args: &values };
        // SAFETY: tests give what the kernels' documentation asks for; guards behind arrays are looked at afterwards.
        unsafe { runtime.launch(launch) };
        for (at, memory) in &mut outputs {
            runtime.download(*at, bytemuck::cast_slice_mut(&mut memory.words))?;
        }
        places.into_iter().for_each(|at| runtime.free(at));
        Ok(outputs.into_iter().map(|(_, memory)| memory).collect())
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

/// Every number within `bound` of the expected one, relative to the largest of them, or to 1e-5 where they are nothing: the gradient
/// of a query that sees one key is zero, and what is left of it on tensor cores is rounding.
pub fn close(what: &str, got: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-5f32, |m, x| m.max(x.abs()));
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

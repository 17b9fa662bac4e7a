//! Work on a GPU through NVIDIA's driver: the [`Runtime`] of a real device.

mod event;
mod modules;
mod products;
mod staging;
mod stream;

use super::api::{CublasLt, Handle, MAPPED, NO_MEMORY, Object, RELAXED, TIMING};
use super::cache::KernelStore;
use super::device::{Device, DeviceInfo};
use super::kernels::Real;
use super::libraries::{CudaLibrary, Search, open};
use super::nvrtc::Nvrtc;
use super::runtime::{Address, Arg, CudaError, DeviceMemory, Graph, Launch, Mark, Product, Runtime};
use event::Event;
use modules::Modules;
use products::Products;
use staging::Staging;
use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use stream::Stream;

/// What keeps compiled kernels for a GPU's runtime.
pub type Store = Arc<dyn KernelStore + Send + Sync>;

/// Arguments that a kernel has at most.
const MOST_ARGS: usize = 32;

/// A GPU with one stream of work.
#[derive(Debug)]
pub struct Gpu {
    // Fields are dropped in this order: what lies on the stream first.
    staging: Mutex<Staging>,
    products: Products,
    modules: Modules,
    /// What of the host's memory the device has addresses of: bytes.
    of_host: Mutex<BTreeMap<u64, usize>>,
    stream: Arc<Stream>,
}

impl Gpu {
    /// Makes an opened device ready for work. Kernels are compiled when they are first launched, and kept in the store.
    pub fn new(device: Device, search: &Search, store: Option<Store>) -> Result<Gpu, CudaError> {
        let driver = open(CudaLibrary::Driver, search, device.driver.major)?;
        let cublas = open(CudaLibrary::CublasLt, search, device.driver.major)?;
        let nvrtc = Nvrtc::open(search, Some(device.driver))?;
        let stream = Arc::new(Stream::new(device)?);
        // SAFETY: this is cublasLt.
        let lt = unsafe { CublasLt::of(cublas.library) }.map_err(|reason| {
            let next = "is it of CUDA 12 or 13? `pip install nvidia-cublas`";
            stream.failed(format!("use {}", cublas.path.display()), reason, next)
        })?;
        let modules = Modules::new(Arc::clone(&stream), driver.library, nvrtc, store);
        let products = Products::new(lt, Arc::clone(&stream))?;
        let staging = Mutex::new(Staging::new(Arc::clone(&stream))?);
        Ok(Gpu { staging, products, modules, of_host: Mutex::default(), stream })
    }

    /// Compiles and loads every kernel for these formats now, side by side, and not one by one when they are first launched.
    pub fn load(&self, reals: &[Real]) -> Result<(), CudaError> {
        self.modules.load_all(reals)
    }

    fn is_of_host(&self, at: Address) -> bool {
        let of_host = self.of_host.lock().unwrap_or_else(PoisonError::into_inner);
        of_host.range(..=at.0).next_back().is_some_and(|(from, bytes)| at.0 < from + *bytes as u64)
    }

    /// Work that puts nothing on the stream while it is captured but what is captured.
    fn not_captured(&self, what: &str) -> Result<(), CudaError> {
        if self.stream.is_capturing() {
            return Err(CudaError::Refused {
                what: what.to_string(),
                got: "a call while work is captured".to_string(),
                expected: "launches, products, and copies on the device".to_string(),
            });
        }
        Ok(())
    }

    fn launched(&self, launch: Launch<'_>) -> Result<(), CudaError> {
        let Launch { real, kernel, grid, threads, shared, args } = launch;
        if grid.contains(&0) {
            return Ok(());
        }
        let refused = |got: String, expected: &str| CudaError::Refused {
            what: kernel.to_string(),
            got,
            expected: expected.to_string(),
        };
        let [x, y, z] = grid.map(|n| c_uint::try_from(n).unwrap_or(c_uint::MAX));
        if x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return Err(refused(format!("a grid of {grid:?}"), "up to 2147483647, 65535 and 65535 blocks"));
        }
        if threads == 0 || threads > 1024 || !threads.is_multiple_of(32) {
            return Err(refused(format!("{threads} threads a block"), "whole warps, 1024 threads at most"));
        }
        if args.len() > MOST_ARGS {
            return Err(refused(format!("{} arguments", args.len()), "32 at most"));
        }
        let function = self.modules.function(real, kernel, shared)?;
        function.takes(args).map_err(|(got, expected)| refused(got, &expected))?;
        let mut values = [0u64; MOST_ARGS];
        for (value, arg) in values.iter_mut().zip(args) {
            // Little-endian, as every machine with such a GPU is: a shorter argument is the beginning of its place.
            *value = match arg {
                Arg::At(at) => at.0,
                Arg::Null => 0,
                Arg::Int(x) => u64::from(*x as u32),
                Arg::Long(x) => *x,
                Arg::Float(x) => u64::from(x.to_bits()),
                Arg::Double(x) => x.to_bits(),
            };
        }
        let mut places: [*mut c_void; MOST_ARGS] = values.each_mut().map(|value| ptr::from_mut(value).cast());
        let cuda = self.stream.enter()?;
        let (block, shared) = (threads as c_uint, shared as c_uint);
        let (stream, function) = (self.stream.handle(), function.handle.0);
        // SAFETY: the function is of a loaded module; its parameters, as many and as large as it takes, lie behind the places, which
        // the driver reads before it returns.
        let launched = unsafe {
            (cuda.launch)(function, x, y, z, block, 1, 1, shared, stream, places.as_mut_ptr(), ptr::null_mut())
        };
        self.stream.checked(launched, || {
            format!("launch {kernel} on a grid of {grid:?} with {threads} threads and {shared} bytes of shared memory a block")
        })
    }
}

impl Runtime for Gpu {
    fn info(&self) -> &DeviceInfo {
        self.stream.info()
    }

    fn memory(&self) -> Result<DeviceMemory, CudaError> {
        let cuda = self.stream.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places live through the call.
        let asked = unsafe { (cuda.memory)(&mut free, &mut total) };
        self.stream.checked(asked, || "tell its free memory".to_string())?;
        Ok(DeviceMemory { free, total })
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        self.status()?;
        self.not_captured("an allocation")?;
        let cuda = self.stream.enter()?;
        let mut at = 0;
        // SAFETY: the place lives through the call.
        let allocated = unsafe { (cuda.allocate)(&mut at, bytes.max(1)) };
        if allocated == NO_MEMORY {
            let (device, memory) = (self.info().to_string(), self.memory()?);
            return Err(CudaError::OutOfMemory { device, wanted: bytes, memory });
        }
        self.stream.checked(allocated, || format!("give {bytes} bytes of memory"))?;
        Ok(Address(at))
    }

    fn free(&self, at: Address) {
        // After a failure the process's memory there is lost anyway, and the driver says the same failure again.
        let freed = self.stream.enter().and_then(|cuda| {
            // SAFETY: the caller had it from `allocate` and gives it back once; the driver waits for work that uses it.
            let freed = unsafe { (cuda.free)(at.0) };
            self.stream.checked(freed, || "take back memory".to_string())
        });
        if let Err(error) = freed {
            self.fail(error);
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<Address, CudaError> {
        self.status()?;
        self.not_captured("an allocation")?;
        let cuda = self.stream.enter()?;
        let (mut memory, mut at) = (ptr::null_mut(), 0);
        // SAFETY: the place lives through the call.
        let allocated = unsafe { (cuda.allocate_host)(&mut memory, bytes.max(1), MAPPED) };
        self.stream.checked(allocated, || format!("pin {bytes} bytes of the host's memory for it"))?;
        // SAFETY: the memory was just allocated, and nobody else has it yet.
        unsafe { ptr::write_bytes(memory.cast::<u8>(), 0, bytes) };
        // SAFETY: as above, and the place lives through the call.
        let mapped = unsafe { (cuda.device_pointer)(&mut at, memory, 0) };
        let what = || "see the host's memory".to_string();
        let elsewhere = "it has another address for it than the host, which no 64-bit system does".to_string();
        let seen = match mapped {
            0 if at != memory as u64 => Err(self.stream.failed(what(), elsewhere, "do without offload")),
            answer => self.stream.checked(answer, what),
        };
        if let Err(error) = seen {
            // SAFETY: just allocated, freed once.
            unsafe { (cuda.free_host)(memory) };
            return Err(error);
        }
        self.of_host.lock().unwrap_or_else(PoisonError::into_inner).insert(at, bytes);
        Ok(Address(at))
    }

    fn free_host(&self, at: Address) {
        self.of_host.lock().unwrap_or_else(PoisonError::into_inner).remove(&at.0);
        let freed = self.stream.wait().and_then(|()| self.stream.enter()).and_then(|cuda| {
            // SAFETY: the caller had it from `allocate_host` and gives it back once; no work uses it any more.
            let freed = unsafe { (cuda.free_host)(at.0 as *mut c_void) };
            self.stream.checked(freed, || "take back the host's memory".to_string())
        });
        if let Err(error) = freed {
            self.fail(error);
        }
    }

    fn upload(&self, from: &[u8], to: Address) {
        self.stream.attempt(|| {
            self.not_captured("an upload")?;
            if self.is_of_host(to) {
                self.stream.wait()?;
                // SAFETY: pinned memory that only this device's work uses, which is done.
                unsafe { ptr::copy(from.as_ptr(), to.0 as *mut u8, from.len()) };
                return Ok(());
            }
            self.staging.lock().unwrap_or_else(PoisonError::into_inner).upload(from, to)
        });
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
        self.status()?;
        let downloaded = self.not_captured("a download").and_then(|()| {
            if self.is_of_host(from) {
                self.stream.wait()?;
                // SAFETY: as for an upload.
                unsafe { ptr::copy(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
                return Ok(());
            }
            let cuda = self.stream.enter()?;
            // SAFETY: the bytes are there until the stream was waited for, below; the driver looks at the device's address itself.
            let asked = unsafe { (cuda.download)(to.as_mut_ptr().cast(), from.0, to.len(), self.stream.handle()) };
            let waited = self.stream.wait();
            self.stream.checked(asked, || format!("copy {} bytes to the host", to.len()))?;
            waited
        });
        downloaded.inspect_err(|error| self.fail(error.clone()))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) {
        self.stream.attempt(|| {
            let cuda = self.stream.enter()?;
            // SAFETY: the driver looks at both addresses itself.
            let copied = unsafe { (cuda.copy)(to.0, from.0, bytes, self.stream.handle()) };
            self.stream.checked(copied, || format!("copy {bytes} bytes on the device"))
        });
    }

    fn zero(&self, at: Address, bytes: usize) {
        self.stream.attempt(|| self.stream.zero(at, bytes));
    }

    unsafe fn launch(&self, launch: Launch<'_>) {
        self.stream.attempt(|| self.launched(launch));
    }

    fn product(&self, product: &Product) {
        self.stream.attempt(|| self.products.multiply(product));
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.status()?;
        self.stream.wait().inspect_err(|error| self.fail(error.clone()))
    }

    fn status(&self) -> Result<(), CudaError> {
        self.stream.status()
    }

    fn fail(&self, error: CudaError) {
        self.stream.fail(error);
    }

    fn begin_capture(&self) {
        self.stream.attempt(|| {
            let cuda = self.stream.enter()?;
            // SAFETY: the stream is this runtime's.
            let begun = unsafe { (cuda.begin_capture)(self.stream.handle(), RELAXED) };
            self.stream.checked(begun, || "begin to capture work".to_string())?;
            self.stream.set_capturing(true);
            Ok(())
        });
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, CudaError> {
        let ended = self.ended_capture();
        self.status()?;
        let graph = ended.inspect_err(|error| self.fail(error.clone()))?;
        Ok(Box::new(graph))
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        self.not_captured("a mark")?;
        let event = Event::new(Arc::clone(&self.stream), TIMING)?;
        event.record()?;
        Ok(Mark(Box::new(event)))
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64, CudaError> {
        to.of::<Event>()?.seconds_since(from.of()?)
    }
}

impl Gpu {
    fn ended_capture(&self) -> Result<GpuGraph, CudaError> {
        if !self.stream.set_capturing(false) {
            return Err(CudaError::Refused {
                what: "the end of a capture".to_string(),
                got: "none that was begun".to_string(),
                expected: "begin_capture before it".to_string(),
            });
        }
        let cuda = self.stream.enter()?;
        let mut graph: Handle = ptr::null_mut();
        // SAFETY: the stream is this runtime's, the place lives through the call.
        let ended = unsafe { (cuda.end_capture)(self.stream.handle(), &mut graph) };
        self.stream.checked(ended, || "capture work".to_string())?;
        let mut instance: Handle = ptr::null_mut();
        // SAFETY: the graph was just made, the place lives through the call.
        let made = unsafe { (cuda.instantiate_graph)(&mut instance, graph, 0) };
        // SAFETY: made above, destroyed once; an instance does not need it.
        unsafe { (cuda.destroy_graph)(graph) };
        self.stream.checked(made, || "make captured work ready".to_string())?;
        Ok(GpuGraph { stream: Arc::clone(&self.stream), instance: Object(instance) })
    }
}

/// Captured work that is ready to be run.
#[derive(Debug)]
struct GpuGraph {
    stream: Arc<Stream>,
    instance: Object,
}

impl Graph for GpuGraph {
    fn replay(&self) {
        self.stream.attempt(|| {
            let cuda = self.stream.enter()?;
            // SAFETY: the instance lives as long as this, the stream too.
            let launched = unsafe { (cuda.launch_graph)(self.instance.0, self.stream.handle()) };
            self.stream.checked(launched, || "run captured work".to_string())
        });
    }
}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        if let Ok(cuda) = self.stream.enter() {
            // SAFETY: made by `ended_capture`, destroyed once; the driver waits where it runs.
            unsafe { (cuda.destroy_instance)(self.instance.0) };
        }
    }
}

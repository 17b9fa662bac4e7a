//! Where a device's time goes: a [`Runtime`] that passes everything on to another one and takes the time of each kernel, product and
//! copy between two marks on the stream.
//!
//! Captured work is given again one by one, so that its parts are seen too; what a graph saves is therefore not in the numbers. The
//! time between two pieces of work, in which the device had nothing to do, is counted by itself: it is the host's.

use super::device::DeviceInfo;
use super::runtime::{Address, CudaError, DeviceMemory, Graph, Launch, Mark, Product, Runtime};
use super::work::Work;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pieces of work whose marks are held at a time; then they are waited for, and read.
const PENDING: usize = 4096;

/// All of one kind of work.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Entry {
    /// A kernel's name, `product` and its sizes, `copy`, `zero`, `upload`, `download`.
    pub name: String,
    pub calls: usize,
    pub seconds: f64,
    /// Of the work's time.
    pub share: f64,
    /// Of products: operations over their time, in 1e12 a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
}

/// Where the time went, from one [`Runtime::profile`] to the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Profile {
    /// In which the device worked.
    pub seconds: f64,
    /// Between pieces of work.
    pub idle_seconds: f64,
    /// The longest first.
    pub entries: Vec<Entry>,
}

/// Takes the time of a runtime's work.
#[derive(Clone, Debug)]
pub struct Profiler(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    captured: Option<Vec<Work>>,
    pending: Vec<Timed>,
    totals: HashMap<String, Total>,
    idle: f64,
}

#[derive(Debug)]
struct Timed {
    name: String,
    flop: f64,
    marks: [Mark; 2],
}

#[derive(Debug, Default)]
struct Total {
    calls: usize,
    seconds: f64,
    flop: f64,
}

impl Profiler {
    pub fn new(runtime: Arc<dyn Runtime>) -> Profiler {
        Profiler(Arc::new(Inner { runtime, state: Mutex::default() }))
    }

    fn runtime(&self) -> &dyn Runtime {
        self.0.runtime.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this between two marks.
    fn timed<T>(&self, name: &str, flop: f64, work: impl FnOnce() -> T) -> T {
        let before = self.runtime().mark();
        let result = work();
        let marks = before.and_then(|before| Ok([before, self.runtime().mark()?]));
        let mut state = self.state();
        match marks {
            Ok(marks) => state.pending.push(Timed { name: name.to_string(), flop, marks }),
            Err(error) => self.runtime().fail(error),
        }
        if state.pending.len() >= PENDING {
            self.settle(&mut state);
        }
        result
    }

    /// Keeps the work while work is captured, else gives it now.
    fn work(&self, work: Work) {
        if let Some(captured) = &mut self.state().captured {
            return captured.push(work);
        }
        // SAFETY: a launch's arguments are what its caller promised.
        self.timed(&work.name(), work.flop(), || unsafe { work.give(self.runtime()) });
    }

    /// Reads the marks, which waits for the work before them.
    fn settle(&self, state: &mut State) {
        let mut last: Option<Timed> = None;
        for timed in std::mem::take(&mut state.pending) {
            let [from, to] = &timed.marks;
            let took = self.runtime().seconds(from, to);
            let idle = last.as_ref().map_or(Ok(0.0), |last| self.runtime().seconds(&last.marks[1], from));
            match took.and_then(|took| Ok((took, idle?))) {
                Ok((took, idle)) => {
                    let total = state.totals.entry(timed.name.clone()).or_default();
                    *total =
                        Total { calls: total.calls + 1, seconds: total.seconds + took, flop: total.flop + timed.flop };
                    state.idle += idle;
                }
                Err(error) => return self.runtime().fail(error),
            }
            last = Some(timed);
        }
    }
}

impl Runtime for Profiler {
    fn info(&self) -> &DeviceInfo {
        self.0.runtime.info()
    }

    fn memory(&self) -> Result<DeviceMemory, CudaError> {
        self.runtime().memory()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        self.runtime().allocate(bytes)
    }

    fn free(&self, at: Address) {
        self.runtime().free(at);
    }

    fn allocate_host(&self, bytes: usize) -> Result<Address, CudaError> {
        self.runtime().allocate_host(bytes)
    }

    fn free_host(&self, at: Address) {
        self.runtime().free_host(at);
    }

    fn upload(&self, from: &[u8], to: Address) {
        self.timed("upload", 0.0, || self.runtime().upload(from, to));
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
        self.timed("download", 0.0, || self.runtime().download(from, to))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) {
        self.work(Work::Copy { from, to, bytes });
    }

    fn zero(&self, at: Address, bytes: usize) {
        self.work(Work::Zero { at, bytes });
    }

    unsafe fn launch(&self, launch: Launch<'_>) {
        if !launch.grid.contains(&0) {
            self.work(Work::of(launch));
        }
    }

    fn product(&self, product: &Product) {
        self.work(Work::Product(*product));
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.runtime().synchronize()
    }

    fn status(&self) -> Result<(), CudaError> {
        self.runtime().status()
    }

    fn fail(&self, error: CudaError) {
        self.runtime().fail(error);
    }

    fn begin_capture(&self) {
        self.state().captured = Some(Vec::new());
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, CudaError> {
        self.status()?;
        let work = self.state().captured.take().unwrap_or_default();
        Ok(Box::new(Captured { profiler: self.clone(), work }))
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        self.runtime().mark()
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64, CudaError> {
        self.runtime().seconds(from, to)
    }

    fn profile(&self) -> Option<Profile> {
        let mut state = self.state();
        self.settle(&mut state);
        let State { totals, idle, .. } = std::mem::take(&mut *state);
        let seconds: f64 = totals.values().map(|total| total.seconds).sum();
        let entry = |(name, total): (String, Total)| Entry {
            name,
            calls: total.calls,
            seconds: total.seconds,
            share: if seconds > 0.0 { total.seconds / seconds } else { 0.0 },
            tflops: (total.flop > 0.0 && total.seconds > 0.0).then(|| 1e-12 * total.flop / total.seconds),
        };
        let mut entries: Vec<Entry> = totals.into_iter().map(entry).collect();
        entries.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.name.cmp(&b.name)));
        Some(Profile { seconds, idle_seconds: idle, entries })
    }
}

/// Captured work, which is given one by one.
#[derive(Debug)]
struct Captured {
    profiler: Profiler,
    work: Vec<Work>,
}

impl Graph for Captured {
    fn replay(&self) {
        self.work.iter().for_each(|work| self.profiler.work(work.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::gemm::Write;
    use crate::compute::cuda::arena::{Arena, Growth};
    use crate::compute::cuda::array::DeviceArray;
    use crate::compute::cuda::emulator::{Emulator, Order};
    use crate::compute::cuda::kernels::Real;
    use crate::compute::cuda::runtime::{Arg, Matrix};

    #[test]
    fn every_piece_of_work_is_counted_and_what_it_does_is_done() {
        let profiler = Profiler::new(Arc::new(Emulator::new(Order::Forward, 1 << 20)));
        let arena = Arena::new(Arc::new(profiler.clone()), 0, Growth::By(1 << 16)).unwrap();
        let x = DeviceArray::from_host(&arena, &[1.0f32, 2.0, 3.0, 4.0]);
        let y = DeviceArray::<f32>::zeros(&arena, 4);
        let add = || {
            let args = [Arg::Float(2.0), x.arg(), y.arg(), Arg::Long(4)];
            let launch =
                Launch { real: Real::F32, kernel: "scaled_add", grid: [1, 1, 1], threads: 32, shared: 0, args: &args };
            // SAFETY: x and y are four elements, as the kernel is told.
            unsafe { profiler.launch(launch) };
        };
        add();
        profiler.begin_capture();
        add();
        let graph = profiler.end_capture().unwrap();
        assert_eq!(y.to_host().unwrap(), [2.0, 4.0, 6.0, 8.0], "captured work waits");
        graph.replay();
        graph.replay();
        let [a, b, c] = [&x, &x, &y].map(|array| Matrix::new(array.address(), Real::F32, 2));
        profiler.product(&Product::linear(a, b, c, [2, 2, 2], Write::Add));
        assert_eq!(y.to_host().unwrap(), [11.0, 23.0, 29.0, 49.0]);

        let profile = profiler.profile().unwrap();
        let of = |name: &str| profile.entries.iter().find(|entry| entry.name == name).unwrap();
        let product = of("product 2 x 2 x 2 nt, f32 to f32");
        assert_eq!((product.calls, product.tflops.map(|rate| rate * product.seconds * 1e12)), (1, Some(16.0)));
        assert_eq!(["scaled_add", "zero", "upload", "download"].map(|name| of(name).calls), [3, 1, 1, 2]);
        let shares: f64 = profile.entries.iter().map(|entry| entry.share).sum();
        assert!((shares - 1.0).abs() < 1e-9 && profile.seconds > 0.0 && profile.idle_seconds >= 0.0);
        assert!(profile.entries.is_sorted_by(|a, b| a.seconds >= b.seconds));
        assert_eq!(profiler.profile(), Some(Profile::default()), "a profile begins where the last one ended");
    }
}

//! Where a body of a test runs: on the CPU; with the feature `emulator` on CUDA's kernels as well, in f32 and in bf16. Those run in their
//! emulator, or on the GPU that `BUPO_TEST_DEVICE` names (`cuda:0`).
//!
//! In f32 places differ in the order of sums alone, and agreement is relative, 1e-4: `|ours - theirs| <= 1e-4 max(|theirs|, rms of
//! theirs)`. The rms is there because an element that nearly cancels has no digits of its own left in f32. In bf16 every value that one
//! module hands to another is rounded to eight bits, as are weights, and so are gradients on their way down: what a test allows there
//! it says, with the reason, in [`InBf16`].

use bupo::compute::cpu::Cpu;
use std::sync::{Mutex, PoisonError};

/// Relative, in f32.
pub const TOLERANCE: f64 = 1e-4;

/// How far numbers of one kind may be off in bf16.
#[derive(Clone, Copy, Debug)]
pub struct InBf16 {
    /// What they are, for what is said of them.
    pub kind: &'static str,
    /// The worst element, relative to the largest.
    pub worst: f64,
    /// The distance, relative to the length.
    pub distance: f64,
}

/// A device to compute on, and how well its numbers must agree with somebody else's.
#[derive(Debug)]
pub struct Place<B> {
    pub backend: B,
    /// Factors of products are rounded to bf16.
    pub bf16: bool,
    /// An emulator, on which a body takes turns where it can.
    pub slow: bool,
    /// By kind: the worst element and the distance so far, of the bounds' measures.
    seen: Mutex<Vec<(&'static str, [f64; 2])>>,
}

impl Place<Cpu> {
    pub fn cpu() -> Place<Cpu> {
        Place { backend: Cpu::default(), bf16: false, slow: false, seen: Mutex::default() }
    }
}

impl<B> Place<B> {
    /// One of two values, by format.
    pub fn pick<T>(&self, f32: T, bf16: T) -> T {
        if self.bf16 { bf16 } else { f32 }
    }

    /// Ours are theirs: to [`TOLERANCE`] in f32, in bf16 within these bounds.
    pub fn agree<T: Copy + Into<f64>>(&self, bounds: &InBf16, what: &str, ours: &[T], theirs: &[T]) {
        assert_eq!(ours.len(), theirs.len(), "{what}: lengths");
        let wide = |x: &[T]| x.iter().map(|x| (*x).into()).collect::<Vec<f64>>();
        let (ours, theirs) = (wide(ours), wide(theirs));
        assert!(ours.iter().all(|x| x.is_finite()), "{what}: not finite");
        self.note(bounds.kind, apart(&ours, &theirs));
        if !self.bf16 {
            let scale = rms(&theirs);
            for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                let bound = TOLERANCE * b.abs().max(scale);
                assert!((a - b).abs() <= bound, "{what}[{i}]: ours {a}, theirs {b}, rms {scale}");
            }
            return;
        }
        let [worst, distance] = apart(&ours, &theirs);
        let within = worst <= bounds.worst && distance <= bounds.distance;
        assert!(within, "{what} in bf16: worst {worst:e}, distance {distance:e}, expected {bounds:?}");
    }

    /// One number: relative, to [`TOLERANCE`] in f32; in bf16 to the bound for a worst element, of the number or of `size`, where that
    /// is larger.
    pub fn agree_on_one(&self, bounds: &InBf16, what: &str, ours: f64, theirs: f64, size: f64) {
        let (tolerance, size) = self.pick((TOLERANCE, theirs.abs()), (bounds.worst, theirs.abs().max(size)));
        let off = (ours - theirs).abs();
        self.note(bounds.kind, [off / size; 2]);
        assert!(off <= tolerance * size, "{what}: ours {ours}, theirs {theirs}");
    }

    /// A tensor's parameters after some steps: in f32 to [`TOLERANCE`] of its rms, as an element's update is a quotient of two small
    /// numbers where its gradient is near zero; in bf16 what moved, within the bounds.
    pub fn agree_on_parameters(&self, moves: &InBf16, what: &str, start: &[f32], ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len(), "{what}: lengths");
        let moved = |to: &[f32]| to.iter().zip(start).map(|(to, from)| to - from).collect::<Vec<f32>>();
        if self.bf16 {
            return self.agree(moves, what, &moved(ours), &moved(theirs));
        }
        let scale = rms(theirs);
        let worst = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        self.note("parameters after steps, of the rms", [worst / scale; 2]);
        assert!(worst <= TOLERANCE * scale, "{what}: {worst} of {scale}");
    }

    fn note(&self, kind: &'static str, off: [f64; 2]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.iter().any(|(of, _)| *of == kind) {
            seen.push((kind, [0.0; 2]));
        }
        let most = seen.iter_mut().filter(|(of, _)| *of == kind).flat_map(|(_, most)| most);
        most.zip(off).for_each(|(most, off)| *most = most.max(off));
    }
}

impl<B: bupo::compute::Backend> Place<B> {
    /// Runs a body here, and says how far off its numbers were.
    pub fn run(self, what: &str, body: impl FnOnce(&Place<B>)) {
        body(&self);
        self.backend.status().unwrap_or_else(|error| panic!("{what}: {error:#}"));
        for (kind, [worst, distance]) in self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let format = self.pick("f32", "bf16");
            eprintln!("{what}, {format}, {kind}: worst {worst:.1e}, distance {distance:.1e}");
        }
    }
}

pub fn rms<T: Copy + Into<f64>>(x: &[T]) -> f64 {
    let square = |x: &T| (*x).into().powi(2);
    (x.iter().map(square).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

/// How far numbers are apart: the worst element, relative to the largest; and the distance, relative to the length.
pub fn apart(got: &[f64], expected: &[f64]) -> [f64; 2] {
    let largest = expected.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    let off: Vec<f64> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
    let worst = off.iter().fold(0.0, |m: f64, x| m.max(x.abs())) / largest;
    [worst, rms(&off) / rms(expected).max(1e-30)]
}

/// Tests of bodies over a [`Place`], one for each place that there is.
#[allow(unused_macros)]
macro_rules! everywhere {
    ($($body:ident),* $(,)?) => {
        mod on_the_cpu {
            $(#[test]
            fn $body() {
                super::common::places::Place::cpu().run(stringify!($body), super::$body);
            })*
        }
        #[cfg(feature = "emulator")]
        mod on_a_device_in_f32 {
            $(#[test]
            fn $body() {
                super::common::places::Place::device(bupo::compute::cuda::kernels::Real::F32)
                    .run(stringify!($body), super::$body);
            })*
        }
        #[cfg(feature = "emulator")]
        mod on_a_device_in_bf16 {
            $(#[test]
            fn $body() {
                super::common::places::Place::device(bupo::compute::cuda::kernels::Real::Bf16)
                    .run(stringify!($body), super::$body);
            })*
        }
    };
}

#[cfg(feature = "emulator")]
#[allow(unused_imports)]
pub use devices::device;

#[cfg(feature = "emulator")]
mod devices {
    use super::Place;
    use bupo::compute::cuda::backend::Cuda;
    use bupo::compute::cuda::device::{Chosen, DeviceChoice};
    use bupo::compute::cuda::driver::Gpu;
    use bupo::compute::cuda::emulator::{Emulator, Order};
    use bupo::compute::cuda::kernels::Real;
    use bupo::compute::cuda::libraries::Search;
    use bupo::compute::cuda::runtime::Runtime;
    use std::sync::{Arc, Mutex, OnceLock};

    /// The GPU that the tests are to run on, one for all of them, with its kernels compiled.
    fn gpu() -> Option<Arc<dyn Runtime>> {
        static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
        let open = || {
            let choice: DeviceChoice = std::env::var("BUPO_TEST_DEVICE").ok()?.parse().expect("BUPO_TEST_DEVICE");
            let search = Search::from_env();
            let Chosen::Cuda(device) = choice.open(&search).expect("BUPO_TEST_DEVICE") else { return None };
            let gpu = Gpu::new(device, &search, None).expect("a GPU's runtime");
            gpu.load(&Real::BOTH).expect("all kernels");
            Some(Arc::new(gpu))
        };
        GPU.get_or_init(open).clone().map(|gpu| gpu as Arc<dyn Runtime>)
    }

    /// The GPU, or the kernels' emulator. Its head meets the vocabulary with few rows at once, so that small batches have several blocks.
    pub fn device(real: Real) -> Cuda {
        let runtime = gpu().unwrap_or_else(|| Arc::new(Emulator::new(Order::Shuffled, 1 << 30)));
        Cuda::new(runtime, 0, real).expect("a device's memory").with_head_rows(64)
    }

    impl Place<Cuda> {
        pub fn device(real: Real) -> Place<Cuda> {
            let (bf16, slow) = (real == Real::Bf16, gpu().is_none());
            Place { backend: device(real), bf16, slow, seen: Mutex::default() }
        }
    }
}

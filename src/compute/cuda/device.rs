//! Which device computes: what was asked for, what is there, and what can be used.

use super::api::{CAPABILITY, Cuda, DriverVersion, NO_DEVICE, Object, SHARED_PER_BLOCK};
use super::libraries::{CudaLibrary, MissingLibrary, NEWEST_MAJOR, Search, open, symbol};
use super::{Capability, Version};
pub use crate::compute::choice::DeviceChoice;
use std::ffi::{CStr, c_int};
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// Ampere: the first with bf16 in its matrix units.
pub const CAPABILITY_AT_LEAST: Capability = Capability { major: 8, minor: 0 };

/// Older drivers lack functions that are called here.
pub const DRIVER_AT_LEAST: Version = Version { major: 12, minor: 0 };

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Missing(#[from] MissingLibrary),
    #[error("the driver finds no GPU: does `nvidia-smi` list one, and does CUDA_VISIBLE_DEVICES name it?")]
    NoGpu,
    #[error(
        "there is no cuda:{got}: expected a number below {count}, the GPUs that the driver finds (`nvidia-smi -L` lists them)"
    )]
    NoSuchGpu { got: usize, count: usize },
    #[error(
        "cuda:{} ({}) has compute capability {}: expected {CAPABILITY_AT_LEAST} or more (A100, RTX 30 and later); use the CPU",
        .0.index, .0.name, .0.capability
    )]
    OldGpu(DeviceInfo),
    #[error("NVIDIA's driver is of CUDA {got}: expected {DRIVER_AT_LEAST} or later; install a newer driver")]
    OldDriver { got: Version },
    #[error("NVIDIA's driver could not {what}: {reason}; {next}")]
    Driver { what: String, reason: String, next: String },
}

const WORKS: &str = "does `nvidia-smi` work?";

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub index: usize,
    pub name: String,
    pub capability: Capability,
    /// All of it, whoever uses it.
    pub memory_bytes: usize,
    /// Shared memory that a block can have at most.
    pub shared_bytes: usize,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.index, self.name)
    }
}

/// NVIDIA's driver, open and started.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The newest CUDA that it runs.
    pub version: Version,
    /// GPUs that it finds, 1 or more.
    pub count: usize,
    cuda: Cuda,
}

impl Driver {
    pub fn open(search: &Search) -> Result<Driver, DeviceError> {
        let library = open(CudaLibrary::Driver, search, NEWEST_MAJOR)?.library;
        let unusable = |reason| {
            let (what, next) = ("be used".to_string(), "install a newer driver".to_string());
            DeviceError::Driver { what, reason, next }
        };
        // SAFETY: every driver has this function, of this type.
        let version_of = unsafe { symbol::<DriverVersion>(library, c"cuDriverGetVersion") }.map_err(unusable)?;
        let mut number = 0;
        // SAFETY: the place lives through the call.
        let answer = unsafe { version_of(&mut number) };
        // A driver that does not tell is as good as one of no version.
        let number = u32::try_from(number).ok().filter(|_| answer == 0).unwrap_or(0);
        let version = Version { major: number / 1000, minor: number % 1000 / 10 };
        if version < DRIVER_AT_LEAST {
            return Err(DeviceError::OldDriver { got: version });
        }
        // SAFETY: this is NVIDIA's driver.
        let cuda = unsafe { Cuda::of(library) }.map_err(unusable)?;
        // SAFETY: it may be called at any time, and any number of times.
        let started = unsafe { (cuda.initialise)(0) };
        if started == NO_DEVICE {
            return Err(DeviceError::NoGpu);
        }
        checked(&cuda, started, "start", WORKS)?;
        let mut count = 0;
        // SAFETY: the place lives through the call.
        checked(&cuda, unsafe { (cuda.device_count)(&mut count) }, "count its GPUs", WORKS)?;
        match usize::try_from(count) {
            Ok(count) if count > 0 => Ok(Driver { version, count, cuda }),
            _ => Err(DeviceError::NoGpu),
        }
    }

    /// Describes a GPU by its number, one that cannot be used too.
    pub fn describe(&self, index: usize) -> Result<DeviceInfo, DeviceError> {
        let (cuda, device) = (&self.cuda, self.number(index)?);
        let checked = |answer| checked(cuda, answer, format!("describe cuda:{index}"), WORKS);
        let attribute = |asked| -> Result<u32, DeviceError> {
            let mut value = 0;
            // SAFETY: the driver gave this device, and the place lives through the call.
            checked(unsafe { (cuda.device_attribute)(&mut value, asked, device) })?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let [major, minor] = CAPABILITY.map(attribute);
        let shared_bytes = attribute(SHARED_PER_BLOCK)? as usize;
        let (mut name, mut memory_bytes) = ([0u8; 256], 0);
        // SAFETY: there is room for as many bytes as is said, the end included.
        checked(unsafe { (cuda.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, device) })?;
        // SAFETY: as above.
        checked(unsafe { (cuda.device_memory)(&mut memory_bytes, device) })?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        let capability = Capability { major: major?, minor: minor? };
        Ok(DeviceInfo { index, name, capability, memory_bytes, shared_bytes })
    }

    /// Opens a GPU by its number. Its primary context is made if the process has none yet, which takes up to seconds.
    pub fn device(&self, index: usize) -> Result<Device, DeviceError> {
        let info = usable(self.describe(index)?)?;
        let (cuda, device) = (self.cuda, self.number(index)?);
        let mut handle = ptr::null_mut();
        let next = "is another process using all of it, or alone? `nvidia-smi` shows them";
        // SAFETY: the driver gave this device, and the place lives through the call.
        let retained = unsafe { (cuda.retain_context)(&mut handle, device) };
        checked(&cuda, retained, format!("open cuda:{index}"), next)?;
        Ok(Device { info, driver: self.version, context: Arc::new(Context { cuda, device, handle: Object(handle) }) })
    }

    /// The first GPU that can be used; else why none of them can.
    pub fn first_usable(&self) -> Result<Device, Vec<DeviceError>> {
        let mut reasons = Vec::new();
        for index in 0..self.count {
            match self.device(index) {
                Ok(device) => return Ok(device),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons)
    }

    /// The driver's name for a GPU by its number.
    fn number(&self, index: usize) -> Result<c_int, DeviceError> {
        let number = number(index, self.count)?;
        let mut device = 0;
        // SAFETY: the place lives through the call.
        checked(&self.cuda, unsafe { (self.cuda.device)(&mut device, number) }, format!("find cuda:{index}"), WORKS)?;
        Ok(device)
    }
}

fn number(index: usize, count: usize) -> Result<c_int, DeviceError> {
    let there = c_int::try_from(index).ok().filter(|_| index < count);
    there.ok_or(DeviceError::NoSuchGpu { got: index, count })
}

/// The driver's answer, as what it was asked for.
fn checked(cuda: &Cuda, answer: c_int, what: impl fmt::Display, next: &str) -> Result<(), DeviceError> {
    if answer == 0 {
        return Ok(());
    }
    Err(DeviceError::Driver { what: what.to_string(), reason: cuda.reason(answer), next: next.to_string() })
}

/// The same GPU, if it can be used.
pub fn usable(info: DeviceInfo) -> Result<DeviceInfo, DeviceError> {
    if info.capability < CAPABILITY_AT_LEAST { Err(DeviceError::OldGpu(info)) } else { Ok(info) }
}

/// A GPU that is open.
#[derive(Clone, Debug)]
pub struct Device {
    pub info: DeviceInfo,
    /// The newest CUDA that its driver runs: a compiler of a newer major version makes code that it cannot load.
    pub driver: Version,
    context: Arc<Context>,
}

impl Device {
    /// The driver's functions, with this GPU's context as the calling thread's.
    pub(super) fn enter(&self) -> Result<Cuda, DeviceError> {
        let Context { cuda, handle, .. } = *self.context;
        // SAFETY: the context is held.
        let set = unsafe { (cuda.set_context)(handle.0) };
        checked(&cuda, set, format!("make cuda:{} a thread's device", self.info.index), WORKS)?;
        Ok(cuda)
    }

    /// A result's name and what the driver says of it.
    pub(super) fn reason(&self, result: c_int) -> String {
        self.context.cuda.reason(result)
    }
}

/// A GPU's primary context, held.
#[derive(Debug)]
struct Context {
    cuda: Cuda,
    device: c_int,
    handle: Object,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once.
        unsafe { (self.cuda.release_context)(self.device) };
    }
}

/// What a choice came to.
#[derive(Clone, Debug)]
pub enum Chosen {
    /// With the reason, where a GPU would have been taken.
    Cpu {
        reason: Option<String>,
    },
    Cuda(Device),
}

impl DeviceChoice {
    /// Opens what was asked for. `auto` is never an error: it gives the reason for the CPU, to be said.
    pub fn open(self, search: &Search) -> Result<Chosen, DeviceError> {
        match self {
            DeviceChoice::Cpu => Ok(Chosen::Cpu { reason: None }),
            DeviceChoice::Cuda(index) => Ok(Chosen::Cuda(Driver::open(search)?.device(index)?)),
            DeviceChoice::Auto => {
                let first =
                    Driver::open(search).map_err(|reason| vec![reason]).and_then(|driver| driver.first_usable());
                Ok(first.map_or_else(|reasons| Chosen::Cpu { reason: Some(in_one(&reasons)) }, Chosen::Cuda))
            }
        }
    }
}

fn in_one(reasons: &[DeviceError]) -> String {
    reasons.iter().map(DeviceError::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn without_a_driver_a_gpu_is_an_error_and_auto_is_the_cpu_with_the_reason() {
        let nowhere = Search::only(OsStr::new(""));
        let error = DeviceChoice::Cuda(0).open(&nowhere).unwrap_err();
        assert!(matches!(&error, DeviceError::Missing(missing) if missing.library == CudaLibrary::Driver), "{error}");
        assert!(error.to_string().contains("libcuda"), "{error}");
        let Chosen::Cpu { reason } = DeviceChoice::Auto.open(&nowhere).unwrap() else { panic!("no driver, but a GPU") };
        assert_eq!(reason, Some(error.to_string()));
        assert!(matches!(DeviceChoice::Cpu.open(&nowhere), Ok(Chosen::Cpu { reason: None })));
    }

    #[test]
    fn the_first_gpus_with_bf16_matrix_units_are_the_oldest_that_can_be_used() {
        let gpu = |name: &str, major, minor| DeviceInfo {
            index: 1,
            name: name.to_string(),
            capability: Capability { major, minor },
            memory_bytes: 16 << 30,
            shared_bytes: 99 << 10,
        };
        for good in [gpu("A100", 8, 0), gpu("RTX 3090", 8, 6), gpu("H100", 9, 0), gpu("RTX 5090", 12, 0)] {
            assert_eq!(usable(good.clone()), Ok(good));
        }
        let error = usable(gpu("Tesla T4", 7, 5)).unwrap_err().to_string();
        assert!(error.contains("cuda:1 (Tesla T4) has compute capability 7.5: expected 8.0 or more"), "{error}");
    }

    #[test]
    fn a_number_that_no_gpu_has_is_said_with_how_many_there_are() {
        assert_eq!(number(1, 2), Ok(1));
        let error = number(2, 2).unwrap_err();
        assert_eq!(error, DeviceError::NoSuchGpu { got: 2, count: 2 });
        assert!(error.to_string().contains("no cuda:2: expected a number below 2"), "{error}");
    }
}

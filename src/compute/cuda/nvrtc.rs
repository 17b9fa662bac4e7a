//! NVRTC, CUDA's compiler as a library: the few functions that kernels need, as Rust.

use super::Version;
use super::libraries::{CudaLibrary, MissingLibrary, NEWEST_MAJOR, Opened, Search, open, symbol};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

type Program = *mut c_void;
type Strings = *const *const c_char;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Fill = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// `NVRTC_SUCCESS` of `nvrtcResult`; the codes are the same in all versions.
const SUCCESS: c_int = 0;

/// The compiler, open and of a known version.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    /// Of the toolkit that it belongs to; it gives no patch level.
    pub version: Version,
    /// The file, or the name by which the system's loader found it.
    pub path: PathBuf,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    code_size: SizeOf,
    code: Fill,
    log_size: SizeOf,
    log: Fill,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// Why there is no compiler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    #[error(transparent)]
    Missing(#[from] MissingLibrary),
    #[error(
        "{} is no NVRTC that can be used: {reason}; expected that of CUDA 12 (`pip install nvidia-cuda-nvrtc-cu12`) or 13 (`nvidia-cuda-nvrtc`)",
        path.display()
    )]
    Unusable { path: PathBuf, reason: String },
}

/// What came of a program: its machine code, and what the compiler said.
pub(super) struct Outcome {
    pub code: Result<Vec<u8>, String>,
    pub log: String,
}

impl Nvrtc {
    /// Opens the compiler of a CUDA that `driver` can load code of; the newest where none is given.
    pub fn open(search: &Search, driver: Option<Version>) -> Result<Nvrtc, NvrtcError> {
        let newest = driver.map_or(NEWEST_MAJOR, |driver| driver.major);
        let Opened { library, path } = open(CudaLibrary::Nvrtc, search, newest)?;
        let unusable = |reason| NvrtcError::Unusable { path: path.clone(), reason };
        let nvrtc = Nvrtc::of(library, path.clone()).map_err(unusable)?;
        // A file may be any version's, whatever its name.
        if let Some(driver) = driver.filter(|driver| nvrtc.version.major > driver.major) {
            let reason = format!("it is of CUDA {}, whose code a driver of CUDA {driver} does not load", nvrtc.version);
            return Err(unusable(reason));
        }
        // It opens its built-in functions by name, which finds them beside it only if they are open already; where they are missing
        // it says so itself, in the log of a program that needs them.
        if let Some(folder) = nvrtc.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let builtins = folder.join(format!("libnvrtc-builtins.so.{}", nvrtc.version));
            // SAFETY: it belongs to the library that was opened from the same folder.
            unsafe { Library::new(builtins) }.map(std::mem::forget).ok();
        }
        Ok(nvrtc)
    }

    fn of(library: &'static Library, path: PathBuf) -> Result<Nvrtc, String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the name and type are nvrtc.h's, and both places live through the call.
        let answered = unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol(library, c"nvrtcVersion")?;
            version(&mut major, &mut minor)
        };
        let number = |n: c_int| u32::try_from(n).ok().filter(|_| answered == SUCCESS);
        let (Some(major), Some(minor)) = (number(major), number(minor)) else {
            return Err("it does not give its version".to_string());
        };
        // SAFETY: the names and types are nvrtc.h's.
        unsafe {
            Ok(Nvrtc {
                version: Version { major, minor },
                path,
                create: symbol(library, c"nvrtcCreateProgram")?,
                compile: symbol(library, c"nvrtcCompileProgram")?,
                destroy: symbol(library, c"nvrtcDestroyProgram")?,
                code_size: symbol(library, c"nvrtcGetCUBINSize")?,
                code: symbol(library, c"nvrtcGetCUBIN")?,
                log_size: symbol(library, c"nvrtcGetProgramLogSize")?,
                log: symbol(library, c"nvrtcGetProgramLog")?,
                error_string: symbol(library, c"nvrtcGetErrorString")?,
            })
        }
    }

    /// Compiles a text under a file name, with headers that it may include by theirs. The error is NVRTC's name for it.
    pub(super) fn run(
        &self,
        name: &CStr,
        text: &CStr,
        headers: &[(CString, CString)],
        options: &[CString],
    ) -> Result<Outcome, String> {
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let (count, mut program) = (names.len() as c_int, ptr::null_mut());
        let (names, texts) = (names.as_ptr(), texts.as_ptr());
        // SAFETY: all strings end in NUL and live through the call, as many of them as `count` says.
        let created = unsafe { (self.create)(&mut program, text.as_ptr(), name.as_ptr(), count, texts, names) };
        self.checked(created)?;
        // SAFETY: the program was created above; the options end in NUL and live through the call.
        let compiled = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n', ' ']).to_string();
        let code = self.checked(compiled).and_then(|()| self.bytes(program, self.code_size, self.code));
        // SAFETY: created above, destroyed once, not used after.
        unsafe { (self.destroy)(&mut program) };
        Ok(Outcome { code, log })
    }

    /// What a pair of functions gives of a program: the first its size, the second the bytes.
    fn bytes(&self, program: Program, size: SizeOf, fill: Fill) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: callers pass a program that was created and is not yet destroyed.
        self.checked(unsafe { size(program, &mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: as above, and there is room for as many bytes as it said.
        self.checked(unsafe { fill(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn checked(&self, result: c_int) -> Result<(), String> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: it takes any number and gives a string that is never freed.
        let text = unsafe { (self.error_string)(result) };
        if text.is_null() {
            return Err(format!("NVRTC's error {result}"));
        }
        // SAFETY: not null, and NVRTC's strings end in NUL.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

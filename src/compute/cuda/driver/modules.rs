//! Kernels on a GPU: compiled and loaded when they are first asked for, found by name.

use super::Store;
use super::stream::Stream;
use crate::compute::cuda::api::{MOST_SHARED, Object, ParameterInfo};
use crate::compute::cuda::cache::{Kernel, KernelStore, kernel};
use crate::compute::cuda::kernels::{Compilation, Real, compilations};
use crate::compute::cuda::libraries::symbol;
use crate::compute::cuda::nvrtc::Nvrtc;
use crate::compute::cuda::runtime::{Arg, CudaError};
use libloading::Library;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::CString;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory that a block may have without being asked for: of 48 KiB, which a kernel's own arrays are part of, 8 at most.
const SHARED_UNASKED: usize = 40 << 10;

#[derive(Debug)]
pub(super) struct Modules {
    stream: Arc<Stream>,
    nvrtc: Nvrtc,
    store: Option<Loaded<Store>>,
    parameters: Option<ParameterInfo>,
    loaded: Mutex<Tables>,
}

/// Something that cannot be shown.
struct Loaded<T>(T);

impl<T> std::fmt::Debug for Loaded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelStore")
    }
}

#[derive(Debug, Default)]
struct Tables {
    modules: HashMap<Compilation, Object>,
    /// By name, for each format.
    functions: [HashMap<String, Function>; 2],
}

/// A kernel that is loaded.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub handle: Object,
    /// Bytes of each parameter; none where the driver does not tell.
    parameters: Option<Arc<[usize]>>,
    /// Dynamic shared memory that a launch may have so far.
    shared: usize,
}

impl Function {
    /// Whether these are as many arguments as it takes, of its sizes; if not, what they are and what they should be.
    pub fn takes(&self, args: &[Arg]) -> Result<(), (String, String)> {
        let Some(parameters) = &self.parameters else { return Ok(()) };
        let size = |arg: &Arg| match arg {
            Arg::Int(_) | Arg::Float(_) => 4,
            Arg::At(_) | Arg::Null | Arg::Long(_) | Arg::Double(_) => 8,
        };
        let sizes: Vec<usize> = args.iter().map(size).collect();
        if sizes == parameters[..] {
            return Ok(());
        }
        Err((format!("arguments of {sizes:?} bytes"), format!("{parameters:?}")))
    }
}

impl Modules {
    pub fn new(stream: Arc<Stream>, driver: &'static Library, nvrtc: Nvrtc, store: Option<Store>) -> Modules {
        // SAFETY: the symbol has this type; drivers before CUDA 12.4 lack it.
        let parameters = unsafe { symbol::<ParameterInfo>(driver, c"cuFuncGetParamInfo") }.ok();
        Modules { stream, nvrtc, store: store.map(Loaded), parameters, loaded: Mutex::default() }
    }

    fn compiled(&self, compilation: Compilation) -> Result<Kernel, CudaError> {
        let store = self.store.as_ref().map(|store| store.0.as_ref() as &dyn KernelStore);
        let capability = self.stream.info().capability;
        Ok(compilation.with_source(|source| kernel(&self.nvrtc, source, capability, store))?)
    }

    fn load(&self, kernel: &Kernel, file: &str) -> Result<Object, CudaError> {
        let cuda = self.stream.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: the code is whole (its hash was checked, or it was just compiled) and lives through the call, and so does the place.
        let loaded = unsafe { (cuda.load_module)(&mut module, kernel.cubin.as_ptr().cast()) };
        self.stream.checked(loaded, || {
            format!("load {file}, compiled for {} by NVRTC {}", self.stream.info().capability, self.nvrtc.version)
        })?;
        Ok(Object(module))
    }

    pub fn load_all(&self, reals: &[Real]) -> Result<(), CudaError> {
        let all: Vec<Compilation> = reals.iter().flat_map(|real| compilations(*real)).collect();
        let code: Vec<Kernel> = all.par_iter().map(|which| self.compiled(*which)).collect::<Result<_, _>>()?;
        let mut tables = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for (which, kernel) in all.iter().zip(&code) {
            if !tables.modules.contains_key(which) {
                tables.modules.insert(*which, self.load(kernel, which.file)?);
            }
        }
        Ok(())
    }

    /// A kernel by its name, ready for launches with `shared` bytes of dynamic shared memory.
    pub fn function(&self, real: Real, name: &str, shared: usize) -> Result<Function, CudaError> {
        let mut tables = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let of_real = real.pick(0, 1);
        if let Some(function) = tables.functions[of_real].get(name).filter(|function| shared <= function.shared) {
            return Ok(function.clone());
        }
        let refused = || CudaError::Refused {
            what: name.to_string(),
            got: "no kernel of that name".to_string(),
            expected: "one of kernels.rs".to_string(),
        };
        let compilation = Compilation::of(real, name).ok_or_else(refused)?;
        let module = match tables.modules.get(&compilation) {
            Some(module) => *module,
            None => {
                let module = self.load(&self.compiled(compilation)?, compilation.file)?;
                tables.modules.insert(compilation, module);
                module
            }
        };
        let mut function = match tables.functions[of_real].get(name) {
            Some(function) => function.clone(),
            None => self.look_up(module, name)?,
        };
        if shared > function.shared {
            let cuda = self.stream.enter()?;
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            // SAFETY: the function is of a loaded module.
            let set = unsafe { (cuda.set_attribute)(function.handle.0, MOST_SHARED, bytes) };
            self.stream.checked(set, || format!("give {shared} bytes of shared memory to a block of {name}"))?;
            function.shared = shared;
        }
        tables.functions[of_real].insert(name.to_string(), function.clone());
        Ok(function)
    }

    fn look_up(&self, module: Object, name: &str) -> Result<Function, CudaError> {
        let cuda = self.stream.enter()?;
        let symbol = CString::new(name).unwrap_or_default();
        let mut handle = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, and the place lives through the call.
        let found = unsafe { (cuda.function)(&mut handle, module.0, symbol.as_ptr()) };
        self.stream.checked(found, || format!("find {name} in its module"))?;
        let parameters = self.parameters.map(|info| {
            let sizes = (0..).map_while(|number| {
                let (mut offset, mut size) = (0, 0);
                // SAFETY: the function was just found; a number past its last parameter is answered with an error.
                let answer = unsafe { info(handle, number, &mut offset, &mut size) };
                (answer == 0).then_some(size)
            });
            sizes.collect()
        });
        Ok(Function { handle: Object(handle), parameters, shared: SHARED_UNASKED })
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        self.stream.wait().ok();
        let Ok(cuda) = self.stream.enter() else { return };
        for module in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).modules.values() {
            // SAFETY: loaded once, unloaded once, and no kernel of it runs.
            unsafe { (cuda.unload_module)(module.0) };
        }
    }
}

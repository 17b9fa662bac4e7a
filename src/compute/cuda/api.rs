//! The functions of NVIDIA's libraries that work on a device takes, as they are called.
//!
//! Called by their symbols, each of which may be missing from a library, and with results as the numbers that they are, which a newer
//! library may have more of.

use super::libraries::symbol;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

/// An object of a library, by the pointer that it gave.
pub(super) type Handle = *mut c_void;

/// An object of a library that any thread may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object(pub Handle);

// SAFETY: the libraries' objects belong to a context, not to a thread; their functions may be called from several at once.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

/// A table of functions, each with its symbol and the types of its arguments. All return a number, of which 0 is success.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($name:ident = $symbol:literal ($($argument:ty),*);)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $table {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl $table {
            /// Looks all of them up; the error names what is missing.
            ///
            /// # Safety
            /// The library is the one whose functions these are.
            pub unsafe fn of(library: &'static Library) -> Result<$table, String> {
                // SAFETY: the types are those of the library's header, by the caller's promise.
                unsafe { Ok($table { $($name: symbol(library, $symbol)?,)* }) }
            }
        }
    };
}

functions! {
    /// cuda.h, of the versions that CUDA 12.0 has.
    Cuda {
        initialise = c"cuInit" (c_uint);
        device_count = c"cuDeviceGetCount" (*mut c_int);
        device = c"cuDeviceGet" (*mut c_int, c_int);
        device_name = c"cuDeviceGetName" (*mut c_char, c_int, c_int);
        device_attribute = c"cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
        device_memory = c"cuDeviceTotalMem_v2" (*mut usize, c_int);
        retain_context = c"cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
        release_context = c"cuDevicePrimaryCtxRelease_v2" (c_int);
        set_context = c"cuCtxSetCurrent" (Handle);
        memory = c"cuMemGetInfo_v2" (*mut usize, *mut usize);
        allocate = c"cuMemAlloc_v2" (*mut u64, usize);
        free = c"cuMemFree_v2" (u64);
        allocate_host = c"cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
        free_host = c"cuMemFreeHost" (*mut c_void);
        device_pointer = c"cuMemHostGetDevicePointer_v2" (*mut u64, *mut c_void, c_uint);
        upload = c"cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, Handle);
        download = c"cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, Handle);
        copy = c"cuMemcpyDtoDAsync_v2" (u64, u64, usize, Handle);
        fill = c"cuMemsetD8Async" (u64, u8, usize, Handle);
        create_stream = c"cuStreamCreate" (*mut Handle, c_uint);
        destroy_stream = c"cuStreamDestroy_v2" (Handle);
        synchronize = c"cuStreamSynchronize" (Handle);
        begin_capture = c"cuStreamBeginCapture_v2" (Handle, c_int);
        end_capture = c"cuStreamEndCapture" (Handle, *mut Handle);
        instantiate_graph = c"cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
        destroy_graph = c"cuGraphDestroy" (Handle);
        launch_graph = c"cuGraphLaunch" (Handle, Handle);
        destroy_instance = c"cuGraphExecDestroy" (Handle);
        create_event = c"cuEventCreate" (*mut Handle, c_uint);
        record_event = c"cuEventRecord" (Handle, Handle);
        wait_event = c"cuEventSynchronize" (Handle);
        elapsed = c"cuEventElapsedTime" (*mut f32, Handle, Handle);
        destroy_event = c"cuEventDestroy_v2" (Handle);
        load_module = c"cuModuleLoadData" (*mut Handle, *const c_void);
        unload_module = c"cuModuleUnload" (Handle);
        function = c"cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
        set_attribute = c"cuFuncSetAttribute" (Handle, c_int, c_int);
        launch = c"cuLaunchKernel" (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
        error_name = c"cuGetErrorName" (c_int, *mut *const c_char);
        error_string = c"cuGetErrorString" (c_int, *mut *const c_char);
    }
}

/// `cuDriverGetVersion`, which every driver has: 13000 is 13.0, 12080 is 12.8.
pub(super) type DriverVersion = unsafe extern "C" fn(*mut c_int) -> c_int;

/// `cuFuncGetParamInfo`, which drivers have from CUDA 12.4 on: a parameter's offset and size by its number.
pub(super) type ParameterInfo = unsafe extern "C" fn(Handle, usize, *mut usize, *mut usize) -> c_int;

/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
pub(super) const CAPABILITY: [c_int; 2] = [75, 76];
/// CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
pub(super) const SHARED_PER_BLOCK: c_int = 97;
/// CUDA_ERROR_NO_DEVICE
pub(super) const NO_DEVICE: c_int = 100;
/// CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
pub(super) const MOST_SHARED: c_int = 8;
/// CU_STREAM_NON_BLOCKING: it does not wait for the null stream.
pub(super) const NON_BLOCKING: c_uint = 1;
/// CU_STREAM_CAPTURE_MODE_RELAXED: calls that are not of the stream stay allowed, in this thread and in others.
pub(super) const RELAXED: c_int = 2;
/// CU_EVENT_DISABLE_TIMING, and CU_EVENT_DEFAULT
pub(super) const NO_TIMING: c_uint = 2;
pub(super) const TIMING: c_uint = 0;
/// CU_MEMHOSTALLOC_DEVICEMAP: at an address of the device's as well.
pub(super) const MAPPED: c_uint = 2;
/// CUDA_ERROR_OUT_OF_MEMORY
pub(super) const NO_MEMORY: c_int = 2;

impl Cuda {
    /// A result's name and what the driver says of it.
    pub fn reason(&self, result: c_int) -> String {
        let text = |ask: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: it takes any number, and sets the place to null or to a string that is never freed.
            unsafe { ask(result, &mut text) };
            // SAFETY: the driver's strings end in NUL.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(self.error_name), text(self.error_string)) {
            (Some(name), Some(said)) => format!("{name} ({said})"),
            (Some(name), None) => name,
            _ => format!("the driver's error {result}"),
        }
    }
}

functions! {
    /// cublasLt.h, the same in CUDA 12 and 13.
    CublasLt {
        create = c"cublasLtCreate" (*mut Handle);
        destroy = c"cublasLtDestroy" (Handle);
        create_layout = c"cublasLtMatrixLayoutCreate" (*mut Handle, c_int, u64, u64, i64);
        destroy_layout = c"cublasLtMatrixLayoutDestroy" (Handle);
        create_description = c"cublasLtMatmulDescCreate" (*mut Handle, c_int, c_int);
        describe = c"cublasLtMatmulDescSetAttribute" (Handle, c_int, *const c_void, usize);
        destroy_description = c"cublasLtMatmulDescDestroy" (Handle);
        create_preference = c"cublasLtMatmulPreferenceCreate" (*mut Handle);
        prefer = c"cublasLtMatmulPreferenceSetAttribute" (Handle, c_int, *const c_void, usize);
        destroy_preference = c"cublasLtMatmulPreferenceDestroy" (Handle);
        choose = c"cublasLtMatmulAlgoGetHeuristic" (Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Choice, *mut c_int);
        multiply = c"cublasLtMatmul" (Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void, Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, Handle);
    }
}

/// `cublasLtMatmulAlgo_t`: cublasLt's own description of an algorithm.
pub(super) type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    pub algorithm: Algorithm,
    pub workspace: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

/// CUDA_R_32F and CUDA_R_16BF
pub(super) const R_32F: c_int = 0;
pub(super) const R_16BF: c_int = 14;
/// CUBLAS_COMPUTE_32F: f32 products and sums, no TF32.
pub(super) const COMPUTE_32F: c_int = 68;
/// CUBLASLT_MATMUL_DESC_TRANSA and _TRANSB, with CUBLAS_OP_N and CUBLAS_OP_T
pub(super) const TRANSPOSE: [c_int; 2] = [3, 4];
/// CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, a size_t
pub(super) const WORKSPACE: c_int = 1;
/// CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, a u32, and of its bits CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
pub(super) const REDUCTION: c_int = 3;
pub(super) const IN_COMPUTE_TYPE: u32 = 2;
/// CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, B, C and D, each a u32
pub(super) const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

/// cublasStatus_t by name; cublasLt has strings only for some versions.
pub(super) fn status_name(status: c_int) -> String {
    let name = match status {
        1 => "CUBLAS_STATUS_NOT_INITIALIZED",
        3 => "CUBLAS_STATUS_ALLOC_FAILED",
        7 => "CUBLAS_STATUS_INVALID_VALUE",
        8 => "CUBLAS_STATUS_ARCH_MISMATCH",
        11 => "CUBLAS_STATUS_MAPPING_ERROR",
        13 => "CUBLAS_STATUS_EXECUTION_FAILED",
        14 => "CUBLAS_STATUS_INTERNAL_ERROR",
        15 => "CUBLAS_STATUS_NOT_SUPPORTED",
        16 => "CUBLAS_STATUS_LICENSE_ERROR",
        _ => return format!("cublasLt's status {status}"),
    };
    name.to_string()
}

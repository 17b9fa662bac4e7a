//! Which of CUDA's libraries are here, and where.
//!
//! They are opened before anything calls them. The folders of
//! `BUPO_CUDA_LIBRARIES` come first, each also as a `site-packages` with NVIDIA's wheels in it; then the system's loader
//! (`LD_LIBRARY_PATH`, ldconfig). An opened library stays open until the process ends.

use libloading::Library;
use std::ffi::{CStr, OsStr};
use std::fmt;
use std::path::PathBuf;

/// Names folders of CUDA's libraries, separated as in `PATH`.
pub const FOLDERS_VARIABLE: &str = "BUPO_CUDA_LIBRARIES";

/// The newest CUDA whose libraries are asked for by name.
pub const NEWEST_MAJOR: u32 = 13;

/// Where NVIDIA's wheels put libraries in `site-packages`: those for CUDA 13, then the two for CUDA 12.
const IN_WHEELS: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaLibrary {
    /// libcuda: comes with NVIDIA's driver, and with nothing else.
    Driver,
    /// libnvrtc: compiles kernels.
    Nvrtc,
    /// libcublasLt: matrix products.
    CublasLt,
}

impl CudaLibrary {
    /// File names, the best first, of CUDA `newest` and older. The driver has one name in all versions.
    fn names(self, newest: u32) -> Vec<String> {
        let stem = match self {
            CudaLibrary::Driver => return vec!["libcuda.so.1".to_string(), "libcuda.so".to_string()],
            CudaLibrary::Nvrtc => "libnvrtc.so",
            CudaLibrary::CublasLt => "libcublasLt.so",
        };
        let versions = (12..=newest.min(NEWEST_MAJOR)).rev().map(|major| format!("{stem}.{major}"));
        versions.chain([stem.to_string()]).collect()
    }

    fn next_step(self) -> String {
        let wheel = match self {
            CudaLibrary::Driver => {
                return "install NVIDIA's driver (no toolkit and no wheel brings it; a container must be started with the GPUs)"
                    .to_string();
            }
            CudaLibrary::Nvrtc => "nvidia-cuda-nvrtc",
            CudaLibrary::CublasLt => "nvidia-cublas",
        };
        format!(
            "`pip install {wheel}` (`{wheel}-cu12` where the driver is of CUDA 12) and set {FOLDERS_VARIABLE} to that Python's \
             site-packages, or LD_LIBRARY_PATH to the folder of a CUDA toolkit's libraries"
        )
    }
}

impl fmt::Display for CudaLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CudaLibrary::Driver => "libcuda (NVIDIA's driver)",
            CudaLibrary::Nvrtc => "libnvrtc (CUDA's run-time compiler)",
            CudaLibrary::CublasLt => "libcublasLt (CUDA's matrix products)",
        })
    }
}

/// A library that is not here or cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{library} {}: looked for {} {places}{}; {}", came_to(.unusable), .names.join(", "), also(.unusable), .library.next_step())]
pub struct MissingLibrary {
    pub library: CudaLibrary,
    pub names: Vec<String>,
    /// Where it was looked for, in words.
    pub places: String,
    /// Files that were there, each with why it is no use.
    pub unusable: Vec<String>,
}

fn came_to(unusable: &[String]) -> &'static str {
    if unusable.is_empty() { "was not found" } else { "cannot be used" }
}

fn also(unusable: &[String]) -> String {
    if unusable.is_empty() { String::new() } else { format!("; unusable: {}", unusable.join("; ")) }
}

/// Where libraries are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    folders: Vec<PathBuf>,
    loader: bool,
}

impl Search {
    /// The folders of `BUPO_CUDA_LIBRARIES`, then the system's loader.
    pub fn from_env() -> Search {
        let named = std::env::var_os(FOLDERS_VARIABLE).unwrap_or_default();
        Search { folders: folders(&named), loader: true }
    }

    /// These folders, read as `BUPO_CUDA_LIBRARIES` is, and nothing else.
    pub fn only(named: &OsStr) -> Search {
        Search { folders: folders(named), loader: false }
    }

    fn places(&self) -> String {
        let loader = "through the system's loader (LD_LIBRARY_PATH, ldconfig)";
        let named: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
        match (named.is_empty(), self.loader) {
            (true, true) => format!("{loader}, and {FOLDERS_VARIABLE} names no folder"),
            (true, false) => format!("nowhere, for {FOLDERS_VARIABLE} names no folder"),
            (false, loads) => {
                let folders = named.join(", ");
                let then = if loads { format!(", then {loader}") } else { String::new() };
                format!("in {FOLDERS_VARIABLE} ({folders}; below each also in {}){then}", IN_WHEELS.join(", "))
            }
        }
    }
}

fn folders(named: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(named).filter(|folder| !folder.as_os_str().is_empty()).collect()
}

/// A library that is open.
#[derive(Clone, Debug)]
pub struct Opened {
    pub library: &'static Library,
    /// The file, or the name by which the system's loader found it.
    pub path: PathBuf,
}

/// Opens a library of CUDA `newest` or older: in each named folder the newest first, then through the loader.
pub fn open(library: CudaLibrary, search: &Search, newest: u32) -> Result<Opened, MissingLibrary> {
    let names = library.names(newest);
    let mut unusable = Vec::new();
    let in_folders = search
        .folders
        .iter()
        .flat_map(|folder| std::iter::once(folder.clone()).chain(IN_WHEELS.iter().map(|wheel| folder.join(wheel))))
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .filter(|file| file.is_file());
    let by_loader = names.iter().map(PathBuf::from).filter(|_| search.loader);
    for (path, named) in in_folders.map(|file| (file, true)).chain(by_loader.map(|name| (name, false))) {
        // SAFETY: the user or the system names these as CUDA's libraries, whose initialisers ask nothing of the process.
        let opened = unsafe { Library::new(&path) }.map_err(|reason| spelled_out(&reason));
        match opened {
            // Not closed again: functions of it are kept, and its threads may run.
            Ok(opened) => return Ok(Opened { library: Box::leak(Box::new(opened)), path }),
            Err(reason) => {
                let name = path.display().to_string();
                // A name that the loader does not know is no file that could be of use.
                if named || !reason.starts_with(&format!("{name}: cannot open shared object file")) {
                    let reason = reason.strip_prefix(&format!("{name}: ")).unwrap_or(&reason);
                    unusable.push(format!("{name}: {reason}"));
                }
                // What a folder names is used or an error, never quietly another one.
                if named {
                    break;
                }
            }
        }
    }
    Err(MissingLibrary { library, names, places: search.places(), unusable })
}

/// What the system said of a library; the error itself says only which call failed.
fn spelled_out(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |said| said.to_string())
}

/// A function of a library by name; the error is what the system says.
///
/// # Safety
/// `F` is the function pointer's type that the library's header gives it.
pub(super) unsafe fn symbol<F: Copy>(library: &'static Library, name: &CStr) -> Result<F, String> {
    // SAFETY: by the caller's promise; the library is never closed.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol).map_err(|reason| spelled_out(&reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> Search {
        Search::only(OsStr::new(""))
    }

    #[test]
    fn a_missing_library_is_named_with_where_it_was_sought_and_what_to_do() {
        let error = open(CudaLibrary::Nvrtc, &nowhere(), NEWEST_MAJOR).unwrap_err();
        assert_eq!(error.library, CudaLibrary::Nvrtc);
        let text = error.to_string();
        let parts =
            ["libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so nowhere", FOLDERS_VARIABLE, "pip install nvidia-cuda-nvrtc"];
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("unusable"), "{text}");
        let text = open(CudaLibrary::CublasLt, &nowhere(), NEWEST_MAJOR).unwrap_err().to_string();
        assert!(text.contains("libcublasLt.so.13") && text.contains("pip install nvidia-cublas"), "{text}");
        let text = open(CudaLibrary::Driver, &nowhere(), NEWEST_MAJOR).unwrap_err().to_string();
        assert!(text.contains("libcuda.so.1") && text.contains("install NVIDIA's driver"), "{text}");
    }

    #[test]
    fn a_driver_of_cuda_12_gets_no_compiler_of_cuda_13() {
        assert_eq!(CudaLibrary::Nvrtc.names(12), ["libnvrtc.so.12", "libnvrtc.so"]);
        assert_eq!(CudaLibrary::Nvrtc.names(14), CudaLibrary::Nvrtc.names(NEWEST_MAJOR));
    }

    #[test]
    fn a_file_that_is_no_library_is_said_to_be_there_and_ends_the_search() {
        let site = tempfile::tempdir().unwrap();
        let folder = site.path().join("nvidia/cu13/lib");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["libnvrtc.so.13", "libnvrtc.so.12"] {
            std::fs::write(folder.join(name), "no library").unwrap();
        }
        let error = open(CudaLibrary::Nvrtc, &Search::only(site.path().as_os_str()), NEWEST_MAJOR).unwrap_err();
        assert_eq!(error.unusable.len(), 1, "{error}");
        assert!(error.to_string().contains(&folder.join("libnvrtc.so.13").display().to_string()), "{error}");
    }
}

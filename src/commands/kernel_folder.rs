//! Where compiled GPU kernels lie between runs: one file each in the user's cache folder. Any of them may be removed at any time.

use crate::compute::cuda::cache::KernelStore;
use crate::run::atomic::{read, write_file_atomic};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFolder(PathBuf);

impl KernelFolder {
    /// `bupo/kernels` in the user's cache folder (`$XDG_CACHE_HOME`, or `.cache` at home); none without either, and kernels are
    /// compiled by every run then.
    pub fn of_user() -> Option<KernelFolder> {
        KernelFolder::below(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
    }

    fn below(cache: Option<OsString>, home: Option<OsString>) -> Option<KernelFolder> {
        // XDG: a relative path is as good as none.
        let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = absolute(cache).or_else(|| absolute(home).map(|home| home.join(".cache")))?;
        Some(KernelFolder(cache.join("bupo/kernels")))
    }

    /// A folder of one's own, made when the first kernel is kept.
    pub fn at(folder: &Path) -> KernelFolder {
        KernelFolder(folder.to_path_buf())
    }
}

impl KernelStore for KernelFolder {
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        read(&self.0.join(name)).ok()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        write_file_atomic(&self.0.join(name), bytes).map_err(|reason| format!("{reason:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cuda::cache::{Origin, kernel};
    use crate::compute::cuda::compile::Source;
    use crate::compute::cuda::compile::tests::{H100, nvrtc};
    use std::fs;

    fn source() -> Source<'static> {
        let text = "extern \"C\" __global__ void one(float* x) { x[threadIdx.x] = 1.f; }\n";
        Source { name: "one.cu", text, headers: &[], defines: &[] }
    }

    #[test]
    fn the_folder_is_where_the_user_keeps_caches() {
        let path = |text: &str| Some(OsString::from(text));
        let at = |text: &str| Some(KernelFolder::at(Path::new(text)));
        assert_eq!(KernelFolder::below(path("/c"), path("/home/u")), at("/c/bupo/kernels"));
        assert_eq!(KernelFolder::below(None, path("/home/u")), at("/home/u/.cache/bupo/kernels"));
        assert_eq!(KernelFolder::below(path("relative"), path("/home/u")), at("/home/u/.cache/bupo/kernels"));
        assert_eq!(KernelFolder::below(path(""), None), None);
    }

    #[test]
    fn a_kernel_on_disk_is_read_back_and_a_damaged_one_is_repaired() {
        let (nvrtc, dir) = (nvrtc(), tempfile::tempdir().unwrap());
        let folder = KernelFolder::at(&dir.path().join("bupo/kernels"));
        let ask = || kernel(&nvrtc, &source(), H100, Some(&folder)).unwrap();
        let first = ask();
        assert!(matches!(&first.origin, Origin::Compiled { not_kept: None, .. }), "{:?}", first.origin);
        let files: Vec<PathBuf> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = files.as_slice() else { panic!("one kernel, one file: {files:?}") };
        let again = ask();
        assert_eq!((again.origin, &again.cubin), (Origin::Kept, &first.cubin));
        let whole = fs::read(file).unwrap();
        fs::write(file, &whole[..whole.len() / 2]).unwrap();
        let repaired = ask();
        assert!(matches!(&repaired.origin, Origin::Compiled { not_kept: None, .. }), "{:?}", repaired.origin);
        assert_eq!((&repaired.cubin, fs::read(file).unwrap()), (&first.cubin, whole));
    }

    #[test]
    fn a_folder_that_cannot_be_made_costs_the_compilation_and_is_said() {
        let (nvrtc, dir) = (nvrtc(), tempfile::tempdir().unwrap());
        let file = dir.path().join("no-folder");
        fs::write(&file, "").unwrap();
        let made = kernel(&nvrtc, &source(), H100, Some(&KernelFolder::at(&file))).unwrap();
        let Origin::Compiled { not_kept: Some(reason), .. } = made.origin else { panic!("{:?}", made.origin) };
        assert!(reason.contains("no-folder"), "{reason}");
    }
}

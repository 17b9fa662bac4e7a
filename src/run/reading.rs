//! Files read for nothing but the time that it takes.

use anyhow::{Context, Result};
#[cfg(target_os = "linux")]
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The files of a folder whose names end with `.EXTENSION`.
pub fn files_of(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Asks the system to forget what it holds of a file, so that the disk is read next. Does nothing but on Linux.
pub fn forget(path: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        let file = File::open(path)?;
        // Pages that are not written yet would stay.
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = path;
    Ok(())
}

/// Reads a file once through `buffer`; its bytes.
pub fn read_through(path: &Path, buffer: &mut [u8]) -> Result<usize> {
    let (mut file, mut bytes) = (File::open(path)?, 0);
    loop {
        match file.read(buffer)? {
            0 => return Ok(bytes),
            n => bytes += n,
        }
    }
}

//! One process at a time in a folder: a file that the system locks for as long as the process lives, however it ends.

use super::atomic::create_dir;
use super::interrupt;
use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

const NAME: &str = ".lock";

/// Held until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// The folder's lock, which is made with its folder; none if another process holds it. Where a file system knows no
    /// locks, everybody gets it.
    pub fn attempt(dir: &Path) -> Result<Option<FolderLock>> {
        create_dir(dir)?;
        let path = dir.join(NAME);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(match file.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Ok(()) | Err(TryLockError::Error(_)) => Some(FolderLock { _file: file }),
        })
    }

    /// The lock, or an error that says who may hold it.
    pub fn take(dir: &Path) -> Result<FolderLock> {
        match FolderLock::attempt(dir)? {
            Some(lock) => Ok(lock),
            None => {
                bail!("another process works in {}: wait until it has ended, or choose another folder", dir.display())
            }
        }
    }

    /// Waits for the lock; none if this process is asked to end before it is free. `said` tells a person what it waits for.
    pub fn wait(dir: &Path, said: impl FnOnce()) -> Result<Option<FolderLock>> {
        let mut said = Some(said);
        while !interrupt::requested() {
            if let Some(lock) = FolderLock::attempt(dir)? {
                return Ok(Some(lock));
            }
            if let Some(said) = said.take() {
                said();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        let lock = FolderLock::take(&dir).unwrap();
        assert!(FolderLock::attempt(&dir).unwrap().is_none());
        let error = FolderLock::take(&dir).unwrap_err().to_string();
        assert!(error.contains("another process works in") && error.contains("run"), "{error}");
        drop(lock);
        assert!(FolderLock::wait(&dir, || panic!("nothing to wait for")).unwrap().is_some());
    }
}

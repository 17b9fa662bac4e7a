//! One process at a time in a folder: a file that the system locks for as long as the process lives, however it ends.

use super::atomic::create_dir;
use super::interrupt;
use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

/// The file's name in its folder.
pub const NAME: &str = ".lock";

/// A look at a lock ([`is_held`]) holds it for a moment: who wants it asks again so often, after so long.
const LOOKS: usize = 5;
const A_LOOK: Duration = Duration::from_millis(20);

/// Whether a process holds the lock of this file; false where a file system knows no locks.
pub fn is_held(file: &File) -> bool {
    let held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    // Closing the file would do as much.
    let _ = file.unlock();
    held
}

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
        for look in 0..LOOKS {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if look + 1 < LOOKS => std::thread::sleep(A_LOOK),
                Err(TryLockError::WouldBlock) => break,
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(FolderLock { _file: file })),
            }
        }
        Ok(None)
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
        let file = || File::open(dir.join(NAME)).unwrap();
        assert!(is_held(&file()));
        let error = FolderLock::take(&dir).unwrap_err().to_string();
        assert!(error.contains("another process works in") && error.contains("run"), "{error}");
        drop(lock);
        assert!(!is_held(&file()));
        assert!(FolderLock::wait(&dir, || panic!("nothing to wait for")).unwrap().is_some());
    }
}

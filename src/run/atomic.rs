//! Files and folders that appear whole or not at all: written beside, synced, renamed.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const PREFIX: &str = ".tmp-";

/// Writes a file; a reader sees the old one or the new one, never a part.
pub fn write_file_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).with_context(|| cannot("write", &file.temporary))?;
    file.commit()
}

/// A file that `fill` writes by its name, which is a hidden one until it is whole.
pub fn write_path_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let file = AtomicFile::create(path)?;
    fill(&file.temporary)?;
    file.commit()
}

/// Fails if `path` cannot be written, which is better known before the work than after it.
pub fn ensure_writable(path: &Path) -> Result<()> {
    drop(AtomicFile::create(path)?);
    Ok(())
}

/// A link to `target`, a path as seen from the link's folder, in the place of what was there. Errors where the system has no such links.
pub fn link_atomic(target: &Path, path: &Path) -> Result<()> {
    let temporary = beside(path)?;
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, &temporary).with_context(|| cannot("create", &temporary))?;
    #[cfg(not(unix))]
    bail!("{} cannot be a link to {}: this system has none", path.display(), target.display());
    fs::rename(&temporary, path).with_context(|| cannot("replace", path))?;
    sync_dir(parent(path))
}

/// A file that is written piece by piece and takes its name in [`AtomicFile::commit`]; dropped before, nothing remains.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Opens a hidden file beside `path`; the folder is made if it is not there.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        let temporary = beside(path)?;
        let file = File::create(&temporary).with_context(|| cannot("create", &temporary))?;
        Ok(AtomicFile { file, temporary, path: path.into(), committed: false })
    }

    /// Syncs it and puts it in the place of what was there.
    pub fn commit(mut self) -> Result<()> {
        self.file.sync_all().with_context(|| cannot("write", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).with_context(|| cannot("replace", &self.path))?;
        self.committed = true;
        sync_dir(parent(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            drop(fs::remove_file(&self.temporary));
        }
    }
}

/// Makes a folder: `fill` writes into a hidden one beside it, which is synced and takes its name. A folder that was
/// there before is replaced. If `fill` fails, nothing remains.
pub fn write_dir_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = beside(path)?;
    let write = || -> Result<()> {
        if temporary.exists() {
            fs::remove_dir_all(&temporary).with_context(|| cannot("remove", &temporary))?;
        }
        fs::create_dir_all(&temporary).with_context(|| cannot("create", &temporary))?;
        fill(&temporary)?;
        for entry in fs::read_dir(&temporary).with_context(|| cannot("read", &temporary))? {
            let file = entry.with_context(|| cannot("read", &temporary))?.path();
            File::open(&file).and_then(|f| f.sync_all()).with_context(|| cannot("write", &file))?;
        }
        sync_dir(&temporary)?;
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| cannot("replace", path))?;
        }
        fs::rename(&temporary, path).with_context(|| cannot("create", path))?;
        sync_dir(parent(path))
    };
    write().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))
}

/// Removes what an interrupted writer left in `dir`.
pub fn clean_leftovers(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| cannot("remove the leftover", &path))?;
        }
    }
    Ok(())
}

/// A whole file's bytes; the error names it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Removes a file; the error names it.
pub fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| cannot("remove", path))
}

/// Gives a file or folder another name; the error names both.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Folders right below a folder, by name.
pub fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    Ok(found)
}

/// Makes a folder, and those above it.
pub fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| cannot("create", dir))
}

/// A file that a process writes its words into; what was there before is kept above.
pub fn log_file(path: &Path) -> Result<File> {
    create_dir(parent(path))?;
    File::options().create(true).append(true).open(path).with_context(|| cannot("open", path))
}

/// Whole lines of a file so far; none of one that cannot be read.
pub fn count_lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// The last lines of a log, the earliest first; none of one that cannot be read.
pub fn last_lines(path: &Path, n: usize) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines[lines.len().saturating_sub(n)..].to_vec()
}

fn beside(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else { bail!("{} names no file that could be written", path.display()) };
    fs::create_dir_all(parent(path)).with_context(|| cannot("create the folder of", path))?;
    Ok(parent(path).join(format!("{PREFIX}{}-{}", name.to_string_lossy(), std::process::id())))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).with_context(|| cannot("write", dir))
}

fn cannot(what: &str, path: &Path) -> String {
    format!("cannot {what} {} (is there space, and may you write there?)", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/step");
        write_dir_atomic(&target, |d| Ok(fs::write(d.join("x"), "1")?)).unwrap();
        let failed = write_dir_atomic(&target, |d| {
            fs::write(d.join("y"), "2")?;
            bail!("full")
        });
        assert!(failed.is_err());
        assert_eq!((names(&dir.path().join("a")), names(&target)), (vec!["step".into()], vec!["x".into()]));
        write_dir_atomic(&target, |d| Ok(fs::write(d.join("z"), "3")?)).unwrap();
        assert_eq!(names(&target), vec!["z".to_string()]);
    }

    #[test]
    fn files_are_replaced_and_leftovers_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        write_file_atomic(&file, b"1").unwrap();
        write_file_atomic(&file, b"2").unwrap();
        fs::write(dir.path().join(".tmp-old-1"), "").unwrap();
        clean_leftovers(dir.path()).unwrap();
        assert_eq!((fs::read(&file).unwrap(), names(dir.path())), (b"2".to_vec(), vec!["f".to_string()]));
        drop(AtomicFile::create(&file).unwrap());
        assert_eq!((fs::read(&file).unwrap(), names(dir.path()).len()), (b"2".to_vec(), 1));
        let error = write_file_atomic(&file.join("below"), b"").unwrap_err().to_string();
        assert!(error.contains("below"), "{error}");
    }
}

//! Where files may be read: anywhere, or only below one folder, links followed.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

/// What may be read.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder that nothing leaves, without links in its path.
    root: Option<PathBuf>,
}

impl Place {
    /// Any file that the user may read.
    pub fn anywhere() -> Place {
        Place { root: None }
    }

    /// Only what lies below `root`, whatever the links there say.
    pub fn below(root: &Path) -> Result<Place> {
        let root = root.canonicalize().with_context(|| format!("cannot open the folder {}", root.display()))?;
        if !root.is_dir() {
            bail!("{} is no folder: expected one that holds runs", root.display());
        }
        Ok(Place { root: Some(root) })
    }

    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The file or folder of a name as it comes from a browser: parts joined by `/`, none of them `..`, hidden or absolute.
    /// None for anything else, and for what is not there or lies outside.
    pub fn named(&self, name: &str) -> Option<PathBuf> {
        let root = self.root.as_ref()?;
        let plain = |c: Component<'_>| match c {
            Component::Normal(part) => !part.to_string_lossy().starts_with('.'),
            _ => false,
        };
        if name.contains(['\0', '\\']) || !Path::new(name).components().all(plain) {
            return None;
        }
        self.inside(&root.join(name))
    }

    /// The path without links, if it is there and may be read.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let path = path.canonicalize().ok()?;
        self.root.as_ref().is_none_or(|root| path.starts_with(root)).then_some(path)
    }

    pub fn is_file(&self, path: &Path) -> bool {
        self.inside(path).is_some_and(|p| p.is_file())
    }

    pub fn open(&self, path: &Path) -> Result<File> {
        let Some(inside) = self.inside(path) else { bail!("{} is not there", path.display()) };
        File::open(inside).with_context(|| format!("cannot read {}", path.display()))
    }

    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let Some(inside) = self.inside(path) else { bail!("{} is not there", path.display()) };
        fs::read(inside).with_context(|| format!("cannot read {}", path.display()))
    }

    /// A file's JSON; null if the file is not there.
    pub fn json(&self, path: &Path) -> Result<Value> {
        if !self.is_file(path) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.read(path)?).with_context(|| format!("{} is no JSON", path.display()))
    }

    /// Folders right below `dir` that may be read, by name; hidden ones are left out.
    pub fn folders(&self, dir: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let shown = |p: &PathBuf| {
            let hidden = p.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
            !hidden && self.inside(p).is_some_and(|p| p.is_dir())
        };
        let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(shown).collect();
        found.sort();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("runs");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        fs::write(root.join("a/f"), "f").unwrap();
        fs::write(root.join(".hidden"), "h").unwrap();
        let place = Place::below(&root).unwrap();
        assert!(place.named("a/f").is_some() && place.named("a/b").is_some() && place.named("").is_some());
        for name in
            ["../secret", "a/../../secret", "/etc/passwd", "a\\f", ".hidden", "./a", "a\0", "no", "a/./../..", "~"]
        {
            assert_eq!(place.named(name), None, "{name:?}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path().join("secret"), root.join("a/link")).unwrap();
            std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
            std::os::unix::fs::symlink(root.join("a"), root.join("same")).unwrap();
            assert_eq!((place.named("a/link"), place.named("up/secret")), (None, None));
            assert!(place.named("same/f").is_some(), "a link that stays inside is followed");
            assert!(place.open(&root.join("a/link")).is_err() && !place.is_file(&root.join("a/link")));
            let names: Vec<_> = place.folders(&root).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
            assert_eq!(names, ["a", "same"]);
        }
        assert!(Place::below(&root.join("a/f")).is_err() && Place::below(&root.join("none")).is_err());
    }
}

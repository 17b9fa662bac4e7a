//! Compiled kernels kept between runs, under a name that is a hash of everything that decides their bytes.
//!
//! Files are not touched here: what keeps them is handed in ([`KernelStore`]). What it gives is checked before it is used, and
//! made again if it is not what was kept.

use super::compile::{CompileError, Compiled, Source, compile, options};
use super::nvrtc::Nvrtc;
use super::{Capability, Version};
use sha2::{Digest, Sha256};

/// What keeps bytes under names. Losing some or all of them costs a compilation, nothing else.
pub trait KernelStore {
    /// What was written under this name; none if nothing was, or if it cannot be read.
    fn read(&self, name: &str) -> Option<Vec<u8>>;

    /// Keeps bytes so that a reader sees all of them or none. The error says why they are not kept.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String>;
}

/// A kernel ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub cubin: Vec<u8>,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Compiled by an earlier run.
    Kept,
    /// Compiled now, with what the compiler said and why the code could not be kept, if it could not.
    Compiled { warnings: String, not_kept: Option<String> },
}

/// A kernel's code for a device of `capability`, from the store where it has it.
pub fn kernel(
    nvrtc: &Nvrtc,
    source: &Source,
    capability: Capability,
    store: Option<&dyn KernelStore>,
) -> Result<Kernel, CompileError> {
    let name = name(source, capability, nvrtc.version);
    kept_or(store, &name, || compile(nvrtc, source, capability))
}

fn kept_or(
    store: Option<&dyn KernelStore>,
    name: &str,
    compile: impl FnOnce() -> Result<Compiled, CompileError>,
) -> Result<Kernel, CompileError> {
    let kept = store.and_then(|store| store.read(name)).and_then(|record| unsealed(&record).map(<[u8]>::to_vec));
    if let Some(cubin) = kept {
        return Ok(Kernel { cubin, origin: Origin::Kept });
    }
    let Compiled { cubin, warnings } = compile()?;
    let not_kept = store.and_then(|store| store.write(name, &sealed(&cubin)).err());
    Ok(Kernel { cubin, origin: Origin::Compiled { warnings, not_kept } })
}

/// The name that a kernel is kept under. Two builds of one NVRTC version are taken for the same: it tells no more of itself.
fn name(source: &Source, capability: Capability, version: Version) -> String {
    let mut parts = vec![version.to_string(), source.name.to_string(), source.text.to_string()];
    parts.push(source.headers.len().to_string());
    parts.extend(source.headers.iter().flat_map(|(name, text)| [name.to_string(), text.to_string()]));
    parts.extend(options(source, capability));
    let mut hash = Sha256::new();
    for part in parts {
        // Each with its length, so that no two lists of parts read the same.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.cubin")
}

/// First bytes of a kept kernel; its code's hash and its code follow.
const MARK: &[u8] = b"bupo kernel 1\n";
const HASH: usize = 32;

fn sealed(cubin: &[u8]) -> Vec<u8> {
    [MARK, Sha256::digest(cubin).as_slice(), cubin].concat()
}

/// The code of a kept kernel; none if it is anything else, or not whole.
fn unsealed(record: &[u8]) -> Option<&[u8]> {
    let (hash, cubin) = record.strip_prefix(MARK)?.split_at_checked(HASH)?;
    (Sha256::digest(cubin).as_slice() == hash).then_some(cubin)
}

#[cfg(test)]
mod tests {
    use super::super::compile::tests::{A100, F32, F64, H100, nvrtc, scale};
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Memory {
        kept: RefCell<BTreeMap<String, Vec<u8>>>,
        full: bool,
    }

    impl KernelStore for Memory {
        fn read(&self, name: &str) -> Option<Vec<u8>> {
            self.kept.borrow().get(name).cloned()
        }

        fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
            if self.full {
                return Err("no space".to_string());
            }
            self.kept.borrow_mut().insert(name.to_string(), bytes.to_vec());
            Ok(())
        }
    }

    fn fresh(not_kept: Option<&str>) -> Origin {
        Origin::Compiled { warnings: String::new(), not_kept: not_kept.map(str::to_string) }
    }

    #[test]
    fn a_kept_kernel_is_the_same_bytes_without_compiling() {
        let (nvrtc, memory) = (nvrtc(), Memory::default());
        let first = kernel(&nvrtc, &scale(F32), H100, Some(&memory)).unwrap();
        assert_eq!(first.origin, fresh(None));
        let second = kernel(&nvrtc, &scale(F32), H100, Some(&memory)).unwrap();
        assert_eq!((second.origin, &second.cubin), (Origin::Kept, &first.cubin));
        let without = kernel(&nvrtc, &scale(F32), H100, None).unwrap();
        assert_eq!((without.origin, &without.cubin), (fresh(None), &first.cubin));
        assert_eq!(kernel(&nvrtc, &scale(F32), A100, Some(&memory)).unwrap().origin, fresh(None));
        assert_eq!(memory.kept.borrow().len(), 2);
    }

    #[test]
    fn what_is_not_what_was_kept_is_made_again() {
        let whole = sealed(b"code");
        let mut turned = whole.clone();
        turned[MARK.len() + HASH] ^= 1;
        for record in [&b""[..], b"\x7fELF of someone else", &whole[..whole.len() - 1], &whole[..20], &turned] {
            let (memory, compilations) = (Memory::default(), RefCell::new(0));
            memory.write("k", record).unwrap();
            let ask = || {
                kept_or(Some(&memory), "k", || {
                    *compilations.borrow_mut() += 1;
                    Ok(Compiled { cubin: b"code".to_vec(), warnings: String::new() })
                })
            };
            let kernels = [ask().unwrap(), ask().unwrap()];
            assert_eq!(kernels.map(|kernel| kernel.cubin), [b"code", b"code"]);
            assert_eq!((*compilations.borrow(), memory.read("k").unwrap()), (1, whole.clone()));
        }
    }

    #[test]
    fn a_store_that_keeps_nothing_is_no_error_but_is_said() {
        let full = Memory { full: true, ..Memory::default() };
        let compiled = || Ok(Compiled { cubin: vec![1], warnings: String::new() });
        assert_eq!(kept_or(Some(&full), "k", compiled).unwrap().origin, fresh(Some("no space")));
    }

    #[test]
    fn a_mistake_is_not_kept() {
        let memory = Memory::default();
        let refused = || Err(CompileError::Nul { name: "a.cu".to_string() });
        assert!(kept_or(Some(&memory), "k", refused).is_err());
        assert!(memory.kept.borrow().is_empty());
    }

    #[test]
    fn everything_that_decides_the_code_is_in_the_name() {
        let version = Version { major: 13, minor: 0 };
        let source = scale(F32);
        let moved = [("common.cuh", "")];
        let names = [
            name(&source, H100, version),
            name(&source, A100, version),
            name(&source, H100, Version { minor: 1, ..version }),
            name(&scale(F64), H100, version),
            name(&Source { name: "other.cu", ..source }, H100, version),
            name(&Source { text: "", ..source }, H100, version),
            name(&Source { headers: &[], ..source }, H100, version),
            name(&Source { headers: &moved, ..source }, H100, version),
        ];
        let different: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert_eq!(names[0], name(&scale(F32), H100, version));
        assert!(names[0].len() == 64 + ".cubin".len());
    }
}

//! One safetensors file: eight bytes of header length, a JSON header, the data. The format's definition is the
//! README of github.com/huggingface/safetensors. The header is checked here rather than by that crate because a
//! lying one must be answered with the tensor, what it says and what was expected.

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: usize = size_of::<u64>();

/// An open file whose header was checked: every tensor's bytes lie inside of it.
pub(super) struct Shard {
    pub path: PathBuf,
    file: File,
    header: Header,
}

/// One tensor as stored: `shape` elements of `dtype` from byte `offset` of the file on.
pub(super) struct Stored<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub offset: u64,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Shard> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: the map is read-only and ends with this function. Should another process truncate the file
        // meanwhile, the kernel ends this one (SIGBUS); checkpoints are therefore replaced by rename, never
        // rewritten in place, here and by the safetensors library.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {} to memory", path.display()))?;
        let header = Header::parse(&map)
            .with_context(|| format!("{} is damaged or no safetensors file", path.display()))
            .context("cannot read the weights; download or write the file again")?;
        Ok(Shard { path: path.to_path_buf(), file, header })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<Stored<'_>> {
        let info = self.header.tensors.get(name)?;
        let offset = (self.header.data_start + info.data_offsets.0) as u64;
        Some(Stored { dtype: info.dtype, shape: &info.shape, offset })
    }

    /// Fills `bytes` from byte `offset` of the file on. Not through a map: its pages would stand in memory beside what is made
    /// of them, and cost a fault each.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.read_exact_at(bytes, offset);
        read.with_context(|| format!("cannot read {} at byte {offset}", self.path.display()))
    }
}

/// A file's table of contents; offsets count from `data_start`.
#[derive(Debug)]
pub(super) struct Header {
    data_start: usize,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads and checks the header of a whole file's bytes: tensors must cover the data exactly, in any order,
    /// without gaps and overlaps, and each must be as long as its shape and dtype say.
    pub fn parse(file: &[u8]) -> Result<Header> {
        let length = file.first_chunk::<LENGTH_BYTES>();
        let length = length.with_context(|| format!("it has {} bytes, expected {LENGTH_BYTES} or more", file.len()))?;
        let length = u64::from_le_bytes(*length);
        ensure!(length <= MAX_HEADER_BYTES, "it announces a header of {length} bytes, expected at most 100 MB");
        let data_start = LENGTH_BYTES + length as usize;
        let json = file.get(LENGTH_BYTES..data_start).with_context(|| {
            format!("it announces a header of {length} bytes, but only {} follow", file.len() - LENGTH_BYTES)
        })?;
        let json = std::str::from_utf8(json).context("its header is not UTF-8")?;
        let Entries(entries) = serde_json::from_str(json).context("its header is not what it should be")?;
        check_offsets(&entries, file.len() - data_start)?;
        Ok(Header { data_start, tensors: entries.into_iter().collect() })
    }
}

fn check_offsets(entries: &[(String, TensorInfo)], data_len: usize) -> Result<()> {
    let mut in_file_order: Vec<_> = entries.iter().collect();
    in_file_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected_start = 0;
    for (name, info) in in_file_order {
        let (start, end) = info.data_offsets;
        ensure!(
            start == expected_start && end >= start,
            "tensor {name} has data_offsets [{start}, {end}], expected a start of {expected_start}, where the tensor \
             before it ends"
        );
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |product, &n| product.checked_mul(n));
        ensure!(
            bits.is_some_and(|bits| bits.is_multiple_of(8) && bits / 8 == end - start),
            "tensor {name} has data_offsets [{start}, {end}], but its shape {:?} and dtype {} do not make {} bytes",
            info.shape,
            info.dtype,
            end - start
        );
        if end > data_len {
            bail!("tensor {name} ends at byte {end} of the data, but the file holds {data_len} bytes of it");
        }
        expected_start = end;
    }
    ensure!(expected_start == data_len, "it holds {data_len} bytes of data, but its header describes {expected_start}");
    Ok(())
}

/// The header's entries in the order of the file. A map of serde would silently keep the last of two tensors of
/// one name.
struct Entries(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} stands in it twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let info = map.next_value::<TensorInfo>();
                    let info = info.map_err(|error| A::Error::custom(format!("tensor {name}: {error}")))?;
                    entries.push((name, info));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

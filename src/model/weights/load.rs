//! Safetensors files to the flat array.

use super::shard::{Shard, Stored};
use super::{INDEX_FILE, SINGLE_FILE, name_some};
use crate::model::{ModelConfig, ParamLayout, TensorSpec};
use anyhow::{Context, Result, bail, ensure};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const UNEMBEDDING: &str = "lm_head.weight";
/// RoPE frequencies that old checkpoints carry; they follow from `config.json`.
const ROPE_BUFFER_SUFFIX: &str = ".rotary_emb.inv_freq";
/// Elements that one task converts.
const PIECE: usize = 1 << 18;

/// Reads all parameters of the checkpoint in `dir`, `[layout.len()]` f32 in the layout's order.
///
/// Reads `model.safetensors`, or the files of `model.safetensors.index.json`, as f32, f16 or bf16. Fails, before
/// memory is taken, when a file is damaged, a tensor is missing, unknown, of another shape or another dtype; and
/// after that when a weight is not finite. A tied checkpoint may store its unembedding if it equals the embedding.
pub fn load(dir: &Path, config: &ModelConfig, layout: &ParamLayout) -> Result<Vec<f32>> {
    let shards = open(dir)?;
    let tensors = Tensors::find(dir, &shards)?;
    tensors.check(config, layout)?;
    let mut params = vec![0.0; layout.len()];
    tensors.fill(config, &layout.tensors, &mut params)?;
    Ok(params)
}

/// The files of the checkpoint in `dir`.
pub(super) fn open(dir: &Path) -> Result<Vec<Shard>> {
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return Ok(vec![Shard::open(&single)?]);
    }
    if dir.join(INDEX_FILE).exists() {
        return open_sharded(dir);
    }
    if ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| dir.join(name).exists()) {
        bail!(
            "{} has weights in pytorch_model.bin only, expected safetensors. Convert it: load it with transformers and \
             call save_pretrained, or take the safetensors revision of the hub",
            dir.display()
        );
    }
    bail!("{} has no weights: expected {SINGLE_FILE}, or {INDEX_FILE} and its files", dir.display())
}

#[derive(Deserialize)]
struct Index {
    /// Tensor to file.
    weight_map: BTreeMap<String, String>,
}

fn open_sharded(dir: &Path) -> Result<Vec<Shard>> {
    let path = dir.join(INDEX_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let index: Index = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged, expected an object with `weight_map`", path.display()))?;
    let mut files: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in &index.weight_map {
        ensure!(
            is_plain_file_name(file),
            "{} places {tensor} in {file:?}, expected the plain name of a .safetensors file in the same folder",
            path.display()
        );
        files.entry(file).or_default().insert(tensor);
    }
    files.into_iter().map(|(file, tensors)| open_indexed(dir, file, &tensors)).collect()
}

fn open_indexed(dir: &Path, file: &str, indexed: &BTreeSet<&str>) -> Result<Shard> {
    let path = dir.join(file);
    ensure!(
        path.exists(),
        "{} is missing, and {INDEX_FILE} places {} tensors in it ({}); download it again",
        path.display(),
        indexed.len(),
        name_some(indexed.iter().copied())
    );
    let shard = Shard::open(&path)?;
    let stored: BTreeSet<&str> = shard.names().collect();
    if stored != *indexed {
        bail!(
            "{} and {INDEX_FILE} differ: only the index has [{}], only the file has [{}]; both must be of one download",
            path.display(),
            name_some(indexed.difference(&stored).copied()),
            name_some(stored.difference(indexed).copied())
        );
    }
    Ok(shard)
}

/// Anything else could lead out of the checkpoint's folder.
fn is_plain_file_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0'])
}

/// Where each tensor of a checkpoint is.
pub(super) struct Tensors<'a> {
    dir: &'a Path,
    by_name: BTreeMap<&'a str, &'a Shard>,
}

impl<'a> Tensors<'a> {
    pub fn find(dir: &'a Path, shards: &'a [Shard]) -> Result<Tensors<'a>> {
        let mut by_name: BTreeMap<&str, &Shard> = BTreeMap::new();
        for shard in shards {
            for name in shard.names() {
                if let Some(other) = by_name.insert(name, shard) {
                    bail!("{name} is in {} and in {}", other.path.display(), shard.path.display());
                }
            }
        }
        Ok(Tensors { dir, by_name })
    }

    fn get(&self, name: &str) -> Result<(&'a Shard, Stored<'a>)> {
        let found = self.by_name.get(name).and_then(|shard| Some((*shard, shard.get(name)?)));
        found.with_context(|| format!("{} has no tensor {name}", self.dir.display()))
    }

    /// Names, shapes and dtypes against what `config.json` asks for.
    pub fn check(&self, config: &ModelConfig, layout: &ParamLayout) -> Result<()> {
        let expected: BTreeSet<&str> = layout.tensors.iter().map(|spec| spec.name.as_str()).collect();
        let names = layout.tensors.iter().map(|spec| spec.name.as_str());
        let missing: Vec<&str> = names.filter(|name| !self.by_name.contains_key(name)).collect();
        let harmless =
            |name: &str| name.ends_with(ROPE_BUFFER_SUFFIX) || (config.tie_word_embeddings && name == UNEMBEDDING);
        let unexpected: Vec<&str> =
            self.by_name.keys().copied().filter(|name| !expected.contains(name) && !harmless(name)).collect();
        let dir = self.dir.display();
        if !missing.is_empty() {
            let mut message = format!(
                "{dir} lacks {} of the {} tensors that its config.json asks for: {}",
                missing.len(),
                expected.len(),
                name_some(missing.iter().copied())
            );
            if !unexpected.is_empty() {
                message += &format!("; it has {} others: {}", unexpected.len(), name_some(unexpected));
            }
            if missing == [UNEMBEDDING] {
                message += ". If the unembedding is the embedding, set `tie_word_embeddings` to true in config.json";
            }
            bail!(message);
        }
        ensure!(
            unexpected.is_empty(),
            "{dir} has {} tensors that its config.json does not ask for: {}. A model with these parts is not supported, \
             or config.json is another model's",
            unexpected.len(),
            name_some(unexpected.iter().copied())
        );
        for spec in &layout.tensors {
            self.check_tensor(&spec.name, &spec.shape)?;
        }
        Ok(())
    }

    fn check_tensor(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (shard, stored) = self.get(name)?;
        ensure!(
            stored.shape == shape,
            "{name} has shape {:?} in {}, expected {shape:?} by config.json",
            stored.shape,
            shard.path.display()
        );
        ensure!(
            matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
            "{name} has dtype {} in {}, expected F32, F16 or BF16: quantised and other weights are not supported",
            stored.dtype,
            shard.path.display()
        );
        Ok(())
    }

    /// Reads tensors that are neighbours in the flat array to their part of it, `out`.
    pub fn fill(&self, config: &ModelConfig, specs: &'a [TensorSpec], out: &mut [f32]) -> Result<()> {
        let (mut rest, mut pieces) = (&mut *out, Vec::new());
        for spec in specs {
            let (own, after) = std::mem::take(&mut rest).split_at_mut(spec.len());
            rest = after;
            pieces.extend(self.pieces(&spec.name, own)?);
        }
        // In the files' order, which is not the layout's within a layer: the system reads ahead only of a reader that goes
        // straight on.
        pieces.sort_by_key(Piece::place);
        convert(pieces)?;
        let twice = config.tie_word_embeddings && self.by_name.contains_key(UNEMBEDDING);
        match specs.iter().find(|spec| spec.name == EMBEDDING) {
            Some(spec) if twice => self.check_tied(&out[spec.offset - specs[0].offset..][..spec.len()]),
            _ => Ok(()),
        }
    }

    /// The work of reading one tensor into `out`, cut into pieces; `out` has the stored tensor's length.
    pub fn pieces<'o>(&self, name: &'a str, out: &'o mut [f32]) -> Result<Vec<Piece<'a, 'o>>>
    where
        'a: 'o,
    {
        let (shard, Stored { dtype, offset, .. }) = self.get(name)?;
        let piece = |(i, out)| Piece { name, shard, start: i * PIECE, dtype, tensor: offset, out };
        Ok(out.chunks_mut(PIECE).enumerate().map(piece).collect())
    }

    /// transformers 4 ignores a tied checkpoint's own unembedding and transformers 5 uses it, so it may not differ.
    fn check_tied(&self, embedding: &[f32]) -> Result<()> {
        let (shard, stored) = self.get(UNEMBEDDING)?;
        let (_, embedding_stored) = self.get(EMBEDDING)?;
        self.check_tensor(UNEMBEDDING, embedding_stored.shape)?;
        let size = stored.dtype.bitsize() / 8;
        let (mut bytes, mut unembedding) = (vec![0; PIECE * size], vec![0.0; PIECE]);
        for (i, expected) in embedding.chunks(PIECE).enumerate() {
            let (bytes, got) = (&mut bytes[..expected.len() * size], &mut unembedding[..expected.len()]);
            shard.read_at(bytes, stored.offset + (i * PIECE * size) as u64)?;
            decode(stored.dtype, bytes, got);
            ensure!(
                got == expected,
                "{} holds an {UNEMBEDDING} that differs from {EMBEDDING}, but config.json says that they are one. Set \
                 `tie_word_embeddings` to false there to use both, or remove {UNEMBEDDING} from the file",
                shard.path.display()
            );
        }
        Ok(())
    }
}

/// A run of one tensor's elements, on its way from a file to the flat array.
pub(super) struct Piece<'a, 'o> {
    name: &'a str,
    shard: &'a Shard,
    /// First element's index in its tensor.
    start: usize,
    dtype: Dtype,
    /// Where its tensor begins in the file.
    tensor: u64,
    out: &'o mut [f32],
}

impl<'a> Piece<'a, '_> {
    /// Its file and the byte there at which it begins.
    fn place(&self) -> (&'a Path, u64) {
        (&self.shard.path, self.tensor + (self.start * self.dtype.bitsize() / 8) as u64)
    }

    fn read(self, buffer: &mut Vec<u8>) -> Result<()> {
        let size = self.dtype.bitsize() / 8;
        let (_, offset) = self.place();
        if self.dtype == Dtype::F32 {
            // Straight to where it belongs.
            self.shard.read_at(bytemuck::cast_slice_mut(self.out), offset)?;
            self.out.iter_mut().for_each(|x| *x = f32::from_bits(u32::from_le(x.to_bits())));
        } else {
            buffer.resize(self.out.len() * size, 0);
            self.shard.read_at(buffer, offset)?;
            decode(self.dtype, buffer, self.out);
        }
        // All at once first: a search that can stop anywhere is not vectorised.
        if self.out.iter().fold(true, |finite, x| finite & x.is_finite()) {
            return Ok(());
        }
        let at = self.out.iter().position(|x| !x.is_finite()).unwrap_or_default();
        bail!(
            "{} holds {} at element {} in {}: these weights are broken (a diverged run, or overflow in f16)",
            self.name,
            self.out[at],
            self.start + at,
            self.shard.path.display()
        )
    }
}

/// Reads pieces; fails on a value that is not finite.
pub(super) fn convert(pieces: Vec<Piece>) -> Result<()> {
    let done = pieces.into_par_iter().map_init(Vec::new, |buffer, piece| piece.read(buffer));
    done.find_map_first(Result::err).map_or(Ok(()), Err)
}

/// Converts exactly; `bytes` holds `out.len()` elements, of any alignment. The dtype was checked before.
fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F16 => decode_half(bytes, out, f16::from_bits, |half, out| half.convert_to_f32_slice(out)),
        Dtype::BF16 => decode_half(bytes, out, bf16::from_bits, |half, out| half.convert_to_f32_slice(out)),
        _ => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
    }
}

/// Goes through a small aligned buffer, so that the conversion can use the machine's instructions.
fn decode_half<H: Copy>(bytes: &[u8], out: &mut [f32], from_bits: fn(u16) -> H, convert: fn(&[H], &mut [f32])) {
    const BUFFER: usize = 1024;
    let mut buffer = [from_bits(0); BUFFER];
    let (halves, _) = bytes.as_chunks();
    for (out, halves) in out.chunks_mut(BUFFER).zip(halves.chunks(BUFFER)) {
        for (h, b) in buffer.iter_mut().zip(halves) {
            *h = from_bits(u16::from_le_bytes(*b));
        }
        convert(&buffer[..out.len()], out);
    }
}

//! Training state beside a checkpoint's model, and the folder of checkpoints.
//!
//! A checkpoint is a HuggingFace folder (`checkpoints/step-000123`) with one file more: `trainer_state.safetensors`, whose
//! arrays are the optimizer's moments and whose metadata is everything else, as JSON.

use super::atomic::{clean_leftovers, link_atomic};
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the state's file in a checkpoint.
pub const STATE_FILE: &str = "trainer_state.safetensors";
const KEY: &str = "bupo_trainer_state";

/// Writes named arrays and metadata into `dir`.
pub fn save_state(dir: &Path, metadata: &Value, arrays: &[(&str, &[f32])]) -> Result<()> {
    let path = dir.join(STATE_FILE);
    let what = || format!("cannot write the training state {} (is there space?)", path.display());
    let mut views = BTreeMap::new();
    for (name, array) in arrays {
        let view = TensorView::new(Dtype::F32, vec![array.len()], bytemuck::cast_slice(array)).with_context(what)?;
        views.insert(name.to_string(), view);
    }
    let metadata = HashMap::from([(KEY.to_string(), metadata.to_string())]);
    serialize_to_file(views, Some(metadata), &path).with_context(what)
}

/// Reads what [`save_state`] wrote.
pub fn load_state(dir: &Path) -> Result<(Value, BTreeMap<String, Vec<f32>>)> {
    let path = dir.join(STATE_FILE);
    let what = || format!("{} is no training state that can be read: take an earlier checkpoint", path.display());
    let bytes = fs::read(&path).with_context(|| format!("cannot read the training state {}", path.display()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).with_context(what)?;
    let text = header.metadata().as_ref().and_then(|m| m.get(KEY)).with_context(what)?;
    let metadata: Value = serde_json::from_str(text).with_context(what)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(what)?;
    let mut arrays = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        ensure!(view.dtype() == Dtype::F32, "{}: {name} is {:?}, expected F32", path.display(), view.dtype());
        // The file's bytes need not be aligned for f32.
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        arrays.insert(name, values);
    }
    Ok((metadata, arrays))
}

/// Takes one array of the length that the model needs.
pub fn take_array(arrays: &mut BTreeMap<String, Vec<f32>>, name: &str, len: usize) -> Result<Vec<f32>> {
    let Some(array) = arrays.remove(name) else { bail!("the training state holds no {name}") };
    ensure!(
        array.len() == len,
        "the training state's {name} holds {} values, but this model trains {len} parameters",
        array.len()
    );
    Ok(array)
}

/// What a step's checkpoint is called, and whatever else a step leaves.
pub fn step_name(step: usize) -> String {
    format!("step-{step:06}")
}

/// The folder of a run's checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    pub fn new(run_dir: &Path) -> Checkpoints {
        Checkpoints { dir: run_dir.join("checkpoints") }
    }

    /// Makes the folder, and clears what an interrupted writer left in it.
    pub fn create(&self) -> Result<()> {
        let dir = self.dir.display();
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create the run's folder {dir} (may you write there?)"))?;
        clean_leftovers(&self.dir)
    }

    /// Where the checkpoint of a step lies.
    pub fn path(&self, step: usize) -> PathBuf {
        self.dir.join(step_name(step))
    }

    /// Steps of which there is a checkpoint, ascending.
    pub fn steps(&self) -> Vec<usize> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let step = |e: fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<usize> = entries.flatten().filter_map(step).collect();
        steps.sort_unstable();
        steps
    }

    pub fn latest(&self) -> Option<usize> {
        self.steps().pop()
    }

    /// The name that [`Checkpoints::mark_best`] gives.
    pub fn best(&self) -> PathBuf {
        self.dir.join("best")
    }

    /// Gives the checkpoint of a step a second name: a link, so that whatever opens a checkpoint opens it. Where the system has none, it
    /// has its first name only.
    pub fn mark_best(&self, step: usize) -> Result<()> {
        if cfg!(unix) { link_atomic(Path::new(&step_name(step)), &self.best()) } else { Ok(()) }
    }

    /// Removes all but the last `keep` checkpoints; step 0, where the run began, stays, and so do those of `also`.
    pub fn prune(&self, keep: usize, also: &[usize]) -> Result<()> {
        let steps: Vec<usize> = self.steps().into_iter().filter(|s| *s > 0 && !also.contains(s)).collect();
        for step in steps.iter().take(steps.len().saturating_sub(keep.max(1))) {
            let path = self.path(*step);
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove the old checkpoint {}", path.display()))?;
        }
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn state_round_trips_bit_for_bit_and_broken_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (m, v) = (vec![1.0f32, f32::MIN_POSITIVE, -0.0], vec![0.1f32; 5]);
        save_state(dir.path(), &json!({"step": 7}), &[("m", &m), ("v", &v)]).unwrap();
        let (metadata, mut arrays) = load_state(dir.path()).unwrap();
        assert_eq!(metadata["step"], 7);
        let read = take_array(&mut arrays, "m", 3).unwrap();
        assert!(read.iter().zip(&m).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(take_array(&mut arrays, "v", 4).unwrap_err().to_string().contains("5 values"));
        let path = dir.path().join(STATE_FILE);
        let bytes = fs::read(&path).unwrap();
        for cut in [0, 4, 8, 30, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(format!("{:#}", load_state(dir.path()).unwrap_err()).contains(STATE_FILE));
        }
    }

    #[test]
    fn old_checkpoints_go_and_the_first_stays() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path());
        assert_eq!(checkpoints.latest(), None);
        for step in [0, 10, 20, 30] {
            fs::create_dir_all(checkpoints.path(step)).unwrap();
        }
        fs::create_dir_all(checkpoints.dir().join(".tmp-step-000040-1")).unwrap();
        checkpoints.prune(2, &[]).unwrap();
        assert_eq!(checkpoints.steps(), vec![0, 20, 30]);
        checkpoints.prune(1, &[20]).unwrap();
        assert_eq!(checkpoints.steps(), vec![0, 20, 30]);
        // A second name is no checkpoint of its own, and can be given to another.
        for step in [20, 30] {
            checkpoints.mark_best(step).unwrap();
            assert_eq!(checkpoints.steps(), vec![0, 20, 30]);
            #[cfg(unix)]
            assert_eq!(checkpoints.best().canonicalize().unwrap(), checkpoints.path(step).canonicalize().unwrap());
        }
        checkpoints.prune(1, &[]).unwrap();
        assert_eq!(checkpoints.steps(), vec![0, 30]);
    }
}

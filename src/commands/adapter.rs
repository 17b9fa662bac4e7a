//! Adapters as the verbs meet them: opened beside their base, and begun beside a model's weights.

use crate::cli::LoraArgs;
use crate::commands::run_folder::checkpoint;
use crate::model::weights::{self, SaveOptions, TensorReader, base_of, is_adapter};
use crate::model::{LoraConfig, Model, Target};
use crate::run::atomic::write_dir_atomic;
use crate::run::progress::say;
use crate::text::Tokenizer;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Folder in a run's folder with the weights that its adapter lies beside, where no other folder has them.
const BASE: &str = "base";

/// The model in `base` with the adapter in `dir` beside its weights.
pub fn open_adapter(dir: &Path, base: &Path) -> Result<Model> {
    Model::read(TensorReader::open_adapter(dir, base)?)
}

/// Where the base of an adapter is, fetched from the hub where it is a name there; none if the folder holds a model of its own.
pub fn base_of_adapter(dir: &Path) -> Result<Option<PathBuf>> {
    if !is_adapter(dir) {
        return Ok(None);
    }
    let base = checkpoint(&base_of(dir)?).with_context(|| {
        format!("{}: base_model_name_or_path must lead to the model that the adapter was trained on", dir.display())
    })?;
    Ok(Some(base))
}

/// Who else opens a checkpoint.
pub fn opens_with(dir: &Path) -> &'static str {
    if is_adapter(dir) { "PEFT; bupo merge makes one model of it" } else { "transformers" }
}

/// What the command line asks for.
pub fn asked(args: &LoraArgs) -> Option<LoraConfig> {
    let rank = args.lora?;
    let targets = if args.lora_targets.is_empty() { Target::ALL.to_vec() } else { args.lora_targets.clone() };
    let alpha = args.lora_alpha.unwrap_or(2.0 * rank as f64);
    Some(LoraConfig { rank, alpha, targets, ..LoraConfig::default() })
}

/// What a run trains is one model: an adapter that it begins with is merged into its base.
pub fn merge_first(path: &Path, model: &mut Model) {
    if model.layout.adapter.is_some() {
        model.merge_adapter();
        say(&format!("{} is an adapter: the run begins with it merged into its base", path.display()));
    }
}

/// Puts a fresh adapter beside the weights that a run begins with. `kept` is the folder that holds them as they are; without one they
/// are written to the run's.
pub fn begin(
    lora: &LoraConfig,
    kept: Option<&Path>,
    run: &Path,
    tokenizer: &Tokenizer,
    model: &mut Model,
    seed: u64,
) -> Result<()> {
    let base = match kept {
        Some(path) => path.to_path_buf(),
        None => {
            let base = run.join(BASE);
            write_dir_atomic(&base, |tmp| {
                tokenizer.save(tmp)?;
                weights::save(tmp, &model.config, &model.layout, &model.params, &SaveOptions::default())
            })?;
            base
        }
    };
    // PEFT looks for it from wherever it is called.
    let base = std::path::absolute(&base).with_context(|| format!("{} has no absolute path", base.display()))?;
    let frozen = model.layout.len();
    model.add_adapter(lora, &base.to_string_lossy(), seed)?;
    say(&format!(
        "LoRA of rank {}: {:.2} M parameters are trained beside {:.2} M that are frozen, {}",
        lora.rank,
        model.layout.trainable().len() as f64 / 1e6,
        frozen as f64 / 1e6,
        base.display()
    ));
    Ok(())
}

/// The base of a run's checkpoints, wherever the run's folder is now; `kept` as in [`begin`].
pub fn base_of_run(run: &Path, kept: Option<&Path>) -> Result<PathBuf> {
    let own = run.join(BASE);
    match kept {
        _ if own.is_dir() => Ok(own),
        Some(kept) => Ok(kept.to_path_buf()),
        None => anyhow::bail!("{} is gone: it held the weights that the run's adapter belongs to", own.display()),
    }
}

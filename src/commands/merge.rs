//! `bupo merge`: an adapter and its base in, one model out.

use super::adapter::{base_of_adapter, open_adapter};
use super::prompt_encoder_beside;
use crate::cli::MergeArgs;
use crate::commands::run_folder::checkpoint;
use crate::model::weights::{self, SaveOptions};
use crate::run::atomic::write_dir_atomic;
use crate::run::progress::say;
use anyhow::{Context, Result, ensure};

pub fn run(args: &MergeArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} is there already: choose another --out", args.out.display());
    ensure!(
        weights::is_adapter(&args.adapter),
        "{} holds no adapter: expected a folder with adapter_config.json",
        args.adapter.display()
    );
    let base = match &args.base {
        Some(base) => Some(checkpoint(base)?),
        None => base_of_adapter(&args.adapter)?,
    }
    .context("an adapter has a base")?;
    let mut model = open_adapter(&args.adapter, &base)?;
    model.merge_adapter();
    // A model without a tokenizer stays one.
    let with_text = [&args.adapter, &base].iter().any(|dir| dir.join("tokenizer.json").is_file());
    let options = SaveOptions { dtype: args.dtype, ..SaveOptions::default() };
    write_dir_atomic(&args.out, |tmp| {
        if with_text {
            let limit = model.config.max_position_embeddings;
            let prompts = prompt_encoder_beside(&args.adapter, Some(&base), Default::default(), limit)?;
            prompts.tokenizer().save(tmp)?;
        }
        weights::save(tmp, &model.config, &model.layout, &model.params, &options)
    })?;
    say(&format!("merged {} into {}; written to {}", args.adapter.display(), base.display(), args.out.display()));
    Ok(())
}

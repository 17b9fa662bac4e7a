//! `bupo diff`: two checkpoints in, what moved between them and in which layer out.

use super::open_weights;
use crate::analysis::diff::{check_alike, diff, summary, table};
use crate::cli::DiffArgs;
use crate::commands::run_folder::checkpoint;
use crate::run::atomic::write_file_atomic;
use crate::run::progress::{Progress, say};
use anyhow::{Context, Result};
use std::path::Path;

pub fn run(args: &DiffArgs) -> Result<()> {
    let name = |path: &Path| path.display().to_string();
    let (a, b) = (name(&args.model_a), name(&args.model_b));
    let open = |path: &Path| open_weights(&checkpoint(path)?);
    let (first, second) = (open(&args.model_a)?, open(&args.model_b)?);
    check_alike((&a, &b), &first.layout, &second.layout)?;
    let mut progress = Progress::new("diff", first.layout.tensors.len() as u64);
    let diff = diff((&a, &b), &first.layout, |spec, ours, theirs| {
        first.read(spec, ours).with_context(|| a.clone())?;
        second.read(spec, theirs).with_context(|| b.clone())?;
        progress.inc(1);
        Ok(())
    })?;
    progress.finish();
    if let Some(dir) = &args.out {
        let path = dir.join("diff.json");
        let text = serde_json::to_string_pretty(&diff).context("the comparison cannot be written as JSON")?;
        write_file_atomic(&path, format!("{text}\n").as_bytes())?;
        say(&format!("written to {}", path.display()));
    }
    println!("|b - a| / |a|, from {a} to {b}\n{}\n{}", table(&diff), summary(&diff));
    Ok(())
}

//! A run's checkpoint: the model as a HuggingFace folder, and beside it what training needs to go on bit for bit.

use crate::model::weights::{self, SaveOptions};
use crate::model::{Model, ParamLayout};
use crate::recipe::Recipe;
use crate::rl::adamw::Optimizer;
use crate::run::atomic::write_dir_atomic;
use crate::run::checkpoint::{load_state, save_state, take_array};
use crate::text::Tokenizer;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything but the arrays.
#[derive(Serialize, Deserialize)]
struct Metadata {
    step: usize,
    /// Problems drawn so far; dynamic sampling draws more than a batch a step.
    position: u64,
    optimizer_steps: u64,
    skipped_steps: u64,
    /// Updates of each tensor, in the layout's order.
    tensor_steps: Vec<u64>,
    /// The internal policy of the run, once chosen.
    policy: Option<String>,
    recipe: String,
}

/// What a resumed run takes up.
pub struct State {
    pub optimizer: Optimizer,
    pub policy: Option<String>,
    /// Where the next step's problems begin in the run's order.
    pub position: u64,
    /// The recipe, as the run had resolved it.
    pub recipe: String,
}

#[allow(clippy::too_many_arguments)]
pub fn save(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
    optimizer: &Optimizer,
    recipe: &Recipe,
    policy: Option<String>,
    step: usize,
    position: u64,
) -> Result<()> {
    let metadata = Metadata {
        step,
        position,
        optimizer_steps: optimizer.steps,
        skipped_steps: optimizer.skipped,
        tensor_steps: optimizer.tensor_steps.clone(),
        policy,
        recipe: recipe.to_toml()?,
    };
    let metadata = serde_json::to_value(metadata).context("the training state cannot be written as JSON")?;
    write_dir_atomic(dir, |tmp| {
        tokenizer.save(tmp)?;
        weights::save(tmp, &model.config, &model.layout, &model.params, &SaveOptions::default())?;
        save_state(tmp, &metadata, &[("m", &optimizer.m), ("v", &optimizer.v)])
    })
}

pub fn load(dir: &Path, layout: &ParamLayout) -> Result<State> {
    let (metadata, mut arrays) = load_state(dir)?;
    let what = || format!("the training state in {}", dir.display());
    let metadata: Metadata = serde_json::from_value(metadata).with_context(what)?;
    let (n, tensors) = (layout.len(), layout.tensors.len());
    ensure!(
        metadata.tensor_steps.len() == tensors,
        "{} knows {} tensors, but the model has {tensors}",
        what(),
        metadata.tensor_steps.len()
    );
    let optimizer = Optimizer {
        m: take_array(&mut arrays, "m", n).with_context(what)?,
        v: take_array(&mut arrays, "v", n).with_context(what)?,
        tensor_steps: metadata.tensor_steps,
        steps: metadata.optimizer_steps,
        skipped: metadata.skipped_steps,
    };
    Ok(State { optimizer, policy: metadata.policy, position: metadata.position, recipe: metadata.recipe })
}

/// A resumed run equals one never stopped only under the recipe that it began with; where it writes, and on how many
/// threads it runs, is free.
pub fn same_recipe(now: &Recipe, then: &str, dir: &Path) -> Result<()> {
    let then = Recipe::parse(then, "the checkpoint's recipe", &[])?;
    let free = |r: &Recipe| Recipe { run: now.run.clone(), threads: now.threads, evaluate: None, ..r.clone() };
    ensure!(
        free(now) == free(&then),
        "the recipe is not the one that this run began with, and would not continue it. Use its own: bupo train {} --dir {} \
         --resume",
        dir.join("recipe.toml").display(),
        dir.display()
    );
    Ok(())
}

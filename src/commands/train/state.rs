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
    #[serde(flatten)]
    standing: Standing,
    optimizer_steps: u64,
    skipped_steps: u64,
    /// Updates of each tensor, in the layout's order.
    tensor_steps: Vec<u64>,
    recipe: String,
}

/// Where a run stands in its data and its phases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Where the next step's problems begin in the run's order; dynamic sampling draws more than a batch a step.
    pub position: u64,
    /// The internal policy of the run, once chosen.
    pub policy: Option<String>,
    /// The step that the guard ended the internal phase with.
    #[serde(default)]
    pub internal_until: Option<usize>,
    /// What the guard has seen, from step 0 on.
    #[serde(default, with = "bits")]
    pub guard_values: Vec<f64>,
}

/// Numbers by their bits: a decimal in JSON need not read back as the same one.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| value.to_bits()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        Ok(Vec::<u64>::deserialize(deserializer)?.into_iter().map(f64::from_bits).collect())
    }
}

/// What a resumed run takes up.
pub struct State {
    pub optimizer: Optimizer,
    pub standing: Standing,
    /// The recipe, as the run had resolved it.
    pub recipe: String,
}

pub fn save(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
    optimizer: &Optimizer,
    recipe: &Recipe,
    standing: Standing,
    step: usize,
) -> Result<()> {
    let metadata = Metadata {
        step,
        standing,
        optimizer_steps: optimizer.steps,
        skipped_steps: optimizer.skipped,
        tensor_steps: optimizer.tensor_steps.clone(),
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
    Ok(State { optimizer, standing: metadata.standing, recipe: metadata.recipe })
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

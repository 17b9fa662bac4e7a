//! A run's checkpoint: the model as a HuggingFace folder, and beside it what training needs to go on bit for bit.

use crate::model::weights::{self, SaveOptions};
use crate::model::{Model, ParamLayout};
use crate::recipe::Recipe;
use crate::rl::adamw::Optimizer;
use crate::rl::groups::lr_scales;
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
    /// The boundary layer, counted from 1, once it was looked for.
    pub boundary: Option<usize>,
    /// The steps that the guard ended phases with.
    #[serde(default)]
    pub ended_early: Vec<usize>,
    #[serde(default)]
    pub guard: Seen,
}

/// What the guard of a phase has seen: all that its next judgement depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The phase, from 1.
    pub phase: usize,
    #[serde(with = "bits")]
    pub values: Vec<f64>,
}

/// Numbers by their bits: JSON has none that is not finite, and the guard may have seen one.
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

/// The state that a run of `recipe` left.
pub fn load(dir: &Path, layout: &ParamLayout, recipe: &Recipe) -> Result<State> {
    let (metadata, mut arrays) = load_state(dir)?;
    let what = || format!("the training state in {}", dir.display());
    let metadata: Metadata = serde_json::from_value(metadata).with_context(what)?;
    let tensors = layout.tensors.len();
    ensure!(
        metadata.tensor_steps.len() == tensors,
        "{} knows {} tensors, but the model has {tensors}",
        what(),
        metadata.tensor_steps.len()
    );
    let mut optimizer = Optimizer::with_scales(layout, lr_scales(&recipe.optimizer.group, layout)?);
    let n = optimizer.m.len();
    optimizer.m = take_array(&mut arrays, "m", n).with_context(what)?;
    optimizer.v = take_array(&mut arrays, "v", n).with_context(what)?;
    optimizer.tensor_steps = metadata.tensor_steps;
    (optimizer.steps, optimizer.skipped) = (metadata.optimizer_steps, metadata.skipped_steps);
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

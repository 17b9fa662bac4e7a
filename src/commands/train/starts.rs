//! Warmed-up models that runs share. Runs that are alike up to their first rollout begin with the same bytes, so one of them
//! warms up and leaves its model for the others: methods are compared from the same start, which is paid for once.

use super::setup::Source;
use super::warm;
use crate::commands::device::Device;
use crate::commands::open_model;
use crate::compute::DeviceChoice;
use crate::model::weights::{self, SaveOptions};
use crate::model::{Compute, Model};
use crate::recipe::{DataSection, ModelSection, Recipe, RolloutSection, WarmupSection};
use crate::reward::RewardConfig;
use crate::run::atomic::{read, write_dir_atomic, write_file_atomic};
use crate::run::lock::FolderLock;
use crate::run::progress::say;
use crate::tasks::seed::stable_hash;
use crate::text::{PromptEncoder, PromptTemplate};
use anyhow::{Context, Result, ensure};
use serde::Serialize;

const ABOUT: &str = "start.json";

/// Everything that a warmed-up model's bytes depend on. The rollout's settings and the reward are among it, as they decide
/// when the warm-up ends.
#[derive(Serialize)]
struct Beginning<'a> {
    bupo_version: &'static str,
    threads: usize,
    compute: Compute,
    device: DeviceChoice,
    seed: u64,
    model: &'a ModelSection,
    data: &'a DataSection,
    prompt: &'a PromptTemplate,
    warmup: &'a WarmupSection,
    rollout: &'a RolloutSection,
    reward: &'a RewardConfig,
    micro_batch_tokens: usize,
}

impl Beginning<'_> {
    /// None where there is nothing to share: no warm-up, or a model from a folder, whose bytes a recipe does not tell.
    fn of(recipe: &Recipe) -> Option<Beginning<'_>> {
        let warmup = recipe.warmup.as_ref().filter(|_| recipe.model.init.is_some())?;
        Some(Beginning {
            bupo_version: env!("CARGO_PKG_VERSION"),
            threads: rayon::current_num_threads(),
            compute: recipe.compute,
            device: recipe.device,
            seed: recipe.seed,
            model: &recipe.model,
            data: &recipe.data,
            prompt: &recipe.prompt,
            warmup,
            rollout: &recipe.rollout,
            reward: &recipe.reward,
            micro_batch_tokens: recipe.rl.micro_batch_tokens,
        })
    }
}

/// [`warm::warm_up`], or what a run that began alike left in `run.starts`. False if it was interrupted.
pub fn warm_up<B: Device>(
    recipe: &Recipe,
    source: &Source,
    prompts: &PromptEncoder,
    model: &mut Model<B>,
) -> Result<bool> {
    let Some((starts, beginning)) = recipe.run.starts.as_ref().zip(Beginning::of(recipe)) else {
        return warm::warm_up(recipe, source, prompts, model);
    };
    let about = serde_json::to_vec_pretty(&beginning).context("a run's beginning cannot be written as JSON")?;
    let name = format!("{:016x}", stable_hash(&about));
    let dir = starts.join(&name);
    let waiting = || say("waiting for a run that begins alike: it is warming up");
    let Some(_lock) = FolderLock::wait(&starts.join(format!(".{name}")), waiting)? else { return Ok(false) };
    if dir.join(ABOUT).is_file() {
        ensure!(
            read(&dir.join(ABOUT))? == about,
            "{} holds the start of another recipe: remove it, or choose another run.starts",
            dir.display()
        );
        model.params = model.backend.load(open_model(&dir).context("a shared start")?.params);
        say(&format!("warm-up: taken from {}, where a run that began alike left it", dir.display()));
        return Ok(true);
    }
    if !warm::warm_up(recipe, source, prompts, model)? {
        return Ok(false);
    }
    write_dir_atomic(&dir, |tmp| {
        prompts.tokenizer().save(tmp)?;
        weights::save(tmp, &model.config, &model.layout, &model.host_params(), &SaveOptions::default())?;
        write_file_atomic(&tmp.join(ABOUT), &about)
    })?;
    Ok(true)
}

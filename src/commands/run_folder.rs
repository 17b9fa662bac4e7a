//! A run's folder in place of a checkpoint: its last checkpoint, and the way in which its model was asked while it trained.

use crate::hub;
use crate::recipe::Recipe;
use crate::run::atomic::read;
use crate::run::checkpoint::{Checkpoints, step_name};
use crate::run::progress::say;
use crate::text::PromptTemplate;
use anyhow::{Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of a checkpoint: one that is there, the last one of a run's folder, or a model of the hub.
pub fn checkpoint(name: &Path) -> Result<PathBuf> {
    if is_run(name)
        && let Some(step) = Checkpoints::new(name).latest()
    {
        return Ok(Checkpoints::new(name).path(step));
    }
    if !name.is_dir()
        && let Some(run) = run_of(name).filter(|run| is_run(run))
    {
        let steps: Vec<String> = Checkpoints::new(run).steps().into_iter().map(step_name).collect();
        bail!("{} holds no {}: it has {}", run.display(), name.display(), steps.join(", "));
    }
    hub::checkpoint(name)
}

/// How a run asked the model that `checkpoint` is of; none where it lies in no run's folder.
pub fn template(checkpoint: &Path) -> Option<PromptTemplate> {
    let checkpoint = checkpoint.canonicalize().ok()?;
    let run = run_of(&checkpoint)?;
    let (recipe, sft) = (run.join(RECIPE), run.join(SFT));
    let (file, template) = if recipe.is_file() {
        let template = Recipe::load(&recipe.to_string_lossy(), &[]).ok()?.prompt;
        (recipe, template)
    } else {
        let settings: Value = serde_json::from_slice(&read(&sft).ok()?).ok()?;
        let template = serde_json::from_value(settings.get("prompt")?.clone()).ok()?;
        (sft, template)
    };
    if template != PromptTemplate::default() {
        say(&format!("prompts are asked as {} has it", file.display()));
    }
    Some(template)
}

const RECIPE: &str = "recipe.toml";
const SFT: &str = "sft.json";

fn is_run(dir: &Path) -> bool {
    dir.join(RECIPE).is_file() || dir.join(SFT).is_file()
}

/// `RUN` of `RUN/checkpoints/step-000123`.
fn run_of(checkpoint: &Path) -> Option<&Path> {
    let folder = checkpoint.parent().filter(|folder| folder.ends_with("checkpoints"))?;
    folder.parent()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_run_stands_for_its_last_checkpoint_and_its_way_of_asking() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        for step in [0, 7] {
            fs::create_dir_all(Checkpoints::new(&run).path(step)).unwrap();
        }
        let last = Checkpoints::new(&run).path(7);
        assert!(template(&last).is_none());
        fs::write(run.join(SFT), r#"{"prompt": {"template": "plain", "text": "Q: {problem}"}}"#).unwrap();
        assert_eq!(checkpoint(&run).unwrap(), last);
        assert_eq!(checkpoint(&last).unwrap(), last);
        assert_eq!(template(&last), Some(PromptTemplate::Plain { text: "Q: {problem}".into() }));
        // A recipe's own comes first.
        let recipe = Recipe::load("arithmetic-bupo", &[]).unwrap();
        fs::write(run.join(RECIPE), recipe.to_toml().unwrap()).unwrap();
        assert_eq!(template(&last), Some(recipe.prompt));
        let error = checkpoint(&run.join("checkpoints/step-000003")).unwrap_err().to_string();
        assert!(error.ends_with("it has step-000000, step-000007"), "{error}");
    }
}

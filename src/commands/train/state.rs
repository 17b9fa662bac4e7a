//! A run's checkpoint: the model as a HuggingFace folder, or its adapter as PEFT's, and beside it what training needs to go on bit
//! for bit.

use super::setup::FileMark;
use crate::compute::Backend;
use crate::model::Model;
use crate::model::weights::{self, SaveOptions};
use crate::recipe::{Recipe, RlSection};
use crate::rl::adamw::Optimizer;
use crate::rl::critic::{Critic, CriticConfig};
use crate::rl::groups::lr_scales;
use crate::rl::{LrSchedule, OptimizerConfig};
use crate::run::atomic::write_dir_atomic;
use crate::run::checkpoint::{load_state, save_state, take_array};
use crate::text::Tokenizer;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Folder of the critic in a checkpoint: a model of its own, with a training state of its own.
const CRITIC: &str = "critic";

/// Everything but the arrays.
#[derive(Serialize, Deserialize)]
struct Metadata {
    step: usize,
    #[serde(flatten)]
    standing: Standing,
    #[serde(flatten)]
    optimizer: Counters,
    recipe: String,
}

/// An optimizer, but for its moments.
#[derive(Serialize, Deserialize)]
pub struct Counters {
    optimizer_steps: u64,
    skipped_steps: u64,
    /// Updates of each tensor, in the layout's order.
    tensor_steps: Vec<u64>,
}

impl Counters {
    pub fn of<B: Backend>(optimizer: &Optimizer<B>) -> Counters {
        Counters {
            optimizer_steps: optimizer.steps,
            skipped_steps: optimizer.skipped,
            tensor_steps: optimizer.tensor_steps.clone(),
        }
    }

    /// Into a new optimizer of the same tensors.
    pub fn restore(self, mut arrays: BTreeMap<String, Vec<f32>>, optimizer: &mut Optimizer) -> Result<()> {
        let (n, tensors) = (optimizer.m.len(), optimizer.tensor_steps.len());
        ensure!(
            self.tensor_steps.len() == tensors,
            "it knows {} tensors, but the model has {tensors}",
            self.tensor_steps.len()
        );
        optimizer.m = take_array(&mut arrays, "m", n)?.into();
        optimizer.v = take_array(&mut arrays, "v", n)?.into();
        optimizer.tensor_steps = self.tensor_steps;
        (optimizer.steps, optimizer.skipped) = (self.optimizer_steps, self.skipped_steps);
        Ok(())
    }
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
    /// What the training files held; not there in a checkpoint from before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<FileMark>>,
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
    pub critic: Option<Critic>,
    pub standing: Standing,
    /// The recipe, as the run had resolved it.
    pub recipe: String,
}

#[allow(clippy::too_many_arguments)]
pub fn save<B: Backend>(
    dir: &Path,
    model: &Model<B>,
    tokenizer: &Tokenizer,
    optimizer: &Optimizer<B>,
    critic: Option<&Critic<B>>,
    recipe: &Recipe,
    standing: Standing,
    step: usize,
) -> Result<()> {
    let metadata = Metadata { step, standing, optimizer: Counters::of(optimizer), recipe: recipe.to_toml()? };
    write_dir_atomic(dir, |tmp| {
        tokenizer.save(tmp)?;
        save_part(tmp, model, optimizer, &metadata)?;
        match critic {
            Some(Critic { model, optimizer }) => {
                save_part(&tmp.join(CRITIC), model, optimizer, &Counters::of(optimizer)).context("the critic")
            }
            None => Ok(()),
        }
    })
}

/// A model and the state of its training.
pub fn save_part<B: Backend>(
    dir: &Path,
    model: &Model<B>,
    optimizer: &Optimizer<B>,
    metadata: &impl Serialize,
) -> Result<()> {
    let metadata = serde_json::to_value(metadata).context("the training state cannot be written as JSON")?;
    match model.layout.adapter {
        Some(_) => weights::save_adapter(dir, model)?,
        None => weights::save(dir, &model.config, &model.layout, &model.host_params(), &SaveOptions::default())?,
    }
    let [m, v] = [&optimizer.m, &optimizer.v].map(|moments| model.backend.host(moments));
    model.backend.status()?;
    save_state(dir, &metadata, &[("m", &m), ("v", &v)])
}

/// The state that a run of `recipe` left, on the host; `model` is the checkpoint's own.
pub fn load<B: Backend>(dir: &Path, model: &Model<B>, recipe: &Recipe) -> Result<State> {
    let (metadata, arrays) = load_state(dir)?;
    let what = || format!("the training state in {}", dir.display());
    let metadata: Metadata = serde_json::from_value(metadata).with_context(what)?;
    let mut optimizer = Optimizer::with_scales(&model.layout, lr_scales(&recipe.optimizer.group, &model.layout)?);
    metadata.optimizer.restore(arrays, &mut optimizer).with_context(what)?;
    let critic = recipe.critic.as_ref().map(|config| load_critic(&dir.join(CRITIC), config)).transpose()?;
    Ok(State { optimizer, critic, standing: metadata.standing, recipe: metadata.recipe })
}

fn load_critic(dir: &Path, config: &CriticConfig) -> Result<Critic> {
    let what = || format!("the critic in {}", dir.display());
    let model = Model::open_value_model(dir).with_context(what)?;
    let (metadata, arrays) = load_state(dir).with_context(what)?;
    let counts: Counters = serde_json::from_value(metadata).with_context(what)?;
    let mut critic = Critic::new(model, config)?;
    counts.restore(arrays, &mut critic.optimizer).with_context(what)?;
    Ok(critic)
}

/// A resumed run equals one never stopped only under the recipe that it began with, which is returned; where it writes, on how many
/// threads it runs, and how it is evaluated is free. It may go on for longer where no rate depends on its end.
pub fn same_recipe(now: &Recipe, then: &str, dir: &Path) -> Result<Recipe> {
    let then = Recipe::parse(then, "the checkpoint's recipe", &[])?;
    let longer = now.rl.steps > then.rl.steps;
    let steps = |r: &Recipe| if longer && bends_with_its_end(now).is_none() { now.rl.steps } else { r.rl.steps };
    let free = |r: &Recipe| {
        let optimizer = OptimizerConfig { offload: now.optimizer.offload, ..r.optimizer.clone() };
        let rl = RlSection { steps: steps(r), ..r.rl.clone() };
        Recipe { run: now.run.clone(), threads: now.threads, evaluate: None, optimizer, rl, ..r.clone() }
    };
    let differing = free(now).differences(&free(&then))?;
    let end = bends_with_its_end(now).filter(|_| longer);
    ensure!(
        differing.is_empty(),
        "the recipe is not the one that this run began with, and would not continue it: {}{}. Use its own: bupo train {} --resume",
        differing.join("; "),
        end.map_or(String::new(), |key| format!(" (more steps are possible where {key} = \"constant\")")),
        dir.display()
    );
    Ok(then)
}

/// A resumed run goes on with the problems that it began with. Returns a remark where nobody can tell. Errors: a file that holds
/// others now.
pub fn same_data(now: &[FileMark], then: Option<&[FileMark]>, files: &[PathBuf]) -> Result<Option<String>> {
    let Some(then) = then else {
        let remark = "this checkpoint does not say what its training data held: if a file has changed since, the run is another one";
        return Ok((!now.is_empty()).then(|| remark.to_string()));
    };
    if let Some(((now, then), file)) = now.iter().zip(then).zip(files).find(|((now, then), _)| now != then) {
        let problems = match (now.problems, then.problems) {
            (now, then) if now == then => {
                format!("as many problems as when the run began ({now}), but not the same ones")
            }
            (now, then) => format!("{now} problems, where the run began with {then}"),
        };
        bail!(
            "{} holds {problems}: expected the data that the run began with. Put it back, or start a new run with --dir",
            file.display()
        );
    }
    Ok(None)
}

/// The key that makes a step's rate, the policy's or the critic's, depend on the number of steps.
fn bends_with_its_end(recipe: &Recipe) -> Option<&'static str> {
    let critic = recipe.critic.as_ref().map(|critic| ("critic.optimizer.schedule", critic.optimizer.schedule));
    let schedules = std::iter::once(("optimizer.schedule", recipe.optimizer.schedule)).chain(critic);
    schedules.into_iter().find(|(_, schedule)| *schedule != LrSchedule::Constant).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Problem;
    use crate::text::Message;

    #[test]
    fn other_problems_under_the_same_name_are_refused() {
        let problem = |text: &str, gold: &str| {
            let message = Message { role: "user".into(), content: text.into() };
            Problem::new("d", vec![message], gold.into(), None)
        };
        let files = [PathBuf::from("a.jsonl"), PathBuf::from("b.jsonl")];
        let of = |b: &[Problem]| [FileMark::of(&[problem("1+1", "2")]), FileMark::of(b)];
        let then = of(&[problem("2+2", "4"), problem("3+3", "6")]);
        let check = |b: &[Problem]| same_data(&of(b), Some(&then), &files).map_err(|e| e.to_string());
        assert_eq!(check(&[problem("2+2", "4"), problem("3+3", "6")]), Ok(None));
        for (b, expected) in [
            (vec![problem("2+2", "4")], "b.jsonl holds 1 problems, where the run began with 2"),
            (
                vec![problem("2+2", "4"), problem("3+3", "7")],
                "b.jsonl holds as many problems as when the run began (2)",
            ),
            (vec![problem("3+3", "6"), problem("2+2", "4")], "not the same ones"),
        ] {
            let error = check(&b).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        // A checkpoint from before this was kept; and generated problems, which cannot change.
        assert!(same_data(&of(&[]), None, &files).unwrap().is_some());
        assert_eq!(same_data(&[], None, &[]).unwrap(), None);
    }

    #[test]
    fn a_run_whose_rates_bend_with_its_end_is_not_lengthened() {
        let recipe = |steps: usize, critic: &str| {
            let text = format!(
                "name = \"a\"\n[model]\npath = \"m\"\n[data]\ntrain = [\"d.jsonl\"]\n[rl]\nadvantage = \"gae\"\nsteps = {steps}\n\
                 [critic]\noptimizer = {{ schedule = \"{critic}\" }}\n"
            );
            Recipe::parse(&text, "test", &[]).unwrap()
        };
        let of = |critic: &str| {
            let then = recipe(4, critic).to_toml().unwrap();
            same_recipe(&recipe(8, critic), &then, Path::new("run")).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(of("constant"), Ok(()));
        let error = of("cosine").unwrap_err();
        assert!(error.contains("rl.steps") && error.contains("critic.optimizer.schedule = \"constant\""), "{error}");
    }
}

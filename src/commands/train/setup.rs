//! From a recipe to what a run works with: model, prompts, problems, settings.

use super::remarks;
use crate::commands::adapter::{self, open_adapter};
use crate::commands::{open_model, prompt_encoder, prompt_encoder_beside};
use crate::evaluate::run::distinct_ids;
use crate::model::init::random_params;
use crate::model::weights::is_adapter;
use crate::model::{Model, ParamLayout};
use crate::recipe::{Recipe, SetSource};
use crate::reward::RewardConfig;
use crate::rl::schedule::Schedule;
use crate::rl::trainer::TrainSettings;
use crate::run::checkpoint::Checkpoints;
use crate::run::fingerprint::Fingerprint;
use crate::tasks::dataset::read_problems;
use crate::tasks::order::index_at;
use crate::tasks::{Problem, Split, TaskConfig};
use crate::text::{PromptEncoder, Tokenizer};
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Held-out problems are the same for every seed of a recipe, so that runs are compared on the same ones.
pub const HELD_OUT_SEED: u64 = 0;

/// A model and its way of being asked.
pub struct Start {
    pub model: Model,
    pub prompts: PromptEncoder,
}

/// The model that a run begins with or goes on with: its last checkpoint, the recipe's folder, or a fresh one.
pub fn start(recipe: &Recipe, checkpoints: &Checkpoints) -> Result<Start> {
    let limit = recipe.rollout.max_prompt_tokens;
    let open = |dir: &Path| -> Result<Start> {
        Ok(Start { model: open_model(dir)?, prompts: prompt_encoder(dir, recipe.prompt.clone(), limit)? })
    };
    if let Some(step) = checkpoints.latest() {
        let (dir, base) = (checkpoints.path(step), base_of(recipe, checkpoints)?);
        let prompts = prompt_encoder_beside(&dir, base.as_deref(), recipe.prompt.clone(), limit)?;
        return Ok(Start { model: open_beside(&dir, base.as_deref())?, prompts });
    }
    if let Some(path) = &recipe.model.path {
        let mut start = open(path).context("model.path")?;
        adapter::merge_first(path, &mut start.model);
        return Ok(start);
    }
    let init = recipe.model.init.as_ref().context("[model] needs a path or a table init")?;
    let tokenizer = Tokenizer::byte_level()?;
    let mut config = init.model_config(tokenizer.vocab_size()).context("[model.init]")?;
    config.eos_token_ids = tokenizer.eos_ids().to_vec();
    let layout = ParamLayout::new(&config);
    let params = random_params(&config, &layout, init.std, recipe.seed);
    let prompts = PromptEncoder::new(tokenizer, None, recipe.prompt.clone(), limit)?;
    Ok(Start { model: Model::new(config, params), prompts })
}

/// The model of one of a run's checkpoints.
pub fn model_at(recipe: &Recipe, checkpoints: &Checkpoints, step: usize) -> Result<Model> {
    open_beside(&checkpoints.path(step), base_of(recipe, checkpoints)?.as_deref())
}

fn open_beside(dir: &Path, base: Option<&Path>) -> Result<Model> {
    match base {
        Some(base) => open_adapter(dir, base),
        None => open_model(dir),
    }
}

/// What the run's adapter, if it trains one, lies beside.
fn base_of(recipe: &Recipe, checkpoints: &Checkpoints) -> Result<Option<PathBuf>> {
    let run = checkpoints.dir().parent().unwrap_or(Path::new(""));
    recipe.lora.as_ref().map(|_| adapter::base_of_run(run, weights_kept(recipe))).transpose()
}

/// Puts the recipe's adapter, if it has one, beside the weights that the run begins with.
pub fn add_adapter(recipe: &Recipe, run: &Path, prompts: &PromptEncoder, model: &mut Model) -> Result<()> {
    let Some(lora) = &recipe.lora else { return Ok(()) };
    adapter::begin(lora, weights_kept(recipe), run, prompts.tokenizer(), model, recipe.seed)
        .map_err(|reason| anyhow!("lora.{reason:#}"))
}

/// The recipe's folder that holds the weights as the run begins with them, if any does.
fn weights_kept(recipe: &Recipe) -> Option<&Path> {
    recipe.model.path.as_deref().filter(|path| recipe.warmup.is_none() && !is_adapter(path))
}

/// What a file of training problems held, so that a resumed run notices another one under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    pub problems: usize,
    /// Of their wordings, gold answers and whatever else rewards see.
    pub sha256: String,
}

impl FileMark {
    pub fn of(problems: &[Problem]) -> FileMark {
        let mut fingerprint = Fingerprint::new();
        for p in problems {
            fingerprint.number(p.messages.len() as u64);
            p.messages.iter().flat_map(|m| [&m.role, &m.content]).for_each(|text| fingerprint.text(text));
            fingerprint.text(&p.source);
            fingerprint.text(&p.gold);
            fingerprint.text(p.worked.as_deref().unwrap_or_default());
            fingerprint.text(&p.extra.to_string());
        }
        FileMark { problems: problems.len(), sha256: fingerprint.hex() }
    }
}

/// Where training problems come from.
pub enum Source {
    Files {
        problems: Vec<Problem>,
        /// What each of the files held, in the recipe's order.
        marks: Vec<FileMark>,
    },
    Task(TaskConfig),
}

impl Source {
    pub fn open(recipe: &Recipe) -> Result<Source> {
        if let Some(task) = recipe.data.task() {
            return Ok(Source::Task(task));
        }
        let (mut problems, mut marks) = (Vec::new(), Vec::new());
        for path in &recipe.data.train {
            let of_file = read_problems(path)?;
            marks.push(FileMark::of(&of_file));
            problems.extend(of_file);
        }
        Ok(Source::Files { problems, marks })
    }

    /// What the files held; nothing where problems are generated.
    pub fn marks(&self) -> &[FileMark] {
        match self {
            Source::Files { marks, .. } => marks,
            Source::Task(_) => &[],
        }
    }

    /// The problem at a position of the run's order: a pure function of the seed.
    pub fn problem(&self, seed: u64, position: u64) -> Result<Problem> {
        match self {
            Source::Files { problems, .. } => Ok(problems[index_at(seed, problems.len(), position)].clone()),
            Source::Task(task) => task.problem(Split::Train, seed, position),
        }
    }

    /// A problem with a worked solution to imitate, slips included.
    pub fn worked(&self, seed: u64, position: u64, slips: f64) -> Result<Problem> {
        match self {
            Source::Files { .. } => self.problem(seed, position),
            Source::Task(task) => task.problem_with_slips(Split::Train, seed, position, slips),
        }
    }
}

/// Tokens of the longest prompt among the first of the run's order.
pub fn longest_prompt(recipe: &Recipe, source: &Source, prompts: &PromptEncoder) -> Result<usize> {
    /// They are a fair sample, and read in no time.
    const LOOKED_AT: u64 = 1000;
    let mut longest = 0;
    for position in 0..LOOKED_AT {
        longest = longest.max(prompts.encode(&source.problem(recipe.seed, position)?.messages)?.ids.len());
    }
    Ok(longest)
}

/// A set of problems that training does not see, and how it is evaluated.
pub struct EvaluationSet {
    /// Empty where the recipe has one set without a name.
    pub name: String,
    pub problems: Vec<Problem>,
    pub n: usize,
    pub k: Vec<usize>,
    pub reward: RewardConfig,
    /// Of which files its limit left problems out.
    pub left_out: Option<String>,
}

pub fn evaluation_sets(recipe: &Recipe) -> Result<Vec<EvaluationSet>> {
    let Some(e) = &recipe.evaluate else { return Ok(Vec::new()) };
    let mut sets = Vec::new();
    for planned in e.sets(&recipe.data)? {
        let what = || if planned.name.is_empty() { "[evaluate]".into() } else { format!("the set {:?}", planned.name) };
        let (mut reward, mut left_out) = (recipe.reward.clone(), None);
        let problems = match &planned.source {
            SetSource::Files(files) => {
                let (mut problems, mut counts) = (Vec::new(), Vec::new());
                for path in files {
                    let of_file = read_problems(path)?;
                    counts.push((path.clone(), of_file.len()));
                    problems.extend(of_file);
                }
                left_out = remarks::left_out(&counts, planned.problems);
                problems.truncate(planned.problems);
                distinct_ids(&mut problems);
                problems
            }
            SetSource::Task(task) => {
                let task = task.as_ref().with_context(|| format!("{} needs data = [...]", what()))?;
                // Another task's answers are not the run's.
                if reward.verdict_rule().is_some_and(|rule| !task.rules().contains(&rule)) {
                    reward = RewardConfig::of_rule(task.rules()[0]);
                }
                task.distinct(Split::HeldOut, HELD_OUT_SEED, planned.problems).with_context(what)?
            }
        };
        let (name, k) = (planned.name.clone(), planned.k.clone());
        sets.push(EvaluationSet { name, problems, n: planned.n, k, reward, left_out });
    }
    Ok(sets)
}

pub fn train_settings(recipe: &Recipe, schedule: Schedule) -> TrainSettings {
    TrainSettings {
        seed: recipe.seed,
        steps: recipe.rl.steps,
        prompts_per_step: recipe.rollout.prompts_per_step,
        group_size: recipe.rollout.group_size,
        sampling: recipe.rollout.sampling(),
        dynamic_sampling: recipe.rollout.dynamic_sampling,
        slots: recipe.rollout.slots,
        reward: recipe.reward.clone(),
        advantage: recipe.rl.advantage,
        gamma: recipe.rl.gamma,
        critic: recipe.critic.clone(),
        epochs: recipe.rl.epochs,
        mini_batch_prompts: recipe.rl.mini_batch_prompts,
        micro_batch_tokens: recipe.rl.micro_batch_tokens,
        recompute: recipe.rl.recompute,
        loss: recipe.loss.clone(),
        lr: recipe.rl.lr,
        optimizer: recipe.optimizer.clone(),
        schedule,
    }
}

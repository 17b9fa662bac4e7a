//! The sections of a recipe that belong to no module of their own.

use crate::model::init::InitConfig;
use crate::rl::{Advantage, DynamicSampling};
use crate::rollout::Sampling;
use crate::tasks::TaskConfig;
use crate::tasks::arithmetic::ArithmeticConfig;
use crate::tasks::brackets::BracketsConfig;
use crate::tasks::countdown::CountdownConfig;
use crate::tasks::lists::ListsConfig;
use crate::tasks::modular::ModularConfig;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSection {
    /// Where everything is written; `runs/NAME` without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Rollout steps between checkpoints, beside the first, the last, and the last one of every phase; 0: only those.
    pub checkpoint_every: usize,
    /// Checkpoints kept, beside the first and the one that the present phase began with.
    pub keep_checkpoints: usize,
    /// Also a checkpoint of every step that is evaluated, of which the best so far stays, as `checkpoints/best`.
    pub keep_best: bool,
    /// A folder of warmed-up models, for runs that begin alike to share; every run warms up by itself without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts: Option<PathBuf>,
    /// Writes metrics, evaluations and the probe as TensorBoard's event files too (`tensorboard/` in the run's folder).
    pub tensorboard: bool,
}

impl Default for RunSection {
    fn default() -> Self {
        RunSection {
            dir: None,
            checkpoint_every: 20,
            keep_checkpoints: 2,
            keep_best: false,
            starts: None,
            tensorboard: false,
        }
    }
}

/// Either a checkpoint or a fresh model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// A HuggingFace checkpoint's folder, an adapter's (it is merged first), or a model of the hub, `OWNER/NAME[@REVISION]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A model with random weights and a byte-level tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<InitConfig>,
}

/// Either files of problems or one generated task, `[data.TASK]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Files of problems, `.parquet` or JSON lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<ArithmeticConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brackets: Option<BracketsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub countdown: Option<CountdownConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lists: Option<ListsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modular: Option<ModularConfig>,
}

impl DataSection {
    /// The generated tasks that are named: at most one in a checked recipe.
    pub(super) fn tasks(&self) -> impl Iterator<Item = TaskConfig> {
        let tasks = [
            self.arithmetic.clone().map(TaskConfig::Arithmetic),
            self.brackets.clone().map(TaskConfig::Brackets),
            self.countdown.clone().map(TaskConfig::Countdown),
            self.lists.clone().map(TaskConfig::Lists),
            self.modular.clone().map(TaskConfig::Modular),
        ];
        tasks.into_iter().flatten()
    }

    /// The generated task; none where problems come from files.
    pub fn task(&self) -> Option<TaskConfig> {
        self.tasks().next()
    }
}

/// Supervised warm-up on a generated task's worked solutions, before everything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupSection {
    /// Most supervised steps.
    pub max_steps: usize,
    /// Worked solutions a step.
    pub batch: usize,
    /// Learning rate, constant after its rise.
    pub lr: f64,
    /// Steps over which the rate rises from 0.
    pub lr_warmup_steps: usize,
    /// Ends the warm-up once sampled accuracy on the probe problems reaches this; without it, `max_steps` are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<f64>,
    /// Steps between looks at the accuracy.
    pub check_every: usize,
    /// Training problems sampled at each look (never held-out ones).
    pub probe_problems: usize,
    /// Share of steps that the worked solutions get wrong: the model then errs as often as its teacher.
    pub slips: f64,
    /// A task of its own, `[warmup.task.TASK]`: a model that knows more than the run's rewards ask for, as a pretrained one does.
    /// Without it, the run's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskConfig>,
}

impl Default for WarmupSection {
    fn default() -> Self {
        WarmupSection {
            max_steps: 500,
            batch: 64,
            lr: 1e-3,
            lr_warmup_steps: 20,
            stop_at: None,
            check_every: 25,
            probe_problems: 128,
            slips: 0.0,
            task: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutSection {
    /// Problems of a rollout step.
    pub prompts_per_step: usize,
    /// Responses to each of them.
    pub group_size: usize,
    /// Longer prompts are cut from the left, and counted.
    pub max_prompt_tokens: usize,
    /// Tokens of the longest response, in evaluations and analyses too.
    pub max_new_tokens: usize,
    /// Above 0; the log-probs that updates compare are taken at it.
    pub temperature: f32,
    /// Samples from so many likeliest tokens; 0: from all.
    pub top_k: usize,
    /// Samples from the fewest likeliest tokens whose probabilities, after `top_k`, reach this sum; 1: from all.
    pub top_p: f32,
    /// Sequences decoded at once.
    pub slots: usize,
    /// Groups without a difference between their rewards are dropped and others sampled instead (DAPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_sampling: Option<DynamicSampling>,
}

impl Default for RolloutSection {
    fn default() -> Self {
        RolloutSection {
            prompts_per_step: 128,
            group_size: 8,
            max_prompt_tokens: 1024,
            max_new_tokens: 8192,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            slots: 256,
            dynamic_sampling: None,
        }
    }
}

impl RolloutSection {
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            max_new_tokens: self.max_new_tokens,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlSection {
    /// Rollout steps.
    pub steps: usize,
    /// Peak learning rate, constant but for `[optimizer]`'s warm-up and schedule.
    pub lr: f64,
    /// How rewards become advantages.
    pub advantage: Advantage,
    /// Discount of Reinforce++'s return-to-go, and of GAE.
    pub gamma: f64,
    /// Times that a step's mini-batches are gone through: updates per rollout without new rollouts (TRL's `num_iterations`).
    pub epochs: usize,
    /// Prompts of one optimizer step.
    pub mini_batch_prompts: usize,
    /// Packed tokens of one forward and backward; changes memory and speed, not the gradient.
    pub micro_batch_tokens: usize,
    /// Keep only each layer's input and compute the layer again in the backward.
    pub recompute: bool,
}

impl Default for RlSection {
    fn default() -> Self {
        RlSection {
            steps: 300,
            lr: 1e-6,
            advantage: Advantage::Grpo,
            gamma: 1.0,
            epochs: 1,
            mini_batch_prompts: 32,
            micro_batch_tokens: 8192,
            recompute: false,
        }
    }
}

/// Evaluation before and after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSection {
    /// Files of problems; for a generated task without them, its held-out split.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Problems evaluated (of the held-out split, or at most of the files).
    pub problems: usize,
    /// Responses to each problem.
    pub n: usize,
    /// The K of Pass@K, each at most `n`; a set with a smaller `n` has the smaller ones.
    pub k: Vec<usize>,
    /// 0 is greedy.
    pub temperature: f32,
    /// As the rollout's.
    pub top_p: f32,
    /// Rollout steps between evaluations; 0: only before and after.
    pub every: usize,
    /// Named sets, `[[evaluate.set]]`, in place of the one that `data` or the held-out split is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<EvaluateSet>,
}

impl Default for EvaluateSection {
    fn default() -> Self {
        EvaluateSection {
            data: Vec::new(),
            problems: 200,
            n: 16,
            k: vec![1, 4, 16],
            temperature: 1.0,
            top_p: 1.0,
            every: 0,
            set: Vec::new(),
        }
    }
}

/// One of several evaluations: of files, of another level of the run's task, of another task, or (without any of these)
/// of the held-out split that the run's task has at its own level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSet {
    /// Names its folder, `evaluation-*/NAME`.
    pub name: String,
    /// The run's task at this level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<usize>,
    /// `[evaluate]`'s without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problems: Option<usize>,
    /// `[evaluate]`'s without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Files of problems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// A task of its own, `[evaluate.set.task.TASK]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskConfig>,
}

impl EvaluateSection {
    /// The sets, whichever way they are written, each with what it evaluates. The plain form is one without a name.
    pub fn sets(&self, data: &DataSection) -> Result<Vec<PlannedSet>> {
        let plan = |name: &str, files: &[PathBuf], task: Option<TaskConfig>, problems, n| PlannedSet {
            name: name.into(),
            source: if files.is_empty() { SetSource::Task(task) } else { SetSource::Files(files.to_vec()) },
            problems,
            n,
            k: self.k.iter().copied().filter(|k| *k <= n).collect(),
        };
        if self.set.is_empty() {
            return Ok(vec![plan("", &self.data, data.task(), self.problems, self.n)]);
        }
        let one = |set: &EvaluateSet| {
            let task = match (set.level, &set.task, data.task()) {
                (None, Some(task), _) => Some(task.clone()),
                (Some(level), None, Some(task)) => Some(task.at_level(level)?),
                (Some(level), None, None) => bail!("level = {level}: only a generated task, [data.TASK], has levels"),
                (Some(_), Some(_), _) => bail!("level and task are both there: expected one, a task has its own level"),
                (None, None, task) => task,
            };
            Ok(plan(&set.name, &set.data, task, set.problems.unwrap_or(self.problems), set.n.unwrap_or(self.n)))
        };
        let named = |set: &EvaluateSet| one(set).with_context(|| format!("[[evaluate.set]] {:?}", set.name));
        self.set.iter().map(named).collect()
    }
}

/// A set of an evaluation, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedSet {
    /// Empty for the plain form.
    pub name: String,
    pub source: SetSource,
    /// How many problems, of files at most.
    pub problems: usize,
    pub n: usize,
    pub k: Vec<usize>,
}

/// Where a set's problems come from.
#[derive(Clone, Debug, PartialEq)]
pub enum SetSource {
    Files(Vec<PathBuf>),
    /// The held-out split; none is refused by the recipe's check.
    Task(Option<TaskConfig>),
}

/// The analysis before training, from which `bupo.layer = "auto"` takes the boundary layer, and the one after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisSection {
    /// Most responses analysed, one to a problem: of the first evaluated set where there is one, else of the training data.
    pub responses: usize,
    /// Nats within which an FFN's entropy change counts as integration; 1 % of ln V without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

impl Default for AnalysisSection {
    fn default() -> Self {
        AnalysisSection { responses: 128, threshold: None }
    }
}

/// What is looked at inside the model while it trains (paper, section 8): the same tokens every time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeSection {
    /// Rollout steps between looks; 0: none. With any, also before the first step and after the last.
    pub every: usize,
    /// Most responses that are looked at, and most references.
    pub responses: usize,
    /// Files of problems, which the starting model answers, or of texts or tokens with a response; without them, held-out
    /// problems where the run has any, else its first ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Files of texts or tokens with a response, whose perplexity is followed; without them, the worked solutions of the
    /// probe's problems, where they have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<PathBuf>,
}

impl Default for ProbeSection {
    fn default() -> Self {
        ProbeSection { every: 0, responses: 32, data: Vec::new(), references: Vec::new() }
    }
}

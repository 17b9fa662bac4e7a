//! A run's whole configuration: loaded from TOML, checked before anything heavy starts, written back as resolved.

mod explain;
mod load;

use crate::model::init::InitConfig;
use crate::model::{Compute, ModelConfig};
use crate::reward::RewardConfig;
use crate::rl::{Advantage, BupoConfig, LossConfig, OptimizerConfig};
use crate::rollout::Sampling;
use crate::tasks::arithmetic::ArithmeticConfig;
use crate::text::PromptTemplate;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One run. Defaults are the paper's where it names a value (its section 6 and the released scripts).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub name: String,
    #[serde(default = "one")]
    pub seed: u64,
    /// Threads; all cores without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// What matrix products multiply in: `f32`, or `bf16` with weights, gradients, moments and sums in f32.
    #[serde(default)]
    pub compute: Compute,
    #[serde(default)]
    pub run: RunSection,
    pub model: ModelSection,
    pub data: DataSection,
    #[serde(default)]
    pub prompt: PromptTemplate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmupSection>,
    #[serde(default)]
    pub rollout: RolloutSection,
    #[serde(default)]
    pub reward: RewardConfig,
    #[serde(default)]
    pub rl: RlSection,
    #[serde(default)]
    pub loss: LossConfig,
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    #[serde(default)]
    pub bupo: BupoConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate: Option<EvaluateSection>,
    #[serde(default)]
    pub analysis: AnalysisSection,
}

fn one() -> u64 {
    1
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSection {
    /// Where everything is written; `runs/NAME` without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Rollout steps between checkpoints; 0: only the first and the last.
    pub checkpoint_every: usize,
    /// Checkpoints kept, beside the first.
    pub keep_checkpoints: usize,
}

impl Default for RunSection {
    fn default() -> Self {
        RunSection { dir: None, checkpoint_every: 20, keep_checkpoints: 2 }
    }
}

/// Either a checkpoint folder or a fresh model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<InitConfig>,
}

/// Either files of problems or generated arithmetic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<ArithmeticConfig>,
}

/// Supervised warm-up of a fresh model on worked solutions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupSection {
    /// Most supervised steps.
    pub max_steps: usize,
    /// Worked solutions a step.
    pub batch: usize,
    pub lr: f64,
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
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutSection {
    pub prompts_per_step: usize,
    pub group_size: usize,
    pub max_prompt_tokens: usize,
    pub max_new_tokens: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    /// Sequences decoded at once.
    pub slots: usize,
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
    pub advantage: Advantage,
    /// Discount of Reinforce++'s return-to-go.
    pub gamma: f64,
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
    /// Files of problems; for generated arithmetic without them, the held-out split.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Problems evaluated (of the held-out split, or at most of the files).
    pub problems: usize,
    /// Responses to each problem.
    pub n: usize,
    /// The K of Pass@K.
    pub k: Vec<usize>,
    pub temperature: f32,
    pub top_p: f32,
    /// Rollout steps between evaluations; 0: only before and after.
    pub every: usize,
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
        }
    }
}

/// The analysis before training, from which `bupo.layer = "auto"` takes the boundary layer, and the one after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisSection {
    /// Responses analysed, one to a problem.
    pub responses: usize,
    /// Nats below which an FFN's entropy change counts as integration; a share of ln V without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

impl Default for AnalysisSection {
    fn default() -> Self {
        AnalysisSection { responses: 128, threshold: None }
    }
}

impl Recipe {
    /// The run's folder.
    pub fn dir(&self) -> PathBuf {
        self.run.dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// Everything that can be checked without the model.
    fn check(&self) -> Result<()> {
        ensure!(
            self.name.starts_with(char::is_alphanumeric)
                && self.name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)),
            "name = {:?}: expected letters, digits, - _ and . only, and a letter or digit first (it names a folder)",
            self.name
        );
        ensure!(self.threads != Some(0), "threads = 0: expected at least 1, or no threads key for all cores");
        ensure!(
            self.run.dir.as_ref().is_none_or(|dir| !dir.as_os_str().is_empty()),
            "run.dir is empty: expected a folder, or no run.dir key for runs/{}",
            self.name
        );
        let m = &self.model;
        ensure!(
            m.path.is_some() != m.init.is_some(),
            "[model] needs either path = \"FOLDER\" or a table [model.init], and not both"
        );
        ensure!(
            self.data.train.is_empty() == self.data.arithmetic.is_some(),
            "[data] needs either train = [\"FILE\", ...] or a table [data.arithmetic], and not both"
        );
        if let Some(arithmetic) = &self.data.arithmetic {
            arithmetic.check().context("[data.arithmetic]")?;
        }
        self.prompt.check().context("[prompt]")?;
        if let Some(w) = &self.warmup {
            at_least_one(
                "warmup",
                &[
                    ("max_steps", w.max_steps),
                    ("batch", w.batch),
                    ("check_every", w.check_every),
                    ("probe_problems", w.probe_problems),
                ],
            )?;
            ensure!(w.lr > 0.0 && w.lr.is_finite(), "warmup.lr = {}: expected a positive number", w.lr);
            ensure!((0.0..1.0).contains(&w.slips), "warmup.slips = {}: expected a share from 0 up to 1", w.slips);
            ensure!(
                w.stop_at.is_none_or(|s| s > 0.0 && s <= 1.0),
                "warmup.stop_at = {}: expected an accuracy above 0, up to 1",
                w.stop_at.unwrap_or(0.0)
            );
            ensure!(
                self.data.arithmetic.is_some(),
                "[warmup] imitates worked solutions, which only generated problems have: use [data.arithmetic], or drop [warmup]"
            );
        }
        let r = &self.rollout;
        at_least_one(
            "rollout",
            &[
                ("prompts_per_step", r.prompts_per_step),
                ("group_size", r.group_size),
                ("max_prompt_tokens", r.max_prompt_tokens),
                ("max_new_tokens", r.max_new_tokens),
                ("slots", r.slots),
            ],
        )?;
        ensure!(
            r.temperature > 0.0 && r.temperature.is_finite(),
            "rollout.temperature = {}: expected a positive number (a greedy rollout has nothing to compare)",
            r.temperature
        );
        ensure!(r.top_p > 0.0 && r.top_p <= 1.0, "rollout.top_p = {}: expected above 0, up to 1", r.top_p);
        at_least_one(
            "rl",
            &[("mini_batch_prompts", self.rl.mini_batch_prompts), ("micro_batch_tokens", self.rl.micro_batch_tokens)],
        )?;
        ensure!(
            self.rl.lr > 0.0 && self.rl.lr.is_finite(),
            "rl.lr = {}: expected a positive number (the paper uses 1e-6)",
            self.rl.lr
        );
        ensure!((0.0..=1.0).contains(&self.rl.gamma), "rl.gamma = {}: expected 0 to 1", self.rl.gamma);
        self.reward.check().context("[reward]")?;
        self.loss.check().context("[loss]")?;
        self.optimizer.check().context("[optimizer]")?;
        ensure!(
            self.bupo.steps <= self.rl.steps || self.rl.steps == 0,
            "bupo.steps = {} internal steps, but the run has rl.steps = {}",
            self.bupo.steps,
            self.rl.steps
        );
        if let Some(e) = &self.evaluate {
            at_least_one("evaluate", &[("problems", e.problems), ("n", e.n)])?;
            for k in &e.k {
                ensure!((1..=e.n).contains(k), "evaluate.k holds {k}: expected 1 to evaluate.n = {}", e.n);
            }
            ensure!(
                e.temperature >= 0.0 && e.temperature.is_finite(),
                "evaluate.temperature = {}: expected 0 (greedy) or a positive number",
                e.temperature
            );
            ensure!(e.top_p > 0.0 && e.top_p <= 1.0, "evaluate.top_p = {}: expected above 0, up to 1", e.top_p);
            ensure!(
                !e.data.is_empty() || self.data.arithmetic.is_some(),
                "[evaluate] needs data = [\"FILE\", ...]: only generated arithmetic has a held-out split of its own"
            );
        }
        at_least_one("analysis", &[("responses", self.analysis.responses)])?;
        if let Some(threshold) = self.analysis.threshold {
            ensure!(
                threshold >= 0.0 && threshold.is_finite(),
                "analysis.threshold = {threshold}: expected nats, 0 or more"
            );
        }
        Ok(())
    }

    /// What the recipe names must be there, and its model must fit it: seen from `config.json`, before any weight is read.
    /// A resumed run (`resume`) takes its model from its own checkpoint.
    pub fn check_inputs(&self, resume: bool) -> Result<()> {
        self.check_data()?;
        let Some(dir) = self.model.path.as_ref().filter(|_| !resume) else { return Ok(()) };
        ensure!(
            dir.is_dir(),
            "model.path names {}, but there is no such folder: expected a HuggingFace checkpoint (recipe {})",
            dir.display(),
            self.name
        );
        self.check_against(&ModelConfig::from_dir(dir).context("model.path")?)
    }

    /// The files of problems must be there.
    pub fn check_data(&self) -> Result<()> {
        let files = self.data.train.iter().map(|f| ("data.train", f));
        let files = files.chain(self.evaluate.iter().flat_map(|e| e.data.iter().map(|f| ("evaluate.data", f))));
        for (key, file) in files {
            ensure!(file.is_file(), "{key} names {}, but there is no such file (recipe {})", file.display(), self.name);
        }
        Ok(())
    }

    /// What can only be checked beside a model.
    pub fn check_against(&self, config: &ModelConfig) -> Result<()> {
        if let Err(error) = self.bupo.fixed_policy(config.layers) {
            bail!("bupo.{error:#} (recipe {})", self.name);
        }
        let (prompt, new) = (self.rollout.max_prompt_tokens, self.rollout.max_new_tokens);
        ensure!(
            prompt + new <= config.max_position_embeddings,
            "rollout.max_prompt_tokens = {prompt} and max_new_tokens = {new}, but the model's context is {} tokens: lower one \
             (recipe {})",
            config.max_position_embeddings,
            self.name
        );
        Ok(())
    }
}

fn at_least_one(section: &str, keys: &[(&str, usize)]) -> Result<()> {
    for (key, value) in keys {
        ensure!(*value > 0, "{section}.{key} = 0: expected at least 1");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! Nonsense is refused before anything heavy starts: what can be seen from the recipe alone, its inputs, its model's config.

use super::{EvaluateSection, Recipe, SetSource};
use crate::model::weights::is_adapter;
use crate::model::{LayerIndex, ModelConfig, ParamLayout};
use crate::rl::Advantage;
use crate::rl::groups::lr_scales;
use crate::rl::schedule::check_lengths;
use crate::rl::{PhaseConfig, Stop};
use crate::rollout::sampler::{check_temperature, check_temperature_or_greedy};
use crate::tasks::TaskConfig;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeSet;

impl Recipe {
    /// Everything that can be checked without the model.
    pub(super) fn check(&self) -> Result<()> {
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
        self.check_tasks()?;
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
            if let Some(task) = &w.task {
                self.check_task(task, "warmup.task")?;
            }
            ensure!(
                w.task.is_some() || self.data.task().is_some(),
                "[warmup] imitates worked solutions, which only generated problems have: name a task in [warmup.task.TASK], use \
                 [data.arithmetic] or another task, or drop [warmup]"
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
            r.temperature != 0.0,
            "rollout.temperature = 0: expected more (a greedy rollout has nothing to compare)"
        );
        check_temperature("rollout.temperature =", r.temperature)?;
        ensure!(r.top_p > 0.0 && r.top_p <= 1.0, "rollout.top_p = {}: expected above 0, up to 1", r.top_p);
        if let Some(dynamic) = &r.dynamic_sampling {
            dynamic.check().context("[rollout.dynamic_sampling]")?;
            ensure!(
                r.group_size > 1,
                "rollout.dynamic_sampling drops groups whose rewards are all equal, and rollout.group_size = 1 leaves no others: \
                 expected at least 2"
            );
        }
        at_least_one(
            "rl",
            &[
                ("epochs", self.rl.epochs),
                ("mini_batch_prompts", self.rl.mini_batch_prompts),
                ("micro_batch_tokens", self.rl.micro_batch_tokens),
            ],
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
        if let Some(lora) = &self.lora {
            lora.check().map_err(|reason| anyhow!("lora.{reason}"))?;
        }
        match (&self.critic, self.rl.advantage) {
            (Some(critic), Advantage::Gae) => critic.check().context("[critic]")?,
            (None, Advantage::Gae) => bail!(
                "rl.advantage = \"gae\" takes advantages from a critic: add a section [critic] (an empty one has verl's settings)"
            ),
            (Some(_), _) => bail!("[critic] is read with rl.advantage = \"gae\" only: set that, or drop the section"),
            (None, _) => {}
        }
        let warmup = self.critic.as_ref().map_or(0, |critic| critic.warmup_steps);
        ensure!(
            warmup <= self.rl.steps,
            "critic.warmup_steps = {warmup}, but the run has rl.steps = {}",
            self.rl.steps
        );
        ensure!(
            self.bupo.steps <= self.rl.steps - warmup || self.rl.steps == 0,
            "bupo.steps = {} internal steps, but the run has rl.steps = {}{}",
            self.bupo.steps,
            self.rl.steps,
            if warmup > 0 { format!(", {warmup} of them the critic's warm-up") } else { String::new() }
        );
        self.bupo.guard.check().context("[bupo.guard]")?;
        at_least_one("probe", &[("responses", self.probe.responses)])?;
        if self.bupo.stop == Stop::Guard {
            let (every, steps) = (self.probe.every, self.bupo.steps);
            ensure!(
                every > 0,
                "bupo.stop = \"guard\" needs looks inside, but probe.every = 0: set probe.every, or bupo.stop = \"steps\""
            );
            ensure!(
                steps == 0 || every < steps,
                "bupo.stop = \"guard\" would never judge: the internal phase has bupo.steps = {steps}, and probe.every = {every}. \
                 Set probe.every below bupo.steps"
            );
        }
        ensure!(
            self.bupo.steps == 0 || self.phase.is_empty(),
            "[bupo] and [[phase]] both say which policy is optimized: keep one ([bupo] is short for two phases)"
        );
        check_lengths(&self.phase, self.rl.steps - warmup)?;
        for (i, phase) in self.phase.iter().enumerate() {
            self.check_guard(phase).with_context(|| format!("phase {} ({})", i + 1, phase.policy))?;
        }
        ensure!(
            !self.run.keep_best || self.evaluate.as_ref().is_some_and(|e| e.every > 0),
            "run.keep_best = true without evaluations while the run goes: expected evaluate.every of 1 or more"
        );
        if let Some(e) = &self.evaluate {
            at_least_one("evaluate", &[("problems", e.problems), ("n", e.n)])?;
            for k in &e.k {
                ensure!((1..=e.n).contains(k), "evaluate.k holds {k}: expected 1 to evaluate.n = {}", e.n);
            }
            check_temperature_or_greedy("evaluate.temperature =", e.temperature)?;
            ensure!(e.top_p > 0.0 && e.top_p <= 1.0, "evaluate.top_p = {}: expected above 0, up to 1", e.top_p);
            self.check_sets(e)?;
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

    /// A guard must have something to look at, and something to go on with.
    fn check_guard(&self, phase: &PhaseConfig) -> Result<()> {
        let Some(guard) = phase.guard() else {
            ensure!(phase.guard.is_none(), "guard = {{ ... }} is not used: set stop = \"guard\" as well");
            return Ok(());
        };
        guard.check().context("guard")?;
        let every = self.probe.every;
        ensure!(phase.policy != "final", "stop = \"guard\" ends an internal phase, and this is none");
        let Some(steps) = phase.steps else {
            bail!("stop = \"guard\" needs steps, and a phase after this one to go on with")
        };
        ensure!(
            every > 0 && every < steps,
            "stop = \"guard\" would never judge: the phase has {steps} steps, and probe.every = {every}. Set probe.every above 0 \
             and below steps"
        );
        Ok(())
    }

    /// Problems come from one place, and the reward can judge them.
    fn check_tasks(&self) -> Result<()> {
        let names: Vec<&str> = self.data.tasks().map(|task| task.name()).collect();
        ensure!(
            names.len() + usize::from(!self.data.train.is_empty()) == 1,
            "[data] needs either train = [\"FILE\", ...] or one table [data.TASK], such as [data.arithmetic], and not both{}",
            if names.is_empty() { String::new() } else { format!(": it has data.{}", names.join(" and data.")) }
        );
        self.data.task().map_or(Ok(()), |task| self.check_task(&task, "data"))
    }

    /// A task that the run's reward judges, `[SECTION.TASK]`: its keys are within their bounds, and the reward can judge it.
    fn check_task(&self, task: &TaskConfig, section: &str) -> Result<()> {
        task.check().with_context(|| format!("[{section}.{}]", task.name()))?;
        let Some(rule) = self.reward.verdict_rule() else { return Ok(()) };
        ensure!(
            task.rules().contains(&rule),
            "reward.rule = {:?} cannot judge [{section}.{}]: expected {}",
            rule.name(),
            task.name(),
            task.rules().iter().map(|r| format!("{:?}", r.name())).collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }

    fn check_sets(&self, e: &EvaluateSection) -> Result<()> {
        ensure!(
            e.set.is_empty() || e.data.is_empty(),
            "evaluate.data and [[evaluate.set]] are both there: expected one; files are the data of a set of their own"
        );
        let mut names = BTreeSet::new();
        for set in &e.set {
            let name = &set.name;
            ensure!(
                name.starts_with(char::is_alphanumeric)
                    && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)),
                "[[evaluate.set]] name = {name:?}: expected letters, digits, - _ and . only, and a letter or digit first (it \
                 names a folder)"
            );
            ensure!(names.insert(name), "[[evaluate.set]] {name:?} is there twice: expected names that differ");
            ensure!(
                set.data.is_empty() || (set.level.is_none() && set.task.is_none()),
                "[[evaluate.set]] {name:?} has data beside a level or a task: expected one of them"
            );
            ensure!(
                set.problems != Some(0) && set.n != Some(0),
                "[[evaluate.set]] {name:?}: expected problems and n of at least 1"
            );
            if let Some(task) = &set.task {
                task.check()
                    .with_context(|| format!("[[evaluate.set]] {name:?}: [evaluate.set.task.{}]", task.name()))?;
            }
        }
        for set in e.sets(&self.data)? {
            ensure!(
                set.source != SetSource::Task(None),
                "[evaluate] needs data = [\"FILE\", ...]: only a generated task, [data.TASK], has a held-out split of its own"
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
        // An adapter's shape is its base's, which may have to be fetched: it is checked when the model is open.
        if is_adapter(dir) {
            return Ok(());
        }
        self.check_against(&ModelConfig::from_dir(dir).context("model.path")?)
    }

    /// The files of problems must be there.
    pub fn check_data(&self) -> Result<()> {
        let files = self.data.train.iter().map(|f| ("data.train", f));
        let sets = self.evaluate.iter().flat_map(|e| &e.set).flat_map(|set| &set.data);
        let files =
            files.chain(self.evaluate.iter().flat_map(|e| e.data.iter()).chain(sets).map(|f| ("evaluate.data", f)));
        let files = files.chain(self.probe.data.iter().map(|f| ("probe.data", f)));
        let files = files.chain(self.probe.references.iter().map(|f| ("probe.references", f)));
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
        let mut layout = ParamLayout::new(config);
        if let Some(lora) = &self.lora {
            let reason = |reason| anyhow!("lora.{reason:#} (recipe {})", self.name);
            layout = layout.with_adapter(config, lora, "").map_err(reason)?;
        }
        let scales = lr_scales(&self.optimizer.group, &layout).context("[[optimizer.group]]")?;
        let moving: Vec<bool> = scales.iter().map(|scale| *scale > 0.0).collect();
        // Where the boundary layer is not known yet, the first layer stands for it.
        let stand_in = LayerIndex::all(config.layers).next();
        for (i, phase) in self.phases().iter().enumerate() {
            let what = || format!("phase {} (recipe {})", i + 1, self.name);
            let tap = phase.objective(config.layers, stand_in).with_context(what)?.policy.tap();
            ensure!(
                phase.needs_boundary_layer() || !layout.trained_by(tap).and(&moving).is_empty(),
                "{} optimizes {}, but {}",
                what(),
                phase.policy,
                match self.lora {
                    None => "[[optimizer.group]] freezes everything that it could train",
                    Some(_) => "no adapter below it could learn: see lora.layers and [[optimizer.group]]",
                }
            );
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

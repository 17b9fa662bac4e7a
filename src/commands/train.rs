//! `bupo train`: warm up, look inside, choose the layer, align, train, and say what changed.

mod chart;
mod evaluations;
mod events;
mod probe;
mod remarks;
pub mod setup;
mod starts;
pub mod state;
mod summary;
mod warm;

use super::device::{self, Device, on_device, on_host};
use super::memory;
use crate::analysis::{Analysis, Flow, Reading, Sample, terminal};
use crate::cli::TrainArgs;
use crate::hub::{RepoName, checkpoint};
use crate::model::{Model, Workspace};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::recipe::Recipe;
use crate::rl::adamw::Optimizer;
use crate::rl::critic::Critic;
use crate::rl::groups::lr_scales;
use crate::rl::metrics::{PhaseEnd, StepMetrics};
use crate::rl::schedule::{PhaseConfig, Schedule};
use crate::rl::trainer::Trainer;
use crate::rollout::engine::{Engine, Request, generate};
use crate::run::atomic::{clean_leftovers, rename, write_file_atomic};
use crate::run::checkpoint::{Checkpoints, step_name};
use crate::run::interrupt;
use crate::run::jsonl::{JsonlWriter, keep_steps_until, read_jsonl, write_jsonl};
use crate::run::lock::FolderLock;
use crate::run::manifest::{Manifest, now};
use crate::run::progress::{Progress, say};
use crate::tasks::Problem;
use crate::tasks::seed::derive_seed;
use crate::text::PromptEncoder;
use anyhow::{Context, Result, bail, ensure};
use evaluations::SetScores;
use events::Events;
use probe::{Plan, Probe};
use setup::{EvaluationSet, Source, Start};
use state::{Seen, Standing};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Draws that must not meet those of rollout steps, which count from 1.
const ANALYSIS_STREAM: u64 = u64::MAX;

pub fn run(args: &TrainArgs, threads: Option<usize>) -> Result<()> {
    // A run's folder stands for itself, with the recipe in it.
    let (path, of_run) = (Path::new(&args.recipe), Path::new(&args.recipe).join("recipe.toml"));
    let folder = of_run.is_file().then_some(path);
    let path = if folder.is_some() { &of_run } else { path };
    let mut recipe = Recipe::load(&path.to_string_lossy(), &args.set)?;
    if args.print {
        print!("{}", recipe.to_toml()?);
        return Ok(());
    }
    recipe.check_data()?;
    // What the run's folder keeps is the snapshot that it began with, whatever the name means tomorrow.
    if let Some(path) = recipe.model.path.as_mut().filter(|path| !path.is_dir())
        && RepoName::model(&path.to_string_lossy()).is_some()
    {
        *path = checkpoint(path).context("model.path")?;
    }
    super::start_threads(threads.or(recipe.threads))?;
    let beside = path.parent().filter(|dir| args.resume && Checkpoints::new(dir).latest().is_some());
    let dir = args.dir.as_deref().or(folder).or(beside).map_or_else(|| recipe.dir(), Path::to_path_buf);
    let checkpoints = Checkpoints::new(&dir);
    match (args.resume, checkpoints.latest()) {
        (false, Some(_)) => {
            bail!("{} already holds a run: go on with --resume, or choose another folder with --dir", dir.display())
        }
        (true, None) => bail!("{} holds no checkpoint to resume from: start without --resume", dir.display()),
        (false, None) if dir.join("metrics.jsonl").exists() || dir.join("evaluation-before").exists() => bail!(
            "{} holds results of a run, but no checkpoint to go on from: move it away, or choose another folder with --dir",
            dir.display()
        ),
        _ => {}
    }
    interrupt::install()?;
    if args.while_stdin {
        interrupt::when_stdin_ends();
    }
    on_device!(device::open(recipe.device, recipe.compute)?, backend => {
        let backend = backend.offloading(recipe.optimizer.offload);
        run_on(Run::open(recipe, dir, checkpoints, backend)?)
    })
}

fn run_on<B: Device>(mut run: Run<B>) -> Result<()> {
    match run.checkpoints.latest() {
        Some(step) => run.resume(step)?,
        None => {
            if !run.begin()? {
                return Ok(());
            }
        }
    }
    run.train()
}

/// A run in progress: everything but the trainer's own state.
struct Run<B: Device> {
    recipe: Recipe,
    dir: PathBuf,
    checkpoints: Checkpoints,
    source: Source,
    sets: Vec<EvaluationSet>,
    prompts: PromptEncoder,
    /// What is said as it begins.
    remarks: Vec<String>,
    manifest: Manifest,
    started: Instant,
    plan: Option<Plan>,
    // What `begin` or `resume` found:
    model: Option<Model<B>>,
    optimizer: Option<Optimizer<B>>,
    critic: Option<Critic<B>>,
    /// What `"auto"` stands for, once it was looked for.
    boundary: Option<LayerIndex>,
    schedule: Schedule,
    probe: Option<Probe>,
    /// The steps that the guard ended phases with.
    ended_early: Vec<usize>,
    _lock: FolderLock,
    step: usize,
    /// The step that the present phase began after, whose checkpoint stays.
    turn: Option<usize>,
    /// Where the next step's problems begin in the run's order.
    position: u64,
}

impl<B: Device> Run<B> {
    /// Checks everything that can be checked before anything heavy starts: model, data, template, folder.
    fn open(recipe: Recipe, dir: PathBuf, checkpoints: Checkpoints, backend: B) -> Result<Run<B>> {
        recipe.check_inputs(checkpoints.latest().is_some())?;
        let Start { model, prompts } = setup::start(&recipe, &checkpoints)?;
        recipe.check_against(&model.config)?;
        let source = Source::open(&recipe)?;
        let sets = setup::evaluation_sets(&recipe)?;
        // A template that fails does so now.
        prompts.encode(&source.problem(recipe.seed, 0)?.messages)?;
        let remarks = remarks::of(&recipe, &source, &sets, &prompts)?;
        let plan = match checkpoints.latest() {
            Some(_) => None,
            None => {
                let evaluated = sets.first().map_or(&[][..], |set| &set.problems);
                Plan::open(&recipe, &source, evaluated, &prompts, &model)?
            }
        };
        let longest = || setup::longest_prompt(&recipe, &source, &prompts);
        memory::check(&backend, &recipe, &setup::train_settings(&recipe, Schedule::grpo()), &model.config, longest)?;
        checkpoints.create()?;
        let lock = FolderLock::take(&dir)?;
        clean_leftovers(&dir)?;
        let manifest = Manifest::new(&recipe.name, recipe.seed, rayon::current_num_threads());
        Ok(Run {
            recipe,
            dir,
            checkpoints,
            source,
            sets,
            prompts,
            remarks,
            manifest,
            started: Instant::now(),
            plan,
            model: Some(model.on(backend)),
            optimizer: None,
            critic: None,
            boundary: None,
            schedule: Schedule::grpo(),
            probe: None,
            ended_early: Vec::new(),
            _lock: lock,
            step: 0,
            turn: None,
            position: 0,
        })
    }

    /// A new run up to its first checkpoint. False if it was interrupted before there was anything to save.
    fn begin(&mut self) -> Result<bool> {
        write_file_atomic(&self.dir.join("recipe.toml"), self.recipe.to_toml()?.as_bytes())?;
        self.manifest.write(&self.dir.join("manifest.json"))?;
        let mut model = self.model.take().context("a run begins with a model")?;
        say(&format!(
            "{}: {} layers, {:.2} M parameters, seed {}, {} threads",
            self.recipe.name,
            model.config.layers,
            model.layout.len() as f64 / 1e6,
            self.recipe.seed,
            rayon::current_num_threads()
        ));
        self.remarks.iter().for_each(|remark| say(remark));
        if !starts::warm_up(&self.recipe, &self.source, &self.prompts, &mut model)? {
            interrupt::stop("interrupted during the warm-up: nothing was saved, start again");
            return Ok(false);
        }
        let analysis = self.analyse(&model, "before")?;
        println!("{}\n{}\n", terminal::table(&analysis), terminal::summary(&analysis));
        self.choose_schedule(&model, &analysis)?;
        let mut critic = None;
        let model = on_host(model, |model| {
            setup::add_adapter(&self.recipe, &self.dir, &self.prompts, model)?;
            // Beside the policy as it is after the warm-up.
            critic = self.recipe.critic.as_ref().map(|config| Critic::beside(model, config)).transpose()?;
            Ok(())
        })?;
        let scales = lr_scales(&self.recipe.optimizer.group, &model.layout)?;
        let optimizer = Optimizer::begin(&model.backend, &model.layout, scales);
        let critic = critic.map(|critic| critic.on(&model.backend));
        if let Some(plan) = self.plan.take() {
            let mut probe = Probe::make(plan, &self.recipe, &self.prompts, &model, &self.dir)?;
            let row = probe.look(&model, 0, &self.schedule)?;
            write_jsonl(&probe::path(&self.dir), &[row])?;
            self.probe = Some(probe);
        }
        self.save(&model, &optimizer, critic.as_ref(), 0)?;
        (self.model, self.optimizer, self.critic) = (Some(model), Some(optimizer), critic);
        Ok(true)
    }

    /// The run's phases, with the boundary layer where the recipe says `"auto"`.
    fn choose_schedule(&mut self, model: &Model<B>, analysis: &Analysis) -> Result<()> {
        let layers = model.config.layers;
        if self.recipe.phases().iter().any(PhaseConfig::needs_boundary_layer) {
            let found = analysis.boundary_layer.map(|layer| LayerIndex::from_one_based(layer, layers));
            self.boundary = found.transpose()?;
            if let Some(layer) = self.boundary {
                say(&format!("\"auto\": the boundary layer of this model is {layer}"));
            }
        }
        self.schedule = self.phases_of(layers)?;
        Ok(())
    }

    /// The recipe's phases, which begin when the policy does.
    fn phases_of(&self, layers: usize) -> Result<Schedule> {
        let warmup = self.recipe.critic.as_ref().map_or(0, |critic| critic.warmup_steps);
        Ok(Schedule::new(&self.recipe.phases(), layers, self.boundary)?.after(warmup))
    }

    /// Takes up a run where its checkpoint of `step` left it.
    fn resume(&mut self, step: usize) -> Result<()> {
        let model = self.model.as_ref().context("a run resumes with a model")?;
        let state = state::load(&self.checkpoints.path(step), model, &self.recipe)?;
        let then = state::same_recipe(&self.recipe, &state.recipe, &self.dir)?;
        let remark = state::same_data(self.source.marks(), state.standing.data.as_deref(), &self.recipe.data.train)?;
        remark.iter().for_each(|remark| say(remark));
        if self.recipe.rl.steps > then.rl.steps {
            self.lengthen(then.rl.steps)?;
        }
        let (standing, layers) = (state.standing, model.config.layers);
        self.boundary = standing.boundary.map(|layer| LayerIndex::from_one_based(layer, layers)).transpose()?;
        self.schedule = self.phases_of(layers)?;
        standing.ended_early.iter().for_each(|step| self.schedule.end_internal_at(*step));
        let backend = model.backend.clone();
        self.optimizer = Some(state.optimizer.on(&backend));
        self.critic = state.critic.map(|critic| critic.on(&backend));
        self.step = step;
        self.position = standing.position;
        self.ended_early = standing.ended_early;
        self.probe = Probe::resume(&self.recipe, &self.dir, standing.guard)?;
        for file in ["metrics.jsonl", "completions.jsonl", "probe.jsonl"] {
            keep_steps_until(&self.dir.join(file), step)?;
        }
        self.manifest.go_on(&self.dir.join("manifest.json"));
        say(&format!("{}: going on after step {step} of {}", self.recipe.name, self.recipe.rl.steps));
        Ok(())
    }

    /// Makes more steps of a run that had `steps`: what was seen after the last one was seen after a step.
    fn lengthen(&self, steps: usize) -> Result<()> {
        let (after, of_step) = (self.evaluation_dir("after"), self.evaluation_dir(&step_name(steps)));
        if after.is_dir() && !of_step.exists() {
            rename(&after, &of_step)?;
        }
        write_file_atomic(&self.dir.join("recipe.toml"), self.recipe.to_toml()?.as_bytes())
    }

    /// Rollout steps, from where the run stands to its end.
    fn train(mut self) -> Result<()> {
        let (mut model, optimizer) = (
            self.model.take().context("a run trains a model")?,
            self.optimizer.take().context("a run trains with an optimizer")?,
        );
        let (before, from) = (self.before(&mut model)?, self.step);
        let mut events = Events::open(self.recipe.run.tensorboard, &self.dir, self.step)?;
        if self.step == 0 {
            events.scores(0, &before)?;
        }
        // A model with an adapter is its own reference.
        let reference = match self.recipe.loss.kl_coef != 0.0 && self.recipe.lora.is_none() {
            true => Some(
                setup::model_at(&self.recipe, &self.checkpoints, 0)
                    .context("the reference model of the KL penalty")?
                    .on(model.backend.clone()),
            ),
            false => None,
        };
        let settings = setup::train_settings(&self.recipe, self.schedule.clone());
        let (prompts, steps, every) = (self.prompts.clone(), self.recipe.rl.steps, self.recipe.run.checkpoint_every);
        let mut trainer = Trainer::new(settings, model, optimizer, self.critic.take(), reference, &prompts)?;
        let mut metrics = JsonlWriter::open(&self.dir.join("metrics.jsonl"))?;
        let mut completions = JsonlWriter::open(&self.dir.join("completions.jsonl"))?;
        let mut progress = Progress::new("train", steps as u64);
        progress.inc(self.step as u64);
        if self.step == 0 {
            self.show_first_prompt()?;
        }
        if !evaluations::are_saved(&self.sets, &self.checkpoints.path(from), &self.evaluation_dir(&step_name(from))) {
            // What the run was stopped before.
            self.evaluate_if_due(&mut trainer.model, &mut events)?;
        }
        self.mark_best()?;
        for step in from + 1..=steps {
            let position = self.position;
            let mut report = match trainer.step(step, &mut |n| self.draw(n), &mut |_| ()) {
                Ok(report) => report,
                Err(error) => {
                    progress.finish();
                    self.position = position;
                    return Err(self.keep_what_is_whole(&trainer, error));
                }
            };
            self.look_inside(&mut trainer, &mut report.metrics, &mut events)?;
            events.metrics(&report.metrics)?;
            metrics.append(std::slice::from_ref(&report.metrics))?;
            completions.append(&report.completions)?;
            self.step = step;
            progress.message(summary::line(&report.metrics));
            progress.inc(1);
            summary::explain(&report.metrics, &self.recipe);
            let stop = interrupt::requested();
            self.turn = trainer.settings.schedule.turn_until(step);
            let is_compared = self.recipe.run.keep_best && self.is_evaluated(step);
            if stop || step == steps || every > 0 && step % every == 0 || self.turn == Some(step) || is_compared {
                self.save(&trainer.model, &trainer.optimizer, trainer.critic.as_ref(), step)?;
            }
            if stop && step < steps {
                progress.finish();
                interrupt::stop(&format!(
                    "stopped after step {step}, saved in {}. Go on with:\n  bupo train {} --resume",
                    self.checkpoints.path(step).display(),
                    self.dir.display()
                ));
                return Ok(());
            }
            self.evaluate_if_due(&mut trainer.model, &mut events)?;
        }
        progress.finish();
        drop(metrics);
        let (mut model, trained_by) = (trainer.model, trainer.settings.schedule);
        let after = self.scores(&mut model, "after", steps)?;
        events.scores(steps, &after)?;
        self.mark_best()?;
        self.prune()?;
        let analysis = self.analyse(&model, "after")?;
        self.manifest.finished = Some(now());
        self.manifest.write(&self.dir.join("manifest.json"))?;
        summary::print(&summary::Ending {
            dir: &self.dir,
            checkpoint: &self.checkpoints.path(steps),
            best: self.best(),
            schedule: &trained_by,
            before: &before,
            after: &after,
            steps: &read_jsonl(&self.dir.join("metrics.jsonl"))?,
            analysis_before: self.read_analysis("before"),
            analysis_after: &analysis,
            seconds: self.started.elapsed().as_secs_f64(),
            resumed: from > 0,
            chart: chart::of_run(&self.dir),
        });
        Ok(())
    }

    /// Looks inside after a step where a look is due; the guard may make it the last of the internal phase.
    fn look_inside(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        metrics: &mut StepMetrics,
        events: &mut Events,
    ) -> Result<()> {
        let (step, steps) = (metrics.step, self.recipe.rl.steps);
        let Some(probe) = self.probe.as_mut().filter(|probe| probe.due(step, steps)) else { return Ok(()) };
        let start = Instant::now();
        let schedule = &mut trainer.settings.schedule;
        let row = probe.look(&trainer.model, step, schedule)?;
        JsonlWriter::open(&probe::path(&self.dir))?.append(std::slice::from_ref(&row))?;
        events.probe(&row)?;
        say(&probe.line(&row));
        if let Some(reason) = row.guard.as_ref().and_then(|guard| guard.reason.as_ref()) {
            let early = schedule.phase_at(step).last_step.map_or(0, |last| last - step);
            schedule.end_internal_at(step);
            self.ended_early.push(step);
            metrics.phase_end = Some(PhaseEnd::Guard);
            say(&format!("step {step}: the guard ends the internal phase {early} steps early, since {reason}"));
        }
        metrics.seconds.probe = Some(start.elapsed().as_secs_f64());
        Ok(())
    }

    /// The next `n` problems of the run's order.
    fn draw(&mut self, n: usize) -> Result<Vec<Problem>> {
        let from = self.position;
        self.position += n as u64;
        (from..self.position).map(|at| self.source.problem(self.recipe.seed, at)).collect()
    }

    /// The first prompt with its ids: most mistakes with templates show here.
    fn show_first_prompt(&self) -> Result<()> {
        let prompt = self.prompts.encode(&self.source.problem(self.recipe.seed, 0)?.messages)?;
        let text = self.prompts.decode_whole(&prompt.ids)?;
        let shown: Vec<String> = prompt.ids.iter().take(24).map(u32::to_string).collect();
        let more = if prompt.ids.len() > 24 { " ..." } else { "" };
        say(&format!("first prompt ({} tokens): {text:?}\n  ids: {}{more}", prompt.ids.len(), shown.join(" ")));
        Ok(())
    }

    /// A step that failed while it sampled or judged (a reward's program, say) has changed nothing: what the step before left is
    /// saved, where it is not yet, and the error says so.
    fn keep_what_is_whole(&self, trainer: &Trainer<'_, B>, error: anyhow::Error) -> anyhow::Error {
        let (step, path) = (self.step, self.checkpoints.path(self.step));
        if !trainer.is_untouched() || path.is_dir() {
            return error;
        }
        let (go_on, failed) =
            (format!("bupo train {} --resume", self.dir.display()), format!("step {} failed", step + 1));
        match self.save(&trainer.model, &trainer.optimizer, trainer.critic.as_ref(), step) {
            Ok(()) => {
                error.context(format!("{failed}, and step {step} is saved in {}: go on with {go_on}", path.display()))
            }
            Err(second) => error.context(format!("{failed}, and step {step} could not be saved ({second:#})")),
        }
    }

    /// The scores that the run began with: where they are not there, its first checkpoint's.
    fn before(&self, model: &mut Model<B>) -> Result<SetScores> {
        let (checkpoint, dir) = (self.checkpoints.path(0), self.evaluation_dir("before"));
        if self.step == 0 || evaluations::are_saved(&self.sets, &checkpoint, &dir) {
            return self.scores(model, "before", 0);
        }
        let first = setup::model_at(&self.recipe, &self.checkpoints, 0).context("the model that the run began with")?;
        self.scores(&mut first.on(model.backend.clone()), "before", 0)
    }

    /// The evaluation after the step that was last, where one is due; the one after the last of all is its own.
    fn evaluate_if_due(&self, model: &mut Model<B>, events: &mut Events) -> Result<()> {
        let step = self.step;
        if self.is_evaluated(step) {
            events.scores(step, &self.scores(model, &step_name(step), step)?)?;
            self.mark_best()?;
        }
        Ok(())
    }

    /// Whether a step between the first and the last is one that is evaluated.
    fn is_evaluated(&self, step: usize) -> bool {
        let every = self.recipe.evaluate.as_ref().map_or(0, |e| e.every);
        every > 0 && step > 0 && step.is_multiple_of(every) && step < self.recipe.rl.steps
    }

    /// Evaluates every set on the model of a step; a time that was evaluated before is read back.
    fn scores(&self, model: &mut Model<B>, time: &str, step: usize) -> Result<SetScores> {
        let (dir, checkpoint) = (self.evaluation_dir(time), self.checkpoints.path(step));
        evaluations::scores(&self.recipe, &self.sets, &self.prompts, model, &checkpoint, &dir, time)
    }

    fn evaluation_dir(&self, time: &str) -> PathBuf {
        self.dir.join(format!("evaluation-{time}"))
    }

    /// Samples responses from the final policy and analyses them.
    fn analyse(&self, model: &Model<B>, name: &str) -> Result<Analysis> {
        let section = &self.recipe.analysis;
        let problems: Vec<Problem> = match self.sets.first() {
            Some(set) => set.problems.iter().take(section.responses).cloned().collect(),
            None => (0..section.responses as u64)
                .map(|i| self.source.problem(self.recipe.seed, i))
                .collect::<Result<_>>()?,
        };
        let mut requests = Vec::with_capacity(problems.len());
        for problem in &problems {
            let seed = derive_seed(self.recipe.seed, ANALYSIS_STREAM, problem.id, 0);
            requests.push(Request { prompt: self.prompts.encode(&problem.messages)?.ids, seeds: vec![seed] });
        }
        let r = &self.recipe.rollout;
        let engine = Engine {
            policy: InternalPolicy::Final,
            sampling: r.sampling(),
            eos_ids: self.prompts.eos_ids(),
            slots: r.slots,
        };
        let mut ws = Workspace::new(model);
        let mut progress = Progress::new("analyze", 2 * requests.len() as u64);
        let completions = generate(model, &mut ws, &engine, &requests, &mut |n| progress.inc(n))?;
        let samples: Vec<Sample> = requests
            .into_iter()
            .zip(completions.into_iter().flatten())
            .map(|(request, completion)| {
                let response_start = request.prompt.len();
                Sample { ids: [request.prompt, completion.ids].concat(), response_start }
            })
            .collect();
        // A boundary layer that is yet to be found is not known before the analysis.
        let schedule = Schedule::new(&self.recipe.phases(), model.config.layers, self.boundary);
        let chosen = match schedule.ok().and_then(|schedule| schedule.internal_policy_at(1)) {
            Some(InternalPolicy::Layer(layer)) => Some(layer),
            _ => None,
        };
        let mut flow = Flow::new(model.config.layers, Reading { chosen, ..Reading::default() });
        flow.add(model, &mut ws, &samples, &mut |n| progress.inc(n))?;
        progress.finish();
        let checkpoint = self.checkpoints.path(self.step).display().to_string();
        let analysis = flow.finish(model, &checkpoint, section.threshold)?;
        super::analyze::save(&self.analysis_dir(name), &analysis)?;
        Ok(analysis)
    }

    fn analysis_dir(&self, name: &str) -> PathBuf {
        self.dir.join(format!("analysis-{name}"))
    }

    fn read_analysis(&self, name: &str) -> Option<Analysis> {
        let bytes = crate::run::atomic::read(&self.analysis_dir(name).join(super::analyze::RESULT)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes a checkpoint whole, and lets old ones go.
    fn save(&self, model: &Model<B>, optimizer: &Optimizer<B>, critic: Option<&Critic<B>>, step: usize) -> Result<()> {
        let standing = Standing {
            position: self.position,
            boundary: self.boundary.map(LayerIndex::one_based),
            ended_early: self.ended_early.clone(),
            data: Some(self.source.marks().to_vec()),
            guard: self.probe.as_ref().map_or_else(Seen::default, |probe| probe.seen.clone()),
        };
        let path: &Path = &self.checkpoints.path(step);
        state::save(path, model, self.prompts.tokenizer(), optimizer, critic, &self.recipe, standing, step)?;
        ensure!(path.is_dir(), "the checkpoint {} did not appear", path.display());
        self.prune()
    }

    /// Lets old checkpoints go, but for where the present phase began and the best one.
    fn prune(&self) -> Result<()> {
        let best = self.best().map(|best| best.step);
        let also: Vec<usize> = self.turn.into_iter().chain(best).collect();
        self.checkpoints.prune(self.recipe.run.keep_checkpoints, &also)
    }

    /// The best checkpoint that was evaluated so far, where the recipe has it kept.
    fn best(&self) -> Option<evaluations::Best> {
        let steps = self.checkpoints.steps().into_iter().filter(|step| *step <= self.step);
        let evaluated = steps.map(|step| (step, self.checkpoints.path(step), self.evaluation_dir(&self.time_of(step))));
        evaluations::best(self.sets.first()?, evaluated).filter(|_| self.recipe.run.keep_best)
    }

    /// Gives the best checkpoint its name.
    fn mark_best(&self) -> Result<()> {
        self.best().map_or(Ok(()), |best| self.checkpoints.mark_best(best.step))
    }

    /// What the evaluation of a step's model is called.
    fn time_of(&self, step: usize) -> String {
        match step {
            0 => "before".to_string(),
            step if step == self.recipe.rl.steps => "after".to_string(),
            step => step_name(step),
        }
    }
}

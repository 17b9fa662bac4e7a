//! `bupo sft`: supervised fine-tuning, on the step that the warm-up takes.

mod data;

use super::adapter::{self, asked, base_of_run, merge_first, open_adapter, opens_with};
use super::device::{self, Device, on_device};
use super::evaluate::write_json;
use super::memory;
use super::train::state::{Counters, save_part};
use super::{open_model, prompt_encoder, prompt_encoder_beside, template};
use crate::cli::SftArgs;
use crate::commands::run_folder::checkpoint;
use crate::compute::Backend;
use crate::compute::backend::Kind;
use crate::model::weights::is_adapter;
use crate::model::{Compute, Keep, LoraConfig, Model, Workspace};
use crate::rl::OptimizerConfig;
use crate::rl::adamw::Optimizer;
use crate::rl::supervised::{Example, SupervisedSettings, supervised_loss, supervised_step};
use crate::run::atomic::{clean_leftovers, write_dir_atomic};
use crate::run::checkpoint::{Checkpoints, load_state};
use crate::run::interrupt;
use crate::run::jsonl::{JsonlWriter, keep_steps_until};
use crate::run::lock::FolderLock;
use crate::run::manifest::{Manifest, now};
use crate::run::progress::{Progress, say};
use crate::tasks::order::index_at;
use crate::text::{PromptEncoder, PromptTemplate};
use anyhow::{Context, Result, anyhow, bail, ensure};
use data::{Counts, Data};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Instant;

/// Everything that decides what is trained, as `sft.json` and every checkpoint keep it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    model: PathBuf,
    data: Vec<PathBuf>,
    /// A hash of the examples.
    fingerprint: String,
    prompt: PromptTemplate,
    epochs: usize,
    steps: usize,
    batch: usize,
    lr: f64,
    optimizer: OptimizerConfig,
    max_length: usize,
    seed: u64,
    micro_batch_tokens: usize,
    recompute: bool,
    compute: Compute,
    #[serde(default)]
    lora: Option<LoraConfig>,
    counts: Counts,
}

/// What a checkpoint keeps beside the moments.
#[derive(Serialize, Deserialize)]
struct Metadata {
    step: usize,
    #[serde(flatten)]
    counters: Counters,
    sft: Settings,
}

/// One line of `metrics.jsonl`. Means are over trained tokens, nats each.
#[derive(Debug, Default, Serialize)]
struct StepRow {
    step: usize,
    epoch: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entropy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_norm: Option<f64>,
    lr: f64,
    tokens: usize,
    trained_tokens: usize,
    skipped_steps: u64,
    seconds: f64,
}

pub fn run(args: &SftArgs) -> Result<()> {
    check(args)?;
    let checkpoints = Checkpoints::new(&args.out);
    let last = checkpoints.latest();
    match (args.resume, last) {
        (false, Some(_)) => {
            bail!("{} already holds a run: go on with --resume, or choose another --out", args.out.display())
        }
        (true, None) => bail!("{} holds no checkpoint to resume from: start without --resume", args.out.display()),
        _ => {}
    }
    let start = match last {
        Some(step) => checkpoints.path(step),
        None => checkpoint(&args.model)?,
    };
    // The folder of the weights that an adapter lies beside, unless they are another adapter's, merged: those are kept with the run.
    let kept = asked(&args.adapter).and_then(|_| checkpoint(&args.model).ok()).filter(|dir| !is_adapter(dir));
    let base = match (last, asked(&args.adapter)) {
        (Some(_), Some(_)) => Some(base_of_run(&args.out, kept.as_deref())?),
        _ => None,
    };
    let device = device::open(args.numbers.device, args.numbers.compute)?.offloading(args.offload);
    let mut model = match &base {
        Some(base) => open_adapter(&start, base)?,
        None => open_model(&start)?,
    };
    if last.is_none() {
        merge_first(&start, &mut model);
    }
    let context = model.config.max_position_embeddings;
    ensure!(args.max_length <= context, "--max-length {}: the model's context is {context} tokens", args.max_length);
    let template = template(&args.prompt, &start);
    let prompts = match &base {
        Some(base) => prompt_encoder_beside(&start, Some(base), template.clone(), context)?,
        None => prompt_encoder(&start, template.clone(), context)?,
    };
    let data = Data::read(args, &prompts)?;
    let compute = on_device!(&device, backend => backend.compute());
    let settings = settings(args, &data, template, compute);
    interrupt::install()?;
    checkpoints.create()?;
    let _lock = FolderLock::take(&args.out)?;
    clean_leftovers(&args.out)?;
    if let Some(lora) = settings.lora.as_ref().filter(|_| last.is_none()) {
        adapter::begin(lora, kept.as_deref(), &args.out, prompts.tokenizer(), &mut model, args.seed)?;
    }
    let keep = Keep::for_backward(settings.recompute);
    let how = SupervisedSettings { micro_batch_tokens: settings.micro_batch_tokens, keep };
    let (mut restored, mut step) = (None, 0);
    on_device!(&device, backend => {
        let longest = || data.longest(args.batch);
        memory::check_supervised(backend, &model.config, settings.lora.as_ref(), longest, &how)?;
    });
    if let Some(last) = last {
        let mut optimizer = Optimizer::new(&model.layout);
        let what = || format!("the training state in {}", start.display());
        let (metadata, arrays) = load_state(&start)?;
        let metadata: Metadata = serde_json::from_value(metadata).with_context(what)?;
        same_settings(&settings, &metadata.sft)?;
        metadata.counters.restore(arrays, &mut optimizer).with_context(what)?;
        (restored, step) = (Some(optimizer), last);
    }
    write_json(&args.out.join("sft.json"), &settings)?;
    let manifest = args.out.join("manifest.json");
    let mut about = Manifest::new("sft", args.seed, rayon::current_num_threads());
    about.write(&manifest)?;
    keep_steps_until(&args.out.join("metrics.jsonl"), step)?;
    let mut run = Sft { args, settings, data, prompts, checkpoints, step };
    let finished = on_device!(device, backend => {
        let mut optimizer = match restored {
            Some(optimizer) => optimizer.on(&backend),
            None => Optimizer::new_on(&backend, &model.layout),
        };
        run.train(&mut model.on(backend), &mut optimizer, &how)?
    });
    if finished {
        about.finished = Some(now());
        about.write(&manifest)?;
    }
    Ok(())
}

fn check(args: &SftArgs) -> Result<()> {
    for (flag, value) in [
        ("--epochs", args.epochs),
        ("--batch", args.batch),
        ("--micro-batch-tokens", args.micro_batch_tokens),
        ("--max-steps", args.max_steps.unwrap_or(1)),
        ("--eval-every", args.eval_every.unwrap_or(1)),
        ("--checkpoint-every", args.checkpoint_every.unwrap_or(1)),
    ] {
        ensure!(value > 0, "{flag} 0: expected at least 1");
    }
    ensure!(args.max_length > 1, "--max-length {}: expected at least 2 tokens", args.max_length);
    ensure!(args.lr > 0.0 && args.lr.is_finite(), "--lr {}: expected a positive number such as 2e-5", args.lr);
    ensure!((0.0..1.0).contains(&args.eval_share), "--eval-share {}: expected a share from 0 up to 1", args.eval_share);
    for file in args.data.iter().chain(&args.eval_data) {
        ensure!(file.is_file(), "{}: there is no such file of examples", file.display());
    }
    if let Some(lora) = asked(&args.adapter) {
        lora.check().map_err(|reason| anyhow!("--lora: {reason}"))?;
    }
    optimizer_config(args).check()
}

fn optimizer_config(args: &SftArgs) -> OptimizerConfig {
    OptimizerConfig {
        weight_decay: args.weight_decay,
        grad_clip: args.grad_clip,
        warmup_steps: args.warmup_steps,
        schedule: args.schedule,
        ..OptimizerConfig::default()
    }
}

fn settings(args: &SftArgs, data: &Data, prompt: PromptTemplate, compute: Compute) -> Settings {
    let whole = args.epochs.saturating_mul(data.train.len().div_ceil(args.batch));
    Settings {
        model: args.model.clone(),
        data: args.data.clone(),
        fingerprint: data.fingerprint(),
        prompt,
        epochs: args.epochs,
        steps: args.max_steps.map_or(whole, |most| most.min(whole)),
        batch: args.batch,
        lr: args.lr,
        optimizer: optimizer_config(args),
        max_length: args.max_length,
        seed: args.seed,
        micro_batch_tokens: args.micro_batch_tokens,
        recompute: args.recompute,
        compute,
        lora: asked(&args.adapter),
        counts: data.counts.clone(),
    }
}

/// A resumed run equals one never stopped only under the settings and examples that it began with.
fn same_settings(now: &Settings, then: &Settings) -> Result<()> {
    let json = |s: &Settings| serde_json::to_value(s).context("settings cannot be compared");
    let (now, then) = (json(now)?, json(then)?);
    let differs = |(key, value): (&String, &serde_json::Value)| {
        let old = then.get(key).unwrap_or(&serde_json::Value::Null);
        // Where the model and the files lie is free: what they held is in the checkpoint and in the fingerprint.
        (old != value && !["model", "data"].contains(&key.as_str())).then(|| format!("{key} was {old} and is {value}"))
    };
    let differing: Vec<String> = now.as_object().into_iter().flatten().filter_map(differs).collect();
    ensure!(
        differing.is_empty(),
        "the settings are not those that this run began with, and would not continue it: {}",
        differing.join("; ")
    );
    Ok(())
}

struct Sft<'a> {
    args: &'a SftArgs,
    settings: Settings,
    data: Data,
    prompts: PromptEncoder,
    checkpoints: Checkpoints,
    step: usize,
}

impl Sft<'_> {
    /// Steps from where the run stands to its end. False if it was interrupted.
    fn train<B: Device>(
        &mut self,
        model: &mut Model<B>,
        optimizer: &mut Optimizer<B>,
        how: &SupervisedSettings,
    ) -> Result<bool> {
        let s = self.settings.clone();
        let per_epoch = self.data.train.len().div_ceil(s.batch);
        let (eval_every, save_every) =
            (self.args.eval_every.unwrap_or(per_epoch), self.args.checkpoint_every.unwrap_or(per_epoch));
        let (mut ws, mut grads) = (Workspace::new(model), B::Array::default());
        model.backend.resize(&mut grads, model.layout.trainable().len(), Kind::F32);
        let mut metrics = JsonlWriter::open(&self.args.out.join("metrics.jsonl"))?;
        let mut eval_loss = None;
        if self.step == 0 && !self.data.held_out.is_empty() {
            eval_loss = Some(supervised_loss(model, &mut ws, &self.data.held_out, s.micro_batch_tokens));
            metrics.append(&[StepRow { eval_loss, ..StepRow::default() }])?;
        }
        let mut progress = Progress::new("sft", s.steps as u64);
        progress.inc(self.step as u64);
        while self.step < s.steps {
            let started = Instant::now();
            let examples = self.batch(self.step, per_epoch);
            let lr = s.optimizer.lr_at(s.lr, self.step, s.steps);
            let done = supervised_step(model, &mut ws, optimizer, &examples, how, &s.optimizer, lr, &mut grads)?;
            self.step += 1;
            let (last, stop) = (self.step == s.steps, interrupt::requested());
            let measure = !self.data.held_out.is_empty() && (last || self.step.is_multiple_of(eval_every));
            let measured = measure.then(|| supervised_loss(model, &mut ws, &self.data.held_out, s.micro_batch_tokens));
            eval_loss = measured.or(eval_loss);
            if done.outcome.skipped {
                say(&format!("step {}: the gradient was not finite, so nothing was changed", self.step));
            }
            metrics.append(&[StepRow {
                step: self.step,
                epoch: self.step as f64 / per_epoch as f64,
                loss: Some(done.loss),
                eval_loss: measured,
                entropy: Some(done.entropy),
                grad_norm: Some(done.outcome.grad_norm),
                lr,
                tokens: examples.iter().map(|e| e.ids.len()).sum(),
                trained_tokens: examples.iter().map(Example::tokens).sum(),
                skipped_steps: optimizer.skipped,
                seconds: started.elapsed().as_secs_f64(),
            }])?;
            let held_out = eval_loss.map_or(String::new(), |l| format!(", held out {l:.4}"));
            progress.message(format!("loss {:.4}{held_out}", done.loss));
            progress.inc(1);
            if stop || last || self.step.is_multiple_of(save_every) {
                self.save(model, optimizer)?;
            }
            if stop && !last {
                progress.finish();
                let path = self.checkpoints.path(self.step);
                interrupt::stop(&format!(
                    "stopped after step {} of {}, saved in {}. Go on with the same command and --resume",
                    self.step,
                    s.steps,
                    path.display()
                ));
                return Ok(false);
            }
        }
        progress.finish();
        let held_out = eval_loss.map_or(String::new(), |l| format!(", held-out loss {l:.4} nats per token"));
        let path = self.checkpoints.path(self.step);
        println!("{} steps{held_out}\nModel: {}   (opens with {})", self.step, path.display(), opens_with(&path));
        Ok(true)
    }

    /// The examples of a step: every epoch visits each once, its last batch may be a smaller one.
    fn batch(&self, step: usize, per_epoch: usize) -> Vec<Example> {
        let (n, batch) = (self.data.train.len(), self.settings.batch);
        let (epoch, at) = (step / per_epoch, step % per_epoch * batch);
        let positions = at..(at + batch).min(n);
        let of = |at: usize| self.data.train[index_at(self.settings.seed, n, (epoch * n + at) as u64)].clone();
        positions.map(of).collect()
    }

    fn save<B: Device>(&self, model: &Model<B>, optimizer: &Optimizer<B>) -> Result<()> {
        let metadata = Metadata { step: self.step, counters: Counters::of(optimizer), sft: self.settings.clone() };
        write_dir_atomic(&self.checkpoints.path(self.step), |tmp| {
            self.prompts.tokenizer().save(tmp)?;
            save_part(tmp, model, optimizer, &metadata)
        })?;
        self.checkpoints.prune(self.args.keep_checkpoints, &[])
    }
}

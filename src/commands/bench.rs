//! `bupo bench`: the heavy parts by themselves, timed; one line of JSON each, for scripts that compare.

mod analysis;
#[cfg(feature = "cuda")]
mod cuda;
mod machine;
mod open;
mod profile;
mod rollout;
mod shapes;
mod step;
mod update;

pub use shapes::config as shape_config;

use super::adapter::asked;
use super::device::{self, Device, Opened};
use super::open_model;
use crate::cli::{BenchCommand, BenchModelArgs, BenchNumbersArgs, LoraArgs};
use crate::compute::Backend;
use crate::model::{Model, ModelConfig};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::run::manifest::peak_memory_mib;
use crate::tasks::seed::derive_seed;
use anyhow::{Context, Result, bail};
use profile::profile_table;
use serde_json::{Value, json};
use std::time::Instant;

pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Update(args) => update::run(args),
        BenchCommand::Rollout(args) => rollout::run(args),
        BenchCommand::Analysis(args) => analysis::run(args),
        BenchCommand::Machine => machine::run(),
        BenchCommand::Step(args) => step::run(args),
        BenchCommand::Open(args) => open::run(args),
    }
}

fn open_device(BenchNumbersArgs { numbers, profile }: BenchNumbersArgs) -> Result<Opened> {
    if profile {
        device::open_profiled(numbers.device, numbers.compute)
    } else {
        device::open(numbers.device, numbers.compute)
    }
}

/// A checkpoint or a shape, on the host.
fn model(args: &BenchModelArgs) -> Result<Model> {
    match (&args.model, args.shape) {
        (Some(dir), None) => open_model(dir),
        (None, Some(shape)) => shapes::random_model(shape),
        _ => bail!("expected a checkpoint folder or --shape, one of them"),
    }
}

/// The same, with a fresh adapter if one is asked for.
fn with_adapter(args: &BenchModelArgs, adapter: &LoraArgs) -> Result<Model> {
    let mut model = model(args)?;
    if let Some(config) = asked(adapter) {
        let base = args.model.as_ref().map_or_else(String::new, |dir| dir.to_string_lossy().into_owned());
        model.add_adapter(&config, &base, 1).context("--lora")?;
    }
    Ok(model)
}

/// Token ids of a random sequence, a function of its number and of the vocabulary.
fn random_ids<B: Backend>(model: &Model<B>, sequence: usize, tokens: usize) -> Vec<u32> {
    let vocab = model.config.vocab_size as u64;
    let token = |at: usize| (derive_seed(1, sequence as u64, at as u64, 0) % vocab) as u32;
    (0..tokens).map(token).collect()
}

/// Weights of a layer's products.
fn layer_weights(c: &ModelConfig) -> usize {
    c.hidden_size * (c.qkv_dim() + c.q_dim() + 3 * c.intermediate_size)
}

fn policy<B: Backend>(layer: Option<usize>, model: &Model<B>) -> Result<InternalPolicy> {
    match layer {
        None => Ok(InternalPolicy::Final),
        Some(layer) => Ok(InternalPolicy::Layer(LayerIndex::from_one_based(layer, model.config.layers)?)),
    }
}

/// Seconds that some work takes, the device's part of it included, and its result.
fn timed<B: Device, T>(device: &B, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    device.wait()?;
    let start = Instant::now();
    let result = work()?;
    device.wait()?;
    Ok((start.elapsed().as_secs_f64(), result))
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median without the first time, which meets cold buffers, unless that is the only one.
fn warm_median(seconds: &mut [f64]) -> f64 {
    let from = usize::from(seconds.len() > 1);
    median(&mut seconds[from..])
}

/// Forgets what a profile has of the first of several times, which warms up.
fn warmed<B: Device>(device: &B, time: usize, times: usize) {
    if time == 0 && times > 1 {
        device.profile();
    }
}

/// Prints what was measured, and the most memory that it took.
fn print<B: Device>(mut line: Value, device: &B) {
    if let Some(memory) = device.memory() {
        line["peak_device_mib"] = json!(memory.peak() as f64 / f64::from(1 << 20));
    }
    if let Some(profile) = device.profile() {
        eprintln!("{}", profile_table(&profile));
        line["profile"] = profile;
    }
    line["peak_rss_mib"] = json!(peak_memory_mib());
    println!("{line}");
}

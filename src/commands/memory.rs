//! What a run takes of a GPU's memory, found before it starts, or without a GPU (`bupo memory`): its largest step is rehearsed on a
//! device that only counts, by the code that will run.

use super::bench::shape_config;
use super::device::{self, BOUNDLESS, Device, MemoryUse};
use super::evaluate::write_json;
use super::train::setup;
use crate::cli::MemoryArgs;
use crate::commands::run_folder::checkpoint;
use crate::compute::backend::Kind;
use crate::evaluate::table::{Style, table};
use crate::model::{Compute, LoraConfig, Model, ModelConfig, ParamLayout, Tap, Workspace};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::recipe::Recipe;
use crate::rl::OptimizerConfig;
use crate::rl::adamw::Optimizer;
use crate::rl::batch::{Response, ResponseGroup};
use crate::rl::critic::{Critic, Expected, ValueSettings};
use crate::rl::groups::lr_scales;
use crate::rl::schedule::Schedule;
use crate::rl::supervised::{Example, SupervisedSettings, supervised_step};
use crate::rl::trainer::{TrainSettings, gradient_len};
use crate::rl::update::{Before, Beside, Scored, UpdateSettings, score_groups, update};
use crate::rollout::engine::{Engine, Request, generate};
use crate::run::progress::say;
use crate::text::Tokenizer;
use anyhow::{Context, Result, bail};
use serde::Serialize;

/// A recipe's need of memory, as it is and with what saves some.
#[derive(Serialize)]
struct Row {
    recompute: bool,
    offload: bool,
    /// With one sequence after the other, and with all slots at their longest.
    least: usize,
    most: usize,
    #[serde(flatten)]
    estimate: Estimate,
}

pub fn run(args: &MemoryArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe, &args.set)?;
    let config = match (args.shape, &recipe.model.path, &recipe.model.init) {
        (Some(shape), ..) => shape_config(shape)?,
        (None, Some(path), _) => {
            ModelConfig::from_dir(&checkpoint(path).context("model.path; --shape has a shape in its place")?)?
        }
        (None, None, Some(init)) => init.model_config(Tokenizer::byte_level()?.vocab_size())?,
        _ => bail!("[model] needs a path or a table init"),
    };
    let prompt = args.prompt.unwrap_or(recipe.rollout.max_prompt_tokens);
    let mut rows = Vec::new();
    for (recompute, offload) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut recipe = recipe.clone();
        (recipe.rl.recompute, recipe.optimizer.offload) = (recompute, offload);
        let stage = device::counting(recipe.compute)?.offloading(offload);
        let settings = setup::train_settings(&recipe, Schedule::grpo());
        let most = estimate(&stage, &recipe, &settings, &config, prompt)?;
        let one_by_one = TrainSettings { slots: 1, ..settings };
        let least = estimate(&stage, &recipe, &one_by_one, &config, prompt)?.peak();
        rows.push(Row { recompute, offload, least, most: most.peak(), estimate: most });
    }
    if let Some(out) = &args.out {
        write_json(out, &rows)?;
    }
    println!("{}", written(&recipe, &rows));
    let (r, compute) = (&recipe.rollout, recipe.compute);
    println!(
        "GiB of a GPU's memory in {}, for prompts of {prompt} and responses of up to {} tokens, {} at once ({} x {} a step), updates in \
         micro-batches of {} tokens. Sampling and updates take turns beside what stands. Where there is less than the most, fewer \
         sequences are sampled at once; the driver and products take about 1 GiB more.",
        if compute == Compute::Bf16 { "bf16" } else { "f32" },
        r.max_new_tokens,
        r.slots.min(r.prompts_per_step * r.group_size),
        r.prompts_per_step,
        r.group_size,
        recipe.rl.micro_batch_tokens,
    );
    Ok(())
}

/// The rows as a table, the recipe's own marked.
fn written(recipe: &Recipe, rows: &[Row]) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" };
    // What no row has is no column.
    let there = |at: usize| rows.iter().any(|row| row.estimate.standing[at].1 > 0);
    let standing = |row: &Row| {
        let parts = row.estimate.standing.clone().into_iter().enumerate();
        parts.filter(|(at, _)| there(*at)).map(|(_, part)| part).collect::<Vec<_>>()
    };
    let of = |row: &Row| {
        let own = (row.recompute, row.offload) == (recipe.rl.recompute, recipe.optimizer.offload);
        let what =
            format!("recompute {}, offload {}{}", yes(row.recompute), yes(row.offload), if own { " *" } else { "" });
        let turns = [row.estimate.sampling, row.estimate.updates, row.least, row.most];
        let bytes = standing(row).into_iter().map(|(_, bytes)| bytes).chain(turns);
        std::iter::once(what).chain(bytes.map(|bytes| format!("{:.2}", gib(bytes)))).collect::<Vec<String>>()
    };
    let names = rows.first().map(standing).unwrap_or_default().into_iter().map(|(what, _)| what);
    let turns = ["sampling", "updates", "least", "most"];
    let header: Vec<&str> = std::iter::once("* as the recipe is").chain(names).chain(turns).collect();
    table(Style::Terminal, &header, &rows.iter().map(of).collect::<Vec<_>>())
}

/// Bytes by what they are for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// What is there all the time.
    pub standing: Vec<(&'static str, usize)>,
    /// The most that sampling has beside that: keys and values, one step's arrays, prompts' forwards.
    pub sampling: usize,
    /// The most that updates have beside that: gradients, activations, logits.
    pub updates: usize,
}

impl Estimate {
    /// The most at a time: sampling and updates take turns.
    pub fn peak(&self) -> usize {
        self.standing.iter().map(|(_, bytes)| bytes).sum::<usize>() + self.sampling.max(self.updates)
    }

    /// `weights 9.61, moments 12.82; sampling 28.58 or updates 10.58 GiB`
    fn parts(&self) -> String {
        let standing = self.standing.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> = standing.map(|(what, bytes)| format!("{what} {:.2}", gib(*bytes))).collect();
        format!("{}; sampling {:.2} or updates {:.2} GiB", parts.join(", "), gib(self.sampling), gib(self.updates))
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Says what a run will take of the device's memory, where that is not the host's. Errors: more than there is, or work that the device
/// cannot do.
pub fn check<B: Device>(
    device: &B,
    recipe: &Recipe,
    settings: &TrainSettings,
    config: &ModelConfig,
    longest_prompt: impl FnOnce() -> Result<usize>,
) -> Result<()> {
    let Some(size) = device.memory().map(MemoryUse::size) else { return Ok(()) };
    let on = |bytes: usize| device.rehearsal(bytes).context("no device to rehearse on");
    let prompt = longest_prompt()?;
    let tokens = prompt + settings.sampling.max_new_tokens;
    let rehearsed = estimate(&on(size)?, recipe, settings, config, prompt);
    let of = |estimate: &Estimate| (estimate.peak(), estimate.parts());
    let Ok((peak, parts)) = rehearsed.as_ref().map(of) else {
        // What it would take where there is no end of memory.
        let (peak, parts) = of(&estimate(&on(BOUNDLESS)?, recipe, settings, config, prompt)?);
        bail!(
            "this run takes {:.2} GiB of the device's memory, with sequences of up to {tokens} tokens, and has {:.2} GiB: {parts}. \
             Where it is sampling, lower rollout.slots or rollout.max_new_tokens; where updates, lower rl.micro_batch_tokens or set \
             rl.recompute = true; optimizer.offload = true has the moments in the host's memory, and [lora] has next to none",
            gib(peak),
            gib(size),
        );
    };
    say(&format!(
        "memory: up to {:.2} of {:.2} GiB with sequences of up to {tokens} tokens: {parts}",
        gib(peak),
        gib(size)
    ));
    Ok(())
}

/// [`check`] of a supervised run, by a step of its longest examples.
pub fn check_supervised<B: Device>(
    device: &B,
    model: &ModelConfig,
    lora: Option<&LoraConfig>,
    longest: impl FnOnce() -> Vec<Example>,
    how: &SupervisedSettings,
) -> Result<()> {
    let Some(size) = device.memory().map(MemoryUse::size) else { return Ok(()) };
    let examples = longest();
    let rehearsed = |bytes: usize| -> Result<usize> {
        let stage = device.rehearsal(bytes).context("no device to rehearse on")?;
        let mut model = nothing_learned(model, lora)?.on(stage.clone());
        let (mut ws, mut grads) = (Workspace::new(&model), B::Array::default());
        let mut optimizer = Optimizer::new_on(&stage, &model.layout);
        stage.resize(&mut grads, model.layout.trainable().len(), Kind::F32);
        let adamw = OptimizerConfig::default();
        supervised_step(&mut model, &mut ws, &mut optimizer, &examples, how, &adamw, 0.0, &mut grads)?;
        Ok(stage.memory().map_or(0, MemoryUse::peak))
    };
    match rehearsed(size) {
        Ok(peak) => say(&format!("memory: up to {:.2} of {:.2} GiB", gib(peak), gib(size))),
        Err(_) => bail!(
            "this run takes {:.2} GiB of the device's memory, and has {:.2} GiB: lower --micro-batch-tokens, or take --recompute; \
             --offload has the moments in the host's memory, and --lora has next to none",
            gib(rehearsed(BOUNDLESS)?),
            gib(size)
        ),
    }
    Ok(())
}

/// A model of zeros, which are no memory as long as nobody touches them.
fn nothing_learned(config: &ModelConfig, lora: Option<&LoraConfig>) -> Result<Model> {
    let mut model = Model::new(config.clone(), vec![0.0; ParamLayout::new(config).len()]);
    if let Some(lora) = lora {
        model.add_adapter(lora, "", 1)?;
    }
    Ok(model)
}

/// A run's largest step on a device that only counts: all prompts of so many tokens, all responses as long as they may be, and
/// updates of the final policy, which is the deepest.
pub fn estimate<B: Device>(
    stage: &B,
    recipe: &Recipe,
    settings: &TrainSettings,
    config: &ModelConfig,
    prompt: usize,
) -> Result<Estimate> {
    let memory: &dyn MemoryUse = stage.memory().context("a device whose memory can be counted")?;
    let mut estimate = Estimate::default();
    let mut before = memory.used();
    let mut standing = |estimate: &mut Estimate, what| {
        estimate.standing.push((what, memory.used() - before));
        before = memory.used();
    };
    let fresh = || nothing_learned(config, recipe.lora.as_ref());
    let host = fresh()?;
    let critic = recipe.critic.as_ref().map(|config| Critic::beside(&host, config)).transpose()?;
    let mut model = host.on(stage.clone());
    standing(&mut estimate, "weights");
    let reference = (settings.loss.kl_coef != 0.0 && recipe.lora.is_none()).then(fresh).transpose()?;
    let reference = reference.map(|model| model.on(stage.clone()));
    standing(&mut estimate, "the KL's reference");
    let scales = lr_scales(&recipe.optimizer.group, &model.layout)?;
    let mut optimizer = Optimizer::begin(stage, &model.layout, scales);
    standing(&mut estimate, "moments");
    let mut critic = critic.map(|critic| critic.on(stage));
    standing(&mut estimate, "the critic");
    let mut ws = Workspace::new(&model);
    let standing = memory.used();

    let sampling = settings.sampling;
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids: &[], slots: settings.slots };
    // Those behind the first that are sampled at once take no more than these.
    let samples = settings.group_size.min(settings.slots);
    let request = |_| Request { prompt: vec![0; prompt.max(1)], seeds: vec![0; samples] };
    let requests: Vec<Request> = (0..settings.prompts_per_step).map(request).collect();
    memory.forget_peak();
    let at_once = settings.slots.div_ceil(settings.group_size).min(requests.len());
    generate(&model, &mut ws, &engine, &requests[..at_once], &mut |_| ())?;
    estimate.sampling = memory.peak() - standing;

    ws.release(stage);
    memory.forget_peak();
    let groups: Vec<ResponseGroup> =
        requests.into_iter().map(|r| group(r, settings.group_size, sampling.max_new_tokens)).collect();
    let mini_batch = 0..settings.mini_batch_prompts.min(groups.len());
    let mut grads = B::Array::default();
    stage.resize(&mut grads, gradient_len(&model, critic.as_ref()), Kind::F32);
    let trained = optimizer.trained(&model.layout, Tap::Final);
    let last = LayerIndex::all(model.config.layers).next_back();
    // Which layer makes no difference to what is kept of all of them.
    let is_joint = recipe.phases().iter().any(|phase| phase.beside.is_some());
    let joint = last.filter(|_| is_joint).map(|layer| Beside { layer, beta: 1.0 });
    let updates = UpdateSettings {
        policy: InternalPolicy::Final,
        beside: joint,
        trained: &trained,
        temperature: sampling.head_temperature(),
        loss: &settings.loss,
        max_new_tokens: sampling.max_new_tokens,
        micro_batch_tokens: settings.micro_batch_tokens,
        keep: settings.keep(),
    };
    if let (Some(critic), Some(config)) = (&mut critic, &recipe.critic) {
        let values = critic.values(&mut ws, &groups, settings.micro_batch_tokens)?;
        let of_groups = |of: &Vec<Vec<f32>>| of.iter().map(|values| Some(values.clone())).collect();
        let before = Expected { returns: values.iter().map(of_groups).collect(), values };
        let of_critic = ValueSettings {
            value_clip: config.value_clip,
            aggregation: settings.loss.aggregation,
            max_new_tokens: updates.max_new_tokens,
            micro_batch_tokens: updates.micro_batch_tokens,
            keep: updates.keep,
        };
        critic.update(&mut ws, &groups, mini_batch.clone(), &of_critic, &before, config, 0.0, &mut grads)?;
    }
    let mut scored = Scored::of(&groups);
    if let Some(reference) = &reference {
        let mut ws = Workspace::new(reference);
        score_groups(reference, &mut ws, &groups, mini_batch.clone(), &updates, &mut scored);
    }
    score_groups(&model, &mut ws, &groups, mini_batch.clone(), &updates, &mut scored);
    let (ws, adamw, known) = (&mut ws, &settings.optimizer, &scored.log_probs);
    let reference = (settings.loss.kl_coef != 0.0).then_some(known);
    let before = Before { old: Some(known), old_beside: joint.map(|_| known), reference, factors: None };
    update(&mut model, ws, &mut optimizer, &groups, mini_batch, &updates, before, adamw, 0.0, &mut grads)?;
    estimate.updates = memory.peak() - standing;
    stage.status()?;
    Ok(estimate)
}

/// Responses as long as they may be, half of them better than the others.
fn group(request: Request, responses: usize, tokens: usize) -> ResponseGroup {
    let response = |i: usize| Response {
        ids: vec![0; tokens],
        rollout_log_probs: vec![0.0; tokens],
        advantages: vec![if i.is_multiple_of(2) { 1.0 } else { -1.0 }; tokens],
        masked: false,
    };
    ResponseGroup { prompt: request.prompt, responses: (0..responses).map(response).collect() }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::commands::train::setup::{Source, Start};
    use crate::compute::cuda::backend::Cuda;
    use crate::compute::cuda::emulator::{Emulator, Order};
    use crate::compute::cuda::kernels::Real;
    use crate::rl::trainer::Trainer;
    use crate::run::checkpoint::Checkpoints;
    use std::path::Path;
    use std::sync::Arc;

    const RECIPE: &str = include_str!("../../recipes/arithmetic-bupo.toml");

    /// A small run on the emulator, which has so many bytes.
    fn open(sets: &[&str], bytes: usize) -> (Cuda, Recipe, TrainSettings, Start) {
        let small = ["model.init.layers=2", "model.init.hidden_size=64", "model.init.intermediate_size=96"];
        let small = small.into_iter().chain(["model.init.heads=2", "model.init.kv_heads=1", "rl.mini_batch_prompts=3"]);
        let sizes = ["rollout.prompts_per_step=3", "rollout.group_size=2", "rollout.max_new_tokens=7"];
        let sets: Vec<String> = small.chain(sizes).chain(sets.iter().copied()).map(str::to_string).collect();
        let recipe = Recipe::parse(RECIPE, "arithmetic-bupo.toml", &sets).unwrap();
        let device = Cuda::new(Arc::new(Emulator::new(Order::Forward, bytes)), bytes, Real::F32).unwrap();
        let device = device.offloading(recipe.optimizer.offload);
        let start = setup::start(&recipe, &Checkpoints::new(Path::new("nowhere"))).unwrap();
        let settings = setup::train_settings(&recipe, Schedule::grpo());
        (device, recipe, settings, start)
    }

    #[test]
    fn a_rehearsed_step_takes_what_a_real_one_takes() {
        for sets in [&["rl.recompute=true"][..], &["loss.kl_coef=0.1", "optimizer.offload=true"]] {
            let (device, recipe, settings, Start { model, prompts }) = open(sets, 1 << 28);
            let source = Source::open(&recipe).unwrap();
            let longest = setup::longest_prompt(&recipe, &source, &prompts).unwrap();
            let estimate =
                estimate(&device.rehearsal(1 << 28).unwrap(), &recipe, &settings, &model.config, longest).unwrap();
            let memory = device.memory().unwrap();
            assert_eq!(memory.used(), 0, "nothing of it is the device's");

            let reference = (settings.loss.kl_coef != 0.0).then(|| model.clone().on(device.clone()));
            let model = model.on(device.clone());
            let optimizer = Optimizer::begin(&device, &model.layout, vec![1.0; model.layout.tensors.len()]);
            let standing: usize = estimate.standing.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(memory.used(), standing, "{sets:?}: {estimate:?}");
            let moments = estimate.standing.iter().find(|(what, _)| *what == "moments").unwrap().1;
            assert_eq!(moments == 0, recipe.optimizer.offload);
            let mut trainer = Trainer::new(settings, model, optimizer, None, reference, &prompts).unwrap();
            let mut draw = |n: usize| (0..n as u64).map(|at| source.problem(recipe.seed, at)).collect();
            trainer.step(1, &mut draw, &mut |_| ()).unwrap();
            assert_eq!(memory.used(), standing, "a step gives back what it took");
            // Responses may end early, and prompts be shorter than the longest; but the gradients and the cache are what they are.
            let (peak, most) = (memory.peak(), estimate.peak());
            assert!(peak <= most && most as f64 <= 1.1 * peak as f64, "{sets:?}: {peak} of {most}, {estimate:?}");
        }
    }

    #[test]
    fn a_run_that_will_not_fit_is_refused_with_its_sizes() {
        let (device, recipe, settings, Start { model, .. }) = open(&[], 1 << 20);
        let error = check(&device, &recipe, &settings, &model.config, || Ok(20)).unwrap_err().to_string();
        for part in
            ["GiB of the device's memory, with sequences of up to 27 tokens", "weights", "moments", "rollout.slots"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(check(&device, &recipe, &settings, &model.config, || bail!("no prompt")).is_err());
        let (device, ..) = open(&[], 1 << 28);
        check(&device, &recipe, &settings, &model.config, || Ok(20)).unwrap();
    }

    #[test]
    fn a_run_whose_blocks_no_device_of_its_kind_can_hold_is_refused_before_it_begins() {
        let (_, recipe, settings, Start { model, .. }) = open(&[], 1 << 20);
        // Enough for prompts and their first tokens, not for decoding and updates.
        let runtime = Emulator::new(Order::Forward, 1 << 28).with_shared(30_000);
        let device = Cuda::new(Arc::new(runtime), 1 << 28, Real::F32).unwrap();
        let error = check(&device, &recipe, &settings, &model.config, || Ok(20)).unwrap_err().to_string();
        for part in ["attention_decode", "head_dim of 32 in f32", "30000 bytes at most", "compute = \"bf16\""] {
            assert!(error.contains(part), "{error}");
        }
    }
}

//! What a run takes of a device's memory, found before it starts: its largest step is rehearsed on a device that only counts, by the
//! code that will run.

use crate::commands::device::{Device, MemoryUse};
use crate::compute::backend::Kind;
use crate::model::{Model, ParamLayout, Tap, Workspace};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::recipe::Recipe;
use crate::rl::adamw::Optimizer;
use crate::rl::batch::{Response, ResponseGroup};
use crate::rl::critic::{Critic, Expected, ValueSettings};
use crate::rl::groups::lr_scales;
use crate::rl::trainer::TrainSettings;
use crate::rl::update::{Before, Beside, Scored, UpdateSettings, score_groups, update};
use crate::rollout::engine::{Engine, Request, generate};
use crate::run::progress::say;
use anyhow::{Context, Result, bail};

/// Bytes by what they are for.
#[derive(Clone, Debug, Default, PartialEq)]
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

    /// `weights 9.6, moments 12.8, sampling 33.2, or updates 4.1 GiB`
    fn parts(&self) -> String {
        let standing = self.standing.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> = standing.map(|(what, bytes)| format!("{what} {:.2}", gib(*bytes))).collect();
        format!("{}; sampling {:.2} or updates {:.2} GiB", parts.join(", "), gib(self.sampling), gib(self.updates))
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Says what a run will take of the device's memory, where that is not the host's. Errors: more than there is.
pub fn check<B: Device>(
    device: &B,
    recipe: &Recipe,
    settings: &TrainSettings,
    model: &Model,
    longest_prompt: impl FnOnce() -> Result<usize>,
) -> Result<()> {
    let (Some(stage), Some(memory)) = (device.rehearsal(), device.memory()) else { return Ok(()) };
    let prompt = longest_prompt()?;
    let estimate = estimate(&stage, recipe, settings, model, prompt).context("rehearsing a step")?;
    let (peak, size, parts) = (estimate.peak(), memory.size(), estimate.parts());
    let tokens = prompt + settings.sampling.max_new_tokens;
    if peak > size {
        bail!(
            "this run takes {:.2} GiB of the device's memory, with sequences of up to {tokens} tokens, and has {:.2} GiB: {parts}. \
             Where it is sampling, lower rollout.slots or rollout.max_new_tokens; where updates, lower rl.micro_batch_tokens or set \
             rl.recompute = true; optimizer.offload = true has the moments in the host's memory, and [lora] has next to none",
            gib(peak),
            gib(size),
        );
    }
    say(&format!(
        "memory: up to {:.2} of {:.2} GiB with sequences of up to {tokens} tokens: {parts}",
        gib(peak),
        gib(size)
    ));
    Ok(())
}

/// A run's largest step on a device that only counts: all prompts of so many tokens, all responses as long as they may be, and
/// updates of the final policy, which is the deepest.
pub fn estimate<B: Device>(
    stage: &B,
    recipe: &Recipe,
    settings: &TrainSettings,
    model: &Model,
    prompt: usize,
) -> Result<Estimate> {
    let memory: &dyn MemoryUse = stage.memory().context("a device whose memory can be counted")?;
    let mut estimate = Estimate::default();
    let mut before = memory.used();
    let mut standing = |estimate: &mut Estimate, what| {
        estimate.standing.push((what, memory.used() - before));
        before = memory.used();
    };
    // Zeros that nobody touches are no memory.
    let fresh = || -> Result<Model> {
        let mut fresh = Model::new(model.config.clone(), vec![0.0; ParamLayout::new(&model.config).len()]);
        if let Some(lora) = &recipe.lora {
            fresh.add_adapter(lora, "", 1)?;
        }
        Ok(fresh)
    };
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
    let request = |_| Request { prompt: vec![0; prompt.max(1)], seeds: vec![0; settings.group_size] };
    let requests: Vec<Request> = (0..settings.prompts_per_step).map(request).collect();
    memory.forget_peak();
    generate(&model, &mut ws, &engine, &requests, &mut |_| ())?;
    estimate.sampling = memory.peak() - standing;

    ws.release(stage);
    memory.forget_peak();
    let groups: Vec<ResponseGroup> =
        requests.into_iter().map(|r| group(r, settings.group_size, sampling.max_new_tokens)).collect();
    let mini_batch = 0..settings.mini_batch_prompts.min(groups.len());
    let mut grads = B::Array::default();
    let parameters = model.layout.trainable().len().max(critic.as_ref().map_or(0, |c| c.model.layout.len()));
    stage.resize(&mut grads, parameters, Kind::F32);
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
    let (ws, config, known) = (&mut ws, &settings.optimizer, &scored.log_probs);
    let reference = (settings.loss.kl_coef != 0.0).then_some(known);
    let before = Before { old: Some(known), old_beside: joint.map(|_| known), reference, factors: None };
    update(&mut model, ws, &mut optimizer, &groups, mini_batch, &updates, before, config, 0.0, &mut grads)?;
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
    };
    ResponseGroup { prompt: request.prompt, responses: (0..responses).map(response).collect() }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::commands::train::setup::{self, Source, Start};
    use crate::compute::cuda::backend::Cuda;
    use crate::compute::cuda::emulator::{Emulator, Order};
    use crate::compute::cuda::kernels::Real;
    use crate::rl::schedule::Schedule;
    use crate::rl::trainer::Trainer;
    use crate::run::checkpoint::Checkpoints;
    use std::path::Path;
    use std::sync::Arc;

    const RECIPE: &str = include_str!("../../../recipes/arithmetic-bupo.toml");

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
            let estimate = estimate(&device.rehearsal().unwrap(), &recipe, &settings, &model, longest).unwrap();
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
            // But for RoPE's table of so few positions.
            assert!(memory.used() - standing <= 4096, "a step gives back what it took");
            // Responses may end early, and prompts be shorter than the longest; but the gradients and the cache are what they are.
            let (peak, most) = (memory.peak(), estimate.peak());
            assert!(peak <= most && most as f64 <= 1.1 * peak as f64, "{sets:?}: {peak} of {most}, {estimate:?}");
        }
    }

    #[test]
    fn a_run_that_will_not_fit_is_refused_with_its_sizes() {
        let (device, recipe, settings, Start { model, .. }) = open(&[], 1 << 20);
        let error = check(&device, &recipe, &settings, &model, || Ok(20)).unwrap_err().to_string();
        for part in
            ["GiB of the device's memory, with sequences of up to 27 tokens", "weights", "moments", "rollout.slots"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(check(&device, &recipe, &settings, &model, || bail!("no prompt")).is_err());
        let (device, ..) = open(&[], 1 << 28);
        check(&device, &recipe, &settings, &model, || Ok(20)).unwrap();
    }
}

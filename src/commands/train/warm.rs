//! The supervised warm-up of a fresh model.

use super::setup::Source;
use crate::commands::device::Device;
use crate::compute::backend::Kind;
use crate::model::{Keep, Model, Workspace};
use crate::policy::InternalPolicy;
use crate::recipe::{Recipe, WarmupSection};
use crate::reward::{Item, Reward};
use crate::rl::OptimizerConfig;
use crate::rl::adamw::Optimizer;
use crate::rl::supervised::{Example, SupervisedSettings, supervised_step};
use crate::rollout::engine::{Engine, Request, generate};
use crate::run::interrupt;
use crate::run::progress::{Progress, say};
use crate::tasks::Problem;
use crate::tasks::seed::derive_seed;
use crate::text::PromptEncoder;
use anyhow::Result;

/// Positions of the warm-up's problems, and of its probes, in an endless train split: far from those of the rollouts.
const WARMUP_FROM: u64 = 1 << 40;
const PROBES_FROM: u64 = 1 << 41;

/// Trains until `stop_at` or `max_steps`. False if it was interrupted.
pub fn warm_up<B: Device>(
    recipe: &Recipe,
    source: &Source,
    prompts: &PromptEncoder,
    model: &mut Model<B>,
) -> Result<bool> {
    let Some(w) = &recipe.warmup else { return Ok(true) };
    let own = w.task.clone().map(Source::Task);
    let source = own.as_ref().unwrap_or(source);
    let config = OptimizerConfig { warmup_steps: w.lr_warmup_steps, ..OptimizerConfig::default() };
    let mut optimizer = Optimizer::new_on(&model.backend, &model.layout);
    let (mut ws, mut grads) = (Workspace::new(model), B::Array::default());
    model.backend.resize(&mut grads, model.layout.len(), Kind::F32);
    let probes: Vec<Problem> =
        (0..w.probe_problems as u64).map(|i| source.problem(recipe.seed, PROBES_FROM + i)).collect::<Result<_>>()?;
    let reward = Reward::new(&recipe.reward, recipe.rollout.max_new_tokens)?;
    let settings = SupervisedSettings { micro_batch_tokens: recipe.rl.micro_batch_tokens, keep: Keep::Activations };
    let mut progress = Progress::new("warm up", w.max_steps as u64);
    let (mut accuracy, mut taken, mut loss) = (0.0, 0, f64::NAN);
    for step in 0..w.max_steps {
        if interrupt::requested() {
            progress.finish();
            return Ok(false);
        }
        let examples = (0..w.batch as u64)
            .map(|i| {
                let at = WARMUP_FROM + (step * w.batch) as u64 + i;
                Example::of(&source.worked(recipe.seed, at, w.slips)?, prompts)
            })
            .collect::<Result<Vec<_>>>()?;
        let lr = config.lr_at(w.lr, step, w.max_steps);
        loss = supervised_step(model, &mut ws, &mut optimizer, &examples, &settings, &config, lr, &mut grads)?.loss;
        taken = step + 1;
        if taken % w.check_every == 0 || taken == w.max_steps {
            accuracy = probe(recipe, w, &reward, prompts, model, &mut ws, &probes, step)?;
        }
        progress.message(format!("loss {loss:.3}, sampled accuracy {:.0} %", 100.0 * accuracy));
        progress.inc(1);
        if w.stop_at.is_some_and(|stop| accuracy >= stop) {
            break;
        }
    }
    progress.finish();
    say(&format!(
        "warm-up: {taken} steps, loss {loss:.3} nats per token, {:.1} % of {} sampled answers right",
        100.0 * accuracy,
        w.probe_problems
    ));
    Ok(true)
}

/// Share of probe problems that one sampled response each solves.
#[allow(clippy::too_many_arguments)]
fn probe<B: Device>(
    recipe: &Recipe,
    w: &WarmupSection,
    reward: &Reward,
    prompts: &PromptEncoder,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    probes: &[Problem],
    step: usize,
) -> Result<f64> {
    let mut requests = Vec::with_capacity(probes.len());
    for problem in probes {
        let seed = derive_seed(recipe.seed, PROBES_FROM + step as u64, problem.id, 0);
        requests.push(Request { prompt: prompts.encode(&problem.messages)?.ids, seeds: vec![seed] });
    }
    let engine = Engine {
        policy: InternalPolicy::Final,
        sampling: recipe.rollout.sampling(),
        eos_ids: prompts.eos_ids(),
        slots: recipe.rollout.slots,
    };
    let completions = generate(model, ws, &engine, &requests, &mut |_| ())?;
    let texts = completions.iter().flatten().map(|c| prompts.decode(&c.ids)).collect::<Result<Vec<_>>>()?;
    let items: Vec<Item<'_>> = probes
        .iter()
        .zip(completions.iter().flatten())
        .zip(&texts)
        .map(|((problem, c), response)| Item { problem, response, tokens: c.ids.len(), truncated: c.truncated() })
        .collect();
    let right: f64 = reward.judge(&items)?.iter().map(|score| score.verdict.reward()).sum();
    Ok(right / w.probe_problems as f64)
}

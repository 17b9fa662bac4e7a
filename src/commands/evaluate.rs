//! `bupo evaluate`: suites or a file of problems, sampled, judged, scored; gone on with where it was interrupted.

mod plan;
mod rescore;

use super::ablate::names;
use super::device::{self, Device, on_device};
use super::{Opened, open};
use crate::cli::EvaluateArgs;
use crate::evaluate::result::{Evaluation, Settings, WeightsFingerprint};
use crate::evaluate::run::{EvaluateSettings, Generation, ResponseRow, judge, sample_missing, score_rows};
use crate::evaluate::table::{Style, report};
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::reward::{Reward, RewardConfig};
use crate::rollout::sampler::Sampling;
use crate::run::atomic::{read, write_file_atomic};
use crate::run::jsonl::{JsonlWriter, mend, read_jsonl, write_jsonl};
use crate::run::progress::{Progress, say};
use crate::tasks::Problem;
use crate::tasks::dataset::BadRow;
use crate::text::PromptEncoder;
use anyhow::{Context, Result, bail, ensure};
use plan::Plan;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Files of an evaluation's folder.
pub const RESPONSES: &str = "responses.jsonl";
pub const PROBLEMS: &str = "problems.jsonl";
pub const RESULT: &str = "evaluation.json";
const SETTINGS: &str = "settings.json";

/// Longest response where neither the suite nor the options say.
const USUAL_RESPONSE: usize = 8192;
/// Reasons of failures that are kept in the result.
const REASONS: usize = 5;

pub fn run(args: &EvaluateArgs) -> Result<()> {
    if let Some(dir) = &args.rescore {
        return rescore::run(args, dir);
    }
    let (Some(name), Some(out)) = (&args.model, &args.out) else {
        bail!("expected a model and --out, or --rescore with a folder");
    };
    let plans = plan::plans(args)?;
    let device = device::open(args.numbers.device, args.numbers.compute)?;
    on_device!(device, backend => run_on(args, name, out, &plans, backend))
}

fn run_on<B: Device>(args: &EvaluateArgs, name: &str, out: &Path, plans: &[Plan], backend: B) -> Result<()> {
    let Opened { weights, prompts: asked } = open(Path::new(name), &args.prompt)?;
    let policy = InternalPolicy::parse(&args.policy, weights.config.layers)?;
    let without = args.ablate.modules(&weights.config)?;
    let mut fingerprint = WeightsFingerprint::default();
    let mut model = backend.read_for_sampling(weights, policy.tap(), |params, part| fingerprint.look(params, part))?;
    let weights = fingerprint.of(&model.config);
    model.ablate(&without, None)?;
    let called = args.ablate.called(Path::new(name));
    let name = &match policy {
        InternalPolicy::Final => called,
        policy => format!("{called}, policy {policy}"),
    };
    let mut ws = Workspace::new(&model);
    let mut done = Vec::with_capacity(plans.len());
    for plan in plans {
        let dir = if args.suite.is_empty() { out.to_path_buf() } else { out.join(&plan.suite.name) };
        let prompts = match &plan.template {
            Some(template) => asked.with_template(template.clone())?,
            None => asked.clone(),
        };
        let settings = settings(args, plan, policy, &model, &prompts)?;
        let evaluated = one((name, &weights), &model, &mut ws, &prompts, plan, &settings, &dir);
        done.push(evaluated.with_context(|| format!("evaluation of {}", plan.suite.name))?);
    }
    if !args.suite.is_empty() {
        save_summary(out, &done)?;
    }
    print!("{}", report(&done, Style::Terminal));
    println!("Written to {}", out.display());
    Ok(())
}

fn settings<B: Device>(
    args: &EvaluateArgs,
    plan: &Plan,
    policy: InternalPolicy,
    model: &Model<B>,
    prompts: &PromptEncoder,
) -> Result<EvaluateSettings> {
    let s = &plan.suite;
    let asked = plan.problems.iter().map(|p| Ok(prompts.encode(&p.messages)?.ids)).collect::<Result<Vec<_>>>();
    let asked = asked.with_context(|| format!("the prompts of {}", s.name))?;
    Ok(EvaluateSettings {
        seed: args.seed,
        policy,
        ablate: names(&args.ablate.modules(&model.config)?),
        sampling: Sampling {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            max_new_tokens: super::max_new_tokens(s.max_new_tokens, USUAL_RESPONSE, model, asked.iter()),
        },
        slots: args.slots,
        n: s.n,
        k: s.ks(),
        reward: s.reward.clone(),
    })
}

/// One set: what is missing is sampled and saved as it comes; then everything is judged and scored.
fn one<B: Device>(
    (name, weights): (&str, &str),
    model: &Model<B>,
    ws: &mut Workspace<B>,
    prompts: &PromptEncoder,
    plan: &Plan,
    settings: &EvaluateSettings,
    dir: &Path,
) -> Result<Evaluation> {
    // A program that cannot start is found out before hours of sampling, not after.
    let reward = Reward::new(&settings.reward, settings.sampling.max_new_tokens)?;
    if let Some(remark) = prompts.remark(plan.problems.iter().map(|p| p.messages.as_slice())) {
        say(&format!("{}: {remark}", plan.suite.name));
    }
    let now = Settings::new(name, weights, model.backend.compute(), settings, prompts.template(), &plan.problems);
    if let Ok(bytes) = read(&dir.join(SETTINGS)) {
        let then: Settings = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not what bupo writes there", dir.join(SETTINGS).display()))?;
        now.goes_on_with(&then, dir)?;
    } else {
        let strange = dir.join(RESPONSES);
        ensure!(
            !strange.exists(),
            "{} is there without the settings.json that says how it was sampled: choose another --out, or move it away",
            strange.display()
        );
    }
    let path = dir.join(RESPONSES);
    mend(&path)?;
    let mut generations: Vec<Generation> = read_jsonl(&path)?;
    if let Some(most) = generations.iter().map(|g| g.sample + 1).max().filter(|most| *most > settings.n) {
        bail!(
            "{} holds up to {most} responses to a problem, and -n {} would drop some: ask for -n {most}, or judge fewer of them \
             elsewhere with --rescore {} -n {} --out OTHER",
            dir.display(),
            settings.n,
            dir.display(),
            settings.n
        );
    }
    write_json(&dir.join(SETTINGS), &now)?;
    write_jsonl(&dir.join(PROBLEMS), &plan.problems)?;
    let have: BTreeSet<(u64, usize)> = generations.iter().map(|g| (g.problem, g.sample)).collect();
    let wanted = |problem: &Problem| (0..settings.n).filter(|i| have.contains(&(problem.id, *i))).count();
    let there: usize = plan.problems.iter().map(wanted).sum();
    let all = plan.problems.len() * settings.n;
    if there > 0 {
        say(&format!("{}: {there} of {all} responses are there already", plan.suite.name));
    }
    let mut progress = Progress::new(&plan.suite.name, all as u64);
    progress.inc(there as u64);
    let mut writer = JsonlWriter::open(&path)?;
    let mut save = |generation: Generation| {
        writer.append(std::slice::from_ref(&generation))?;
        generations.push(generation);
        progress.inc(1);
        Ok(())
    };
    sample_missing(model, ws, prompts, &plan.problems, settings, &have, &mut save)?;
    progress.finish();
    finish(&reward, settings, plan, name, &generations, dir)
}

/// Judges, scores and saves.
fn finish(
    reward: &Reward,
    settings: &EvaluateSettings,
    plan: &Plan,
    model: &str,
    generations: &[Generation],
    dir: &Path,
) -> Result<Evaluation> {
    let rows = judge(reward, &plan.problems, generations, settings.n)?;
    let evaluation = Evaluation {
        name: plan.suite.name.clone(),
        model: model.into(),
        reward_name: settings.reward.name(),
        scores: score_rows(&rows, settings.n, &settings.k, settings.seed)?,
        bad_rows: plan.bad_rows.clone(),
        failures: rows.iter().filter_map(|r| r.score.failure.clone()).take(REASONS).collect(),
    };
    save_rows(dir, &plan.problems, &rows)?;
    save_result(dir, &evaluation)?;
    Ok(evaluation)
}

/// Writes `problems.jsonl` and `responses.jsonl`, in order.
pub fn save_rows(dir: &Path, problems: &[Problem], rows: &[ResponseRow]) -> Result<()> {
    write_jsonl(&dir.join(PROBLEMS), problems)?;
    write_jsonl(&dir.join(RESPONSES), rows)
}

/// Writes `evaluation.json`, and the tables as `evaluation.md`.
pub fn save_result(dir: &Path, evaluation: &Evaluation) -> Result<()> {
    let markdown = report(std::slice::from_ref(evaluation), Style::Markdown);
    write_file_atomic(&dir.join("evaluation.md"), markdown.as_bytes())?;
    write_json(&dir.join(RESULT), evaluation)
}

/// Writes `summary.json` and `summary.md` of several sets.
pub fn save_summary(dir: &Path, evaluations: &[Evaluation]) -> Result<()> {
    write_file_atomic(&dir.join("summary.md"), report(evaluations, Style::Markdown).as_bytes())?;
    write_json(&dir.join("summary.json"), &evaluations)
}

pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).with_context(|| format!("{} cannot be written", path.display()))?;
    write_file_atomic(path, format!("{text}\n").as_bytes())
}

/// The reward that the options name, if they name one.
fn asked_reward(args: &EvaluateArgs) -> Option<RewardConfig> {
    let command = args.command.as_ref().map(|line| {
        let command = ["sh", "-c", line.as_str()].map(str::to_string).into();
        RewardConfig::of_command(crate::reward::command::CommandConfig { command, ..Default::default() })
    });
    args.rule.map(RewardConfig::of_rule).or(command)
}

/// Tells of every bad row, by file and line.
fn say_bad_rows(bad_rows: &[BadRow]) {
    for bad in bad_rows.iter().take(20) {
        say(&format!("left out: {bad}"));
    }
    if bad_rows.len() > 20 {
        say(&format!("left out: {} rows more (evaluation.json has them all)", bad_rows.len() - 20));
    }
}

fn limited(problems: &mut Vec<Problem>, limit: Option<usize>) -> Result<()> {
    ensure!(limit != Some(0), "--limit 0: expected at least one problem");
    problems.truncate(limit.unwrap_or(usize::MAX));
    Ok(())
}

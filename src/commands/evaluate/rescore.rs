//! `bupo evaluate --rescore DIR`: saved responses judged again, by another rule or the same, without a model.

use super::{PROBLEMS, RESPONSES, SETTINGS, asked_reward, finish, limited, plan::Plan, save_summary, write_json};
use crate::cli::EvaluateArgs;
use crate::evaluate::result::{Evaluation, Settings};
use crate::evaluate::run::{EvaluateSettings, Generation};
use crate::evaluate::scores::usual_ks;
use crate::evaluate::suite::Suite;
use crate::evaluate::table::{Style, report};
use crate::policy::InternalPolicy;
use crate::reward::Reward;
use crate::rollout::sampler::Sampling;
use crate::run::atomic::read;
use crate::run::jsonl::read_jsonl;
use crate::tasks::Problem;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

pub fn run(args: &EvaluateArgs, dir: &Path) -> Result<()> {
    let folders = super::super::compare::evaluation_folders(dir)?;
    let mut done = Vec::with_capacity(folders.len());
    let out = args.out.clone().unwrap_or_else(|| {
        let rule = args.rule.and_then(|rule| Some(serde_json::to_value(rule).ok()?.as_str()?.to_string()));
        let name = rule.unwrap_or_else(|| if args.command.is_some() { "command" } else { "again" }.to_string());
        dir.join(format!("rescored-{name}"))
    });
    let several = folders.iter().any(|(_, folder)| folder != dir);
    for (name, folder) in &folders {
        let to = if several { out.join(name) } else { out.clone() };
        done.push(one(args, name, folder, &to).with_context(|| format!("{}", folder.display()))?);
    }
    if several {
        save_summary(&out, &done)?;
    }
    print!("{}", report(&done, Style::Terminal));
    println!("Written to {}", out.display());
    Ok(())
}

fn one(args: &EvaluateArgs, name: &str, from: &Path, to: &Path) -> Result<Evaluation> {
    ensure!(args.ablate.modules.is_empty(), "--ablate with --rescore: nothing is sampled, only judged again");
    ensure!(from != to, "--out {} is the folder that is judged again: choose another", to.display());
    let settings: PathBuf = from.join(SETTINGS);
    let mut settings: Settings = serde_json::from_slice(&read(&settings)?)
        .with_context(|| format!("{} is not what bupo evaluate writes there", settings.display()))?;
    settings.reward = asked_reward(args).unwrap_or(settings.reward);
    let mut problems: Vec<Problem> = read_jsonl(&from.join(PROBLEMS))?;
    ensure!(!problems.is_empty(), "{} holds no problems", from.join(PROBLEMS).display());
    limited(&mut problems, args.limit)?;
    let generations: Vec<Generation> = read_jsonl(&from.join(RESPONSES))?;
    let n = args.n.unwrap_or(settings.n);
    let evaluate = EvaluateSettings {
        seed: settings.seed,
        policy: InternalPolicy::Final,
        ablate: settings.ablate.clone(),
        sampling: Sampling {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            max_new_tokens: settings.max_new_tokens,
        },
        slots: 1,
        n,
        k: args.k.clone().unwrap_or_else(|| usual_ks(n)),
        reward: settings.reward.clone(),
    };
    let bad_rows = super::super::compare::read_evaluation(from).map(|e| e.bad_rows).unwrap_or_default();
    let plan = Plan { suite: Suite::of_file(name, RESPONSES), problems, bad_rows, template: None };
    let reward = Reward::new(&evaluate.reward, settings.max_new_tokens)?;
    let model = settings.model.clone();
    write_json(&to.join(SETTINGS), &Settings { n, ..settings })?;
    finish(&reward, &evaluate, &plan, &model, &generations, to)
}

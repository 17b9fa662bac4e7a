//! `bupo evaluate`: Avg@K and Pass@K, every response saved.

use super::open;
use crate::cli::EvaluateArgs;
use crate::evaluate::run::{EvaluateSettings, evaluate};
use crate::evaluate::scores::Scores;
use crate::model::Workspace;
use crate::policy::InternalPolicy;
use crate::rollout::sampler::Sampling;
use crate::run::atomic::write_file_atomic;
use crate::run::jsonl::write_jsonl;
use crate::run::progress::Progress;
use crate::tasks::dataset::read_problems;
use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use std::path::Path;

pub fn run(args: &EvaluateArgs) -> Result<()> {
    ensure!(args.n > 0, "-n 0: expected at least one response to each problem");
    ensure!(args.temperature >= 0.0, "--temperature {}: expected 0 (greedy) or more", args.temperature);
    ensure!(args.top_p > 0.0 && args.top_p <= 1.0, "--top-p {}: expected above 0, up to 1", args.top_p);
    for k in &args.k {
        ensure!((1..=args.n).contains(k), "-k {k}: expected 1 to -n {}, the responses to each problem", args.n);
    }
    let mut problems = read_problems(&args.data)?;
    problems.truncate(args.limit.unwrap_or(usize::MAX));
    let opened = open(&args.model, &args.prompt, args.compute)?;
    let asked = problems.iter().map(|p| Ok(opened.prompts.encode(&p.messages)?.ids)).collect::<Result<Vec<_>>>()?;
    let settings = EvaluateSettings {
        seed: args.seed,
        policy: InternalPolicy::parse(&args.policy, opened.model.config.layers)?,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            max_new_tokens: super::max_new_tokens(args.max_new_tokens, 2048, &opened.model, asked.iter()),
        },
        slots: args.slots,
        n: args.n,
        k: args.k.clone(),
        rule: args.rule,
    };
    let mut progress = Progress::new("evaluate", (problems.len() * args.n) as u64);
    let mut ws = Workspace::new(&opened.model);
    let (scores, rows) =
        evaluate(&opened.model, &mut ws, &opened.prompts, &problems, &settings, &mut |n| progress.inc(n))?;
    progress.finish();
    save(&args.out, &scores, &rows)?;
    println!("{}\nWritten to {}", table(&scores), args.out.display());
    Ok(())
}

/// Writes `evaluation.json` and `responses.jsonl`.
pub fn save<T: serde::Serialize>(dir: &Path, scores: &Scores, rows: &[T]) -> Result<()> {
    let text = serde_json::to_string_pretty(scores).context("the scores cannot be written as JSON")?;
    write_jsonl(&dir.join("responses.jsonl"), rows)?;
    write_file_atomic(&dir.join("evaluation.json"), format!("{text}\n").as_bytes())
}

fn table(scores: &Scores) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["score", "percent", "standard error"]);
    let percent = |x: f64| format!("{:.2}", 100.0 * x);
    let error = |e: Option<f64>| e.map_or("-".to_string(), percent);
    let avg = &scores.avg_at_n;
    table.add_row([format!("Avg@{}", scores.responses_per_problem), percent(avg.mean), error(avg.standard_error)]);
    for pass in &scores.pass_at_k {
        table.add_row([format!("Pass@{}", pass.k), percent(pass.pass.mean), error(pass.pass.standard_error)]);
    }
    let s = &scores.statuses;
    format!(
        "{table}\n{} problems; responses: {} correct, {} wrong, {} without an answer, {} unparsable; {:.1} % truncated",
        scores.problems,
        s.correct,
        s.wrong,
        s.no_answer,
        s.unparsable,
        100.0 * scores.truncated
    )
}

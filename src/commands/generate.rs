//! `bupo generate`: samples from any policy, to look at or to keep.

use super::{open, row_tokens};
use crate::cli::GenerateArgs;
use crate::model::Workspace;
use crate::policy::InternalPolicy;
use crate::rollout::engine::{Engine, Finish, Request, generate};
use crate::rollout::sampler::Sampling;
use crate::run::jsonl::write_jsonl;
use crate::run::progress::{Progress, say};
use crate::tasks::dataset::{Row, read_rows};
use crate::tasks::seed::derive_seed;
use crate::text::Message;
use anyhow::{Result, ensure};
use serde::Serialize;
use std::io::Write;

const SLOTS: usize = 64;

#[derive(Serialize)]
struct GenerateRow {
    prompt: usize,
    sample: usize,
    policy: String,
    text: String,
    input_ids: Vec<u32>,
    response_start: usize,
    log_probs: Vec<f32>,
    finish: Finish,
}

pub fn run(args: &GenerateArgs) -> Result<()> {
    ensure!(args.temperature >= 0.0, "--temperature {}: expected 0 (greedy) or more", args.temperature);
    ensure!(args.top_p > 0.0 && args.top_p <= 1.0, "--top-p {}: expected above 0, up to 1", args.top_p);
    ensure!(args.n > 0, "-n 0: expected at least one sample");
    let opened = open(&args.model, &args.style, args.numbers.compute)?;
    let (model, prompts) = (&opened.model, &opened.prompts);
    let policy = InternalPolicy::parse(&args.policy, model.config.layers)?;
    let rows = match (&args.prompt, &args.data) {
        (Some(text), _) => vec![Row::Prompt { messages: vec![Message { role: "user".into(), content: text.clone() }] }],
        (None, Some(path)) => read_rows(path)?,
        (None, None) => Vec::new(),
    };
    let mut requests = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        let (mut prompt, response_start) = row_tokens(row, Some(prompts))?;
        prompt.truncate(response_start.unwrap_or(usize::MAX));
        let seeds = (0..args.n).map(|sample| derive_seed(args.seed, 0, i as u64, sample as u64)).collect();
        requests.push(Request { prompt, seeds });
    }
    let sampling = Sampling {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_k: args.top_k,
        top_p: args.top_p,
        max_new_tokens: super::max_new_tokens(args.max_new_tokens, 256, model, requests.iter().map(|r| &r.prompt)),
    };
    let engine = Engine { policy, sampling, eos_ids: prompts.eos_ids(), slots: SLOTS };
    let mut progress = Progress::new("generate", (requests.len() * args.n) as u64);
    let completions = generate(model, &mut Workspace::new(model), &engine, &requests, &mut |n| progress.inc(n))?;
    progress.finish();
    let mut out = Vec::new();
    for (i, (request, group)) in requests.iter().zip(completions).enumerate() {
        for (sample, completion) in group.into_iter().enumerate() {
            out.push(GenerateRow {
                prompt: i + 1,
                sample: sample + 1,
                policy: policy.to_string(),
                text: prompts.decode_whole(&completion.ids)?,
                input_ids: [&request.prompt[..], &completion.ids].concat(),
                response_start: request.prompt.len(),
                log_probs: completion.log_probs,
                finish: completion.finish,
            });
        }
    }
    if let Some(path) = &args.out {
        write_jsonl(path, &out)?;
        say(&format!("{} samples from {policy}; written to {}", out.len(), path.display()));
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    for row in &out {
        if out.len() > 1 {
            writeln!(
                stdout,
                "--- prompt {}, sample {} ({policy}, {} tokens)",
                row.prompt,
                row.sample,
                row.log_probs.len()
            )?;
        }
        writeln!(stdout, "{}", row.text)?;
    }
    Ok(())
}

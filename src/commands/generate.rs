//! `bupo generate`: samples from any policy, or from several on the same prompts and seeds, to look at or to keep.

mod side_by_side;

use side_by_side::{Answer, side_by_side};

use super::ablate::names;
use super::device::{self, Device, on_device};
use super::{Opened, open, row_tokens};
use crate::cli::GenerateArgs;
use crate::model::{LayerIndex, Tap, Workspace};
use crate::policy::InternalPolicy;
use crate::rollout::engine::{Engine, Finish, Request, generate};
use crate::rollout::sampler::{Sampling, check_temperature_or_greedy};
use crate::run::atomic::ensure_writable;
use crate::run::jsonl::write_jsonl;
use crate::run::progress::{Progress, say};
use crate::tasks::dataset::{Row, read_rows};
use crate::tasks::seed::derive_seed;
use crate::text::Message;
use anyhow::{Result, ensure};
use serde::Serialize;
use std::io::Write;

const SLOTS: usize = 64;
/// Cells of a line where the output is no terminal.
const WIDTH: usize = 100;

#[derive(Serialize)]
struct GenerateRow {
    prompt: usize,
    sample: usize,
    policy: String,
    /// Modules that the model was run without.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ablate: Vec<String>,
    text: String,
    input_ids: Vec<u32>,
    response_start: usize,
    log_probs: Vec<f32>,
    finish: Finish,
}

pub fn run(args: &GenerateArgs) -> Result<()> {
    check_temperature_or_greedy("--temperature", args.temperature)?;
    ensure!(args.top_p > 0.0 && args.top_p <= 1.0, "--top-p {}: expected above 0, up to 1", args.top_p);
    ensure!(args.n > 0, "-n 0: expected at least one sample");
    on_device!(device::open(args.numbers.device, args.numbers.compute)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &GenerateArgs, backend: B) -> Result<()> {
    let Opened { weights, prompts } = open(&args.model, &args.style)?;
    let without = args.ablate.modules(&weights.config)?;
    let mut policies: Vec<InternalPolicy> = Vec::with_capacity(args.policy.len());
    for name in &args.policy {
        let policy = InternalPolicy::parse(name, weights.config.layers)?;
        ensure!(!policies.contains(&policy), "--policy names {policy} twice: its samples would be the same");
        policies.push(policy);
    }
    let deepest = policies
        .iter()
        .map(|policy| policy.tap())
        .max_by_key(|tap| tap.layer().map_or(usize::MAX, LayerIndex::one_based));
    let mut model = backend.read_for_sampling(weights, deepest.unwrap_or(Tap::Final), |_, _| ())?;
    model.ablate(&without, None)?;
    let model = &model;
    let rows = match (&args.prompt, &args.data) {
        (Some(text), _) => vec![Row::Prompt { messages: vec![Message { role: "user".into(), content: text.clone() }] }],
        (None, Some(path)) => read_rows(path)?,
        (None, None) => Vec::new(),
    };
    let mut requests = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        let (mut prompt, response_start) = row_tokens(row, Some(&prompts))?;
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
    args.out.as_deref().map_or(Ok(()), ensure_writable)?;
    let mut progress = Progress::new("generate", (requests.len() * args.n * policies.len()) as u64);
    let mut ws = Workspace::new(model);
    let mut rows = Vec::with_capacity(requests.len() * args.n * policies.len());
    for policy in &policies {
        let engine = Engine { policy: *policy, sampling, eos_ids: prompts.eos_ids(), slots: SLOTS };
        let completions = generate(model, &mut ws, &engine, &requests, &mut |n| progress.inc(n))?;
        for (i, (request, group)) in requests.iter().zip(completions).enumerate() {
            for (sample, completion) in group.into_iter().enumerate() {
                rows.push(GenerateRow {
                    prompt: i + 1,
                    sample: sample + 1,
                    policy: policy.to_string(),
                    ablate: names(&without),
                    text: prompts.decode_whole(&completion.ids)?,
                    input_ids: [&request.prompt[..], &completion.ids].concat(),
                    response_start: request.prompt.len(),
                    log_probs: completion.log_probs,
                    finish: completion.finish,
                });
            }
        }
    }
    progress.finish();
    // What the policies make of one prompt and seed stands together; the sort is stable.
    rows.sort_by_key(|row| (row.prompt, row.sample));
    if let Some(path) = &args.out {
        write_jsonl(path, &rows)?;
        let names = policies.iter().map(|p| p.to_string()).collect::<Vec<_>>().join(", ");
        say(&format!("{} samples from {names}; written to {}", rows.len(), path.display()));
        return Ok(());
    }
    show(&rows, policies.len())
}

/// The samples on the terminal, `policies` of each prompt and seed.
fn show(rows: &[GenerateRow], policies: usize) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| width.0 as usize);
    for group in rows.chunk_by(|a, b| (a.prompt, a.sample) == (b.prompt, b.sample)) {
        let Some(first) = group.first() else { continue };
        if policies > 1 {
            let answers: Vec<Answer<'_>> = group.iter().map(Answer::of).collect();
            writeln!(stdout, "--- prompt {}, sample {}", first.prompt, first.sample)?;
            writeln!(stdout, "{}\n", side_by_side(&answers, width))?;
            continue;
        }
        if rows.len() > 1 {
            let (policy, tokens) = (&first.policy, first.log_probs.len());
            writeln!(stdout, "--- prompt {}, sample {} ({policy}, {tokens} tokens)", first.prompt, first.sample)?;
        }
        writeln!(stdout, "{}", first.text)?;
    }
    Ok(())
}

impl<'a> Answer<'a> {
    fn of(row: &'a GenerateRow) -> Answer<'a> {
        let n = row.log_probs.len();
        let mean = row.log_probs.iter().map(|p| *p as f64).sum::<f64>() / n.max(1) as f64;
        let cut = if row.finish == Finish::Length { ", cut" } else { "" };
        Answer { policy: &row.policy, note: format!("{n} tokens{cut}, log-prob {mean:.2}"), text: &row.text }
    }
}

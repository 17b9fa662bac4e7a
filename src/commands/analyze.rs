//! `bupo analyze`: responses in, `analysis.json`, a table and a chart out.

pub mod tokens;

use super::{open_model, optional_encoder, row_tokens};
use crate::analysis::{Analysis, Flow, Reading, Sample, terminal};
use crate::cli::AnalyzeArgs;
use crate::hub::checkpoint;
use crate::model::{LayerIndex, Model, Workspace};
use crate::policy::InternalPolicy;
use crate::rollout::engine::{Engine, Request, generate};
use crate::rollout::sampler::Sampling;
use crate::run::atomic::write_file_atomic;
use crate::run::manifest::peak_memory_mib;
use crate::run::parquet::{Column, write_parquet};
use crate::run::progress::{Progress, say};
use crate::tasks::dataset::read_rows;
use crate::tasks::seed::derive_seed;
use crate::text::PromptEncoder;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Files of an analysis's folder.
pub const RESULT: &str = "analysis.json";
pub const LAYERS: &str = "layers.parquet";

/// Sequences decoded at once where responses are generated first.
const SLOTS: usize = 64;

pub fn run(args: &AnalyzeArgs) -> Result<()> {
    let mut rows = read_rows(&args.data)?;
    rows.truncate(args.limit.unwrap_or(usize::MAX));
    let dir = checkpoint(&args.model)?;
    let model = open_model(&dir, args.numbers.compute)?;
    let prompts = optional_encoder(&dir, &args.prompt, model.config.max_position_embeddings)?;
    if args.tokens.is_some() {
        let vocabulary = model.config.vocab_size;
        ensure!((1..=vocabulary).contains(&args.top), "--top {}: expected 1 to {vocabulary} tokens", args.top);
    }
    ensure!(args.tokens != Some(0), "--tokens 0: expected at least one sample");
    let mut ws = Workspace::new(&model);
    let mut samples = Vec::with_capacity(rows.len());
    let mut unanswered = Vec::new();
    for row in &rows {
        match row_tokens(row, prompts.as_ref())? {
            (ids, Some(response_start)) => samples.push(Sample { ids, response_start }),
            (ids, None) => unanswered.push(ids),
        }
    }
    if !unanswered.is_empty() {
        samples.extend(answer(args, &model, &mut ws, prompts.as_ref(), unanswered)?);
    }
    let mut progress = Progress::new("analyze", samples.len() as u64);
    let layers = model.config.layers;
    let chosen = args.layer.map(|layer| LayerIndex::from_one_based(layer, layers)).transpose().context("--layer")?;
    let mut flow = Flow::new(layers, Reading { lens: args.lens, chosen });
    let start = std::time::Instant::now();
    flow.add(&model, &mut ws, &samples, &mut |n| progress.inc(n))?;
    progress.finish();
    let seconds = start.elapsed().as_secs_f64();
    let analysis = flow.finish(&model, &args.model.to_string_lossy(), args.threshold)?;
    save(&args.out, &analysis)?;
    if let Some(n) = args.tokens {
        let samples = &samples[..n.min(samples.len())];
        let tokenizer = prompts.as_ref().map(PromptEncoder::tokenizer);
        let path = tokens::save(&args.out, (&model, &mut ws), samples, args.lens, args.top, tokenizer)?;
        say(&format!("{} samples token by token: {}", samples.len(), path.display()));
    }
    if args.json {
        let rate = analysis.tokens as f64 / seconds;
        let line = serde_json::json!({
            "tokens": analysis.tokens, "seconds": seconds, "tokens_per_second": rate, "peak_rss_mib": peak_memory_mib(),
        });
        println!("{line}");
        return Ok(());
    }
    println!("{}\n{}", terminal::table(&analysis), terminal::summary(&analysis));
    println!(
        "{:.1} s, {:.0} response tokens/s. Written to {}",
        seconds,
        analysis.tokens as f64 / seconds,
        args.out.join(RESULT).display()
    );
    Ok(())
}

/// Writes an analysis into a folder: `analysis.json`, and its numbers by layer as `layers.parquet`.
pub fn save(dir: &Path, analysis: &Analysis) -> Result<()> {
    let columns: Vec<(String, Column)> = analysis.columns().into_iter().map(column).collect();
    let columns: Vec<(&str, Column)> = columns.iter().map(|(name, column)| (name.as_str(), column.clone())).collect();
    write_parquet(&dir.join(LAYERS), &columns)?;
    let text = serde_json::to_string_pretty(analysis).context("the analysis cannot be written as JSON")?;
    write_file_atomic(&dir.join(RESULT), format!("{text}\n").as_bytes())
}

fn column((name, values): (String, Vec<Option<f64>>)) -> (String, Column) {
    let column = if name == "layer" {
        Column::U32(values.into_iter().flatten().map(|layer| layer as u32).collect())
    } else {
        Column::OptionalF64(values)
    };
    (name, column)
}

/// Samples one response to each prompt from the final policy.
fn answer(
    args: &AnalyzeArgs,
    model: &Model,
    ws: &mut Workspace,
    prompts: Option<&PromptEncoder>,
    unanswered: Vec<Vec<u32>>,
) -> Result<Vec<Sample>> {
    let eos_ids = prompts.map_or(&model.config.eos_token_ids[..], |p| p.eos_ids());
    let max_new_tokens = super::max_new_tokens(args.max_new_tokens, 512, model, unanswered.iter());
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens };
    say(&format!("{} rows have no response: the model answers them first", unanswered.len()));
    let requests: Vec<Request> = unanswered
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| Request { prompt, seeds: vec![derive_seed(args.seed, 0, i as u64, 0)] })
        .collect();
    let mut progress = Progress::new("answer", requests.len() as u64);
    let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids, slots: SLOTS };
    let completions = generate(model, ws, &engine, &requests, &mut |n| progress.inc(n))?;
    progress.finish();
    let mut samples = Vec::with_capacity(requests.len());
    for (request, completion) in requests.into_iter().zip(completions.into_iter().flatten()) {
        ensure!(!completion.ids.is_empty(), "a response came out empty");
        let response_start = request.prompt.len();
        samples.push(Sample { ids: [request.prompt, completion.ids].concat(), response_start });
    }
    Ok(samples)
}

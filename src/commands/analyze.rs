//! `bupo analyze`: responses in, `analysis.json`, `layers.parquet` and a table out. Rows are read one at a time, and what was
//! counted is saved now and then, so that memory does not grow with the data and an interrupted analysis goes on.

mod answers;
pub(super) mod source;
mod state;
pub mod tokens;

use super::device::{self, Device, on_device};
use super::evaluate::write_json;
use super::{max_new_tokens, open_model, optional_encoder};
use crate::analysis::flow::PACK_TOKENS;
use crate::analysis::{Analysis, Flow, Reading, Sample, terminal};
use crate::cli::AnalyzeArgs;
use crate::commands::run_folder::checkpoint;
use crate::model::{LayerIndex, Model, Workspace};
use crate::run::atomic::{ensure_writable, read, remove};
use crate::run::fingerprint::Fingerprint;
use crate::run::interrupt;
use crate::run::manifest::peak_memory_mib;
use crate::run::parquet::{Column, write_parquet};
use crate::run::progress::{Progress, say};
use crate::run::unfinished::Unfinished;
use crate::text::PromptEncoder;
use answers::Answers;
use anyhow::{Context, Result, bail, ensure};
use source::{Contents, Source, Tokens};
use state::{About, of_model};
use std::cell::OnceCell;
use std::iter::Peekable;
use std::path::Path;
use std::time::{Duration, Instant};

/// Files of an analysis's folder.
pub const RESULT: &str = "analysis.json";
pub const LAYERS: &str = "layers.parquet";

/// While the analysis is not finished.
const PROGRESS: &str = "progress.json";

/// Longest response where the options do not say.
const USUAL_RESPONSE: usize = 512;

pub fn run(args: &AnalyzeArgs) -> Result<()> {
    source::check_file(&args.data)?;
    on_device!(device::open(args.numbers.device, args.numbers.compute)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &AnalyzeArgs, backend: B) -> Result<()> {
    let dir = checkpoint(&args.model)?;
    let mut model = open_model(&dir)?.on(backend);
    let without = args.ablate.apply(&mut model)?;
    let layers = model.config.layers;
    if args.tokens.is_some() {
        let vocabulary = model.config.vocab_size;
        ensure!((1..=vocabulary).contains(&args.top), "--top {}: expected 1 to {vocabulary} tokens", args.top);
    }
    ensure!(args.tokens != Some(0), "--tokens 0: expected at least one sample");
    let threshold = args.threshold.unwrap_or(0.0);
    ensure!(threshold >= 0.0 && threshold.is_finite(), "--threshold {threshold}: expected nats of 0 or more");
    let chosen = args.layer.map(|layer| LayerIndex::from_one_based(layer, layers)).transpose().context("--layer")?;
    let prompts = optional_encoder(&dir, &args.prompt, model.config.max_position_embeddings)?;
    let source = Source { path: &args.data, limit: args.limit.unwrap_or(usize::MAX), prompts: prompts.as_ref() };
    let contents = source.scan(&model)?;
    ensure_writable(&args.out.join(RESULT))?;
    interrupt::install()?;
    let mut ws = Workspace::new(&model);
    let weights = OnceCell::new();
    let weights = || weights.get_or_init(|| of_model(&model)).clone();
    let answers = (contents.unanswered > 0).then(|| answers(args, &source, &contents, (&model, &without), weights()));
    if let Some(answers) = &answers
        && !answers.complete(&model, &mut ws)?
    {
        interrupt::stop("stopped while the model was answering. The same command goes on from here");
        return Ok(());
    }
    let about = || About {
        bupo: env!("CARGO_PKG_VERSION").into(),
        model: weights(),
        data: contents.fingerprint.clone(),
        answers: answers.as_ref().map(|a| a.fingerprint.clone()),
        lens: args.lens,
        layer: args.layer,
        compute: model.backend.compute(),
        ablate: without.clone(),
    };
    let mut saved = Unfinished::new(args.out.join(PROGRESS), Duration::from_secs(args.save_every), about);
    let reading = Reading { lens: args.lens, chosen };
    let mut flow = match saved.open()? {
        None => Flow::new(layers, reading),
        Some(sums) => Flow::go_on(layers, reading, sums)
            .with_context(|| format!("{} is broken: {}", saved.path().display(), saved.remedy()))?,
    };
    let (from, tokens_before) = (flow.sums().samples(), flow.sums().tokens());
    if from > 0 {
        say(&format!("{from} of {} samples were analysed before: going on", contents.rows));
    }
    let mut progress = Progress::new("analyze", contents.rows as u64);
    progress.inc(from as u64);
    let start = Instant::now();
    let mut rest = samples(&source, answers.as_ref(), from)?.peekable();
    while rest.peek().is_some() {
        let pack = next_pack(&mut rest)?;
        flow.add(&model, &mut ws, &pack, &mut |n| progress.inc(n))?;
        let unfinished = flow.sums().samples() < contents.rows;
        if unfinished {
            saved.save(flow.sums(), interrupt::requested())?;
        }
        if unfinished && interrupt::requested() {
            progress.finish();
            interrupt::stop(&format!(
                "stopped after {} of {} samples, saved in {}. The same command goes on from here",
                flow.sums().samples(),
                contents.rows,
                saved.path().display()
            ));
            return Ok(());
        }
    }
    progress.finish();
    ensure!(flow.sums().samples() == contents.rows, "{} changed while it was read", args.data.display());
    let seconds = start.elapsed().as_secs_f64();
    let analysis = flow.finish(&model, &args.ablate.called(&args.model), args.threshold)?;
    let map = args.out.join(tokens::TOKENS);
    if map.is_file() {
        // An earlier analysis's would be taken for this one's.
        remove(&map)?;
    }
    replaced(&args.out.join(RESULT), (&analysis.model, analysis.tokens));
    save(&args.out, &analysis)?;
    if let Some(n) = args.tokens {
        // All is counted: the same command makes the map alone, where that is interrupted.
        saved.save(flow.sums(), true)?;
        let first = samples(&source, answers.as_ref(), 0)?.take(n).collect::<Result<Vec<Sample>>>()?;
        let tokenizer = prompts.as_ref().map(PromptEncoder::tokenizer);
        let Some(path) = tokens::save(&args.out, (&model, &mut ws), &first, args.lens, args.top, tokenizer)? else {
            interrupt::stop(&format!(
                "stopped while the samples were shown token by token: {} is there. The same command goes on from here",
                args.out.join(RESULT).display()
            ));
            return Ok(());
        };
        say(&format!("{} samples token by token: {}", first.len(), path.display()));
    }
    saved.remove()?;
    let rate = (analysis.tokens - tokens_before) as f64 / seconds;
    if args.json {
        let line = serde_json::json!({
            "tokens": analysis.tokens, "seconds": seconds, "tokens_per_second": rate, "peak_rss_mib": peak_memory_mib(),
        });
        println!("{line}");
        return Ok(());
    }
    println!("{}\n{}", terminal::table(&analysis), terminal::summary(&analysis));
    println!("{seconds:.1} s, {rate:.0} response tokens/s. Written to {}", args.out.join(RESULT).display());
    Ok(())
}

/// How the rows without a response are answered.
fn answers<'a, B: Device>(
    args: &'a AnalyzeArgs,
    source: &'a Source<'a>,
    contents: &Contents,
    (model, without): (&Model<B>, &[String]),
    weights: String,
) -> Answers<'a> {
    let longest = std::iter::once(&contents.longest_prompt);
    let max_new_tokens = max_new_tokens(args.max_new_tokens, USUAL_RESPONSE, model, longest);
    let mut fingerprint = Fingerprint::new();
    fingerprint.text(&weights);
    fingerprint.text(&contents.fingerprint);
    fingerprint.number(args.seed);
    fingerprint.number(max_new_tokens as u64);
    fingerprint.text(&format!("{:?}", model.backend.compute()));
    without.iter().for_each(|name| fingerprint.text(name));
    Answers {
        source,
        unanswered: contents.unanswered,
        dir: &args.out,
        seed: args.seed,
        max_new_tokens,
        fingerprint: fingerprint.hex(),
    }
}

/// The samples from row `from` (0 the first) on, in order. Rows without a response take the model's own answers.
pub(super) fn samples<'a>(
    source: &Source<'a>,
    answers: Option<&Answers<'a>>,
    from: usize,
) -> Result<impl Iterator<Item = Result<Sample>> + use<'a>> {
    let mut answer = answers.map(|answers| answers.read(from)).transpose()?;
    let sample = move |(row, tokens): (usize, Result<Tokens>)| match (tokens?, &mut answer) {
        (Tokens::Answered(sample), _) => Ok(sample),
        (Tokens::Prompt(_), Some(answer)) => answer(row),
        (Tokens::Prompt(_), None) => bail!("row {row} has no response: the data changed while it was read"),
    };
    Ok((from + 1..).zip(source.rows(from)?).map(sample))
}

/// As many of the next samples as one forward takes.
pub(super) fn next_pack(samples: &mut Peekable<impl Iterator<Item = Result<Sample>>>) -> Result<Vec<Sample>> {
    let (mut pack, mut tokens) = (Vec::new(), 0);
    let fits = |next: &Result<Sample>, tokens: usize| match next {
        Ok(sample) => tokens == 0 || tokens + sample.ids.len() <= PACK_TOKENS,
        Err(_) => true,
    };
    while let Some(sample) = samples.next_if(|next| fits(next, tokens)) {
        let sample = sample?;
        tokens += sample.ids.len();
        pack.push(sample);
    }
    Ok(pack)
}

/// Says that a result of another model, or of other tokens, will be replaced by the next one.
pub(super) fn replaced(path: &Path, now: (&str, usize)) {
    let Some(then) = read(path).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok()) else {
        return;
    };
    let (model, tokens) = (&then["model"], &then["tokens"]);
    if model == now.0 && *tokens == now.1 {
        return;
    }
    say(&format!("{} was there before, of {model} and {tokens} response tokens: replaced", path.display()));
}

/// Writes an analysis into a folder: `analysis.json`, and its numbers by layer as `layers.parquet`.
pub fn save(dir: &Path, analysis: &Analysis) -> Result<()> {
    let columns: Vec<(String, Column)> = analysis.columns().into_iter().map(column).collect();
    let columns: Vec<(&str, Column)> = columns.iter().map(|(name, column)| (name.as_str(), column.clone())).collect();
    write_parquet(&dir.join(LAYERS), &columns)?;
    write_json(&dir.join(RESULT), analysis)
}

fn column((name, values): (String, Vec<Option<f64>>)) -> (String, Column) {
    let column = if name == "layer" {
        Column::U32(values.into_iter().flatten().map(|layer| layer as u32).collect())
    } else {
        Column::OptionalF64(values)
    };
    (name, column)
}

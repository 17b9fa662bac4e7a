//! One file a verb: wiring, no maths.

pub mod ablate;
pub mod adapter;
pub mod analyze;
pub mod bench;
pub mod compare;
mod device;
pub mod diff;
pub mod evaluate;
pub mod generate;
#[cfg(feature = "cuda")]
pub mod kernel_folder;
pub mod memory;
pub mod merge;
pub mod report;
mod run_folder;
pub mod score;
pub mod serve;
pub mod sft;
pub mod states;
pub mod sweep;
pub mod train;
pub mod verify;

use crate::cli::PromptArgs;
use crate::compute::Backend;
use crate::model::Model;
use crate::model::weights::TensorReader;
use crate::tasks::dataset::Row;
use crate::text::{ChatTemplate, PromptEncoder, PromptTemplate, Tokenizer};
use adapter::base_of_adapter;
use anyhow::{Context, Result, bail, ensure};
use run_folder::checkpoint;
use std::path::Path;

/// Starts the thread pool that everything computes on; all cores if no number is given.
pub fn start_threads(threads: Option<usize>) -> Result<()> {
    ensure!(threads != Some(0), "--threads 0: expected at least 1");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    pool.build_global().context("cannot start the threads")
}

/// A checkpoint whose weights are yet to be read, with its tokenizer and way of asking.
pub struct Opened {
    pub weights: TensorReader,
    pub prompts: PromptEncoder,
}

/// Opens a checkpoint folder, a run's last checkpoint, or a model of the hub by its name.
pub fn open(dir: &Path, prompt: &PromptArgs) -> Result<Opened> {
    let dir = checkpoint(dir)?;
    let weights = open_weights(&dir)?;
    let prompts = prompt_encoder(&dir, template(prompt, &dir), weights.config.max_position_embeddings)?;
    Ok(Opened { weights, prompts })
}

/// A checkpoint's weights, yet to be read. The folder of an adapter opens its base with it.
pub fn open_weights(dir: &Path) -> Result<TensorReader> {
    match base_of_adapter(dir)? {
        Some(base) => TensorReader::open_adapter(dir, &base),
        None => TensorReader::open(dir),
    }
}

/// A checkpoint's model, on the host, an adapter beside its base's weights.
pub fn open_model(dir: &Path) -> Result<Model> {
    Model::read(open_weights(dir)?)
}

/// The way of asking that the options name, if they name one.
pub fn asked_template(prompt: &PromptArgs) -> Option<PromptTemplate> {
    let chat = |system: &String| PromptTemplate::Chat { system: Some(system.clone()), variables: Default::default() };
    let plain = prompt.plain.as_ref().map(|text| PromptTemplate::Plain { text: text.clone() });
    prompt.template.clone().or(plain).or(prompt.system.as_ref().map(chat))
}

/// The way of asking a checkpoint's model: as the options say, else as the run did that the checkpoint is of, else by the model's
/// chat template.
pub fn template(prompt: &PromptArgs, checkpoint: &Path) -> PromptTemplate {
    asked_template(prompt).or_else(|| run_folder::template(checkpoint)).unwrap_or_default()
}

/// The tokenizer and chat template of a checkpoint folder, with a template and a limit. An adapter's are its base's, unless it has its
/// own.
pub fn prompt_encoder(dir: &Path, template: PromptTemplate, max_prompt_tokens: usize) -> Result<PromptEncoder> {
    prompt_encoder_beside(dir, base_of_adapter(dir)?.as_deref(), template, max_prompt_tokens)
}

/// [`prompt_encoder`] of an adapter whose base is known.
pub fn prompt_encoder_beside(
    dir: &Path,
    base: Option<&Path>,
    template: PromptTemplate,
    max_prompt_tokens: usize,
) -> Result<PromptEncoder> {
    let own = dir.join("tokenizer.json").is_file();
    let of_tokenizer = base.filter(|_| !own).unwrap_or(dir);
    let tokenizer = Tokenizer::from_dir_beside(of_tokenizer, base)?;
    let chat = ChatTemplate::from_dir(of_tokenizer, &tokenizer)?;
    PromptEncoder::new(tokenizer, chat, template, max_prompt_tokens)
}

/// Room for a response: what was asked for, else `usual` or what the context leaves after the longest prompt.
pub fn max_new_tokens<'a, B: Backend>(
    asked: Option<usize>,
    usual: usize,
    model: &Model<B>,
    prompts: impl Iterator<Item = &'a Vec<u32>>,
) -> usize {
    let longest = prompts.map(Vec::len).max().unwrap_or(0);
    asked.unwrap_or_else(|| usual.min(model.config.max_position_embeddings.saturating_sub(longest)).max(1))
}

/// Token ids of a row and where its response starts, if it has one.
pub fn row_tokens(row: &Row, prompts: Option<&PromptEncoder>) -> Result<(Vec<u32>, Option<usize>)> {
    let encoder = || prompts.ok_or_else(|| anyhow::anyhow!("a row of text needs the model's tokenizer.json"));
    match row {
        Row::Tokens { input_ids, response_start } => Ok((input_ids.clone(), *response_start)),
        Row::Text { messages, response } => {
            let encoder = encoder()?;
            let mut ids = encoder.encode(messages)?.ids;
            let start = ids.len();
            ids.extend(encoder.encode_response(response)?);
            Ok((ids, Some(start)))
        }
        Row::Problem(problem) => Ok((encoder()?.encode(&problem.messages)?.ids, None)),
        Row::Prompt { messages } => Ok((encoder()?.encode(messages)?.ids, None)),
    }
}

/// A row's ids and response for scoring.
pub fn response_tokens(row: &Row, prompts: Option<&PromptEncoder>, number: usize) -> Result<(Vec<u32>, usize)> {
    match row_tokens(row, prompts)? {
        (ids, Some(start)) if start < ids.len() => Ok((ids, start)),
        (ids, start) => bail!(
            "row {number} has {} tokens and {}: expected input_ids with a response_start below their number, or a prompt with \
             a response",
            ids.len(),
            start.map_or("no response".to_string(), |s| format!("a response that starts at {s}"))
        ),
    }
}

/// The encoder of a checkpoint folder if it has a tokenizer: token rows need none.
pub fn optional_encoder(dir: &Path, prompt: &PromptArgs, limit: usize) -> Result<Option<PromptEncoder>> {
    let base = base_of_adapter(dir)?;
    if !std::iter::once(dir).chain(base.as_deref()).any(|dir| dir.join("tokenizer.json").is_file()) {
        return Ok(None);
    }
    prompt_encoder(dir, template(prompt, dir), limit).map(Some)
}

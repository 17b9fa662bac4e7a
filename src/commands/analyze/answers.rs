//! Responses to the rows that have none: sampled from the final policy and saved as they end, so that an interrupted
//! analysis keeps them, and none is held.

use super::source::{Source, Tokens};
use crate::analysis::Sample;
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::rollout::Rollout;
use crate::rollout::engine::{Completion, Engine, Finish, Request, generate_each};
use crate::rollout::sampler::Sampling;
use crate::run::interrupt;
use crate::run::jsonl::{JsonlWriter, mend, sort_jsonl, stream_jsonl};
use crate::run::progress::{Progress, say};
use crate::tasks::seed::derive_seed;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// In the analysis's folder.
pub const RESPONSES: &str = "responses.jsonl";

/// Sequences decoded at once.
const SLOTS: usize = 64;
/// Prompts given to the engine at once: enough for its slots to be full nearly always.
const AT_ONCE: usize = 16 * SLOTS;

/// One line of the file, which is data for `bupo analyze` and `bupo score` too.
#[derive(Serialize, Deserialize)]
struct Answer {
    /// Its row in the data, from 1.
    row: usize,
    /// Fingerprint of everything that it depends on.
    sampled_by: String,
    response_start: usize,
    finish: Finish,
    /// The response as text, where the model has a tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    input_ids: Vec<u32>,
}

/// What is looked at first: the rest of a line may be long.
#[derive(Deserialize)]
struct Head {
    row: usize,
    sampled_by: String,
}

/// How rows are answered.
pub struct Answers<'a> {
    pub source: &'a Source<'a>,
    pub unanswered: usize,
    pub dir: &'a Path,
    pub seed: u64,
    pub max_new_tokens: usize,
    /// Of the model, the data, the seed and the length.
    pub fingerprint: String,
}

impl<'a> Answers<'a> {
    fn path(&self) -> PathBuf {
        self.dir.join(RESPONSES)
    }

    /// Samples what is missing. False if it was interrupted.
    pub fn complete<B: Rollout>(&self, model: &Model<B>, ws: &mut Workspace<B>) -> Result<bool> {
        let have = self.there()?;
        match have.len() {
            0 => say(&format!("{} rows have no response: the model answers them first", self.unanswered)),
            n => say(&format!("{n} of {} answers are there already", self.unanswered)),
        }
        let eos_ids = self.source.prompts.map_or(&model.config.eos_token_ids[..], |p| p.eos_ids());
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: self.max_new_tokens };
        let engine = Engine { policy: InternalPolicy::Final, sampling, eos_ids, slots: SLOTS };
        let mut writer = JsonlWriter::open(&self.path())?;
        let mut progress = Progress::new("answer", self.unanswered as u64);
        progress.inc(have.len() as u64);
        let mut missing = self.prompts()?.filter(|prompt| !matches!(prompt, Ok(p) if have.contains(&p.row)));
        loop {
            let asked = missing.by_ref().take(AT_ONCE).collect::<Result<Vec<Prompt>>>()?;
            if asked.is_empty() {
                break;
            }
            let request = |p: &Prompt| Request { prompt: p.ids.clone(), seeds: vec![p.seed] };
            let requests: Vec<Request> = asked.iter().map(request).collect();
            let mut ended = |request: usize, _: usize, completion: &Completion| {
                let prompt = asked.get(request).context("a response to no request")?;
                writer.append(&[self.answer(prompt, completion)?])?;
                progress.inc(1);
                ensure!(!interrupt::requested(), "interrupted");
                Ok(())
            };
            match generate_each(model, ws, &engine, &requests, &mut ended) {
                Err(_) if interrupt::requested() => {
                    progress.finish();
                    return Ok(false);
                }
                ended => drop(ended?),
            }
        }
        progress.finish();
        sort_jsonl(&self.path(), |head: &Head| head.row)?;
        Ok(true)
    }

    /// Rows that were answered before. Errors: a file that was made otherwise.
    fn there(&self) -> Result<BTreeSet<usize>> {
        let path = self.path();
        if !path.is_file() {
            return Ok(BTreeSet::new());
        }
        let strange = || {
            format!(
                "{} holds responses that were sampled otherwise (another model, other data, another seed or length): choose \
                 another --out, or move it away",
                path.display()
            )
        };
        // Looked at before it is touched: it may be somebody else's file.
        let mut have = BTreeSet::new();
        for head in stream_jsonl::<Head>(&path)? {
            let head = head.with_context(strange)?;
            ensure!(head.sampled_by == self.fingerprint && have.insert(head.row), strange());
        }
        mend(&path)?;
        Ok(have)
    }

    /// Rows without a response.
    fn prompts(&self) -> Result<impl Iterator<Item = Result<Prompt>> + use<'a>> {
        let (seed, mut at) = (self.seed, 0);
        let prompt = move |(row, tokens): (usize, Result<Tokens>)| match tokens {
            Err(error) => Some(Err(error)),
            Ok(Tokens::Answered(_)) => None,
            Ok(Tokens::Prompt(ids)) => {
                at += 1;
                Some(Ok(Prompt { row, ids, seed: derive_seed(seed, 0, at - 1, 0) }))
            }
        };
        Ok((1..).zip(self.source.rows(0)?).filter_map(prompt))
    }

    fn answer(&self, prompt: &Prompt, completion: &Completion) -> Result<Answer> {
        ensure!(!completion.ids.is_empty(), "a response came out empty");
        Ok(Answer {
            row: prompt.row,
            sampled_by: self.fingerprint.clone(),
            response_start: prompt.ids.len(),
            finish: completion.finish,
            response: self.source.prompts.map(|p| p.decode(&completion.ids)).transpose()?,
            input_ids: [&prompt.ids[..], &completion.ids].concat(),
        })
    }

    /// The saved answers from data row `from` (0 the first) on, in order: each call asks for the one of a row.
    pub fn read(&self, from: usize) -> Result<impl FnMut(usize) -> Result<Sample> + use<>> {
        let path = self.path();
        let mut answers = stream_jsonl::<Answer>(&path)?.skip_while(move |a| matches!(a, Ok(a) if a.row <= from));
        Ok(move |row| match answers.next().transpose()? {
            Some(a) if a.row == row => Ok(Sample { ids: a.input_ids, response_start: a.response_start }),
            _ => bail!("{} has no answer to row {row} in its place: remove it, and start again", path.display()),
        })
    }
}

/// A row without a response.
struct Prompt {
    /// From 1.
    row: usize,
    ids: Vec<u32>,
    seed: u64,
}

//! The rows of an analysis: read one at a time, every time they are needed.

use super::super::row_tokens;
use crate::analysis::{Sample, flow};
use crate::compute::Backend;
use crate::model::Model;
use crate::run::fingerprint::Fingerprint;
use crate::run::progress::Progress;
use crate::tasks::dataset::{place, stream_rows};
use crate::text::PromptEncoder;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// A file of responses, or of problems that the model answers first.
pub struct Source<'a> {
    pub path: &'a Path,
    /// Only so many rows.
    pub limit: usize,
    pub prompts: Option<&'a PromptEncoder>,
}

/// One row in tokens.
pub enum Tokens {
    Answered(Sample),
    /// A prompt alone.
    Prompt(Vec<u32>),
}

/// What the rows hold.
pub struct Contents {
    pub rows: usize,
    pub unanswered: usize,
    /// The longest prompt without a response.
    pub longest_prompt: Vec<u32>,
    /// Of all tokens: of the data, the tokenizer and the way of asking.
    pub fingerprint: String,
}

/// Fails unless a file is there that can be read more than once: known before the model is opened.
pub fn check_file(path: &Path) -> Result<()> {
    drop(stream_rows(path)?);
    let twice = "rows are read more than once: save them to a file first";
    ensure!(path.is_file(), "{} is no plain file, and {twice}", path.display());
    Ok(())
}

impl<'a> Source<'a> {
    /// Rows in order, from the one numbered `from` (0 the first) on.
    pub fn rows(&self, from: usize) -> Result<impl Iterator<Item = Result<Tokens>> + use<'a>> {
        let (path, prompts) = (self.path, self.prompts);
        let rows = stream_rows(path)?.take(self.limit).skip(from);
        Ok(rows.map(move |row| {
            let (number, row) = row?;
            Ok(match row_tokens(&row, prompts).with_context(|| place(path, number))? {
                (ids, Some(response_start)) => Tokens::Answered(Sample { ids, response_start }),
                (ids, None) => Tokens::Prompt(ids),
            })
        }))
    }

    /// Reads everything once, so that no row turns out bad after hours.
    pub fn scan<B: Backend>(&self, model: &Model<B>) -> Result<Contents> {
        ensure!(self.limit > 0, "--limit 0: expected at least one row");
        let mut fingerprint = Fingerprint::new();
        let mut contents = Contents { rows: 0, unanswered: 0, longest_prompt: Vec::new(), fingerprint: String::new() };
        let mut progress = Progress::counter("read");
        for tokens in self.rows(0)? {
            contents.rows += 1;
            match tokens? {
                Tokens::Answered(sample) => {
                    flow::check(model, &sample).with_context(|| self.row(contents.rows))?;
                    fingerprint.number(sample.response_start as u64);
                    fingerprint.ids(&sample.ids);
                }
                Tokens::Prompt(ids) => {
                    model.check_tokens(&ids).with_context(|| self.row(contents.rows))?;
                    fingerprint.number(0);
                    fingerprint.ids(&ids);
                    contents.unanswered += 1;
                    if ids.len() > contents.longest_prompt.len() {
                        contents.longest_prompt = ids;
                    }
                }
            }
            progress.inc(1);
        }
        progress.finish();
        let empty = "the data set is empty: expected at least one row";
        ensure!(contents.rows > 0, "{}: {empty}", self.path.display());
        contents.fingerprint = fingerprint.hex();
        Ok(contents)
    }

    fn row(&self, number: usize) -> String {
        format!("{} row {number}", self.path.display())
    }
}

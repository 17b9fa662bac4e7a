//! From rows to examples: what is trained, what was cut, what was left out. Everything is counted and said.

use crate::cli::SftArgs;
use crate::rl::supervised::Example;
use crate::run::progress::say;
use crate::tasks::seed::{derive_seed, stable_hash};
use crate::tasks::supervised::{ImitationRow, read_imitation};
use crate::text::PromptEncoder;
use crate::text::conversation::Conversation;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Seeds of what is held out come from a stream of their own.
const HELD_OUT: u64 = 0x5F7;

/// What became of the rows; part of the run's `sft.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub rows: usize,
    /// Examples; more than rows where a template needs a conversation turn by turn.
    pub examples: usize,
    pub held_out: usize,
    /// Rows without a response, left out.
    pub without_response: usize,
    /// Examples that lost their end to `max_length`.
    pub truncated: usize,
    /// Of these, examples that lost their whole response, left out.
    pub cut_away: usize,
    /// Conversations that became an example for each turn.
    pub turn_by_turn: usize,
    /// Tokens, and those of them that are trained, held-out ones not counted.
    pub tokens: usize,
    pub trained_tokens: usize,
}

/// Examples to train on and examples held out.
pub struct Data {
    pub train: Vec<Example>,
    pub held_out: Vec<Example>,
    pub counts: Counts,
}

impl Data {
    /// The so many examples that take most rows.
    pub fn longest(&self, count: usize) -> Vec<Example> {
        let mut by_rows: Vec<&Example> = self.train.iter().collect();
        by_rows.sort_by_key(|example| std::cmp::Reverse(example.rows()));
        by_rows.into_iter().take(count).cloned().collect()
    }

    pub fn read(args: &SftArgs, prompts: &PromptEncoder) -> Result<Data> {
        let mut counts = Counts::default();
        let mut train = Vec::new();
        for path in &args.data {
            train.extend(examples(path, prompts, args.max_length, &mut counts)?);
        }
        let mut held_out = Vec::new();
        if let Some(path) = &args.eval_data {
            held_out = examples(path, prompts, args.max_length, &mut Counts::default())?;
            ensure!(!held_out.is_empty(), "--eval-data {}: no row of it has a response", path.display());
        } else if args.eval_share > 0.0 {
            // By its tokens, so that an example that is there twice is on one side.
            let of = |example: &Example| {
                let bytes: &[u8] = bytemuck::cast_slice(&example.ids);
                (derive_seed(args.seed, HELD_OUT, stable_hash(bytes), 0) >> 11) as f64 / (1u64 << 53) as f64
            };
            (held_out, train) = train.into_iter().partition(|example| of(example) < args.eval_share);
            ensure!(
                !held_out.is_empty(),
                "--eval-share {} of {} examples holds none out: raise it, or drop it",
                args.eval_share,
                counts.examples
            );
        }
        counts.held_out = held_out.len();
        counts.tokens = train.iter().map(|e| e.ids.len()).sum();
        counts.trained_tokens = train.iter().map(Example::tokens).sum();
        counts.say(args.max_length);
        ensure!(!train.is_empty(), "no example to train on: of {} rows none is left", counts.rows);
        Ok(Data { train, held_out, counts })
    }

    /// A hash of what is trained on and in which order it stands: a resumed run must find the same.
    pub fn fingerprint(&self) -> String {
        let fold = |hash: u64, e: &Example| {
            let spans: Vec<u8> = e.trained.iter().flat_map(|s| [s.start, s.end]).flat_map(usize::to_le_bytes).collect();
            derive_seed(hash, stable_hash(bytemuck::cast_slice(&e.ids)), stable_hash(&spans), 0)
        };
        format!("{:016x}", self.train.iter().chain(&self.held_out).fold(0, fold))
    }
}

fn examples(path: &Path, prompts: &PromptEncoder, longest: usize, counts: &mut Counts) -> Result<Vec<Example>> {
    let rows = read_imitation(path)?;
    let mut examples = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        counts.rows += 1;
        let conversations = match row {
            ImitationRow::Conversation { messages, from } => prompts.conversations(messages, *from),
            ImitationRow::Text(text) => prompts.whole_text(text).map(|whole| vec![whole]),
        };
        // Blank lines of the file are no rows, so this counts those that hold one.
        let conversations = conversations.with_context(|| format!("{}: row {}", path.display(), i + 1))?;
        counts.without_response += usize::from(conversations.iter().all(|c| c.written.is_empty()));
        counts.turn_by_turn += usize::from(conversations.len() > 1);
        for conversation in conversations.into_iter().filter(|c| !c.written.is_empty()) {
            counts.truncated += usize::from(conversation.ids.len() > longest);
            match example(conversation, longest) {
                Some(example) => examples.push(example),
                None => counts.cut_away += 1,
            }
        }
    }
    counts.examples += examples.len();
    Ok(examples)
}

/// Cut from the right; none if nothing that is trained remains.
fn example(conversation: Conversation, longest: usize) -> Option<Example> {
    let Conversation { mut ids, written } = conversation;
    ids.truncate(longest);
    let trained = written.into_iter().map(|span| span.start.max(1)..span.end.min(ids.len()));
    let trained: Vec<_> = trained.filter(|span| !span.is_empty()).collect();
    (!trained.is_empty()).then_some(Example { ids, trained })
}

impl Counts {
    fn say(&self, longest: usize) {
        let mut text = format!(
            "{} rows: {} examples to train on, {} held out; {} tokens, {} of them trained",
            self.rows,
            self.examples.saturating_sub(self.held_out),
            self.held_out,
            self.tokens,
            self.trained_tokens
        );
        for (count, what) in [
            (self.without_response, "without a response: left out".to_string()),
            (self.truncated, format!("longer than {longest} tokens: cut at their end")),
            (self.cut_away, "lost their whole response to the cut: left out".to_string()),
            (self.turn_by_turn, "trained turn by turn, as the chat template changes earlier turns".to_string()),
        ] {
            if count > 0 {
                text.push_str(&format!("\n  {count} {what}"));
            }
        }
        say(&text);
    }
}

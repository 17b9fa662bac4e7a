//! `DIR/tokens.parquet`: the first samples of an analysis, token by token and layer by layer.

use crate::analysis::{Lens, Sample, TokenRow, map_tokens};
use crate::compute::backend::Inspect;
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::run::interrupt;
use crate::run::parquet::{Column, ParquetWriter};
use crate::run::progress::Progress;
use crate::text::Tokenizer;
use crate::text::pieces::Pieces;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// Name of the file.
pub const TOKENS: &str = "tokens.parquet";

/// Values of a row group (a row has as many as it lists tokens, and a few): some tens of MiB while it is gathered.
const GROUP_VALUES: usize = 1 << 20;

/// Writes the map of some samples; returns where, or nothing if it was interrupted. Rows are written as they come, a row group at a time.
pub fn save<B: Inspect>(
    dir: &Path,
    (model, ws): (&Model<B>, &mut Workspace<B>),
    samples: &[Sample],
    lens: Lens,
    top: usize,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<PathBuf>> {
    let path = dir.join(TOKENS);
    let tokens: usize = samples.iter().map(|s| s.ids.len().saturating_sub(s.response_start)).sum();
    let mut progress = Progress::new("tokens", tokens as u64);
    let mut writer = ParquetWriter::new(&path);
    let (mut pieces, mut waiting) = (Pieces::new(tokenizer), Vec::new());
    let mapped = map_tokens(model, ws, samples, lens, top, &mut |rows| {
        ensure!(!interrupt::requested(), "interrupted");
        progress.inc(rows.iter().filter(|row| row.policy == InternalPolicy::Final).count() as u64);
        waiting.extend(rows);
        if waiting.len() * (top + 8) >= GROUP_VALUES {
            writer.append(&columns(&mut pieces, model.config.layers, &waiting))?;
            waiting.clear();
        }
        Ok(())
    });
    if interrupt::requested() && mapped.is_err() {
        return Ok(None);
    }
    mapped?;
    if !waiting.is_empty() {
        writer.append(&columns(&mut pieces, model.config.layers, &waiting))?;
    }
    progress.finish();
    writer.finish()?;
    Ok(Some(path))
}

fn columns(pieces: &mut Pieces<'_>, layers: usize, rows: &[TokenRow]) -> [(&'static str, Column); 13] {
    let place = |row: &TokenRow| match row.policy {
        InternalPolicy::Layer(l) => ("layer", l.one_based()),
        InternalPolicy::Normed(l) => ("normed", l.one_based()),
        InternalPolicy::Attention(l) => ("attn", l.one_based()),
        InternalPolicy::Ffn(l) => ("ffn", l.one_based()),
        InternalPolicy::Final => ("final", layers),
    };
    let integers = |of: &dyn Fn(&TokenRow) -> usize| Column::U32(rows.iter().map(|row| of(row) as u32).collect());
    let numbers = |of: &dyn Fn(&TokenRow) -> f32| Column::F32(rows.iter().map(of).collect());
    let mut text = |id: u32| pieces.text(id).to_string();
    [
        ("sample", integers(&|row| row.sample)),
        ("position", integers(&|row| row.position)),
        ("token_id", integers(&|row| row.token as usize)),
        ("token", Column::Text(rows.iter().map(|row| text(row.token)).collect())),
        ("state", Column::Text(rows.iter().map(|row| place(row).0.to_string()).collect())),
        ("layer", integers(&|row| place(row).1)),
        ("entropy", numbers(&|row| row.entropy)),
        ("kl_to_final", numbers(&|row| row.kl_to_final)),
        ("log_prob", numbers(&|row| row.log_prob)),
        ("rank", integers(&|row| row.rank as usize)),
        ("top_ids", Column::U32Lists(rows.iter().map(|row| row.top.iter().map(|t| t.0).collect()).collect())),
        ("top_tokens", Column::TextLists(rows.iter().map(|row| row.top.iter().map(|t| text(t.0)).collect()).collect())),
        ("top_probs", Column::F32Lists(rows.iter().map(|row| row.top.iter().map(|t| t.1).collect()).collect())),
    ]
}

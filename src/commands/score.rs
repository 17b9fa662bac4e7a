//! `bupo score`: log-probs and entropies of given responses under any policy.

use super::device::{self, Device, on_device};
use super::{open_model, optional_encoder, response_tokens};
use crate::cli::ScoreArgs;
use crate::commands::run_folder::checkpoint;
use crate::compute::Packing;
use crate::model::{Model, Workspace};
use crate::policy::{InternalPolicy, Targets};
use crate::rollout::sampler::check_temperature;
use crate::run::atomic::ensure_writable;
use crate::run::jsonl::write_jsonl;
use crate::run::progress::{Progress, say};
use crate::tasks::dataset::read_rows;
use anyhow::{Context, Result};
use serde::Serialize;

/// Tokens of one packed forward.
const PACK_TOKENS: usize = 4096;

#[derive(Serialize)]
struct ScoreRow {
    policy: String,
    temperature: f32,
    /// Modules that the model was run without.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ablate: Vec<String>,
    /// Of each response token, given everything before it.
    log_probs: Vec<f32>,
    /// Of the distribution that each response token came from, in nats.
    entropy: Vec<f32>,
}

pub fn run(args: &ScoreArgs) -> Result<()> {
    check_temperature("--temperature", args.temperature)?;
    let rows = read_rows(&args.data)?;
    let device = device::open(args.numbers.device, args.numbers.compute)?;
    let dir = checkpoint(&args.model)?;
    let model = open_model(&dir)?;
    let policy = InternalPolicy::parse(&args.policy, model.config.layers)?;
    let prompts = optional_encoder(&dir, &args.prompt, model.config.max_position_embeddings)?;
    let mut sequences = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        let (ids, start) = response_tokens(row, prompts.as_ref(), i + 1)?;
        model.check_tokens(&ids).with_context(|| format!("{} row {}", args.data.display(), i + 1))?;
        sequences.push((ids, start));
    }
    args.ablate.modules(&model.config)?;
    ensure_writable(&args.out)?;
    let out = on_device!(device, backend => {
        let mut model = model.on(backend);
        let without = args.ablate.apply(&mut model)?;
        score((&model, &without), policy, &sequences, args.temperature)
    })?;
    write_jsonl(&args.out, &out)?;
    say(&format!("scored {} rows under {policy}; written to {}", out.len(), args.out.display()));
    Ok(())
}

/// Rows of sequences and where their responses start.
fn score<B: Device>(
    (model, without): (&Model<B>, &[String]),
    policy: InternalPolicy,
    sequences: &[(Vec<u32>, usize)],
    temperature: f32,
) -> Result<Vec<ScoreRow>> {
    let (mut ws, mut out) = (Workspace::new(model), Vec::with_capacity(sequences.len()));
    let mut progress = Progress::new("score", sequences.len() as u64);
    let mut rest = sequences;
    while !rest.is_empty() {
        let (mut packing, mut targets, mut lengths) = (Packing::new(), Targets::default(), Vec::new());
        for (ids, start) in rest {
            if !lengths.is_empty() && packing.rows() + ids.len() > PACK_TOKENS {
                break;
            }
            let first = packing.push(&ids[..ids.len() - 1]).start;
            targets.push_response(ids, first, *start);
            lengths.push(ids.len() - start);
        }
        let stats = policy.score(model, &mut ws, &packing, &targets, temperature);
        let mut from = 0;
        for n in &lengths {
            out.push(ScoreRow {
                policy: policy.to_string(),
                temperature,
                ablate: without.to_vec(),
                log_probs: stats.log_probs[from..from + n].to_vec(),
                entropy: stats.entropy[from..from + n].to_vec(),
            });
            from += n;
        }
        progress.inc(lengths.len() as u64);
        rest = &rest[lengths.len()..];
    }
    progress.finish();
    model.backend.status()?;
    Ok(out)
}

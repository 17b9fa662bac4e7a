//! `bupo states`: hidden states of given tokens as a safetensors file, for probes and for tools that read activations.

use super::device::{self, Device, on_device};
use super::run_folder::checkpoint;
use super::{open_model, optional_encoder, row_tokens};
use crate::analysis::flow::PACK_TOKENS;
use crate::cli::StatesArgs;
use crate::compute::Packing;
use crate::model::{Model, ModelConfig, Tap, Workspace};
use crate::run::atomic::{ensure_writable, write_path_atomic};
use crate::run::progress::{Progress, say};
use crate::tasks::dataset::{place, stream_rows};
use anyhow::{Context, Result, ensure};
use safetensors::serialize_to_file;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// A row of the data: its number from 1, its tokens, and those whose states are wanted.
struct Wanted {
    row: usize,
    ids: Vec<u32>,
    tokens: Range<usize>,
}

/// States, and the tokens that they are of.
struct States {
    taps: Vec<Tap>,
    /// One for each tap, `[N, d]`, d its [`Tap::width`].
    values: Vec<Vec<f32>>,
    rows: Vec<i64>,
    positions: Vec<i64>,
    tokens: Vec<i64>,
}

pub fn run(args: &StatesArgs) -> Result<()> {
    on_device!(device::open(args.numbers.device, args.numbers.compute)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &StatesArgs, backend: B) -> Result<()> {
    let dir = checkpoint(&args.model)?;
    let mut model = open_model(&dir)?.on(backend);
    args.ablate.apply(&mut model)?;
    let mut taps = Vec::new();
    for name in &args.states {
        let some = Tap::parse_some(name.trim(), model.config.layers).with_context(|| format!("--states {name}"))?;
        for tap in some {
            if !taps.contains(&tap) {
                taps.push(tap);
            }
        }
    }
    let wanted = read(args, &dir, &model)?;
    ensure_writable(&args.out)?;
    let mut states = States::of(taps);
    states.read(&model, &wanted);
    model.backend.status()?;
    states.save(&args.out, &args.ablate.called(&args.model), &model.config)?;
    let (n, taps) = (states.tokens.len(), states.taps.len());
    say(&format!("{taps} states of {n} tokens written to {}", args.out.display()));
    Ok(())
}

fn read<B: Device>(args: &StatesArgs, dir: &Path, model: &Model<B>) -> Result<Vec<Wanted>> {
    let prompts = optional_encoder(dir, &args.prompt, model.config.max_position_embeddings)?;
    let mut wanted = Vec::new();
    for row in stream_rows(&args.data)?.take(args.limit.unwrap_or(usize::MAX)) {
        let (number, row) = row?;
        let at = || place(&args.data, number);
        let (ids, start) = row_tokens(&row, prompts.as_ref()).with_context(at)?;
        model.check_tokens(&ids).with_context(at)?;
        let from = match (args.response, start) {
            (false, _) => 0,
            (true, Some(start)) if start < ids.len() => start,
            (true, _) => {
                return Err(anyhow::anyhow!("no response: --response takes rows that have one")).with_context(at);
            }
        };
        wanted.push(Wanted { row: wanted.len() + 1, tokens: from..ids.len(), ids });
    }
    ensure!(!wanted.is_empty(), "{} is empty: expected at least one row", args.data.display());
    Ok(wanted)
}

impl States {
    fn of(taps: Vec<Tap>) -> States {
        let values = taps.iter().map(|_| Vec::new()).collect();
        States { taps, values, rows: Vec::new(), positions: Vec::new(), tokens: Vec::new() }
    }

    /// Forwards of several rows at a time, as far up as the highest tap.
    fn read<B: Device>(&mut self, model: &Model<B>, wanted: &[Wanted]) {
        let Some(until) = self.taps.iter().copied().max_by_key(|tap| tap.height()) else { return };
        let (mut ws, mut progress) = (Workspace::new(model), Progress::new("states", wanted.len() as u64));
        let mut rest = wanted;
        while !rest.is_empty() {
            let (mut packing, mut kept, mut taken) = (Packing::new(), Vec::new(), 0);
            for row in rest {
                if taken > 0 && packing.rows() + row.ids.len() > PACK_TOKENS {
                    break;
                }
                let at = packing.push(&row.ids).start;
                kept.extend(row.tokens.clone().map(|token| at + token));
                self.rows.extend(row.tokens.clone().map(|_| row.row as i64));
                self.positions.extend(row.tokens.clone().map(|token| token as i64));
                self.tokens.extend(row.ids[row.tokens.clone()].iter().map(|id| *id as i64));
                taken += 1;
            }
            let (taps, values) = (&self.taps, &mut self.values);
            model.forward_observed(&mut ws, &packing, until, &mut |tap, state| {
                if let Some(i) = taps.iter().position(|t| *t == tap) {
                    let (state, d) = (model.backend.host(state), tap.width(&model.config));
                    kept.iter().for_each(|row| values[i].extend_from_slice(&state[row * d..(row + 1) * d]));
                }
            });
            rest = &rest[taken..];
            progress.inc(taken as u64);
        }
        progress.finish();
    }

    fn save(&self, path: &Path, model: &str, config: &ModelConfig) -> Result<()> {
        let (n, mut tensors) = (self.tokens.len(), BTreeMap::new());
        let unwritable = || "the states cannot be written as safetensors";
        for (name, index) in [("row", &self.rows), ("position", &self.positions), ("token", &self.tokens)] {
            let view = TensorView::new(Dtype::I64, vec![n], bytemuck::cast_slice(index)).with_context(unwritable)?;
            tensors.insert(name.to_string(), view);
        }
        for (tap, values) in self.taps.iter().zip(&self.values) {
            let d = tap.width(config);
            let view =
                TensorView::new(Dtype::F32, vec![n, d], bytemuck::cast_slice(values)).with_context(unwritable)?;
            tensors.insert(tap.to_string(), view);
        }
        let about = HashMap::from([("model".to_string(), model.to_string())]);
        write_path_atomic(path, |file| serialize_to_file(tensors, Some(about), file).with_context(unwritable))
    }
}

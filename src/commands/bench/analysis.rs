//! An analysis of random samples.

use super::{layer_weights, model, open_device, print, random_ids, timed, warm_median, warmed};
use crate::analysis::flow::Flow;
use crate::analysis::{Reading, Sample};
use crate::cli::BenchAnalysisArgs;
use crate::commands::device::{Device, on_device};
use crate::model::{Model, Workspace};
use anyhow::{Result, ensure};
use serde_json::json;

pub fn run(args: &BenchAnalysisArgs) -> Result<()> {
    ensure!(args.rows > 0, "--rows 0: expected at least one sequence");
    ensure!(
        (1..args.length).contains(&args.prompt),
        "--prompt {}: expected at least 1 token, and fewer than the {} of --length",
        args.prompt,
        args.length
    );
    on_device!(open_device(args.numbers)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &BenchAnalysisArgs, backend: B) -> Result<()> {
    let backend = match args.head_tile {
        Some(mib) => backend.looking_at(mib << 20),
        None => backend,
    };
    let model = model(&args.model)?.on(backend);
    let sample = |i: usize| Sample { ids: random_ids(&model, i, args.length), response_start: args.prompt };
    let samples: Vec<Sample> = (0..args.rows).map(sample).collect();
    let (mut ws, mut seconds, mut entropies) = (Workspace::new(&model), Vec::new(), Vec::new());
    // One flow for all repetitions, which keeps its buffers; its means are those of one.
    let mut flow = Flow::new(model.config.layers, Reading::default());
    let times = args.repeat.max(1);
    for time in 0..times {
        let (took, analysis) = timed(&model.backend, || {
            flow.add(&model, &mut ws, &samples, &mut |_| ())?;
            flow.finish(&model, "", None)
        })?;
        seconds.push(took);
        entropies.push(analysis.final_entropy);
        warmed(&model.backend, time, times);
    }
    let (median, tokens) = (warm_median(&mut seconds), args.rows * (args.length - args.prompt));
    let gflop = analysis_gflop(&model, &samples);
    let line = json!({
        "gflops": gflop / median, "tokens": tokens, "seconds": median, "tokens_per_second": tokens as f64 / median,
        "final_entropy": entropies.first(),
    });
    print(line, &model.backend);
    Ok(())
}

/// Floating-point operations that an analysis needs: one forward, and the states that meet the unembedding: four of each layer (what
/// its modules read and write; its output's logits are a sum), the embedding and the final one.
fn analysis_gflop<B: Device>(model: &Model<B>, samples: &[Sample]) -> f64 {
    let c = &model.config;
    let weights = layer_weights(c);
    let states = 4 * c.layers + 2;
    let of = |sample: &Sample| {
        let (rows, read) = (sample.ids.len() - 1, sample.ids.len() - sample.response_start);
        let attention = 4 * c.q_dim() * rows * (rows + 1) / 2;
        c.layers * (2 * weights * rows + attention) + 2 * states * c.vocab_size * c.hidden_size * read
    };
    1e-9 * samples.iter().map(of).sum::<usize>() as f64
}

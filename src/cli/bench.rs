//! Arguments of `bupo bench`.

use super::{ComputeArgs, LoraArgs, parse_aggregation};
use crate::rl::Aggregation;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// One clipped-surrogate update on a batch; prints one line of JSON
    Update(BenchUpdateArgs),
    /// Sampling random prompts to a fixed length; prints one line of JSON
    Rollout(BenchRolloutArgs),
    /// An analysis of random sequences, every state of every layer; prints one line of JSON
    Analysis(BenchAnalysisArgs),
    /// What this machine can do: matrix products in f32 and bf16, reading memory; prints one line of JSON
    Machine,
    /// Whole GRPO steps, rollout to optimizer, on random prompts; prints one line of JSON
    Step(BenchStepArgs),
    /// Opening a checkpoint, and reading its files' bytes for comparison; prints one line of JSON
    Open(BenchOpenArgs),
}

/// What is computed with: a checkpoint, or random weights.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct BenchModelArgs {
    /// A HuggingFace checkpoint folder
    pub model: Option<PathBuf>,
    /// Random weights of this shape, in place of a checkpoint
    #[arg(long)]
    pub shape: Option<Shape>,
}

/// Shapes that need no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    #[value(name = "qwen3-0.6b")]
    Qwen3_0_6b,
    #[value(name = "qwen3-1.7b")]
    Qwen3_1_7b,
    #[value(name = "qwen3-4b")]
    Qwen3_4b,
    #[value(name = "qwen3-8b")]
    Qwen3_8b,
    /// 4 layers of hidden size 64, to try things with
    Tiny,
}

/// What it is computed in and where, and whether to look closer.
#[derive(Clone, Copy, Debug, Args)]
pub struct BenchNumbersArgs {
    #[command(flatten)]
    pub numbers: ComputeArgs,
    /// Follows what a GPU spends its time on, kernel by kernel: a table, and the key profile in the JSON. It takes some time itself
    #[arg(long)]
    pub profile: bool,
}

#[derive(Debug, Args)]
pub struct BenchOpenArgs {
    pub model: PathBuf,
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// Asks the system to forget the files before each time, so that the disk is read (Linux)
    #[arg(long)]
    pub cold: bool,
}

#[derive(Debug, Args)]
pub struct BenchUpdateArgs {
    #[command(flatten)]
    pub model: BenchModelArgs,
    /// JSON of input_ids, response_mask, advantages and old_log_probs, each [sequences][tokens]
    #[arg(long)]
    pub batch: PathBuf,
    /// The internal layer policy to update; the final policy without it
    #[arg(long)]
    pub layer: Option<usize>,
    /// Times; the first one warms up and does not count, unless it is the only one
    #[arg(long, default_value_t = 1)]
    pub repeat: usize,
    /// Updates in each repetition
    #[arg(long, default_value_t = 1)]
    pub steps: usize,
    #[arg(long, default_value_t = 1e-6)]
    pub lr: f64,
    #[arg(long, default_value = "token-mean", value_parser = parse_aggregation)]
    pub aggregation: Aggregation,
    /// Packed tokens of one forward and backward
    #[arg(long, default_value_t = 2048)]
    pub micro_batch_tokens: usize,
    /// Keep only each layer's input and compute the layer again in the backward
    #[arg(long)]
    pub recompute: bool,
    /// Keeps the optimizer's moments in the host's memory (a GPU)
    #[arg(long)]
    pub offload: bool,
    /// Writes the first gradient as safetensors
    #[arg(long)]
    pub grads: Option<PathBuf>,
    #[command(flatten)]
    pub adapter: LoraArgs,
    #[command(flatten)]
    pub numbers: BenchNumbersArgs,
}

#[derive(Debug, Args)]
pub struct BenchRolloutArgs {
    #[command(flatten)]
    pub model: BenchModelArgs,
    /// Sequences
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 32)]
    pub prompt: usize,
    /// New tokens of each sequence
    #[arg(long, default_value_t = 128)]
    pub new: usize,
    /// Times, after one that warms up
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    #[command(flatten)]
    pub numbers: BenchNumbersArgs,
}

#[derive(Debug, Args)]
pub struct BenchAnalysisArgs {
    #[command(flatten)]
    pub model: BenchModelArgs,
    /// Sequences
    #[arg(long, default_value_t = 4)]
    pub rows: usize,
    /// Tokens of each sequence
    #[arg(long, default_value_t = 1024)]
    pub length: usize,
    /// Tokens of each that are its prompt: what comes behind them is analysed, and counted
    #[arg(long, default_value_t = 32)]
    pub prompt: usize,
    /// Times; the first one warms up and does not count, unless it is the only one
    #[arg(long, default_value_t = 4)]
    pub repeat: usize,
    /// A GPU looks at logits so many MiB at a time [default: as it does elsewhere]
    #[arg(long, value_name = "MIB")]
    pub head_tile: Option<usize>,
    #[command(flatten)]
    pub numbers: BenchNumbersArgs,
}

#[derive(Debug, Args)]
pub struct BenchStepArgs {
    #[command(flatten)]
    pub model: BenchModelArgs,
    #[arg(long, default_value_t = 8)]
    pub prompts: usize,
    /// Responses to each prompt
    #[arg(long, default_value_t = 8)]
    pub group: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 24)]
    pub prompt: usize,
    /// New tokens of each response
    #[arg(long, default_value_t = 128)]
    pub new: usize,
    /// The internal layer policy to update; the final policy without it
    #[arg(long)]
    pub layer: Option<usize>,
    /// The first one warms up and does not count, unless it is the only one
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Packed tokens of one forward and backward
    #[arg(long, default_value_t = 2048)]
    pub micro_batch_tokens: usize,
    /// Keep only each layer's input and compute the layer again in the backward
    #[arg(long)]
    pub recompute: bool,
    /// Keeps the optimizer's moments in the host's memory (a GPU)
    #[arg(long)]
    pub offload: bool,
    /// Sequences decoded at once; all of them without it
    #[arg(long)]
    pub slots: Option<usize>,
    /// Gives every response a copy of its prompt in the update, in place of one for the group
    #[arg(long)]
    pub unshared: bool,
    #[command(flatten)]
    pub adapter: LoraArgs,
    #[command(flatten)]
    pub numbers: BenchNumbersArgs,
}

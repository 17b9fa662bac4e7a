//! Arguments of the verbs that look inside a model: `analyze`, `ablate`, `score`, `states`, `generate`.

use super::{ComputeArgs, PromptArgs, WithoutArgs, by_name};
use crate::analysis::Lens;
use crate::analysis::ablation::Replacement;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    pub model: PathBuf,
    /// JSONL of {input_ids, response_start} or {prompt|messages, response}; or problems, answered by the model first
    #[arg(long)]
    pub data: PathBuf,
    /// Folder for analysis.json, layers.parquet and tokens.parquet
    #[arg(long)]
    pub out: PathBuf,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// How states are read: raw (the paper), or final_norm (the classic logit lens: the final norm before the unembedding)
    #[arg(long, default_value = "raw", value_parser = parse_lens)]
    pub lens: Lens,
    /// Also compare every layer's policy with layer N's
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,
    /// Also write tokens.parquet: the first N samples token by token, what every policy of every layer said there
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Likeliest tokens that a row of tokens.parquet lists
    #[arg(long, value_name = "K", default_value_t = 5, requires = "tokens")]
    pub top: usize,
    /// Nats of FFN entropy change that still count as integration [default: 1 % of ln V]
    #[arg(long)]
    pub threshold: Option<f64>,
    /// Longest response, where the model answers first [default: 512, or what the context leaves]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often an unfinished analysis is saved; the same command goes on with it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub save_every: u64,
    /// One line of JSON with the time and memory it took, in place of the table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub ablate: WithoutArgs,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo ablate MODEL --data responses.jsonl --out ablation\n  bupo ablate MODEL --data responses.jsonl --heads --layers 1-6 --replace mean --out ablation\nWhat every number means: docs/ABLATION.md"
)]
pub struct AblateArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    pub model: PathBuf,
    /// JSONL of {input_ids, response_start} or {prompt|messages, response}, such as the responses.jsonl of bupo analyze
    #[arg(long)]
    pub data: PathBuf,
    /// Folder for ablation.json and modules.parquet
    #[arg(long)]
    pub out: PathBuf,
    /// Also without each attention head by itself
    #[arg(long)]
    pub heads: bool,
    /// Only modules of these layers: 6, 1-6, or 7- (to the last)
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<String>,
    /// What a module writes when it is left out: zero, or mean (what it writes on average, over all tokens of the data)
    #[arg(long, default_value = "zero", value_parser = parse_replacement)]
    pub replace: Replacement,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// How often an unfinished study is saved; the same command goes on with it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub save_every: u64,
    /// One line of JSON with the time and memory it took, in place of the table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    pub model: PathBuf,
    /// JSONL of {input_ids, response_start} or {prompt|messages, response}
    #[arg(long)]
    pub data: PathBuf,
    /// final, layer:N, attn:N or ffn:N
    #[arg(long, default_value = "final")]
    pub policy: String,
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// JSONL: log_probs and entropy of each row's response tokens
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    pub ablate: WithoutArgs,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: bupo states MODEL --data rows.jsonl --states resid_post:1-6,attn:6,final --out states.safetensors"
)]
pub struct StatesArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    pub model: PathBuf,
    /// JSONL of {input_ids}, {prompt|messages, response}, or prompts and problems
    #[arg(long)]
    pub data: PathBuf,
    /// What to read, separated by commas: resid_pre, attn_in, z, attn, resid_mid, ffn_in, ffn, resid_post with layers (ffn:6, ffn:1-6,
    /// ffn:7-), or final
    #[arg(long, value_delimiter = ',', required = true)]
    pub states: Vec<String>,
    /// A safetensors file: a tensor [N, d] for each state, and row (from 1), position (from 0) and token of each of the N
    #[arg(long)]
    pub out: PathBuf,
    /// Only the response's tokens
    #[arg(long)]
    pub response: bool,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub ablate: WithoutArgs,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: bupo generate MODEL --prompt \"What is 17 * 23?\" --policy final,layer:20,attn:20 -n 2"
)]
pub struct GenerateArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    pub model: PathBuf,
    /// The user's message
    #[arg(long, required_unless_present = "data", conflicts_with = "data")]
    pub prompt: Option<String>,
    /// JSONL of prompts or of {input_ids}
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// final, layer:N, attn:N or ffn:N; several, separated by commas, on the same prompts and seeds
    #[arg(long, default_value = "final", value_delimiter = ',')]
    pub policy: Vec<String>,
    /// Samples of each prompt
    #[arg(short, default_value_t = 1)]
    pub n: usize,
    /// Longest response [default: 256, or what the context leaves]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Only the K likeliest tokens; 0: all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Always the likeliest token
    #[arg(long)]
    pub greedy: bool,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// JSONL with ids and log-probs too [default: text on the terminal]
    #[arg(long)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub ablate: WithoutArgs,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub style: PromptArgs,
}

fn parse_replacement(text: &str) -> Result<Replacement, String> {
    by_name(text)
}

fn parse_lens(text: &str) -> Result<Lens, String> {
    by_name(text)
}

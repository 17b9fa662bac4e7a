//! The command line: types only. What each verb does is in [`crate::commands`].

mod bench;
mod inside;

pub use bench::{
    BenchAnalysisArgs, BenchCommand, BenchModelArgs, BenchNumbersArgs, BenchOpenArgs, BenchRolloutArgs, BenchStepArgs,
    BenchUpdateArgs, Shape,
};
pub use inside::{AblateArgs, AnalyzeArgs, GenerateArgs, ScoreArgs, StatesArgs};

use crate::compute::DeviceChoice;
use crate::model::weights::SaveDtype;
use crate::model::{Compute, Target};
use crate::rl::{Aggregation, LrSchedule};
use crate::text::PromptTemplate;
use crate::verify::Rule;
use crate::verify::math::Place;
use clap::{Args, Parser, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;

/// See and train the policies hidden inside a language model.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = "Example: bupo train arithmetic-bupo")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true)]
    pub threads: Option<usize>,
    /// No progress bars and no remarks
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model with GRPO or BuPO, as a recipe says
    Train(TrainArgs),
    /// Train variants of a recipe, each with several seeds, and compare them in a table
    Sweep(SweepArgs),
    /// Fine-tune a model on examples: conversations, prompts with completions, or text
    Sft(SftArgs),
    /// Show where a model's policy forms: entropies, changes and stages of every layer
    Analyze(AnalyzeArgs),
    /// Log-probs and entropies of given responses under any policy
    Score(ScoreArgs),
    /// What each module is worth: the model without each layer's attention, FFN and heads, beside the whole one
    Ablate(AblateArgs),
    /// Hidden states of given tokens, of any layer and module, as safetensors
    States(StatesArgs),
    /// Sample from any policy
    Generate(GenerateArgs),
    /// Avg@K and Pass@K on problems or suites, with intervals; goes on where it was interrupted
    Evaluate(EvaluateArgs),
    /// Judge mathematical answers against gold answers
    Verify(VerifyArgs),
    /// Two models, or seeds of them, on the same problems
    Compare(CompareArgs),
    /// Two checkpoints of one model: what moved, how far, and in which layer
    Diff(DiffArgs),
    /// A LoRA adapter and its base as one model
    Merge(MergeArgs),
    /// One page, in a file that needs nothing else, of analyses, runs, evaluations, comparisons, diffs and samples
    Report(ReportArgs),
    /// A local page that follows runs while they go
    Serve(ServeArgs),
    /// What a recipe takes of a GPU's memory; needs no GPU
    Memory(MemoryArgs),
    /// Time the parts on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo train recipes/arithmetic-bupo.toml\n  bupo train arithmetic-grpo --set seed=2 --dir runs/grpo-2\n  bupo train runs/grpo-2 --resume\n  bupo train arithmetic-ppo --print > my.toml"
)]
pub struct TrainArgs {
    /// A TOML file, the name of a shipped recipe, or a run's folder
    pub recipe: String,
    /// Go on from the run's last checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Change a key of the recipe, e.g. --set rl.lr=1e-5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Write the recipe to standard output, checked and with every default, and train nothing
    #[arg(long)]
    pub print: bool,
    /// The run's folder [default: the recipe's, else runs/NAME; when resuming, the one the recipe lies in]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Ends as after Ctrl-C once standard input does: how a sweep keeps its runs from outliving it
    #[arg(long, hide = true)]
    pub while_stdin: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo memory qwen3-4b-bupo --set compute=bf16\n  bupo memory qwen3-4b-bupo --shape qwen3-1.7b --set rollout.slots=96\nIt rehearses the recipe's largest step, with the code that would run, on a device that only counts."
)]
pub struct MemoryArgs {
    /// A TOML file, or the name of a shipped recipe
    pub recipe: String,
    /// A model of this shape, in place of the recipe's
    #[arg(long)]
    pub shape: Option<Shape>,
    /// Tokens of the prompts [default: rollout.max_prompt_tokens]
    #[arg(long)]
    pub prompt: Option<usize>,
    /// Change a key of the recipe, e.g. --set rollout.slots=128
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Writes the table as JSON, in bytes
    #[arg(long)]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo sweep sweeps/table-1-methods.toml\n  bupo sweep sweeps/table-2-internal-steps.toml --jobs 2 --threads 16 --dir runs/table-2\nThe same command goes on where it was interrupted. The file's keys: docs/SWEEPS.md"
)]
pub struct SweepArgs {
    /// A TOML file: a base recipe, variants or a grid, seeds
    pub sweep: PathBuf,
    /// The sweep's folder, one below it for each variant and seed [default: runs/NAME]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Runs side by side; each gets its share of --threads
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Change a key of the recipe in every variant, e.g. --set rl.steps=20
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo sft MODEL --data chats.jsonl --out runs/sft\n  bupo sft MODEL --data chats.jsonl --out runs/sft --resume\nThe model is in runs/sft/checkpoints/step-N. Rows and what of them is trained: docs/SFT.md"
)]
pub struct SftArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    pub model: PathBuf,
    /// Parquet or JSONL of {messages}, {prompt, completion} or {text}; several separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    pub data: Vec<PathBuf>,
    /// The run's folder
    #[arg(long)]
    pub out: PathBuf,
    /// Go on from the run's last checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Passes over the data
    #[arg(long, default_value_t = 3)]
    pub epochs: usize,
    /// Ends after this many steps, whatever the epochs
    #[arg(long, value_name = "N")]
    pub max_steps: Option<usize>,
    /// Examples of one optimizer step
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-5)]
    pub lr: f64,
    /// constant, linear or cosine, after the warm-up
    #[arg(long, default_value = "linear", value_parser = parse_schedule)]
    pub schedule: LrSchedule,
    /// Steps over which the learning rate rises to its peak
    #[arg(long, default_value_t = 0)]
    pub warmup_steps: usize,
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Largest L2 norm of the gradient
    #[arg(long, default_value_t = 1.0)]
    pub grad_clip: f64,
    /// Longest example in tokens; what is longer loses its end, and is counted
    #[arg(long, default_value_t = 1024)]
    pub max_length: usize,
    /// Share of the examples that is held out, and whose loss is measured
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub eval_share: f64,
    /// Examples to measure the loss on, in place of a share of the data
    #[arg(long, value_name = "FILE", conflicts_with = "eval_share")]
    pub eval_data: Option<PathBuf>,
    /// Steps between measurements of that loss [default: once an epoch]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<usize>,
    /// Steps between checkpoints [default: once an epoch]
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<usize>,
    /// Checkpoints kept
    #[arg(long, default_value_t = 2)]
    pub keep_checkpoints: usize,
    /// Of the data's order and of what is held out
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Packed tokens of one forward and backward; changes memory and speed, not the gradient
    #[arg(long, default_value_t = 4096)]
    pub micro_batch_tokens: usize,
    /// Keep only each layer's input and compute the layer again in the backward
    #[arg(long)]
    pub recompute: bool,
    /// Keeps the optimizer's moments in the host's memory (a GPU)
    #[arg(long)]
    pub offload: bool,
    #[command(flatten)]
    pub adapter: LoraArgs,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

/// How prompts are asked of a model, where a recipe does not say.
#[derive(Debug, Args)]
pub struct PromptArgs {
    /// System message of the chat template
    #[arg(long)]
    pub system: Option<String>,
    /// Plain text with {problem} in place of the chat template, for base models
    #[arg(long, value_name = "TEXT", conflicts_with = "system")]
    pub plain: Option<String>,
    /// The paper's way of asking: qwen-math, qwen3 (thinking off) or octothinker
    #[arg(long, value_name = "NAME", conflicts_with_all = ["system", "plain"], value_parser = parse_template)]
    pub template: Option<PromptTemplate>,
}

/// What numbers a model is computed in, where a recipe does not say.
#[derive(Clone, Copy, Debug, Args)]
pub struct ComputeArgs {
    /// What matrix products multiply in: f32, or bf16 (faster, about three digits)
    #[arg(long, default_value = "f32", value_parser = parse_compute)]
    pub compute: Compute,
    /// Where it computes: cpu, cuda (the first GPU), cuda:N, or auto
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
}

/// Modules that a model is run without.
#[derive(Clone, Debug, Args)]
pub struct WithoutArgs {
    /// Run the model without some modules, which write zeros: attn:6, ffn:1-6, layer:7-, head:6.3, separated by commas
    #[arg(long = "ablate", value_delimiter = ',', value_name = "MODULES")]
    pub modules: Vec<String>,
}

/// A LoRA adapter in place of the weights, where a recipe does not say.
#[derive(Clone, Debug, Args)]
pub struct LoraArgs {
    /// Trains a LoRA adapter of this rank, with the model's own weights frozen
    #[arg(long, value_name = "RANK")]
    pub lora: Option<usize>,
    /// The adapter is multiplied by alpha / rank [default: twice the rank]
    #[arg(long, value_name = "ALPHA", requires = "lora")]
    pub lora_alpha: Option<f64>,
    /// Linear layers that get an adapter: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj [default: all]
    #[arg(long, value_name = "TARGETS", requires = "lora", value_delimiter = ',', value_parser = parse_target)]
    pub lora_targets: Vec<Target>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo evaluate MODEL --suite amc23,math500 --out results/mine\n  bupo evaluate MODEL --data problems.jsonl -n 300 --rule numeric --out results/mine\n  bupo evaluate --rescore results/mine --rule boxed"
)]
pub struct EvaluateArgs {
    /// A HuggingFace checkpoint folder, a run's folder, or a name on the hub: OWNER/NAME[@REVISION]
    #[arg(required_unless_present = "rescore")]
    pub model: Option<String>,
    /// Suites by name or TOML file, separated by commas; shipped: amc23, math500, aime24, aime25, mmlu-pro, gpqa-diamond,
    /// arc-challenge, bbh
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["data", "rescore"])]
    pub suite: Vec<String>,
    /// Problems: parquet or JSONL, or hf://datasets/OWNER/NAME[@REVISION][/FILE]
    #[arg(long, required_unless_present_any = ["suite", "rescore"], conflicts_with = "rescore")]
    pub data: Option<String>,
    /// Where the suites' data files are
    #[arg(long, default_value = "data")]
    pub data_dir: PathBuf,
    /// Judge the saved responses of an evaluation's folder again, without a model
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pub rescore: Option<PathBuf>,
    /// Responses to each problem [default: the suite's, else 16]
    #[arg(short)]
    pub n: Option<usize>,
    /// The K of Pass@K, separated by commas [default: the suite's, else powers of two up to n and 256]
    #[arg(short, value_delimiter = ',')]
    pub k: Option<Vec<usize>>,
    /// boxed (normalised text), exact (integers), math (mathematical equality), numeric, choice, countdown or list [default: the suite's, else boxed]
    #[arg(long, value_parser = parse_rule)]
    pub rule: Option<Rule>,
    /// A program that scores responses, run by the shell: JSON lines in, a score a line out
    #[arg(long, value_name = "COMMAND", conflicts_with = "rule")]
    pub command: Option<String>,
    /// final, layer:N, attn:N or ffn:N
    #[arg(long, default_value = "final")]
    pub policy: String,
    /// Longest response [default: the suite's, else 8192 or what the context leaves]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// [default: the suite's, else 1]
    #[arg(long)]
    pub temperature: Option<f32>,
    /// [default: the suite's, else 1]
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Only the K likeliest tokens; 0: all [default: the suite's, else 0]
    #[arg(long)]
    pub top_k: Option<usize>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Sequences decoded at once
    #[arg(long, default_value_t = 128)]
    pub slots: usize,
    /// Only the first N problems of each set
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Folder for the results, one below it for each suite [default when rescoring: DIR/rescored-RULE]
    #[arg(long, required_unless_present = "rescore")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub ablate: WithoutArgs,
    #[command(flatten)]
    pub numbers: ComputeArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: bupo verify --data answers.jsonl --out verdicts.jsonl\nHow answers are compared: docs/VERIFIER.md"
)]
pub struct VerifyArgs {
    /// JSONL of {gold, answer}; either may be a bare answer or a whole text
    #[arg(long)]
    pub data: PathBuf,
    /// JSONL: one verdict a row, in order, with status, rule and the answer that was found
    #[arg(long)]
    pub out: PathBuf,
    /// Where an answer is looked for, in order: boxed, phrase ("answer is"), formula (the last), whole (a bare answer)
    #[arg(long, value_delimiter = ',', default_value = "boxed,phrase,formula,whole", value_parser = parse_place)]
    pub places: Vec<Place>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo compare results/grpo results/bupo\n  bupo compare results/grpo-1,results/grpo-2,results/grpo-3 results/bupo-1,results/bupo-2,results/bupo-3 --out results/comparison"
)]
pub struct CompareArgs {
    /// Folders that `bupo evaluate` wrote, one for each seed, separated by commas
    #[arg(num_args = 1, value_delimiter = ',', required = true)]
    pub first: Vec<PathBuf>,
    /// The same for the model that is compared with the first
    #[arg(num_args = 1, value_delimiter = ',', required = true)]
    pub second: Vec<PathBuf>,
    /// The K of Pass@K, separated by commas [default: powers of two up to n and 256]
    #[arg(short, value_delimiter = ',')]
    pub k: Option<Vec<usize>>,
    /// Of the bootstrap and the sign flips
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder for comparison.json and comparison.md
    #[arg(long)]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: bupo diff runs/arithmetic-bupo/checkpoints/step-000000 runs/arithmetic-bupo/checkpoints/step-000010 --out moved"
)]
pub struct DiffArgs {
    /// The checkpoint that changes count from: a folder, or a name on the hub
    pub model_a: PathBuf,
    /// The checkpoint that is compared with it
    pub model_b: PathBuf,
    /// Folder for diff.json
    #[arg(long)]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: bupo merge runs/x/checkpoints/step-000100 --out merged")]
pub struct MergeArgs {
    /// The adapter's folder: adapter_config.json and adapter_model.safetensors, as bupo and PEFT write them
    pub adapter: PathBuf,
    /// The model that it was trained on: a folder, or a name on the hub [default: the one that the adapter names]
    #[arg(long, value_name = "MODEL")]
    pub base: Option<PathBuf>,
    /// The merged model's folder
    #[arg(long)]
    pub out: PathBuf,
    /// What weights are written in: f32 (exact), or bf16 (half the size)
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: SaveDtype,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bupo report runs/grpo-1 runs/bupo-1 --out page.html\n  bupo report analysis-a analysis-b samples.jsonl --out page.html"
)]
pub struct ReportArgs {
    /// What to show, mixed as you like: folders of runs, analyses, evaluations, comparisons and diffs, folders of such
    /// folders, or single files that bupo wrote
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// The HTML file
    #[arg(long)]
    pub out: PathBuf,
    /// Completions of each run, spread over its steps; the page says what it leaves out
    #[arg(long, default_value_t = 400, value_name = "N")]
    pub completions: usize,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: bupo serve runs, then open http://127.0.0.1:7777")]
pub struct ServeArgs {
    /// The folder that holds runs; nothing outside is ever read
    pub dir: PathBuf,
    /// The address to listen on; whoever reaches it can read the runs
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// 0: any free one
    #[arg(long, default_value_t = 7777)]
    pub port: u16,
}

/// Reads an enum by the name that recipes use for it.
fn by_name<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_string())).map_err(|e| e.to_string())
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    by_name(text)
}

fn parse_place(text: &str) -> Result<Place, String> {
    by_name(text)
}

fn parse_template(name: &str) -> Result<PromptTemplate, String> {
    const NAMES: [&str; 3] = ["qwen-math", "qwen3", "octothinker"];
    // `chat` and `plain` are the other two options.
    let known = NAMES.contains(&name).then(|| serde_json::from_value(serde_json::json!({ "template": name })).ok());
    known.flatten().ok_or_else(|| format!("expected one of {}", NAMES.join(", ")))
}

fn parse_aggregation(text: &str) -> Result<Aggregation, String> {
    by_name(text)
}

fn parse_target(text: &str) -> Result<Target, String> {
    by_name(text)
}

fn parse_dtype(text: &str) -> Result<SaveDtype, String> {
    by_name(text)
}

fn parse_schedule(text: &str) -> Result<LrSchedule, String> {
    by_name(text)
}

fn parse_compute(text: &str) -> Result<Compute, String> {
    by_name(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["bupo", "evaluate", "m", "--data", "d", "-k", "1,2", "--rule", "exact", "--out", "o"]);
        let Command::Evaluate(args) = cli.unwrap().command else { panic!("another verb") };
        assert_eq!((args.k, args.rule, args.n), (Some(vec![1, 2]), Some(Rule::Exact), None));
        for bad in [&["m"][..], &["m", "--suite", "a", "--data", "d", "--out", "o"], &["m", "--rescore", "d"]] {
            assert!(Cli::try_parse_from([&["bupo", "evaluate"], bad].concat()).is_err(), "{bad:?}");
        }
        assert!(Cli::try_parse_from(["bupo", "generate", "m"]).is_err());
    }

    #[test]
    fn a_bench_takes_a_checkpoint_or_a_shape() {
        let parse = |model: &[&str]| Cli::try_parse_from([&["bupo", "bench", "rollout"], model].concat());
        for (given, shape) in [(&["m"][..], None), (&["--shape", "qwen3-0.6b"], Some(Shape::Qwen3_0_6b))] {
            let Command::Bench(BenchCommand::Rollout(args)) = parse(given).unwrap().command else { panic!("another") };
            assert_eq!((args.model.model.is_some(), args.model.shape), (shape.is_none(), shape));
        }
        for bad in [&[][..], &["m", "--shape", "tiny"], &["--shape", "qwen"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}

//! The look inside while training (paper, section 8): the same tokens every few steps, and the guard that reads it.
//!
//! The tokens are made once, by the starting model, and kept in the run's folder (`probe/samples.jsonl` and
//! `probe/references.jsonl`, which `bupo analyze` and `bupo score` read as they are): what moves is the model alone.

use super::ANALYSIS_STREAM;
use super::setup::{HELD_OUT_SEED, Source};
use super::state::Seen;
use crate::analysis::flow::check;
use crate::analysis::perplexity::perplexity;
use crate::analysis::profile::Profile;
use crate::analysis::{Flow, Reading, Sample};
use crate::commands::device::Device;
use crate::commands::{response_tokens, row_tokens};
use crate::model::{Model, Workspace};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::recipe::Recipe;
use crate::rl::guard::{GuardConfig, Judgement, Quantity};
use crate::rl::schedule::{PhaseConfig, Schedule};
use crate::rl::supervised::Example;
use crate::rollout::engine::{Engine, Request, generate};
use crate::run::jsonl::{read_jsonl, write_jsonl};
use crate::tasks::Problem;
use crate::tasks::Split;
use crate::tasks::dataset::{Row as DataRow, read_rows};
use crate::tasks::seed::{derive_seed, stable_hash};
use crate::text::PromptEncoder;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One look: a row of `probe.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Rollout steps taken.
    pub step: usize,
    /// What the last of them optimized; at step 0, what the first will.
    pub policy: String,
    /// The layer of the run's internal policy, from 1; null in a run that has none.
    pub layer: Option<usize>,
    #[serde(flatten)]
    pub profile: Profile,
    /// Of the final policy on the references; null without any.
    pub perplexity: Option<f64>,
    /// While the guard decides on the internal phase.
    pub guard: Option<Judgement>,
}

/// A sequence of the probe before the starting model has answered.
enum Asked {
    Answered(Sample),
    /// A problem's id and its prompt.
    Prompt(u64, Vec<u32>),
}

/// What the probe will look at, read and checked before anything heavy starts.
pub struct Plan {
    asked: Vec<Asked>,
    references: Vec<Sample>,
}

impl Plan {
    /// None where the recipe asks for no looks.
    pub fn open(
        recipe: &Recipe,
        source: &Source,
        evaluation: &[Problem],
        prompts: &PromptEncoder,
        model: &Model,
    ) -> Result<Option<Plan>> {
        let section = &recipe.probe;
        if section.every == 0 {
            return Ok(None);
        }
        let mut rows = rows_of(&section.data).context("probe.data")?;
        if rows.is_empty() {
            let problems = problems(recipe, source, evaluation)?.into_iter();
            rows.extend(problems.map(|problem| ("a problem of the run".to_string(), DataRow::Problem(problem))));
        }
        rows.truncate(section.responses);
        let (mut asked, mut references) = (Vec::with_capacity(rows.len()), Vec::new());
        for (place, row) in &rows {
            let (ids, start) = row_tokens(row, Some(prompts)).with_context(|| place.clone())?;
            asked.push(match start {
                Some(response_start) => Asked::Answered(Sample { ids, response_start }),
                None => Asked::Prompt(id(row), ids),
            });
            if let (DataRow::Problem(problem @ Problem { worked: Some(_), .. }), []) = (row, &section.references[..]) {
                references.push(reference(problem, prompts)?);
            }
        }
        for (number, (place, row)) in
            rows_of(&section.references).context("probe.references")?.iter().take(section.responses).enumerate()
        {
            references.push(match row {
                DataRow::Problem(problem @ Problem { worked: Some(_), .. }) => reference(problem, prompts)?,
                _ => {
                    let (ids, response_start) = response_tokens(row, Some(prompts), number + 1)
                        .with_context(|| format!("probe.references: {place}"))?;
                    Sample { ids, response_start }
                }
            });
        }
        let answered = asked.iter().filter_map(|a| if let Asked::Answered(sample) = a { Some(sample) } else { None });
        for sample in answered.chain(&references) {
            check(model, sample).context("a text of the probe")?;
        }
        let guards: Vec<GuardConfig> = recipe.phases().iter().filter_map(PhaseConfig::guard).collect();
        if guards.iter().any(|guard| guard.quantity == Quantity::Perplexity) && references.is_empty() {
            bail!(
                "guard.quantity = \"perplexity\", but there are no references to take it on: name files of them \
                 (probe.references = [\"FILE\"], rows of a prompt and a response)"
            );
        }
        Ok(Some(Plan { asked, references }))
    }
}

/// Rows of files, each with where it stands.
fn rows_of(files: &[PathBuf]) -> Result<Vec<(String, DataRow)>> {
    let mut rows = Vec::new();
    for file in files {
        rows.extend(read_rows(file)?.into_iter().map(|row| (file.display().to_string(), row)));
    }
    Ok(rows)
}

/// Held-out problems where the run has any; the first problems of its training else, as for the analysis.
fn problems(recipe: &Recipe, source: &Source, evaluation: &[Problem]) -> Result<Vec<Problem>> {
    let n = recipe.probe.responses;
    match source {
        _ if !evaluation.is_empty() => Ok(evaluation.iter().take(n).cloned().collect()),
        Source::Task(task) => task.distinct(Split::HeldOut, HELD_OUT_SEED, n),
        Source::Files { .. } => (0..n as u64).map(|i| source.problem(recipe.seed, i)).collect(),
    }
}

/// A problem's id, from which the seed of its response derives.
fn id(row: &DataRow) -> u64 {
    match row {
        DataRow::Problem(problem) => problem.id,
        DataRow::Prompt { messages } | DataRow::Text { messages, .. } => {
            Problem::new("probe", messages.clone(), String::new(), None).id
        }
        DataRow::Tokens { input_ids, .. } => {
            stable_hash(&input_ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
        }
    }
}

/// A worked solution as the warm-up would imitate it, its end token included.
fn reference(problem: &Problem, prompts: &PromptEncoder) -> Result<Sample> {
    let example = Example::of(problem, prompts)?;
    Ok(Sample { response_start: example.ids.len() - example.tokens(), ids: example.ids })
}

/// The probe of a run.
pub struct Probe {
    every: usize,
    samples: Vec<Sample>,
    references: Vec<Sample>,
    /// The look before the first step, which later ones are shown beside.
    first: Option<Row>,
    /// What the guard has seen of its phase.
    pub seen: Seen,
}

/// A sequence as the run's folder keeps it.
#[derive(Serialize, Deserialize)]
struct Tokens {
    input_ids: Vec<u32>,
    response_start: usize,
}

impl Probe {
    /// Lets the starting model answer, and saves the tokens in the run's folder.
    pub fn make<B: Device>(
        plan: Plan,
        recipe: &Recipe,
        prompts: &PromptEncoder,
        model: &Model<B>,
        dir: &Path,
    ) -> Result<Probe> {
        let mut requests = Vec::new();
        for asked in &plan.asked {
            if let Asked::Prompt(id, prompt) = asked {
                // The analysis' draws: the probe begins with responses that `analysis-before` saw.
                let seeds = vec![derive_seed(recipe.seed, ANALYSIS_STREAM, *id, 0)];
                requests.push(Request { prompt: prompt.clone(), seeds });
            }
        }
        let engine = Engine {
            policy: InternalPolicy::Final,
            sampling: recipe.rollout.sampling(),
            eos_ids: prompts.eos_ids(),
            slots: recipe.rollout.slots,
        };
        let completions = generate(model, &mut Workspace::new(model), &engine, &requests, &mut |_| ())?;
        let mut answers = completions.into_iter().flatten();
        let mut samples = Vec::with_capacity(plan.asked.len());
        for asked in plan.asked {
            samples.push(match asked {
                Asked::Answered(sample) => sample,
                Asked::Prompt(_, prompt) => {
                    let answer = answers.next().context("a prompt of the probe was not answered")?;
                    let response_start = prompt.len();
                    Sample { ids: [prompt, answer.ids].concat(), response_start }
                }
            });
        }
        for (name, samples) in [("samples", &samples), ("references", &plan.references)] {
            let row = |s: &Sample| Tokens { input_ids: s.ids.clone(), response_start: s.response_start };
            let rows: Vec<Tokens> = samples.iter().map(row).collect();
            write_jsonl(&tokens_path(dir, name), &rows)?;
        }
        let (every, references) = (recipe.probe.every, plan.references);
        Ok(Probe { every, samples, references, first: None, seen: Seen::default() })
    }

    /// The probe that a run began with, from its folder; `seen` is what its guard had. None without looks.
    pub fn resume(recipe: &Recipe, dir: &Path, seen: Seen) -> Result<Option<Probe>> {
        if recipe.probe.every == 0 {
            return Ok(None);
        }
        let read = |name: &str| -> Result<Vec<Sample>> {
            let rows: Vec<Tokens> = read_jsonl(&tokens_path(dir, name))?;
            Ok(rows.into_iter().map(|row| Sample { ids: row.input_ids, response_start: row.response_start }).collect())
        };
        let (samples, references) = (read("samples")?, read("references")?);
        ensure!(
            !samples.is_empty(),
            "{} is gone, and with it the tokens that this run looks at: resume needs the whole folder",
            tokens_path(dir, "samples").display()
        );
        // For people only: a first row with a number that JSON has not is none to compare with.
        let rows: Vec<serde_json::Value> = read_jsonl(&path(dir))?;
        let first = rows.into_iter().next().and_then(|row| serde_json::from_value(row).ok());
        Ok(Some(Probe { every: recipe.probe.every, samples, references, first, seen }))
    }

    /// Whether a run of `steps` looks inside after `step`: before the first, every so many, and after the last.
    pub fn due(&self, step: usize, steps: usize) -> bool {
        step.is_multiple_of(self.every) || step == steps
    }

    /// Looks at a model after `step`. The guard judges while the next step would still be internal.
    pub fn look<B: Device>(&mut self, model: &Model<B>, step: usize, schedule: &Schedule) -> Result<Row> {
        let next = schedule.phase_at(step + 1);
        let layer = schedule.internal_policy_at(step.max(1)).and_then(|policy| policy.tap().layer());
        let mut ws = Workspace::new(model);
        let mut flow = Flow::new(model.config.layers, Reading { chosen: layer, ..Reading::default() });
        flow.add(model, &mut ws, &self.samples, &mut |_| ()).context("the probe's samples")?;
        let profile = Profile::of(&flow.finish(model, "probe", None)?);
        let perplexity = match self.references.is_empty() {
            true => None,
            false => Some(
                perplexity(InternalPolicy::Final, model, &mut ws, &self.references)
                    .context("the probe's references")?,
            ),
        };
        let guard = match next.guard {
            Some(guard) => {
                let value = match guard.quantity {
                    Quantity::Perplexity => perplexity,
                    Quantity::Kl => next.policy().tap().layer().and_then(|layer| profile.kl_to_later(layer)),
                };
                if self.seen.phase != next.number {
                    // A phase answers for what it does itself.
                    self.seen = Seen { phase: next.number, values: Vec::new() };
                }
                self.seen.values.push(value.context("the guard has nothing to look at")?);
                guard.judge(&self.seen.values)
            }
            None => None,
        };
        let policy = schedule.phase_at(step.max(1)).objective.to_string();
        let row = Row { step, policy, layer: layer.map(LayerIndex::one_based), profile, perplexity, guard };
        self.first.get_or_insert_with(|| row.clone());
        Ok(row)
    }

    /// One line for people: what moved since step 0.
    pub fn line(&self, row: &Row) -> String {
        let first = self.first.as_ref().unwrap_or(row);
        let moved = |value: &dyn Fn(&Row) -> Option<f64>| match (value(first), value(row)) {
            (Some(from), Some(to)) => format!("{from:.3} → {to:.3}"),
            (None, Some(to)) => format!("{to:.3}"),
            (_, None) => "-".to_string(),
        };
        let mut parts = Vec::new();
        if let Some(layer) = row.layer_index() {
            let of = |values: &[f64]| values.get(layer.index()).copied();
            // A later phase may look from another layer: what was compared with the first one says nothing of it.
            let same = |r: &Row| r.layer == row.layer;
            parts.push(format!("layer {layer}: H {}", moved(&|r| of(&r.profile.entropy.resid_post))));
            parts.push(format!("dH {}", moved(&|r| of(&r.profile.entropy_change.layer))));
            parts.push(format!("KL to later {}", moved(&|r| r.profile.kl_to_later(layer).filter(|_| same(r)))));
        }
        parts.push(format!("final H {}", moved(&|r| Some(r.profile.final_entropy))));
        if row.perplexity.is_some() {
            parts.push(format!("perplexity {}", moved(&|r| r.perplexity)));
        }
        format!("step {} inside: {}", row.step, parts.join(", "))
    }
}

impl Row {
    fn layer_index(&self) -> Option<LayerIndex> {
        LayerIndex::from_one_based(self.layer?, self.profile.residual_norm.len()).ok()
    }
}

/// Where the looks are written.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("probe.jsonl")
}

fn tokens_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("probe").join(format!("{name}.jsonl"))
}

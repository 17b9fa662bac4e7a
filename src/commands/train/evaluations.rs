//! A run's evaluations: one, or one for each named set, in a folder for each time that is evaluated.

use super::setup::EvaluationSet;
use crate::commands::device::Device;
use crate::commands::evaluate::{RESULT, save_result, save_rows, save_summary};
use crate::evaluate::result::Evaluation;
use crate::evaluate::run::{EvaluateSettings, evaluate};
use crate::evaluate::scores::Scores;
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::recipe::Recipe;
use crate::rollout::sampler::Sampling;
use crate::run::atomic::read;
use crate::run::progress::{Progress, say};
use crate::text::PromptEncoder;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Scores of every set, by its name (empty where there is one without).
pub type SetScores = Vec<(String, Scores)>;

/// Whether every set was evaluated into `dir`, as the checkpoint would be now.
pub fn are_saved(sets: &[EvaluationSet], checkpoint: &Path, dir: &Path) -> bool {
    sets.iter().all(|set| saved(set, checkpoint, &folder(set, dir)).is_some())
}

fn folder(set: &EvaluationSet, dir: &Path) -> PathBuf {
    if set.name.is_empty() { dir.to_path_buf() } else { dir.join(&set.name) }
}

/// A set's evaluation in its folder; none where there is none, or one of another step or with other sizes, which could not be
/// compared. The run's folder may have moved.
fn saved(set: &EvaluationSet, checkpoint: &Path, dir: &Path) -> Option<Evaluation> {
    let evaluation: Evaluation = serde_json::from_slice(&read(&dir.join(RESULT)).ok()?).ok()?;
    let scores = &evaluation.scores;
    let alike = Path::new(&evaluation.model).file_name() == checkpoint.file_name()
        && scores.problems == set.problems.len()
        && scores.responses_per_problem == set.n
        && scores.pass_at_k.iter().map(|pass| pass.k).eq(set.k.iter().copied())
        && evaluation.reward_name == set.reward.name();
    alike.then_some(evaluation)
}

/// The best of a run's models that were evaluated.
#[derive(Clone, Debug)]
pub struct Best {
    pub step: usize,
    pub checkpoint: PathBuf,
    pub avg_at_n: f64,
    pub n: usize,
}

/// The highest Avg@n on a set, of equal ones the first, of steps in order, their checkpoints and the folders of their evaluations. What the
/// folders hold decides, so a run that was stopped finds the one that it would have found.
pub fn best(set: &EvaluationSet, steps: impl Iterator<Item = (usize, PathBuf, PathBuf)>) -> Option<Best> {
    let scored = steps.filter_map(|(step, checkpoint, dir)| {
        let scores = saved(set, &checkpoint, &folder(set, &dir))?.scores;
        Some(Best { step, checkpoint, avg_at_n: scores.avg_at_n.mean, n: set.n })
    });
    scored.reduce(|best, next| if next.avg_at_n > best.avg_at_n { next } else { best })
}

/// Evaluates every set once into `dir`, whose name is `evaluation-TIME`; what was evaluated before is read back.
pub fn scores<B: Device>(
    recipe: &Recipe,
    sets: &[EvaluationSet],
    prompts: &PromptEncoder,
    model: &mut Model<B>,
    checkpoint: &Path,
    dir: &Path,
    time: &str,
) -> Result<SetScores> {
    let (mut all, mut evaluations) = (Vec::with_capacity(sets.len()), Vec::new());
    for set in sets {
        let dir = folder(set, dir);
        let name = if set.name.is_empty() { time.to_string() } else { set.name.clone() };
        let evaluation = match saved(set, checkpoint, &dir) {
            Some(evaluation) => evaluation,
            None => {
                let evaluation = one(recipe, set, prompts, model, checkpoint, &dir, &name)?;
                let Scores { avg_at_n, problems, .. } = &evaluation.scores;
                let label = if set.name.is_empty() { name } else { format!("{time}, {name}") };
                say(&format!("{label}: Avg@{} {:.1} % on {problems} problems", set.n, 100.0 * avg_at_n.mean));
                evaluation
            }
        };
        all.push((set.name.clone(), evaluation.scores.clone()));
        evaluations.push(evaluation);
    }
    if sets.iter().any(|set| !set.name.is_empty()) {
        save_summary(dir, &evaluations)?;
    }
    Ok(all)
}

fn one<B: Device>(
    recipe: &Recipe,
    set: &EvaluationSet,
    prompts: &PromptEncoder,
    model: &mut Model<B>,
    checkpoint: &Path,
    dir: &Path,
    name: &str,
) -> Result<Evaluation> {
    let (r, e) = (&recipe.rollout, recipe.evaluate.clone().unwrap_or_default());
    let settings = EvaluateSettings {
        seed: recipe.seed,
        policy: InternalPolicy::Final,
        ablate: Vec::new(),
        sampling: Sampling { temperature: e.temperature, top_k: 0, top_p: e.top_p, max_new_tokens: r.max_new_tokens },
        slots: r.slots,
        n: set.n,
        k: set.k.clone(),
        reward: set.reward.clone(),
    };
    let mut progress = Progress::new("evaluate", (set.problems.len() * set.n) as u64);
    let mut ws = Workspace::new(model);
    let (scores, rows) = evaluate(model, &mut ws, prompts, &set.problems, &settings, &mut |n| progress.inc(n))?;
    progress.finish();
    save_rows(dir, &set.problems, &rows)?;
    let evaluation = Evaluation {
        name: name.into(),
        model: checkpoint.display().to_string(),
        reward_name: set.reward.name(),
        scores,
        bad_rows: Vec::new(),
        failures: Vec::new(),
    };
    save_result(dir, &evaluation)?;
    Ok(evaluation)
}

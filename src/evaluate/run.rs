//! Sampling, judging and scoring a set of problems, each a step of its own: what was sampled can be saved at once, and
//! judged again.

use super::scores::{Judged, Scores, scores};
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::reward::{Item, Reward, RewardConfig, Score};
use crate::rollout::Rollout;
use crate::rollout::engine::{Completion, Engine, Finish, Request, generate_each};
use crate::rollout::sampler::Sampling;
use crate::tasks::problem::Problem;
use crate::tasks::seed::derive_seed;
use crate::text::prompt::PromptEncoder;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How a set of problems is evaluated.
#[derive(Clone, Debug)]
pub struct EvaluateSettings {
    pub seed: u64,
    pub policy: InternalPolicy,
    /// Modules that the model is run without, by name.
    pub ablate: Vec<String>,
    pub sampling: Sampling,
    pub slots: usize,
    /// Responses to each problem.
    pub n: usize,
    /// The K of Pass@K.
    pub k: Vec<usize>,
    pub reward: RewardConfig,
}

/// One response as it was sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Id of its problem.
    pub problem: u64,
    /// From 0 to n - 1.
    pub sample: usize,
    /// Its text without special tokens: what is judged.
    pub response: String,
    pub tokens: usize,
    pub finish: Finish,
}

/// One judged response, as it is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResponseRow {
    #[serde(flatten)]
    pub generation: Generation,
    pub gold: String,
    #[serde(flatten)]
    pub score: Score,
}

/// Seeds of an evaluation come from a stream of their own: step 0 is no rollout step.
const EVALUATION: u64 = 0;

/// Problems that a set holds more than once get ids, and so seeds, of their own; the first keeps its.
pub fn distinct_ids(problems: &mut [Problem]) {
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for problem in problems {
        let times = seen.entry(problem.id).or_default();
        *times += 1;
        if *times > 1 {
            problem.id = derive_seed(problem.id, EVALUATION, 0, *times);
        }
    }
}

/// Samples the responses that are not in `have` (problem and sample); `save` gets each as it ends. A response depends on
/// its problem and its own seed only.
pub fn sample_missing<B: Rollout>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    prompts: &PromptEncoder,
    problems: &[Problem],
    settings: &EvaluateSettings,
    have: &BTreeSet<(u64, usize)>,
    save: &mut dyn FnMut(Generation) -> Result<()>,
) -> Result<()> {
    let (mut requests, mut wanted) = (Vec::new(), Vec::new());
    for problem in problems {
        let samples: Vec<usize> = (0..settings.n).filter(|i| !have.contains(&(problem.id, *i))).collect();
        if samples.is_empty() {
            continue;
        }
        let seeds = samples.iter().map(|i| derive_seed(settings.seed, EVALUATION, problem.id, *i as u64)).collect();
        requests.push(Request { prompt: prompts.encode(&problem.messages)?.ids, seeds });
        wanted.push((problem.id, samples));
    }
    if requests.is_empty() {
        return Ok(());
    }
    let engine = Engine {
        policy: settings.policy,
        sampling: settings.sampling,
        eos_ids: prompts.eos_ids(),
        slots: settings.slots,
    };
    let mut ended = |request: usize, sample: usize, completion: &Completion| {
        let (problem, samples) = wanted.get(request).context("a response to no request")?;
        save(Generation {
            problem: *problem,
            sample: *samples.get(sample).context("a response to no sample")?,
            response: prompts.decode(&completion.ids)?,
            tokens: completion.ids.len(),
            finish: completion.finish,
        })
    };
    generate_each(model, ws, &engine, &requests, &mut ended).map(|_| ())
}

/// Judges saved responses, whatever their order: rows in the order of the problems and samples. What belongs to no
/// problem here, or has a sample number of `n` or more, is left out.
///
/// Errors: fewer than `n` responses to a problem; what the reward cannot judge.
pub fn judge(reward: &Reward, problems: &[Problem], generations: &[Generation], n: usize) -> Result<Vec<ResponseRow>> {
    let by_place: BTreeMap<(u64, usize), &Generation> =
        generations.iter().map(|g| ((g.problem, g.sample), g)).collect();
    let mut pairs = Vec::with_capacity(problems.len() * n);
    for (i, problem) in problems.iter().enumerate() {
        for sample in 0..n {
            let Some(generation) = by_place.get(&(problem.id, sample)) else {
                bail!("problem {} (id {}) has no response {} of {n}: sample it first", i + 1, problem.id, sample + 1);
            };
            pairs.push((problem, *generation));
        }
    }
    let items: Vec<Item<'_>> = pairs
        .iter()
        .map(|(problem, g)| Item {
            problem,
            response: &g.response,
            tokens: g.tokens,
            truncated: g.finish == Finish::Length,
        })
        .collect();
    let scores = reward.judge(&items)?;
    let row = |((problem, generation), score): ((&Problem, &Generation), Score)| ResponseRow {
        generation: generation.clone(),
        gold: problem.gold.clone(),
        score,
    };
    Ok(pairs.into_iter().zip(scores).map(row).collect())
}

/// Scores of judged rows, `n` to each problem, in [`judge`]'s order.
pub fn score_rows(rows: &[ResponseRow], n: usize, k: &[usize], seed: u64) -> Result<Scores> {
    ensure!(n > 0, "n = 0: expected at least one response to each problem");
    let judged = |row: &ResponseRow| Judged {
        status: row.score.verdict.status,
        reward: row.score.reward,
        truncated: row.generation.finish == Finish::Length,
    };
    let problems: Vec<Vec<Judged>> = rows.chunks(n).map(|group| group.iter().map(judged).collect()).collect();
    scores(&problems, k, seed)
}

/// Samples `n` responses to every problem, judges each, and scores them. `progress` hears of every response that ended.
pub fn evaluate<B: Rollout>(
    model: &Model<B>,
    ws: &mut Workspace<B>,
    prompts: &PromptEncoder,
    problems: &[Problem],
    settings: &EvaluateSettings,
    progress: &mut dyn FnMut(u64),
) -> Result<(Scores, Vec<ResponseRow>)> {
    ensure!(!problems.is_empty(), "nothing to evaluate: the data set holds no problems");
    let reward = Reward::new(&settings.reward, settings.sampling.max_new_tokens)?;
    let mut generations = Vec::with_capacity(problems.len() * settings.n);
    let mut keep = |generation| {
        generations.push(generation);
        progress(1);
        Ok(())
    };
    sample_missing(model, ws, prompts, problems, settings, &BTreeSet::new(), &mut keep)?;
    let rows = judge(&reward, problems, &generations, settings.n)?;
    Ok((score_rows(&rows, settings.n, &settings.k, settings.seed)?, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Message;
    use crate::verify::{Rule, Status};

    fn problem(text: &str) -> Problem {
        Problem::new("t", vec![Message { role: "user".into(), content: text.into() }], "1".into(), None)
    }

    #[test]
    fn rows_come_in_the_order_of_the_problems_and_missing_ones_are_named() {
        let mut problems = vec![problem("a"), problem("b"), problem("a")];
        distinct_ids(&mut problems);
        assert_ne!(problems[0].id, problems[2].id);
        let generation = |problem: &Problem, sample: usize, text: &str| Generation {
            problem: problem.id,
            sample,
            response: text.into(),
            tokens: 3,
            finish: Finish::Stop,
        };
        let mut saved = Vec::new();
        for (i, p) in problems.iter().enumerate().rev() {
            saved.push(generation(p, 1, "\\boxed{1}"));
            saved.push(generation(p, 0, &format!("\\boxed{{{i}}}")));
        }
        let reward = Reward::new(&RewardConfig::of_rule(Rule::Exact), 8).unwrap();
        let rows = judge(&reward, &problems, &saved, 2).unwrap();
        let places: Vec<_> = rows.iter().map(|r| (r.generation.problem, r.generation.sample)).collect();
        let expected: Vec<_> = problems.iter().flat_map(|p| [(p.id, 0), (p.id, 1)]).collect();
        assert_eq!(places, expected);
        assert_eq!(rows[0].score.verdict.status, Status::Wrong);
        assert_eq!(score_rows(&rows, 2, &[2], 1).unwrap().correct, [1, 2, 1]);
        // What is written reads back, as a row and as a generation to judge again.
        let text = serde_json::to_string(&rows[0]).unwrap();
        assert_eq!(serde_json::from_str::<ResponseRow>(&text).unwrap(), rows[0]);
        assert_eq!(serde_json::from_str::<Generation>(&text).unwrap(), rows[0].generation);
        let error = judge(&reward, &problems, &saved, 3).unwrap_err().to_string();
        assert!(error.contains("problem 1") && error.contains("response 3 of 3"), "{error}");
    }
}

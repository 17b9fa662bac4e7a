//! Sampling and judging a set of problems: what Avg@K and Pass@K are computed from.

use super::scores::{ProblemCounts, Scores, scores};
use crate::model::{Model, Workspace};
use crate::policy::InternalPolicy;
use crate::rollout::engine::{Engine, Finish, Request, generate};
use crate::rollout::sampler::Sampling;
use crate::tasks::problem::Problem;
use crate::tasks::seed::derive_seed;
use crate::text::prompt::PromptEncoder;
use crate::verify::{Rule, StatusCounts, Verdict};
use anyhow::{Result, ensure};
use serde::Serialize;

/// How a set of problems is evaluated.
#[derive(Clone, Debug)]
pub struct EvaluateSettings {
    pub seed: u64,
    pub policy: InternalPolicy,
    pub sampling: Sampling,
    pub slots: usize,
    /// Responses to each problem.
    pub n: usize,
    /// The K of Pass@K.
    pub k: Vec<usize>,
    pub rule: Rule,
}

/// One judged response, as it is saved.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseRow {
    pub problem: u64,
    pub source: String,
    pub sample: usize,
    pub prompt: String,
    pub response: String,
    pub gold: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub tokens: usize,
    pub finish: Finish,
}

/// Seeds of an evaluation come from a stream of their own: step 0 is no rollout step.
const EVALUATION: u64 = 0;

/// Samples `n` responses to every problem, judges each, and scores them. `progress` hears of every response that ended.
pub fn evaluate(
    model: &Model,
    ws: &mut Workspace,
    prompts: &PromptEncoder,
    problems: &[Problem],
    settings: &EvaluateSettings,
    progress: &mut dyn FnMut(u64),
) -> Result<(Scores, Vec<ResponseRow>)> {
    ensure!(!problems.is_empty(), "nothing to evaluate: the data set holds no problems");
    let mut requests = Vec::with_capacity(problems.len());
    for problem in problems {
        let seeds = (0..settings.n).map(|i| derive_seed(settings.seed, EVALUATION, problem.id, i as u64)).collect();
        requests.push(Request { prompt: prompts.encode(&problem.messages)?.ids, seeds });
    }
    let engine = Engine {
        policy: settings.policy,
        sampling: settings.sampling,
        eos_ids: prompts.eos_ids(),
        slots: settings.slots,
    };
    let completions = generate(model, ws, &engine, &requests, progress)?;
    let (mut counts, mut rows) = (Vec::with_capacity(problems.len()), Vec::new());
    for ((problem, request), group) in problems.iter().zip(&requests).zip(&completions) {
        let prompt = prompts.decode_whole(&request.prompt)?;
        let mut count = ProblemCounts { statuses: StatusCounts::default(), truncated: 0 };
        for (sample, completion) in group.iter().enumerate() {
            let verdict = settings.rule.judge(&prompts.decode(&completion.ids)?, &problem.gold);
            count.statuses.add(verdict.status);
            count.truncated += usize::from(completion.finish == Finish::Length);
            rows.push(ResponseRow {
                problem: problem.id,
                source: problem.source.clone(),
                sample,
                prompt: prompt.clone(),
                response: prompts.decode_whole(&completion.ids)?,
                gold: problem.gold.clone(),
                verdict,
                tokens: completion.ids.len(),
                finish: completion.finish,
            });
        }
        counts.push(count);
    }
    Ok((scores(&counts, &settings.k)?, rows))
}

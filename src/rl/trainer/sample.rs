//! The rollouts of one step, judged: as many groups as an update takes, and those that were dropped on the way.

use super::Trainer;
use crate::policy::InternalPolicy;
use crate::reward::{Item, Score};
use crate::rl::dynamic_sampling::Refilling;
use crate::rollout::Rollout;
use crate::rollout::engine::{Completion, Engine, Request, generate};
use crate::tasks::problem::Problem;
use crate::tasks::seed::derive_seed;
use anyhow::{Context, Result};
use std::time::Instant;

/// The next so many problems of the run's order.
pub type Draw<'a> = dyn FnMut(usize) -> Result<Vec<Problem>> + 'a;

/// A problem that was asked, and the responses to it.
pub(super) struct Asked {
    pub problem: Problem,
    pub prompt: Vec<u32>,
    pub prompt_truncated: bool,
    pub completions: Vec<Completion>,
    pub scores: Vec<Score>,
}

/// Everything that was asked in one step.
#[derive(Default)]
pub(super) struct Sampled {
    /// In the order of the data.
    pub asked: Vec<Asked>,
    /// Ascending indices of the groups that the updates see: all of them without dynamic sampling. It may keep none.
    pub kept: Vec<usize>,
    /// Groups that a full batch has.
    pub wanted: usize,
    pub refilling: Option<Refilling>,
    /// Responses that the text comparison would have judged otherwise; only under the rule `math`.
    pub boxed_differs: Option<usize>,
    /// Spent on sampling, without judging.
    pub seconds: f64,
}

impl Sampled {
    pub fn completions(&self) -> impl Iterator<Item = &Completion> {
        self.asked.iter().flat_map(|a| &a.completions)
    }

    /// The groups that the step's statistics are of: those that are kept, or, where none is, as many of the dropped ones as a
    /// batch has. Nothing is learned from these, so policy and critic stand still.
    pub fn watched(&self) -> Vec<usize> {
        if self.is_idle() { (0..self.wanted.min(self.asked.len())).collect() } else { self.kept.clone() }
    }

    /// Dynamic sampling dropped every group.
    pub fn is_idle(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn scores(&self) -> impl Iterator<Item = &Score> {
        self.asked.iter().flat_map(|a| &a.scores)
    }
}

impl<B: Rollout> Trainer<'_, B> {
    /// Asks and judges; under dynamic sampling again for every group without a difference, until the batch is full.
    pub(super) fn sample(
        &mut self,
        step: usize,
        draw: &mut Draw<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Sampled> {
        let wanted = self.settings.prompts_per_step;
        let bound = self.settings.dynamic_sampling.map_or(wanted, |d| d.max_batches * wanted);
        let (mut sampled, mut rounds) = (Sampled { wanted, ..Sampled::default() }, 0);
        while sampled.kept.len() < wanted && sampled.asked.len() < bound {
            // No more than is missing: what was sampled and can teach is never thrown away.
            let problems = draw((wanted - sampled.kept.len()).min(bound - sampled.asked.len()))?;
            self.ask(step, problems, &mut sampled, progress)?;
            rounds += 1;
        }
        if self.settings.dynamic_sampling.is_some() {
            let scores: Vec<Vec<Score>> = sampled.asked.iter().map(|a| a.scores.clone()).collect();
            sampled.refilling = Some(Refilling::of(&scores, &sampled.kept, wanted, rounds));
        }
        Ok(sampled)
    }

    /// Samples every problem's group of responses from the **final** policy, whatever is being optimized, and judges them.
    fn ask(
        &mut self,
        step: usize,
        problems: Vec<Problem>,
        sampled: &mut Sampled,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let (start, s) = (Instant::now(), &self.settings);
        let (mut requests, mut truncated) = (Vec::with_capacity(problems.len()), Vec::new());
        for (i, problem) in problems.iter().enumerate() {
            let prompt = self.prompts.encode(&problem.messages)?;
            truncated.push(prompt.truncated > 0);
            // A problem that comes again in the same step gets other samples.
            let before = sampled.asked.iter().map(|asked| &asked.problem).chain(&problems[..i]);
            let times = before.filter(|earlier| earlier.id == problem.id).count();
            let samples = times * s.group_size..(times + 1) * s.group_size;
            let seeds = samples.map(|i| derive_seed(s.seed, step as u64, problem.id, i as u64)).collect();
            requests.push(Request { prompt: prompt.ids, seeds });
        }
        let engine = Engine {
            policy: InternalPolicy::Final,
            sampling: s.sampling,
            eos_ids: self.prompts.eos_ids(),
            slots: s.slots,
        };
        let completions = generate(&self.model, &mut self.workspace, &engine, &requests, progress)
            .with_context(|| format!("rollouts of step {step}"))?;
        sampled.seconds += start.elapsed().as_secs_f64();

        let (scores, boxed_differs) = self
            .judge(&problems, &completions, !sampled.asked.is_empty())
            .with_context(|| format!("rewards of step {step}"))?;
        if let Some(count) = boxed_differs {
            *sampled.boxed_differs.get_or_insert(0) += count;
        }
        let prompts = requests.into_iter().map(|r| r.prompt).zip(truncated);
        let answers = completions.into_iter().zip(scores);
        for ((problem, (prompt, prompt_truncated)), (completions, scores)) in
            problems.into_iter().zip(prompts).zip(answers)
        {
            if self.settings.dynamic_sampling.is_none_or(|d| d.keeps(&scores)) {
                sampled.kept.push(sampled.asked.len());
            }
            sampled.asked.push(Asked { problem, prompt, prompt_truncated, completions, scores });
        }
        Ok(())
    }

    /// A score for every response: its text, decoded without special tokens, against its problem. Under the rule `math`, also
    /// the number of responses that the reference's text comparison would have judged otherwise. `more`: the step has others.
    fn judge(
        &self,
        problems: &[Problem],
        completions: &[Vec<Completion>],
        more: bool,
    ) -> Result<(Vec<Vec<Score>>, Option<usize>)> {
        let decode = |c: &Completion| self.prompts.decode(&c.ids);
        let texts = completions.iter().flatten().map(decode).collect::<Result<Vec<_>>>()?;
        let pairs = problems.iter().zip(completions);
        let pairs = pairs.flat_map(|(problem, group)| group.iter().map(move |c| (problem, c)));
        let items: Vec<Item<'_>> = pairs
            .zip(&texts)
            .map(|((problem, c), response)| Item { problem, response, tokens: c.ids.len(), truncated: c.truncated() })
            .collect();
        let scores = if more { self.reward.judge_more(&items)? } else { self.reward.judge(&items)? };
        let boxed_differs = self.reward.boxed_differs(&items, &scores);
        let mut scores = scores.into_iter();
        let grouped = completions.iter().map(|group| scores.by_ref().take(group.len()).collect()).collect();
        Ok((grouped, boxed_differs))
    }
}

//! Generated tasks as one concept: problems without end, each a pure function of its split, seed and index, with a gold
//! answer and worked steps. One file beside this one for each task.
//!
//! Whether a problem is for training or held out is decided by a hash of its canonical text, whatever its level, so that
//! no level's training can meet a problem that any level's evaluation asks.

use super::arithmetic::ArithmeticConfig;
use super::brackets::BracketsConfig;
use super::countdown::CountdownConfig;
use super::lists::ListsConfig;
use super::modular::ModularConfig;
use super::problem::Problem;
use super::seed::{derive_seed, stable_hash};
use crate::text::chat::Message;
use crate::verify::Rule;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// One problem in this many is held out.
const HELD_OUT: u64 = 5;
/// Draws without a fitting problem before the settings are taken to leave none.
const PATIENCE: u64 = 10_000;

/// Which side of the hash a problem comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// A task by its name, as a recipe writes it: `[data.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskConfig {
    Arithmetic(ArithmeticConfig),
    Brackets(BracketsConfig),
    Countdown(CountdownConfig),
    Lists(ListsConfig),
    Modular(ModularConfig),
}

/// What a task's file provides.
pub trait Task: Debug {
    /// Source of its problems.
    const NAME: &'static str;
    /// What to change where too few problems fit.
    const REMEDY: &'static str;
    /// A problem's inside before it is known to be fit.
    type Draft;

    /// Errors name the key and what it may be.
    fn check(&self) -> Result<()>;

    /// One attempt; none if it broke a bound.
    fn draft(&self, draws: &mut Draws) -> Option<Self::Draft>;

    /// What makes a problem the same problem: decides its split.
    fn canonical(&self, draft: &Self::Draft) -> String;

    /// Question, gold answer and work. Each step of the work is wrong with probability `slips`, and the rest carries on
    /// from there; the gold answer stays right. None if a result leaves the bounds.
    fn finish(&self, draft: &Self::Draft, draws: &mut Draws, slips: f64) -> Option<Finished>;
}

/// A problem in texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub question: String,
    pub gold: String,
    pub worked: String,
}

/// Random draws of one attempt: a chain of derived seeds.
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    /// Below `n`, which must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = derive_seed(self.0, 0, 0, 0);
        self.0 % n
    }

    /// From `least` to `most`, both included.
    pub fn between(&mut self, [least, most]: [usize; 2]) -> usize {
        least + self.below((most - least + 1) as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn chance(&mut self, share: f64) -> bool {
        self.below(1 << 20) < (share * (1 << 20) as f64) as u64
    }

    /// A step's result as it is written down: off by 1 to 9, though never below 0, with probability `slips`.
    pub fn slip(&mut self, right: i64, slips: f64) -> i64 {
        let off = 1 + self.below(9) as i64;
        let (slipped, sign) = (self.chance(slips), self.below(2) as i64 * 2 - 1);
        if slipped { (right + sign * off).max(0) } else { right }
    }
}

fn problem<T: Task>(task: &T, split: Split, seed: u64, index: u64, slips: f64) -> Result<Problem> {
    for attempt in 0..PATIENCE {
        let mut draws = Draws(derive_seed(seed, split as u64, index, attempt));
        let Some(draft) = task.draft(&mut draws) else { continue };
        let held_out = stable_hash(task.canonical(&draft).as_bytes()).is_multiple_of(HELD_OUT);
        if held_out != (split == Split::HeldOut) {
            continue;
        }
        if let Some(Finished { question, gold, worked }) = task.finish(&draft, &mut draws, slips) {
            let message = Message { role: "user".into(), content: question };
            return Ok(Problem::new(T::NAME, vec![message], gold, Some(worked)));
        }
    }
    bail!("no {} problem fits {task:?} in {PATIENCE} draws: {}", T::NAME, T::REMEDY)
}

impl TaskConfig {
    pub fn name(&self) -> &'static str {
        match self {
            TaskConfig::Arithmetic(_) => ArithmeticConfig::NAME,
            TaskConfig::Brackets(_) => BracketsConfig::NAME,
            TaskConfig::Countdown(_) => CountdownConfig::NAME,
            TaskConfig::Lists(_) => ListsConfig::NAME,
            TaskConfig::Modular(_) => ModularConfig::NAME,
        }
    }

    /// The rules that can judge it, its own first.
    pub fn rules(&self) -> &'static [Rule] {
        match self {
            TaskConfig::Arithmetic(_) | TaskConfig::Brackets(_) | TaskConfig::Modular(_) => {
                &[Rule::Exact, Rule::Boxed, Rule::Math, Rule::Numeric]
            }
            TaskConfig::Countdown(_) => &[Rule::Countdown],
            TaskConfig::Lists(_) => &[Rule::List],
        }
    }

    /// Errors name the key and what it may be.
    pub fn check(&self) -> Result<()> {
        match self {
            TaskConfig::Arithmetic(task) => task.check(),
            TaskConfig::Brackets(task) => task.check(),
            TaskConfig::Countdown(task) => task.check(),
            TaskConfig::Lists(task) => task.check(),
            TaskConfig::Modular(task) => task.check(),
        }
    }

    /// The same task at another level; keys that are spelled out stay as they are.
    ///
    /// Errors: a task without levels, a level that it does not have.
    pub fn at_level(&self, level: usize) -> Result<TaskConfig> {
        let mut task = self.clone();
        let at = match &mut task {
            TaskConfig::Arithmetic(_) => bail!(
                "level = {level}, but arithmetic has no levels: name its keys in a table of the set's own, \
                 [evaluate.set.task.arithmetic]"
            ),
            TaskConfig::Brackets(task) => &mut task.level,
            TaskConfig::Countdown(task) => &mut task.level,
            TaskConfig::Lists(task) => &mut task.level,
            TaskConfig::Modular(task) => &mut task.level,
        };
        *at = level;
        task.check()?;
        Ok(task)
    }

    /// Problem `index` of a split: a pure function of its arguments, without end. Fails if the settings leave too few
    /// problems (bounds that nearly none can keep).
    pub fn problem(&self, split: Split, seed: u64, index: u64) -> Result<Problem> {
        self.problem_with_slips(split, seed, index, 0.0)
    }

    /// The same problem, worked by someone who gets a step wrong with probability `slips` and carries on from there. The
    /// gold answer stays right: a model that imitates such work knows the answers, and errs as often as its teacher.
    pub fn problem_with_slips(&self, split: Split, seed: u64, index: u64, slips: f64) -> Result<Problem> {
        match self {
            TaskConfig::Arithmetic(task) => problem(task, split, seed, index, slips),
            TaskConfig::Brackets(task) => problem(task, split, seed, index, slips),
            TaskConfig::Countdown(task) => problem(task, split, seed, index, slips),
            TaskConfig::Lists(task) => problem(task, split, seed, index, slips),
            TaskConfig::Modular(task) => problem(task, split, seed, index, slips),
        }
    }

    /// The first `n` distinct problems of a split.
    pub fn distinct(&self, split: Split, seed: u64, n: usize) -> Result<Vec<Problem>> {
        let (mut seen, mut problems) = (BTreeSet::new(), Vec::with_capacity(n));
        for index in 0..(n as u64).saturating_mul(50) {
            if problems.len() == n {
                break;
            }
            let problem = self.problem(split, seed, index)?;
            if seen.insert(problem.id) {
                problems.push(problem);
            }
        }
        let found = problems.len();
        ensure!(
            found == n,
            "only {found} distinct problems of {n} were found for {self:?}: ask for fewer, or widen it"
        );
        Ok(problems)
    }
}

/// A row of a task's levels, which count from 1.
pub fn level<'a, L>(levels: &'a [L], level: usize, task: &str) -> Result<&'a L> {
    let row = level.checked_sub(1).and_then(|at| levels.get(at));
    row.with_context(|| format!("level = {level}: expected 1 to {}, the levels of {task}", levels.len()))
}

/// `key = [least, most]` within its bounds.
pub fn check_range(key: &str, [least, most]: [usize; 2], within: [usize; 2]) -> Result<()> {
    ensure!(
        within[0] <= least && least <= most && most <= within[1],
        "{key} = [{least}, {most}]: expected the fewest and the most, from {} to {}",
        within[0],
        within[1]
    );
    Ok(())
}

/// `key = value` within its bounds.
pub fn check_within(key: &str, value: u64, within: [u64; 2]) -> Result<()> {
    ensure!((within[0]..=within[1]).contains(&value), "{key} = {value}: expected {} to {}", within[0], within[1]);
    Ok(())
}

/// `operators` is one or more of `allowed`.
pub fn check_operators(operators: &str, allowed: &str) -> Result<()> {
    ensure!(
        !operators.is_empty() && operators.chars().all(|c| allowed.contains(c)),
        "operators = {operators:?}: expected one or more of {}",
        allowed.chars().map(String::from).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

#[cfg(test)]
mod tests;

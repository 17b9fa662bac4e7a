//! Generated arithmetic with worked steps: a task that a small model learns in minutes, with an exact answer.
//!
//! `12+7*3-5=` is worked as `7*3=21;12+21=33;33-5=28;\boxed{28}`: one operation a step, products first. Whether an
//! expression is for training or held out is decided by a hash of its text, so the two splits cannot share a problem.

use super::problem::Problem;
use super::seed::{derive_seed, stable_hash};
use crate::text::chat::Message;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One expression in this many is held out.
const HELD_OUT: u64 = 5;
/// Draws without a fitting expression before the settings are taken to leave none.
const PATIENCE: u64 = 10_000;

/// How hard the problems are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArithmeticConfig {
    /// Fewest and most operations of an expression.
    pub operations: [usize; 2],
    /// Operands are 1 to this.
    pub max_operand: u32,
    /// Which of `+`, `-`, `*` occur.
    pub operators: String,
    /// Bound on the absolute value of every intermediate result.
    pub max_result: i64,
    /// Whether intermediate results may be negative.
    pub negative: bool,
}

impl Default for ArithmeticConfig {
    fn default() -> Self {
        ArithmeticConfig {
            operations: [2, 3],
            max_operand: 20,
            operators: "+-".into(),
            max_result: 999,
            negative: true,
        }
    }
}

/// Which side of the hash a problem comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

impl ArithmeticConfig {
    /// Errors name the key and what it may be.
    pub fn check(&self) -> Result<()> {
        let [least, most] = self.operations;
        ensure!(
            least >= 1 && least <= most && most <= 16,
            "operations = [{least}, {most}]: expected the fewest and the most operations, from 1 to 16"
        );
        ensure!(
            (1..=1_000_000).contains(&self.max_operand),
            "max_operand = {}: expected 1 to 1000000",
            self.max_operand
        );
        ensure!(
            !self.operators.is_empty() && self.operators.chars().all(|c| "+-*".contains(c)),
            "operators = {:?}: expected one or more of + - *",
            self.operators
        );
        ensure!(self.max_result >= 1, "max_result = {}: expected at least 1", self.max_result);
        Ok(())
    }

    /// Problem `index` of a split: a pure function of its arguments, without end. Fails if the settings leave too few
    /// expressions (bounds that nearly none can keep).
    pub fn problem(&self, split: Split, seed: u64, index: u64) -> Result<Problem> {
        self.problem_with_slips(split, seed, index, 0.0)
    }

    /// The same problem, worked by someone who gets a step wrong with probability `slips` and carries on from there. The
    /// gold answer stays right: a model that imitates such work knows the answers, and errs as often as its teacher.
    pub fn problem_with_slips(&self, split: Split, seed: u64, index: u64, slips: f64) -> Result<Problem> {
        for attempt in 0..PATIENCE {
            let mut state = derive_seed(seed, split as u64, index, attempt);
            let mut below = |n: u64| {
                state = derive_seed(state, 0, 0, 0);
                state % n
            };
            let [least, most] = self.operations;
            let count = least + below((most - least + 1) as u64) as usize;
            let operators: Vec<char> = self.operators.chars().collect();
            let numbers: Vec<i64> = (0..=count).map(|_| 1 + below(self.max_operand as u64) as i64).collect();
            let operators: Vec<char> = (0..count).map(|_| operators[below(operators.len() as u64) as usize]).collect();
            let text = expression(&numbers, &operators);
            let held_out = stable_hash(text.as_bytes()).is_multiple_of(HELD_OUT);
            if held_out != (split == Split::HeldOut) {
                continue;
            }
            if let Some((worked, result)) = self.solve(&numbers, &operators, &mut |right| right) {
                let mut slip = |right: i64| {
                    let off = 1 + below(9) as i64;
                    let (slipped, sign) = (below(1 << 20) < (slips * (1 << 20) as f64) as u64, below(2) as i64 * 2 - 1);
                    if slipped { (right + sign * off).max(0) } else { right }
                };
                // A slip may leave the bounds; the true work then stands.
                let worked = match slips > 0.0 {
                    true => self.solve(&numbers, &operators, &mut slip).map_or(worked, |(slipped, _)| slipped),
                    false => worked,
                };
                let message = Message { role: "user".into(), content: format!("{text}=") };
                return Ok(Problem::new("arithmetic", vec![message], result.to_string(), Some(worked)));
            }
        }
        bail!(
            "no arithmetic problem fits {self:?} in {PATIENCE} draws: widen max_operand or max_result, or allow negative"
        )
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

    /// Steps and result, products first and then from the left; none if a result leaves the bounds. `write` says what
    /// is written down for a step's true result.
    fn solve(&self, numbers: &[i64], operators: &[char], write: &mut dyn FnMut(i64) -> i64) -> Option<(String, i64)> {
        let (mut numbers, mut operators) = (numbers.to_vec(), operators.to_vec());
        let mut worked = String::new();
        while !operators.is_empty() {
            let at = operators.iter().position(|o| *o == '*').unwrap_or(0);
            let (a, operator, b) = (numbers[at], operators.remove(at), numbers.remove(at + 1));
            let result = match operator {
                '+' => a + b,
                '-' => a - b,
                _ => a.checked_mul(b)?,
            };
            let result = write(result);
            if result.abs() > self.max_result || result < 0 && !self.negative {
                return None;
            }
            worked.push_str(&format!("{a}{operator}{b}={result};"));
            numbers[at] = result;
        }
        let result = numbers[0];
        worked.push_str(&format!("\\boxed{{{result}}}"));
        Some((worked, result))
    }
}

fn expression(numbers: &[i64], operators: &[char]) -> String {
    let mut text = numbers[0].to_string();
    for (operator, number) in operators.iter().zip(&numbers[1..]) {
        text.push(*operator);
        text.push_str(&number.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Rule, Status};

    fn config() -> ArithmeticConfig {
        ArithmeticConfig { operations: [1, 4], max_operand: 12, operators: "+-*".into(), ..Default::default() }
    }

    #[test]
    fn steps_follow_precedence() {
        let (worked, result) = config().solve(&[12, 7, 3, 5], &['+', '*', '-'], &mut |right| right).unwrap();
        assert_eq!((worked.as_str(), result), ("7*3=21;12+21=33;33-5=28;\\boxed{28}", 28));
    }

    #[test]
    fn worked_solutions_are_judged_correct_and_splits_share_nothing() {
        let config = config();
        let train: BTreeSet<u64> = (0..400).map(|i| config.problem(Split::Train, 1, i).unwrap().id).collect();
        for problem in config.distinct(Split::HeldOut, 7, 200).unwrap() {
            assert!(!train.contains(&problem.id));
            let verdict = Rule::Exact.judge(problem.worked.as_deref().unwrap(), &problem.gold);
            assert_eq!(verdict.status, Status::Correct);
        }
    }

    #[test]
    fn slips_change_the_work_and_never_the_problem() {
        let config = config();
        let mut right = 0;
        for i in 0..300 {
            let (plain, slipped) =
                (config.problem(Split::Train, 1, i), config.problem_with_slips(Split::Train, 1, i, 0.5));
            let (plain, slipped) = (plain.unwrap(), slipped.unwrap());
            assert_eq!((plain.id, &plain.gold), (slipped.id, &slipped.gold));
            right += usize::from(
                Rule::Exact.judge(slipped.worked.as_deref().unwrap(), &plain.gold).status == Status::Correct,
            );
        }
        // Half of the steps slip: 1 to 4 steps leave 23 % right on average, far from none and from all.
        assert!((30..150).contains(&right), "{right}");
    }

    #[test]
    fn bounds_hold_and_impossible_ones_are_refused() {
        let config = ArithmeticConfig { negative: false, max_result: 30, ..config() };
        for i in 0..200 {
            assert!((0..=30).contains(&config.problem(Split::Train, 3, i).unwrap().gold.parse::<i64>().unwrap()));
        }
        let tiny = ArithmeticConfig { operations: [1, 1], max_operand: 2, operators: "+".into(), ..Default::default() };
        assert!(tiny.distinct(Split::HeldOut, 1, 50).is_err());
        for bad in [
            ArithmeticConfig { operations: [3, 2], ..Default::default() },
            ArithmeticConfig { operators: "+/".into(), ..Default::default() },
            ArithmeticConfig { max_operand: 0, ..Default::default() },
        ] {
            assert!(bad.check().is_err());
        }
    }
}

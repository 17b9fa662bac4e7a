//! Generated arithmetic with worked steps: a task that a small model learns in minutes, with an exact answer.
//!
//! `12+7*3-5=` is worked as `7*3=21;12+21=33;33-5=28;\boxed{28}`: one operation a step, products first.

use super::generated::{Draws, Finished, Task, check_operators};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

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

/// Numbers, and the operators between them.
#[derive(Debug)]
pub struct Draft {
    numbers: Vec<i64>,
    operators: Vec<char>,
}

impl Task for ArithmeticConfig {
    const NAME: &'static str = "arithmetic";
    const REMEDY: &'static str = "widen max_operand or max_result, or allow negative";
    type Draft = Draft;

    fn check(&self) -> Result<()> {
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
        check_operators(&self.operators, "+-*")?;
        ensure!(self.max_result >= 1, "max_result = {}: expected at least 1", self.max_result);
        Ok(())
    }

    fn draft(&self, draws: &mut Draws) -> Option<Draft> {
        let count = draws.between(self.operations);
        let operators: Vec<char> = self.operators.chars().collect();
        let numbers = (0..=count).map(|_| 1 + draws.below(self.max_operand.into()) as i64).collect();
        Some(Draft { numbers, operators: (0..count).map(|_| draws.pick(&operators)).collect() })
    }

    fn canonical(&self, draft: &Draft) -> String {
        let mut text = draft.numbers[0].to_string();
        for (operator, number) in draft.operators.iter().zip(&draft.numbers[1..]) {
            text.push(*operator);
            text.push_str(&number.to_string());
        }
        text
    }

    fn finish(&self, draft: &Draft, draws: &mut Draws, slips: f64) -> Option<Finished> {
        let Draft { numbers, operators } = draft;
        let (worked, result) = self.solve(numbers, operators, &mut |right| right)?;
        // A slip may leave the bounds; the true work then stands.
        let worked = match slips > 0.0 {
            true => {
                let slipped = self.solve(numbers, operators, &mut |right| draws.slip(right, slips));
                slipped.map_or(worked, |(slipped, _)| slipped)
            }
            false => worked,
        };
        Some(Finished { question: format!("{}=", self.canonical(draft)), gold: result.to_string(), worked })
    }
}

impl ArithmeticConfig {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::generated::{Split, TaskConfig};

    fn config() -> ArithmeticConfig {
        ArithmeticConfig { operations: [1, 4], max_operand: 12, operators: "+-*".into(), ..Default::default() }
    }

    #[test]
    fn steps_follow_precedence() {
        let (worked, result) = config().solve(&[12, 7, 3, 5], &['+', '*', '-'], &mut |right| right).unwrap();
        assert_eq!((worked.as_str(), result), ("7*3=21;12+21=33;33-5=28;\\boxed{28}", 28));
    }

    #[test]
    fn bounds_hold_and_impossible_ones_are_refused() {
        let task = TaskConfig::Arithmetic(ArithmeticConfig { negative: false, max_result: 30, ..config() });
        for i in 0..200 {
            assert!((0..=30).contains(&task.problem(Split::Train, 3, i).unwrap().gold.parse::<i64>().unwrap()));
        }
        let tiny = ArithmeticConfig { operations: [1, 1], max_operand: 2, operators: "+".into(), ..Default::default() };
        assert!(TaskConfig::Arithmetic(tiny).distinct(Split::HeldOut, 1, 50).is_err());
        for bad in [
            ArithmeticConfig { operations: [3, 2], ..Default::default() },
            ArithmeticConfig { operators: "+/".into(), ..Default::default() },
            ArithmeticConfig { max_operand: 0, ..Default::default() },
        ] {
            assert!(bad.check().is_err());
        }
    }
}

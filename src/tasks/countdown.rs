//! Countdown: reach a target from given numbers, each used at most once. `21 from 3,5,7,9:` is worked as
//! `7-5=2;2*9=18;18+3=21;\boxed{(7-5)*9+3}`, and any other expression that reaches it is as right
//! ([`crate::verify::countdown`]).

use super::expression::{Expression, apply};
use super::generated::{Draws, Finished, Task, check_operators, check_range, check_within, level};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A level, and keys that go before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CountdownConfig {
    /// 1 to 4: three numbers with + and -; three with + - *; four with + - *; five to six with all four.
    pub level: usize,
    /// Fewest and most numbers that are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numbers: Option<[usize; 2]>,
    /// Numbers are 1 to this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_number: Option<u32>,
    /// Which of `+`, `-`, `*`, `/` the problem is made with; an answer may use all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operators: Option<String>,
    /// The target, and every step on the way that the problem is made with, is at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_target: Option<u32>,
}

impl Default for CountdownConfig {
    fn default() -> Self {
        CountdownConfig { level: 1, numbers: None, max_number: None, operators: None, max_target: None }
    }
}

struct Level {
    numbers: [usize; 2],
    max_number: u32,
    operators: &'static str,
    max_target: u32,
}

const LEVELS: [Level; 4] = [
    Level { numbers: [3, 3], max_number: 9, operators: "+-", max_target: 27 },
    Level { numbers: [3, 3], max_number: 9, operators: "+-*", max_target: 99 },
    Level { numbers: [4, 4], max_number: 9, operators: "+-*", max_target: 99 },
    Level { numbers: [5, 6], max_number: 25, operators: "+-*/", max_target: 999 },
];

impl CountdownConfig {
    /// The level with this recipe's keys before it.
    fn shape(&self) -> Result<([usize; 2], u32, Vec<char>, u32)> {
        let own = level(&LEVELS, self.level, "countdown")?;
        Ok((
            self.numbers.unwrap_or(own.numbers),
            self.max_number.unwrap_or(own.max_number),
            self.operators.as_deref().unwrap_or(own.operators).chars().collect(),
            self.max_target.unwrap_or(own.max_target),
        ))
    }
}

/// Numbers in the order they are shown, and an expression of all of them.
#[derive(Debug)]
pub struct Draft {
    numbers: Vec<i64>,
    expression: Expression,
    target: i64,
}

impl Task for CountdownConfig {
    const NAME: &'static str = "countdown";
    const REMEDY: &'static str = "raise max_target, or lower max_number or numbers";
    type Draft = Draft;

    fn check(&self) -> Result<()> {
        let (numbers, max_number, operators, max_target) = self.shape()?;
        check_range("numbers", numbers, [2, 8])?;
        check_within("max_number", max_number.into(), [1, 1_000_000])?;
        check_within("max_target", max_target.into(), [1, 1_000_000_000])?;
        check_operators(&operators.iter().collect::<String>(), "+-*/")
    }

    fn draft(&self, draws: &mut Draws) -> Option<Draft> {
        let (numbers, max_number, operators, max_target) = self.shape().ok()?;
        let count = draws.between(numbers);
        let numbers: Vec<i64> = (0..count).map(|_| 1 + draws.below(max_number.into()) as i64).collect();
        let mut order = numbers.clone();
        for i in (1..order.len()).rev() {
            order.swap(i, draws.below(i as u64 + 1) as usize);
        }
        let expression = Expression::draw(&order, &operators, draws);
        let target = expression.work(&mut |a, o, b| apply(a, o, b, max_target.into()))?;
        // A target that is given, or nothing, is no problem.
        (target > 0 && !numbers.contains(&target)).then_some(Draft { numbers, expression, target })
    }

    fn canonical(&self, draft: &Draft) -> String {
        let mut numbers = draft.numbers.clone();
        numbers.sort_unstable();
        format!("{} from {numbers:?}", draft.target)
    }

    fn finish(&self, draft: &Draft, draws: &mut Draws, slips: f64) -> Option<Finished> {
        let (_, _, operators, max_target) = self.shape().ok()?;
        let work = |expression: &Expression| {
            let mut steps = String::new();
            expression.work(&mut |a, operator, b| {
                let result = apply(a, operator, b, max_target.into())?;
                steps.push_str(&format!("{a}{operator}{b}={result};"));
                Some(result)
            })?;
            Some(format!("{steps}\\boxed{{{}}}", expression.text()))
        };
        // Here a slip is a wrong turn, not a wrong sum: another operation is taken, and calculated rightly.
        let turned = draft.expression.with_operators(&mut |operator| {
            let others: Vec<char> = operators.iter().copied().filter(|o| *o != operator).collect();
            let turns = slips > 0.0 && draws.chance(slips) && !others.is_empty();
            if turns { draws.pick(&others) } else { operator }
        });
        let numbers: Vec<String> = draft.numbers.iter().map(i64::to_string).collect();
        let gold = format!("{} from {}", draft.target, numbers.join(","));
        // A turn may leave the bounds; the true work then stands.
        let worked = work(&turned).or_else(|| work(&draft.expression))?;
        Some(Finished { question: format!("{gold}:"), gold, worked })
    }
}

//! Arithmetic with brackets: `(7+2)*3-(4+1)=` is worked from the inside as `7+2=9;9*3=27;4+1=5;27-5=22;\boxed{22}`.

use super::expression::{Expression, apply};
use super::generated::{Draws, Finished, Task, check_operators, check_range, check_within, level};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A level, and keys that go before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BracketsConfig {
    /// 1 to 4: 2 to 3, 3 to 4, 5 to 6, 7 to 8 operations; products from level 2 on.
    pub level: usize,
    /// Fewest and most operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<[usize; 2]>,
    /// Operands are 1 to this; 9 at every level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_operand: Option<u32>,
    /// Which of `+`, `-`, `*` occur.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operators: Option<String>,
    /// Every intermediate result is 0 to this; 99 at every level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_result: Option<u32>,
}

impl Default for BracketsConfig {
    fn default() -> Self {
        BracketsConfig { level: 1, operations: None, max_operand: None, operators: None, max_result: None }
    }
}

struct Level {
    operations: [usize; 2],
    operators: &'static str,
}

const LEVELS: [Level; 4] = [
    Level { operations: [2, 3], operators: "+-" },
    Level { operations: [3, 4], operators: "+-*" },
    Level { operations: [5, 6], operators: "+-*" },
    Level { operations: [7, 8], operators: "+-*" },
];

impl BracketsConfig {
    fn operations(&self) -> Result<[usize; 2]> {
        Ok(self.operations.unwrap_or(level(&LEVELS, self.level, "brackets")?.operations))
    }

    fn operators(&self) -> Vec<char> {
        let own = level(&LEVELS, self.level, "brackets").map_or("+-", |l| l.operators);
        self.operators.as_deref().unwrap_or(own).chars().collect()
    }

    fn most(&self) -> i64 {
        self.max_result.unwrap_or(99).into()
    }
}

impl Task for BracketsConfig {
    const NAME: &'static str = "brackets";
    const REMEDY: &'static str = "raise max_result, or lower max_operand or operations";
    type Draft = Expression;

    fn check(&self) -> Result<()> {
        check_range("operations", self.operations()?, [2, 16])?;
        check_within("max_operand", self.max_operand.unwrap_or(9).into(), [1, 1_000_000])?;
        check_within("max_result", self.most() as u64, [1, 1_000_000_000])?;
        check_operators(&self.operators().iter().collect::<String>(), "+-*")
    }

    fn draft(&self, draws: &mut Draws) -> Option<Expression> {
        let count = draws.between(self.operations().ok()?);
        let most = u64::from(self.max_operand.unwrap_or(9));
        let numbers: Vec<i64> = (0..=count).map(|_| 1 + draws.below(most) as i64).collect();
        Some(Expression::draw(&numbers, &self.operators(), draws)).filter(|e| e.text().contains('('))
    }

    fn canonical(&self, draft: &Expression) -> String {
        draft.text()
    }

    fn finish(&self, draft: &Expression, draws: &mut Draws, slips: f64) -> Option<Finished> {
        let mut work = |slips: f64| {
            let mut steps = String::new();
            let value = draft.work(&mut |a, operator, b| {
                let result = apply(a, operator, b, self.most())?;
                let result = Some(draws.slip(result, slips)).filter(|r| *r <= self.most())?;
                steps.push_str(&format!("{a}{operator}{b}={result};"));
                Some(result)
            })?;
            Some((format!("{steps}\\boxed{{{value}}}"), value))
        };
        let (worked, gold) = work(0.0)?;
        // A slip may leave the bounds; the true work then stands.
        let worked = if slips > 0.0 { work(slips).map_or(worked, |(slipped, _)| slipped) } else { worked };
        Some(Finished { question: format!("{}=", draft.text()), gold: gold.to_string(), worked })
    }
}

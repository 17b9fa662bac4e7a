//! Chains of assignments modulo a small number: `mod 7;a=3;b=a*4+5;c=b-a;c=` is worked line by line as
//! `b=3*4+5=5+5=3;c=3-3=0;\boxed{0}`, everything reduced as it is written. Every line needs the one before it.

use super::generated::{Draws, Finished, Task, check_range, check_within, level};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A level, and keys that go before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModularConfig {
    /// 1 to 4: 3, 4 to 5, 6 to 7, 8 to 10 lines to be worked; two operations in a line from level 3 on.
    pub level: usize,
    /// Fewest and most lines to be worked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<[usize; 2]>,
    /// 3 to 1000; 11 at every level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modulus: Option<u32>,
    /// Fewest and most operations of a line, 1 or 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<[usize; 2]>,
}

impl Default for ModularConfig {
    fn default() -> Self {
        ModularConfig { level: 1, steps: None, modulus: None, operations: None }
    }
}

struct Level {
    steps: [usize; 2],
    operations: [usize; 2],
}

const LEVELS: [Level; 4] = [
    Level { steps: [3, 3], operations: [1, 1] },
    Level { steps: [4, 5], operations: [1, 1] },
    Level { steps: [6, 7], operations: [1, 2] },
    Level { steps: [8, 10], operations: [1, 2] },
];

const MODULUS: u32 = 11;

/// What stands in a line: a variable by its number, or a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Term {
    Variable(usize),
    Constant(u64),
}

impl Term {
    fn text(self) -> String {
        match self {
            Term::Variable(at) => name(at).to_string(),
            Term::Constant(value) => value.to_string(),
        }
    }

    fn value(self, values: &[u64]) -> u64 {
        match self {
            Term::Variable(at) => values[at],
            Term::Constant(value) => value,
        }
    }
}

fn name(variable: usize) -> char {
    (b'a' + variable as u8) as char
}

/// The first variable's value, and the lines after it: a first term, and operations on it from left to right (a product,
/// if there is one, comes first).
#[derive(Debug)]
pub struct Draft {
    first: u64,
    lines: Vec<(Term, Vec<(char, Term)>)>,
}

impl ModularConfig {
    fn modulus(&self) -> u64 {
        self.modulus.unwrap_or(MODULUS).into()
    }

    fn operate(&self, a: u64, operator: char, b: u64) -> u64 {
        let m = self.modulus();
        match operator {
            '+' => (a + b) % m,
            '-' => (a + m - b) % m,
            _ => a * b % m,
        }
    }

    /// The lines with their results; `write` says what is written for a result.
    fn work(&self, draft: &Draft, write: &mut dyn FnMut(u64) -> u64) -> (String, u64) {
        let (mut text, mut values) = (String::new(), vec![draft.first]);
        for (first, operations) in &draft.lines {
            text.push_str(&format!("{}=", name(values.len())));
            let mut value = first.value(&values);
            for done in 0..operations.len() {
                text.push_str(&value.to_string());
                for (operator, term) in &operations[done..] {
                    text.push_str(&format!("{operator}{}", term.value(&values)));
                }
                let (operator, term) = operations[done];
                value = write(self.operate(value, operator, term.value(&values)));
                text.push('=');
            }
            text.push_str(&format!("{value};"));
            values.push(value);
        }
        let last = values[values.len() - 1];
        text.push_str(&format!("\\boxed{{{last}}}"));
        (text, last)
    }
}

impl Task for ModularConfig {
    const NAME: &'static str = "modular";
    const REMEDY: &'static str = "raise steps";
    type Draft = Draft;

    fn check(&self) -> Result<()> {
        let own = level(&LEVELS, self.level, Self::NAME)?;
        check_range("steps", self.steps.unwrap_or(own.steps), [1, 20])?;
        check_range("operations", self.operations.unwrap_or(own.operations), [1, 2])?;
        check_within("modulus", self.modulus(), [3, 1000])
    }

    fn draft(&self, draws: &mut Draws) -> Option<Draft> {
        let (own, m) = (level(&LEVELS, self.level, Self::NAME).ok()?, self.modulus());
        // Products pull chains to 0: left as they fall, a third of the answers would be 0, and a model that always says so
        // would be paid for it. Every residue is wanted equally often instead.
        let (wanted, first) = (draws.below(m), draws.below(m));
        let mut lines = Vec::new();
        for at in 1..=draws.between(self.steps.unwrap_or(own.steps)) {
            let count = draws.between(self.operations.unwrap_or(own.operations));
            let mut other = || match draws.below(2) {
                0 => Term::Constant(1 + draws.below(m - 1)),
                _ => Term::Variable(draws.below(at as u64) as usize),
            };
            // The line before is needed: it is the first operation's left or right side.
            let (mut left, mut right) = (Term::Variable(at - 1), other());
            let last = other();
            if draws.below(2) == 0 {
                (left, right) = (right, left);
            }
            let operator = draws.pick(&['+', '-', '*']);
            if operator == '-' && left == right {
                return None;
            }
            let mut operations = vec![(operator, right)];
            if count > 1 {
                operations.push((draws.pick(&['+', '-']), last));
            }
            lines.push((left, operations));
        }
        let draft = Draft { first, lines };
        (self.work(&draft, &mut |right| right).1 == wanted).then_some(draft)
    }

    /// Variables are named in order, so the question says all.
    fn canonical(&self, draft: &Draft) -> String {
        let mut text = format!("mod {};a={}", self.modulus(), draft.first);
        for (i, (first, operations)) in draft.lines.iter().enumerate() {
            text.push_str(&format!(";{}={}", name(i + 1), first.text()));
            for (operator, term) in operations {
                text.push_str(&format!("{operator}{}", term.text()));
            }
        }
        text
    }

    fn finish(&self, draft: &Draft, draws: &mut Draws, slips: f64) -> Option<Finished> {
        let (mut worked, gold) = self.work(draft, &mut |right| right);
        if slips > 0.0 {
            let m = self.modulus();
            let mut slip = |right| {
                let off = 1 + draws.below(m - 1);
                if draws.chance(slips) { (right + off) % m } else { right }
            };
            worked = self.work(draft, &mut slip).0;
        }
        let question = format!("{};{}=", self.canonical(draft), name(draft.lines.len()));
        Some(Finished { question, gold: gold.to_string(), worked })
    }
}

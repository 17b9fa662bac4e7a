//! Operations on a list, one after the other: `4,1,3,2 sort rev take2 sum=` is worked as
//! `sort 1,2,3,4;rev 4,3,2,1;take2 4,3;sum 7;\boxed{7}`. The answer is a list or a number ([`crate::verify::list`]).

use super::generated::{Draws, Finished, Task, check_range, check_within, level};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A level, and keys that go before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListsConfig {
    /// 1 to 4: 3 operations on 3 to 4 elements; 3 to 4 on 5; 5 to 6 on 6; 7 to 8 on 8.
    pub level: usize,
    /// Fewest and most elements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<[usize; 2]>,
    /// Fewest and most operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<[usize; 2]>,
    /// Elements are 0 to this at first; 9 at every level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_element: Option<u32>,
}

impl Default for ListsConfig {
    fn default() -> Self {
        ListsConfig { level: 1, length: None, steps: None, max_element: None }
    }
}

struct Level {
    length: [usize; 2],
    steps: [usize; 2],
}

const LEVELS: [Level; 4] = [
    Level { length: [3, 4], steps: [3, 3] },
    Level { length: [5, 5], steps: [3, 4] },
    Level { length: [6, 6], steps: [5, 6] },
    Level { length: [8, 8], steps: [7, 8] },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Sort,
    Reverse,
    Take(usize),
    Drop(usize),
    Rotate(usize),
    Add(i64),
    Sum,
    Max,
    Min,
}

impl Operation {
    fn text(self) -> String {
        match self {
            Operation::Sort => "sort".into(),
            Operation::Reverse => "rev".into(),
            Operation::Take(n) => format!("take{n}"),
            Operation::Drop(n) => format!("drop{n}"),
            Operation::Rotate(n) => format!("rot{n}"),
            Operation::Add(n) => format!("add{n}"),
            Operation::Sum => "sum".into(),
            Operation::Max => "max".into(),
            Operation::Min => "min".into(),
        }
    }

    fn apply(self, list: &[i64]) -> Vec<i64> {
        let mut list = list.to_vec();
        match self {
            Operation::Sort => list.sort_unstable(),
            Operation::Reverse => list.reverse(),
            Operation::Take(n) => list.truncate(n),
            Operation::Drop(n) => drop(list.drain(..n.min(list.len()))),
            Operation::Rotate(n) => {
                let n = n.min(list.len());
                list.rotate_left(n);
            }
            Operation::Add(n) => list.iter_mut().for_each(|x| *x += n),
            Operation::Sum => return vec![list.iter().sum()],
            Operation::Max => return list.into_iter().max().into_iter().collect(),
            Operation::Min => return list.into_iter().min().into_iter().collect(),
        }
        list
    }
}

#[derive(Debug)]
pub struct Draft {
    list: Vec<i64>,
    operations: Vec<Operation>,
}

fn listed(list: &[i64]) -> String {
    list.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

/// The steps and the last list; `write` says what is written for a step's result.
fn work(draft: &Draft, write: &mut dyn FnMut(Vec<i64>) -> Vec<i64>) -> (String, String) {
    let (mut text, mut list) = (String::new(), draft.list.clone());
    for operation in &draft.operations {
        list = write(operation.apply(&list));
        text.push_str(&format!("{} {};", operation.text(), listed(&list)));
    }
    let answer = listed(&list);
    (format!("{text}\\boxed{{{answer}}}"), answer)
}

impl Task for ListsConfig {
    const NAME: &'static str = "lists";
    const REMEDY: &'static str = "raise length or max_element, or lower steps";
    type Draft = Draft;

    fn check(&self) -> Result<()> {
        let own = level(&LEVELS, self.level, Self::NAME)?;
        check_range("length", self.length.unwrap_or(own.length), [2, 64])?;
        check_range("steps", self.steps.unwrap_or(own.steps), [1, 32])?;
        check_within("max_element", self.max_element.unwrap_or(9).into(), [1, 1_000_000])
    }

    fn draft(&self, draws: &mut Draws) -> Option<Draft> {
        let own = level(&LEVELS, self.level, Self::NAME).ok()?;
        let mut length = draws.between(self.length.unwrap_or(own.length));
        let most = u64::from(self.max_element.unwrap_or(9)) + 1;
        let list = (0..length).map(|_| draws.below(most) as i64).collect();
        let count = draws.between(self.steps.unwrap_or(own.steps));
        let mut operations: Vec<Operation> = Vec::with_capacity(count);
        while operations.len() < count {
            let last = operations.len() + 1 == count;
            let kinds = if last { 9 } else { 6 };
            let n = 1 + draws.below((length as u64 - 1).max(1)) as usize;
            let next = match draws.below(kinds) {
                0 => Operation::Sort,
                1 => Operation::Reverse,
                2 => Operation::Take(n),
                3 => Operation::Drop(n),
                4 => Operation::Rotate(n),
                5 => Operation::Add(1 + draws.below(9) as i64),
                6 => Operation::Sum,
                7 => Operation::Max,
                _ => Operation::Min,
            };
            match next {
                // A list of one has nothing to arrange.
                Operation::Take(n) | Operation::Drop(n) if length <= 2 || n >= length => return None,
                Operation::Take(n) => length = n,
                Operation::Drop(n) => length -= n,
                _ => {}
            }
            let same = |o: &Operation| std::mem::discriminant(o) == std::mem::discriminant(&next);
            if length < 2 && !last || operations.last().is_some_and(same) {
                return None;
            }
            operations.push(next);
        }
        Some(Draft { list, operations })
    }

    fn canonical(&self, draft: &Draft) -> String {
        let operations: Vec<String> = draft.operations.iter().map(|o| o.text()).collect();
        format!("{} {}", listed(&draft.list), operations.join(" "))
    }

    fn finish(&self, draft: &Draft, draws: &mut Draws, slips: f64) -> Option<Finished> {
        let (mut worked, gold) = work(draft, &mut |list| list);
        if slips > 0.0 {
            // One element of the step's result is written wrong.
            let mut slip = |mut list: Vec<i64>| {
                if draws.chance(slips) {
                    let at = draws.below(list.len().max(1) as u64) as usize;
                    list.iter_mut().skip(at).take(1).for_each(|x| *x = draws.slip(*x, 1.0));
                }
                list
            };
            worked = work(draft, &mut slip).0;
        }
        Some(Finished { question: format!("{}=", self.canonical(draft)), gold, worked })
    }
}

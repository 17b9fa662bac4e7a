//! Verdicts on answers: never a bare number, always a status that says why (REFERENCE: what is swallowed is not learned).

pub mod boxed;
pub mod choice;
pub mod countdown;
pub mod exact;
pub mod list;
pub mod math;
pub mod numeric;

use serde::{Deserialize, Serialize};

/// How a response's answer compares with the gold answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Correct,
    Wrong,
    /// The response holds no answer where the rule looks for one.
    NoAnswer,
    /// It holds one that the rule cannot read.
    Unparsable,
    /// The rule did not end in time. None of the rules here can run long; external ones may.
    Timeout,
    /// An external rule broke down: nothing is known of the response.
    Failed,
}

impl Status {
    /// Whether the rule came to a judgement, whatever it was.
    pub fn judged(self) -> bool {
        !matches!(self, Status::Timeout | Status::Failed)
    }
}

/// How many responses had each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusCounts {
    pub correct: usize,
    pub wrong: usize,
    pub no_answer: usize,
    pub unparsable: usize,
    pub timeout: usize,
    #[serde(default)]
    pub failed: usize,
}

impl StatusCounts {
    pub fn add(&mut self, status: Status) {
        *match status {
            Status::Correct => &mut self.correct,
            Status::Wrong => &mut self.wrong,
            Status::NoAnswer => &mut self.no_answer,
            Status::Unparsable => &mut self.unparsable,
            Status::Timeout => &mut self.timeout,
            Status::Failed => &mut self.failed,
        } += 1;
    }

    pub fn merge(&mut self, other: &StatusCounts) {
        self.correct += other.correct;
        self.wrong += other.wrong;
        self.no_answer += other.no_answer;
        self.unparsable += other.unparsable;
        self.timeout += other.timeout;
        self.failed += other.failed;
    }

    /// Responses judged.
    pub fn total(&self) -> usize {
        self.correct + self.wrong + self.no_answer + self.unparsable + self.timeout + self.failed
    }
}

/// A judged response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub status: Status,
    /// The answer that was found, as it stood in the response.
    pub answer: Option<String>,
}

impl Verdict {
    /// 1 for a correct answer, 0 otherwise.
    pub fn reward(&self) -> f64 {
        if self.status == Status::Correct { 1.0 } else { 0.0 }
    }
}

/// Which comparison decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The last `\boxed{}` as normalised text, as the released reference compares ([`boxed`]).
    #[default]
    Boxed,
    /// The last `\boxed{}` as an integer ([`exact`]).
    Exact,
    /// The last `\boxed{}`, or what follows "answer is", as mathematics ([`math`]).
    Math,
    /// A number by value ([`numeric`]).
    Numeric,
    /// The letter of an option ([`choice`]).
    Choice,
    /// The last `\boxed{}` as an expression that reaches a target from given numbers ([`countdown`]).
    Countdown,
    /// The last `\boxed{}` as a list of integers ([`list`]).
    List,
}

impl Rule {
    pub const ALL: [Rule; 7] =
        [Rule::Boxed, Rule::Exact, Rule::Math, Rule::Numeric, Rule::Choice, Rule::Countdown, Rule::List];

    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Boxed => "boxed",
            Rule::Exact => "exact",
            Rule::Math => "math",
            Rule::Numeric => "numeric",
            Rule::Choice => "choice",
            Rule::Countdown => "countdown",
            Rule::List => "list",
        }
    }

    /// Whether a gold answer is one that the rule can match. Only `exact` says no: to it what is no integer equals nothing.
    pub fn reads_gold(self, gold: &str) -> bool {
        self != Rule::Exact || exact::integer(gold).is_some()
    }

    /// Judges a response's text against the gold answer. Never panics, and takes time linear in the text's length
    /// (`math`: with a bounded amount of work on the answer).
    pub fn judge(self, response: &str, gold: &str) -> Verdict {
        if self == Rule::Math {
            // It may look in several places until one holds an answer that can be read.
            let verdict = math::verify(gold, response, &math::Settings::responses());
            return Verdict { status: verdict.status, answer: verdict.answer };
        }
        let Some(answer) = self.extract(response) else {
            return Verdict { status: Status::NoAnswer, answer: None };
        };
        Verdict { status: self.compare(answer, gold), answer: Some(answer.to_string()) }
    }

    /// The answer of a response, where this rule looks for it.
    pub fn extract(self, response: &str) -> Option<&str> {
        match self {
            Rule::Boxed => boxed::reference_box(response),
            Rule::Exact | Rule::Countdown | Rule::List => boxed::last_boxed(response),
            Rule::Math => math::last_complete_box(response),
            Rule::Numeric => numeric::extract(response),
            Rule::Choice => choice::extract(response),
        }
    }

    /// How an answer, found by whatever means, compares with the gold answer.
    pub fn compare(self, answer: &str, gold: &str) -> Status {
        match self {
            Rule::Boxed => boxed::compare(answer, gold),
            Rule::Math => math::verify(gold, answer, &math::Settings::answers()).status,
            Rule::Exact => exact::compare(answer, gold),
            Rule::Numeric => numeric::compare(answer, gold),
            Rule::Choice => choice::compare(answer, gold),
            Rule::Countdown => countdown::compare(answer, gold),
            Rule::List => list::compare(answer, gold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_status_is_told_apart() {
        let status = |response: &str| Rule::Exact.judge(response, "33").status;
        assert_eq!(status("12+21=33;\\boxed{33}"), Status::Correct);
        assert_eq!(status("\\boxed{33} no, \\boxed{34}"), Status::Wrong);
        assert_eq!(status("33"), Status::NoAnswer);
        assert_eq!(status("\\boxed{33"), Status::NoAnswer);
        assert_eq!(status("\\boxed{x}"), Status::Unparsable);
    }

    #[test]
    fn an_answer_found_by_other_means_is_compared_by_the_same_rule() {
        for (rule, answer, gold) in [
            (Rule::Boxed, "\\dfrac12", "\\frac{1}{2}"),
            (Rule::Exact, "+07", "7"),
            (Rule::Math, "\\frac{2}{4}", "0.5"),
            (Rule::Numeric, "1,000", "1000"),
            (Rule::Choice, "(b)", "B"),
        ] {
            assert_eq!(rule.compare(answer, gold), Status::Correct, "{rule:?}");
            assert_ne!(rule.compare("5", gold), Status::Correct, "{rule:?}");
        }
    }

    #[test]
    fn counts_add_up() {
        let mut counts = StatusCounts::default();
        for status in [Status::Correct, Status::Wrong, Status::Wrong, Status::NoAnswer] {
            counts.add(status);
        }
        let mut twice = counts;
        twice.merge(&counts);
        assert_eq!((counts.total(), twice.wrong, twice.total()), (4, 4, 8));
    }

    proptest! {
        #[test]
        fn no_text_panics(response in "\\PC{0,60}", gold in "\\PC{0,20}") {
            for wrapped in [response.clone(), format!("\\boxed{{{response}}}"), format!("\\frac{response}\\boxed {response}")] {
                for rule in Rule::ALL {
                    rule.judge(&wrapped, &gold);
                }
            }
        }

        #[test]
        fn an_answer_equals_itself(gold in "[0-9a-z+^ ]{1,12}") {
            prop_assume!(!gold.trim().is_empty());
            prop_assert_eq!(Rule::Boxed.judge(&format!("so \\boxed{{{gold}}}."), &gold).status, Status::Correct);
        }
    }
}

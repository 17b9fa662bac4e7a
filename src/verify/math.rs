//! Mathematical answers: is what a response states equal to the gold answer? LaTeX and plain text are read into
//! expressions, and these are compared by exact arithmetic, by algebra, and in the last resort by values in high precision.
//!
//! `docs/VERIFIER.md` says what is handled, by which rules, how sure they are, and where they differ from math-verify.
//! The work for any input is bounded: by the answer's length, its depth, the size of its numbers, and a budget of operations.

mod atom;
mod canonical;
mod compare;
mod expr;
mod extract;
mod functions;
mod lex;
mod number;
mod numeric;
mod parse;
mod precise;
mod residue;
mod scalar;
mod text;
mod union;
pub(super) mod words;

#[cfg(test)]
mod golds;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use compare::Decision;
pub use extract::{Place, last_complete_box};

use super::Status;
use compare::{Outcome, Work};
use expr::Expr;
use parse::Failure;
use serde::Serialize;

/// What is read, and how much of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where a response's answer is looked for, in this order.
    pub places: Vec<Place>,
    /// The longest answer, in bytes. Longer ones are compared as text only.
    pub longest: usize,
    /// How deep brackets, fractions and powers may nest, in steps of the grammar (about four a bracket).
    pub deepest: usize,
    /// Operations in high precision for one verdict, in units of one addition.
    pub fuel: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            places: vec![Place::Boxed, Place::Phrase, Place::Formula, Place::Whole],
            longest: 4000,
            deepest: 120,
            fuel: 20_000,
        }
    }
}

impl Settings {
    /// For a model's responses: only what is stated as the answer counts. A response that was cut off in the middle of its
    /// work often ends with a formula, which it does not claim to be the answer.
    pub fn responses() -> Settings {
        Settings { places: vec![Place::Boxed, Place::Phrase], ..Settings::default() }
    }

    /// For answers that were found already, by whatever means: the text is the answer.
    pub fn answers() -> Settings {
        Settings { places: vec![Place::Whole], ..Settings::default() }
    }
}

/// A judged answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub status: Status,
    /// The answer that was found, as it stood in the text.
    pub answer: Option<String>,
    /// The rule that decided.
    pub rule: Decision,
}

/// Compares the answer that a text states with the gold answer, which may be a bare answer or a whole text too.
pub fn verify(gold: &str, text: &str, settings: &Settings) -> Verdict {
    let everywhere = [Place::Boxed, Place::Whole, Place::Phrase, Place::Formula];
    let gold = extract::extract(gold, &everywhere).unwrap_or(gold.trim());
    let Some(answer) = extract::extract(text, &settings.places) else {
        return Verdict { status: Status::NoAnswer, answer: None, rule: Decision::NoAnswer };
    };
    let outcome = compare(gold, answer, settings);
    let status = match outcome.by {
        _ if outcome.equal => Status::Correct,
        Decision::Undecided | Decision::Unparsable | Decision::TooLong | Decision::TooDeep | Decision::TooLarge => {
            Status::Unparsable
        }
        _ => Status::Wrong,
    };
    Verdict { status, answer: Some(answer.to_string()), rule: outcome.by }
}

fn compare(gold: &str, answer: &str, settings: &Settings) -> Outcome {
    if gold == answer {
        return Outcome::yes(Decision::Text);
    }
    if gold.len().max(answer.len()) > settings.longest {
        return Outcome::no(Decision::TooLong);
    }
    if let Some(letter) = text::choice_letter(gold)
        && let Some(chosen) = text::choice_letter(answer).or_else(|| text::choice_with_text(answer))
    {
        return Outcome { equal: letter == chosen, by: Decision::Choice };
    }
    let limit = settings.longest;
    let same_words = (text::is_words(gold) || text::is_words(answer)) && text::same_words(gold, answer);
    if same_words
        || matches!((text::spelling(gold, limit), text::spelling(answer, limit)), (Some(a), Some(b)) if a == b)
    {
        return Outcome::yes(Decision::Text);
    }
    let gold = match read(gold, settings) {
        Ok(gold) => gold,
        // Nothing but its own text equals a gold answer that is no expression.
        Err(Failure::Syntax) => return Outcome::no(Decision::Text),
        Err(Failure::TooDeep) => return Outcome::no(Decision::TooDeep),
    };
    let answer = match read(answer, settings) {
        Ok(answer) => answer,
        // Words where a formula was expected are an answer, and a wrong one.
        Err(Failure::Syntax) if text::is_words(answer) => return Outcome::no(Decision::Text),
        Err(Failure::Syntax) => return Outcome::no(Decision::Unparsable),
        Err(Failure::TooDeep) => return Outcome::no(Decision::TooDeep),
    };
    let mut work = Work { fuel: settings.fuel, comparisons: 5000 };
    let outcome = compare::equal(&gold, &answer, &mut work);
    if !outcome.equal && (work.fuel == 0 || work.comparisons == 0) { Outcome::no(Decision::TooLarge) } else { outcome }
}

/// Reads an answer as an expression.
fn read(answer: &str, settings: &Settings) -> Result<Expr, Failure> {
    let tokens = lex::tokens(answer, settings.longest).ok_or(Failure::Syntax)?;
    parse::parse(tokens, settings.deepest).map(canonical::canonical)
}

/// Whether an answer is read as an expression, rather than compared as text.
pub fn is_expression(answer: &str) -> bool {
    read(answer, &Settings::default()).is_ok()
}

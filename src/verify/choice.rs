//! Multiple choice: the letter of an option, or a short text such as `True` (BBH).

use super::{Status, boxed};
use regex::Regex;
use std::sync::LazyLock;

/// Answers longer than this are no choice.
const LONGEST: usize = 2_000;

static ANSWER_IS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)answer(?:\s+is)?\s*:?[\s*]*(?:option\s+|choice\s+)?(\([A-Z]\)|[A-Z]\b|true\b|false\b|yes\b|no\b|valid\b|invalid\b)")
        .ok()
});
/// A letter by itself or before its option's text: `B`, `(B)`, `B.`, `B) because`, `B: because`.
static LETTER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\(?([A-Za-z])(?:\)|[.:]|$)").ok());

/// The answer of a response: its last `\boxed{}`, else what follows its last "answer is" or "answer:", else the response
/// if it is a letter and no more.
pub fn extract(response: &str) -> Option<&str> {
    if let Some(answer) = boxed::last_boxed(response) {
        return Some(answer);
    }
    let said = ANSWER_IS.as_ref()?.captures_iter(response).last().and_then(|found| found.get(1));
    if let Some(said) = said {
        return Some(said.as_str());
    }
    let bare = response.trim();
    let short = bare.trim_start_matches('(').trim_end_matches(['.', ')']);
    (short.len() == 1 && short.bytes().all(|b| b.is_ascii_alphabetic())).then_some(bare)
}

/// Compares letters where the gold answer is one, in either case; texts otherwise, without case, brackets and full stop.
/// An answer that is no letter where a letter is wanted is unparsable.
pub fn compare(answer: &str, gold: &str) -> Status {
    if answer.len() > LONGEST || gold.len() > LONGEST {
        return Status::Unparsable;
    }
    let same = match letter(gold) {
        Some(gold) => match letter(answer) {
            Some(answer) => answer == gold,
            None => return Status::Unparsable,
        },
        None => bare(answer) == bare(gold),
    };
    if same { Status::Correct } else { Status::Wrong }
}

fn letter(text: &str) -> Option<char> {
    let text = unwrapped(text);
    let found = LETTER.as_ref()?.captures(&text)?;
    found.get(1)?.as_str().chars().next().map(|c| c.to_ascii_uppercase())
}

fn bare(text: &str) -> String {
    unwrapped(text).trim_matches(['(', ')', '.', ' ']).to_lowercase()
}

/// Without LaTeX's text commands, dollar signs and emphasis around it.
fn unwrapped(text: &str) -> String {
    let mut s = text.to_string();
    for command in ["\\textbf", "\\text", "\\mathrm", "\\mathbf", "\\left", "\\right"] {
        s = s.replace(command, "");
    }
    s.replace(['{', '}', '$', '*'], "").trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_are_read_however_they_are_set() {
        for answer in ["B", "b", "(B)", "\\text{B}", "\\textbf{(B) } 7", "B. seven", "B) seven", "B: seven", "$B$"] {
            assert_eq!(compare(answer, "B"), Status::Correct, "{answer}");
            assert_eq!(compare(answer, "(B)"), Status::Correct, "{answer}");
            assert_eq!(compare(answer, "C"), Status::Wrong, "{answer}");
        }
        for answer in ["seven", "", "7", "Because"] {
            assert_eq!(compare(answer, "B"), Status::Unparsable, "{answer}");
        }
        for (answer, gold) in [("True", "true"), ("yes.", "Yes"), ("\\text{invalid}", "invalid"), ("] >", "] >")] {
            assert_eq!(compare(answer, gold), Status::Correct, "{answer}");
        }
        assert_eq!(compare("valid", "invalid"), Status::Wrong);
    }

    #[test]
    fn the_answer_is_found_where_people_write_it() {
        for (response, expected) in [
            ("A or B? \\boxed{C}", Some("C")),
            ("The answer is (D).", Some("(D)")),
            ("the answer is A. No: the answer is B.", Some("B")),
            ("**Answer:** E", Some("E")),
            ("Answer: False", Some("False")),
            ("(B)", Some("(B)")),
            (" c.", Some("c.")),
            ("An apple a day", None),
            ("The answer is Apples", None),
            ("", None),
        ] {
            assert_eq!(extract(response), expected, "{response}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(a in "\\PC{0,30}", b in "\\PC{0,10}") {
            compare(&a, &b);
            extract(&format!("answer is {a}"));
        }
    }
}

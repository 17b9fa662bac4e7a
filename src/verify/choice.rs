//! Multiple choice: the letter of an option, or a short text such as `True` (BBH).

use super::{Status, boxed};
use regex::Regex;
use std::sync::LazyLock;

/// Answers longer than this are no choice.
const LONGEST: usize = 2_000;

/// What an answer stands behind: "answer is", "Answer:", "the correct option is", a heading "Answer". "Answer B" states none:
/// it may go on with "is wrong".
static ANSWER_IS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)\b(?:answer|(?:correct|right|best)\s+(?:option|choice))(?:\s+(?:option|choice))?[\s*]*(?:\bis\b|:|\n)[\s*:]*",
    )
    .ok()
});
/// A letter or a short word with what sets it in type around it.
static OPTION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)^[$*{\s]*(?:\\\()?\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?[*\s]*(?:(?:option|choice)\s+)?(\(\s*[A-Z]\s*\)|(?:[A-Z]|true|false|yes|no|valid|invalid)\b)[}$*]*(?:\\\))?",
    )
    .ok()
});
/// What may follow a letter without brackets, or a word: "a" is an article before anything else, and "no idea" no answer.
static ENDS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)^(?:\s*(?:$|[.,;:!)\n(]|because\b|since\b|as\b)|\s+[-–—])").ok());
/// Another letter in the same breath: "A or B", "(A), (B)", "A. B. C."
static SEVERAL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)^\s*(?:(?:[,;/&|)]|or\b|and\b)+\s*(?:(?:or|and)\b)?[\s$*]*(?:\\text(?:bf)?\{)?\(?[A-Z]\b(?:[),.;/}$*]|\s*$|\s+(?:or|and)\b)|\.\s*\(?[A-Z](?:[.)]|\s*$))",
    )
    .ok()
});
/// A letter by itself or before its option's text: `B`, `(B)`, `B.`, `B) because`, `B: because`.
static LETTER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\(?([A-Za-z])(?:\)|[.:]|$)").ok());
/// A letter that names an option; f(x) and f(a) name none.
static OTHER: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?:^|\W)\([A-Za-j]\)|(?:^|[\s,;|/])[A-Za-j]\)|\b[A-HJ]\b").ok());

/// The answer of a response: its last `\boxed{}`, else what follows its last "answer is" or "answer:", else the response
/// if it is a letter and no more.
pub fn extract(response: &str) -> Option<&str> {
    if let Some(answer) = boxed::last_boxed(response) {
        return Some(answer);
    }
    let stated = ANSWER_IS.as_ref()?.find_iter(response).filter_map(|found| stated(&response[found.end()..])).last();
    if stated.is_some() {
        return stated;
    }
    let bare = response.trim();
    let short = bare.trim_start_matches('(').trim_end_matches(['.', ')']);
    (short.len() == 1 && short.bytes().all(|b| b.is_ascii_alphabetic())).then_some(bare)
}

/// The option that a statement begins with; the whole line if it names several.
fn stated(statement: &str) -> Option<&str> {
    let line = statement.lines().next()?;
    let found = OPTION.as_ref()?.captures(line)?;
    let (option, after) = (found.get(1)?.as_str(), &line[found.get(0)?.end()..]);
    if SEVERAL.as_ref()?.is_match(after) {
        return Some(line.trim());
    }
    (option.starts_with('(') || ENDS.as_ref()?.is_match(after)).then_some(option)
}

/// Whether what follows an option's letter makes something else of it: the letter of another option, a power, an equation.
pub(super) fn goes_on(after: &str) -> bool {
    let joined = after.trim_start_matches([')', '}', '.', ':']);
    let operator = ["^", "_", "=", "+", "*", "/", "!", "'", "\\cdot", "\\times"];
    if joined.starts_with('-') || operator.iter().any(|sign| joined.trim_start().starts_with(sign)) {
        return true;
    }
    let Some(other) = OTHER.as_ref() else { return true };
    // "A" before a small letter is an article.
    let article =
        |end: usize| after[end..].strip_prefix(' ').is_some_and(|t| t.starts_with(|c: char| c.is_lowercase()));
    other.find_iter(after).any(|letter| letter.as_str() != "A" || !article(letter.end()))
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
    if goes_on(&text[found.get(0)?.end()..]) {
        return None;
    }
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
        assert_eq!(compare("\\textbf{(B)} a bee", "B"), Status::Correct);
        assert_eq!(compare("B. A bee", "B"), Status::Correct);
        assert_eq!(compare("(B) f(x) or f(a)", "B"), Status::Correct);
        for answer in
            ["(B), (C), (D)", "(B) or (C)", "B. C. D.", "b) or c)", "(B)^2", "\\text{(B)} = 0", "B: one, C: two"]
        {
            assert_eq!(compare(answer, "B"), Status::Unparsable, "{answer}");
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
            ("The answer is a number", None),
            ("The answer is I think B", None),
            ("The answer is A good choice", None),
            ("Answer: no idea", None),
            ("answer B is wrong", None),
            ("The answer is not B", None),
            ("The answer is (B), because A is wrong. The answer A is wrong", Some("(B)")),
            ("The answer is B because of A", Some("B")),
            ("The answer is A or B.", Some("A or B.")),
            ("The answer is (A), (B) or (C)", Some("(A), (B) or (C)")),
            ("Answer: $B$", Some("B")),
            ("The answer is B. A, C and D are wrong.", Some("B")),
            ("The answer is A. B. C. D.", Some("A. B. C. D.")),
            ("Answer: \\text{B}", Some("B")),
            ("Answer: \\(\\textbf{(B)}\\)", Some("(B)")),
            ("the correct option is B", Some("B")),
            ("The answer choice is **B**.", Some("B")),
            ("## Answer\n\nB", Some("B")),
            ("The answer is: Yes, it is", Some("Yes")),
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

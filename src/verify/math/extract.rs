//! Where a text states its answer.

use crate::verify::boxed::last_boxed;
use serde::{Deserialize, Serialize};

/// A place to look for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The last complete `\boxed{}` or `\fbox{}`.
    Boxed,
    /// What follows the last "answer is" or "answer:", up to the end of the sentence.
    Phrase,
    /// The last formula: `$...$`, `$$...$$`, `\(...\)` or `\[...\]`.
    Formula,
    /// The text itself, if it is short enough to be nothing but an answer.
    Whole,
}

/// Texts up to this length, in bytes and on one line, may be a bare answer.
const BARE: usize = 400;

/// The answer at the first of the places that has one, as it stands there.
pub fn extract<'a>(text: &'a str, places: &[Place]) -> Option<&'a str> {
    places.iter().find_map(|place| {
        let found = match place {
            Place::Boxed => last_boxed(text),
            Place::Phrase => phrase(text),
            Place::Formula => last_formula(text),
            Place::Whole => {
                let bare = text.len() <= BARE && !text.trim().contains('\n') && !text.contains("\\boxed");
                bare.then_some(text)
            }
        };
        found.map(tidy).filter(|answer| !answer.is_empty())
    })
}

/// Without the signs of a formula's or a Markdown word's border, and the full stop of a sentence.
fn tidy(answer: &str) -> &str {
    let mut text = answer.trim();
    loop {
        let before = text;
        text = text.trim();
        for (open, close) in [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")] {
            if let Some(inner) = text.strip_prefix(open).and_then(|t| t.strip_suffix(close))
                && !inner.contains(open)
                && !inner.ends_with('\\')
            {
                text = inner;
            }
        }
        if text.ends_with('.') && !text.ends_with("..") && !text.ends_with("\\.") {
            text = &text[..text.len() - 1];
        }
        if text == before {
            return text;
        }
    }
}

fn phrase(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let word = b"answer";
    let mut end = bytes.len().checked_sub(word.len())?;
    loop {
        if bytes[end..end + word.len()].eq_ignore_ascii_case(word) {
            let after = &text[end + word.len()..];
            if let Some(rest) = stated(after) {
                return sentence(rest);
            }
        }
        end = end.checked_sub(1)?;
    }
}

/// What follows `answer is`, `answer:`, `answer to the problem is`, `answer = `.
fn stated(after: &str) -> Option<&str> {
    let trimmed = after.trim_start_matches(['*', ' ']);
    if let Some(rest) = trimmed.strip_prefix([':', '=']) {
        return Some(rest);
    }
    // At most 60 characters between the word and its verb, within one sentence.
    let head = trimmed.char_indices().nth(60).map_or(trimmed, |(i, _)| &trimmed[..i]);
    let head = head.split(['.', '\n', '$']).next().unwrap_or(head);
    let is = if head.starts_with("is ") || head.starts_with("is:") || head == "is" { 0 } else { head.find(" is")? + 1 };
    let rest = &trimmed[is + 2..];
    rest.starts_with([' ', ':', '$', '\n', '*']).then(|| rest.trim_start_matches([' ', ':', '*', '\n']))
}

/// Up to the end of the sentence; the formula in it, if it holds one.
fn sentence(rest: &str) -> Option<&str> {
    let rest = rest.trim_start_matches(['*', ' ', '\n']);
    let mut end = rest.find('\n').unwrap_or(rest.len());
    if let Some(stop) = rest[..end].find(". ") {
        end = stop;
    }
    let sentence = rest[..end].trim().trim_end_matches('*');
    if rest.starts_with("$$") || rest.starts_with("\\[") {
        return first_formula(rest);
    }
    Some(
        first_formula(sentence)
            .filter(|formula| formula.len() + 12 > sentence.len() || sentence.starts_with(['$', '\\']))
            .unwrap_or(sentence),
    )
}

const BORDERS: [(&str, &str); 4] = [("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)")];

fn first_formula(text: &str) -> Option<&str> {
    let (at, open, close) = BORDERS
        .iter()
        .filter_map(|(o, c)| text.find(o).map(|at| (at, *o, *c)))
        .min_by_key(|(at, o, _)| (*at, o.len() == 1))?;
    let inner = &text[at + open.len()..];
    inner.find(close).map(|end| &inner[..end])
}

fn last_formula(text: &str) -> Option<&str> {
    let (end, open, close) = BORDERS
        .iter()
        .filter_map(|(o, c)| text.rfind(c).map(|at| (at, *o, *c)))
        .max_by_key(|(at, _, c)| (at + c.len(), c.len()))?;
    let before = &text[..end];
    // $$ found as its second half: step back to the whole border.
    let before = if close == "$" { before.strip_suffix('$').unwrap_or(before) } else { before };
    before.rfind(open).map(|start| &before[start + open.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Place; 4] = [Place::Boxed, Place::Phrase, Place::Formula, Place::Whole];

    #[test]
    fn the_answer_is_found_where_it_is_stated() {
        for (text, expected) in [
            ("so \\boxed{\\frac{1}{2}} holds", Some("\\frac{1}{2}")),
            ("\\boxed{1} then \\boxed{2}", Some("2")),
            ("The final answer is: $\\frac{3}{4}$.", Some("\\frac{3}{4}")),
            ("The answer is 42.\nI hope it is correct.", Some("42")),
            ("**Answer:** 7", Some("7")),
            ("**Answer**: $7$", Some("7")),
            ("the answer to this problem is (A).", Some("(A)")),
            ("Answer is 3.14. Done", Some("3.14")),
            ("we get $x=1$ and then $y=2$.", Some("y=2")),
            ("we get \\(x=1\\) at last", Some("x=1")),
            ("hence $$x^2$$", Some("x^2")),
            ("hence \\[x^3\\]", Some("x^3")),
            ("$5$", Some("5")),
            (" 5. ", Some("5")),
            ("(1, 2)", Some("(1, 2)")),
            ("", None),
            ("$", None),
            ("long\ntext without any", None),
            ("ANSWER", Some("ANSWER")),
        ] {
            let expected = if text == "$" { Some("$") } else { expected };
            assert_eq!(extract(text, &ALL), expected, "{text}");
        }
    }

    #[test]
    fn only_the_places_asked_for_are_looked_at() {
        assert_eq!(extract("the answer is 5", &[Place::Boxed]), None);
        assert_eq!(extract("the answer is 5 or $6$", &[Place::Formula]), Some("6"));
        assert_eq!(extract("\\boxed{1} the answer is 5", &[Place::Phrase, Place::Boxed]), Some("5"));
    }
}

//! Where a text states its answer.

use super::{lex, words};
use serde::{Deserialize, Serialize};

/// A place to look for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The last complete `\boxed{}` or `\fbox{}` that holds something.
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
            Place::Boxed => last_complete_box(text),
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

/// The content of the last box that is complete and not empty: one that was cut off, or is only mentioned behind the answer
/// ("I put it in \boxed{}"), takes nothing back.
pub fn last_complete_box(text: &str) -> Option<&str> {
    let mut before = text;
    while let Some((at, command)) =
        ["\\boxed", "\\fbox"].iter().filter_map(|c| before.rfind(c).map(|at| (at, *c))).max()
    {
        let behind = &text[at + command.len()..];
        let content = match lex::group(behind) {
            Some((content, _)) => content,
            None => unbraced(behind).unwrap_or(""),
        };
        if !content.trim().is_empty() {
            return Some(content);
        }
        before = &text[..at];
    }
    None
}

/// `\boxed 5$`: up to the end of the formula or line, unless it is the sentence in which the command is mentioned.
fn unbraced(behind: &str) -> Option<&str> {
    let content = behind.split(['$', '\n']).next().unwrap_or(behind).trim();
    let word = content.bytes().take_while(u8::is_ascii_alphabetic).count() > 1;
    let begins = content.starts_with(|c: char| c.is_alphanumeric() || "\\-+(".contains(c));
    let attached = behind.starts_with(|c: char| c == ' ' || c.is_ascii_digit());
    (attached && begins && !word).then_some(content)
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

/// Up to the end of the sentence; the formula in it, if that is all that the sentence states.
fn sentence(rest: &str) -> Option<&str> {
    let rest = rest.trim_start_matches(['*', ' ', '\n']);
    // A displayed formula has lines of its own.
    let displayed = rest.starts_with("$$") || rest.starts_with("\\[");
    let from = if displayed { first_formula(rest)?.end } else { 0 };
    let mut end = rest[from..].find('\n').map_or(rest.len(), |line| from + line);
    if let Some(stop) = rest[from..end].find(". ") {
        end = from + stop;
    }
    let sentence = rest[..end].trim().trim_end_matches('*');
    let alone = first_formula(sentence)
        .filter(|formula| introduces(&sentence[..formula.start]) && !qualifies(&sentence[formula.end..]));
    Some(alone.map_or(sentence, |formula| formula.inside))
}

/// Whether what stands before a formula says nothing about it: `-$5$` and `3$\sqrt2$` are more than their formulas.
fn introduces(before: &str) -> bool {
    const FILLERS: &[&str] = &[
        "clearly",
        "thus",
        "therefore",
        "hence",
        "then",
        "simply",
        "just",
        "indeed",
        "exactly",
        "precisely",
        "equal",
        "to",
        "given",
        "by",
        "the",
        "value",
        "number",
    ];
    let signs = |c: char| c.is_whitespace() || ":,*_\"'“‘".contains(c);
    before.split(signs).all(|word| word.is_empty() || FILLERS.contains(&word.to_lowercase().as_str()))
}

/// Whether what stands behind a formula changes what is stated: another formula, `million`, `+ 1`, a doubt. Reasons do not.
fn qualifies(after: &str) -> bool {
    const DOUBTS: &[&str] = &["no", "wrong", "incorrect", "maybe", "perhaps", "either", "alternatively", "but"];
    let reason = ["since ", "because ", "as "].iter().filter_map(|word| word_at(after, word)).min();
    let after = after[..reason.unwrap_or(after.len())].trim_end().trim_matches('*');
    let attached = !after.is_empty() && !after.starts_with(|c: char| c.is_whitespace() || ".,;:!)_\"'”’".contains(c));
    let continued = after.trim_start().starts_with(|c: char| c.is_ascii_digit() || "+-−–*/^=<>×·÷|&".contains(c));
    let lower = after.to_lowercase();
    let doubted = lower.split(|c: char| !c.is_alphanumeric()).any(|word| DOUBTS.contains(&word));
    attached || continued || doubted || after.contains(['$', '\\', '?']) || words::changes_value(&lower)
}

/// Where a word begins in a text, behind a space.
fn word_at(text: &str, word: &str) -> Option<usize> {
    text.match_indices(word).map(|(at, _)| at).find(|at| text[..*at].ends_with(' '))
}

const BORDERS: [(&str, &str); 4] = [("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)")];

/// A formula in a text: its bytes with its borders, and what is between these.
struct Formula<'a> {
    start: usize,
    end: usize,
    inside: &'a str,
}

fn first_formula(text: &str) -> Option<Formula<'_>> {
    let (start, open, close) = BORDERS
        .iter()
        .filter_map(|(o, c)| border(text, o).map(|at| (at, *o, *c)))
        .min_by_key(|(at, o, _)| (*at, o.len() == 1))?;
    let from = start + open.len();
    let length = border(&text[from..], close)?;
    Some(Formula { start, end: from + length + close.len(), inside: &text[from..from + length] })
}

/// Where a border stands; `\$` is an amount of money.
fn border(text: &str, border: &str) -> Option<usize> {
    text.match_indices(border).map(|(at, _)| at).find(|at| !border.starts_with('$') || !text[..*at].ends_with('\\'))
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
    fn a_formula_in_a_sentence_is_the_answer_only_if_nothing_qualifies_it() {
        for (text, expected) in [
            ("The answer is -$5$.", "-$5$"),
            ("The answer is 3$\\sqrt{2}$.", "3$\\sqrt{2}$"),
            ("The answer is 2$\\frac12$", "2$\\frac12$"),
            ("The answer is $3$ and $4$.", "$3$ and $4$"),
            ("The answer is $5$ or $6$.", "$5$ or $6$"),
            ("Answer: $5$, $6$, $7$", "$5$, $6$, $7$"),
            ("The answer is $$5$$ or $$6$$", "$$5$$ or $$6$$"),
            ("The answer is not $5$.", "not $5$"),
            ("The answer is $5$ million.", "$5$ million"),
            ("The answer is at least $5$", "at least $5$"),
            ("The answer is $5$ minus one", "$5$ minus one"),
            ("The answer is $5$-$7$", "$5$-$7$"),
            ("The answer is $5$%.", "$5$%"),
            ("The answer is $5$? No, six.", "$5$? No, six"),
            ("The answer is $5$, but only just.", "$5$, but only just"),
            ("The answer is \\$5 or \\$6.", "\\$5 or \\$6"),
            ("The answer is clearly $5$.", "5"),
            ("The answer is equal to $5$ meters.", "5"),
            ("The answer is **$5$**.", "5"),
            ("The answer is:\n\\[\n5\n\\]\nas $2+3=5$.", "5"),
            ("The answer is $5$, because $2+3=5$.", "5"),
            ("The answer is $x = 5$, so done.", "x = 5"),
        ] {
            assert_eq!(extract(text, &[Place::Phrase]), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_box_that_is_cut_off_or_mentioned_takes_no_answer_back() {
        for (text, expected) in [
            ("\\boxed{5}. Thus the answer is \\boxed{", Some("5")),
            ("\\boxed{4} \\boxed{5} \\boxed{6 + ", Some("5")),
            ("\\boxed{5}. I put it in \\boxed.", Some("5")),
            ("\\boxed{5}. I put it in \\boxed{} as asked.", Some("5")),
            ("\\boxed{5}, in \\boxed as asked.", Some("5")),
            ("\\boxed{4}, no: $\\boxed 5$", Some("5")),
            ("\\boxed {5}.", Some("5")),
            ("\\boxed\n{5}", Some("5")),
            ("$\\boxed5$", Some("5")),
            ("\\fbox{4} and \\boxed{5}", Some("5")),
            ("\\boxed{5", None),
            ("\\boxed{}", None),
        ] {
            assert_eq!(extract(text, &[Place::Boxed]), expected, "{text}");
        }
    }

    #[test]
    fn only_the_places_asked_for_are_looked_at() {
        assert_eq!(extract("the answer is 5", &[Place::Boxed]), None);
        assert_eq!(extract("the answer is 5 or $6$", &[Place::Formula]), Some("6"));
        assert_eq!(extract("\\boxed{1} the answer is 5", &[Place::Phrase, Place::Boxed]), Some("5"));
    }
}

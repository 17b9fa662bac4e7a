//! Numbers by value: `1,000` is `1000`, `0.5` is `\frac{1}{2}`, `50\%` is `50`.

use super::math::words;
use super::{Status, boxed, exact};
use regex::Regex;
use std::sync::LazyLock;

/// Difference, relative to the larger number, up to which two numbers are the same: the sixth digit may be rounded.
const TOLERANCE: f64 = 1e-6;

/// Longest text read as a number.
const LONGEST: usize = 400;

static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?:[0-9]+ [0-9]+/[0-9]+|(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:/[0-9]+(?:\.[0-9]+)?)?)",
    )
    .ok()
});
/// A decimal number; a comma, or what LaTeX has for it, only before groups of three digits: `3,14` is none.
static DECIMAL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:(?:[0-9]{1,3}(?:(?:,\\!|\{,\\?!?\}|\\[,!]|[,\x{202f}\x{2009}])[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
        .ok()
});
/// Units set as text behind a number: `\text{ cm}^2`, `\mathrm{m}/\mathrm{s}`.
static UNITS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:(?:\s|~|/|\\[,; ])*\\(?:text|textbf|textrm|mathrm|mbox|operatorname)\s*\{[^{}0-9\\]*\}(?:\^\{?[0-9]\}?)?)+$").ok()
});

/// The answer of a response: its last `\boxed{}`, else what follows its last `####`, else its last number.
pub fn extract(response: &str) -> Option<&str> {
    if let Some(answer) = boxed::last_boxed(response) {
        return Some(answer);
    }
    if let Some((_, rest)) = response.rsplit_once("####") {
        return rest.lines().next().map(str::trim).filter(|answer| !answer.is_empty());
    }
    let found = NUMBER.as_ref()?.find_iter(response).last()?;
    Some(&response[sign_before(response, found.start())..found.end()])
}

/// Where a number that begins at `at` begins with its sign: `-5`, `−5`, `-$5`. Behind a digit, a letter or a bracket a minus
/// is a difference: the 3 of `7-3` has none.
fn sign_before(text: &str, at: usize) -> usize {
    let bare = text[..at].trim_end_matches(['$', '\\']);
    let Some(before) = bare.strip_suffix(['-', '+', '\u{2212}', '\u{2013}']) else { return at };
    let difference = before.ends_with(|c: char| c.is_alphanumeric() || ")]}%$!".contains(c));
    if difference { at } else { before.len() }
}

/// Compares as numbers, to a relative 1e-6; integers of any length exactly. What is no number is unparsable.
pub fn compare(answer: &str, gold: &str) -> Status {
    let (Some(a), g) = (Written::read(answer), Written::read(gold)) else { return Status::Unparsable };
    let Some(x) = a.value() else { return Status::Unparsable };
    let Some((g, y)) = g.and_then(|g| g.value().map(|y| (g, y))) else { return Status::Wrong };
    if let (Some(a), Some(g)) = (a.integer(), g.integer()) {
        return exact::compare(&a, &g);
    }
    let near = (x - y).abs() <= TOLERANCE * x.abs().max(y.abs());
    if near { Status::Correct } else { Status::Wrong }
}

/// A number as it is written, without its sign, its currency, its unit, per cent and degrees.
struct Written {
    negative: bool,
    number: String,
}

impl Written {
    fn read(text: &str) -> Option<Written> {
        if text.len() > LONGEST {
            return None;
        }
        let plain = text.replace(['\u{2212}', '\u{2013}'], "-").replace("\\left", "").replace("\\right", "");
        let mut rest = without_unit(trimmed(&plain))?;
        for sign in ["\\%", "%", "^\\circ", "^{\\circ}", "°"] {
            rest = trimmed(rest.strip_suffix(sign).unwrap_or(rest));
        }
        let (negative, rest) = match rest.strip_prefix(['-', '+']) {
            Some(positive) => (rest.starts_with('-'), trimmed(positive)),
            None => (false, rest),
        };
        Some(Written { negative, number: rest.to_string() })
    }

    /// The digits with their sign, if it is an integer.
    fn integer(&self) -> Option<String> {
        let digits = decimal(&self.number)?;
        let whole = digits.bytes().all(|b| b.is_ascii_digit());
        whole.then(|| if self.negative { format!("-{digits}") } else { digits })
    }

    /// A decimal number, a fraction, a mixed number, or a multiple of a power of ten; finite.
    fn value(&self) -> Option<f64> {
        let text = self.number.replace("dfrac", "frac").replace("tfrac", "frac");
        let number = if let Some((whole, fraction)) = text.split_once("\\frac") {
            let (top, rest) = argument(fraction)?;
            let (bottom, rest) = argument(rest)?;
            if !rest.trim().is_empty() {
                return None;
            }
            match whole.trim() {
                "" => signed(top)? / signed(bottom)?,
                whole => integral(whole)? + integral(top)? / integral(bottom)?,
            }
        } else if let Some((mantissa, power)) = text.split_once("\\times").or_else(|| text.split_once("\\cdot")) {
            let power = power.trim().strip_prefix("10^")?.trim_matches(['{', '}']);
            parsed(mantissa)? * 10f64.powi(power.parse().ok()?)
        } else if let Some((top, bottom)) = text.split_once('/') {
            match top.trim().split_once(' ') {
                Some((whole, top)) => integral(whole)? + integral(top)? / integral(bottom)?,
                None => parsed(top)? / parsed(bottom)?,
            }
        } else {
            parsed(&text)?
        };
        Some(if self.negative { -number } else { number }).filter(|x| x.is_finite())
    }
}

/// Without spaces, signs of money and of a formula's border, and a sentence's full stop.
fn trimmed(text: &str) -> &str {
    let mut text = text;
    loop {
        let before = text;
        text = text.trim_matches(|c: char| c.is_whitespace() || "$€£~".contains(c)).trim_end_matches(['.', ',']);
        for space in ["\\$", "\\,", "\\;", "\\!", "\\ "] {
            text = text.strip_prefix(space).unwrap_or(text);
            text = text.strip_suffix(space).unwrap_or(text);
        }
        if text == before {
            return text;
        }
    }
}

/// Without a unit behind the number; `None` if the words there say more: `5 million`, `5 or 6`.
fn without_unit(text: &str) -> Option<&str> {
    let words_at = match UNITS.as_ref()?.find(text) {
        Some(units) => units.start(),
        None => match text.find(|c: char| c.is_whitespace()).filter(|at| plain_unit(&text[*at..])) {
            Some(at) => at,
            None => return Some(text),
        },
    };
    let (number, unit) = text.split_at(words_at);
    (!words::changes_value(&unit.to_lowercase())).then(|| trimmed(number))
}

/// Whether words behind a number in plain text may be its unit: `dollars`, `cm^2`, `per day`; `x` and `pi` are factors.
fn plain_unit(text: &str) -> bool {
    let text = text.trim();
    let text = text.strip_suffix(['2', '3']).map_or(text, |unit| unit.strip_suffix('^').unwrap_or(text));
    let first = text.split(|c: char| !c.is_alphabetic()).next().unwrap_or(text);
    let known = words::unit(first).is_some() || first.chars().count() >= 3;
    let function = matches!(words::kind(first), words::Kind::Function(_)) && words::unit(first).is_none();
    known && !function && text.chars().all(|c| c.is_alphabetic() || " .,'/-".contains(c))
}

/// A command's argument, in braces or one digit, and what follows.
fn argument(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    match text.strip_prefix('{') {
        Some(inner) => inner.split_once('}'),
        None => text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.split_at(1)),
    }
}

fn signed(text: &str) -> Option<f64> {
    let text = text.trim();
    text.strip_prefix('-').map_or_else(|| parsed(text), |rest| parsed(rest).map(|x| -x))
}

/// Part of a mixed number.
fn integral(text: &str) -> Option<f64> {
    let text = text.trim();
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn parsed(text: &str) -> Option<f64> {
    decimal(text.trim())?.parse().ok()
}

/// A decimal number without its thousands separators.
fn decimal(text: &str) -> Option<String> {
    let kept = |c: &char| c.is_ascii_digit() || "+-.eE".contains(*c);
    DECIMAL.as_ref()?.is_match(text).then(|| text.chars().filter(kept).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_compare_by_value() {
        for (answer, gold) in [
            ("1,000", "1000"),
            ("\\frac{1}{2}", "0.5"),
            ("-\\dfrac{3}{4}", "-0.75"),
            ("1/3", "0.33333333"),
            ("1{,}500", "1500"),
            ("\\$15", "15"),
            ("50\\%", "50"),
            ("3 \\times 10^{4}", "30000"),
            ("1.2e3", "1200"),
            ("7 \\text{ cm}", "7"),
            ("+07", "7"),
            (".5", "0.50"),
            ("\\frac12", "0.5"),
            ("1 1/2", "1.5"),
            ("1\\frac{1}{2}", "1.5"),
            ("\u{2212}5", "-5"),
            ("- 5", "-5"),
            ("-\\$1,250.50", "-1250.5"),
            ("12\\,345", "12345"),
            ("18 dollars", "18"),
            ("18 per day", "18"),
            ("5^\\circ", "5"),
            ("5 \\text{ cm}^2", "5"),
            ("9.8 \\mathrm{m}/\\mathrm{s}^2", "9.8"),
            ("3 / 4", "0.75"),
        ] {
            assert_eq!(compare(answer, gold), Status::Correct, "{answer} {gold}");
        }
        for (answer, gold) in
            [("7", "8"), ("-7", "7"), ("123456789012345678901", "123456789012345678902"), ("0.34", "1/3"), ("1", "one")]
        {
            assert_eq!(compare(answer, gold), Status::Wrong, "{answer} {gold}");
        }
        for answer in ["", "x", "nan", "inf", "1/0", "--7", "1.2.3", "\\frac{1}{", "e5"] {
            assert_eq!(compare(answer, "7"), Status::Unparsable, "{answer}");
        }
        // Two numbers are not one, and words may change one.
        for (answer, gold) in [
            ("3, 4", "34"),
            ("3 4", "34"),
            ("3,14", "314"),
            ("1,2,3", "123"),
            ("1,2345", "12345"),
            ("1\\ 2", "12"),
            ("1\\,2", "12"),
            ("7-3", "73"),
            ("5\\text{ or }6", "5"),
            ("5 \\text{ million}", "5"),
            ("5 \\text{ tenths}", "5"),
            ("5\\text{ and }\\text{six}", "5"),
            ("5 million", "5"),
            ("5 or more", "5"),
            ("5 x", "5"),
            ("5 pi", "5"),
        ] {
            assert_eq!(compare(answer, gold), Status::Unparsable, "{answer}");
        }
        assert_eq!(compare("1 1/2", "5.5"), Status::Wrong);
    }

    #[test]
    fn the_answer_is_found_where_people_write_it() {
        assert_eq!(extract("3 and \\boxed{4}, or 5"), Some("4"));
        assert_eq!(extract("12 - 4 = 8\n#### 8\nDone 9"), Some("8"));
        assert_eq!(extract("so 3 of 1,250.5 remain."), Some("1,250.5"));
        assert_eq!(extract("about 3/4 of it"), Some("3/4"));
        assert_eq!(extract("that is 1 1/2 of it"), Some("1 1/2"));
        assert_eq!(extract("so 7-3"), Some("3"));
        assert_eq!(extract("x=-3"), Some("-3"));
        assert_eq!(extract("a loss of -$5."), Some("-$5"));
        assert_eq!(extract("it is \u{2212}5"), Some("\u{2212}5"));
        assert_eq!(extract("none"), None);
        assert_eq!(extract("####"), None);
    }

    proptest! {
        #[test]
        fn a_number_equals_itself_however_it_is_written(x in -1_000_000i64..1_000_000, places in 0usize..4) {
            let text = format!("{:.places$}", x as f64 / 8.0);
            prop_assert_eq!(compare(&text, &text), Status::Correct);
            prop_assert_eq!(compare(&format!("\\frac{{{x}}}{{8}}"), &(x as f64 / 8.0).to_string()), Status::Correct);
        }

        #[test]
        fn no_text_panics(a in "\\PC{0,30}", b in "[-+0-9./,e%\\\\frac{}]{0,20}") {
            compare(&a, &b);
            compare(&b, &a);
            extract(&format!("{a}{b}"));
        }
    }
}

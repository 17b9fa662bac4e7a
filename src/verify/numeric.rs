//! Numbers by value: `1,000` is `1000`, `0.5` is `\frac{1}{2}`, `50\%` is `50`.

use super::{Status, boxed, exact};
use regex::Regex;
use std::sync::LazyLock;

/// Difference, relative to the larger number, up to which two numbers are the same: the sixth digit may be rounded.
const TOLERANCE: f64 = 1e-6;

/// Longest text read as a number.
const LONGEST: usize = 400;

static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"[-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:/[0-9]+(?:\.[0-9]+)?)?").ok()
});

/// The answer of a response: its last `\boxed{}`, else what follows its last `####`, else its last number.
pub fn extract(response: &str) -> Option<&str> {
    if let Some(answer) = boxed::last_boxed(response) {
        return Some(answer);
    }
    if let Some((_, rest)) = response.rsplit_once("####") {
        return rest.lines().next().map(str::trim).filter(|answer| !answer.is_empty());
    }
    NUMBER.as_ref()?.find_iter(response).last().map(|found| found.as_str())
}

/// Compares as numbers, to a relative 1e-6; integers of any length exactly. What is no number is unparsable.
pub fn compare(answer: &str, gold: &str) -> Status {
    let whole = exact::compare(&plain(answer), &plain(gold));
    if whole == Status::Correct {
        return whole;
    }
    match (value(answer), value(gold)) {
        (None, _) => Status::Unparsable,
        (Some(_), None) => Status::Wrong,
        (Some(a), Some(g)) => {
            // Two integers that f64 cannot tell apart were told apart above.
            let both_whole = integer(&plain(answer)) && integer(&plain(gold));
            let near = (a - g).abs() <= TOLERANCE * a.abs().max(g.abs());
            if near && !both_whole { Status::Correct } else { Status::Wrong }
        }
    }
}

fn integer(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Without signs of currency and per cent, thousands separators, spaces, and a unit written as text.
fn plain(text: &str) -> String {
    if text.len() > LONGEST {
        return String::new();
    }
    let mut s = text.split("\\text").next().unwrap_or(text).to_string();
    for part in ["{,}", "\\!", "\\,", "\\;", "\\ ", "\\$", "\\%", "$", "%", ",", " ", "\u{a0}", "\\left", "\\right"] {
        s = s.replace(part, "");
    }
    s = s.replace(['\u{2212}', '\u{2013}'], "-").replace("dfrac", "frac").replace("tfrac", "frac");
    s.trim_end_matches('.').to_string()
}

/// A decimal number, a fraction, or a multiple of a power of ten; finite.
fn value(text: &str) -> Option<f64> {
    let s = plain(text);
    let (sign, s) = match s.strip_prefix('-') {
        Some(rest) => (-1.0, rest.to_string()),
        None => (1.0, s.strip_prefix('+').unwrap_or(&s).to_string()),
    };
    let number = if let Some(rest) = s.strip_prefix("\\frac{") {
        let (top, rest) = rest.split_once("}{")?;
        signed(top)? / signed(rest.strip_suffix('}')?)?
    } else if let Some((mantissa, power)) = s.split_once("\\times10^").or_else(|| s.split_once("\\cdot10^")) {
        let power: i32 = power.trim_matches(['{', '}']).parse().ok()?;
        decimal(mantissa)? * 10f64.powi(power)
    } else if let Some((top, bottom)) = s.split_once('/') {
        decimal(top)? / decimal(bottom)?
    } else {
        decimal(&s)?
    };
    Some(sign * number).filter(|x| x.is_finite())
}

fn signed(text: &str) -> Option<f64> {
    text.strip_prefix('-').map_or_else(|| decimal(text), |rest| decimal(rest).map(|x| -x))
}

fn decimal(text: &str) -> Option<f64> {
    // f64's own parser also takes "inf" and "nan".
    let digits = text.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let allowed = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    if digits && allowed { text.parse().ok() } else { None }
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
    }

    #[test]
    fn the_answer_is_found_where_people_write_it() {
        assert_eq!(extract("3 and \\boxed{4}, or 5"), Some("4"));
        assert_eq!(extract("12 - 4 = 8\n#### 8\nDone 9"), Some("8"));
        assert_eq!(extract("so 3 of 1,250.5 remain."), Some("1,250.5"));
        assert_eq!(extract("about 3/4 of it"), Some("3/4"));
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

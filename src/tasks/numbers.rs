//! Numbers of data files as people wrote them: whole floats, and integers that no machine number holds.

use serde_json::Number;
use std::borrow::Cow;

/// Below it every whole float is one integer.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A gold answer that is a number: `3.0`, as pandas writes the integers of a column with gaps, is 3.
pub(super) fn text(number: &Number) -> String {
    match number.as_f64().filter(|x| number.is_f64() && x.fract() == 0.0 && x.abs() < EXACT) {
        Some(whole) => (whole as i64).to_string(),
        None => number.to_string(),
    }
}

/// A line of JSON in which integers of more than 64 bits are text: read as numbers they would be floats, and most of their digits others.
pub(super) fn long_integers_as_text(line: &str) -> Cow<'_, str> {
    let bytes = line.as_bytes();
    let (mut out, mut copied, mut at, mut in_text) = (String::new(), 0, 0, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if in_text => at += 1,
            b'"' => in_text = !in_text,
            b'-' | b'0'..=b'9' if !in_text => {
                let is_part = |b: &&u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let end = at + bytes[at..].iter().take_while(is_part).count();
                let number = &line[at..end];
                let digits = number.strip_prefix('-').unwrap_or(number);
                let is_integer = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
                if is_integer && digits.len() > 18 && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    out.push_str(&line[copied..at]);
                    out.extend(["\"", number, "\""]);
                    copied = end;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(line);
    }
    out.push_str(&line[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_floats_are_integers_where_they_are_exact() {
        for (json, expected) in [
            ("3.0", "3"),
            ("-0.0", "0"),
            ("3", "3"),
            ("2.5", "2.5"),
            ("9007199254740991.0", "9007199254740991"),
            ("9007199254740992.0", "9007199254740992.0"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(text(&serde_json::from_str(json).unwrap()), expected, "{json}");
        }
    }

    #[test]
    fn long_integers_keep_their_digits() {
        for (line, expected) in [
            (r#"{"a": 12345678901234567890123}"#, r#"{"a": "12345678901234567890123"}"#),
            (r#"[-98765432109876543210,1]"#, r#"["-98765432109876543210",1]"#),
            (r#"{"12345678901234567890123": "x \\\"12345678901234567890123"}"#, ""),
            (
                r#"[18446744073709551615, -9223372036854775808, 12345678901234567890123.5, 1e30, 12345678901234567890123e2]"#,
                "",
            ),
        ] {
            let expected = if expected.is_empty() { line } else { expected };
            assert_eq!(long_integers_as_text(line), expected);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_gone_through(line in "[-0-9.eé\"\\\\ ,]{0,60}") {
            long_integers_as_text(&line);
        }
    }
}

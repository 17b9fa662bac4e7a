//! Integers, exactly: for generated arithmetic.

use super::Status;

/// Compares as integers: surrounding space, one sign and leading zeros do not matter (`+07` is 7), anything else does.
/// An answer that is no integer is unparsable, never wrong by accident; integers of any length compare.
pub fn compare(answer: &str, gold: &str) -> Status {
    match (integer(answer), integer(gold)) {
        (Some(answer), Some(gold)) if answer == gold => Status::Correct,
        (Some(_), _) => Status::Wrong,
        (None, _) => Status::Unparsable,
    }
}

/// Sign (true: negative) and digits without leading zeros; zero has no sign.
pub(super) fn integer(text: &str) -> Option<(bool, &str)> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some((negative && !digits.is_empty(), digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_compare_by_value() {
        for (answer, gold) in [("7", "7"), (" +07 ", "7"), ("-0", "0"), ("-12", "-012"), ("00", "0")] {
            assert_eq!(compare(answer, gold), Status::Correct, "{answer} {gold}");
        }
        for (answer, gold) in [("7", "8"), ("-7", "7"), ("70", "7"), ("123456789012345678901", "123456789012345678902")]
        {
            assert_eq!(compare(answer, gold), Status::Wrong, "{answer} {gold}");
        }
        for answer in ["", "-", "7.0", "1,000", "--7", "x", "７"] {
            assert_eq!(compare(answer, "7"), Status::Unparsable, "{answer}");
        }
    }
}

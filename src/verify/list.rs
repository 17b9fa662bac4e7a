//! Lists of integers, exactly: for generated list operations. A number is a list of one.

use super::Status;
use super::exact::integer;

/// Longest answer that is read, in bytes.
const LONGEST: usize = 10_000;

/// Compares element by element, each as an integer; space, and one pair of brackets around it all, do not matter. The
/// empty list is written `[]`. What holds anything but integers is unparsable.
pub fn compare(answer: &str, gold: &str) -> Status {
    if answer.len() > LONGEST {
        return Status::Unparsable;
    }
    match (elements(answer), elements(gold)) {
        (Some(answer), Some(gold)) if answer == gold => Status::Correct,
        (Some(_), Some(_)) => Status::Wrong,
        _ => Status::Unparsable,
    }
}

fn elements(text: &str) -> Option<Vec<(bool, &str)>> {
    let text = text.trim();
    let inside =
        [('[', ']'), ('(', ')')].iter().find_map(|(open, close)| text.strip_prefix(*open)?.strip_suffix(*close));
    match inside {
        Some(inside) if inside.trim().is_empty() => Some(Vec::new()),
        _ => inside.unwrap_or(text).split(',').map(integer).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_compare_by_their_elements() {
        for answer in ["1,2,-3", " [1, 2, -3] ", "(01,+2,-3)"] {
            assert_eq!(compare(answer, "1,2,-3"), Status::Correct, "{answer}");
        }
        for answer in ["1,2", "1,2,3", "2,1,-3", "1,2,-3,0", "[]", "12,-3"] {
            assert_eq!(compare(answer, "1,2,-3"), Status::Wrong, "{answer}");
        }
        for answer in ["", "1,,2", "1,2,-3,", "[1,2,-3", "1 2 -3", "1.0,2,-3", "{1,2,-3}", "[[1,2,-3]]"] {
            assert_eq!(compare(answer, "1,2,-3"), Status::Unparsable, "{answer}");
        }
        assert_eq!(compare("7", "7"), Status::Correct);
        assert_eq!(compare(&"1,".repeat(1_000_000), "1"), Status::Unparsable);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_a_list_equals_itself(text in "\\PC{0,40}", list in proptest::collection::vec(any::<i64>(), 1..9)) {
            compare(&text, &text);
            let written = list.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            prop_assert_eq!(compare(&format!("[{written}]"), &written), Status::Correct);
        }
    }
}

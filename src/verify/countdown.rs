//! Countdown: an expression that reaches the target from the given numbers, each used at most once. Whatever reaches it is
//! correct; it is evaluated exactly, as fractions.
//!
//! The gold answer is `TARGET from N,N,...`. A number that was not given ends the reading, so the work and the size of every
//! value are bounded by the numbers that were.

use super::Status;
use dashu_ratio::RBig;

/// Longest answer that is read, in bytes: more than any use of the numbers takes.
const LONGEST: usize = 1_000;
/// Deepest nesting of brackets.
const DEEPEST: usize = 64;

/// Correct: `+ - * /` and brackets over given numbers, worth the target; `expression = target` says the same. Wrong: another
/// value, a number that is not given or used once too often, a division by zero. Everything else is unparsable.
pub fn compare(answer: &str, gold: &str) -> Status {
    let Some((target, numbers)) = read_gold(gold) else { return Status::Unparsable };
    if answer.len() > LONGEST {
        return Status::Unparsable;
    }
    let plain = answer
        .replace("\\times", "*")
        .replace("\\cdot", "*")
        .replace("\\div", "/")
        .replace(['×', '·'], "*")
        .replace('÷', "/")
        .replace('−', "-");
    let (expression, claimed) = match plain.split_once('=') {
        Some((expression, claimed)) => (expression, Some(claimed.trim())),
        None => (plain.as_str(), None),
    };
    let mut reader = Reader { text: expression.trim().as_bytes(), at: 0, left: numbers, depth: 0 };
    let value = match reader.sum() {
        Ok(value) if reader.at == reader.text.len() => value,
        Ok(_) => return Status::Unparsable,
        Err(status) => return status,
    };
    match claimed.map(str::parse::<u64>) {
        Some(Err(_)) => Status::Unparsable,
        Some(Ok(claimed)) if claimed != target => Status::Wrong,
        _ if value == RBig::from(target) => Status::Correct,
        _ => Status::Wrong,
    }
}

fn read_gold(gold: &str) -> Option<(u64, Vec<u64>)> {
    let (target, numbers) = gold.split_once(" from ")?;
    let numbers: Option<Vec<u64>> = numbers.split(',').map(|n| n.trim().parse().ok()).collect();
    Some((target.trim().parse().ok()?, numbers?))
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// Numbers that may still be used.
    left: Vec<u64>,
    depth: usize,
}

impl Reader<'_> {
    fn skip_space(&mut self) {
        self.at += self.text[self.at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    }

    fn next_of(&mut self, operators: &[u8]) -> Option<u8> {
        self.skip_space();
        let found = self.text.get(self.at).copied().filter(|b| operators.contains(b))?;
        self.at += 1;
        Some(found)
    }

    fn sum(&mut self) -> Result<RBig, Status> {
        let mut value = self.product()?;
        while let Some(operator) = self.next_of(b"+-") {
            let right = self.product()?;
            value = if operator == b'+' { value + right } else { value - right };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<RBig, Status> {
        let mut value = self.operand()?;
        while let Some(operator) = self.next_of(b"*/") {
            let right = self.operand()?;
            if operator == b'/' && right == RBig::ZERO {
                return Err(Status::Wrong);
            }
            value = if operator == b'*' { value * right } else { value / right };
        }
        Ok(value)
    }

    fn operand(&mut self) -> Result<RBig, Status> {
        if self.next_of(b"(").is_some() {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err(Status::Unparsable);
            }
            let value = self.sum()?;
            self.depth -= 1;
            return self.next_of(b")").map(|_| value).ok_or(Status::Unparsable);
        }
        let digits = self.text[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let text = std::str::from_utf8(&self.text[self.at..self.at + digits]).map_err(|_| Status::Unparsable)?;
        if text.is_empty() {
            return Err(Status::Unparsable);
        }
        self.at += digits;
        // Too long for a u64 is a number, and none that was given.
        let number: u64 = text.parse().map_err(|_| Status::Wrong)?;
        let at = self.left.iter().position(|n| *n == number).ok_or(Status::Wrong)?;
        self.left.swap_remove(at);
        Ok(RBig::from(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn any_expression_that_reaches_the_target_is_right_and_near_misses_are_not() {
        let gold = "21 from 3,5,7,9";
        for right in ["(7-5)*9+3", "3 + 9*(7-5)", "(7-5)\\times 9+3 = 21", "5+7+9", "((5))+(7+9)", "7×9/3", "7*(9÷3)"]
        {
            assert_eq!(compare(right, gold), Status::Correct, "{right}");
        }
        for wrong in ["21", "7+7+7", "3*7+0", "9+5+3", "5+7+9=20", "5+7+9+3-3", "9/(5-5)", "5+79"] {
            assert_eq!(compare(wrong, gold), Status::Wrong, "{wrong}");
        }
        // Fewer numbers are enough, and fractions on the way are exact.
        assert_eq!(compare("3*7", gold), Status::Correct);
        assert_eq!(compare("8/(3-8/3)", "24 from 8,3,8,3"), Status::Correct);
        assert_eq!(compare("8/(3-8/3)", "24 from 8,3,8"), Status::Wrong);
        for unreadable in
            ["", "x", "5+", "(5", "5)", "-5+7", "5 7", "5++7", "5+7+9=x", "5+7=5+7", "5^7", "5+7+9.", "=21"]
        {
            assert_eq!(compare(unreadable, gold), Status::Unparsable, "{unreadable}");
        }
        assert_eq!(compare("1", "no gold"), Status::Unparsable);
    }

    #[test]
    fn hostile_answers_end_at_once() {
        let gold = "21 from 3,5,7,9";
        for answer in ["(".repeat(900), "(".repeat(1_000_000), "9".repeat(900), "3/".repeat(400), "3*".repeat(499)] {
            assert_ne!(compare(&answer, gold), Status::Correct);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(answer in "[0-9()+*/= -]{0,40}", gold in "[0-9]{1,22} from [0-9,]{0,30}") {
            compare(&answer, &gold);
        }
    }
}

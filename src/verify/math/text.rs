//! Answers as text: what is compared where there is no expression, or before one is made.

use super::lex::{Token, group, tokens};
use crate::verify::choice;

/// A text as its tokens, spelled one way: no looks, no spaces, no braces around a single token. Two answers with the same
/// spelling are the same formula. Tokens keep apart what braces kept apart: `\frac{1}{23}` is not `\frac{12}{3}`.
pub fn spelling(text: &str, limit: usize) -> Option<Vec<Token>> {
    let mut out: Vec<Token> = Vec::new();
    for token in tokens(text, limit)? {
        let token = match token {
            Token::Text(word) if word.chars().count() == 1 => Token::Letter(word.chars().next()?),
            Token::Text(words) => Token::Text(words.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()),
            other => other,
        };
        let closes_single = token == Token::Char('}')
            && out.len() >= 2
            && out[out.len() - 2] == Token::Char('{')
            && out.last() != Some(&Token::Char('}'));
        if closes_single && let Some(inner) = out.pop() {
            out.pop();
            out.push(inner);
        } else {
            out.push(token);
        }
    }
    while matches!(out.last(), Some(Token::Char('.' | ',' | ';' | ':'))) {
        out.pop();
    }
    Some(out)
}

/// Words with single spaces, without what sets them in type: `\text{ Even.}` is `Even`.
pub fn words(text: &str) -> String {
    let mut rest = text.trim();
    let mut out = String::new();
    while let Some(c) = rest.chars().next() {
        if c == '\\' {
            let after = &rest[1..];
            let n = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let name = &after[..n];
            let tail = &after[n..];
            let style = [
                "text",
                "textbf",
                "textit",
                "textrm",
                "mathrm",
                "mathbf",
                "mbox",
                "mathit",
                "operatorname",
                "boldsymbol",
            ]
            .contains(&name);
            if style && let Some((inner, tail)) = group(tail) {
                out.push_str(inner);
                rest = tail;
            } else if n == 0 {
                out.push(' ');
                rest = &after[after.chars().next().map_or(0, char::len_utf8)..];
            } else {
                out.push('\\');
                out.push_str(name);
                rest = tail;
            }
            continue;
        }
        if c != '$' {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    let joined = out.split_whitespace().collect::<Vec<_>>().join(" ");
    let plain = joined.trim_matches(|c: char| ".,;:!?\"'".contains(c));
    plain.to_string()
}

/// Whether two texts are the same words. Case does not count, unless they may be variables: `AB` is not `ab`.
pub fn same_words(a: &str, b: &str) -> bool {
    let (plain_a, plain_b) = (words(a), words(b));
    let upright = |text: &str| text.contains("\\text") || text.contains("\\mathrm") || text.contains("\\mbox");
    let word = |run: &str| run.chars().count() >= 4 || super::words::kind(run) == super::words::Kind::Word;
    let folds = upright(a) || upright(b) || plain_a.split(|c: char| !c.is_alphabetic()).any(word);
    plain_a == plain_b || (folds && plain_a.to_lowercase() == plain_b.to_lowercase())
}

/// Whether a text is words: two letters at least, and with numbers among them a word of four.
pub fn is_words(text: &str) -> bool {
    let plain = words(text);
    let longest = plain.split(|c: char| !c.is_alphabetic()).map(|word| word.chars().count()).max().unwrap_or(0);
    let known =
        |c: char| c.is_alphabetic() || c.is_whitespace() || "-'’,.".contains(c) || (longest >= 4 && c.is_ascii_digit());
    longest >= 2 && plain.chars().all(known)
}

/// A multiple choice letter standing alone: `C`, `(C)`, `\text{C}`, `\textbf{(C)}`, `C.`
pub fn choice_letter(text: &str) -> Option<char> {
    let (letter, rest) = choice_start(text)?;
    rest.trim_matches(|c: char| c.is_whitespace() || ")}.:\\".contains(c)).is_empty().then_some(letter)
}

/// A choice letter with its text behind it: `(C) 12`, `\textbf{(C)}\ 12`, `C. twelve`.
pub fn choice_with_text(text: &str) -> Option<char> {
    let (letter, rest) = choice_start(text)?;
    (rest.starts_with([')', '.', ':']) && !choice::goes_on(rest)).then_some(letter)
}

fn choice_start(text: &str) -> Option<(char, &str)> {
    let mut rest = text.trim().trim_matches('$').trim();
    for style in ["\\textbf", "\\text", "\\mathrm", "\\mathbf", "\\boxed", "\\mbox", "\\textrm"] {
        rest = rest.strip_prefix(style).unwrap_or(rest);
    }
    let mut rest = rest.trim_start_matches(['{', '(', ' ']);
    for word in ["Option ", "option ", "Choice ", "choice ", "Answer "] {
        rest = rest.strip_prefix(word).unwrap_or(rest).trim_start_matches(['(', ' ']);
    }
    let letter = rest.chars().next().filter(|c| ('A'..='J').contains(c))?;
    Some((letter, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_formula() {
        let spelled = |text: &str| spelling(text, 100).unwrap();
        for (a, b) in [
            ("x_{1} + 2", "x_1+2"),
            ("\\left( \\mathrm{Even} \\right)", "(\\text{even})"),
            ("\\dfrac{1}{2}.", "\\frac{1}{2}"),
            ("$a\\, b$", "ab"),
        ] {
            assert_eq!(spelled(a), spelled(b), "{a} {b}");
        }
        for (a, b) in [("\\frac{1}{23}", "\\frac{12}{3}"), ("x^{a}b", "x^{ab}"), ("n", "N"), ("Q^TQ", "QQ^T")] {
            assert_ne!(spelled(a), spelled(b), "{a} {b}");
        }
    }

    #[test]
    fn words_and_choices() {
        assert_eq!(words("\\text{ Evelyn. }"), "Evelyn");
        assert_eq!(words("Less  than\\ 2"), "Less than 2");
        assert!(same_words("\\text{HHT}", "HHT") && same_words("Yes", "yes") && !same_words("AB", "ab"));
        assert!(is_words("\\text{even}") && is_words("yes") && !is_words("x+1") && !is_words("C"));
        for text in ["C", "(C)", "\\text{C}", "\\textbf{(C)}", "C.", "\\text{(C)}", "$C$", "\\mathrm{(C)}"] {
            assert_eq!(choice_letter(text), Some('C'), "{text}");
        }
        for text in ["c", "CD", "C+1", "12", "", "Cat"] {
            assert_eq!(choice_letter(text), None, "{text}");
        }
        assert_eq!(choice_with_text("\\textbf{(C)}\\ 12"), Some('C'));
        assert_eq!(choice_with_text("\\textbf{(C)} -12"), Some('C'));
        for text in ["C(12)", "(C), (D)", "(C) or (D)", "C. D. E.", "(C)^2", "\\text{(C)}=0", "(C)\\cdot 2", "(C)-1"] {
            assert_eq!(choice_with_text(text), None, "{text}");
        }
    }
}

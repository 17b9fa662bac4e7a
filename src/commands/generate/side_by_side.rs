//! Samples of several policies from one prompt and seed, on the terminal: columns where they fit, else one after the other.

use comfy_table::presets::UTF8_FULL;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};

/// Narrowest column of text that is still read with ease.
const NARROWEST: usize = 34;
/// What a column needs beside its text: an edge and a space on either side.
const EDGE: usize = 3;

/// One policy's answer: its name, what to know about it, its text.
pub struct Answer<'a> {
    pub policy: &'a str,
    pub note: String,
    pub text: &'a str,
}

/// The answers, within `width` cells where they stand in columns.
pub fn side_by_side(answers: &[Answer<'_>], width: usize) -> String {
    let column = (width.saturating_sub(1) / answers.len().max(1)).saturating_sub(EDGE);
    if answers.len() < 2 || column < NARROWEST {
        let block = |a: &Answer<'_>| format!("[{}] {}\n{}", a.policy, a.note, printable(a.text));
        return answers.iter().map(block).collect::<Vec<_>>().join("\n\n");
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width.min(u16::MAX as usize) as u16);
    table.set_header(answers.iter().map(|a| format!("{}\n{}", a.policy, a.note)));
    table.add_row(answers.iter().map(|a| printable(a.text)));
    for c in table.column_iter_mut() {
        // Padding is part of a column's width.
        c.set_constraint(ColumnConstraint::Absolute(Width::Fixed((column + 2) as u16)));
    }
    table.to_string()
}

/// Text that a terminal shows and does not obey: internal policies say anything.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => c,
        '\t' => ' ',
        // The pictures of the control characters.
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('.'),
        c if c.is_control() => '\u{2421}',
        // Marks that turn the direction of what follows.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        c => c,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers<'a>(texts: &[(&'a str, &'a str)]) -> Vec<Answer<'a>> {
        texts.iter().map(|(policy, text)| Answer { policy, note: "3 tokens".into(), text }).collect()
    }

    fn longest(shown: &str) -> usize {
        shown.lines().map(|l| l.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn two_policies_stand_beside_each_other_in_a_plain_terminal() {
        let text = "the quick brown fox jumps over the lazy dog again and again until it is dark";
        let shown = side_by_side(&answers(&[("final", text), ("layer:6", "short")]), 80);
        assert!(longest(&shown) <= 80, "{shown}");
        let header = shown.lines().find(|l| l.contains("final")).unwrap();
        assert!(header.contains("layer:6"), "{shown}");
        let words: Vec<&str> = shown.split_whitespace().collect();
        assert!(text.split(' ').all(|word| words.contains(&word)), "{shown}");
        let three = answers(&[("final", text), ("layer:6", "b"), ("attn:6", "c")]);
        assert!(longest(&side_by_side(&three, 120)) <= 120);
        assert!(side_by_side(&three, 120).lines().any(|l| l.contains("final") && l.contains("attn:6")));
        // They do not fit: one after the other.
        let blocks = side_by_side(&three, 80);
        assert_eq!(blocks.lines().filter(|l| l.starts_with('[')).count(), 3, "{blocks}");
        assert!(blocks.starts_with("[final] 3 tokens\nthe quick"), "{blocks}");
    }

    #[test]
    fn words_longer_than_a_column_and_empty_texts_are_no_trouble() {
        let long = "x".repeat(500);
        let shown = side_by_side(&answers(&[("final", &long), ("layer:1", "")]), 80);
        assert!(longest(&shown) <= 80 && shown.matches('x').count() == 500, "{shown}");
        assert_eq!(side_by_side(&[], 80), "");
    }

    #[test]
    fn a_terminal_does_not_obey_what_a_policy_says() {
        assert_eq!(printable("a\x1b[2J\r\n\tb\u{202e}c\u{9b}"), "a␛[2J␍\n b c␡");
        for width in [60, 100] {
            let shown = side_by_side(&answers(&[("final", "\x1b[31m"), ("layer:1", "\u{7}")]), width);
            assert!(!shown.contains(['\x1b', '\u{7}']), "{shown:?}");
        }
    }
}

//! An answer that a regular expression finds: `<answer>(.*?)</answer>`, `Final answer: (.+)`.

use crate::verify::{Rule, Status, Verdict};
use anyhow::{Context, Result, ensure};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegexConfig {
    pub weight: f64,
    /// Its last match in the response counts: the first group, or all of it where there is none. `.` matches a newline too.
    pub pattern: String,
    /// How what it found compares with the gold answer.
    pub compare: Rule,
}

impl Default for RegexConfig {
    fn default() -> Self {
        RegexConfig { weight: 1.0, pattern: String::new(), compare: Rule::default() }
    }
}

impl RegexConfig {
    pub fn check(&self) -> Result<()> {
        compile(&self.pattern).map(|_| ())
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    ensure!(!pattern.is_empty(), "pattern is missing: expected a regular expression, such as '<answer>(.*?)</answer>'");
    let built = RegexBuilder::new(pattern).dot_matches_new_line(true).size_limit(1 << 20).build();
    built.with_context(|| format!("pattern = {pattern:?} is no regular expression"))
}

/// Ready to look. Matching takes time linear in the text, whatever the pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    compare: Rule,
}

impl Pattern {
    pub fn new(config: &RegexConfig) -> Result<Pattern> {
        Ok(Pattern { regex: compile(&config.pattern)?, compare: config.compare })
    }

    pub fn judge(&self, response: &str, gold: &str) -> Verdict {
        let last = self.regex.captures_iter(response).last();
        let Some(answer) = last.and_then(|found| found.get(1).or(found.get(0))).map(|m| m.as_str().trim()) else {
            return Verdict { status: Status::NoAnswer, answer: None };
        };
        Verdict { status: self.compare.compare(answer, gold), answer: Some(answer.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_is_compared() {
        let config =
            |pattern: &str, compare| RegexConfig { pattern: pattern.into(), compare, ..RegexConfig::default() };
        let tags = Pattern::new(&config("<answer>(.*?)</answer>", Rule::Numeric)).unwrap();
        let status = |p: &Pattern, text: &str| p.judge(text, "4").status;
        assert_eq!(status(&tags, "<answer>3</answer> no\n<answer>\n4.0\n</answer>"), Status::Correct);
        assert_eq!(status(&tags, "<answer>3</answer>"), Status::Wrong);
        assert_eq!(status(&tags, "<answer>x</answer>"), Status::Unparsable);
        assert_eq!(status(&tags, "4"), Status::NoAnswer);
        let whole = Pattern::new(&config("[0-9]+$", Rule::Boxed)).unwrap();
        assert_eq!(status(&whole, "it is 4"), Status::Correct);
        for bad in ["", "(", "(a{1000}){1000}"] {
            assert!(Pattern::new(&config(bad, Rule::Boxed)).is_err(), "{bad}");
        }
    }
}

//! Tags in a response, each once and in order: `<think>...</think><answer>...</answer>`.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatConfig {
    pub weight: f64,
    /// Names of the tags, in the order they must come in.
    pub tags: Vec<String>,
    /// The first tag is opened by the prompt, as some chat templates do: the response only closes it.
    pub opened_by_prompt: bool,
    /// Text outside of the tags is allowed.
    pub text_outside: bool,
}

impl Default for FormatConfig {
    fn default() -> Self {
        FormatConfig {
            weight: 1.0,
            tags: vec!["think".into(), "answer".into()],
            opened_by_prompt: false,
            text_outside: false,
        }
    }
}

impl FormatConfig {
    pub fn check(&self) -> Result<()> {
        ensure!(!self.tags.is_empty(), "tags is empty: expected at least one name, such as \"think\"");
        for (i, tag) in self.tags.iter().enumerate() {
            let plain = !tag.is_empty() && tag.chars().all(|c| c.is_alphanumeric() || "-_".contains(c));
            ensure!(plain, "tags holds {tag:?}: expected a name of letters and digits, without brackets");
            ensure!(!self.tags[..i].contains(tag), "tags holds {tag:?} twice: expected each name once");
        }
        Ok(())
    }
}

/// Ready to look.
#[derive(Clone, Debug)]
pub struct Format {
    /// `<think>`, `</think>`, ... in order.
    marks: Vec<String>,
    opened_by_prompt: bool,
    text_outside: bool,
}

impl Format {
    pub fn new(config: &FormatConfig) -> Result<Format> {
        config.check()?;
        let marks = config.tags.iter().flat_map(|tag| [format!("<{tag}>"), format!("</{tag}>")]).collect();
        Ok(Format { marks, opened_by_prompt: config.opened_by_prompt, text_outside: config.text_outside })
    }

    /// 1 if every tag is opened and closed once, in order, with something inside, and (unless `text_outside`) nothing but
    /// white space outside; 0 otherwise.
    pub fn value(&self, response: &str) -> f64 {
        if self.holds(response).unwrap_or(false) { 1.0 } else { 0.0 }
    }

    fn holds(&self, response: &str) -> Option<bool> {
        let marks = &self.marks[usize::from(self.opened_by_prompt)..];
        let first = self.marks.first().filter(|_| self.opened_by_prompt);
        let once = marks.iter().all(|m| response.matches(m.as_str()).count() == 1);
        let not_again = first.is_none_or(|mark| !response.contains(mark.as_str()));
        let (mut rest, mut inside, mut fits) = (response, self.opened_by_prompt, once && not_again);
        for mark in marks {
            let (before, after) = rest.split_once(mark.as_str())?;
            let blank = before.trim().is_empty();
            fits &= if inside { !blank } else { blank || self.text_outside };
            (rest, inside) = (after, !inside);
        }
        Some(fits && (rest.trim().is_empty() || self.text_outside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(config: FormatConfig, response: &str) -> f64 {
        Format::new(&config).unwrap().value(response)
    }

    #[test]
    fn tags_come_once_in_order_and_with_something_inside() {
        let strict = FormatConfig::default;
        assert_eq!(value(strict(), "<think>a</think>\n<answer>b</answer>\n"), 1.0);
        for bad in [
            "",
            "a",
            "<think>a</think>",
            "<think>a</think><answer></answer>",
            "<answer>b</answer><think>a</think>",
            "x<think>a</think><answer>b</answer>",
            "<think>a</think>x<answer>b</answer>",
            "<think>a</think><answer>b</answer>x",
            "<think>a<think>a</think><answer>b</answer>",
            "<think>a</think><answer>b</answer><answer>c</answer>",
        ] {
            assert_eq!(value(strict(), bad), 0.0, "{bad}");
        }
        let open = FormatConfig { opened_by_prompt: true, ..strict() };
        assert_eq!(value(open.clone(), "a</think><answer>b</answer>"), 1.0);
        assert_eq!(value(open.clone(), "<think>a</think><answer>b</answer>"), 0.0);
        assert_eq!(value(open, "</think><answer>b</answer>"), 0.0);
        let loose = FormatConfig { text_outside: true, tags: vec!["answer".into()], ..strict() };
        assert_eq!(value(loose, "so <answer>b</answer>, done"), 1.0);
    }

    #[test]
    fn tags_are_checked() {
        for tags in [vec![], vec!["<think>"], vec![""], vec!["a", "a"]] {
            let tags = tags.into_iter().map(str::to_string).collect();
            assert!(Format::new(&FormatConfig { tags, ..FormatConfig::default() }).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(<think>|</think>|<answer>|</answer>|a| |é){0,8}", opened in any::<bool>(), outside in any::<bool>()) {
            let config = FormatConfig { opened_by_prompt: opened, text_outside: outside, ..FormatConfig::default() };
            prop_assert!([0.0, 1.0].contains(&value(config, &text)));
        }
    }
}

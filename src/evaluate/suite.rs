//! Evaluation suites: small TOML files that say what is asked, how, how often, and how it is judged.

use super::scores::usual_ks;
use crate::reward::RewardConfig;
use crate::rollout::sampler::check_temperature_or_greedy;
use crate::tasks::Problem;
use crate::text::PromptTemplate;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The suites that ship inside the binary.
const SHIPPED: [(&str, &str); 8] = [
    ("amc23", include_str!("../../suites/amc23.toml")),
    ("math500", include_str!("../../suites/math500.toml")),
    ("aime24", include_str!("../../suites/aime24.toml")),
    ("aime25", include_str!("../../suites/aime25.toml")),
    ("mmlu-pro", include_str!("../../suites/mmlu-pro.toml")),
    ("gpqa-diamond", include_str!("../../suites/gpqa-diamond.toml")),
    ("arc-challenge", include_str!("../../suites/arc-challenge.toml")),
    ("bbh", include_str!("../../suites/bbh.toml")),
];

/// Where the problem goes in `question`.
const PROBLEM: &str = "{problem}";

/// One set of problems and its way of being evaluated. Defaults are the paper's: temperature 1, top-p 1, Avg@16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Names its folder in the results.
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// Files of problems; relative ones are looked for beside the suite's file, then in the data folder.
    pub data: Vec<String>,
    /// Taken where `data` is not there: `hf://datasets/OWNER/NAME[@REVISION][/FILE]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hub: Vec<String>,
    /// Responses to each problem.
    #[serde(default = "sixteen")]
    pub n: usize,
    /// The K of Pass@K; powers of two up to n and 256 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<Vec<usize>>,
    #[serde(default = "one")]
    pub temperature: f32,
    #[serde(default = "one")]
    pub top_p: f32,
    #[serde(default)]
    pub top_k: usize,
    /// Longest response; what the context leaves, up to 8192, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Put around every problem, `{problem}` in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The way of asking; the model's own chat template without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptTemplate>,
    #[serde(default)]
    pub reward: RewardConfig,
}

fn sixteen() -> usize {
    16
}

fn one() -> f32 {
    1.0
}

impl Suite {
    /// Names of the suites inside the binary.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// The text of a shipped suite.
    pub fn shipped_text(name: &str) -> Option<&'static str> {
        SHIPPED.iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| *text)
    }

    /// From TOML text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Suite> {
        let suite: Suite = toml::from_str(text).with_context(|| format!("the suite {origin}"))?;
        suite.check().with_context(|| format!("the suite {origin}"))?;
        Ok(suite)
    }

    /// A file by itself, with the defaults.
    pub fn of_file(name: &str, file: &str) -> Suite {
        Suite {
            name: name.into(),
            description: String::new(),
            data: vec![file.into()],
            hub: Vec::new(),
            n: sixteen(),
            k: None,
            temperature: one(),
            top_p: one(),
            top_k: 0,
            max_new_tokens: None,
            question: None,
            prompt: None,
            reward: RewardConfig::default(),
        }
    }

    /// The K of Pass@K.
    pub fn ks(&self) -> Vec<usize> {
        self.k.clone().unwrap_or_else(|| usual_ks(self.n))
    }

    /// Everything that can be checked before a model is there.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.name.starts_with(char::is_alphanumeric)
                && self.name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)),
            "name = {:?}: expected letters, digits, - _ and . only (it names a folder)",
            self.name
        );
        ensure!(!self.data.is_empty(), "data is empty: expected at least one file of problems");
        ensure!(self.n > 0, "n = 0: expected at least one response to each problem");
        for k in self.k.iter().flatten() {
            ensure!(
                (1..=self.n).contains(k),
                "k holds {k}: expected 1 to n = {}, the responses to each problem",
                self.n
            );
        }
        check_temperature_or_greedy("temperature =", self.temperature)?;
        ensure!(self.top_p > 0.0 && self.top_p <= 1.0, "top_p = {}: expected above 0, up to 1", self.top_p);
        ensure!(self.max_new_tokens != Some(0), "max_new_tokens = 0: expected at least 1");
        if let Some(question) = &self.question {
            let times = question.matches(PROBLEM).count();
            ensure!(times == 1, "question holds {PROBLEM} {times} times: expected once");
        }
        if let Some(prompt) = &self.prompt {
            prompt.check().context("[prompt]")?;
        }
        self.reward.check().context("[reward]")
    }

    /// Puts `question` around a problem. Its id stays, so that it is the same problem under another wording.
    pub fn ask(&self, problem: &mut Problem) {
        let Some(question) = &self.question else { return };
        let at = problem.messages.iter().rposition(|m| m.role == "user");
        let at = at.unwrap_or(problem.messages.len().saturating_sub(1));
        if let Some(message) = problem.messages.get_mut(at) {
            message.content = question.replacen(PROBLEM, &message.content, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Message;
    use proptest::prelude::*;

    #[test]
    fn every_shipped_suite_is_whole_and_has_the_papers_defaults() {
        for name in Suite::shipped() {
            let suite = Suite::parse(Suite::shipped_text(name).unwrap(), name).unwrap();
            assert_eq!((suite.name.as_str(), suite.temperature, suite.top_p), (name, 1.0, 1.0));
        }
        let n = |name: &str| Suite::parse(Suite::shipped_text(name).unwrap(), name).unwrap().n;
        assert_eq!([n("amc23"), n("math500"), n("aime24"), n("aime25")], [16, 16, 32, 32]);
    }

    #[test]
    fn a_suite_is_a_few_lines_and_its_mistakes_are_named() {
        let small = "name = \"mine\"\ndata = [\"a.jsonl\"]\n";
        let suite = Suite::parse(small, "mine.toml").unwrap();
        assert_eq!(suite, Suite::of_file("mine", "a.jsonl"));
        assert_eq!((suite.n, suite.ks(), suite.top_k), (16, vec![1, 2, 4, 8, 16], 0));
        for (more, expected) in [
            ("n = 0", "n = 0"),
            ("n = 4\nk = [8]", "k holds 8"),
            ("temperature = -1.0", "temperature"),
            ("temperature = 1e-40", "temperature = 1e-40: expected 0 (greedy) or"),
            ("top_p = 0.0", "top_p"),
            ("question = \"no place\"", "{problem}"),
            ("kk = [1]", "kk"),
            ("[reward]\nrule = \"magic\"", "magic"),
            ("[prompt]\ntemplate = \"plain\"\ntext = \"x\"", "[prompt]"),
        ] {
            let error = format!("{:#}", Suite::parse(&format!("{small}{more}"), "mine.toml").unwrap_err());
            assert!(error.contains(expected) && error.contains("mine.toml"), "{more}: {error}");
        }
        assert!(Suite::parse("name = \"../up\"\ndata = [\"a\"]", "x").is_err());
    }

    #[test]
    fn the_wording_is_put_around_the_users_message() {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let mut problem = Problem::new("t", vec![message("system", "s"), message("user", "q")], "1".into(), None);
        let id = problem.id;
        let suite = Suite::parse("name = \"m\"\ndata = [\"a\"]\nquestion = \"<{problem}>\"", "m").unwrap();
        suite.ask(&mut problem);
        assert_eq!((problem.id, problem.question(), problem.messages[0].content.as_str()), (id, "<q>", "s"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            drop(Suite::parse(&text, "x"));
        }
    }
}

//! Rewards: named parts, each a number for a response, added up with weights; and one of them gives the verdict.
//!
//! Built-in parts judge in this process, `command` asks programs of the user's. What an external part cannot score has no
//! reward at all, never a silent zero.

pub mod command;
pub mod format;
pub mod overlong;
pub mod pattern;

use crate::tasks::Problem;
use crate::verify::{Rule, Status, Verdict};
use anyhow::{Context, Result, bail, ensure};
use command::{CommandConfig, Outcome, Pool};
use format::{Format, FormatConfig};
use overlong::{Overlong, OverlongConfig};
use pattern::{Pattern, RegexConfig};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a response is worth. Without any key: the last `\boxed{}` as normalised text, 1 or 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// One rule and nothing else: short for a single part of kind `answer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// The part that says what is correct; needed where several could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Parts by name, `[reward.parts.NAME]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, PartConfig>,
}

/// One part, by its `kind`. The reward is the sum of every part's value times its `weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum PartConfig {
    /// A rule's verdict: 1 for a correct answer, 0 otherwise.
    Answer(AnswerConfig),
    /// An answer that a regular expression finds, compared by a rule: 1 or 0.
    Regex(RegexConfig),
    /// Tags such as think and answer, each once and in order: 1 or 0.
    Format(FormatConfig),
    /// Soft overlong punishment: 0 down to -1 for responses near the longest.
    Overlong(OverlongConfig),
    /// A program of the user's: any finite number.
    Command(CommandConfig),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerConfig {
    pub weight: f64,
    pub rule: Rule,
}

impl Default for AnswerConfig {
    fn default() -> Self {
        AnswerConfig { weight: 1.0, rule: Rule::default() }
    }
}

impl PartConfig {
    pub fn weight(&self) -> f64 {
        match self {
            PartConfig::Answer(c) => c.weight,
            PartConfig::Regex(c) => c.weight,
            PartConfig::Format(c) => c.weight,
            PartConfig::Overlong(c) => c.weight,
            PartConfig::Command(c) => c.weight,
        }
    }

    /// Whether it compares with a gold answer, so that its value is a verdict.
    fn gives_verdict(&self) -> bool {
        matches!(self, PartConfig::Answer(_) | PartConfig::Regex(_) | PartConfig::Command(_))
    }
}

impl RewardConfig {
    /// A single rule.
    pub fn of_rule(rule: Rule) -> RewardConfig {
        RewardConfig { rule: Some(rule), ..RewardConfig::default() }
    }

    /// A single program.
    pub fn of_command(command: CommandConfig) -> RewardConfig {
        let parts = [("command".to_string(), PartConfig::Command(command))].into();
        RewardConfig { parts, ..RewardConfig::default() }
    }

    /// Everything that can be checked before a response is there.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.rule.is_none() || self.parts.is_empty(),
            "reward.rule and [reward.parts] are both there: expected one; a rule among parts is a part of kind \"answer\""
        );
        for (name, part) in &self.parts {
            let what = || format!("reward.parts.{name}");
            ensure!(!name.trim().is_empty(), "a reward part without a name: expected [reward.parts.NAME]");
            ensure!(part.weight().is_finite(), "{}.weight = {}: expected a finite number", what(), part.weight());
            match part {
                PartConfig::Answer(_) => Ok(()),
                PartConfig::Regex(c) => c.check(),
                PartConfig::Format(c) => c.check(),
                PartConfig::Overlong(c) => c.check(),
                PartConfig::Command(c) => c.check(),
            }
            .with_context(what)?;
        }
        self.verdict_part().map(|_| ())
    }

    /// The part that gives the verdict; none for a single rule.
    fn verdict_part(&self) -> Result<Option<&str>> {
        if self.parts.is_empty() {
            ensure!(self.verdict.is_none(), "reward.verdict names a part, but there is no [reward.parts.NAME]");
            return Ok(None);
        }
        let able: Vec<&str> = self.parts.iter().filter(|(_, p)| p.gives_verdict()).map(|(n, _)| n.as_str()).collect();
        match &self.verdict {
            Some(name) if able.contains(&name.as_str()) => Ok(Some(name)),
            Some(name) => bail!(
                "reward.verdict = {name:?}: expected a part that compares answers (kind answer, regex or command), one of {able:?}"
            ),
            None if able.len() == 1 => Ok(able.first().copied()),
            None if able.is_empty() => bail!(
                "no part of the reward compares answers: expected one of kind \"answer\", \"regex\" or \"command\" among \
                 [reward.parts]"
            ),
            None => bail!("several parts could say what is correct: expected reward.verdict = one of {able:?}"),
        }
    }

    /// Whether rows without a gold answer can be judged: a program may need none.
    pub fn works_without_gold(&self) -> bool {
        let verdict = self.verdict_part().ok().flatten().and_then(|name| self.parts.get(name));
        matches!(verdict, Some(PartConfig::Command(_)))
    }

    /// The rule by which answers are judged; none where a program or an expression of the user's finds or judges them.
    pub fn verdict_rule(&self) -> Option<Rule> {
        match self.verdict_part().ok()? {
            None => Some(self.rule.unwrap_or_default()),
            Some(name) => match self.parts.get(name)? {
                PartConfig::Answer(c) => Some(c.rule),
                _ => None,
            },
        }
    }

    /// What is said of gold answers that the verdict's rule can never match. Errors: it can match none of them.
    pub fn remark_on_golds<'a>(&self, golds: impl Iterator<Item = &'a str>) -> Result<Option<String>> {
        let Some(rule) = self.verdict_rule() else { return Ok(None) };
        let (mut all, mut bad, mut first) = (0usize, 0usize, None);
        for gold in golds {
            all += 1;
            if !rule.reads_gold(gold) {
                bad += 1;
                first = first.or(Some(gold));
            }
        }
        let Some(first) = first else { return Ok(None) };
        let short: String = first.chars().take(40).collect();
        let found = format!(
            "{bad} of {all} gold answers are no integers (the first: {short:?}), and rule {:?} gives every response to them 0: rule \
             \"numeric\" or \"math\" reads them",
            rule.name()
        );
        ensure!(bad < all, "{found}");
        Ok(Some(found))
    }

    /// What is said of the reward in results: the rule, or kinds and weights.
    pub fn name(&self) -> String {
        let rule = |rule: &Rule| serde_json::to_value(rule).ok().and_then(|v| Some(v.as_str()?.to_string()));
        if self.parts.is_empty() {
            return rule(&self.rule.unwrap_or_default()).unwrap_or_default();
        }
        let part = |(name, part): (&String, &PartConfig)| {
            let what = match part {
                PartConfig::Command(c) => format!("{name} ({})", c.command.join(" ")),
                _ => name.clone(),
            };
            if part.weight() == 1.0 { what } else { format!("{} {what}", part.weight()) }
        };
        let names: Vec<String> = self.parts.iter().map(part).collect();
        names.join(" + ")
    }
}

/// A response to judge.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    pub problem: &'a Problem,
    /// Its text, special tokens left out.
    pub response: &'a str,
    /// Its tokens, the end token included.
    pub tokens: usize,
    /// It was cut off at the longest length.
    pub truncated: bool,
}

/// A judged response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Sum of the parts times their weights; none if a part broke down, which is no zero.
    pub reward: Option<f64>,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Value of every part before its weight, where there is more than one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Option<f64>>,
    /// Why a part has no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

enum Part {
    Rule(Rule),
    Pattern(Pattern),
    Format(Format),
    Overlong(Overlong),
    Command(Pool),
}

/// A part's opinion of a response.
struct Opinion {
    value: Option<f64>,
    verdict: Option<Verdict>,
    failure: Option<String>,
}

impl Opinion {
    fn of_value(value: f64) -> Opinion {
        Opinion { value: Some(value), verdict: None, failure: None }
    }

    fn of_verdict(verdict: Verdict) -> Opinion {
        Opinion { value: Some(verdict.reward()), verdict: Some(verdict), failure: None }
    }

    fn of_outcome(outcome: Outcome) -> Opinion {
        match outcome {
            Outcome::Scored { score, status, answer } => {
                Opinion { value: Some(score), verdict: Some(Verdict { status, answer }), failure: None }
            }
            Outcome::Failed { status, reason } => {
                Opinion { value: None, verdict: Some(Verdict { status, answer: None }), failure: Some(reason) }
            }
        }
    }
}

/// A reward that is ready to judge. Programs are started when they are first needed, and live as long as it does.
pub struct Reward {
    parts: Vec<(String, f64, Part)>,
    /// Which of them gives the verdict.
    verdict: usize,
}

impl Reward {
    /// `max_new_tokens` is the longest response that is sampled: where an overlong part without a length of its own ends.
    pub fn new(config: &RewardConfig, max_new_tokens: usize) -> Result<Reward> {
        config.check()?;
        let Some(verdict) = config.verdict_part()? else {
            let rule = Part::Rule(config.rule.unwrap_or_default());
            return Ok(Reward { parts: vec![("answer".into(), 1.0, rule)], verdict: 0 });
        };
        let part = |(name, part): (&String, &PartConfig)| {
            let made = match part {
                PartConfig::Answer(c) => Ok(Part::Rule(c.rule)),
                PartConfig::Regex(c) => Pattern::new(c).map(Part::Pattern),
                PartConfig::Format(c) => Format::new(c).map(Part::Format),
                PartConfig::Overlong(c) => Overlong::new(c, max_new_tokens).map(Part::Overlong),
                PartConfig::Command(c) => Pool::new(c).map(Part::Command),
            };
            Ok((name.clone(), part.weight(), made.with_context(|| format!("reward.parts.{name}"))?))
        };
        let parts = config.parts.iter().map(part).collect::<Result<Vec<_>>>()?;
        let verdict = config.parts.keys().position(|name| name == verdict).unwrap_or(0);
        Ok(Reward { parts, verdict })
    }

    /// Judges responses, in their order: the same scores whatever the number of threads.
    ///
    /// Errors: a program that fails where its part says `on_failure = "stop"`, or that fails on every response.
    pub fn judge(&self, items: &[Item<'_>]) -> Result<Vec<Score>> {
        self.judge_part(items, false)
    }

    /// [`Reward::judge`] of more of the same batch: a program may fail on all of these, if it did not on those before.
    pub fn judge_more(&self, items: &[Item<'_>]) -> Result<Vec<Score>> {
        self.judge_part(items, true)
    }

    fn judge_part(&self, items: &[Item<'_>], more: bool) -> Result<Vec<Score>> {
        let mut opinions = Vec::with_capacity(self.parts.len());
        for (name, _, part) in &self.parts {
            opinions.push(part.judge(items, more).with_context(|| format!("reward.parts.{name}"))?);
        }
        let mut columns: Vec<_> = opinions.into_iter().map(Vec::into_iter).collect();
        let scores = items.iter().map(|_| {
            let row: Vec<Opinion> = columns.iter_mut().filter_map(Iterator::next).collect();
            self.add_up(row)
        });
        Ok(scores.collect())
    }

    /// Where the rule `math` gives the verdict: the number of responses on which the text comparison `boxed` would give
    /// another.
    pub fn boxed_differs(&self, items: &[Item<'_>], scores: &[Score]) -> Option<usize> {
        let math = self.parts.get(self.verdict).is_some_and(|(_, _, part)| matches!(part, Part::Rule(Rule::Math)));
        if !math || items.is_empty() {
            return None;
        }
        let differs = |(item, score): &(&Item<'_>, &Score)| {
            Rule::Boxed.judge(item.response, &item.problem.gold).reward() != score.verdict.reward()
        };
        Some(items.iter().zip(scores).filter(differs).count())
    }

    fn add_up(&self, row: Vec<Opinion>) -> Score {
        let (mut reward, mut parts) = (Some(0.0), BTreeMap::new());
        let mut verdict = Verdict { status: Status::Failed, answer: None };
        let mut failure = None;
        for (i, ((name, weight, _), opinion)) in self.parts.iter().zip(row).enumerate() {
            reward = reward.zip(opinion.value).map(|(sum, value): (f64, f64)| sum + weight * value);
            if self.parts.len() > 1 {
                parts.insert(name.clone(), opinion.value);
            }
            if let (true, Some(found)) = (i == self.verdict, opinion.verdict) {
                verdict = found;
            }
            failure = failure.or(opinion.failure.map(|reason| format!("{name}: {reason}")));
        }
        Score { reward, verdict, parts, failure }
    }
}

impl Part {
    fn judge(&self, items: &[Item<'_>], more: bool) -> Result<Vec<Opinion>> {
        let each = |judge: &(dyn Fn(&Item<'_>) -> Opinion + Sync)| items.par_iter().map(judge).collect();
        Ok(match self {
            Part::Rule(rule) => each(&|item| Opinion::of_verdict(rule.judge(item.response, &item.problem.gold))),
            Part::Pattern(p) => each(&|item| Opinion::of_verdict(p.judge(item.response, &item.problem.gold))),
            Part::Format(f) => each(&|item| Opinion::of_value(f.value(item.response))),
            Part::Overlong(o) => each(&|item| Opinion::of_value(o.value(item.tokens))),
            Part::Command(pool) => pool.judge(items, more)?.into_iter().map(Opinion::of_outcome).collect(),
        })
    }
}

#[cfg(test)]
mod tests;

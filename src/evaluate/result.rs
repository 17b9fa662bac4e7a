//! What an evaluation leaves behind: its settings, which tell whether it can be gone on with, and its result.

use super::run::EvaluateSettings;
use super::scores::Scores;
use crate::model::{Compute, ModelConfig};
use crate::reward::RewardConfig;
use crate::tasks::dataset::BadRow;
use crate::tasks::problem::Problem;
use crate::tasks::seed::{derive_seed, stable_hash};
use crate::text::PromptTemplate;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// Parameters that are looked at for [`Settings::weights`].
const LOOKED_AT: usize = 1 << 16;

/// `settings.json`: everything that decides which responses are sampled, and how they were judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub bupo_version: String,
    /// The checkpoint as it was named.
    pub model: String,
    /// A hash of its configuration and of parameters spread over all of it.
    pub weights: String,
    /// What matrix products multiplied in.
    pub compute: Compute,
    pub policy: String,
    /// Modules that the model was run without.
    #[serde(default)]
    pub ablate: Vec<String>,
    pub seed: u64,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub max_new_tokens: usize,
    pub prompt: PromptTemplate,
    /// A hash of the problems' ids and wordings, in order.
    pub problems: String,
    /// Responses to each problem. May grow: an evaluation with more goes on with those that are there.
    pub n: usize,
    pub reward: RewardConfig,
}

impl Settings {
    /// `weights`: [`WeightsFingerprint`] of the model; `compute`: what its products multiply in.
    pub fn new(
        model_name: &str,
        weights: &str,
        compute: Compute,
        settings: &EvaluateSettings,
        prompt: &PromptTemplate,
        problems: &[Problem],
    ) -> Settings {
        let s = &settings.sampling;
        Settings {
            bupo_version: env!("CARGO_PKG_VERSION").into(),
            model: model_name.into(),
            weights: weights.into(),
            compute,
            policy: settings.policy.to_string(),
            ablate: settings.ablate.clone(),
            seed: settings.seed,
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            max_new_tokens: s.max_new_tokens,
            prompt: prompt.clone(),
            problems: hash_problems(problems),
            n: settings.n,
            reward: settings.reward.clone(),
        }
    }

    /// Whether responses sampled under `then` belong to the evaluation that is asked for now.
    pub fn goes_on_with(&self, then: &Settings, dir: &Path) -> Result<()> {
        let free = |s: &Settings| Settings {
            bupo_version: String::new(),
            model: String::new(),
            n: 0,
            reward: RewardConfig::default(),
            ..s.clone()
        };
        let json = |s: &Settings| serde_json::to_value(free(s)).context("settings cannot be compared");
        let (now, before) = (json(self)?, json(then)?);
        let differing = |(key, value): (&String, &serde_json::Value)| {
            let old = before.get(key).unwrap_or(&serde_json::Value::Null);
            (old != value).then(|| format!("{key} was {old} and is {value}"))
        };
        let differing: Vec<String> = now.as_object().into_iter().flatten().filter_map(differing).collect();
        ensure!(
            differing.is_empty(),
            "{} holds an evaluation with other settings ({}): choose another --out, or remove it to begin again",
            dir.display(),
            differing.join("; ")
        );
        Ok(())
    }
}

/// A hash that another set of weights would not have, cheap beside reading them. Made of parts of the flat array, in any order.
#[derive(Debug, Default)]
pub struct WeightsFingerprint {
    parameters: usize,
    /// In the flat array's order.
    looked_at: Vec<f32>,
}

impl WeightsFingerprint {
    /// Looks at a part of the flat array `params`, of which no other part has to be there.
    pub fn look(&mut self, params: &[f32], part: Range<usize>) {
        let step = (params.len() / LOOKED_AT).max(1);
        self.parameters = params.len();
        self.looked_at.resize(params.len().div_ceil(step), 0.0);
        for at in (part.start.next_multiple_of(step)..part.end).step_by(step) {
            self.looked_at[at / step] = params[at];
        }
    }

    /// The hash, when every part was looked at.
    pub fn of(&self, config: &ModelConfig) -> String {
        let config = stable_hash(config.to_json().to_string().as_bytes());
        let looked_at: Vec<u8> = self.looked_at.iter().flat_map(|p| p.to_bits().to_le_bytes()).collect();
        format!("{:016x}", derive_seed(config, stable_hash(&looked_at), self.parameters as u64, 0))
    }
}

fn hash_problems(problems: &[Problem]) -> String {
    let fold = |hash: u64, p: &Problem| {
        let wording: Vec<u8> =
            p.messages.iter().flat_map(|m| [m.role.as_bytes(), &[0], m.content.as_bytes(), &[0]].concat()).collect();
        derive_seed(hash, p.id, stable_hash(&wording), 0)
    };
    format!("{:016x}", problems.iter().fold(0, fold))
}

/// `evaluation.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub name: String,
    pub model: String,
    /// The rule, or the parts of the reward.
    pub reward_name: String,
    #[serde(flatten)]
    pub scores: Scores,
    /// Rows of the data that could not be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_rows: Vec<BadRow>,
    /// The first reasons why responses could not be judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// Id and correct share of every problem, for a comparison: from a result and its problems.
pub fn shares(evaluation: &Evaluation, problems: &[Problem]) -> Result<Vec<(u64, usize)>> {
    let (known, scored) = (problems.len(), evaluation.scores.correct.len());
    ensure!(known == scored, "{} problems are saved, but {scored} were scored: evaluate again", known);
    Ok(problems.iter().map(|p| p.id).zip(evaluation.scores.correct.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::InitConfig;

    #[test]
    fn a_fingerprint_is_of_the_weights_however_they_are_cut() {
        let config = InitConfig::default().model_config(300).unwrap();
        for len in [1000, 3 * LOOKED_AT + 7] {
            let mut params: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let of = |params: &[f32], ends: &[usize]| {
                let mut fingerprint = WeightsFingerprint::default();
                let mut parts: Vec<_> = std::iter::once(&0).chain(ends).zip(ends).map(|(a, b)| *a..*b).collect();
                parts.reverse();
                parts.into_iter().for_each(|part| fingerprint.look(params, part));
                fingerprint.of(&config)
            };
            let whole = of(&params, &[len]);
            assert_eq!(of(&params, &[1, 2, 4, 500, 500, 509, len - 1, len]), whole);
            // Every (len / LOOKED_AT)-th is looked at.
            let last = (len - 1) / (len / LOOKED_AT).max(1) * (len / LOOKED_AT).max(1);
            params[last] += 1.0;
            assert_ne!(of(&params, &[len]), whole);
        }
    }
}

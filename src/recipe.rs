//! A run's whole configuration: loaded from TOML, checked before anything heavy starts, written back as resolved.

mod check;
mod differences;
mod explain;
mod load;
mod sections;

pub use sections::{
    AnalysisSection, DataSection, EvaluateSection, EvaluateSet, ModelSection, PlannedSet, ProbeSection, RlSection,
    RolloutSection, RunSection, SetSource, WarmupSection,
};

use crate::compute::DeviceChoice;
use crate::model::{Compute, LoraConfig};
use crate::reward::RewardConfig;
use crate::rl::{BupoConfig, CriticConfig, LossConfig, OptimizerConfig, PhaseConfig};
use crate::text::PromptTemplate;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One run. Defaults are the paper's where it names a value (its section 6 and the released scripts).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run, and its folder where `run.dir` does not.
    pub name: String,
    /// All randomness is derived from it.
    #[serde(default = "one")]
    pub seed: u64,
    /// Threads; all cores without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// What matrix products multiply in: `f32`, or `bf16` with weights, gradients, moments and sums in f32.
    #[serde(default)]
    pub compute: Compute,
    /// Where it computes: `cpu`, `cuda` (the first GPU), `cuda:N`, or `auto`.
    #[serde(default)]
    pub device: DeviceChoice,
    #[serde(default)]
    pub run: RunSection,
    pub model: ModelSection,
    pub data: DataSection,
    #[serde(default)]
    pub prompt: PromptTemplate,
    /// Supervised steps before everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmupSection>,
    #[serde(default)]
    pub rollout: RolloutSection,
    #[serde(default)]
    pub reward: RewardConfig,
    #[serde(default)]
    pub rl: RlSection,
    #[serde(default)]
    pub loss: LossConfig,
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Trains low-rank adapters beside the linear layers, with the model's own weights frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Needed by, and only read with, `rl.advantage = "gae"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<CriticConfig>,
    /// Short for two phases, an internal one and the final policy's.
    #[serde(default)]
    pub bupo: BupoConfig,
    /// Any list of phases, where two are not enough; instead of `bupo`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phase: Vec<PhaseConfig>,
    /// Nothing is evaluated without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate: Option<EvaluateSection>,
    #[serde(default)]
    pub analysis: AnalysisSection,
    #[serde(default)]
    pub probe: ProbeSection,
}

fn one() -> u64 {
    1
}

impl Recipe {
    /// The run's folder.
    pub fn dir(&self) -> PathBuf {
        self.run.dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// What is optimized, phase by phase: `[[phase]]`, or what `[bupo]` is short for. None are GRPO.
    pub fn phases(&self) -> Vec<PhaseConfig> {
        if self.phase.is_empty() { self.bupo.phases() } else { self.phase.clone() }
    }
}

#[cfg(test)]
mod tests;

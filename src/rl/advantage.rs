//! Advantages: what a response is worth beside the others of its group or batch.

use serde::{Deserialize, Serialize};

/// How rewards become advantages. The names are those of verl's `adv_estimator`, but for `dr-grpo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Advantage {
    /// `(r - mean) / (std + 1e-6)` within the group, std with ddof = 1 (paper, section 4; verl's convention).
    #[default]
    #[serde(rename = "grpo")]
    Grpo,
    /// `r - mean` within the group (Dr. GRPO: the division by std favours prompts that are nearly solved or hopeless).
    #[serde(rename = "dr-grpo")]
    DrGrpo,
    /// `r - mean of the others` = `(r - mean) n / (n - 1)` within the group.
    #[serde(rename = "rloo")]
    Rloo,
    /// Discounted return-to-go of every token, whitened over all response tokens of the batch.
    #[serde(rename = "reinforce++")]
    ReinforcePlusPlus,
    /// `r - mean` within the group, then whitened over all response tokens of the batch.
    #[serde(rename = "reinforce++-baseline")]
    ReinforcePlusPlusBaseline,
}

//! `[[phase]]`: the general form of a run's schedule, of which `[bupo]` is the case of two.

use super::{Objective, Stop};
use crate::policy::{InternalPolicy, LayerIndex};
use crate::rl::guard::GuardConfig;
use crate::rl::update::Beside;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Stands for the boundary layer's policy, which the analysis at step 0 finds.
pub const AUTO: &str = "auto";

/// One phase of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseConfig {
    /// `"final"`, `"layer:6"`, `"attn:6"`, `"ffn:6"`, `"normed:6"`, or `"auto"`: the boundary layer's.
    pub policy: String,
    /// Rollout steps. The last phase has none and goes on to the run's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Reads the layer through the final norm, which an internal policy does without (paper, table 5).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub final_norm: bool,
    /// A layer's policy that is optimized beside the final one in the same update: `"layer:6"` or `"auto"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
    /// Weight of its loss: `final + beta * beside`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// What ends it: its steps, or the guard before.
    #[serde(default, skip_serializing_if = "Stop::is_steps")]
    pub stop: Stop,
    /// Settings of `stop = "guard"`; the defaults without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardConfig>,
}

impl PhaseConfig {
    pub fn new(policy: &str, steps: Option<usize>) -> PhaseConfig {
        PhaseConfig { policy: policy.to_string(), steps, ..PhaseConfig::default() }
    }

    /// The guard that may end it, where there is one.
    pub fn guard(&self) -> Option<GuardConfig> {
        (self.stop == Stop::Guard).then(|| self.guard.unwrap_or_default())
    }

    /// True when it is known only after an analysis of the model what it optimizes.
    pub fn needs_boundary_layer(&self) -> bool {
        self.policy == AUTO || self.beside.as_deref() == Some(AUTO)
    }

    /// What it optimizes in a model of `layers` layers; an error if it needs a boundary layer and there is none. Messages name
    /// the key; the caller names the phase.
    pub fn objective(&self, layers: usize, boundary: Option<LayerIndex>) -> Result<Objective> {
        let read = |key: &str, name: &str| match (name, boundary) {
            (AUTO, Some(layer)) => Ok(InternalPolicy::Layer(layer)),
            (AUTO, None) => bail!(
                "{key} = \"auto\" found no boundary layer: no layer's FFN widens the distribution of this model. Name a layer \
                 ({key} = \"layer:N\"), or train the final policy"
            ),
            _ => InternalPolicy::parse(name, layers).context(key.to_string()),
        };
        let policy = match (read("policy", &self.policy)?, self.final_norm) {
            (policy, false) => policy,
            (InternalPolicy::Layer(layer), true) => InternalPolicy::Normed(layer),
            (other, true) => bail!(
                "final_norm = true reads a layer through the final norm, but policy = \"{other}\": expected layer:N or auto"
            ),
        };
        let beside = match (&self.beside, self.beta) {
            (None, None) => None,
            (Some(name), Some(beta)) => {
                ensure!(beta > 0.0 && beta.is_finite(), "beta = {beta}: expected a positive number such as 0.1");
                ensure!(
                    policy == InternalPolicy::Final,
                    "beside = {name:?} joins the final policy, but policy = \"{policy}\": expected policy = \"final\""
                );
                match read("beside", name)? {
                    InternalPolicy::Layer(layer) => Some(Beside { layer, beta }),
                    _ => bail!("beside = {name:?}: expected a layer's policy, layer:N or auto"),
                }
            }
            (Some(name), None) => bail!("beside = {name:?} needs a weight: beta = 0.1, for example"),
            (None, Some(beta)) => bail!("beta = {beta} weighs the policy beside: beside = \"layer:N\" is missing"),
        };
        Ok(Objective { policy, beside })
    }

    /// Everything that can be checked of a model of `layers` layers before it is analysed.
    pub fn check(&self, layers: usize) -> Result<()> {
        let any = LayerIndex::all(layers).next();
        self.objective(layers, any).map(|_| ())
    }
}

/// Refuses lengths that do not fill a run of `steps` rollout steps.
pub fn check_lengths(phases: &[PhaseConfig], steps: usize) -> Result<()> {
    let mut begins = 1;
    for (i, phase) in phases.iter().enumerate() {
        let (number, last) = (i + 1, i + 1 == phases.len());
        ensure!(
            begins <= steps || steps == 0,
            "phase {number} ({}) would begin with step {begins}, but the run has rl.steps = {steps}",
            phase.policy
        );
        match phase.steps {
            None if !last => {
                bail!("phase {number} ({}) has no steps: only the last phase goes on to the end", phase.policy)
            }
            None => {}
            Some(0) => bail!("phase {number} ({}) has steps = 0: expected at least 1, or no such phase", phase.policy),
            Some(n) => begins += n,
        }
    }
    let ended = phases.last().is_some_and(|p| p.steps.is_some()) && begins <= steps;
    ensure!(
        !ended,
        "the phases end with step {}, but the run has rl.steps = {steps}: leave steps out of the last phase",
        begins - 1
    );
    Ok(())
}

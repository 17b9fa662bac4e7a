//! Which policy a step optimizes: the one thing that distinguishes BuPO from GRPO (paper, equation 10).

use super::guard::GuardConfig;
use crate::policy::{InternalPolicy, LayerIndex};
use anyhow::{Result, bail, ensure};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The layer of the internal phase: a number, counted from 1, or `"auto"`, the boundary layer of the analysis at step 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerChoice {
    #[default]
    Auto,
    /// Counted from 1; in range only once the model is known.
    Number(usize),
}

impl Serialize for LayerChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LayerChoice::Auto => serializer.serialize_str("auto"),
            LayerChoice::Number(n) => serializer.serialize_u64(*n as u64),
        }
    }
}

impl<'de> Deserialize<'de> for LayerChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrAuto;
        impl Visitor<'_> for NumberOrAuto {
            type Value = LayerChoice;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a layer counted from 1, or \"auto\"")
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<LayerChoice, E> {
                match usize::try_from(value) {
                    Ok(number) if number > 0 => Ok(LayerChoice::Number(number)),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
                }
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<LayerChoice, E> {
                match u64::try_from(value) {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<LayerChoice, E> {
                match value {
                    "auto" => Ok(LayerChoice::Auto),
                    _ => Err(E::invalid_value(Unexpected::Str(value), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberOrAuto)
    }
}

/// What ends the internal phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// Its number of steps, as in the paper.
    #[default]
    Steps,
    /// The guard, when what it looks at turns for the worse; the number of steps at the latest.
    Guard,
}

/// BuPO's settings. The default, for a recipe that says nothing, is `steps = 0`: GRPO.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BupoConfig {
    #[serde(default)]
    pub layer: LayerChoice,
    /// Instead of `layer`: any internal policy by name, such as `"ffn:6"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Rollout steps of the internal phase. No default here: whoever writes `layer` without `steps` would get GRPO.
    pub steps: usize,
    #[serde(default)]
    pub stop: Stop,
    /// Settings of `stop = "guard"`.
    #[serde(default)]
    pub guard: GuardConfig,
}

impl BupoConfig {
    /// True when the policy of the internal phase is known only after an analysis of the model at step 0.
    pub fn needs_boundary_layer(&self) -> bool {
        self.steps > 0 && self.policy.is_none() && self.layer == LayerChoice::Auto
    }

    /// The internal phase's policy for a model of `layers` layers; `None` when there is no internal phase, or when the
    /// choice waits for the analysis ([`BupoConfig::needs_boundary_layer`]). Messages name the key; the caller names
    /// its section.
    pub fn fixed_policy(&self, layers: usize) -> Result<Option<InternalPolicy>> {
        let policy = match (&self.policy, self.layer) {
            (Some(name), LayerChoice::Number(number)) => {
                bail!("layer = {number} and policy = {name:?} both choose the internal policy: keep one of them")
            }
            (Some(name), LayerChoice::Auto) => {
                let policy = InternalPolicy::parse(name, layers)?;
                ensure!(
                    policy != InternalPolicy::Final,
                    "policy = \"final\" is no internal policy: name layer:N, attn:N or ffn:N, or set steps = 0 for GRPO"
                );
                Some(policy)
            }
            (None, LayerChoice::Number(number)) => match LayerIndex::from_one_based(number, layers) {
                Ok(layer) => Some(InternalPolicy::Layer(layer)),
                Err(_) => bail!("layer = {number}, but this model has layers 1..={layers}"),
            },
            (None, LayerChoice::Auto) => None,
        };
        Ok(policy.filter(|_| self.steps > 0))
    }
}

/// A step's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Internal policy alignment of `policy`, up to and including rollout step `until_step`.
    Internal { policy: InternalPolicy, until_step: usize },
    /// The whole policy, as in GRPO.
    Final,
}

/// Which policy every rollout step optimizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    internal: Option<(InternalPolicy, usize)>,
}

impl Phase {
    /// The policy that the surrogate's ratio is made of.
    pub fn policy(self) -> InternalPolicy {
        match self {
            Phase::Internal { policy, .. } => policy,
            Phase::Final => InternalPolicy::Final,
        }
    }

    /// The rollout step that this phase ends with, if it ends before the run does.
    pub fn last_step(self) -> Option<usize> {
        match self {
            Phase::Internal { until_step, .. } => Some(until_step),
            Phase::Final => None,
        }
    }

    /// `internal` or `final`, for metrics and people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Internal { .. } => "internal",
            Phase::Final => "final",
        }
    }
}

impl Schedule {
    /// GRPO: the whole policy from the first step on.
    pub fn grpo() -> Schedule {
        Schedule { internal: None }
    }

    /// `policy` is the configuration's own ([`BupoConfig::fixed_policy`]) or, for `layer = "auto"`, the boundary layer's;
    /// it is not looked at when `steps = 0`. Fails when there are internal steps and nothing to optimize in them.
    pub fn new(config: &BupoConfig, policy: Option<InternalPolicy>) -> Result<Schedule> {
        if config.steps == 0 {
            return Ok(Schedule::grpo());
        }
        match policy {
            None => bail!(
                "layer = \"auto\" found no boundary layer (no layer's FFN raises the entropy of this model) for {} internal \
                 steps: name one (layer = N), or set steps = 0 for GRPO",
                config.steps
            ),
            Some(InternalPolicy::Final) => bail!(
                "the final policy cannot be the policy of {} internal steps: name an internal one, or set steps = 0 for GRPO",
                config.steps
            ),
            Some(policy) => Ok(Schedule { internal: Some((policy, config.steps)) }),
        }
    }

    /// The phase of rollout step `step`, counted from 1: internal up to and including the configuration's `steps`.
    pub fn phase_at(&self, step: usize) -> Phase {
        match self.internal {
            Some((policy, until_step)) if step <= until_step => Phase::Internal { policy, until_step },
            _ => Phase::Final,
        }
    }

    /// Makes rollout step `step` the last of the internal phase, if it would not have ended before. The steps up to it are
    /// what they were.
    pub fn end_internal_at(&mut self, step: usize) {
        if let Some((_, until_step)) = &mut self.internal {
            *until_step = step.min(*until_step);
        }
    }

    /// The policy that rollout step `step`, counted from 1, optimizes. Rollouts come from the final policy in every step.
    pub fn policy_at(&self, step: usize) -> InternalPolicy {
        self.phase_at(step).policy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> BupoConfig {
        toml::from_str(text).unwrap()
    }

    fn layer(number: usize) -> InternalPolicy {
        InternalPolicy::Layer(LayerIndex::from_one_based(number, 36).unwrap())
    }

    #[test]
    fn internal_up_to_and_including_the_last_internal_step() {
        let bupo = config("layer = 6\nsteps = 30");
        let schedule = Schedule::new(&bupo, bupo.fixed_policy(36).unwrap()).unwrap();
        assert_eq!(schedule.policy_at(1), layer(6));
        assert_eq!(schedule.phase_at(30), Phase::Internal { policy: layer(6), until_step: 30 });
        assert_eq!(schedule.phase_at(31), Phase::Final);
        assert_eq!((schedule.phase_at(1).last_step(), Phase::Final.last_step()), (Some(30), None));
        assert_eq!(schedule.policy_at(31), InternalPolicy::Final);
        assert_eq!((schedule.phase_at(1).name(), schedule.phase_at(300).name()), ("internal", "final"));
    }

    #[test]
    fn an_internal_phase_can_end_early_and_never_late() {
        let bupo = config("layer = 6\nsteps = 30\nstop = \"guard\"");
        let mut schedule = Schedule::new(&bupo, bupo.fixed_policy(36).unwrap()).unwrap();
        schedule.end_internal_at(12);
        assert_eq!(schedule.phase_at(12), Phase::Internal { policy: layer(6), until_step: 12 });
        assert_eq!(schedule.phase_at(13), Phase::Final);
        schedule.end_internal_at(40);
        assert_eq!(schedule.phase_at(13), Phase::Final);
        let mut grpo = Schedule::grpo();
        grpo.end_internal_at(5);
        assert_eq!(grpo, Schedule::grpo());
    }

    #[test]
    fn no_internal_steps_are_grpo() {
        for text in
            ["steps = 0", "layer = 6\nsteps = 0", "layer = \"auto\"\nsteps = 0", "policy = \"ffn:3\"\nsteps = 0"]
        {
            let bupo = config(text);
            assert!(!bupo.needs_boundary_layer());
            let schedule = Schedule::new(&bupo, bupo.fixed_policy(36).unwrap()).unwrap();
            assert_eq!(schedule, Schedule::grpo());
            assert_eq!(schedule.policy_at(1), InternalPolicy::Final);
        }
        assert_eq!(BupoConfig::default().steps, 0);
    }

    #[test]
    fn auto_waits_for_the_boundary_layer_and_fails_without_one() {
        let bupo = config("layer = \"auto\"\nsteps = 20");
        assert!(bupo.needs_boundary_layer());
        assert_eq!(bupo.fixed_policy(36).unwrap(), None);
        assert_eq!(Schedule::new(&bupo, Some(layer(6))).unwrap().policy_at(20), layer(6));
        let error = Schedule::new(&bupo, None).unwrap_err().to_string();
        assert!(error.contains("boundary layer") && error.contains("20"), "{error}");
        assert!(Schedule::new(&bupo, Some(InternalPolicy::Final)).is_err());
        assert_eq!(config("steps = 20"), bupo);
    }

    #[test]
    fn modular_policies_are_named() {
        let bupo = config("policy = \"ffn:3\"\nsteps = 1");
        assert!(!bupo.needs_boundary_layer());
        assert_eq!(bupo.fixed_policy(36).unwrap().unwrap().to_string(), "ffn:3");
    }

    #[test]
    fn choices_that_make_no_sense_are_refused() {
        let error = |text: &str| config(text).fixed_policy(36).unwrap_err().to_string();
        assert_eq!(error("layer = 40\nsteps = 1"), "layer = 40, but this model has layers 1..=36");
        assert!(error("layer = 40\nsteps = 0").contains("1..=36"));
        assert!(error("layer = 6\npolicy = \"ffn:6\"\nsteps = 1").contains("keep one"));
        assert!(error("policy = \"final\"\nsteps = 1").contains("steps = 0"));
        assert!(error("policy = \"ffn:99\"\nsteps = 1").contains("1..=36"));
        for text in ["layer = 0", "layer = -1", "layer = 1.5", "layer = \"six\"", "layer = true"] {
            let error = toml::from_str::<BupoConfig>(&format!("{text}\nsteps = 1")).unwrap_err().to_string();
            assert!(error.contains("a layer counted from 1, or \"auto\""), "{error}");
        }
        // Whoever writes a layer must say for how long.
        assert!(toml::from_str::<BupoConfig>("layer = 6").unwrap_err().to_string().contains("steps"));
        assert!(toml::from_str::<BupoConfig>("layr = 6\nsteps = 1").is_err());
    }

    #[test]
    fn settings_survive_a_round_trip() {
        for text in [
            "layer = 6\nsteps = 30",
            "layer = \"auto\"\nsteps = 20\nstop = \"guard\"",
            "policy = \"attn:2\"\nsteps = 5",
        ] {
            let bupo = config(text);
            assert_eq!(config(&toml::to_string(&bupo).unwrap()), bupo);
        }
    }
}

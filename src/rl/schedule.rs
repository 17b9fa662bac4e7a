//! Which policy a step optimizes: the one thing that distinguishes BuPO from GRPO (paper, equation 10).

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

/// BuPO's settings. The default, for a recipe that says nothing, is `steps = 0`: GRPO.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BupoConfig {
    #[serde(default)]
    pub layer: LayerChoice,
    /// Instead of `layer`: any internal policy by name, such as `"ffn:6"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Rollout steps of the internal phase. No default here: whoever writes `layer` without `steps` would get GRPO.
    pub steps: usize,
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

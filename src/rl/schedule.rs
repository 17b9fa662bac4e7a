//! Which policy a step optimizes: the one thing that distinguishes BuPO from GRPO (paper, equation 10).
//!
//! A schedule is a list of phases. GRPO is the list of one, BuPO that of two; ladders of layers, an internal phase for the whole
//! run, and phases that optimize two policies at once are other lists.

mod phases;

pub use phases::{AUTO, PhaseConfig, check_lengths};

use super::guard::GuardConfig;
use super::update::Beside;
use crate::policy::{InternalPolicy, LayerIndex};
use anyhow::{Context, Result, bail, ensure};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

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

impl Stop {
    fn is_steps(&self) -> bool {
        *self == Stop::Steps
    }
}

/// BuPO's settings. The default, for a recipe that says nothing, is `steps = 0`: GRPO.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BupoConfig {
    /// The layer of the internal phase.
    #[serde(default)]
    pub layer: LayerChoice,
    /// Instead of `layer`: any internal policy by name, such as `"ffn:6"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Rollout steps of the internal phase. No default here: whoever writes `layer` without `steps` would get GRPO.
    pub steps: usize,
    /// What ends the internal phase.
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

    /// As a list of phases; none for GRPO.
    pub fn phases(&self) -> Vec<PhaseConfig> {
        if self.steps == 0 {
            return Vec::new();
        }
        let policy = match (&self.policy, self.layer) {
            (Some(name), _) => name.clone(),
            (None, LayerChoice::Number(number)) => format!("layer:{number}"),
            (None, LayerChoice::Auto) => AUTO.to_string(),
        };
        let internal = PhaseConfig::new(&policy, Some(self.steps));
        let guard = (self.stop == Stop::Guard).then_some(self.guard);
        vec![PhaseConfig { stop: self.stop, guard, ..internal }, PhaseConfig::new("final", None)]
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

/// What an update optimizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The policy that the surrogate's ratio is made of.
    pub policy: InternalPolicy,
    pub beside: Option<Beside>,
}

impl Objective {
    pub const FINAL: Objective = Objective { policy: InternalPolicy::Final, beside: None };
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.beside {
            None => self.policy.fmt(f),
            Some(Beside { layer, beta }) => write!(f, "{} + {beta} {}", self.policy, InternalPolicy::Layer(layer)),
        }
    }
}

/// A step's phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// From 1.
    pub number: usize,
    pub objective: Objective,
    /// The rollout step that it ends with; the last phase has none.
    pub last_step: Option<usize>,
    /// What may end it before.
    pub guard: Option<GuardConfig>,
}

/// Which policy every rollout step optimizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One at least.
    phases: Vec<Phase>,
}

impl Phase {
    /// The policy that the surrogate's ratio is made of.
    pub fn policy(self) -> InternalPolicy {
        self.objective.policy
    }

    /// Another policy than the sampling one is optimized.
    pub fn is_internal(self) -> bool {
        self.objective.policy != InternalPolicy::Final
    }

    /// `internal`, `joint` or `final`, for metrics and people.
    pub fn name(self) -> &'static str {
        match self.objective {
            Objective { policy: InternalPolicy::Final, beside: None } => "final",
            Objective { policy: InternalPolicy::Final, .. } => "joint",
            _ => "internal",
        }
    }
}

impl Schedule {
    /// GRPO: the whole policy from the first step on.
    pub fn grpo() -> Schedule {
        Schedule { phases: vec![Phase { number: 1, objective: Objective::FINAL, last_step: None, guard: None }] }
    }

    /// Of phases in a model of `layers` layers, checked by [`check_lengths`]; none are GRPO. `boundary` is the layer that
    /// `"auto"` stands for. Errors as [`PhaseConfig::objective`].
    pub fn new(phases: &[PhaseConfig], layers: usize, boundary: Option<LayerIndex>) -> Result<Schedule> {
        let (mut list, mut step) = (Vec::new(), 0);
        for (i, phase) in phases.iter().enumerate() {
            let number = i + 1;
            let objective = phase.objective(layers, boundary).with_context(|| format!("phase {number}"))?;
            step += phase.steps.unwrap_or(0);
            let last_step = phase.steps.filter(|_| number < phases.len()).map(|_| step);
            list.push(Phase { number, objective, last_step, guard: phase.guard() });
        }
        Ok(if list.is_empty() { Schedule::grpo() } else { Schedule { phases: list } })
    }

    /// The same phases with `steps` rollout steps before them, counted to the first one.
    pub fn after(mut self, steps: usize) -> Schedule {
        for phase in &mut self.phases {
            phase.last_step = phase.last_step.map(|last| last + steps);
        }
        self
    }

    /// The phase of rollout step `step`, counted from 1.
    pub fn phase_at(&self, step: usize) -> Phase {
        let going = |phase: &&Phase| phase.last_step.is_none_or(|last| step <= last);
        self.phases.iter().find(going).copied().unwrap_or(self.phases[self.phases.len() - 1])
    }

    /// The last step up to `step` with which a phase ended.
    pub fn turn_until(&self, step: usize) -> Option<usize> {
        self.phases.iter().filter_map(|phase| phase.last_step).filter(|last| (1..=step).contains(last)).max()
    }

    /// The policy that rollout step `step`, counted from 1, optimizes. Rollouts come from the final policy in every step.
    pub fn policy_at(&self, step: usize) -> InternalPolicy {
        self.phase_at(step).policy()
    }

    /// Makes rollout step `step` the last of its phase, if that is an internal one that would go on; the phases after it keep
    /// their lengths, and the last one begins earlier. Steps up to it are what they were.
    pub fn end_internal_at(&mut self, step: usize) {
        let phase = self.phase_at(step);
        let Some(early) = phase.last_step.filter(|_| phase.is_internal()).map(|last| last - step) else { return };
        for phase in self.phases.iter_mut().skip(phase.number - 1) {
            phase.last_step = phase.last_step.map(|last| last - early);
        }
    }

    /// The internal policy of a step: what it optimizes below the final one, or else the last that was, or the first that
    /// will be.
    pub fn internal_policy_at(&self, step: usize) -> Option<InternalPolicy> {
        let now = self.phase_at(step).number;
        let (until_now, later) = self.phases.split_at(now);
        until_now.iter().rev().chain(later).find_map(|phase| match phase.objective {
            Objective { policy: InternalPolicy::Final, beside } => beside.map(|b| InternalPolicy::Layer(b.layer)),
            Objective { policy, .. } => Some(policy),
        })
    }

    /// `10 steps on layer:3, then final`.
    pub fn describe(&self) -> String {
        let mut from = 0;
        let phases = self.phases.iter().map(|phase| {
            let steps = phase.last_step.map(|last| last - from);
            from = phase.last_step.unwrap_or(from);
            steps.map_or(phase.objective.to_string(), |n| format!("{n} steps on {}", phase.objective))
        });
        phases.collect::<Vec<_>>().join(", then ")
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

    fn schedule(text: &str) -> Result<Schedule> {
        Schedule::new(&config(text).phases(), 36, None)
    }

    fn list(text: &str) -> Vec<PhaseConfig> {
        #[derive(Deserialize)]
        struct List {
            phase: Vec<PhaseConfig>,
        }
        toml::from_str::<List>(text).unwrap().phase
    }

    fn of(objective: InternalPolicy) -> Objective {
        Objective { policy: objective, beside: None }
    }

    #[test]
    fn internal_up_to_and_including_the_last_internal_step() {
        let schedule = schedule("layer = 6\nsteps = 30").unwrap();
        assert_eq!(schedule.policy_at(1), layer(6));
        let phase = |number, objective, last_step| Phase { number, objective, last_step, guard: None };
        assert_eq!(schedule.phase_at(30), phase(1, of(layer(6)), Some(30)));
        assert_eq!(schedule.phase_at(31), phase(2, Objective::FINAL, None));
        assert_eq!(schedule.policy_at(31), InternalPolicy::Final);
        assert_eq!((schedule.phase_at(1).name(), schedule.phase_at(300).name()), ("internal", "final"));
        assert_eq!(schedule.describe(), "30 steps on layer:6, then final");
        assert_eq!((schedule.internal_policy_at(1), schedule.internal_policy_at(99)), (Some(layer(6)), Some(layer(6))));
    }

    #[test]
    fn an_internal_phase_can_end_early_and_never_late() {
        let mut schedule = schedule("layer = 6\nsteps = 30\nstop = \"guard\"").unwrap();
        assert_eq!(schedule.phase_at(1).guard, Some(GuardConfig::default()));
        schedule.end_internal_at(12);
        let internal = schedule.phase_at(12);
        assert_eq!((internal.policy(), internal.last_step), (layer(6), Some(12)));
        assert_eq!([11, 12, 99].map(|step| schedule.turn_until(step)), [None, Some(12), Some(12)]);
        assert_eq!(schedule.policy_at(13), InternalPolicy::Final);
        schedule.end_internal_at(40);
        assert_eq!(schedule.policy_at(13), InternalPolicy::Final);
        let mut grpo = Schedule::grpo();
        grpo.end_internal_at(5);
        assert_eq!(grpo, Schedule::grpo());
    }

    #[test]
    fn no_internal_steps_are_grpo() {
        for text in
            ["steps = 0", "layer = 6\nsteps = 0", "layer = \"auto\"\nsteps = 0", "policy = \"ffn:3\"\nsteps = 0"]
        {
            assert!(!config(text).needs_boundary_layer());
            assert_eq!(schedule(text).unwrap(), Schedule::grpo());
        }
        assert_eq!(Schedule::new(&list("phase = [{ policy = \"final\" }]"), 36, None).unwrap(), Schedule::grpo());
        assert_eq!(Schedule::grpo().policy_at(1), InternalPolicy::Final);
        assert_eq!((Schedule::grpo().internal_policy_at(1), BupoConfig::default().steps), (None, 0));
    }

    #[test]
    fn auto_waits_for_the_boundary_layer_and_fails_without_one() {
        let bupo = config("layer = \"auto\"\nsteps = 20");
        assert!(bupo.needs_boundary_layer());
        assert_eq!(bupo.fixed_policy(36).unwrap(), None);
        let six = LayerIndex::from_one_based(6, 36).ok();
        assert_eq!(Schedule::new(&bupo.phases(), 36, six).unwrap().policy_at(20), layer(6));
        let error = format!("{:#}", Schedule::new(&bupo.phases(), 36, None).unwrap_err());
        assert!(error.contains("boundary layer") && error.contains("phase 1"), "{error}");
        assert_eq!(config("steps = 20"), bupo);
    }

    #[test]
    fn ladders_joint_phases_and_a_whole_internal_run() {
        let text = "[[phase]]\npolicy = \"layer:3\"\nsteps = 10\n[[phase]]\npolicy = \"auto\"\nfinal_norm = true\nsteps = 5\n\
                    [[phase]]\npolicy = \"final\"\nbeside = \"auto\"\nbeta = 0.5\nsteps = 7\n[[phase]]\npolicy = \"ffn:9\"\n";
        let (phases, six) = (list(text), LayerIndex::from_one_based(6, 36).ok());
        check_lengths(&phases, 100).unwrap();
        let mut schedule = Schedule::new(&phases, 36, six).unwrap();
        let at = |s: &Schedule, step| {
            (s.phase_at(step).number, s.phase_at(step).name(), s.phase_at(step).objective.to_string())
        };
        assert_eq!(at(&schedule, 10), (1, "internal", "layer:3".into()));
        assert_eq!(at(&schedule, 11), (2, "internal", "normed:6".into()));
        assert_eq!(at(&schedule, 16), (3, "joint", "final + 0.5 layer:6".into()));
        assert_eq!(at(&schedule, 99), (4, "internal", "ffn:9".into()));
        assert!(
            phases[1].needs_boundary_layer() && phases[2].needs_boundary_layer() && !phases[3].needs_boundary_layer()
        );
        // What a look inside is about: the phase's own, the lower of two.
        let inside = |step| schedule.internal_policy_at(step).unwrap().to_string();
        assert_eq!([inside(1), inside(11), inside(16), inside(50)], ["layer:3", "normed:6", "layer:6", "ffn:9"]);
        // An early end moves what follows; a joint phase and the last one have none.
        schedule.end_internal_at(4);
        let starts = |s: &Schedule| -> Vec<usize> {
            (1..99)
                .map(|i| s.phase_at(i).number)
                .collect::<Vec<_>>()
                .chunk_by(|a, b| a == b)
                .map(<[usize]>::len)
                .collect()
        };
        assert_eq!(starts(&schedule)[..3], [4, 5, 7]);
        schedule.end_internal_at(6);
        schedule.end_internal_at(9);
        schedule.end_internal_at(60);
        assert_eq!(starts(&schedule)[..3], [4, 2, 7]);
        assert_eq!(schedule.phase_at(6).last_step, Some(6));
        let whole = Schedule::new(&list("phase = [{ policy = \"layer:6\" }]"), 36, None).unwrap();
        assert_eq!((whole.policy_at(1), whole.policy_at(10_000)), (layer(6), layer(6)));
        let mut grpo = Schedule::grpo();
        grpo.end_internal_at(5);
        assert_eq!(grpo, Schedule::grpo());
        for phase in &phases {
            let text = toml::to_string(phase).unwrap();
            assert_eq!(&toml::from_str::<PhaseConfig>(&text).unwrap(), phase);
        }
    }

    #[test]
    fn phases_that_make_no_sense_are_refused() {
        let error = |phase: &str| format!("{:#}", list(&format!("phase = [{{ {phase} }}]"))[0].check(36).unwrap_err());
        for (phase, expected) in [
            ("policy = \"layer:40\"", "1..=36"),
            ("policy = \"lyr:4\"", "expected final, layer:N"),
            ("policy = \"ffn:4\", final_norm = true", "expected layer:N or auto"),
            ("policy = \"final\", final_norm = true", "expected layer:N or auto"),
            ("policy = \"final\", beside = \"layer:4\"", "beta = 0.1"),
            ("policy = \"final\", beta = 0.5", "beside = \"layer:N\" is missing"),
            ("policy = \"final\", beside = \"ffn:4\", beta = 0.5", "layer:N or auto"),
            ("policy = \"final\", beside = \"layer:4\", beta = 0.0", "beta = 0"),
            ("policy = \"layer:5\", beside = \"layer:4\", beta = 1.0", "expected policy = \"final\""),
        ] {
            assert!(error(phase).contains(expected), "{phase}: {}", error(phase));
        }
        let lengths = |steps: &[Option<usize>], total: usize| {
            let phases: Vec<_> = steps.iter().map(|steps| PhaseConfig::new("layer:1", *steps)).collect();
            check_lengths(&phases, total).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(lengths(&[Some(3), None], 4), "");
        assert_eq!(lengths(&[Some(3), Some(1)], 4), "");
        assert_eq!(lengths(&[], 4), "");
        assert!(lengths(&[Some(4), None], 4).contains("phase 2 (layer:1) would begin with step 5"));
        assert!(lengths(&[None, None], 4).contains("phase 1 (layer:1) has no steps"));
        assert!(lengths(&[Some(0), None], 4).contains("steps = 0"));
        assert!(lengths(&[Some(3)], 4).contains("end with step 3"));
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

//! Reinforcement learning with verifiable rewards: advantages, the surrogate loss, BuPO's schedule, the optimizer's settings.
//!
//! [`advantage`] turns rewards into per-token advantages, [`loss`] turns log-probabilities and advantages into the
//! gradient that the decoder's backward starts from, [`schedule`] says which policy a step optimizes (all that
//! distinguishes BuPO from GRPO), [`guard`] when to end its internal phase early, [`optimizer`] holds AdamW's settings and
//! the learning rate of every step.

pub mod adamw;
pub mod advantage;
pub mod batch;
pub mod correction;
pub mod critic;
pub mod dynamic_sampling;
pub mod gae;
pub mod groups;
pub mod guard;
pub mod loss;
pub mod masking;
pub mod metrics;
pub mod optimizer;
pub mod schedule;
pub mod selection;
pub mod supervised;
pub mod trainer;
pub mod update;

pub use advantage::Advantage;
pub use correction::{CorrectionMode, RolloutCorrection};
pub use critic::CriticConfig;
pub use dynamic_sampling::DynamicSampling;
pub use groups::GroupConfig;
pub use guard::GuardConfig;
pub use loss::{Aggregation, KlEstimator, LossConfig, LossKind};
pub use optimizer::{LrSchedule, OptimizerConfig};
pub use schedule::{BupoConfig, LayerChoice, Objective, Phase, PhaseConfig, Schedule, Stop};

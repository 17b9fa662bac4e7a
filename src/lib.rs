//! `bupo`: see and train the policies hidden inside a language model.
//!
//! The code map, top to bottom (arrows point downwards only; `tests/tidy.rs` holds that):
//!
//! | module | subject |
//! |---|---|
//! | [`cli`], [`commands`] | command line; one file a verb, wiring only |
//! | [`report`], [`serve`] | pages to look at: one file from saved results; a local one that follows runs |
//! | [`sweep`] | variants of a recipe with several seeds, in one table |
//! | [`recipe`] | a run's whole configuration: load, check, resolve |
//! | [`rl`] | advantages, surrogate loss, schedule, trainer |
//! | [`evaluate`], [`analysis`] | Avg@K and Pass@K; entropy flow, stages, boundary layer, ablations |
//! | [`rollout`] | batched sampling with a KV cache |
//! | [`policy`] | which hidden state is read as a distribution: the paper's internal policies |
//! | [`reward`] | weighted parts of a reward; programs of the user's |
//! | [`verify`], [`tasks`], [`text`], [`run`] | verdicts; problems; tokens; a run's folder |
//! | [`hub`] | models and data by name |
//! | [`model`] | configuration, weights, decoder forward and backward, taps |
//! | [`compute`] | the numeric kernels: one file an operation |

pub mod analysis;
pub mod cli;
pub mod commands;
pub mod compute;
pub mod evaluate;
pub mod hub;
pub mod model;
pub mod policy;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod rl;
pub mod rollout;
pub mod run;
pub mod serve;
pub mod sweep;
pub mod tasks;
pub mod text;
pub mod verify;

//! Sampling responses from any policy: many sequences at once, prompts shared, slots refilled as sequences end.

pub mod engine;
pub mod sampler;

pub use engine::{Completion, Finish, Request, generate};
pub use sampler::Sampling;

//! Sampling responses from any policy: many sequences at once, prompts shared, slots refilled as sequences end.

#[cfg(feature = "cuda")]
mod device;
pub mod engine;
mod host;
pub mod sampler;
pub mod session;

pub use engine::{Completion, Finish, Request, generate};
pub use sampler::Sampling;
pub use session::Rollout;

//! Problems: where they come from, in which order, and with which randomness.

pub mod answers;
pub mod arithmetic;
pub mod choices;
pub mod dataset;
pub mod order;
pub mod problem;
pub mod seed;

pub use problem::Problem;

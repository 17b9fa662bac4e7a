//! Problems: where they come from, in which order, and with which randomness.

pub mod answers;
pub mod arithmetic;
pub mod brackets;
pub mod choices;
pub mod countdown;
pub mod dataset;
mod expression;
pub mod generated;
pub mod lists;
pub mod modular;
mod numbers;
pub mod order;
pub mod problem;
pub mod seed;
pub mod supervised;

pub use generated::{Split, TaskConfig};
pub use problem::Problem;

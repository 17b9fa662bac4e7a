//! The model: one decoder for every family. A family is a [`ModelConfig`], never a file of its own.

pub mod config;
pub mod init;
pub mod params;
pub mod taps;
pub mod weights;

pub use config::ModelConfig;
pub use params::{ParamLayout, TensorSpec};

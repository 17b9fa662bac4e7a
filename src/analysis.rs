//! Analysis of a model's internal policies: where entropy is widened, kept and narrowed.
//!
//! [`flow`] runs the decoder with taps and sums what each hidden state says as a policy, [`result`] is what comes of it
//! (`analysis.json`), [`stages`] reads the FFN's entropy changes as exploration, integration and convergence and finds the
//! boundary layer that BuPO optimizes, [`terminal`] shows it.

pub mod flow;
pub mod result;
pub mod stages;
pub mod terminal;

pub use flow::Flow;
pub use result::Analysis;

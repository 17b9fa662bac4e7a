//! Analysis of a model's internal policies: where entropy is widened, kept and narrowed.
//!
//! [`stages`] reads the per-layer entropy changes of the FFN as exploration, integration and convergence, and finds the
//! boundary layer that BuPO optimizes.

pub mod stages;

//! Analysis of a model's internal policies: where entropy is widened, kept and narrowed, and where tokens are decided.
//!
//! [`flow`] runs the decoder with taps and sums what each hidden state says as a policy (in [`tally`]), [`result`] is what
//! comes of it (`analysis.json`), [`stages`] reads the FFN's entropy changes as exploration, integration and convergence and
//! finds the boundary layer that BuPO optimizes, [`terminal`] shows it; [`profile`] and [`perplexity`] are followed while a
//! model trains. [`token_map`] looks closely at a few samples, token by token, [`diff`] compares the weights of two checkpoints,
//! [`ablation`] a model with itself without one of its modules.

pub mod ablation;
pub mod diff;
pub mod flow;
pub mod perplexity;
pub mod profile;
pub mod result;
pub mod stages;
pub mod tally;
pub mod terminal;
pub mod token_map;

pub use flow::{Flow, Reading, Sample};
pub use result::{Analysis, Lens};
pub use token_map::{TokenRow, map_tokens};

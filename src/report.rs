//! Pages from saved results: what is found in folders ([`collect`]) becomes JSON, and that one self-contained HTML file
//! ([`page`]). No model is ever loaded; what a file holds is shown as it is, so that new numbers need no change here.

pub mod assets;
pub mod collect;
pub mod completions;
pub mod lines;
pub mod page;
pub mod place;
pub mod tokens;

pub use collect::{Limits, collect};
pub use page::page;
pub use place::Place;

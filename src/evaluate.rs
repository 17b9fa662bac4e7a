//! Evaluation: how often a policy solves the problems of a set, and how sure that is.
//!
//! [`suite`] says what is asked and how; [`run`] samples, judges and scores it; [`scores`] are Avg@n and the unbiased Pass@k
//! with the uncertainty of [`statistics`]; [`compare`] sets two models against each other on the same problems; [`result`]
//! and [`table`] are what is saved and shown.

pub mod compare;
pub mod result;
pub mod run;
pub mod scores;
pub mod statistics;
pub mod suite;
pub mod table;

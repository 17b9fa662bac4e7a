//! Evaluation: how often a policy solves the problems of a set.
//!
//! [`run`] samples and judges the responses; [`scores`] turns the counts of an evaluation (n responses to every problem) into Avg@n and unbiased Pass@k.

pub mod run;
pub mod scores;

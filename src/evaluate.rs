//! Evaluation: how often a policy solves the problems of a set.
//!
//! [`scores`] turns the counts of an evaluation (n responses to every problem) into Avg@n and unbiased Pass@k.

pub mod scores;

//! A run's folder and its life: checkpoints that appear whole or not at all, metrics, tables, the manifest,
//! work that is saved before it is finished, TensorBoard's files, progress, Ctrl-C.

pub mod atomic;
pub mod checkpoint;
pub mod fingerprint;
pub mod interrupt;
pub mod jsonl;
pub mod lock;
pub mod manifest;
pub mod parquet;
pub mod progress;
pub mod reading;
pub mod tensorboard;
pub mod unfinished;

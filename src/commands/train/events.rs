//! A run as TensorBoard shows it: metrics under `train/`, evaluations under `evaluation/`, the probe under `probe/`.

use super::evaluations::SetScores;
use super::probe;
use crate::rl::metrics::StepMetrics;
use crate::run::jsonl::read_jsonl;
use crate::run::tensorboard::{TensorBoard, scalars};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// Where a run's scalars go, if anywhere.
pub struct Events(Option<TensorBoard>);

impl Events {
    /// Of a run that stands at `step`: what it already showed of later steps is shown no more. At the start, the look before
    /// the first step, which is written by then, comes first.
    pub fn open(wanted: bool, dir: &Path, step: usize) -> Result<Events> {
        if !wanted {
            return Ok(Events(None));
        }
        let first = if step == 0 { 0 } else { step + 1 };
        let mut events = Events(Some(TensorBoard::open(&dir.join("tensorboard"), first)?));
        if step == 0 {
            for row in read_jsonl::<Value>(&probe::path(dir))? {
                events.append(0, &scalars("probe", &row))?;
            }
        }
        Ok(events)
    }

    pub fn metrics(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.row("train", metrics.step, metrics)
    }

    pub fn probe(&mut self, row: &probe::Row) -> Result<()> {
        self.row("probe", row.step, row)
    }

    pub fn scores(&mut self, step: usize, sets: &SetScores) -> Result<()> {
        for (name, scores) in sets {
            let prefix = if name.is_empty() { "evaluation".to_string() } else { format!("evaluation/{name}") };
            let mut found = vec![
                (format!("{prefix}/avg_at_n"), scores.avg_at_n.mean),
                (format!("{prefix}/truncated"), scores.truncated),
            ];
            found.extend(scores.pass_at_k.iter().map(|p| (format!("{prefix}/pass_at_{}", p.k), p.pass.mean)));
            found.extend(scores.reward.map(|reward| (format!("{prefix}/reward"), reward.mean)));
            self.append(step, &found)?;
        }
        Ok(())
    }

    fn row(&mut self, prefix: &str, step: usize, row: &impl Serialize) -> Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let value = serde_json::to_value(row).context("a row cannot be written as JSON")?;
        self.append(step, &scalars(prefix, &value))
    }

    fn append(&mut self, step: usize, scalars: &[(String, f64)]) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), |board| board.append(step, scalars))
    }
}

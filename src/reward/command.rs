//! Rewards from a program of the user's, in any language: JSON lines in, JSON lines out, run as a pool.
//!
//! A row is a line `{"id", "prompt", "messages", "response", "gold", "extra", "source", "tokens", "truncated"}` on the
//! program's standard input; it answers with one line, a number or `{"score": 0.5, "status": "correct", "answer": "7"}`, in
//! the order of the rows. Each process has one row at a time. A process that is late, ends or answers nonsense is
//! replaced, and its row asked again; what then still has no score is never a zero.

mod worker;

use super::Item;
use crate::verify::Status;
use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use worker::{Trouble, Worker};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandConfig {
    pub weight: f64,
    /// The program and its arguments, e.g. `["python3", "rewards/unit_tests.py"]`. No shell is involved.
    pub command: Vec<String>,
    /// Processes at once; as many as there are cores without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Longest time for one row.
    pub timeout_seconds: f64,
    /// Added for the first row of a process, which may have libraries to load.
    pub start_seconds: f64,
    /// How often a row is asked again, of a fresh process.
    pub retries: usize,
    /// What becomes of a row that still has no score.
    pub on_failure: OnFailure,
    /// Scores from here on are correct, where the program does not say a status.
    pub correct_at: f64,
}

impl Default for CommandConfig {
    fn default() -> Self {
        CommandConfig {
            weight: 1.0,
            command: Vec::new(),
            workers: None,
            timeout_seconds: 60.0,
            start_seconds: 60.0,
            retries: 1,
            on_failure: OnFailure::Stop,
            correct_at: 1.0,
        }
    }
}

/// What becomes of a response that the program could not score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The run stops with the program's own words.
    #[default]
    Stop,
    /// It has no reward: left out of its group's comparison, counted, and shown.
    Mask,
}

impl CommandConfig {
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.command.first().is_some_and(|program| !program.trim().is_empty()),
            "command is empty: expected a program and its arguments, e.g. [\"python3\", \"reward.py\"]"
        );
        ensure!(self.workers != Some(0), "workers = 0: expected at least 1, or no workers key for one a core");
        for (key, seconds) in [("timeout_seconds", self.timeout_seconds), ("start_seconds", self.start_seconds)] {
            let fits = seconds.is_finite() && (0.0..=1e6).contains(&seconds);
            ensure!(fits, "{key} = {seconds}: expected seconds, up to 1e6");
        }
        ensure!(self.timeout_seconds > 0.0, "timeout_seconds = 0: expected a positive number");
        ensure!(!self.correct_at.is_nan(), "correct_at is not a number");
        Ok(())
    }
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Scored {
        score: f64,
        status: Status,
        answer: Option<String>,
    },
    /// `Timeout` or `Failed`, and why.
    Failed {
        status: Status,
        reason: String,
    },
}

/// A line that the program answers, where it is no bare number. Other keys are its own business.
#[derive(Deserialize)]
struct Reply {
    id: Option<u64>,
    score: Option<f64>,
    status: Option<Status>,
    answer: Option<Value>,
    error: Option<String>,
}

/// Processes of one program. They live until the pool is dropped.
pub struct Pool {
    config: CommandConfig,
    idle: Mutex<Vec<Worker>>,
    /// Rows asked so far: their ids.
    asked: AtomicUsize,
    /// A row of the present batch has a score.
    scored: AtomicBool,
}

impl Pool {
    /// Starts one process, so that a program that is not there is an error now.
    pub fn new(config: &CommandConfig) -> Result<Pool> {
        config.check()?;
        let first = Worker::start(&config.command)?;
        let (asked, scored) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Pool { config: config.clone(), idle: Mutex::new(vec![first]), asked, scored })
    }

    /// An outcome for every item, in order. `more`: they belong to the batch of the call before, as the few that dynamic sampling
    /// asks for again do.
    ///
    /// Errors: a failed row under `on_failure = "stop"`; every row of a batch so far failed under any setting, since then the
    /// program is broken and not the rows.
    pub fn judge(&self, items: &[Item<'_>], more: bool) -> Result<Vec<Outcome>> {
        if !more {
            self.scored.store(false, Ordering::Relaxed);
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let workers = self.config.workers.unwrap_or(cores).min(items.len());
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let done: Mutex<Vec<Option<Outcome>>> = Mutex::new(vec![None; items.len()]);
        let one_worker = || {
            let mut worker = locked(&self.idle).pop();
            while !stop.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else { break };
                let outcome = self.ask_patiently(&mut worker, item);
                let failed = matches!(outcome, Outcome::Failed { .. });
                if failed && self.config.on_failure == OnFailure::Stop {
                    stop.store(true, Ordering::Relaxed);
                }
                if let Some(slot) = locked(&done).get_mut(at) {
                    *slot = Some(outcome);
                }
            }
            locked(&self.idle).extend(worker);
        };
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(one_worker);
            }
        });
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed = done.iter().flatten().filter(|o| matches!(o, Outcome::Failed { .. })).count();
        self.scored.fetch_or(done.iter().flatten().count() > failed, Ordering::Relaxed);
        let first = done.iter().enumerate().find_map(|(i, outcome)| match outcome {
            Some(Outcome::Failed { reason, .. }) => Some((i, reason)),
            _ => None,
        });
        if let Some((at, reason)) = first {
            let command = &self.config.command;
            if self.config.on_failure == OnFailure::Stop {
                let problem = items.get(at).map_or(0, |item| item.problem.id);
                bail!(
                    "the command {command:?} could not score response {} (problem {problem}): {reason}. Repair it, or set \
                     on_failure = \"mask\" to leave such responses out",
                    at + 1
                );
            }
            ensure!(
                self.scored.load(Ordering::Relaxed),
                "the command {command:?} failed on every one of {failed} responses; first: {reason}"
            );
        }
        let done = done.into_iter().collect::<Option<Vec<_>>>();
        done.ok_or_else(|| anyhow!("the command {:?} left responses without a score", self.config.command))
    }

    /// Asks, and asks again of a fresh process where that fails.
    fn ask_patiently(&self, worker: &mut Option<Worker>, item: &Item<'_>) -> Outcome {
        let mut last = Outcome::Failed { status: Status::Failed, reason: String::new() };
        for _ in 0..=self.config.retries {
            match self.ask(worker, item) {
                Ok(outcome) => return outcome,
                Err(Trouble { late, reason }) => {
                    *worker = None;
                    let status = if late { Status::Timeout } else { Status::Failed };
                    last = Outcome::Failed { status, reason };
                }
            }
        }
        last
    }

    fn ask(&self, worker: &mut Option<Worker>, item: &Item<'_>) -> Result<Outcome, Trouble> {
        if worker.is_none() {
            *worker = Some(Worker::start(&self.config.command).map_err(|e| Trouble::broken(format!("{e:#}")))?);
        }
        let Some(worker) = worker.as_mut() else { return Err(Trouble::broken("no process".into())) };
        let id = self.asked.fetch_add(1, Ordering::Relaxed) as u64;
        let seconds = self.config.timeout_seconds + if worker.is_fresh() { self.config.start_seconds } else { 0.0 };
        let line = worker.ask(request(id, item).to_string(), Duration::from_secs_f64(seconds))?;
        let reply = parse(&line, id).map_err(|reason| worker.trouble(reason))?;
        if let Some(error) = reply.error {
            // The program is well and says that this row cannot be scored: asking again would not help.
            return Ok(Outcome::Failed { status: Status::Failed, reason: format!("it says: {error}") });
        }
        let score = reply.score.filter(|s| s.is_finite());
        let score = score.ok_or_else(|| worker.trouble(format!("no finite score in {}", shown(&line))))?;
        let by_score = if score >= self.config.correct_at { Status::Correct } else { Status::Wrong };
        let answer = reply.answer.map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_string));
        Ok(Outcome::Scored { score, status: reply.status.unwrap_or(by_score), answer })
    }
}

/// What a row looks like to the program.
fn request(id: u64, item: &Item<'_>) -> Value {
    let p = item.problem;
    json!({
        "id": id,
        "prompt": p.question(),
        "messages": p.messages,
        "response": item.response,
        "gold": p.gold,
        "extra": p.extra,
        "source": p.source,
        "tokens": item.tokens,
        "truncated": item.truncated,
    })
}

fn parse(line: &str, id: u64) -> Result<Reply, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| {
        format!("{} is no JSON ({e}); what is printed beside the answers belongs on standard error", shown(line))
    })?;
    if let Some(score) = value.as_f64() {
        return Ok(Reply { id: None, score: Some(score), status: None, answer: None, error: None });
    }
    let reply: Reply = serde_json::from_value(value)
        .map_err(|e| format!("{}: {e}; expected a number or an object with score", shown(line)))?;
    match reply.id {
        Some(other) if other != id => Err(format!("an answer to row {other} where one to row {id} was due")),
        _ => Ok(reply),
    }
}

/// The beginning of a line, for errors.
fn shown(line: &str) -> String {
    let short: String = line.chars().take(120).collect();
    if short.len() < line.len() { format!("{short:?}...") } else { format!("{short:?}") }
}

/// A lock whose holder panicked is still good: every value behind it is whole between statements.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

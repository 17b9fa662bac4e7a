//! Progress on stderr: a bar on a terminal, a plain line now and then in a log.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static QUIET: AtomicBool = AtomicBool::new(false);

/// How often a log hears of a long job.
const LOG_EVERY: Duration = Duration::from_secs(15);

/// Silences progress for the whole process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// One long job.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    label: String,
    plain: bool,
    last: Instant,
}

impl Progress {
    /// A bar of `total` steps (responses, tokens, rollout steps).
    pub fn new(label: &str, total: u64) -> Progress {
        let quiet = QUIET.load(Ordering::Relaxed);
        let terminal = std::io::stderr().is_terminal();
        let target =
            if terminal && !quiet { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = "{prefix:>10} {bar:28.cyan/dim} {human_pos}/{human_len} {elapsed} < {eta} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(label.to_string());
        Progress { bar, label: label.to_string(), plain: !terminal && !quiet, last: Instant::now() }
    }

    /// A bar of `total` bytes.
    pub fn bytes(label: &str, total: u64) -> Progress {
        let progress = Progress::new(label, total);
        let style = "{prefix:>10} {bar:28.cyan/dim} {bytes}/{total_bytes} {bytes_per_sec} < {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            progress.bar.set_style(style.progress_chars("━╸─"));
        }
        progress
    }

    /// A count of things whose number is not known yet.
    pub fn counter(label: &str) -> Progress {
        let progress = Progress::new(label, 0);
        if let Ok(style) = ProgressStyle::with_template("{prefix:>10} {human_pos} {elapsed} {wide_msg}") {
            progress.bar.set_style(style);
        }
        progress
    }

    pub fn inc(&mut self, n: u64) {
        self.bar.inc(n);
        if self.plain && self.last.elapsed() >= LOG_EVERY {
            self.last = Instant::now();
            let of = self.bar.length().filter(|n| *n > 0).map_or(String::new(), |n| format!("/{n}"));
            eprintln!("{}: {}{of} {}", self.label, self.bar.position(), self.bar.message());
        }
    }

    /// What stands beside the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A line on stderr for people, unless they asked for quiet.
pub fn say(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        eprintln!("{text}");
    }
}

//! One process of a reward program: a line in, a line out, within a time.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest answer of a program, in bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// What is kept of its standard error, for errors.
const LAST_WORDS: usize = 2_000;
/// Time that a program has to end by itself once its input is closed.
const GRACE: Duration = Duration::from_millis(500);

/// Why a row has no answer.
#[derive(Debug)]
pub struct Trouble {
    /// It was the time.
    pub late: bool,
    pub reason: String,
}

impl Trouble {
    pub fn broken(reason: String) -> Trouble {
        Trouble { late: false, reason }
    }
}

/// A running process. Dropping it ends the process, and what it started.
pub struct Worker {
    child: Child,
    /// To the thread that writes: a program that does not read must not hold us up.
    rows: Option<Sender<String>>,
    /// From the thread that reads; an error is the end of its output or a line too long.
    lines: Receiver<Result<String, String>>,
    last_words: Arc<Mutex<Vec<u8>>>,
    /// The thread that keeps them.
    listener: Option<JoinHandle<()>>,
    fresh: bool,
}

impl Worker {
    pub fn start(command: &[String]) -> Result<Worker> {
        let (program, arguments) = command.split_first().context("command is empty: expected a program")?;
        let mut process = Command::new(program);
        process.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C is for us, and a program's children end with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let mut child = process
            .spawn()
            .with_context(|| format!("cannot start {program:?}: expected a program on the PATH, or a path to one"))?;
        let (rows, to_write) = channel::<String>();
        let (read, lines) = channel();
        let last_words = Arc::new(Mutex::new(Vec::new()));
        if let Some(mut stdin) = child.stdin.take() {
            std::thread::spawn(move || {
                for row in to_write {
                    // A program that is gone is seen where its answer is waited for.
                    if stdin.write_all(row.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                        break;
                    }
                }
            });
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || read_lines(stdout, &read));
        }
        let listener = child.stderr.take().map(|mut stderr| {
            let kept = Arc::clone(&last_words);
            std::thread::spawn(move || {
                let mut buffer = [0u8; 1024];
                while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                    let mut kept = super::locked(&kept);
                    kept.extend_from_slice(&buffer[..n]);
                    let surplus = kept.len().saturating_sub(LAST_WORDS);
                    kept.drain(..surplus);
                }
            })
        });
        Ok(Worker { child, rows: Some(rows), lines, last_words, listener, fresh: true })
    }

    /// It has not answered yet.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Sends a row and waits for its line.
    pub fn ask(&mut self, row: String, patience: Duration) -> Result<String, Trouble> {
        // Output before any question would be taken for the answer to a later row.
        if let Ok(Ok(line)) = self.lines.try_recv() {
            return Err(self.trouble(format!("it wrote {} before it was asked", super::shown(&line))));
        }
        let sent = self.rows.as_ref().is_some_and(|rows| rows.send(row + "\n").is_ok());
        if !sent {
            return Err(self.trouble("it ended".into()));
        }
        let line = match self.lines.recv_timeout(patience) {
            Ok(Ok(line)) => line,
            Ok(Err(end)) => return Err(self.trouble(end)),
            Err(RecvTimeoutError::Disconnected) => return Err(self.trouble("it ended".into())),
            Err(RecvTimeoutError::Timeout) => {
                let mut trouble = self.trouble(format!("no answer within {:.1} s", patience.as_secs_f64()));
                trouble.late = true;
                return Err(trouble);
            }
        };
        self.fresh = false;
        Ok(line)
    }

    /// An error with how the process ended and its last words.
    pub fn trouble(&mut self, reason: String) -> Trouble {
        // A process that closed its output is about to end: how tells more than that.
        let status = self.ended_within(Duration::from_millis(100));
        if status.is_some() {
            // What it wrote last may still be on its way; a child of its may hold the pipe open for longer.
            let all_heard = || self.listener.as_ref().is_none_or(JoinHandle::is_finished);
            let start = Instant::now();
            while !all_heard() && start.elapsed() < Duration::from_millis(500) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let how = status.map_or_else(String::new, |status| format!(" ({status})"));
        let words = super::locked(&self.last_words).clone();
        let words = String::from_utf8_lossy(&words);
        let words = words.trim();
        let quoted = if words.is_empty() { String::new() } else { format!("; on standard error: {words}") };
        Trouble::broken(format!("{reason}{how}{quoted}"))
    }

    fn ended_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
                _ => return None,
            }
        }
    }

    /// Ends the process and those it started.
    fn kill(&mut self) {
        #[cfg(unix)]
        if let Ok(id) = i32::try_from(self.child.id()) {
            // It fails where the group has ended already, which is what we want.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closed input asks an idle program to end; one that owes an answer gets no grace.
        let idle = self.rows.take().is_some() && !self.fresh;
        if idle {
            self.ended_within(GRACE);
        }
        self.kill();
    }
}

/// Lines of a program's output until it ends, none longer than allowed.
fn read_lines(stdout: impl Read, to: &Sender<Result<String, String>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let sent = match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => {
                drop(to.send(Err("it ended its output".into())));
                return;
            }
            Ok(n) if n as u64 == LONGEST_LINE => {
                drop(to.send(Err(format!("a line of more than {LONGEST_LINE} bytes"))));
                return;
            }
            Ok(_) if line.iter().all(u8::is_ascii_whitespace) => Ok(()),
            Ok(_) => to.send(Ok(String::from_utf8_lossy(&line).trim().to_string())),
        };
        if sent.is_err() {
            return;
        }
    }
}

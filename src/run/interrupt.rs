//! Ctrl-C: the first asks the run to finish its step and save, the second ends it at once.

use super::progress::say;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C and for SIGTERM from now on.
pub fn install() -> Result<()> {
    let handler = || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nfinishing what is under way; press Ctrl-C again to end at once");
    };
    ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")
}

/// Asks this process to end once its standard input does: a child that nobody waits for any more saves and stops.
pub fn when_stdin_ends() {
    std::thread::spawn(|| {
        let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        if !REQUESTED.swap(true, Ordering::SeqCst) {
            let how = ended.map_or_else(|e| format!("standard input is lost ({e})"), |_| "standard input ended".into());
            eprintln!("{how}: finishing what is under way");
        }
    });
}

/// Says that the run ends before its work is done, because someone asked it to.
pub fn stop(text: &str) {
    say(text);
    STOPPED.store(true, Ordering::SeqCst);
}

/// True if the run ended before its work was done. A run that was asked to end when nothing was left to do has ended well.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// True once someone asked the run to end.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

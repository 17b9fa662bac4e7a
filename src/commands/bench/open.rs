//! The opening of a checkpoint.

use super::median;
use crate::cli::BenchOpenArgs;
use crate::model::Model;
use crate::run::manifest::peak_memory_mib;
use crate::run::reading::{files_of, forget, read_through};
use anyhow::Result;
use serde_json::json;
use std::time::Instant;

/// Seconds to open a checkpoint, and to read its files' bytes and do nothing with them: the disk's part of it, or the
/// page cache's.
pub fn run(args: &BenchOpenArgs) -> Result<()> {
    const AT_ONCE: usize = 4 << 20;
    let files = files_of(&args.model, "safetensors")?;
    let forget_all = || files.iter().filter(|_| args.cold).try_for_each(|path| forget(path));
    let (mut opens, mut reads, mut bytes, mut buffer) = (Vec::new(), Vec::new(), 0, vec![0u8; AT_ONCE]);
    for _ in 0..args.repeat.max(1) {
        forget_all()?;
        let start = Instant::now();
        let model = Model::open(&args.model)?;
        opens.push(start.elapsed().as_secs_f64());
        drop(model);
        forget_all()?;
        let start = Instant::now();
        bytes = 0;
        for path in &files {
            bytes += read_through(path, &mut buffer)?;
        }
        reads.push(start.elapsed().as_secs_f64());
    }
    let line = json!({
        "bytes": bytes, "seconds": median(&mut opens), "read_seconds": median(&mut reads), "cold": args.cold,
        "peak_rss_mib": peak_memory_mib(),
    });
    println!("{line}");
    Ok(())
}

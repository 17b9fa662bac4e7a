//! `bupo report`: one page of saved results.

use crate::cli::ReportArgs;
use crate::report::{Limits, Place, collect, page};
use crate::run::atomic::write_file_atomic;
use crate::run::progress::say;
use anyhow::Result;

pub fn run(args: &ReportArgs) -> Result<()> {
    let limits = Limits { completions: args.completions, ..Limits::default() };
    let items = collect(&Place::anywhere(), &args.paths, limits)?;
    let names: Vec<String> =
        args.paths.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
    let shown = items.len();
    let page = page(&format!("{} · bupo", names.join(", ")), items)?;
    write_file_atomic(&args.out, page.as_bytes())?;
    let size = page.len() as f64 / 1e6;
    say(&format!("{} shows {shown} found items ({size:.1} MB, opens in any browser)", args.out.display()));
    Ok(())
}

//! `bupo serve`: a local page that follows runs.

use crate::cli::ServeArgs;
use crate::serve::serve;
use anyhow::Result;

pub fn run(args: &ServeArgs) -> Result<()> {
    serve(&args.dir, args.host, args.port, |address| {
        println!("{} is served at http://{address}/ (Ctrl-C ends it)", args.dir.display());
    })
}

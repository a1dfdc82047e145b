//! `qbm bitmap list`: which bitmaps a disk has.

use std::io::{self, Write as _};
use std::path::PathBuf;

use serde_json::Value;

use crate::dirty::Facts;
use crate::failure::Outcome;
use crate::open::{self, Share};
use crate::output::Output;

const AFTER_HELP: &str = "\
In JSON, each bitmap has the keys of QEMU's query-block, sizes in bytes:
  name, granularity  what it is called, and how many bytes one bit stands for
  count              how many bytes are dirty; null where it is inconsistent
  recording          writes are recorded in it
  busy               a backup uses it
  persistent         it has a file, and outlives the program that has the disk open
  inconsistent       changes may be missing in it; qbm check says why, and what repairs it
and QBM's own:
  type, file         what its bits mean, and its file as the descriptor names it
  epoch              the random id of the point from which it knows what changed; a new one at each --clear
  start-length       the disk's length at that point

Examples:
  qbm bitmap list disk.qbm
  qbm bitmap list --output json disk.qbm | jq -r '.[] | select(.recording) | .name'
      The names of those that record.";

/// List a disk's bitmaps: granularity, flags, how much is dirty
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    #[command(flatten)]
    share: Share,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let bitmaps = Facts::of(&open::shared(&args.disk, &args.share)?)?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Human if bitmaps.is_empty() => writeln!(out, "no bitmaps")?,
        Output::Human => {
            for bitmap in &bitmaps {
                writeln!(out, "{}", bitmap.line())?;
            }
        }
        Output::Json => {
            let list: Value = bitmaps.iter().map(Facts::to_json).collect();
            writeln!(out, "{list:#}")?;
        }
    }
    Ok(())
}

//! `qbm snapshot`: what a disk is now stays, and the disk goes on above it.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::Granularity;
use serde_json::json;

use crate::failure::Outcome;
use crate::open;
use crate::output::{Output, shown};
use crate::size::parse_granularity;

const AFTER_HELP: &str = "\
DISK.qbm keeps its name and its bitmaps, and goes on in a new image, with an allocation bitmap over NAME. NAME is the disk as it
was: a descriptor of the image that it had. Nobody may write to that one any more but `qbm commit`, which puts into it what
came behind the snapshot.

A hypervisor that has the disk open takes the snapshot itself, by qbm_snapshot(), while its guest goes on.

Examples:
  qbm snapshot disk.qbm before-upgrade.qbm
      The disk as it is now is before-upgrade.qbm from now on.
  qbm commit disk.qbm
      All went well: what was written since goes into before-upgrade.qbm too.
  qbm info --backing-chain disk.qbm
      What the disk stands on.";

/// Keep a disk as it is now under another name, and go on above it
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The unit in which the disk takes things from the snapshot: a power of two from 512 bytes to 2G [default: as before,
    /// or 64k]
    #[arg(short, long, value_name = "BYTES", value_parser = parse_granularity)]
    granularity: Option<Granularity>,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// The snapshot's descriptor: a new file in the disk's folder, named without one
    #[arg(value_name = "NAME")]
    name: String,
}

pub fn run(args: &Args) -> Outcome {
    let disk = open::to_write(&args.disk)?;
    disk.snapshot(&args.name, args.granularity)?;
    let image = disk.layer(0)?.path;
    disk.close()?;
    if args.quiet {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let facts = json!({"filename": args.disk, "snapshot": args.name, "image": image});
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => writeln!(
            out,
            "{} is what {} was; the disk goes on in {}",
            shown(&args.name),
            shown(&args.disk),
            shown(&image)
        )?,
    }
    Ok(())
}

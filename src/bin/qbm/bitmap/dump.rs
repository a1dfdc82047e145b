//! `qbm bitmap dump`: which bytes are dirty.

use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

use crate::dirty::Runs;
use crate::failure::Outcome;
use crate::open::{self, Share};
use crate::output::{Output, hex};
use crate::span::Span;

const AFTER_HELP: &str = "\
Each extent is as long as it can be, and ends at the disk's end at the latest. qbm map --bitmap
tells of what is clean, too.

Examples:
  qbm bitmap dump disk.qbm nightly
      A table of offsets and lengths, in hexadecimal as that of qbm map.
  qbm bitmap dump --output json disk.qbm nightly | jq 'map(.length) | add'
      How many bytes are dirty.";

/// Show the dirty extents of a bitmap
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    #[command(flatten)]
    span: Span,

    #[command(flatten)]
    share: Share,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// The bitmap's name
    bitmap: String,
}

pub fn run(args: &Args) -> Outcome {
    let disk = open::shared(&args.disk, &args.share)?;
    let within = args.span.of(&disk, "dump", &args.disk)?;
    let runs = Runs::new(&disk, &args.bitmap, within, &args.disk)?;
    let mut out = BufWriter::new(io::stdout().lock());
    match args.output {
        Output::Human => {
            writeln!(out, "{:<16}Length", "Offset")?;
            for run in runs {
                let run = run?;
                writeln!(out, "{:<16}{}", hex(run.start()), hex(run.len()))?;
            }
        }
        Output::Json => {
            let mut before = "[";
            for run in runs {
                let run = run?;
                write!(
                    out,
                    "{before}{{ \"start\": {}, \"length\": {} }}",
                    run.start(),
                    run.len()
                )?;
                before = ",\n";
            }
            writeln!(out, "{}]", if before == "[" { before } else { "" })?;
        }
    }
    out.flush()?;
    Ok(())
}

//! `qbm backup prune`: old backups go.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::backup::BackupFolder;
use serde_json::json;

use crate::bar::Bar;
use crate::failure::Outcome;
use crate::output::Output;

const AFTER_HELP: &str = "\
A backup that stays and stands on one that goes becomes a full one first, for which there must be room. It is compared
with its checksums before; where something is damaged, nothing goes. Whatever happens in the middle, every backup that
stays can be restored; the same command does the rest.

Examples:
  qbm backup prune --keep-last 14 /backups/vm1
      The newest 14 stay.";

/// Remove old backups from a folder
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// How many stay, from the newest on: at least 1
    #[arg(long, value_name = "N")]
    keep_last: usize,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing, neither how far it is nor when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The folder of the backups
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let mut folder = BackupFolder::open(&args.folder)?;
    let bar = Bar::new(args.quiet, "pruning");
    let pruned = folder.prune(args.keep_last, &mut |done, total| bar.show(done, total))?;
    drop(bar);
    if args.quiet {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let facts = json!({"removed": pruned.removed, "merged": pruned.merged});
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => {
            for name in &pruned.merged {
                writeln!(out, "{name} is a full one now")?;
            }
            for name in &pruned.removed {
                writeln!(out, "removed {name}")?;
            }
            if pruned.removed.is_empty() {
                writeln!(out, "nothing to remove")?;
            }
        }
    }
    Ok(())
}

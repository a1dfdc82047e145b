//! `qbm backup list`: which points in time a folder has.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::backup::{BackupFolder, BackupPoint};
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::output::{Output, short_size};

const AFTER_HELP: &str = "\
In JSON, each backup has the keys of its record, sizes in bytes:
  name, time         what it is called, and when it was begun (UTC)
  kind, parent       full or incremental, and what it stands on
  source, length     the descriptor that was backed up, and the disk's length
  bitmap, granularity  which bitmap said what had changed, and in which unit
  based-on, starts   the bitmap's epochs before and after
  stored             how many bytes it stores; zeros are not
  reason             why it is a full one, or larger than it had to be
  data-checksum, bitmap-checksum  what qbm backup verify holds against the files

Examples:
  qbm backup list /backups/vm1
  qbm backup list --output json /backups/vm1 | jq -r '.[-1].name'
      The newest.";

/// List the backups in a folder, from the oldest on
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// The folder of the backups
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let folder = BackupFolder::open(&args.folder)?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let list: Value = folder.points().iter().map(facts).collect();
            writeln!(out, "{list:#}")?;
        }
        Output::Human => {
            if folder.points().is_empty() {
                writeln!(out, "no backups")?;
            }
            for point in folder.points() {
                let upon = point
                    .parent
                    .as_ref()
                    .map_or(String::new(), |it| format!(" upon {it}"));
                writeln!(
                    out,
                    "{}  {} of {}{upon}, {} stored",
                    point.name,
                    point.kind().word(),
                    short_size(point.length),
                    short_size(point.stored)
                )?;
            }
            for (name, error) in folder.damaged() {
                writeln!(out, "{name}  damaged: {error}")?;
            }
        }
    }
    Ok(())
}

/// What programs are told of a backup.
pub fn facts(point: &BackupPoint) -> Value {
    json!({
        "name": point.name,
        "time": point.time,
        "kind": point.kind().word(),
        "parent": point.parent,
        "source": point.source,
        "length": point.length,
        "bitmap": point.bitmap,
        "granularity": point.granularity.bytes(),
        "based-on": point.based_on,
        "starts": point.starts,
        "stored": point.stored,
        "reason": point.reason,
        "data-checksum": point.data_checksum,
        "bitmap-checksum": point.bitmap_checksum,
    })
}

//! `qbm backup verify`: whether what a folder has is what was put there.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::backup::BackupFolder;
use serde_json::{Value, json};

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

const AFTER_HELP: &str = "\
Reads all that is stored, and compares it with the checksums of when it was made. A backup is sound only where all
that it stands on is. Exit status 0: all are sound; 1: some are not.

Examples:
  qbm backup verify /backups/vm1
  qbm backup verify --output json /backups/vm1 | jq -r '.[] | select(.error) | .name'
      Those that cannot be restored.";

/// Check that every backup in a folder can be restored as it was made
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
    let bar = Bar::new(false, "verifying");
    let verified = folder.verify(&mut |done, total| bar.show(done, total))?;
    drop(bar);
    let mut found: Vec<(&str, Option<String>)> = verified
        .iter()
        .map(|it| (&*it.name, it.error.as_ref().map(ToString::to_string)))
        .collect();
    found.extend(
        folder
            .damaged()
            .iter()
            .map(|(name, error)| (&**name, Some(error.to_string()))),
    );
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let list: Value = found
                .iter()
                .map(|(name, error)| json!({"name": name, "error": error}))
                .collect();
            writeln!(out, "{list:#}")?;
        }
        Output::Human => {
            if found.is_empty() {
                writeln!(out, "no backups")?;
            }
            for (name, error) in &found {
                match error {
                    None => writeln!(out, "{name}  sound")?,
                    Some(error) => writeln!(out, "{name}  damaged: {error}")?,
                }
            }
        }
    }
    match found.iter().filter(|(_, error)| error.is_some()).count() {
        0 => Ok(()),
        damaged => Err(Failure::Refused(format!(
            "{damaged} of {} backups in {} cannot be restored as they were made",
            found.len(),
            args.folder.display()
        ))),
    }
}

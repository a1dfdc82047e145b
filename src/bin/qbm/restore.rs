//! `qbm restore`: a backup becomes a disk again.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use qbm::ErrorCode;
use qbm::backup::{BackupFolder, Restore, RestoreFormat};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::open::STOP_IT;
use crate::output::{Output, long_size, short_size, shown};
use crate::size::parse_rate;

const AFTER_HELP: &str = "\
All that the backup stands on is compared with its checksums. A new file gets its name when all of it is there and was
found to be what was stored; until then it has none. An image, disk or block device that exists is written to only if
nothing is damaged, and only where it differs; whoever is killed there runs the same command again. A QBM disk that exists
keeps its bitmaps, and they record what the restore changes; a qcow2 that exists keeps its clusters and its backing.
Where a disk's image is restored to and not the disk (-O qbm), its bitmaps become inconsistent; but a disk on a block device
does not notice, and its next backup would miss what was restored.

Examples:
  qbm restore /backups/vm1 --to disk.img
      The newest backup as a raw image.
  qbm restore /backups/vm1@20261101T020000Z --to /dev/vg0/vm1
      That point in time, onto a block device.
  qbm restore /backups/vm1@20261101 --to disk.qbm -O qbm
      The backup whose name begins so, as a QBM disk; if disk.qbm exists, only what differs is written.
  qbm restore /backups/vm1 --to disk.qcow2 -O qcow2
      The newest backup as a qcow2.";

/// Restore a backup to a raw image, a block device, a qcow2 or a QBM disk
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// What is restored to. It is overwritten if it exists
    #[arg(long, value_name = "FILE")]
    to: PathBuf,

    /// What FILE is, or is to be [default: raw, but of a name that ends in .qbm, .qcow2 or .vmdk it must be said]
    #[arg(short = 'O', long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Write at most so many bytes in a second, or with a suffix k, M, G
    #[arg(short, long, value_name = "BYTES", value_parser = parse_rate)]
    rate_limit: Option<u64>,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing, neither how far it is nor when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The folder of the backups, and which of them: its name, the beginning of its name, or latest [default: latest]
    #[arg(value_name = "FOLDER[@POINT]")]
    from: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A raw image or a block device
    Raw,
    /// A QBM disk: a descriptor, and a raw image beside it
    Qbm,
    /// A qcow2 by itself
    Qcow2,
}

pub fn run(args: &Args) -> Outcome {
    let Some(format) = args.format.or_else(|| format_of(&args.to)) else {
        return Err(Failure::Refused(format!(
            "-O must say what {} is to be",
            args.to.display()
        )));
    };
    let (folder, point) = match args.from.rsplit_once('@') {
        // A folder may have that sign in its name.
        Some(_) if Path::new(&args.from).is_dir() => (&*args.from, "latest"),
        Some((_, "")) => {
            return Err(Failure::Refused(format!(
                "behind the @ of {:?} a backup is missing: its name, which is a time, the beginning of that, or latest",
                args.from
            )));
        }
        Some((folder, point)) => (folder, point),
        None => (&*args.from, "latest"),
    };
    let folder = BackupFolder::open(folder)?;
    let point = folder.find(point)?;
    let mut how = Restore::new().format(match format {
        Format::Raw => RestoreFormat::Raw,
        Format::Qbm => RestoreFormat::Qbm,
        Format::Qcow2 => RestoreFormat::Qcow2,
    });
    if let Some(limit) = args.rate_limit {
        how = how.limit(limit);
    }
    let bar = Bar::new(args.quiet, "restoring");
    let restored = how
        .run(&folder, point, &args.to, &mut |done, total| bar.show(done, total))
        .map_err(|error| match error.code() {
            ErrorCode::Locked => Failure::Hint(error, STOP_IT.to_owned()),
            _ => error.into(),
        })?;
    drop(bar);
    if args.quiet {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let facts = json!({"name": point.name, "length": restored.length, "written": restored.written});
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => writeln!(
            out,
            "restored {} to {}: {}, {} written",
            point.name,
            shown(&args.to),
            long_size(restored.length),
            short_size(restored.written)
        )?,
    }
    Ok(())
}

/// Raw, but for a name that promises something else.
fn format_of(path: &Path) -> Option<Format> {
    let end = path.extension().unwrap_or_default();
    let other = ["qbm", "qcow2", "vmdk"]
        .iter()
        .any(|it| end.eq_ignore_ascii_case(it));
    (!other).then_some(Format::Raw)
}

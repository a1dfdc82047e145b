//! `qbm backup`: a backup, and as subcommands what there is, whether it is sound, and how it is made fewer.

mod list;
mod prune;
mod verify;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap::error::ErrorKind;
use qbm::backup::{Backup, BackupFolder, BackupKind};
use qbm::{Disk, ErrorCode, Granularity};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::forms::{Forms, Usage};
use crate::open;
use crate::output::{Output, short_size, shown};
use crate::size::{parse_granularity, parse_rate};

const AFTER_HELP: &str = "\
The first backup adds the bitmap to the disk and copies all of it; each later one copies what the bitmap says was
written since. Where it cannot be known what was written since the newest backup (the bitmap was cleared, used for
another folder, a full backup did not end, or the disk was rolled back), it is a full one, and the line that is
printed says why. One folder is for one disk, and one bitmap for one folder.

A backup appears in the folder when it is whole and durable, and not before. Whoever kills this command loses nothing:
the next one clears up and goes on. No program may have the disk open meanwhile; a running hypervisor backs up its
disks itself.

Examples:
  qbm backup disk.qbm --bitmap nightly --to /backups/vm1
      Every night, from cron: full the first time, then incremental.
  qbm backup disk.qbm --bitmap nightly --to /backups/vm1 --since 20261101T020000Z
      All that has changed since that backup, so that those between are not needed to restore this one.
  qbm backup list /backups/vm1
      Which points in time there are.
  qbm backup verify /backups/vm1
      Whether all of them can be restored.
  qbm backup prune --keep-last 14 /backups/vm1
      The newest 14 stay.
  qbm restore /backups/vm1@20261101T020000Z --to disk.img
      The way back.";

/// Back a disk up into a folder; list, verify and prune backups
pub type Args = Forms<Run, Keep>;

#[derive(Subcommand)]
pub enum Keep {
    List(list::Args),
    Verify(verify::Args),
    Prune(prune::Args),
}

/// Back a disk up into a folder; list, verify and prune backups
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Run {
    /// The bitmap that says what was written since the backup before. One that does not exist is added
    #[arg(short = 'B', long, value_name = "NAME")]
    bitmap: String,

    /// The folder of the backups. It is made, if what it is to be in exists
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,

    /// Upon the backup POINT in place of the newest one: larger, but those between are not needed to restore it
    #[arg(long, value_name = "POINT", conflicts_with = "full")]
    since: Option<String>,

    /// A full backup, whatever the bitmap says
    #[arg(long)]
    full: bool,

    /// The disk is the one that the folder's backups are of, though its descriptor has another path now
    #[arg(long)]
    moved: bool,

    /// How many bytes one bit stands for, where the bitmap has to be added: a power of two from 512 to 2G [default: 64k]
    #[arg(short, long, value_name = "BYTES", value_parser = parse_granularity)]
    granularity: Option<Granularity>,

    /// At most so many bytes in a second, or with a suffix k, M, G
    #[arg(short, long, value_name = "BYTES", value_parser = parse_rate)]
    rate_limit: Option<u64>,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing, neither how far it is nor when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// One too many
    #[arg(value_name = "FOLDER", hide = true)]
    more: Vec<String>,
}

impl Usage for Run {
    const ABOUT: &'static str = "Back a disk up into a folder; list, verify and prune backups";
    const USAGE: &'static str = "qbm backup [OPTIONS] --bitmap <NAME> --to <FOLDER> <DISK.qbm>\n       \
        qbm backup list [OPTIONS] <FOLDER>\n       \
        qbm backup verify [OPTIONS] <FOLDER>\n       \
        qbm backup prune [OPTIONS] --keep-last <N> <FOLDER>";
}

pub fn run(args: &Args) -> Outcome {
    match args {
        Args::Options(args) => back_up(args),
        Args::Subcommand(Keep::List(args)) => list::run(args),
        Args::Subcommand(Keep::Verify(args)) => verify::run(args),
        Args::Subcommand(Keep::Prune(args)) => prune::run(args),
    }
}

fn back_up(args: &Run) -> Outcome {
    if let Some(more) = args.more.first() {
        let words = format!("{more:?} is one name too many: the folder of the backups comes behind --to\n");
        clap::Error::raw(ErrorKind::UnknownArgument, words).exit();
    }
    // First, so that a wrong disk makes no folder.
    let disk = open_disk(&args.disk)?;
    let mut folder = BackupFolder::open_or_create(&args.to)?;
    let mut how = Backup::new(&args.bitmap).full(args.full).moved(args.moved);
    if let Some(since) = &args.since {
        how = how.since(since);
    }
    if let Some(granularity) = args.granularity {
        how = how.granularity(granularity);
    }
    if let Some(limit) = args.rate_limit {
        how = how.limit(limit);
    }
    let bar = Bar::new(args.quiet, "backing up");
    let finished = how.run(&disk, &mut folder, &mut |done, total| bar.show(done, total));
    drop(bar);
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => {
            folder.remove_if_new();
            return Err(hint(error, args));
        }
    };
    let closed = disk.close();
    // What failed the thaw fails the close, too, and is told below with what has become of the backup.
    if finished.not_thawed.is_none() {
        closed?;
    }
    let point = &finished.point;
    if !args.quiet {
        let mut out = io::stdout().lock();
        match args.output {
            Output::Json => {
                let mut facts = list::facts(point);
                facts["not-thawed"] = json!(finished.not_thawed);
                writeln!(out, "{facts:#}")?;
            }
            Output::Human => {
                let upon = match (&point.parent, point.kind()) {
                    (Some(parent), BackupKind::Incremental) => format!(" upon {parent}"),
                    _ => String::new(),
                };
                let why = if point.reason.is_empty() {
                    String::new()
                } else {
                    format!(": {}", shown(&point.reason))
                };
                writeln!(
                    out,
                    "{} {} backup{upon}, {} stored{why}",
                    point.name,
                    point.kind().word(),
                    short_size(point.stored)
                )?;
            }
        }
    }
    match finished.not_thawed {
        None => Ok(()),
        Some(why) => Err(Failure::Refused(format!(
            "the backup {} is made, but its bitmap could not be told ({why}); the next one will be larger",
            point.name
        ))),
    }
}

fn open_disk(path: &Path) -> Outcome<Disk> {
    open::to_write(path).map_err(|failure| match failure {
        Failure::Hint(error, _) if error.code() == ErrorCode::Locked && error.message().contains("(qemu") => {
            let hint = open::stop_it_and_take(&error);
            Failure::Hint(error, hint)
        }
        // In place of the general hint: here, too, the other program can do it.
        Failure::Hint(error, _) if error.code() == ErrorCode::Locked => Failure::Hint(
            error,
            "who has the disk open must back it up itself, or close it first".to_owned(),
        ),
        other => other,
    })
}

fn hint(error: qbm::Error, args: &Run) -> Failure {
    let hint = match error.code() {
        ErrorCode::BitmapState => format!(
            "\"qbm bitmap --enable {} {}\"; the next backup is a full one then",
            args.disk.display(),
            args.bitmap
        ),
        ErrorCode::InvalidArgument if error.message().contains("was moved") => "--moved".to_owned(),
        ErrorCode::InvalidArgument if error.message().contains("a new series") => "--full".to_owned(),
        _ => return error.into(),
    };
    Failure::Hint(error, hint)
}

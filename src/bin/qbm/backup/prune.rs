//! `qbm backup prune`: old backups go.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use qbm::backup::{BackupFolder, Keep};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::Outcome;
use crate::output::Output;

const AFTER_HELP: &str = "\
What any of the rules keeps stays, and the newest backup in any case. Days, weeks (from Monday) and months are those of UTC;
of each the newest backup stays, and those without a backup do not count. --keep-within counts from the newest backup, not
from now.

A backup that stays and stands on one that goes takes over what it needs of that one first, and becomes a full one where
nothing below it stays; for this there must be room. It is compared with its checksums before; where something is
damaged, nothing goes. Whatever happens in the middle, every backup that stays can be restored; the same command does the
rest.

Examples:
  qbm backup prune --keep-last 14 /backups/vm1
      The newest 14 stay.
  qbm backup prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run /backups/vm1
      Say what would go.
  qbm backup prune --keep-within 2m14d /backups/vm1
      All of the last two months and two weeks stay.";

/// Remove old backups from a folder
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP, group = clap::ArgGroup::new("rule").required(true).multiple(true))]
pub struct Args {
    /// Keep the newest N
    #[arg(long, value_name = "N", group = "rule")]
    keep_last: Option<usize>,

    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N", group = "rule")]
    keep_daily: Option<usize>,

    /// Keep the newest of each of the last N weeks that have one
    #[arg(long, value_name = "N", group = "rule")]
    keep_weekly: Option<usize>,

    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N", group = "rule")]
    keep_monthly: Option<usize>,

    /// Keep all that are no older than this, counted from the newest: numbers with y, m, w, d or h (366 days, 31 days, 7
    /// days, a day, an hour), such as 1y6m or 36h
    #[arg(long, value_name = "DURATION", value_parser = duration, group = "rule")]
    keep_within: Option<Duration>,

    /// Say what would go, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

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
    let mut keep = Keep::new()
        .last(args.keep_last.unwrap_or(0))
        .daily(args.keep_daily.unwrap_or(0))
        .weekly(args.keep_weekly.unwrap_or(0))
        .monthly(args.keep_monthly.unwrap_or(0));
    if let Some(within) = args.keep_within {
        keep = keep.within(within);
    }
    let pruned = if args.dry_run {
        folder.would_prune(&keep)?
    } else {
        let bar = Bar::new(args.quiet, "pruning");
        folder.prune(&keep, &mut |done, total| bar.show(done, total))?
    };
    if args.quiet {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let merged = pruned.merged.iter();
            let merged = merged.map(|it| json!({"name": it.name, "parent": it.parent}));
            let facts = json!({
                "dry-run": args.dry_run,
                "removed": pruned.removed,
                "merged": merged.collect::<Vec<_>>(),
            });
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => {
            let (becomes, removed) = if args.dry_run {
                ("would be", "would remove")
            } else {
                ("is", "removed")
            };
            for merged in &pruned.merged {
                match &merged.parent {
                    None => writeln!(out, "{} {becomes} a full one now", merged.name)?,
                    Some(parent) => writeln!(out, "{} {becomes} one upon {parent} now", merged.name)?,
                }
            }
            for name in &pruned.removed {
                writeln!(out, "{removed} {name}")?;
            }
            if folder.points().is_empty() {
                writeln!(out, "no backups")?;
            } else if pruned.removed.is_empty() {
                writeln!(out, "nothing to remove")?;
            }
        }
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    let none = || format!("{text:?} is no duration; write it as 2m14d or 36h");
    let mut rest = text;
    let mut seconds = 0u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let unit = match behind.chars().next() {
            Some('y') => 366 * DAY,
            Some('m') => 31 * DAY,
            Some('w') => 7 * DAY,
            Some('d') => DAY,
            Some('h') => HOUR,
            _ => return Err(none()),
        };
        let number: u64 = number.parse().map_err(|_| none())?;
        seconds = number
            .checked_mul(unit)
            .and_then(|more| seconds.checked_add(more))
            .ok_or_else(none)?;
        rest = &behind[1..];
    }
    if text.is_empty() {
        return Err(none());
    }
    Ok(Duration::from_secs(seconds))
}

//! `qbm check`: whether a disk's files are as they must be, and repairs.
//!
//! Invariant: the exit codes are qemu-img check's: 0 sound, 1 no (whole) check, 2 corruptions, 3 leaks and nothing worse.

use std::io::{self, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use qbm::{CheckOptions, CheckReport, ErrorCode, Finding, FindingKind, Repair, Severity};
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::letters::Described;
use crate::open::{self, Share};
use crate::output::{Output, counted, shown};

const AFTER_HELP: &str = "\
Looked at are the descriptor, the files that it names, the bits in them, the state file, whether others wrote to the
image, the images below, and files that a crash has left behind. A disk that cannot be opened can be checked too. No
repair takes anything from an image.

What -r repairs:
  leaks   files that no descriptor in the folder names are removed, and
          nothing else is changed
  all     that; bits behind the disk's end are cleared; a disk that was not
          closed is recovered; a state file that is damaged or missing is made
          anew, and then every bit of every bitmap set, as nothing is known of
          the last user
  dirty   every bit is set in bitmaps that are inconsistent, or are so since
          others wrote to the image: the next backup copies everything. A bitmap
          whose file is missing or too short gets a new one
  trust   the image is taken as it is: that others wrote to it does not count.
          Only before an open for writing has made the bitmaps inconsistent;
          from then on writes went by unrecorded, and only -r dirty helps

Exit status, as qemu-img check's and after repairs: 0 sound; 1 something could not be checked or repaired; 2 corruptions;
3 leaks and nothing worse. Notes count for nothing.

Examples:
  qbm check disk.qbm
  qbm check -r all disk.qbm
      After a crash: cleans up, and recovers the disk.
  qbm check --checksum --output json template.qbm
      Reads all of the image, and compares it with QBM.image.checksum.";

/// Check that a disk's files are as they must be, and repair them
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Repair what was found
    #[arg(short, long, value_name = "WHAT", conflicts_with = "force_share")]
    repair: Option<What>,

    /// Read the image, and compare it with the checksum that the descriptor has
    #[arg(long)]
    checksum: bool,

    /// Print nothing for people, neither progress nor what was found: the exit code says it
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    share: Share,

    #[command(flatten)]
    described: Described,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Remove leftover files, and nothing else
    Leaks,
    /// That, and all that needs no decision
    All,
    /// Set every bit of bitmaps that cannot be trusted
    Dirty,
    /// Take the image as it is
    Trust,
}

impl From<What> for Repair {
    fn from(what: What) -> Self {
        match what {
            What::Leaks => Self::Leaks,
            What::All => Self::All,
            What::Dirty => Self::Dirty,
            What::Trust => Self::Trust,
        }
    }
}

/// What to exit with.
pub fn run(args: &Args) -> Outcome<ExitCode> {
    let report = check(args)?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{:#}", to_json(args, &report))?,
        Output::Human if args.quiet => {}
        Output::Human => print_human(args, &report, &mut out)?,
    }
    Ok(code(&report))
}

fn check(args: &Args) -> Outcome<CheckReport> {
    let watched = !args.quiet && io::stderr().is_terminal();
    let mut shown = None;
    let report = CheckOptions::new()
        .repair(args.repair.map_or(Repair::None, Into::into))
        .checksum(args.checksum)
        .no_lock(args.share.force_share)
        .check(&args.disk, &mut |done, total| {
            let percent = done.saturating_mul(100) / total.max(1);
            if watched && shown != Some(percent) {
                shown = Some(percent);
                // Where it cannot be shown, it is done all the same.
                let _ = write!(io::stderr(), "\r{percent:3} %");
            }
            ControlFlow::Continue(())
        });
    if shown.is_some() {
        let _ = write!(io::stderr(), "\r     \r");
    }
    let report = report.map_err(|error| match error.code() {
        ErrorCode::Locked if args.repair.is_some() => {
            Failure::Hint(error, "a repair needs the disk for itself".to_owned())
        }
        ErrorCode::Locked => {
            Failure::Hint(error, "-U checks it all the same, as it is in passing".to_owned())
        }
        _ => Failure::Engine(error),
    })?;
    let image_named = report
        .findings
        .iter()
        .find(|it| it.kind == FindingKind::DescriptorInvalid && !open::begins_like_json(&args.disk));
    match image_named {
        Some(finding) => Err(Failure::Refused(format!(
            "cannot check {}: {} ({})",
            args.disk.display(),
            finding.message,
            open::NO_DESCRIPTOR
        ))),
        None => Ok(report),
    }
}

fn code(report: &CheckReport) -> ExitCode {
    let any = |severity| report.remaining(severity) > 0;
    ExitCode::from(if any(Severity::Error) {
        1
    } else if any(Severity::Corruption) {
        2
    } else if any(Severity::Leak) {
        3
    } else {
        0
    })
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Corruption => "corruption",
        Severity::Leak => "leak",
        Severity::Note => "note",
        Severity::Error => "error",
    }
}

fn print_human(args: &Args, report: &CheckReport, out: &mut impl io::Write) -> io::Result<()> {
    for Finding {
        severity,
        message,
        fixed,
        ..
    } in &report.findings
    {
        let fixed = if *fixed { "repaired " } else { "" };
        writeln!(out, "{fixed}{}: {}", word(*severity), shown(message))?;
    }
    let left = |severity| report.remaining(severity);
    let (corruptions, leaks, errors) = (
        left(Severity::Corruption),
        left(Severity::Leak),
        left(Severity::Error),
    );
    let disk = shown(&args.disk);
    let repaired = repaired(report);
    if corruptions + leaks + errors == 0 {
        return match repaired {
            Some(repaired) => writeln!(out, "{disk}: {repaired}; no errors are left"),
            None => writeln!(out, "{disk}: no errors were found"),
        };
    }
    writeln!(
        out,
        "{disk}: {}, {}, {} that could not be checked or repaired{}",
        counted(corruptions, "corruption"),
        counted(leaks, "leak"),
        counted(errors, "thing"),
        repaired.map_or_else(String::new, |it| format!("; {it}"))
    )?;
    match how_to_repair(args, report) {
        Some(commands) => writeln!(out, "to repair: {commands}"),
        None => Ok(()),
    }
}

/// The commands that repair what is left, if any does. What was tried, and has failed, is none.
fn how_to_repair(args: &Args, report: &CheckReport) -> Option<String> {
    let tried = args.repair.map(Repair::from);
    let left = |it: &&Finding| {
        !it.fixed && matches!(it.severity, Severity::Corruption | Severity::Leak) && it.repair != tried
    };
    let left: Vec<&Finding> = report.findings.iter().filter(left).collect();
    let any = |repairs: &[Repair]| {
        left.iter()
            .any(|it| it.repair.is_some_and(|it| repairs.contains(&it)))
    };
    let command = |what: &str| format!("qbm check -r {what} {}", shown(&args.disk));
    let mut commands = Vec::new();
    if any(&[Repair::Dirty]) {
        // What stands in the way of an open stands in the way of the others.
        commands.push(command("dirty"));
        if left.iter().any(|it| it.kind == FindingKind::ForeignWrites) {
            commands[0].push_str(" (or -r trust)");
        }
    }
    if any(&[Repair::Leaks, Repair::All]) {
        commands.push(command("all"));
    }
    (!commands.is_empty()).then(|| commands.join(", then "))
}

/// How much was repaired, if anything was.
fn repaired(report: &CheckReport) -> Option<String> {
    let fixed = [(Severity::Corruption, "corruption"), (Severity::Leak, "leak")];
    let fixed: Vec<String> = fixed
        .into_iter()
        .map(|(severity, what)| (report.fixed(severity), what))
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| counted(count, what))
        .collect();
    (!fixed.is_empty()).then(|| format!("{} repaired", fixed.join(" and ")))
}

/// qemu-img's keys, which are left out where nothing was repaired, as it does; and the findings.
fn to_json(args: &Args, report: &CheckReport) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|it| {
            json!({
                "kind": it.kind.word(),
                "severity": word(it.severity),
                "subject": it.subject,
                "message": it.message,
                "fixed": it.fixed,
            })
        })
        .collect();
    let mut value = json!({
        "filename": args.disk.to_string_lossy(),
        "format": "qbm",
        "check-errors": report.remaining(Severity::Error),
        "findings": findings,
    });
    for (key, count) in [
        ("corruptions", report.remaining(Severity::Corruption)),
        ("leaks", report.remaining(Severity::Leak)),
        ("corruptions-fixed", report.fixed(Severity::Corruption)),
        ("leaks-fixed", report.fixed(Severity::Leak)),
    ] {
        if count > 0 {
            value[key] = json!(count);
        }
    }
    value
}

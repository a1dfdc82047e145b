//! `qbm`, the command-line tool: one file a verb, and nothing here that the library does not do for every caller.
//!
//! May call the library's public face only. Invariant: what went wrong is one line on standard error, and the exit
//! code says whether it did: 0 done, 1 failed, 2 a command line that makes no sense (and `check` and `compare` have codes of their own).

mod backup;
mod bar;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dirty;
mod export;
mod failure;
mod forms;
mod generate;
mod help;
mod image;
mod import;
mod info;
mod letters;
mod map;
mod measure;
mod open;
mod output;
mod rebase;
mod resize;
mod restore;
mod size;
mod snapshot;
mod span;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use failure::Outcome;

const AFTER_HELP: &str = "\
Sizes and offsets are bytes, or have a suffix: k, M, G, T, P or E, powers of 1024 (1.5G is 1610612736).

Exit status: 0 done; 1 failed, with one line on standard error that says why; 2 the command line makes no sense.
qbm check and qbm compare have codes of their own, qemu-img's.

Examples:
  qbm create disk.qbm 20G
      A new disk of 20 GiB, its data in disk-data.img.
  qbm info disk.qbm
      What the disk is made of.
  qbm check -r all disk.qbm
      Whether its files are as they must be; after a crash, it cleans up and recovers.
  qbm resize disk.qbm +5G
      5 GiB more.
  qbm bitmap --add disk.qbm nightly
      From now on, what is written is recorded in the bitmap nightly.
  qbm backup disk.qbm --bitmap nightly --to /backups/vm1
      What was written since the last time, or all of it.
  qbm help create
      Everything about one command.";

/// Disk images made of plain parts: a small JSON descriptor, a data image that stays a raw file or a block device,
/// and one plain file of bits for each bitmap.
///
/// The descriptor is what you name on the command line, by custom a file that ends in .qbm.
#[derive(Parser)]
#[command(name = "qbm", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Tool {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(create::Args),
    Info(info::Args),
    Check(check::Args),
    Map(map::Args),
    Bitmap(bitmap::Args),
    Resize(resize::Args),
    Commit(commit::Args),
    Convert(convert::Args),
    Compare(compare::Args),
    Measure(measure::Args),
    Rebase(rebase::Args),
    Snapshot(snapshot::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Import(import::Args),
    Export(export::Args),
    #[command(hide = true)]
    Completions(generate::CompletionArgs),
    #[command(hide = true)]
    Man(generate::ManArgs),
    #[command(hide = true)]
    Generate(generate::Args),
}

fn run(verb: &Verb) -> Outcome<ExitCode> {
    let done: Outcome = match verb {
        Verb::Check(args) => return check::run(args),
        Verb::Compare(args) => return compare::run(args),
        Verb::Create(args) => create::run(args),
        Verb::Info(args) => info::run(args),
        Verb::Map(args) => map::run(args),
        Verb::Bitmap(args) => bitmap::run(args),
        Verb::Resize(args) => resize::run(args),
        Verb::Commit(args) => commit::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Measure(args) => measure::run(args),
        Verb::Rebase(args) => rebase::run(args),
        Verb::Snapshot(args) => snapshot::run(args),
        Verb::Backup(args) => backup::run(args),
        Verb::Restore(args) => restore::run(args),
        Verb::Import(args) => import::run(args),
        Verb::Export(args) => export::run(args),
        Verb::Completions(args) => generate::completions(args),
        Verb::Man(args) => generate::man(args),
        Verb::Generate(args) => generate::run(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let matches = help::flowing(Tool::command()).get_matches();
    let tool = Tool::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(&tool.verb) {
        Ok(code) => code,
        // Whoever reads has seen enough (`qbm map disk.qbm | head`): nothing failed.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is gone too, only the exit code is left to say it.
            let _ = writeln!(std::io::stderr(), "qbm: {failure}");
            failure.code()
        }
    }
}

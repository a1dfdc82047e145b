//! `qbm commit`: what an overlay has goes into its backing.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use qbm::Disk;
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::letters::{self, Described};
use crate::open;
use crate::output::{Output, short_size, shown};

const AFTER_HELP: &str = "\
The overlay is empty afterwards and shows the same as before, since its backing has it all now. A backing that is
shorter is grown; holes stay holes. Nothing else may use that backing: it would see the change. Whatever goes wrong in
the middle, the overlay shows what it showed; the same command does the rest. It goes into raw, qbm and qcow2 images; a qcow2
whose commit was killed wants \"qemu-img check -r all\" first.

With -b, the images between the overlay and BASE give what they have, too, and are no part of its chain afterwards: the overlay
is on BASE. They are not changed, and nobody should use them any more: what they take from BASE has changed. (qemu-img
commit -b leaves the overlay on them and not empty.)

Examples:
  qbm commit clone.qbm
      What clone.qbm has of its own goes into the image that it is on.
  qbm commit -b base.img clone.qbm
      All that is above base.img in its chain goes into base.img.
  qbm info --backing-chain clone.qbm
      Which images these are.";

/// Write what an overlay has into its backing image, and empty it
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Into this image of the overlay's chain, by the name that "qbm info --backing-chain" shows, or relative to the
    /// descriptor's folder [default: the one that the overlay is on]
    #[arg(short, long, value_name = "BASE")]
    base: Option<PathBuf>,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing, neither how far it is nor when it is done
    #[arg(short, long)]
    quiet: bool,

    /// Show how far it is, on a terminal, as is done in any case
    #[arg(short, long, conflicts_with = "quiet")]
    progress: bool,

    #[command(flatten)]
    missing: Missing,

    #[command(flatten)]
    described: Described,

    /// The overlay's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

/// What qemu-img has and this has not.
#[derive(clap::Args)]
struct Missing {
    #[arg(short = 't', hide = true)]
    cache: Option<String>,
    #[arg(short = 'd', hide = true)]
    keep: bool,
    #[arg(short = 'r', hide = true)]
    rate: Option<String>,
}

impl Missing {
    fn refuse(&self) -> Outcome {
        letters::refuse(&[
            (
                self.cache.is_some(),
                "-t: there is one mode, through the page cache, and all is durable at the end",
            ),
            (
                self.keep,
                "-d: an overlay is always emptied, since its backing has it all then",
            ),
            (
                self.rate.is_some(),
                "-r: there is no limit of the rate (ionice and cgroups have one)",
            ),
        ])
    }
}

pub fn run(args: &Args) -> Outcome {
    args.missing.refuse()?;
    let disk = open::to_write(&args.disk)?;
    let layer = match &args.base {
        None => 1,
        Some(base) => layer_of(&disk, &args.disk, base)?,
    };
    let bar = Bar::new(args.quiet, "committing");
    let mut copied = 0;
    disk.commit_into(layer, &mut |done, total| {
        copied = done;
        bar.show(done, total)
    })?;
    drop(bar);
    let backing = disk.info()?.overlay.and_then(|overlay| overlay.backing);
    disk.close()?;
    if args.quiet {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let mut facts = json!({"filename": args.disk, "committed-bytes": copied});
            if let Some(backing) = &backing {
                facts["backing-filename"] = json!(backing.file);
                facts["backing-filename-format"] = json!(backing.format.word());
            }
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => {
            let into = backing.map_or_else(String::new, |backing| format!(" into {}", shown(&backing.file)));
            let of = shown(&args.disk);
            writeln!(out, "committed {} of {of}{into}", short_size(copied))?;
        }
    }
    Ok(())
}

/// Which of the disk's backing images `base` is.
fn layer_of(disk: &Disk, path: &Path, base: &Path) -> Outcome<u32> {
    let folder = disk_folder(path);
    let wanted = fs::canonicalize(folder.join(base)).ok();
    for number in 1..disk.info()?.layers {
        let layer = disk.layer(number)?;
        let named = layer.descriptor.unwrap_or(layer.path);
        let is_wanted = || wanted.is_some() && fs::canonicalize(&named).ok() == wanted;
        if named == base || is_wanted() {
            return Ok(number);
        }
    }
    Err(Failure::Refused(format!(
        "cannot commit {0}: no image below it is {1}; \"qbm info --backing-chain {0}\" shows them",
        path.display(),
        base.display()
    )))
}

/// Where the descriptor lies that `path` leads to.
fn disk_folder(path: &Path) -> PathBuf {
    let followed = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    followed.parent().map_or_else(PathBuf::new, Path::to_owned)
}

//! `qbm rebase`: an overlay on another backing image, or on none.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use qbm::descriptor::BackingEntry;
use qbm::{BackingFlags, Disk, ErrorCode, Format, OpenOptions};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::image::parse_format;
use crate::letters::{self, Described};
use crate::open;
use crate::output::{Output, short_size, shown};

const AFTER_HELP: &str = "\
The disk shows the same afterwards: what the two images differ in is copied into the overlay first. On an image that is deeper
in its own chain, that is what the images above that one have; on none, all that the backing has. Holes stay holes. Whatever
goes wrong in the middle, the overlay shows what it showed; the same command does the rest.

With -u only the name changes, and what the overlay has not itself reads as the new image. That is for a backing that was
moved or renamed, or is not there any more. All that may read otherwise becomes dirty in the disk's bitmaps, unless
--unchanged says that the new image shows what the old one showed, or it is the same file. The new image must be there.

Examples:
  qbm rebase -b base.img -F raw clone.qbm
      clone.qbm on base.img, whatever it was on before.
  qbm rebase -b \"\" clone.qbm
      On nothing: clone.qbm has all of its data itself.
  qbm rebase -u --unchanged -b /srv/images/base.img -F raw clone.qbm
      The image that it is on has moved there.
  qbm rebase -u -F raw clone.qbm
      The image that it is on is raw. For a descriptor that does not say what it is.";

/// Put an overlay on another backing image, or on none; it shows the same afterwards
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Args {
    /// The new backing image; "" is none. A relative name is relative to the descriptor's folder, not to the current
    /// one, and goes into the descriptor as it is. May be left out with -u: the name stays as it is
    #[allow(clippy::doc_markdown, reason = "this is the help, and is printed as it is")]
    #[arg(short, long, value_name = "FILE", required_unless_present = "only_name")]
    backing: Option<String>,

    /// What the backing is: raw, qbm, qcow2 or vmdk. It is never guessed
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// Change the name alone, and copy nothing
    #[arg(short = 'u', long = "unsafe")]
    only_name: bool,

    /// The new image shows what the old one showed, so no bitmap is to have anything dirty
    #[arg(long, requires = "only_name")]
    unchanged: bool,

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
    #[arg(short = 'T', hide = true)]
    source_cache: Option<String>,
    #[arg(short = 'c', hide = true)]
    compress: bool,
    #[arg(short = 'd', hide = true)]
    keep: bool,
    #[arg(short = 'r', hide = true)]
    rate: Option<String>,
    #[arg(short = 'U', hide = true)]
    force_share: bool,
}

impl Missing {
    fn refuse(&self) -> Outcome {
        letters::refuse(&[
            (
                self.cache.is_some() || self.source_cache.is_some(),
                "-t and -T: there is one mode, through the page cache, and all is durable at the end",
            ),
            (self.compress, "-c: what is written is not compressed"),
            (self.keep, "-d: it is no option of a rebase"),
            (
                self.rate.is_some(),
                "-r: there is no limit of the rate (ionice and cgroups have one)",
            ),
            (
                self.force_share,
                "-U: a rebase writes, and needs the disk for itself",
            ),
        ])
    }
}

impl Args {
    /// Whether what was given makes sense, whatever the disk is like.
    fn check(&self) -> Outcome {
        self.missing.refuse()?;
        let why = match (self.backing.as_deref(), self.backing_format) {
            (Some(""), Some(_)) => "there is no format of no backing; leave -F out",
            (Some(file), None) if !file.is_empty() => "-F must say what the backing is; it is never guessed",
            (None, None) => "neither -b nor -F says what is to change",
            _ => return Ok(()),
        };
        Err(Failure::Usage(format!(
            "cannot rebase {}: {why}",
            self.disk.display()
        )))
    }
}

pub fn run(args: &Args) -> Outcome {
    args.check()?;
    let refused = |why: &str| Failure::Refused(format!("cannot rebase {}: {why}", args.disk.display()));
    let disk = if args.only_name {
        open_for_name(args)?
    } else {
        open::to_write(&args.disk)?
    };
    let facts = |disk: &Disk| disk.info().map(|info| info.overlay);
    let before = facts(&disk)?;
    let current = || before.as_ref().and_then(|overlay| overlay.backing.clone());
    let backing = match (args.backing.as_deref(), args.backing_format) {
        (Some(file), Some(format)) => Some(BackingEntry {
            file: file.to_owned(),
            format,
        }),
        (_, None) => None,
        (None, Some(format)) => match current() {
            Some(entry) => Some(BackingEntry { format, ..entry }),
            None => return Err(refused("it has no backing image whose format could be set")),
        },
    };
    if args.only_name {
        let flags = if args.unchanged {
            BackingFlags::UNCHANGED
        } else {
            BackingFlags::empty()
        };
        disk.change_backing(backing, flags)
    } else {
        let bar = Bar::new(args.quiet, "rebasing");
        disk.rebase(backing, &mut |done, total| bar.show(done, total))
    }
    .map_err(|error| explain(error, args))?;
    let after = facts(&disk)?;
    let own = |it: &Option<qbm::OverlayInfo>| {
        it.as_ref()
            .map_or(0, |it| it.allocated.saturating_mul(it.granularity.bytes()))
    };
    let copied = own(&after).saturating_sub(own(&before));
    disk.close()?;
    if args.quiet {
        return Ok(());
    }
    let backing = after.and_then(|overlay| overlay.backing);
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let mut facts = json!({"filename": args.disk, "copied-bytes": copied});
            if let Some(backing) = &backing {
                facts["backing-filename"] = json!(backing.file);
                facts["backing-filename-format"] = json!(backing.format.word());
            }
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => {
            let on = backing.map_or_else(
                || "on nothing".to_owned(),
                |backing| format!("on {} ({})", shown(&backing.file), backing.format),
            );
            let how = if args.only_name {
                "by its name alone".to_owned()
            } else {
                format!("{} copied", short_size(copied))
            };
            writeln!(out, "rebased {} {on}, {how}", shown(&args.disk))?;
        }
    }
    Ok(())
}

/// The disk with its backing, where that can be had, so that the same file under another name is seen to be the same.
fn open_for_name(args: &Args) -> Outcome<Disk> {
    let mut options = OpenOptions::new();
    if let Some(format) = args.backing_format {
        options = options.backing_format(format);
    }
    match options.open(&args.disk) {
        Ok(disk) => Ok(disk),
        Err(error) if error.code() == ErrorCode::Locked => open::to_write(&args.disk),
        Err(_) => options
            .no_backing(true)
            .open(&args.disk)
            .map_err(|error| open::explain(error, &args.disk)),
    }
}

/// People tend to name an image from where they stand; the descriptor names it from where it lies.
fn explain(error: qbm::Error, args: &Args) -> Failure {
    let named = args.backing.as_deref().map_or(Path::new(""), Path::new);
    if error.code() == ErrorCode::FileNotFound && named.is_relative() && named.exists() {
        let hint = "-b is relative to the descriptor's folder, not to the current one";
        return Failure::Hint(error, hint.to_owned());
    }
    error.into()
}

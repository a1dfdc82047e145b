//! `qbm import`: a disk of QEMU's becomes a QBM disk, or what QEMU recorded comes back into one.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use qbm::{Error, ErrorCode, ImportOptions};

use crate::failure::{Failure, Outcome};
use crate::open::{begins_like_json, how_to_describe};

const AFTER_HELP: &str = "\
Neither SOURCE.qcow2 nor the image is changed, and nothing is copied. Bitmaps that QEMU calls auto record; all get new
epochs, so that the first backup afterwards is a full one for programs that go by epochs. From then on use the disk
through DISK.qbm alone: what QEMU writes through SOURCE.qcow2 is not in the bitmaps of the QBM disk, which become
inconsistent, and what is written to the QBM disk is not in QEMU's, and may read as zeros there. To go back, export.

A bitmap that is marked as in use was not saved: the program that recorded was killed, or still runs. Changes may be
missing in it, so it is refused, and the next backup must be a full one.

Of a qcow2 that has its data in itself, qemu-img makes a raw image, and --image takes the bitmaps along to that.

With --bitmaps, DISK.qbm exists, and SOURCE.qcow2 was made from it by qbm export. What was written through it since, and
whatever is dirty in one of its bitmaps, becomes dirty in the bitmaps of the disk; nothing becomes clean, and epochs
stay. Do it before anything else opens the disk for writing, and not after writes that went through neither of the two.

Examples:
  qbm import vm1.qcow2 vm1.qbm
      A QBM disk on the raw data file of vm1.qcow2, with its bitmaps.
  qemu-img convert -O raw old.qcow2 old.img && qbm import --image old.img old.qcow2 old.qbm
      The same for a qcow2 that has its data in itself. No program may write to it from the first command on.
  qbm import --bitmaps for-qemu.qcow2 disk.qbm
      The way back from qbm export.";

/// Make a disk of QEMU's a QBM disk, with its dirty bitmaps, or take back what QEMU recorded
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Merge the bitmaps into those of DISK.qbm, from which SOURCE.qcow2 was exported
    #[arg(long, conflicts_with = "image")]
    bitmaps: bool,

    /// The raw image FILE has what SOURCE.qcow2 shows. A relative name is relative to the descriptor's folder, not to
    /// the current one, and goes into the descriptor as it is
    #[arg(long, value_name = "FILE")]
    image: Option<String>,

    /// Leave out bitmaps that are marked as in use
    #[arg(long)]
    skip_in_use: bool,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The qcow2 image
    #[arg(value_name = "SOURCE.qcow2")]
    source: PathBuf,

    /// The descriptor to make; with --bitmaps, the disk
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let mut options = ImportOptions::new().skip_in_use(args.skip_in_use);
    if let Some(image) = &args.image {
        options = options.image(image);
    }
    let said = if args.bitmaps {
        let merged = options
            .merge_bitmaps(&args.source, &args.disk)
            .map_err(|error| explain(error, args))?;
        format!(
            "merged {} into {}: {}\n{}{}",
            args.source.display(),
            args.disk.display(),
            names("bitmap", &merged.bitmaps),
            line("left out", &merged.left_out),
            line(
                "inconsistent already, only to be removed or repaired",
                &merged.inconsistent
            )
        )
    } else {
        let imported = options
            .import(&args.source, &args.disk)
            .map_err(|error| explain(error, args))?;
        format!(
            "imported {} as {}: data in {}, {}\n{}",
            args.source.display(),
            args.disk.display(),
            imported.image,
            names("bitmap", &imported.bitmaps),
            line("left out, as it is in use", &imported.left_out)
        )
    };
    if !args.quiet {
        write!(io::stdout(), "{said}")?;
    }
    Ok(())
}

/// `no bitmaps`, or `bitmaps "a", "b"`. Quoted, with escapes: a name is whatever somebody wrote into the file.
pub fn names(what: &str, names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match &quoted[..] {
        [] => format!("no {what}s"),
        [one] => format!("{what} {one}"),
        several => format!("{what}s {}", several.join(", ")),
    }
}

/// A line of its own for those that are not like the others, if there are any.
pub fn line(what: &str, those: &[String]) -> String {
    if those.is_empty() {
        return String::new();
    }
    format!("{what}: {}\n", names("bitmap", those))
}

fn explain(error: Error, args: &Args) -> Failure {
    if error.code() == ErrorCode::BitmapInconsistent && !args.skip_in_use {
        return Failure::Hint(error, "--skip-in-use leaves such bitmaps out".to_owned());
    }
    if error.code() == ErrorCode::FileInvalid && !args.bitmaps && may_be_raw(&args.source) {
        let command = how_to_describe(&args.source, &args.disk);
        return Failure::Hint(error, format!("for a raw image: {command}"));
    }
    Failure::Engine(error)
}

/// Whether it begins neither as a qcow2 does nor as a descriptor.
fn may_be_raw(path: &Path) -> bool {
    let mut first = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first != *b"QFI\xfb" && !begins_like_json(path)
}

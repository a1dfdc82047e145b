//! `qbm import`: a disk of QEMU's becomes a QBM disk, or what QEMU recorded comes back into one.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use qbm::{Error, ErrorCode, Format, ImportOptions, Imported, Merged};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::open::{STOP_IT, begins_like_json, how_to_describe};
use crate::output::{Output, shown};

const AFTER_HELP: &str = "\
A qcow2 whose data file is a raw image becomes a disk on that image, and stays as it is. Any other, with its data in
itself, becomes the image of the disk; --image names a raw image instead that has what it shows. Nothing is copied. Bitmaps that QEMU calls auto record; all get new
epochs, so that the first backup afterwards is a full one for programs that go by epochs. From then on use the disk
through DISK.qbm alone: what QEMU writes through SOURCE.qcow2 is not in the bitmaps of the QBM disk, which become
inconsistent, and what is written to the QBM disk is not in QEMU's, and may read as zeros there. To go back, export.

A bitmap that is marked as in use was not saved: the program that recorded was killed, or still runs. Changes may be
missing in it, so it is refused, and the next backup must be a full one.

The bitmaps in a qcow2 that becomes the image are not valid any more for QEMU: they would not see what is written to the
disk. (qemu-img check -r leaks gives back the space that they take.)

With --bitmaps, DISK.qbm exists, and SOURCE.qcow2 was made from it by qbm export. What was written through it since, and
whatever is dirty in one of its bitmaps, becomes dirty in the bitmaps of the disk; nothing becomes clean, and epochs
stay. Do it before anything else opens the disk for writing, and not after writes that went through neither of the two.

Examples:
  qbm import vm1.qcow2 vm1.qbm
      A QBM disk on the raw data file of vm1.qcow2, or on vm1.qcow2 itself, with its bitmaps.
  qemu-img convert -O raw old.qcow2 old.img && qbm import --image old.img old.qcow2 old.qbm
      The same on a raw copy of a qcow2. No program may write to that from the first command on.
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

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

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
        told_of_merge(&merged, args)
    } else {
        let imported = options
            .import(&args.source, &args.disk)
            .map_err(|error| explain(error, args))?;
        told_of_import(&imported, args)
    };
    if !args.quiet {
        write!(io::stdout(), "{said}")?;
    }
    Ok(())
}

fn told_of_merge(merged: &Merged, args: &Args) -> String {
    if args.output == Output::Json {
        let facts = json!({
            "filename": args.disk.to_string_lossy(),
            "source": args.source.to_string_lossy(),
            "bitmaps": merged.bitmaps,
            "left-out": merged.left_out,
            "inconsistent": merged.inconsistent,
        });
        return format!("{facts:#}\n");
    }
    format!(
        "merged {} into {}: {}\n{}{}",
        shown(&args.source),
        shown(&args.disk),
        names("bitmap", &merged.bitmaps),
        line("left out", &merged.left_out),
        line(
            "inconsistent already (\"qbm check\" says why)",
            &merged.inconsistent
        )
    )
}

fn told_of_import(imported: &Imported, args: &Args) -> String {
    if args.output == Output::Json {
        let facts = json!({
            "filename": args.disk.to_string_lossy(),
            "source": args.source.to_string_lossy(),
            "image": imported.image,
            "image-format": imported.format.word(),
            "bitmaps": imported.bitmaps,
            "left-out": imported.left_out,
        });
        return format!("{facts:#}\n");
    }
    let moved = imported.format == Format::Qcow2 && !imported.bitmaps.is_empty();
    let theirs = if moved {
        format!(
            "QEMU's bitmaps in {} are not valid any more\n",
            shown(&imported.image)
        )
    } else {
        String::new()
    };
    format!(
        "imported {} as {}: data in {}, {}\n{}{theirs}",
        shown(&args.source),
        shown(&args.disk),
        shown(&imported.image),
        names("bitmap", &imported.bitmaps),
        line("left out, as it is in use", &imported.left_out)
    )
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
    if error.code() == ErrorCode::Locked {
        return Failure::Hint(error, STOP_IT.to_owned());
    }
    if error.code() == ErrorCode::NotSupported && !args.bitmaps && args.image.is_none() {
        return Failure::Hint(
            error,
            "\"qemu-img convert -O raw\" makes a raw image of it, and --image FILE takes the bitmaps along to that".to_owned(),
        );
    }
    if error.code() == ErrorCode::BitmapInconsistent && !args.skip_in_use {
        return Failure::Hint(error, "--skip-in-use leaves such bitmaps out".to_owned());
    }
    if error.code() == ErrorCode::FileInvalid && !args.bitmaps && may_be_raw(&args.source) {
        let command = how_to_describe(&args.source, &args.disk);
        return Failure::Hint(error, format!("for a raw image: {command}"));
    }
    error.into()
}

/// Whether it begins neither as a qcow2 does nor as a descriptor.
fn may_be_raw(path: &Path) -> bool {
    let mut first = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first != *b"QFI\xfb" && !begins_like_json(path)
}

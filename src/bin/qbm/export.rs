//! `qbm export`: a qcow2 for QEMU's programs on the disk's own image.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::{ErrorCode, ExportOptions};

use crate::failure::{Failure, Outcome};
use crate::import::{line, names};
use crate::open::{begins_like_json, how_to_describe};

const AFTER_HELP: &str = "\
Nothing is copied but bits: FILE.qcow2 is a few clusters whose raw data file is the image of the disk, so that QEMU
reads and writes that image itself. A disk whose length is no multiple of 512 bytes is shown up to the next one, as
QEMU shows raw images.

When QEMU writes through FILE.qcow2, the disk's own bitmaps do not see it. The next open of the disk for writing notices
that the image was changed, and its bitmaps become inconsistent. The way back is qbm import --bitmaps, before that open.
For it, FILE.qcow2 has a bitmap more than the disk, qbm-since-export: leave that one alone.

Never use the two at once, and throw FILE.qcow2 away when the disk has been written to again: QEMU notes in FILE.qcow2
which parts are zeros, and would show zeros for what was written there since. A new export costs nothing.

Examples:
  qbm export disk.qbm for-qemu.qcow2
      The disk for QEMU's programs, with its dirty bitmaps.
  qemu-nbd --read-only -B nightly -f qcow2 for-qemu.qcow2
      Its content and what is dirty in it, for a backup program.
  qbm import --bitmaps for-qemu.qcow2 disk.qbm
      QEMU has written through it, and the disk's bitmaps are to know.";

/// Make a qcow2 of a disk, with its dirty bitmaps, that QEMU can use; the image is not copied
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Leave out bitmaps that are inconsistent
    #[arg(long)]
    skip_inconsistent: bool,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// The qcow2 to make
    #[arg(value_name = "FILE.qcow2")]
    target: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let exported = ExportOptions::new()
        .skip_inconsistent(args.skip_inconsistent)
        .export(&args.disk, &args.target)
        .map_err(|error| match error.code() {
            ErrorCode::BitmapInconsistent => {
                Failure::Hint(error, "--skip-inconsistent leaves such bitmaps out".to_owned())
            }
            ErrorCode::DescriptorInvalid if !begins_like_json(&args.disk) => {
                let command = how_to_describe(&args.disk, &args.disk.with_extension("qbm"));
                Failure::Hint(
                    error,
                    format!("it is no QBM descriptor; {command} makes one for a raw image"),
                )
            }
            _ => Failure::Engine(error),
        })?;
    if !args.quiet {
        write!(
            io::stdout(),
            "exported {} to {}: data in {}, {}\n{}",
            args.disk.display(),
            args.target.display(),
            exported.image,
            names("bitmap", &exported.bitmaps),
            line("left out, as it is inconsistent", &exported.left_out)
        )?;
    }
    Ok(())
}

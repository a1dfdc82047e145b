//! `qbm export`: a qcow2 for QEMU's programs, on the disk's own image or with a copy of what the disk shows.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::{Error, ErrorCode, ExportOptions};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::import::{line, names};
use crate::open::{begins_like_json, how_to_describe, stop_it_and_take};
use crate::output::{Output, long_size, short_size, shown};

const AFTER_HELP: &str = "\
Nothing is copied but bits: FILE.qcow2 is a few clusters whose raw data file is the image of the disk, so that QEMU
reads and writes that image itself. A disk whose length is no multiple of 512 bytes is shown up to the next one, as
QEMU shows raw images.

When QEMU writes through FILE.qcow2, the disk's own bitmaps do not see it. The next open of the disk for writing notices
that the image was changed, and its bitmaps become inconsistent. The way back is qbm import --bitmaps, before that open.
For it, FILE.qcow2 has a bitmap more than the disk, qbm-since-export: leave that one alone.

Never use the two at once, and throw FILE.qcow2 away when the disk has been written to again: QEMU notes in FILE.qcow2
which parts are zeros, and would show zeros for what was written there since. A new export costs nothing.

With --copy, FILE.qcow2 stands by itself: it has in it what the disk shows, with all that is below it, and the bitmaps.
So can every disk be exported, also an overlay, and one whose image is a qcow2. There is no way back from what QEMU writes
to a copy, other than qbm import, which makes a new disk of it. The file gets its name when all of it is there and
durable.

Examples:
  qbm export disk.qbm for-qemu.qcow2
      The disk for QEMU's programs, with its dirty bitmaps.
  qemu-nbd --read-only -B nightly -f qcow2 for-qemu.qcow2
      Its content and what is dirty in it, for a backup program.
  qbm import --bitmaps for-qemu.qcow2 disk.qbm
      QEMU has written through it, and the disk's bitmaps are to know.
  qbm export --copy clone.qbm clone.qcow2
      What an overlay and all that is below it show, with its dirty bitmaps.";

/// Make a qcow2 of a disk, with its dirty bitmaps, that QEMU can use; on the disk's own image, or as a copy
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Args {
    /// Copy what the disk shows into the qcow2
    #[arg(long)]
    copy: bool,

    /// Show how far a copy is, on a terminal
    #[arg(short, long, requires = "copy")]
    progress: bool,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

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

/// What was made, of either kind.
struct Told {
    length: u64,
    /// Where the data is; none of a copy.
    image: Option<String>,
    /// How much was copied; nothing of what has its data elsewhere.
    written: u64,
    bitmaps: Vec<String>,
    left_out: Vec<String>,
}

pub fn run(args: &Args) -> Outcome {
    let options = ExportOptions::new().skip_inconsistent(args.skip_inconsistent);
    let told = if args.copy {
        let bar = Bar::new(args.quiet || !args.progress, "exporting");
        options
            .export_copy(&args.disk, &args.target, &mut |done, total| bar.show(done, total))
            .map(|made| Told {
                length: made.length,
                image: None,
                written: made.written,
                bitmaps: made.bitmaps,
                left_out: made.left_out,
            })
    } else {
        options.export(&args.disk, &args.target).map(|made| Told {
            length: made.length,
            image: Some(made.image),
            written: 0,
            bitmaps: made.bitmaps,
            left_out: made.left_out,
        })
    };
    let told = told.map_err(|error| explain(error, args))?;
    if args.quiet {
        return Ok(());
    }
    told.print(args)
}

impl Told {
    fn print(&self, args: &Args) -> Outcome {
        let mut out = io::stdout().lock();
        if args.output == Output::Json {
            let mut facts = json!({
                "filename": args.target.to_string_lossy(),
                "format": "qcow2",
                "virtual-size": self.length,
                "written": self.written,
                "bitmaps": self.bitmaps,
                "left-out": self.left_out,
            });
            if let Some(image) = &self.image {
                facts["data-file"] = json!(image);
            }
            writeln!(out, "{facts:#}")?;
            return Ok(());
        }
        let data = match &self.image {
            Some(image) => format!("data in {}", shown(image)),
            None => format!(
                "a copy of {}, {} written",
                long_size(self.length),
                short_size(self.written)
            ),
        };
        write!(
            out,
            "exported {} to {}: {data}, {}\n{}",
            shown(&args.disk),
            shown(&args.target),
            names("bitmap", &self.bitmaps),
            line("left out, as it is inconsistent", &self.left_out)
        )?;
        Ok(())
    }
}

fn explain(error: Error, args: &Args) -> Failure {
    let hint = match error.code() {
        ErrorCode::Locked => stop_it_and_take(&error),
        ErrorCode::BitmapInconsistent => "--skip-inconsistent leaves such bitmaps out".to_owned(),
        ErrorCode::DescriptorInvalid if !begins_like_json(&args.disk) => {
            let command = how_to_describe(&args.disk, &args.disk.with_extension("qbm"));
            format!("it is no QBM descriptor; {command} makes one for a raw image")
        }
        _ => return error.into(),
    };
    Failure::Hint(error, hint)
}

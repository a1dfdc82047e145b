//! `qbm info`: what a disk is made of.

mod chain;
mod state;

use std::io::{self, Write};
use std::path::PathBuf;

use qbm::{Disk, Info, Layer};
use serde_json::{Value, json};

use crate::dirty;
use crate::failure::Outcome;
use crate::letters::Described;
use crate::open::{self, Share};
use crate::output::{Output, long_size, short_size, shown};

const AFTER_HELP: &str = "\
The disk is opened read-only: nothing in it changes, not even a time stamp.

Examples:
  qbm info disk.qbm
      Sizes, the data image, and the bitmaps: their granularity, their flags, and how much is dirty in each.
  qbm info --output json disk.qbm | jq '.\"virtual-size\"'
      The same for programs: qemu-img's keys, and under format-specific what only QBM has. Sizes are in bytes.
      The bitmaps are as qbm bitmap list prints them.
  qbm info -U disk.qbm
      The same of a disk that a hypervisor has open.
  qbm info --backing-chain disk.qbm
      One block for each image, from the disk down; in JSON a list.";

/// Say what a disk is made of: its size, its image, its bitmaps
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Tell of the backing image too, and of all that is below it
    #[arg(long)]
    backing_chain: bool,

    #[command(flatten)]
    share: Share,

    #[command(flatten)]
    described: Described,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let disk = open::shared(&args.disk, &args.share)?;
    let out = &mut io::stdout().lock();
    if args.backing_chain {
        return chain::print(&disk, &args.share, args.output, out);
    }
    let facts = Facts::of(&disk)?;
    match args.output {
        Output::Human => facts.print_human(&disk, out)?,
        Output::Json => writeln!(out, "{:#}", facts.to_json(&disk))?,
    }
    Ok(())
}

struct Facts {
    info: Info,
    image: Layer,
    bitmaps: Vec<dirty::Facts>,
}

impl Facts {
    fn of(disk: &Disk) -> Outcome<Self> {
        Ok(Self {
            info: disk.info()?,
            image: disk.layer(0)?,
            bitmaps: dirty::Facts::of(disk)?,
        })
    }

    fn print_human(&self, disk: &Disk, out: &mut impl Write) -> io::Result<()> {
        let Self { info, image, .. } = self;
        writeln!(out, "descriptor: {}", shown(disk.path()))?;
        writeln!(out, "virtual size: {}", long_size(info.length))?;
        writeln!(out, "disk size: {}", short_size(info.allocated))?;
        let kind = if info.limits.block_device {
            ", block device"
        } else {
            ""
        };
        writeln!(out, "image: {} ({}{kind})", shown(&image.path), image.format)?;
        writeln!(
            out,
            "block size: {} logical, {} physical",
            block(info.limits.logical_block),
            block(info.limits.physical_block)
        )?;
        if let Some(overlay) = &info.overlay {
            match &overlay.backing {
                Some(backing) => {
                    writeln!(out, "backing file: {}", shown(&backing.file))?;
                    writeln!(out, "backing file format: {}", backing.format)?;
                }
                None => writeln!(out, "backing file: none")?,
            }
            writeln!(
                out,
                "allocated: {} of {} granules of {}",
                overlay.allocated,
                overlay.granularity.granules_in(info.length),
                short_size(overlay.granularity.bytes())
            )?;
        }
        state::print_human(info, out)?;
        if self.bitmaps.is_empty() {
            return writeln!(out, "bitmaps: none");
        }
        writeln!(out, "bitmaps:")?;
        for bitmap in &self.bitmaps {
            writeln!(out, "    {}", bitmap.line())?;
        }
        if self.bitmaps.iter().any(dirty::Facts::is_inconsistent) {
            writeln!(
                out,
                "inconsistent bitmaps may lack changes: \"qbm check\" says why, and what repairs them"
            )?;
        }
        Ok(())
    }

    fn to_json(&self, disk: &Disk) -> Value {
        let limits = &self.info.limits;
        let bitmaps: Vec<Value> = self.bitmaps.iter().map(dirty::Facts::to_json).collect();
        let mut value = json!({
            "filename": disk.path().to_string_lossy(),
            "format": "qbm",
            "virtual-size": self.info.length,
            "actual-size": self.info.allocated,
            "format-specific": {
                "type": "qbm",
                "data": {
                    "image": {
                        "filename": self.image.path.to_string_lossy(),
                        "format": self.image.format.word(),
                        "block-device": limits.block_device,
                        "logical-block-size": known(limits.logical_block),
                        "physical-block-size": known(limits.physical_block),
                    },
                    "state": state::to_json(&self.info),
                    "bitmaps": bitmaps,
                },
            },
        });
        if let Some(overlay) = &self.info.overlay {
            value["format-specific"]["data"]["allocation"] = json!({
                "name": overlay.bitmap,
                "granularity": overlay.granularity.bytes(),
                "allocated": overlay.allocated,
            });
            if let Some(backing) = &overlay.backing {
                value["backing-filename"] = json!(backing.file);
                value["backing-filename-format"] = json!(backing.format.word());
            }
        }
        value
    }
}

/// The engine's zero is "unknown".
fn known(bytes: u32) -> Option<u32> {
    (bytes != 0).then_some(bytes)
}

fn block(bytes: u32) -> String {
    known(bytes).map_or_else(|| "unknown".to_owned(), |bytes| format!("{bytes} B"))
}

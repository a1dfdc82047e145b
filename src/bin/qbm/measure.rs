//! `qbm measure`: what an image would take as another format.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::Format;
use qbm::convert::{MeasureSource, QCOW2_CLUSTER, measure};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::image::{self, parse_format};
use crate::open::Share;
use crate::output::Output;
use crate::size::parse_size;

const AFTER_HELP: &str = "\
required size is what the new image takes with the data that there is now, and fully allocated size what it takes when
all of it has been written to. Of a raw image both are its length, as file systems and devices without holes need that; of
a QBM disk they are the blocks of its image that have data, or all of them, with a state file and a descriptor. Sizes of
raw and qcow2 images are qemu-img's. bitmaps size is what the dirty bitmaps of SOURCE take besides, as QBM disks have
them; convert does not take them along.

Examples:
  qbm measure -O qcow2 disk.qbm
  qbm measure --size 100G -O qbm
      An empty disk of 100 GiB.";

/// Say what an image would take as another format
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// What SOURCE is [default: qbm, of a name that ends in .qbm; otherwise it must be given]
    #[arg(short, long = "source-format", value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,

    /// What the new image would be: raw, qbm or qcow2
    #[arg(short = 'O', long, value_name = "FORMAT", value_parser = parse_format, default_value = "raw")]
    target_format: Format,

    /// cluster_size=BYTES of a qcow2, a power of two from 512 to 2M [default: cluster_size=64k]
    #[allow(clippy::doc_markdown, reason = "this is the help, and is printed as it is")]
    #[arg(short = 'o', value_name = "KEY=VALUE", value_parser = parse_cluster)]
    options: Option<u64>,

    /// A new and empty image of so many bytes, in place of SOURCE
    #[arg(short = 's', long, value_name = "BYTES", value_parser = parse_size, conflicts_with = "source")]
    size: Option<u64>,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    #[command(flatten)]
    share: Share,

    /// The image to read
    #[arg(value_name = "SOURCE", required_unless_present = "size")]
    source: Option<PathBuf>,
}

pub fn parse_cluster(text: &str) -> Result<u64, String> {
    match text.split_once('=') {
        Some(("cluster_size", size)) => match parse_size(size)? {
            bytes if bytes.is_power_of_two() && (512..=2 << 20).contains(&bytes) => Ok(bytes),
            bytes => Err(format!(
                "cluster_size {bytes} is not a power of two from 512 to 2M"
            )),
        },
        _ => Err("the option is cluster_size=BYTES".to_owned()),
    }
}

pub fn run(args: &Args) -> Outcome {
    if args.options.is_some() && args.target_format != Format::Qcow2 {
        return Err(Failure::Usage(format!(
            "cluster_size is of qcow2 images, not of {} ones",
            args.target_format
        )));
    }
    let disk = match &args.source {
        Some(path) => Some(image::to_read(path, args.format, &args.share, "-f")?),
        None => None,
    };
    let source = match &disk {
        Some(disk) => MeasureSource::Image(disk),
        None => MeasureSource::Empty(args.size.unwrap_or(0)),
    };
    let cluster = args.options.unwrap_or(QCOW2_CLUSTER);
    let measured = measure(source, args.target_format, cluster)?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let mut facts = json!({
                "required": measured.required,
                "fully-allocated": measured.fully_allocated,
            });
            if measured.bitmaps > 0 {
                facts["bitmaps"] = measured.bitmaps.into();
            }
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => {
            writeln!(out, "required size: {}", measured.required)?;
            writeln!(out, "fully allocated size: {}", measured.fully_allocated)?;
            if measured.bitmaps > 0 {
                writeln!(out, "bitmaps size: {}", measured.bitmaps)?;
            }
        }
    }
    Ok(())
}

//! `qbm convert`: a new image with what another shows.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use qbm::convert::{Convert, Converted};
use qbm::{Error, ErrorCode, Format};
use serde_json::json;

use crate::bar::Bar;
use crate::failure::{Failure, Outcome};
use crate::image::{self, parse_format};
use crate::letters;
use crate::measure::parse_cluster;
use crate::open::Share;
use crate::output::{Output, long_size, short_size, shown};
use crate::size::parse_size;

const AFTER_HELP: &str = "\
SOURCE is read as the format that -f gives, and never as what it looks like: a guest could write into a raw image what
looks like another format, and that one could name any file of this machine. Only a name that ends in .qbm is taken for a
descriptor without being told.

TARGET must not exist, unless -n is given, and gets its name when all of it is there and durable: after a failure nothing
is left. With -n what exists is overwritten up to the length of SOURCE, and a failure leaves it half written; in a QBM
disk the dirty bitmaps record it. A QBM disk that is made is a descriptor and a raw image beside it. A qcow2 is always a
new one, of version 3, and its length must be a multiple of 512.

Zeros become holes (-S), and what the file system can share between the two files takes neither time nor space.

These are qemu-img convert's letters. It does not have its snapshots (-l), compression (-c), bitmaps, rate limit (-r),
cache modes (-t, -T) and lists of sources.

Examples:
  qbm convert -f raw -O qbm old.img disk.qbm
      A QBM disk with what old.img has. (qbm create --image takes old.img itself, without copying.)
  qbm convert -p clone.qbm flat.img
      What an overlay and all that is below it show, as one raw image.
  qbm convert -O qcow2 disk.qbm disk.qcow2
      The same as a qcow2, for QEMU. (qbm export takes the dirty bitmaps along.)
  qbm convert -n -f raw -O raw disk.img /dev/vg0/vm1
      Onto a block device.
  qbm compare -F raw clone.qbm flat.img
      Whether the two are the same now.";

/// Convert an image: what a QBM disk, an overlay with all that is below it, or another image shows, as a new one
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Args {
    /// What SOURCE is [default: qbm, of a name that ends in .qbm; otherwise it must be given]
    #[arg(short, long = "source-format", value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,

    /// What TARGET is to be: raw, qbm or qcow2 [default: qbm, of a name that ends in .qbm; otherwise raw]
    #[arg(short = 'O', long, value_name = "FORMAT", value_parser = parse_format)]
    target_format: Option<Format>,

    /// Overwrite TARGET, which exists and is as long as SOURCE at least
    #[arg(short = 'n', long)]
    no_create: bool,

    /// cluster_size=BYTES of a new qcow2, a power of two from 512 to 2M [default: cluster_size=64k]
    #[allow(clippy::doc_markdown, reason = "this is the help, and is printed as it is")]
    #[arg(short = 'o', value_name = "KEY=VALUE", value_parser = parse_cluster, conflicts_with = "no_create")]
    options: Option<u64>,

    /// So many zeros become a hole, a multiple of 512; with 0 there are no holes, and all space is taken
    #[arg(short = 'S', long, value_name = "BYTES", value_parser = parse_size, default_value = "4k")]
    sparse_size: u64,

    /// Copy by so many threads, 1 to 16 [default: 4]
    #[arg(short = 'm', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    threads: Option<u16>,

    /// Let the kernel copy where it can; zeros that are no holes in SOURCE are none in TARGET then
    #[arg(short = 'C', long)]
    copy_offload: bool,

    /// As qemu-img: out of order. It makes no difference here, where several threads always write so
    #[arg(short = 'W', hide = true)]
    unordered: bool,

    /// Show how far it is, on a terminal
    #[arg(short, long)]
    progress: bool,

    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    share: Share,

    #[command(flatten)]
    missing: Missing,

    /// The image to read
    #[arg(value_name = "SOURCE")]
    source: PathBuf,

    /// The image to make
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// What qemu-img has and this has not: so that who asks for it is told more than that a letter is unknown.
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
struct Missing {
    #[arg(short = 'c', hide = true)]
    compress: bool,
    #[arg(short = 'l', hide = true)]
    snapshot: Option<String>,
    #[arg(short = 'r', hide = true)]
    rate: Option<String>,
    #[arg(short = 't', hide = true)]
    cache: Option<String>,
    #[arg(short = 'T', hide = true)]
    source_cache: Option<String>,
    #[arg(short = 'B', hide = true)]
    backing: Option<String>,
    #[arg(long, hide = true)]
    bitmaps: bool,
    #[arg(long, hide = true)]
    salvage: bool,
    #[arg(long, hide = true)]
    target_is_zero: bool,
}

impl Missing {
    fn refuse(&self) -> Outcome {
        letters::refuse(&[
            (self.compress, "-c: what is written is not compressed"),
            (
                self.snapshot.is_some(),
                "-l: snapshots within an image cannot be read",
            ),
            (
                self.rate.is_some(),
                "-r: there is no limit of the rate (ionice and cgroups have one)",
            ),
            (
                self.cache.is_some() || self.source_cache.is_some(),
                "-t and -T: there is one mode, through the page cache, and TARGET is durable at the end",
            ),
            (
                self.backing.is_some(),
                "-B: an overlay is made by \"qbm create -b\", and takes what is written to it",
            ),
            (
                self.bitmaps,
                "--bitmaps: bitmaps are not taken along (\"qbm export --copy\" does that)",
            ),
            (self.salvage, "--salvage: what cannot be read ends it"),
            (
                self.target_is_zero,
                "--target-is-zero: zeros are written where TARGET exists",
            ),
        ])
    }
}

pub fn run(args: &Args) -> Outcome {
    args.missing.refuse()?;
    let format = args
        .target_format
        .unwrap_or(if image::is_named_qbm(&args.target) {
            Format::Qbm
        } else {
            Format::Raw
        });
    if args.options.is_some() && format != Format::Qcow2 {
        return Err(Failure::Usage(format!(
            "cluster_size is of qcow2 images, not of {format} ones"
        )));
    }
    let source = image::to_read(&args.source, args.format, &args.share, "-f")?;
    let mut how = Convert::new().sparse(args.sparse_size).offload(args.copy_offload);
    if let Some(cluster) = args.options {
        how = how.cluster_size(cluster);
    }
    if let Some(threads) = args.threads {
        how = how.threads(threads.into());
    }
    let bar = Bar::new(args.quiet || !args.progress, "converting");
    let progress = &mut |done, total| bar.show(done, total);
    let converted = if args.no_create {
        how.overwrite(&source, &args.target, format, progress)
    } else {
        how.create(&source, &args.target, format, progress)
    };
    drop(bar);
    let converted = converted.map_err(|error| hint(error, args))?;
    if args.quiet {
        return Ok(());
    }
    told(&converted, &args.target, format, args.output)
}

fn told(converted: &Converted, target: &Path, format: Format, output: Output) -> Outcome {
    let mut out = io::stdout().lock();
    match output {
        Output::Json => {
            let facts = json!({
                "filename": target.to_string_lossy(),
                "format": format.word(),
                "virtual-size": converted.length,
                "written": converted.written,
                "shared": converted.shared,
            });
            writeln!(out, "{facts:#}")?;
        }
        Output::Human => {
            let shared = match converted.shared {
                0 => String::new(),
                bytes => format!(", {} shared with the source", short_size(bytes)),
            };
            writeln!(
                out,
                "converted to {} ({format}): {}, {} written{shared}",
                shown(target),
                long_size(converted.length),
                short_size(converted.written),
            )?;
        }
    }
    Ok(())
}

fn hint(error: Error, args: &Args) -> Failure {
    let hint = match error.code() {
        ErrorCode::FileExists if !args.no_create => "-n overwrites what exists".to_owned(),
        ErrorCode::FileNotFound if args.no_create => "without -n it is made".to_owned(),
        _ => return error.into(),
    };
    Failure::Hint(error, hint)
}

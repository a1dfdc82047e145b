//! `qbm create`: a new disk.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use qbm::{CreateOptions, ErrorCode, Format, Granularity, OpenOptions};

use crate::failure::{Failure, Outcome};
use crate::image::parse_format;
use crate::letters;
use crate::output::{long_size, shown};
use crate::size::{parse_granularity, parse_size};

const AFTER_HELP: &str = "\
Nothing that exists is overwritten: not the descriptor, and a data image whose name is taken gets a number.

A disk has a state file (disk.state): it is what keeps bitmaps from losing changes in a power cut, tells of writes to the
image by others, and is locked while the disk is in use. With -o state=off there is none until the first open for writing
that makes one, as every open does unless its program says no; without one a power cut can cost bitmaps bits unnoticed.
-o region_size: how much counts as changed after a power cut, for each part of the disk that was being written to [default:
64M, more on disks of over 31.5T]. Smaller means less to copy again, and more syncs while writing.

Examples:
  qbm create disk.qbm 20G
      A sparse disk of 20 GiB: disk.qbm describes it, disk-data.img holds its bytes.
  qbm create --preallocation falloc disk.qbm 20G
      The same, with its space reserved, so that the host's file system cannot run full under the guest.
  qbm create -o preallocation=falloc,region_size=4M disk.qbm 20G
      In qemu-img's spelling, with smaller regions.
  qbm create --image old.img disk.qbm
      A descriptor for the raw image old.img that lies beside it. The image is not changed.
  qbm create --image /dev/vg0/vm1 vm1.qbm
      A descriptor for a block device.
  qbm create --image vm2.qcow2 -f qcow2 vm2.qbm
      A descriptor for a qcow2, which can have dirty bitmaps then that survive a crash.
  qbm create --image inner.qbm -f qbm outer.qbm
      A disk whose image is another one: bitmaps of both record what is written to it.
  qbm create -b base.img -F raw clone.qbm
      An overlay: it shows base.img, which stays as it is, until it is written to, and is as long as that.
  qbm create -b clone.qbm -F qbm -g 4k clone-of-clone.qbm 40G
      An overlay of an overlay, longer than what it is on, that takes 4 KiB at a time.";

/// Make a disk: a descriptor, and a new raw image, with or without a backing image, or one that exists
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// What is not written to the new disk is read from FILE, which is never changed. A relative name is relative to
    /// the descriptor's folder, not to the current one, and goes into the descriptor as it is
    #[arg(short, long, value_name = "FILE", requires = "backing_format")]
    #[arg(conflicts_with_all = ["image", "preallocation"])]
    backing: Option<String>,

    /// What the backing is: raw, qbm, qcow2 or vmdk. It is never guessed
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "backing", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// The unit in which the new disk takes from its backing, a power of two from 512 to 2G [default: 64k]. Without -b:
    /// a disk that only knows which units were written
    #[arg(short, long, value_name = "BYTES", value_parser = parse_granularity)]
    #[arg(conflicts_with_all = ["image", "preallocation"])]
    granularity: Option<Granularity>,

    /// Take the image or block device FILE that exists as the disk's data. A relative name is relative to the
    /// descriptor's folder, not to the current one, and goes into the descriptor as it is
    #[arg(long, value_name = "FILE")]
    image: Option<String>,

    /// What the image that exists is: raw, qbm, qcow2 or vmdk (which can only be read). It is never guessed [default: raw]
    #[arg(short = 'f', long, value_name = "FORMAT", value_parser = parse_format)]
    image_format: Option<Format>,

    /// How much of the new image's space is reserved at once [default: off]
    #[arg(long, value_name = "MODE")]
    #[arg(conflicts_with = "image")]
    preallocation: Option<Preallocation>,

    /// Options as qemu-img spells them, in a list or each by itself: preallocation=off, falloc or full; state=on or off;
    /// region_size=BYTES. See below
    #[allow(clippy::doc_markdown, reason = "this is the help, and is printed as it is")]
    #[arg(short = 'o', value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = parse_option)]
    options: Vec<KeyValue>,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

    /// qemu-img's: a backing that is not there
    #[arg(short = 'u', hide = true)]
    unseen_backing: bool,

    /// The descriptor to make
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// The disk's size in bytes, or with a suffix k, M, G, T, P or E (powers of 1024). With --image it may be left out,
    /// and must otherwise be what the image has. With -b it may be left out: the disk is as long as its backing then
    #[arg(value_parser = parse_size, required_unless_present_any = ["image", "backing"])]
    size: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preallocation {
    /// None: the image is sparse, and takes space as the guest writes
    Off,
    /// All of it; it reads as zeros without having been written
    Falloc,
    /// All of it, and zeros are written: slow now, fast at the guest's first write
    Full,
}

impl From<Preallocation> for qbm::Preallocation {
    fn from(mode: Preallocation) -> Self {
        match mode {
            Preallocation::Off => Self::Off,
            Preallocation::Falloc => Self::Falloc,
            Preallocation::Full => Self::Full,
        }
    }
}

/// One of the options of `-o`.
#[derive(Clone, Copy)]
enum KeyValue {
    Preallocation(Preallocation),
    State(bool),
    RegionSize(u64),
}

fn parse_option(text: &str) -> Result<KeyValue, String> {
    match text.split_once('=') {
        Some(("preallocation", mode)) => Preallocation::from_str(mode, false)
            .map(KeyValue::Preallocation)
            .map_err(|_| format!("{mode:?} is no way to preallocate; known are off, falloc and full")),
        Some(("state", "on")) => Ok(KeyValue::State(true)),
        Some(("state", "off")) => Ok(KeyValue::State(false)),
        Some(("state", other)) => Err(format!("state is on or off, not {other:?}")),
        Some(("region_size", size)) => match parse_size(size)? {
            bytes if bytes.is_power_of_two() && bytes >= 512 => Ok(KeyValue::RegionSize(bytes)),
            bytes => Err(format!("region_size {bytes} is not a power of two from 512 on")),
        },
        _ => Err(
            "the options are preallocation=off, falloc or full, state=on or off, and region_size=BYTES"
                .to_owned(),
        ),
    }
}

pub fn run(args: &Args) -> Outcome {
    letters::refuse(&[
        (
            args.unseen_backing,
            "-u: a backing must be there when an overlay is made on it; \"qbm rebase -u\" names another one later",
        ),
        (
            args.image_format.is_some() && args.image.is_none(),
            "a new disk is always qbm; -f is for --image",
        ),
    ])?;
    let mut options = CreateOptions::new();
    if let Some(mode) = args.preallocation {
        options = options.preallocation(mode.into());
    }
    for option in &args.options {
        options = match *option {
            KeyValue::Preallocation(_) if args.preallocation.is_some() => {
                let words = "--preallocation and -o preallocation are the same; give one of them";
                return Err(Failure::Usage(words.to_owned()));
            }
            KeyValue::Preallocation(mode) => options.preallocation(mode.into()),
            KeyValue::State(on) => options.no_state(!on),
            KeyValue::RegionSize(bytes) => options.region_bytes(bytes),
        };
    }
    if let Some(size) = args.size {
        options = options.size(size);
    }
    if let Some(image) = &args.image {
        options = options.image(image);
    }
    if let Some(format) = args.image_format {
        options = options.image_format(format);
    }
    if let (Some(backing), Some(format)) = (&args.backing, args.backing_format) {
        options = options.backing(backing, format);
    }
    if let Some(granularity) = args.granularity {
        options = options.granularity(granularity);
    }
    options.create(&args.disk).map_err(|error| explain(error, args))?;
    if args.quiet {
        return Ok(());
    }
    if let (Some(backing), Some(Format::Raw)) = (&args.backing, args.backing_format)
        && let Some(other) = named_otherwise(backing)
    {
        // Where it cannot be said, the disk is made all the same.
        let _ = writeln!(
            io::stderr(),
            "qbm: note: {} is taken as raw: what is shown are the bytes of that file itself; if it is a {other}, \
             \"qbm rebase -u -F {other} {}\" says so",
            shown(backing),
            shown(&args.disk)
        );
    }
    report(args)
}

/// The format that a name tells of, where that is not raw.
fn named_otherwise(name: &str) -> Option<Format> {
    let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
    let format: Format = extension.parse().ok()?;
    (format != Format::Raw).then_some(format)
}

/// People tend to name an image from where they stand; the descriptor names it from where it lies.
fn explain(error: qbm::Error, args: &Args) -> Failure {
    let (option, named) = match (&args.image, &args.backing) {
        (Some(image), _) => ("--image", image),
        (None, Some(backing)) => ("-b", backing),
        (None, None) => return error.into(),
    };
    let exists_here = Path::new(named).is_relative() && Path::new(named).exists();
    if error.code() == ErrorCode::FileNotFound && exists_here {
        let hint = format!("{option} is relative to the descriptor's folder, not to the current one");
        return Failure::Hint(error, hint);
    }
    error.into()
}

fn report(args: &Args) -> Outcome {
    let path = &args.disk;
    let made = shown(path);
    let mut out = io::stdout().lock();
    // The disk is made, whether or not it can be looked at: an image may be writable only.
    let seen = OpenOptions::new()
        .read_only(true)
        .open(path)
        .and_then(|disk| disk.layer(0));
    match seen {
        Ok(image) => writeln!(
            out,
            "created {made}: {}, data in {}",
            long_size(image.length),
            shown(&image.path)
        )?,
        Err(error) if error.code() == ErrorCode::Locked => {
            let below = args.backing.as_ref().or(args.image.as_ref());
            let below = below.map_or("what it is on", String::as_str);
            writeln!(
                out,
                "created {made}, which cannot be opened until {} is closed: it is open for writing elsewhere",
                shown(below)
            )?;
        }
        Err(_) => writeln!(out, "created {made}")?,
    }
    Ok(())
}

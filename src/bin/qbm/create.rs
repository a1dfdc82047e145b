//! `qbm create`: a new disk.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use qbm::{CreateOptions, ErrorCode, Format, Granularity, OpenOptions};

use crate::failure::{Failure, Outcome};
use crate::output::long_size;
use crate::size::{parse_granularity, parse_size};

const AFTER_HELP: &str = "\
Nothing that exists is overwritten: not the descriptor, and a data image whose name is taken gets a number.

Examples:
  qbm create disk.qbm 20G
      A sparse disk of 20 GiB: disk.qbm describes it, disk-data.img holds its bytes.
  qbm create --preallocation falloc disk.qbm 20G
      The same, with its space reserved, so that the host's file system cannot run full under the guest.
  qbm create --image old.img disk.qbm
      A descriptor for the raw image old.img that lies beside it. The image is not changed.
  qbm create --image /dev/vg0/vm1 vm1.qbm
      A descriptor for a block device.
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
    #[arg(conflicts_with_all = ["image", "preallocation", "option"])]
    backing: Option<String>,

    /// What the backing is: raw or qbm. It is never guessed
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "backing", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// The unit in which the new disk takes from its backing, a power of two from 512 to 2G [default: 64k]. Without -b:
    /// a disk that only knows which units were written
    #[arg(short, long, value_name = "BYTES", value_parser = parse_granularity)]
    #[arg(conflicts_with_all = ["image", "preallocation", "option"])]
    granularity: Option<Granularity>,

    /// Take the raw image or block device FILE that exists as the disk's data. A relative name is relative to the
    /// descriptor's folder, not to the current one, and goes into the descriptor as it is
    #[arg(long, value_name = "FILE")]
    image: Option<String>,

    /// How much of the new image's space is reserved at once [default: off]
    #[arg(long, value_name = "MODE", default_value = "off", hide_default_value = true)]
    #[arg(conflicts_with = "image")]
    preallocation: Preallocation,

    /// qemu-img's spelling of the same: preallocation=off, falloc or full
    #[arg(short = 'o', value_name = "preallocation=MODE", value_parser = parse_option)]
    #[arg(conflicts_with_all = ["image", "preallocation"])]
    option: Option<Preallocation>,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

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

fn parse_option(text: &str) -> Result<Preallocation, String> {
    let Some(("preallocation", mode)) = text.split_once('=') else {
        return Err("the only option is preallocation=off, falloc or full".to_owned());
    };
    Preallocation::from_str(mode, false)
        .map_err(|_| format!("{mode:?} is no way to preallocate; known are off, falloc and full"))
}

fn parse_format(text: &str) -> Result<Format, String> {
    text.parse()
        .map_err(|error: qbm::Error| format!("it {}", error.message()))
}

pub fn run(args: &Args) -> Outcome {
    let mut options = CreateOptions::new().preallocation(args.option.unwrap_or(args.preallocation).into());
    if let Some(size) = args.size {
        options = options.size(size);
    }
    if let Some(image) = &args.image {
        options = options.image(image);
    }
    if let (Some(backing), Some(format)) = (&args.backing, args.backing_format) {
        options = options.backing(backing, format);
    }
    if let Some(granularity) = args.granularity {
        options = options.granularity(granularity);
    }
    options.create(&args.disk).map_err(|error| explain(error, args))?;
    if !args.quiet {
        report(&args.disk)?;
    }
    Ok(())
}

/// People tend to name an image from where they stand; the descriptor names it from where it lies.
fn explain(error: qbm::Error, args: &Args) -> Failure {
    let (option, named) = match (&args.image, &args.backing) {
        (Some(image), _) => ("--image", image),
        (None, Some(backing)) => ("-b", backing),
        (None, None) => return Failure::Engine(error),
    };
    let exists_here = Path::new(named).is_relative() && Path::new(named).exists();
    if error.code() == ErrorCode::FileNotFound && exists_here {
        let hint = format!("{option} is relative to the descriptor's folder, not to the current one");
        return Failure::Hint(error, hint);
    }
    Failure::Engine(error)
}

fn report(path: &Path) -> Outcome {
    let shown = path.display();
    let mut out = io::stdout().lock();
    // The disk is made, whether or not it can be looked at: an image may be writable only.
    let seen = OpenOptions::new()
        .read_only(true)
        .open(path)
        .and_then(|disk| disk.layer(0));
    match seen {
        Ok(image) => writeln!(
            out,
            "created {shown}: {}, data in {}",
            long_size(image.length),
            image.path.display()
        )?,
        Err(_) => writeln!(out, "created {shown}")?,
    }
    Ok(())
}

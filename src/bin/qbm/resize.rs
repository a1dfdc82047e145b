//! `qbm resize`: a longer or shorter disk.

use std::io::{self, Write as _};
use std::path::PathBuf;

use qbm::TruncateFlags;

use crate::failure::{Failure, Outcome};
use crate::letters::Described;
use crate::open;
use crate::output::{long_size, shown};
use crate::size::{NewLength, parse_new_length};

const AFTER_HELP: &str = "\
The guest sees the new size when it next looks; its partitions and file systems are its own to grow, or to shrink
before the disk is. New bytes read as zeros. A block device cannot be resized from here.

Examples:
  qbm resize disk.qbm 40G
      The disk is 40 GiB from now on.
  qbm resize disk.qbm +5G
      5 GiB more than now.
  qbm resize --shrink disk.qbm -- -5G
      5 GiB less: what lies there is lost. (The -- may be left out.)";

/// Make a disk longer or shorter
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Allow a size below the present one: the bytes behind it are lost
    #[arg(long)]
    shrink: bool,

    /// Print nothing when it is done
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    described: Described,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,

    /// The new size in bytes, or with a suffix k, M, G, T, P or E (powers of 1024); with + or - in front, how much
    /// longer or shorter
    #[arg(value_name = "[+|-]SIZE", value_parser = parse_new_length, allow_hyphen_values = true)]
    size: NewLength,
}

pub fn run(args: &Args) -> Outcome {
    let disk_name = shown(&args.disk);
    let disk = open::to_write(&args.disk)?;
    let old = disk.length();
    let refused = |why: String| Failure::Refused(format!("cannot resize {disk_name}: {why}"));
    let new = args.size.of(old).map_err(refused)?;
    if new < old && !args.shrink {
        return Err(refused(format!(
            "{new} bytes are {} fewer than it has, and what lies there would be lost; --shrink allows it",
            old - new
        )));
    }
    let flags = if args.shrink {
        TruncateFlags::SHRINK
    } else {
        TruncateFlags::empty()
    };
    disk.truncate(new, flags)
        .and_then(|()| disk.close())
        .map_err(|error| error.context(format_args!("cannot resize {disk_name}")))?;
    if !args.quiet {
        let mut out = io::stdout().lock();
        if new == old {
            writeln!(out, "{disk_name} has {} already", long_size(old))?;
        } else {
            writeln!(
                out,
                "resized {disk_name} from {} to {}",
                long_size(old),
                long_size(new)
            )?;
        }
    }
    Ok(())
}

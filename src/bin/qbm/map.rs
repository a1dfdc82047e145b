//! `qbm map`: where data is, and where holes are.
//!
//! Invariant: for the same raw image the extents are qemu-img's, up to the image's true end (qemu-img counts in
//! blocks of 512 bytes, and reports an image that does not end on one as that much longer, with a hole at its end).

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use qbm::{BlockStatus, Disk, StatusFlags};

use crate::failure::{Failure, Outcome};
use crate::open;
use crate::output::Output;
use crate::size::parse_size;

const AFTER_HELP: &str = "\
The table for people lists data only; what is missing from it reads as zeros. In JSON every byte is in one extent:
  start, length  which bytes of the disk
  depth          how many images lie above the one that has them; 0 is the disk's own
  present        an image of the chain has them
  zero           they read as zeros
  data           they are stored, and must be read to be known
  compressed     they are stored compressed
  offset         where in that image's file they are; left out where there is no such place

These are qemu-img map's columns, keys and extents, with two differences: an image whose length is no multiple of 512
ends where it ends (qemu-img adds a hole up to the next multiple), and where there are no bytes to tell of, the list
is empty (qemu-img prints one extent of length 0).

Examples:
  qbm map disk.qbm
  qbm map --output json -s 1G -l 64M disk.qbm
      The 64 MiB that begin at 1 GiB.";

/// Say which parts of a disk are data and which are holes
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Begin here
    #[arg(short, long, value_name = "OFFSET", value_parser = parse_size, default_value = "0")]
    #[arg(hide_default_value = true)]
    start_offset: u64,

    /// Tell of this many bytes only
    #[arg(short = 'l', long, value_name = "LEN", value_parser = parse_size)]
    max_length: Option<u64>,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

pub fn run(args: &Args) -> Outcome {
    let disk = open::to_read(&args.disk)?;
    let length = disk.length();
    let start = args.start_offset;
    if start > length {
        return Err(Failure::Refused(format!(
            "cannot map {}: the start offset {start} lies behind the disk's end at {length}",
            args.disk.display()
        )));
    }
    let end = args
        .max_length
        .map_or(length, |len| start.saturating_add(len).min(length));
    let mut out = BufWriter::new(io::stdout().lock());
    match args.output {
        Output::Human => print_human(&disk, start, end, &mut out)?,
        Output::Json => print_json(&disk, start, end, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

/// A run of bytes with one answer, as long as it goes.
#[derive(Clone, Copy)]
struct Extent {
    start: u64,
    status: BlockStatus,
}

impl Extent {
    fn has(&self, flag: StatusFlags) -> bool {
        self.status.flags.contains(flag)
    }

    /// Appends `next` where it goes on as this one does: the same answer, at the next place of the same file.
    fn merge(&mut self, next: &BlockStatus) -> bool {
        let last = &mut self.status;
        let goes_on = last.flags == next.flags
            && last.depth == next.depth
            && last.layer == next.layer
            && (!next.flags.contains(StatusFlags::OFFSET_VALID) || last.offset + last.length == next.offset);
        if goes_on {
            last.length += next.length;
        }
        goes_on
    }
}

/// Tells `each` of every extent in `start .. end`, merged.
fn walk(disk: &Disk, start: u64, end: u64, mut each: impl FnMut(Extent) -> Outcome) -> Outcome {
    let mut pending: Option<Extent> = None;
    let mut at = start;
    while at < end {
        let status = disk.block_status(at, end - at)?;
        if !pending.as_mut().is_some_and(|extent| extent.merge(&status))
            && let Some(whole) = pending.replace(Extent { start: at, status })
        {
            each(whole)?;
        }
        at += status.length;
    }
    pending.map_or(Ok(()), each)
}

fn print_human(disk: &Disk, start: u64, end: u64, out: &mut impl Write) -> Outcome {
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
    walk(disk, start, end, |extent| {
        let status = &extent.status;
        if !extent.has(StatusFlags::DATA) || extent.has(StatusFlags::ZERO) {
            return Ok(());
        }
        if !extent.has(StatusFlags::OFFSET_VALID) {
            return Err(Failure::Refused(
                "some of the data has no place of its own in a file; --output json shows it".to_owned(),
            ));
        }
        let file = disk.layer(status.layer)?.path;
        writeln!(
            out,
            "{:<16}{:<16}{:<16}{}",
            hex(extent.start),
            hex(status.length),
            hex(status.offset),
            file.display()
        )?;
        Ok(())
    })
}

/// As C's `%#x` prints it: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}

fn print_json(disk: &Disk, start: u64, end: u64, out: &mut impl Write) -> Outcome {
    write!(out, "[")?;
    let mut separator = "";
    walk(disk, start, end, |extent| {
        let status = &extent.status;
        write!(
            out,
            "{separator}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
             \"compressed\": false",
            extent.start,
            status.length,
            status.depth,
            status
                .flags
                .intersects(StatusFlags::ALLOCATED | StatusFlags::OFFSET_VALID),
            extent.has(StatusFlags::ZERO),
            extent.has(StatusFlags::DATA),
        )?;
        if extent.has(StatusFlags::OFFSET_VALID) {
            write!(out, ", \"offset\": {}", status.offset)?;
        }
        write!(out, "}}")?;
        separator = ",\n";
        Ok(())
    })?;
    writeln!(out, "]")?;
    Ok(())
}

//! `qbm map`: where data is, and where holes are; what is dirty; and a picture of both.
//!
//! Invariant: for the same raw image the extents are qemu-img's, up to the image's true end (qemu-img counts in
//! blocks of 512 bytes, and reports an image that does not end on one as that much longer, with a hole at its end).

mod bitmap;
mod grid;
mod picture;
mod svg;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use qbm::{BlockStatus, ByteRange, Disk, StatusFlags};

use crate::dirty::Runs;
use crate::failure::{Failure, Outcome};
use crate::letters::Described;
use crate::open::{self, Share};
use crate::output::{Output, hex, shown};
use crate::span::Span;

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

With --bitmap, an extent has a start, a length, and whether it is dirty.

A picture shows the disk as a grid of cells, row by row, with a legend. A cell of which any byte is
dirty is shown as that, whatever data it has. On a terminal the picture is as wide as that, and in
colours unless NO_COLOR is set; elsewhere it is made of letters, for 80 columns.

Examples:
  qbm map disk.qbm
  qbm map --output json -s 1G -l 64M disk.qbm
      The 64 MiB that begin at 1 GiB.
  qbm map --bitmap nightly disk.qbm
      What is dirty in the bitmap nightly, and what is clean.
  qbm map --picture disk.qbm
      The whole disk at a glance.
  qbm map --picture=disk.svg --bitmap nightly disk.qbm
      The same for a report, with what is dirty in nightly.";

/// Say which parts of a disk are data or holes, or dirty or clean, or draw it
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print for people or for programs
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: Output,

    #[command(flatten)]
    span: Span,

    /// Say which parts are dirty in the bitmap NAME and which are clean, instead of what is data
    #[arg(long, value_name = "NAME")]
    bitmap: Option<String>,

    /// Draw it: data, and what is dirty in the bitmap that --bitmap names or else in any. On the terminal, or into
    /// FILE.svg, which is overwritten
    #[arg(long, value_name = "FILE.svg", num_args = 0..=1, require_equals = true, conflicts_with = "output")]
    #[arg(value_parser = parse_canvas, default_missing_value = "-")]
    picture: Option<Canvas>,

    #[command(flatten)]
    share: Share,

    #[command(flatten)]
    described: Described,

    /// The disk's descriptor
    #[arg(value_name = "DISK.qbm")]
    disk: PathBuf,
}

/// What a picture is drawn on.
#[derive(Clone)]
enum Canvas {
    Terminal,
    File(PathBuf),
}

fn parse_canvas(text: &str) -> Result<Canvas, String> {
    if text == "-" {
        return Ok(Canvas::Terminal);
    }
    let name = PathBuf::from(text);
    // What is there is overwritten; so it must not be a disk, for which `--picture` and a name are easily taken.
    match name.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("svg") => Ok(Canvas::File(name)),
        _ => Err("a picture is written as SVG, into a file whose name ends in .svg".to_owned()),
    }
}

pub fn run(args: &Args) -> Outcome {
    let disk = open::shared(&args.disk, &args.share)?;
    let span = args.span.of(&disk, "map", &args.disk)?;
    let bitmap = args.bitmap.as_deref();
    if let Some(canvas) = &args.picture {
        return picture::draw(&disk, span, bitmap, &args.disk, canvas);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    match (bitmap, args.output) {
        (None, Output::Human) => print_human(&disk, span, &mut out)?,
        (None, Output::Json) => print_json(&disk, span, &mut out)?,
        (Some(name), output) => {
            let runs = Runs::new(&disk, name, span, &args.disk)?;
            bitmap::print(runs, span, output, &mut out)?;
        }
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

/// Tells `each` of every extent in `span`, merged.
fn walk(disk: &Disk, span: ByteRange, mut each: impl FnMut(Extent) -> Outcome) -> Outcome {
    let mut pending: Option<Extent> = None;
    let mut at = span.start();
    while at < span.end() {
        let status = disk.block_status(at, span.end() - at)?;
        if !pending.as_mut().is_some_and(|extent| extent.merge(&status))
            && let Some(whole) = pending.replace(Extent { start: at, status })
        {
            each(whole)?;
        }
        at += status.length;
    }
    pending.map_or(Ok(()), each)
}

fn print_human(disk: &Disk, span: ByteRange, out: &mut impl Write) -> Outcome {
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
    walk(disk, span, |extent| {
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
            shown(&file)
        )?;
        Ok(())
    })
}

fn print_json(disk: &Disk, span: ByteRange, out: &mut impl Write) -> Outcome {
    write!(out, "[")?;
    let mut separator = "";
    walk(disk, span, |extent| {
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
                .intersects(StatusFlags::ALLOCATED | StatusFlags::OFFSET_VALID | StatusFlags::DATA),
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

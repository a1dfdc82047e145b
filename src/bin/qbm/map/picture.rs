//! A picture of a disk: on the terminal, or handed to `svg`.
//!
//! Invariant: a shade is told by its character alone wherever there is no colour.

use std::env;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::Path;

use qbm::descriptor::BitmapKind;
use qbm::{ByteRange, Disk, StatusFlags};

use super::grid::{Grid, Shade};
use super::{Canvas, svg, walk};
use crate::dirty::Runs;
use crate::failure::Outcome;
use crate::output::{long_size, short_size, shown};

/// The room for the offset at which a row begins.
const LABEL: usize = 9;
/// What the columns of a terminal are where there is none.
const USUAL_WIDTH: usize = 80;
/// The most cells in a row; more are too small to see.
const WIDEST: usize = 128;
/// The fewest: a terminal so narrow breaks the lines.
const NARROWEST: usize = 8;
/// The cells in a row of a file, whose width is nobody's terminal.
const SVG_COLUMNS: usize = 64;

/// What the words around a grid say.
pub struct Captions {
    pub title: String,
    pub data: String,
    /// `None` where the disk has no bitmap to tell of.
    pub dirty: Option<String>,
}

/// Draws `span` of `disk`, which the user calls `path`, on `canvas`.
pub fn draw(disk: &Disk, span: ByteRange, bitmap: Option<&str>, path: &Path, canvas: &Canvas) -> Outcome {
    let style = Style::of_stdout();
    let columns = match canvas {
        Canvas::Terminal => style.columns(),
        Canvas::File(_) => SVG_COLUMNS,
    };
    let mut grid = Grid::new(span, columns);
    walk(disk, span, |extent| {
        if extent.has(StatusFlags::DATA) && !extent.has(StatusFlags::ZERO) {
            let end = extent.start + extent.status.length;
            grid.add_data(ByteRange::between(extent.start, end));
        }
        Ok(())
    })?;
    let names = match bitmap {
        Some(name) => vec![name.to_owned()],
        None => dirty_bitmaps(disk)?,
    };
    let mut bitmaps = Vec::new();
    for name in &names {
        bitmaps.push(Runs::new(disk, name, span, path)?);
    }
    for run in Union::new(bitmaps) {
        grid.add_dirty(run?);
    }
    let captions = captions(&grid, span, disk, &names, path);
    match canvas {
        Canvas::Terminal => print(&grid, &captions, &style),
        Canvas::File(file) => std::fs::write(file, svg::render(&grid, &captions))
            .map_err(|e| qbm::Error::io("write", file, &e).into()),
    }
}

fn dirty_bitmaps(disk: &Disk) -> Outcome<Vec<String>> {
    let dirty = disk
        .bitmap_list()?
        .into_iter()
        .filter(|info| matches!(info.kind, BitmapKind::Dirty));
    Ok(dirty.map(|info| info.name).collect())
}

fn captions(grid: &Grid, span: ByteRange, disk: &Disk, names: &[String], path: &Path) -> Captions {
    let part = if span.len() == disk.length() {
        short_size(span.len())
    } else {
        format!("{} at {}", short_size(span.len()), short_size(span.start()))
    };
    let title = format!("{}: {part}, {} a cell", shown(path), short_size(grid.cell_size()));
    let dirty = long_size(grid.dirty());
    Captions {
        title,
        data: format!("data: {}", long_size(grid.data())),
        dirty: match names {
            [] => None,
            [name] => Some(format!("dirty: {dirty} in {name:?}")),
            names => Some(format!("dirty: {dirty} in any of {} bitmaps", names.len())),
        },
    }
}

/// What is dirty in any of several bitmaps, in order and each byte once.
struct Union<'d> {
    bitmaps: Vec<Runs<'d>>,
    /// The run of each that comes next.
    next: Vec<Option<qbm::Result<ByteRange>>>,
    /// What lies before was told.
    at: u64,
}

impl<'d> Union<'d> {
    fn new(mut bitmaps: Vec<Runs<'d>>) -> Self {
        let next = bitmaps.iter_mut().map(Iterator::next).collect();
        Self { bitmaps, next, at: 0 }
    }
}

impl Iterator for Union<'_> {
    type Item = qbm::Result<ByteRange>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // An error sorts first, and so is told.
            let first = (0..self.next.len())
                .filter(|&index| self.next[index].is_some())
                .min_by_key(|&index| match &self.next[index] {
                    Some(Ok(run)) => run.start(),
                    _ => 0,
                })?;
            let run = self.next[first].take()?;
            self.next[first] = self.bitmaps[first].next();
            let Ok(run) = run else { return Some(run) };
            let fresh = ByteRange::between(run.start().max(self.at), run.end());
            if !fresh.is_empty() {
                self.at = fresh.end();
                return Some(Ok(fresh));
            }
        }
    }
}

/// What standard output can show.
struct Style {
    colour: bool,
    width: usize,
}

impl Style {
    fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|kind| kind == "dumb");
        let width = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
        Self {
            colour: terminal && !dumb && set("NO_COLOR").is_none(),
            width: width.filter(|width| *width > 0).unwrap_or(USUAL_WIDTH),
        }
    }

    /// As many cells as fit beside the label: a power of two, so that rows begin at round offsets.
    fn columns(&self) -> usize {
        let room = self.width.saturating_sub(LABEL + 1).clamp(NARROWEST, WIDEST);
        1 << room.ilog2()
    }

    /// `count` cells of one shade.
    fn paint(&self, shade: Shade, count: usize) -> String {
        let (plain, fancy, colour) = match shade {
            Shade::Zeros => (".", "·", "90"),
            Shade::SomeData => ("-", "▒", "34"),
            Shade::Data => ("#", "█", "34"),
            Shade::SomeDirty => ("d", "▒", "33"),
            Shade::Dirty => ("D", "█", "33"),
        };
        if self.colour {
            format!("\x1b[{colour}m{}\x1b[0m", fancy.repeat(count))
        } else {
            plain.repeat(count)
        }
    }
}

fn print(grid: &Grid, captions: &Captions, style: &Style) -> Outcome {
    let mut out = BufWriter::new(io::stdout().lock());
    writeln!(out, "{}", captions.title)?;
    for (start, row) in grid.rows() {
        write!(out, "{:>LABEL$} ", short_size(start))?;
        for run in row.chunk_by(|one, other| one == other) {
            write!(out, "{}", style.paint(run[0], run.len()))?;
        }
        writeln!(out)?;
    }
    legend(captions, style, &mut out)?;
    writeln!(out, "{}", captions.data)?;
    if let Some(dirty) = &captions.dirty {
        writeln!(out, "{dirty}")?;
    }
    out.flush()?;
    Ok(())
}

/// The shades with their words, in lines that fit.
fn legend(captions: &Captions, style: &Style, out: &mut impl Write) -> io::Result<()> {
    let mut used = 0;
    for shade in captions.shades() {
        let words = shade.words();
        // The cell, a space, the words.
        let room = 2 + words.len();
        let gap = match used {
            0 => "",
            _ if used + 3 + room > style.width => {
                used = 0;
                "\n"
            }
            _ => {
                used += 3;
                "   "
            }
        };
        write!(out, "{gap}{} {words}", style.paint(*shade, 1))?;
        used += room;
    }
    writeln!(out)
}

impl Captions {
    /// The shades that the picture can have.
    pub fn shades(&self) -> &'static [Shade] {
        if self.dirty.is_some() {
            &Shade::ALL
        } else {
            &Shade::ALL[..3]
        }
    }
}

//! What of a disk is dirty in a bitmap, and what is clean: every byte in one extent.

use std::io::{self, Write};

use qbm::ByteRange;

use crate::dirty::Runs;
use crate::failure::Outcome;
use crate::output::{Output, hex};

/// Prints `runs`, those in `span`, and what lies between them.
pub fn print(runs: Runs<'_>, span: ByteRange, output: Output, out: &mut impl Write) -> Outcome {
    let mut table = Table {
        output,
        out,
        empty: true,
    };
    table.begin()?;
    let mut at = span.start();
    for run in runs {
        let run = run?;
        table.row(ByteRange::between(at, run.start()), false)?;
        table.row(run, true)?;
        at = run.end();
    }
    table.row(ByteRange::between(at, span.end()), false)?;
    table.end()?;
    Ok(())
}

struct Table<'o, W> {
    output: Output,
    out: &'o mut W,
    empty: bool,
}

impl<W: Write> Table<'_, W> {
    fn begin(&mut self) -> io::Result<()> {
        match self.output {
            Output::Human => writeln!(self.out, "{:<16}{:<16}State", "Offset", "Length"),
            Output::Json => write!(self.out, "["),
        }
    }

    fn row(&mut self, extent: ByteRange, dirty: bool) -> io::Result<()> {
        if extent.is_empty() {
            return Ok(());
        }
        let (start, length) = (extent.start(), extent.len());
        match self.output {
            Output::Human => {
                let state = if dirty { "dirty" } else { "clean" };
                writeln!(self.out, "{:<16}{:<16}{state}", hex(start), hex(length))?;
            }
            Output::Json => {
                let separator = if self.empty { "" } else { ",\n" };
                write!(
                    self.out,
                    "{separator}{{ \"start\": {start}, \"length\": {length}, \"dirty\": {dirty} }}"
                )?;
            }
        }
        self.empty = false;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        match self.output {
            Output::Human => Ok(()),
            Output::Json => writeln!(self.out, "]"),
        }
    }
}

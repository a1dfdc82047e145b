//! The part of a disk that a verb tells of.

use std::path::Path;

use qbm::{ByteRange, Disk};

use crate::failure::{Failure, Outcome};
use crate::size::parse_size;

/// Where to begin, and how far to go.
#[derive(clap::Args)]
pub struct Span {
    /// Begin here
    #[arg(short, long, value_name = "OFFSET", value_parser = parse_size, default_value = "0")]
    #[arg(hide_default_value = true)]
    start_offset: u64,

    /// Tell of this many bytes only
    #[arg(short = 'l', long, value_name = "LEN", value_parser = parse_size)]
    max_length: Option<u64>,
}

impl Span {
    /// What of it `disk` has. `verb` is what cannot be done where that begins behind the disk's end.
    pub fn of(&self, disk: &Disk, verb: &str, path: &Path) -> Outcome<ByteRange> {
        let length = disk.length();
        let start = self.start_offset;
        if start > length {
            return Err(Failure::Refused(format!(
                "cannot {verb} {}: the start offset {start} lies behind the disk's end at {length}",
                path.display()
            )));
        }
        let end = self
            .max_length
            .map_or(length, |len| start.saturating_add(len).min(length));
        Ok(ByteRange::between(start, end))
    }
}

//! Copying what is not zeros into a new data file, and summing up what a data file says.

use std::path::Path;

use super::content::{Content, Visitor, walk};
use super::digest::{BLOCK, BlockDigest};
use super::pace::Pace;
use crate::error::{Error, Result};
use crate::storage::{Storage, write_slice};
use crate::units::ByteRange;

/// What was written to a data file.
pub(super) struct Copied {
    /// In bytes; zeros are not.
    pub(super) stored: u64,
    pub(super) checksum: String,
}

/// Copies `parts` of `source`, in ascending order, into an empty file at `path` of the same length, each widened to
/// whole blocks: a checksum is of these. Holes stay holes, and zeros become some.
pub(super) fn copy(
    source: &dyn Content,
    parts: impl Iterator<Item = ByteRange>,
    target: &dyn Storage,
    path: &Path,
    pace: &mut Pace<'_, '_>,
) -> Result<Copied> {
    target
        .set_length(source.length())
        .map_err(|e| Error::io("resize", path, &e))?;
    let mut copy = Copy {
        target: Some((target, path)),
        pace,
        digest: BlockDigest::default(),
        stored: 0,
        before: 0,
        start: 0,
    };
    let mut seen = 0;
    for part in parts {
        let start = (part.start() - part.start() % BLOCK).max(seen);
        let end = part.end().next_multiple_of(BLOCK).min(source.length());
        copy.start = start;
        walk(source, ByteRange::between(start, end), &mut copy)?;
        copy.before += end.saturating_sub(start);
        seen = seen.max(end);
    }
    Ok(Copied {
        stored: copy.stored,
        checksum: copy.digest.finish(),
    })
}

/// The checksum of `content`.
pub(super) fn checksum(content: &dyn Content, pace: &mut Pace<'_, '_>) -> Result<String> {
    let before = pace.done;
    let mut sum = Copy {
        target: None,
        pace,
        digest: BlockDigest::default(),
        stored: 0,
        before,
        start: 0,
    };
    walk(content, ByteRange::between(0, content.length()), &mut sum)?;
    Ok(sum.digest.finish())
}

struct Copy<'c, 'a, 'p> {
    target: Option<(&'c dyn Storage, &'c Path)>,
    pace: &'c mut Pace<'a, 'p>,
    digest: BlockDigest,
    stored: u64,
    /// What was done before this part.
    before: u64,
    /// Where this part begins.
    start: u64,
}

impl Visitor for Copy<'_, '_, '_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.digest.add(offset, bytes);
        self.stored += bytes.len() as u64;
        if let Some((target, path)) = self.target {
            write_slice(target, bytes, offset).map_err(|e| {
                Error::io(
                    &format!("write {} bytes at offset {offset} to", bytes.len()),
                    path,
                    &e,
                )
            })?;
        }
        self.pace.moved(bytes.len() as u64)
    }

    fn passed(&mut self, offset: u64) -> Result<()> {
        self.pace.reached(self.before + (offset - self.start))
    }
}

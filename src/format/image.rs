//! An opened image of a format: a storage that holds the disk's bytes, and says what of them is where.
//!
//! Invariant: offsets and lengths of a [`FormatImage`] are the disk's, never those of the file behind it.

use std::io;
use std::sync::Arc;

use crate::storage::{Scatter, Storage, Version};
use crate::units::ByteRange;

/// An image in a format that has its own idea of what is where.
pub(crate) trait FormatImage: Storage {
    /// Where the first bytes of `range`, which is not empty and lies within the image, are.
    fn mapping(&self, range: ByteRange) -> io::Result<Mapping>;

    /// Has `reader`, which reads the same file by tables of its own, know of what is written here, from now on and before it
    /// could go by what is not so any more: what nobody writes to keeps its bytes, but not always its place.
    fn read_by(&self, _reader: Arc<dyn FormatImage>) -> io::Result<()> {
        Ok(())
    }

    /// Its version before it was opened, where that alone has changed one of its files.
    fn version_found(&self) -> Option<Version> {
        None
    }

    /// Reads the tables anew: another has written to the file.
    fn reread(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What an image says of some of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) place: Place,
    /// How many bytes it holds for: at least one.
    pub(crate) len: u64,
}

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the image.
    Data {
        /// Where in the image's own file they begin; `None` of those that are compressed, or in another file.
        offset: Option<u64>,
    },
    /// The image says that they are zeros.
    Zeros,
    /// The image does not have them: they are in its backing, and zeros where it has none.
    Below,
}

impl Mapping {
    /// Takes `next`, which begins where this ends, into this. False where the two do not go on as one.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        let goes_on = match (self.place, next.place) {
            (Place::Data { offset: Some(here) }, Place::Data { offset: Some(there) }) => {
                here.checked_add(self.len) == Some(there)
            }
            (here, there) => here == there,
        };
        if goes_on {
            self.len += next.len;
        }
        goes_on
    }
}

/// So many pieces of an image's tables are looked at for one answer, so that no answer takes long.
const LOOKS: usize = 64;

/// The first run of `range`, from what `look` says of its pieces.
pub(super) fn joined(
    range: ByteRange,
    mut look: impl FnMut(ByteRange) -> io::Result<Mapping>,
) -> io::Result<Mapping> {
    let mut whole = look(range)?;
    for _ in 1..LOOKS {
        let at = range.start() + whole.len;
        if at >= range.end() || !whole.join(&look(ByteRange::between(at, range.end()))?) {
            break;
        }
    }
    Ok(whole)
}

/// Reads what a file of an image has; behind its end there are zeros.
pub(super) fn read_or_zeros(file: &dyn Storage, into: Scatter<'_>, offset: u64) -> io::Result<()> {
    match file.read(into, offset) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            into.zero();
            let there = file.length()?.saturating_sub(offset);
            let there = usize::try_from(there).unwrap_or(usize::MAX).min(into.len());
            if there == 0 {
                return Ok(());
            }
            let mut room = Vec::new();
            file.read(into.part(0, there, &mut room), offset)
        }
        done => done,
    }
}

/// The bytes of a request, which must lie within an image of `length` bytes.
pub(super) fn within(offset: u64, len: u64, length: u64) -> io::Result<ByteRange> {
    ByteRange::new(offset, len)
        .filter(|range| range.end() <= length)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

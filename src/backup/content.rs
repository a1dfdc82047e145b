//! What bytes are copied, compared and summed up from: an open disk, or one data file.
//!
//! Invariant: whatever is not handed out as data reads as zeros.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::digest::BLOCK;
use crate::disk::{BackupView, Disk, StatusFlags};
use crate::error::{Error, Result};
use crate::storage::{Extent, Storage, read_slice};
use crate::units::ByteRange;

/// The unit of work, and of checksums. A multiple of a block.
pub(super) const CHUNK: u64 = 1 << 20;

/// What is read in one go: small enough to be in the processor's cache still when it is summed up and written.
const STEP: u64 = 256 << 10;
const STEP_BYTES: usize = 256 << 10;

/// Bytes that can be read, and that know where there are none.
pub(super) trait Content: Sync {
    fn length(&self) -> u64;
    fn read(&self, into: &mut [u8], offset: u64) -> Result<()>;
    /// Whether the first bytes of `range`, which is not empty, need to be read to be known, and how far that goes.
    fn extent(&self, range: ByteRange) -> Result<Extent>;
    /// Nobody will ask for `range` again.
    fn release(&self, _range: ByteRange) -> Result<()> {
        Ok(())
    }
    /// Lets `target` share the blocks of `range`, at the same place. False where they are not what they were; `None` where
    /// the content does not lie in one file at the same place.
    fn share(&self, _range: ByteRange, _target: &dyn Storage) -> Option<io::Result<bool>> {
        None
    }
}

impl Content for Disk {
    fn length(&self) -> u64 {
        Disk::length(self)
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        Disk::read(self, into, offset)
    }

    fn extent(&self, range: ByteRange) -> Result<Extent> {
        let status = self.block_status(range.start(), range.len())?;
        Ok(Extent {
            data: !status.flags.contains(StatusFlags::ZERO),
            len: status.length,
        })
    }
}

impl Content for BackupView<'_> {
    fn length(&self) -> u64 {
        BackupView::length(self)
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        BackupView::read(self, into, offset)
    }

    fn extent(&self, range: ByteRange) -> Result<Extent> {
        self.block_status(range.start(), range.len())
    }

    fn release(&self, range: ByteRange) -> Result<()> {
        BackupView::release(self, range.start(), range.len())
    }

    fn share(&self, range: ByteRange, target: &dyn Storage) -> Option<io::Result<bool>> {
        BackupView::share(self, range, target)
    }
}

/// One raw file.
pub(super) struct RawFile {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) path: PathBuf,
    pub(super) length: u64,
}

impl RawFile {
    pub(super) fn new(storage: Arc<dyn Storage>, path: PathBuf) -> Result<Self> {
        let length = storage.length().map_err(|e| Error::io("measure", &path, &e))?;
        Ok(Self {
            storage,
            path,
            length,
        })
    }
}

impl Content for RawFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        read_slice(&*self.storage, into, offset).map_err(|e| Error::io("read", &self.path, &e))
    }

    fn extent(&self, range: ByteRange) -> Result<Extent> {
        self.storage
            .extent(range)
            .map_err(|e| Error::io("find the data in", &self.path, &e))
    }
}

/// What is read, summed up and written in one go: the pieces of one chunk that may have data.
pub(super) struct Chunk {
    /// In ascending order, none empty.
    pub(super) pieces: Vec<ByteRange>,
    /// All between the chunk before and the end of this one.
    pub(super) covers: ByteRange,
    /// How many bytes of what is to be walked over lie before the end of it.
    pub(super) passed: u64,
}

impl Chunk {
    /// Where the chunk begins, a multiple of [`CHUNK`].
    pub(super) fn start(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| chunk_of(piece.start()))
    }

    /// Its pieces, cut into what is read in one go.
    pub(super) fn steps(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.pieces.iter().flat_map(|piece| {
            let starts = (piece.start()..piece.end()).step_by(STEP_BYTES);
            starts.map(|at| ByteRange::between(at, piece.end().min(at + STEP)))
        })
    }
}

const fn chunk_of(offset: u64) -> u64 {
    offset - offset % CHUNK
}

/// Walks over parts of content, chunk by chunk, past its holes.
pub(super) struct Chunks<'c, I> {
    content: &'c dyn Content,
    parts: I,
    /// What is left of a part.
    rest: ByteRange,
    /// So far from the start of `rest` on there is data, as it was asked.
    data_to: u64,
    /// What is left of the parts begins behind this.
    covered: u64,
    passed: u64,
}

impl<'c, I: Iterator<Item = ByteRange>> Chunks<'c, I> {
    /// Of `parts` in ascending order, each widened to whole blocks.
    pub(super) fn new(content: &'c dyn Content, parts: I) -> Self {
        Self {
            content,
            parts,
            rest: ByteRange::between(0, 0),
            data_to: 0,
            covered: 0,
            passed: 0,
        }
    }

    /// How many bytes were walked over.
    pub(super) fn passed(&self) -> u64 {
        self.passed
    }

    pub(super) fn next(&mut self) -> Result<Option<Chunk>> {
        let mut pieces: Vec<ByteRange> = Vec::new();
        while let Some(piece) = self.piece(pieces.first().map(|first| chunk_of(first.start())))? {
            match pieces.last_mut() {
                Some(last) if last.end() == piece.start() => {
                    *last = ByteRange::between(last.start(), piece.end());
                }
                _ => pieces.push(piece),
            }
        }
        let Some(first) = pieces.first() else {
            return Ok(None);
        };
        let end = (chunk_of(first.start()) + CHUNK).min(self.content.length());
        let covers = ByteRange::between(self.covered, end);
        self.covered = end;
        Ok(Some(Chunk {
            pieces,
            covers,
            passed: self.passed,
        }))
    }

    /// The next piece that may have data, if it lies in the chunk that was begun.
    fn piece(&mut self, chunk: Option<u64>) -> Result<Option<ByteRange>> {
        loop {
            if self.rest.is_empty() {
                let Some(part) = self.parts.next() else {
                    return Ok(None);
                };
                let seen = self.rest.end();
                let start = (part.start() - part.start() % BLOCK).max(seen);
                let end = part.end().next_multiple_of(BLOCK).min(self.content.length());
                self.rest = ByteRange::between(start.min(end.max(seen)), end.max(seen));
                continue;
            }
            let (start, end) = (self.rest.start(), self.rest.end());
            if chunk.is_some_and(|chunk| chunk != chunk_of(start)) {
                return Ok(None);
            }
            if self.data_to <= start {
                let extent = self.content.extent(self.rest)?;
                let to = start.saturating_add(extent.len.max(1)).min(end);
                // A block that is a hole only in its first part is read with what follows.
                let whole = if to == end { end } else { to - to % BLOCK };
                if !extent.data && whole > start {
                    self.pass(whole);
                    continue;
                }
                self.data_to = to.next_multiple_of(BLOCK).min(end);
            }
            let to = self.data_to.min(chunk_of(start) + CHUNK);
            self.pass(to);
            return Ok(Some(ByteRange::between(start, to)));
        }
    }

    fn pass(&mut self, to: u64) {
        self.passed += to - self.rest.start();
        self.rest = ByteRange::between(to, self.rest.end());
    }
}

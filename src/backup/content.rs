//! What bytes are copied, compared and summed up from: an open disk, or one data file.
//!
//! Invariant: whatever is not handed out as data reads as zeros.

use std::path::PathBuf;
use std::sync::Arc;

use super::digest::{self, BLOCK};
use crate::disk::{BackupView, Disk, StatusFlags};
use crate::error::{Error, Result};
use crate::storage::{Extent, Storage, read_slice};
use crate::units::ByteRange;

/// The most bytes that are read in one go. A multiple of a block.
pub(super) const STEP: u64 = 1 << 20;

/// Bytes that can be read, and that know where there are none.
pub(super) trait Content {
    fn length(&self) -> u64;
    fn read(&self, into: &mut [u8], offset: u64) -> Result<()>;
    /// Whether the first bytes of `range`, which is not empty, need to be read to be known, and how far that goes.
    fn extent(&self, range: ByteRange) -> Result<Extent>;
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

/// What walks over content hears.
pub(super) trait Visitor {
    /// Blocks that are not zeros, in ascending order.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// All before `offset` has been seen.
    fn passed(&mut self, offset: u64) -> Result<()>;
}

/// Shows `visitor` what of `range` is not zeros. The range begins with a block, and ends with one or with the content.
pub(super) fn walk(content: &dyn Content, range: ByteRange, visitor: &mut dyn Visitor) -> Result<()> {
    let mut buffer = Vec::new();
    let mut at = range.start();
    while at < range.end() {
        let extent = content.extent(ByteRange::between(at, range.end()))?;
        let end = at.saturating_add(extent.len.max(1)).min(range.end());
        if !extent.data && (end == range.end() || end - at >= BLOCK) {
            // A block that is a hole only in its first part is read with what follows.
            at = if end == range.end() {
                end
            } else {
                end - end % BLOCK
            };
        } else {
            let end = end.next_multiple_of(BLOCK).min(at + STEP).min(range.end());
            buffer.resize(usize::try_from(end - at).unwrap_or(0), 0);
            content.read(&mut buffer, at)?;
            for run in digest::runs(&buffer) {
                visitor.data(at + run.start as u64, &buffer[run])?;
            }
            at = end;
        }
        visitor.passed(at)?;
    }
    Ok(())
}

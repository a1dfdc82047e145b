//! Bits of a bitmap's file that are behind the disk's end: nobody reads them, and no program should have set them.
//!
//! May call `storage`. Invariant: the bits of the disk are never changed.

use super::file::BitmapFile;
use crate::error::{Error, Result};
use crate::storage::{Zeroing, read_slice, write_slice};
use crate::units::ByteRange;

/// The most bytes that are read at once.
const STEP: u64 = 256 << 10;

impl BitmapFile {
    /// Whether a bit is set behind the first `len`.
    pub(crate) fn has_tail_bits(&self, len: u64) -> Result<bool> {
        let end = self.tail_end(len)?;
        if let Some((_, byte, mask)) = self.last_byte(len, end)?
            && byte & mask != 0
        {
            return Ok(true);
        }
        let mut buffer = vec![0; usize::try_from(STEP).unwrap_or(usize::MAX)];
        let mut at = len.div_ceil(8);
        while at < end {
            let extent = self
                .storage()
                .extent(ByteRange::between(at, end))
                .map_err(|e| Error::io("find the data of", self.path(), &e))?;
            let next = at.saturating_add(extent.len.clamp(1, STEP)).min(end);
            if !extent.data {
                at = at.saturating_add(extent.len.max(1)).min(end);
                continue;
            }
            let part = &mut buffer[..usize::try_from(next - at).unwrap_or(usize::MAX)];
            read_slice(self.storage(), part, at).map_err(|e| Error::io("read", self.path(), &e))?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            at = next;
        }
        Ok(false)
    }

    /// Clears every bit behind the first `len`, durably. The file keeps its length.
    pub(crate) fn clear_tail_bits(&self, len: u64) -> Result<()> {
        let end = self.tail_end(len)?;
        let failed = |e: std::io::Error| Error::io("write", self.path(), &e);
        if let Some((at, byte, mask)) = self.last_byte(len, end)? {
            write_slice(self.storage(), &[byte & !mask], at).map_err(failed)?;
        }
        let rest = ByteRange::between(len.div_ceil(8), end);
        if !rest.is_empty() {
            let how = Zeroing {
                may_unmap: true,
                no_fallback: false,
            };
            self.storage().write_zeroes(rest, how).map_err(failed)?;
        }
        self.sync()
    }

    /// The byte that the last bit shares with bits behind it: where it is, what it is, and which bits those are.
    fn last_byte(&self, len: u64, end: u64) -> Result<Option<(u64, u8, u8)>> {
        let (at, used) = (len / 8, len % 8);
        if used == 0 || at >= end {
            return Ok(None);
        }
        let mut byte = [0];
        read_slice(self.storage(), &mut byte, at).map_err(|e| Error::io("read", self.path(), &e))?;
        Ok(Some((at, byte[0], 0xff << used)))
    }

    /// Where the bytes end that may have been meant as bits: a file is the bitmap's own, of a block device only the
    /// words that the bits take are.
    fn tail_end(&self, len: u64) -> Result<u64> {
        let end = self
            .storage()
            .length()
            .map_err(|e| Error::io("measure", self.path(), &e))?;
        Ok(if self.storage().limits().block_device {
            end.min(len.div_ceil(64) * 8)
        } else {
            end
        })
    }
}

//! Getting what the files lack into them, and making it durable.

use super::{Bitmap, Shape};
use crate::disk::Disk;
use crate::error::Result;

impl Disk {
    /// Puts the bits of every write that completed before this call into the files of the persistent bitmaps, or of
    /// the one that is named, and makes them durable. Does nothing for transient ones, and on a disk that is open
    /// read-only.
    ///
    /// Guest writes go on meanwhile.
    pub fn bitmap_sync(&self, name: Option<&str>) -> Result<()> {
        self.alive.check_for_change()?;
        let shape = self.gate.enter();
        match name {
            Some(name) => self.settle(shape.find(name)?),
            None => self.settle_all(&shape),
        }
    }

    /// Makes the files of all bitmaps of `shape` durable, with all that they were told of.
    pub(in crate::disk) fn settle_all(&self, shape: &Shape) -> Result<()> {
        shape.bitmaps.iter().try_for_each(|bitmap| self.settle(bitmap))
    }

    /// Makes the file of `bitmap` durable, with all that it was told of.
    pub(super) fn settle(&self, bitmap: &Bitmap) -> Result<()> {
        let (Some(kept), Some(_), true) = (&bitmap.kept, bitmap.loaded(), self.writable) else {
            return Ok(());
        };
        bitmap.save()?;
        // A file whose sync failed may have lost what the kernel had for it: its bits vouch for nothing now (A2).
        kept.file.sync().inspect_err(|e| self.fail(e))
    }
}

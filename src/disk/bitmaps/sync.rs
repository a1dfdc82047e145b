//! Getting what the files lack into them, and making it durable.

use std::time::Instant;

use super::{Bitmap, Kept, Shape};
use crate::disk::Disk;
use crate::error::{Error, Result};

impl Disk {
    /// Puts the bits of every write that completed before this call into the files of the persistent bitmaps, or of
    /// the one that is named, and makes them durable. Does nothing for transient ones, and on a disk that is open
    /// read-only.
    ///
    /// Guest writes go on meanwhile.
    pub fn bitmap_sync(&self, name: Option<&str>) -> Result<()> {
        self.alive.check_unfailed()?;
        let shape = self.gate.enter();
        let Some(name) = name else {
            self.settle_all(&shape)?;
            // All that the intent map stands for is durable now, but for what came meanwhile.
            return match &self.session {
                Some(session) => session.intent().retire_all(|| self.settle_all(&shape)).map(drop),
                None => Ok(()),
            };
        };
        let bitmap = shape.find(name)?;
        bitmap.check_consistent("synced")?;
        self.settle(bitmap)?;
        bitmap.check_consistent("synced")
    }

    /// Retires the regions that have become cold, where it is time to.
    pub(in crate::disk) fn retire_cold(&self) -> Result<()> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let shape = self.gate.enter();
        match session
            .intent()
            .retire_cold(Instant::now(), || self.settle_all(&shape))
        {
            // The regions stay active, so no bit is owed; whoever syncs the bitmaps, or closes, will hear of it.
            Err(_) if !self.alive.has_failed() => Ok(()),
            result => result.map(drop),
        }
    }

    pub(in crate::disk) fn settle_all(&self, shape: &Shape) -> Result<()> {
        shape.bitmaps.iter().try_for_each(|bitmap| self.settle(bitmap))
    }

    /// Makes the file of `bitmap` durable, with all that it was told of.
    pub(super) fn settle(&self, bitmap: &Bitmap) -> Result<()> {
        let (Some(kept), Some(_), true) = (&bitmap.kept, bitmap.loaded(), self.writable) else {
            return Ok(());
        };
        if bitmap.is_inconsistent() {
            return Ok(());
        }
        let Some(excuses) = &self.excuses else {
            return self.settle_file(bitmap, kept);
        };
        // A failed sync may have lost bits for good; once that is noted durably, nothing relies on the file.
        match bitmap.save().and_then(|()| kept.file.sync()) {
            Ok(()) => Ok(()),
            Err(why) => excuses
                .mark_bitmap(bitmap, &why)
                .inspect_err(|e| self.bits_unsure(e)),
        }
    }

    fn settle_file(&self, bitmap: &Bitmap, kept: &Kept) -> Result<()> {
        bitmap.save()?;
        // A file whose sync failed may have lost what the kernel had for it: its bits vouch for nothing now (A2).
        kept.file.sync().inspect_err(|e| self.bits_unsure(e))
    }

    /// The sync of a bitmap's file has failed: whatever the evidence says later, the file is not exact.
    pub(in crate::disk) fn bits_unsure(&self, why: &Error) {
        if let Some(session) = &self.session {
            session.note_failure();
        }
        self.fail(why);
    }
}

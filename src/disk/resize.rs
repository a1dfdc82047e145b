//! Growing and shrinking a disk.

use std::sync::atomic::Ordering;

use super::Disk;
use super::bitmaps::Resized;
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::SyncMode;
use crate::units::MAX_LENGTH;

bitflags::bitflags! {
    /// What [`Disk::truncate`] may do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct TruncateFlags: u32 {
        /// Cut bytes off. Without it, a length below the present one is an error.
        const SHRINK = 1;
    }
}

impl Disk {
    /// Makes the disk `length` bytes long; new bytes read as zeros. Durable on return.
    ///
    /// Waits for the writes in flight. Fails on a block device, whose size is not the disk's to change.
    pub fn truncate(&self, length: u64, flags: TruncateFlags) -> Result<()> {
        self.alive.check_unfailed()?;
        self.check_writable()?;
        if length > MAX_LENGTH {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("a disk of {length} bytes is longer than the limit of {MAX_LENGTH}"),
            ));
        }
        let mut structure = self.structure();
        structure.check_below()?;
        // Closed, not entered: a write that was checked against the old length must not land behind the new one.
        let mut shape = self.gate.close();
        self.check_for_change()?;
        shape.check_no_backup(&self.path)?;
        let old = self.length();
        if length < old && !flags.contains(TruncateFlags::SHRINK) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "a length of {length} bytes would cut {} bytes off; shrinking must be asked for",
                    old - length
                ),
            ));
        }
        if length == old {
            return Ok(());
        }
        let mut resized = Resized::new(&shape, &self.loading, old, length)?;
        let overlay = self.resized_layers(&shape, old, length)?;
        if length > old && mutation::on(Fault::GrownFirst) {
            self.set_image_length(old, length)?;
            self.sync_image(SyncMode::Data)?;
        }
        if length > old {
            resized.grow_files()?;
            resized.sync_files().inspect_err(|e| self.bits_unsure(e))?;
            if let Some(session) = &self.session {
                // The gate is closed, so no region is pinned; larger regions first need all to be retired.
                session.intent().cover(length, || self.settle_all(&shape))?;
            }
        } else if let Some(descriptor) = resized.note_length(&structure.descriptor)? {
            self.save(&descriptor)?;
            structure.descriptor = descriptor;
        }
        if length < old {
            self.length.store(length, Ordering::Release);
        }
        self.set_image_length(old, length)
            .inspect_err(|_| self.length.store(old, Ordering::Release))?;
        self.length.store(length, Ordering::Release);
        let synced = self.sync_image(SyncMode::Data);
        // Not before the cut is durable: a power cut that takes it back must find files that are long enough.
        if length < old && synced.is_ok() {
            resized.shrink_files();
            if let Some(overlay) = &overlay {
                overlay.shrink_file();
            }
        }
        *shape = resized.into_shape(&shape, overlay);
        synced
    }

    /// Makes the image `length` bytes long. Where that fails it has its `old` length still, or the disk has failed: what
    /// a writer went on to record by the old length would cost bits of the new one (D1). An image that is a disk and has failed
    /// by it says the old length, and the next one who opens it may find the new one.
    fn set_image_length(&self, old: u64, length: u64) -> Result<()> {
        let image = self.image();
        let storage = &image.storage;
        storage.set_length(length).map_err(|e| {
            let error = image.failed("resize", &e);
            let sure = image.disk().is_none_or(|inner| !inner.alive.has_failed());
            let unchanged = sure && storage.length().is_ok_and(|now| now == old);
            if !unchanged {
                self.fail(&error);
            }
            error
        })
    }
}

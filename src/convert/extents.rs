//! What is where on a disk that is read from its beginning to its end.

use std::sync::Arc;

use super::Disk;
use crate::disk::StatusFlags;
use crate::error::Result;
use crate::storage::Storage;
use crate::units::{ByteRange, MAX_LENGTH};

/// What the bytes of a range are.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// Zeros, that need not be read.
    Zeros,
    /// To be read to be known; and the plain file that has them, at the same offset, where there is one.
    Data(Option<Arc<dyn Storage>>),
}

impl What {
    pub(super) fn is_data(&self) -> bool {
        matches!(self, Self::Data(_))
    }
}

/// The last answer about a disk: to ask costs system calls that look at the whole extent, so each is asked for once.
pub(super) struct Extents<'d> {
    disk: &'d Disk,
    length: u64,
    known: ByteRange,
    what: What,
    flags: StatusFlags,
}

impl<'d> Extents<'d> {
    pub(super) fn new(disk: &'d Disk) -> Self {
        Self {
            disk,
            length: disk.length(),
            known: ByteRange::between(0, 0),
            what: What::Zeros,
            flags: StatusFlags::empty(),
        }
    }

    /// What is at `at`, and where that ends. Behind the disk's end there are zeros without end.
    pub(super) fn at(&mut self, at: u64) -> Result<(&What, u64)> {
        if at >= self.length {
            self.flags = StatusFlags::ZERO;
            self.what = What::Zeros;
            self.known = ByteRange::between(at, MAX_LENGTH);
        }
        if at < self.known.start() || at >= self.known.end() {
            let status = self.disk.block_status(at, self.length - at)?;
            self.flags = status.flags;
            self.known = ByteRange::between(at, at.saturating_add(status.length.max(1)).min(self.length));
            self.what = if status.flags.contains(StatusFlags::ZERO) {
                What::Zeros
            } else {
                let place = self.disk.raw_layer(status.layer);
                let plain = status.flags.contains(StatusFlags::OFFSET_VALID) && status.offset == at;
                What::Data(place.filter(|_| plain))
            };
        }
        Ok((&self.what, self.known.end()))
    }

    /// The flags of the last answer.
    pub(super) fn flags(&self) -> StatusFlags {
        self.flags
    }
}

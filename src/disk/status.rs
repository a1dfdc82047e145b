//! What is where: data, zeros, holes.

use super::Disk;
use crate::error::{Error, ErrorCode, Result};

bitflags::bitflags! {
    /// What a run of bytes is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct StatusFlags: u32 {
        /// Stored somewhere, and to be read to be known.
        const DATA = 1;
        /// Reads as zeros.
        const ZERO = 2;
        /// This disk's own, not a backing image's.
        const ALLOCATED = 4;
        /// [`BlockStatus::offset`] says where in the layer's file the bytes are.
        const OFFSET_VALID = 8;
    }
}

/// A run of bytes with one answer, from [`Disk::block_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// How many bytes the answer holds for.
    pub length: u64,
    /// What they are.
    pub flags: StatusFlags,
    /// How many images lie above the one that has them: 0 is the disk's own.
    pub depth: u32,
    /// The layer that has them, as [`Disk::layer`] counts.
    pub layer: u32,
    /// Where in the layer's file they begin; only with [`StatusFlags::OFFSET_VALID`].
    pub offset: u64,
}

/// What [`Disk::block_status_with`] need not find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusHints {
    /// Which image has the bytes is all that is asked. No image is looked into for holes, and what one has is called
    /// data, so that an answer costs no system call and reaches as far as the bits do.
    pub allocation_only: bool,
    /// The deepest image that is asked of, as [`BlockStatus::depth`] counts; 0 is the disk's own. What none down to
    /// there has is neither data nor zeros, at the depth behind it.
    pub deepest: Option<u32>,
}

impl Disk {
    /// What the first bytes of a range are, and how far that goes: at most to the range's end.
    ///
    /// A hint may be out of date as soon as it is given, where other threads write.
    pub fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        self.block_status_with(offset, len, StatusHints::default())
    }

    /// The same for one who can do with less.
    pub fn block_status_with(&self, offset: u64, len: u64, hints: StatusHints) -> Result<BlockStatus> {
        self.alive.check()?;
        if len == 0 {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "the status of no bytes was asked for",
            ));
        }
        let own = self.own.current();
        if own.layered {
            let shape = self.gate.enter();
            let range = self.range(offset, len)?;
            if let Some(overlay) = &shape.overlay {
                return self.status_of_layers(overlay, range, hints);
            }
        }
        let range = self.range(offset, len)?;
        if let Some(below) = &self.below {
            return self.status_above(below, range, hints);
        }
        self.own_status(range, 0, hints)
    }
}

//! The memory that the sparse extents of an image share.
//!
//! Invariant: however many extents a descriptor names, and whatever these say of themselves, they take no more together than
//! the limits here.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use super::{MAX_DIRECTORIES, not_supported};
use crate::error::Result;

/// So many tables are kept of an extent, or fewer where there are many extents; and of all together.
const TABLES: usize = 64;
const ALL_TABLES: usize = 16_384;

/// What is left for the extents that are still to be opened.
#[derive(Debug)]
pub(super) struct Shared {
    /// In bytes, for directories.
    room: Cell<u64>,
    next: Cell<usize>,
    tables: usize,
    inflated: Arc<Inflated>,
}

/// What an extent has of it.
#[derive(Debug)]
pub(super) struct Share {
    /// Which of the extents it is.
    pub(super) number: usize,
    /// So many tables may be kept.
    pub(super) tables: usize,
    pub(super) inflated: Arc<Inflated>,
}

/// The grain that was decompressed last, with the number of its extent, and its own: readers take it in parts.
pub(super) type Inflated = Mutex<Option<((usize, u64), Arc<[u8]>)>>;

impl Shared {
    /// Of an image of so many sparse extents.
    pub(super) fn new(extents: usize) -> Self {
        Self {
            room: Cell::new(MAX_DIRECTORIES),
            next: Cell::new(0),
            tables: (ALL_TABLES / extents.max(1)).clamp(1, TABLES),
            inflated: Arc::default(),
        }
    }

    /// The share of the next extent, whose directory takes so many bytes.
    pub(super) fn next(&self, directory: u64) -> Result<Share> {
        let Some(room) = self.room.get().checked_sub(directory) else {
            return Err(not_supported(format!(
                "its directory of {directory} bytes, with those of the extents before it, is longer than the limit of \
                 {MAX_DIRECTORIES} bytes for an image"
            )));
        };
        self.room.set(room);
        Ok(Share {
            number: self.next.replace(self.next.get() + 1),
            tables: self.tables,
            inflated: Arc::clone(&self.inflated),
        })
    }
}

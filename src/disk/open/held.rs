//! The locks of a disk that is being opened, or looked at.
//!
//! Invariant: they are given up when this is dropped, and not only by closing the files: a child that another thread is just
//! starting has copies of these for a moment, and whoever tries again would find the disk locked.

use crate::disk::Born;
use crate::error::Result;
use crate::state::Lock;

/// Locks, until they are dropped or the disk that is open has them.
pub(in crate::disk) struct Held {
    locks: Vec<Lock>,
    born: Born,
}

impl Held {
    pub(in crate::disk) fn new() -> Result<Self> {
        Ok(Self {
            locks: Vec::new(),
            born: Born::new()?,
        })
    }

    pub(in crate::disk) fn extend(&mut self, locks: impl IntoIterator<Item = Lock>) {
        self.locks.extend(locks);
    }

    /// The disk is open, and gives its locks up itself.
    pub(in crate::disk) fn keep(mut self) -> Vec<Lock> {
        std::mem::take(&mut self.locks)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // In a forked child the locks are the parent's.
        if self.born.check().is_ok() {
            self.locks.drain(..).for_each(Lock::release);
        }
    }
}

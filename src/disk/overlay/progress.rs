//! How far a long operation is, and whether it is to go on.
//!
//! Invariant: what is done never goes back, and never passes what there is to do.

use std::ops::ControlFlow;

use crate::error::{Error, ErrorCode, Result};

/// Who is told how far a long operation is, in bytes done and to do, and may end it.
pub type Progress<'p> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'p;

/// The account of one operation.
pub(super) struct Account<'c, 'p> {
    progress: &'c mut Progress<'p>,
    done: u64,
    total: u64,
}

impl<'c, 'p> Account<'c, 'p> {
    /// Of an operation that has `total` bytes to do, as far as it knows.
    pub(super) fn new(progress: &'c mut Progress<'p>, total: u64) -> Self {
        Self {
            progress,
            done: 0,
            total,
        }
    }

    /// There are so many bytes to do.
    pub(super) fn expect(&mut self, total: u64) {
        self.total = total;
    }

    /// So many bytes more are done. Fails where the caller has had enough.
    pub(super) fn add(&mut self, bytes: u64) -> Result<()> {
        self.done = self.done.saturating_add(bytes);
        // What is done a second time was not foreseen.
        self.total = self.total.max(self.done);
        if (self.progress)(self.done, self.total).is_break() {
            return Err(Error::new(
                ErrorCode::Canceled,
                "the caller ended it; the disk is as it was",
            ));
        }
        Ok(())
    }
}

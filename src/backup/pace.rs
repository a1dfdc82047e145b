//! How fast a long operation goes, and who is told.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::disk::Progress;
use crate::error::{Error, ErrorCode, Result};

/// The longest sleep between two calls of the callback.
const NAP: Duration = Duration::from_millis(100);

/// What the caller wants to know and to limit.
pub(super) struct Pace<'a, 'p> {
    progress: &'a mut Progress<'p>,
    /// In bytes per second.
    limit: Option<u64>,
    begun: Instant,
    /// What counts against the limit.
    moved: u64,
    pub(super) done: u64,
    pub(super) total: u64,
}

impl<'a, 'p> Pace<'a, 'p> {
    pub(super) fn new(progress: &'a mut Progress<'p>, limit: Option<u64>, total: u64) -> Self {
        Self {
            progress,
            limit,
            begun: Instant::now(),
            moved: 0,
            done: 0,
            total,
        }
    }

    /// So many bytes were moved; waits where that was too fast.
    pub(super) fn moved(&mut self, bytes: u64) -> Result<()> {
        self.moved += bytes;
        while let Some(early) = self.early() {
            sleep(early.min(NAP));
            self.tell()?;
        }
        Ok(())
    }

    fn early(&self) -> Option<Duration> {
        let limit = self.limit.filter(|limit| *limit > 0)?;
        let nanos = u128::from(self.moved) * 1_000_000_000 / u128::from(limit);
        let due = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        due.checked_sub(self.begun.elapsed())
            .filter(|rest| !rest.is_zero())
    }

    /// So many bytes of the total are done.
    pub(super) fn reached(&mut self, done: u64) -> Result<()> {
        self.done = done.min(self.total);
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        if (self.progress)(self.done, self.total).is_break() {
            return Err(Error::new(ErrorCode::Canceled, "the caller ended it"));
        }
        Ok(())
    }
}

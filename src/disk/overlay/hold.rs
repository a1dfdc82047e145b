//! The hold on a backing image: many may read it, and nobody may write to it while they do.
//!
//! May call `state`, whose locks QEMU's programs see. Invariant: who has given a hold up takes it again before others
//! can rely on it; and it ends with the hold, whoever has copies of the files.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Born;
use crate::error::{Error, Result};
use crate::state::{Lock, Sharing};
use crate::storage::{FileIdentity, Storage, SyncMode};
use crate::sync::{Mutex, PoisonError};

/// A reader's lock on an image, which can be given up for a while.
#[derive(Debug)]
pub(in crate::disk) struct Hold {
    image: Arc<dyn Storage>,
    path: PathBuf,
    lock: Mutex<Option<Lock>>,
    born: Born,
}

impl Hold {
    /// Of an image that is not locked yet.
    pub(in crate::disk) fn of(image: Arc<dyn Storage>, path: PathBuf) -> Self {
        Self {
            image,
            path,
            lock: Mutex::new(None),
            born: Born::here(),
        }
    }

    /// Locks the image.
    pub(in crate::disk) fn take(&self) -> Result<()> {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) =
            Lock::image(&self.image, &self.path, Sharing::Read)?;
        Ok(())
    }

    /// Which file it is.
    pub(super) fn identity(&self) -> Option<FileIdentity> {
        self.image.identity()
    }

    /// Makes what the file has durable, whoever wrote it.
    pub(super) fn sync(&self) -> Result<()> {
        self.image
            .sync(SyncMode::Data)
            .map_err(|e| Error::io("flush", &self.path, &e))
    }

    /// Gives the lock up until what this returns is dropped: its own process is to write to the image.
    pub(super) fn suspended(&self) -> Suspended<'_> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        let had = lock.is_some();
        lock.into_iter().for_each(Lock::release);
        Suspended { hold: self, had }
    }
}

/// A disk that is closed, or put on other images, keeps nobody from the ones that it was on: not even for the moment in which
/// a child that another thread is just starting has copies of their files.
impl Drop for Hold {
    fn drop(&mut self) {
        // In a forked child the lock is the parent's.
        if self.born.check().is_ok() {
            let lock = self.lock.get_mut().unwrap_or_else(PoisonError::into_inner);
            lock.take().into_iter().for_each(Lock::release);
        }
    }
}

/// A hold that is given up for a while.
pub(super) struct Suspended<'h> {
    hold: &'h Hold,
    had: bool,
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        if self.had {
            // Somebody may have come first; then he is refused nothing, and this disk goes on without the lock.
            let _ = self.hold.take();
        }
    }
}

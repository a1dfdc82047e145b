//! [`Shortcut`]: the open file behind a [`Storage`], for the one system call that most reads and writes are.
//!
//! A table of methods costs one more frame on the stack, and every frame beneath a system call costs a mispredicted
//! return on the way back (the kernel clears the predictor's stack). Invariant: what the shortcut did is what the
//! storage would have done, and whatever is not plain success goes the storage's way, from the start.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::{io, ops};

use super::{Gather, Scatter, Storage, sys};

/// A storage, reached the shortest way.
#[derive(Debug)]
pub struct Shortcut {
    /// Open for as long as `storage` lives.
    file: Option<RawFd>,
    storage: Arc<dyn Storage>,
}

impl Shortcut {
    /// The shortest way to `storage`.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            file: storage.plain_file().map(|file| file.as_raw_fd()),
            storage,
        }
    }

    /// The storage itself.
    pub fn shared(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the storage, which owns the descriptor, lives as long as `self`.
        self.file.map(|file| unsafe { BorrowedFd::borrow_raw(file) })
    }

    /// As [`Storage::read`].
    #[inline(always)]
    pub fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        if let Some(file) = self.file() {
            // SAFETY: the pieces are a `Scatter`.
            let done = unsafe { sys::read_once(file, into.as_iovecs(), offset) };
            if done == into.len().cast_signed() {
                return Ok(());
            }
        }
        self.storage.read(into, offset)
    }

    /// As [`Storage::write`].
    #[inline(always)]
    pub fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        if let Some(file) = self.file() {
            // SAFETY: the pieces are a `Gather`.
            let done = unsafe { sys::write_once(file, from.as_iovecs(), offset) };
            if done == from.len().cast_signed() {
                return Ok(());
            }
        }
        self.storage.write(from, offset)
    }
}

/// Everything else goes the ordinary way.
impl ops::Deref for Shortcut {
    type Target = dyn Storage;

    fn deref(&self) -> &Self::Target {
        &*self.storage
    }
}

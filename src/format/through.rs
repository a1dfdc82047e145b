//! Our storages as those of `imago`, the library that knows qcow2's tables.
//!
//! Invariant: the library reaches files through here alone, and opens none.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use super::image::read_or_zeros;
use super::qcow2::Order;
use crate::storage::{Gather, Scatter, Storage, SyncMode, Zeroing, write_slice};
use crate::units::ByteRange;

/// A file that was opened here.
#[derive(Debug)]
pub(super) struct Through {
    file: Arc<dyn Storage>,
    helper: CommonStorageHelper,
    /// What the library knows is not to be relied on any more: it must write nothing.
    dead: Arc<AtomicBool>,
    /// What keeps its writes in order; `None` of a file that is only read.
    order: Option<Arc<Order>>,
    /// It has the tables.
    tables: bool,
    /// The library is shown other bytes than the file has: where, and which.
    shown: Vec<(u64, u8)>,
}

impl Through {
    pub(super) fn new(file: Arc<dyn Storage>, dead: &Arc<AtomicBool>) -> Self {
        Self {
            file,
            helper: CommonStorageHelper::default(),
            dead: Arc::clone(dead),
            order: None,
            tables: false,
            shown: Vec::new(),
        }
    }

    /// The same, with another byte in one place.
    pub(super) fn showing(mut self, byte: (u64, u8)) -> Self {
        self.shown.push(byte);
        self
    }

    /// The same, of a file that is written to in `order`; with or without the tables in it.
    pub(super) fn ordered(mut self, order: Option<&Arc<Order>>, tables: bool) -> Self {
        self.order = order.cloned();
        self.tables = tables;
        self
    }

    /// The file itself.
    pub(super) fn file(&self) -> &dyn Storage {
        &*self.file
    }

    /// Data is in the file that no table leads to yet.
    pub(super) fn wrote_data(&self) {
        if let Some(order) = &self.order {
            order.wrote_data();
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(io::Error::other("the image met an internal error before"));
        }
        Ok(())
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its file")
    }
}

impl imago::Storage for Through {
    fn size(&self) -> io::Result<u64> {
        self.file.length()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the pieces are exclusively borrowed slices, and outlive the call.
        let into = unsafe { Scatter::new(bufv.as_iovec()) };
        let into = into.ok_or(io::ErrorKind::InvalidInput)?;
        read_or_zeros(&*self.file, into, offset)?;
        for (at, byte) in &self.shown {
            if (offset..offset + into.len() as u64).contains(at) {
                // Within the buffer, so it fits.
                into.copy_from(usize::try_from(at - offset).unwrap_or(0), &[*byte]);
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        self.check()?;
        // SAFETY: the pieces are borrowed slices, and outlive the call.
        let from = unsafe { Gather::new(bufv.as_iovec()) };
        let from = from.ok_or(io::ErrorKind::InvalidInput)?;
        match &self.order {
            Some(order) if self.tables => order.write(from, offset),
            _ => {
                self.file.write(from, offset)?;
                self.wrote_data();
                Ok(())
            }
        }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, false)
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check()?;
        match ByteRange::new(offset, length) {
            Some(range) => self.file.discard(range),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync(SyncMode::Data)
    }

    /// The library asks for this, and nothing else does, before it gives clusters free.
    fn settle_writes(&self) -> io::Result<()> {
        if let Some(order) = &self.order {
            order.gives_free();
        }
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, how: PreallocateMode) -> io::Result<()> {
        self.check()?;
        match how {
            // The library would cut a data file before the header says so; whoever has it cut the image does that behind it.
            PreallocateMode::None if !self.tables && new_size < self.file.length()? => Ok(()),
            PreallocateMode::None | PreallocateMode::Zero => self.file.set_length(new_size),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Through {
    fn zero(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        self.check()?;
        let Some(range) = ByteRange::new(offset, length).filter(|range| !range.is_empty()) else {
            return Ok(());
        };
        let how = Zeroing {
            may_unmap,
            no_fallback: false,
        };
        self.file.write_zeroes(range, how)?;
        // Zeros leave a file as long as it is. The last byte makes it reach as far as the library counts on; cutting
        // and growing it could take away what another thread has just written behind this.
        if self.file.length()? < range.end() {
            write_slice(&*self.file, &[0], range.end() - 1)?;
        }
        self.wrote_data();
        Ok(())
    }
}

//! Transfers around the page cache (`O_DIRECT`), for callers who know nothing of alignment.
//!
//! What is aligned goes straight to the device. Whole blocks in badly aligned memory go through an aligned buffer.
//! The edges, parts of a block, are written through the page cache: the kernel reads the block, changes the bytes and
//! no others, and a regular file grows to the last byte written and never beyond, not even for a moment or after a
//! crash, as it would if whole blocks were written and the file cut back. Later direct transfers of that block make
//! the kernel write the page back and drop it first, and `fdatasync` covers pages and device alike.
//!
//! Invariant (trap of two writers in one block): while an edge is between its read and its write, no direct write
//! of this storage runs, so that neither writer puts old bytes over the other's new ones.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::PoisonError;

use crossbeam_utils::sync::ShardedLock;
use libc::iovec;

use super::transfer::{Stuck, check_offset, whole};
use crate::storage::buffers::{Gather, Scatter};
use crate::storage::sys;

/// The most that is copied at a time.
const BOUNCE: usize = 1 << 20;

/// What an open file with `O_DIRECT` needs beside its descriptor.
#[derive(Debug)]
pub(super) struct Direct {
    memory_alignment: usize,
    block: usize,
    /// Held shared by direct writes, alone by what changes parts of blocks.
    edges: ShardedLock<()>,
}

impl Direct {
    /// For a file that takes memory at multiples of `memory_alignment`, and offsets and lengths at multiples of
    /// `block`; both are powers of two.
    pub(super) fn new(memory_alignment: u32, block: u32) -> Self {
        Self {
            memory_alignment: memory_alignment as usize,
            block: block as usize,
            edges: ShardedLock::new(()),
        }
    }

    pub(super) fn read(&self, fd: BorrowedFd<'_>, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        check_offset(offset)?;
        let mut bounce = Bounce::default();
        let read = |pieces: &[iovec], at| self.read_some(fd, pieces, at, &mut bounce);
        whole(into.as_iovecs(), into.len(), offset, Stuck::EndOfFile, read)
    }

    pub(super) fn write(&self, fd: BorrowedFd<'_>, from: Gather<'_>, offset: u64) -> io::Result<()> {
        check_offset(offset)?;
        let mut bounce = Bounce::default();
        let write = |pieces: &[iovec], at| self.write_some(fd, pieces, at, &mut bounce);
        whole(from.as_iovecs(), from.len(), offset, Stuck::NoProgress, write)
    }

    /// Runs `change`, which may change parts of blocks, while no direct write runs.
    pub(super) fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        let _alone = self.edges.write().unwrap_or_else(PoisonError::into_inner);
        change()
    }

    /// Whether a transfer may go straight to the device.
    fn fits(&self, pieces: &[iovec], offset: u64) -> bool {
        let (mut lengths, mut addresses) = (self.phase(offset), 0);
        for piece in pieces {
            lengths |= piece.iov_len;
            addresses |= piece.iov_base as usize;
        }
        lengths & (self.block - 1) == 0 && addresses & (self.memory_alignment - 1) == 0
    }

    /// How far `offset` lies behind the start of its block.
    fn phase(&self, offset: u64) -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a block is far smaller than the address space"
        )]
        let phase = (offset & (self.block as u64 - 1)) as usize;
        phase
    }

    /// The most that a copying step moves: whole blocks, and one of them at least.
    fn step(&self) -> usize {
        BOUNCE.max(2 * self.block)
    }

    fn read_some(
        &self,
        fd: BorrowedFd<'_>,
        pieces: &[iovec],
        offset: u64,
        bounce: &mut Bounce,
    ) -> io::Result<usize> {
        if self.fits(pieces, offset) {
            // SAFETY: the pieces are (the rest of) a `Scatter`.
            return unsafe { sys::read(fd, pieces, offset) };
        }
        // SAFETY: as above.
        let Some(into) = (unsafe { Scatter::new(pieces) }) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let lead = self.phase(offset);
        let want = into.len().min(self.step() - lead);
        let blocks = (lead + want).next_multiple_of(self.block);
        let buffer = bounce.room(blocks, self.memory_alignment)?;
        // Less than asked for is the end of the file, whose length need not be a multiple of the block.
        // SAFETY: the piece is `buffer`, exclusively borrowed.
        let done = unsafe { sys::read(fd, &[as_piece(buffer)], offset - lead as u64) }?;
        let got = done.saturating_sub(lead).min(want);
        into.copy_from(0, &buffer[lead..lead + got]);
        Ok(got)
    }

    fn write_some(
        &self,
        fd: BorrowedFd<'_>,
        pieces: &[iovec],
        offset: u64,
        bounce: &mut Bounce,
    ) -> io::Result<usize> {
        if self.fits(pieces, offset) {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the pieces are (the rest of) a `Gather`.
            return unsafe { sys::write(fd, pieces, offset) };
        }
        // SAFETY: as above.
        let Some(from) = (unsafe { Gather::new(pieces) }) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let lead = self.phase(offset);
        let edge = lead != 0 || from.len() < self.block;
        let len = if edge {
            from.len().min(self.block - lead)
        } else {
            (from.len() & !(self.block - 1)).min(self.step())
        };
        if len == 0 {
            return Ok(0);
        }
        let buffer = bounce.room(len, self.memory_alignment)?;
        from.copy_to(0, buffer);
        let piece = [as_piece(buffer)];
        if edge {
            // SAFETY: the piece is `buffer`, exclusively borrowed.
            return self.through_cache(fd, || unsafe { sys::write(fd, &piece, offset) });
        }
        let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as above.
        unsafe { sys::write(fd, &piece, offset) }
    }

    /// Runs `write` with `O_DIRECT` off and no direct write beside it.
    ///
    /// Reads may run meanwhile: those that begin now use the page cache too, and see the same bytes.
    fn through_cache<T>(&self, fd: BorrowedFd<'_>, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.alone(|| {
            let flags = sys::status_flags(fd)?;
            sys::set_status_flags(fd, flags & !libc::O_DIRECT)?;
            let outcome = write();
            sys::set_status_flags(fd, flags | libc::O_DIRECT)?;
            outcome
        })
    }
}

fn as_piece(buffer: &mut [u8]) -> iovec {
    iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }
}

/// An aligned buffer that is made when it is first needed, and kept for the rest of a transfer.
#[derive(Default)]
struct Bounce(Option<AlignedBuffer>);

impl Bounce {
    /// `len` bytes (not none) at a multiple of `alignment`.
    fn room(&mut self, len: usize, alignment: usize) -> io::Result<&mut [u8]> {
        let buffer = match self.0.take() {
            Some(buffer) if buffer.layout.size() >= len => buffer,
            _ => AlignedBuffer::new(len, alignment)?,
        };
        Ok(&mut self.0.insert(buffer).bytes()[..len])
    }
}

struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    fn new(len: usize, alignment: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len.max(1), alignment)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the layout is not of size zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { start, layout })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is this long, initialised, and borrowed exclusively through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

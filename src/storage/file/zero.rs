//! Zeros without writing them, where the file system or device can; and the space given back.
//!
//! Each way is tried until the system says that it does not know it; that is remembered, so that it is asked once.
//! Invariant: whichever way succeeds, the range reads as zeros afterwards, and no byte outside it changes. (So
//! `BLKDISCARD` is no way: what it leaves behind is the device's choice.)

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

use super::FileStorage;
use crate::storage::{Gather, Storage, Zeroing, sys};
use crate::units::ByteRange;

/// Zeros to write from, aligned well enough to be used directly.
#[repr(align(4096))]
struct Page([u8; 16384]);
static ZEROS: Page = Page([0; 16384]);

/// How many times over they go into one write.
const PIECES: usize = 64;

/// A way to make zeros; its number is its bit in [`Unsupported`].
#[derive(Clone, Copy)]
enum Way {
    Punch = 1,
    ZeroRange = 2,
    Allocate = 4,
    DeviceZero = 8,
}

/// The ways that this file's system has said it does not have.
#[derive(Debug, Default)]
pub(super) struct Unsupported(AtomicU8);

#[cfg(test)]
impl Unsupported {
    /// As on a file system that can do nothing but write.
    pub(super) fn nothing_works(&self) {
        self.0.store(u8::MAX, Ordering::Relaxed);
    }
}

impl FileStorage {
    /// Makes `range` zeros, by the first way that works and that `how` allows.
    pub(super) fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let range = ByteRange::between(range.start(), range.end().min(self.length()?));
        if range.is_empty() {
            return Ok(());
        }
        if self.limits.block_device {
            return self.zero_device(range, how);
        }
        if how.may_unmap && self.attempt(Way::Punch, range)? {
            return Ok(());
        }
        if self.attempt(Way::ZeroRange, range)? {
            return Ok(());
        }
        // The first reservation changes no byte, and so finds out what the file system can before the hole does.
        if self.attempt(Way::Allocate, range)?
            && self.attempt(Way::Punch, range)?
            && self.attempt(Way::Allocate, range)?
        {
            return Ok(());
        }
        self.write_zeros_unless(how.no_fallback, range)
    }

    /// The same on a block device, whose requests take whole blocks only.
    fn zero_device(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let block = u64::from(self.limits.logical_block.max(512));
        let first = range.start().next_multiple_of(block);
        let last = range.end() - range.end() % block;
        let middle = ByteRange::between(first, last);
        if middle.is_empty() {
            return self.write_zeros_unless(how.no_fallback, range);
        }
        // Where the device has no request for it, the kernel's BLKZEROOUT writes zeros itself.
        let quick = self.limits.max_write_zeroes > 0;
        let done = (how.may_unmap && self.attempt(Way::Punch, middle)?)
            || ((quick || !how.no_fallback) && self.attempt(Way::DeviceZero, middle)?);
        if !done {
            self.write_zeros_unless(how.no_fallback, middle)?;
        }
        // The parts of blocks before and behind are no bulk: writing them is no fallback.
        self.write_zeros(ByteRange::between(range.start(), first))?;
        self.write_zeros(ByteRange::between(last, range.end()))
    }

    /// Tries one way; false says that the system does not have it, and that nothing has changed.
    fn attempt(&self, way: Way, range: ByteRange) -> io::Result<bool> {
        let known = &self.unsupported.0;
        if known.load(Ordering::Relaxed) & way as u8 != 0 {
            return Ok(false);
        }
        let fd = self.as_fd();
        let (start, len) = (range.start(), range.len());
        let call = || match way {
            Way::Punch => sys::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, len),
            Way::ZeroRange => sys::fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, start, len),
            Way::Allocate => sys::fallocate(fd, FALLOC_FL_KEEP_SIZE, start, len),
            Way::DeviceZero => sys::device_zero(fd, start, len),
        };
        // The kernel zeroes parts of blocks through the page cache, where a direct write beside it could be lost.
        let outcome = match &self.direct {
            Some(direct) => direct.alone(call),
            None => call(),
        };
        match outcome {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV) => {
                    known.fetch_or(way as u8, Ordering::Relaxed);
                    Ok(false)
                }
                // Some file systems say this of one range, for reasons of their own, and do the next.
                Some(libc::EINVAL) => Ok(false),
                _ => Err(error),
            },
        }
    }

    fn write_zeros_unless(&self, forbidden: bool, range: ByteRange) -> io::Result<()> {
        if forbidden {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.write_zeros(range)
    }

    /// Writes zeros byte by byte.
    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        let page = ZEROS.0.len();
        let mut at = range.start();
        while at < range.end() {
            let left = usize::try_from(range.end() - at).unwrap_or(usize::MAX);
            let len = left.min(page * PIECES);
            let mut slices = [IoSlice::new(&ZEROS.0); PIECES];
            let count = len.div_ceil(page);
            slices[count - 1] = IoSlice::new(&ZEROS.0[..len - (count - 1) * page]);
            let Some(zeros) = Gather::from_slices(&slices[..count]) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            self.write(zeros, at)?;
            at += len as u64;
        }
        Ok(())
    }
}

//! What a file or device can do, asked once when it is opened.
//!
//! Invariant: what cannot be found out is left at its safe default, never an error.

use std::fs::{self, Metadata};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use crate::storage::{Limits, sys};

/// An alignment for direct transfers that every device up to now accepts.
const SAFE_ALIGNMENT: u32 = 4096;

/// The limits of an open regular file.
pub(super) fn of_regular_file(fd: BorrowedFd<'_>, metadata: &Metadata, direct: bool) -> Limits {
    let told = sys::direct_alignment(fd);
    let preferred = block_size(u32::try_from(metadata.blksize()).unwrap_or(0));
    let mut limits = Limits {
        logical_block: told.map_or(0, |(_, request)| request),
        physical_block: preferred,
        optimal_transfer: preferred,
        discard_alignment: preferred,
        ..Limits::default()
    };
    if direct {
        (limits.memory_alignment, limits.request_alignment) =
            told.unwrap_or((SAFE_ALIGNMENT, SAFE_ALIGNMENT));
    }
    limits
}

/// The limits of an open block device.
pub(super) fn of_block_device(fd: BorrowedFd<'_>, metadata: &Metadata, direct: bool) -> Limits {
    let ask = |request| sys::device_number(fd, request).unwrap_or(0);
    let logical = block_size(ask(libc::BLKSSZGET));
    let queue = Queue::of(metadata.rdev());
    let mut limits = Limits {
        logical_block: logical,
        physical_block: block_size(ask(libc::BLKPBSZGET)).max(logical),
        optimal_transfer: ask(libc::BLKIOOPT),
        discard_alignment: queue.number("discard_granularity"),
        max_discard: queue.large_number("discard_max_bytes"),
        max_write_zeroes: queue.large_number("write_zeroes_max_bytes"),
        block_device: true,
        ..Limits::default()
    };
    if direct {
        let blocks = if logical == 0 { SAFE_ALIGNMENT } else { logical };
        (limits.memory_alignment, limits.request_alignment) =
            sys::direct_alignment(fd).unwrap_or((blocks, blocks));
        // Less than a block is never right, whatever an old kernel says.
        limits.request_alignment = limits.request_alignment.max(logical);
    }
    limits
}

/// `bytes` where that can be the size of a block, else "unknown".
fn block_size(bytes: u32) -> u32 {
    if bytes.is_power_of_two() { bytes } else { 0 }
}

/// The folder under `/sys` in which a block device's request queue is described.
struct Queue(String);

impl Queue {
    fn of(device: u64) -> Self {
        let base = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        // A partition's queue is its disk's.
        let own = format!("{base}/queue");
        Self(if fs::exists(&own).unwrap_or(false) {
            own
        } else {
            format!("{base}/../queue")
        })
    }

    fn large_number(&self, name: &str) -> u64 {
        fs::read_to_string(format!("{}/{name}", self.0))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    fn number(&self, name: &str) -> u32 {
        u32::try_from(self.large_number(name)).unwrap_or(0)
    }
}

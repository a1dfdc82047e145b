//! The log of a recorded block device, in the format of Linux's dm-log-writes, and the device as it may have been at any
//! moment: all up to the last flush, and of what came later whatever the device liked to keep.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::random::Random;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// What a file system expects a device to write whole.
const PIECE: usize = 4096;

struct Entry {
    /// Where it ends in the log.
    end: u64,
    flags: u64,
    offset: u64,
    len: u64,
    /// Where its data is in the log.
    data: u64,
}

pub struct Log {
    file: File,
    entries: Vec<Entry>,
}

impl Log {
    pub fn read(path: &Path) -> Self {
        let file = File::open(path).expect("the log");
        let number = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).expect("a number in the log");
            u64::from_le_bytes(bytes)
        };
        assert_eq!(number(0), MAGIC);
        assert_eq!(number(8), 1, "the version");
        assert_eq!(number(24) & 0xffff_ffff, SECTOR);
        let mut at = SECTOR;
        let mut entries = Vec::new();
        for _ in 0..number(16) {
            let (offset, len, flags) = (number(at) * SECTOR, number(at + 8) * SECTOR, number(at + 16));
            let data = at + SECTOR;
            at = data + if flags & DISCARD == 0 { len } else { 0 };
            entries.push(Entry {
                end: at,
                flags,
                offset,
                len,
                data,
            });
        }
        Self { file, entries }
    }

    /// How many entries lie before this place in the log.
    pub fn entries_before(&self, position: u64) -> usize {
        self.entries.partition_point(|entry| entry.end <= position)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Where the first so many entries end in the log.
    pub fn position(&self, entries: usize) -> u64 {
        entries
            .checked_sub(1)
            .map_or(SECTOR, |last| self.entries[last].end)
    }

    pub fn is_flush(&self, entry: usize) -> bool {
        self.entries[entry].flags & FLUSH != 0
    }

    fn data(&self, entry: &Entry) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(entry.len).expect("a length")];
        if entry.flags & DISCARD == 0 {
            self.file
                .read_exact_at(&mut data, entry.data)
                .expect("data in the log");
        }
        data
    }
}

/// A device that has flushed.
pub struct Device<'l> {
    log: &'l Log,
    file: File,
    /// How many entries are in it: up to a flush.
    applied: usize,
}

impl<'l> Device<'l> {
    pub fn new(log: &'l Log, path: &Path, size: u64) -> Self {
        let file = File::create_new(path).expect("a device");
        file.set_len(size).expect("a size");
        Self {
            log,
            file,
            applied: 0,
        }
    }

    /// Goes on to the last flush among the first `entries`.
    pub fn flush_until(&mut self, entries: usize) {
        let flushed = (self.applied..entries)
            .rev()
            .find(|entry| self.log.is_flush(*entry));
        for entry in &self.log.entries[self.applied..flushed.map_or(self.applied, |it| it + 1)] {
            put(&self.file, &self.log.data(entry), entry.offset);
        }
        self.applied = flushed.map_or(self.applied, |it| it + 1);
    }

    /// Puts into `copy`, a copy of the device, what may have got there of the entries up to `entries`.
    pub fn unflushed(&self, copy: &Path, entries: usize, random: &mut Random) {
        let copy = File::options().write(true).open(copy).expect("a copy");
        // Nothing, a little, half, most, or all.
        let kept = [0, 1, 4, 7, 8][usize::try_from(random.below(5)).expect("an index")];
        let mut pieces = Vec::new();
        for entry in &self.log.entries[self.applied..entries] {
            for (number, piece) in (0..).zip(self.log.data(entry).chunks(PIECE)) {
                if random.below(8) < kept || entry.flags & FUA != 0 {
                    pieces.push((entry.offset + number * PIECE as u64, piece.to_vec()));
                }
            }
        }
        // Of two to one place the later one is what the device would have: those that are kept stay in order.
        for (offset, piece) in pieces {
            put(&copy, &piece, offset);
        }
    }
}

fn put(file: &File, data: &[u8], offset: u64) {
    if data.len() >= PIECE && data.iter().all(|byte| *byte == 0) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: an open file.
        let done = unsafe {
            libc::fallocate(
                file.as_raw_fd(),
                mode,
                offset.cast_signed(),
                data.len().cast_signed() as i64,
            )
        };
        if done == 0 {
            return;
        }
    }
    file.write_all_at(data, offset).expect("a write to the device");
}

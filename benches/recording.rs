//! What recording dirty bitmaps costs a guest's write: `qbm_pwrite` beside a bare `pwrite` on the same raw file.
//!
//! ```text
//! cargo bench --bench recording [-- FOLDER ...]
//! ```
//!
//! Random writes of 4 and 64 KiB through the shared library (dlopen), to a file that is in the page cache with all its
//! blocks allocated, so that what differs from the bare call is the recording alone. The disk has 0, 1 or 4 persistent
//! bitmaps of 64 KiB granules, written through:
//!
//! - `set`: all bits are set already, as for nearly all writes of a guest;
//! - `first touch`: no call finds its bit set, so that each writes a word to each bitmap's file before its data. Between
//!   rounds the bitmaps are cleared. Two threads are `near` where their bits share a 4 KiB piece of the bitmap files,
//!   which they write in turn, and `far` where they do not.
//!
//! A row gives the median time of a call, both ways, and the median of the round-by-round ratios (bare time through
//! ours: 1.00 is as fast as the bare call, 0.97 is 3 % slower). Folders default to a tmpfs and the build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use common::{Library, Random, Round, Side, Turns, bare_write, batch, on_threads};
use qbm::{AddBitmap, CreateOptions, Disk};

const GRANULE: u64 = 64 << 10;
/// What each thread writes to.
const AREA: u64 = 32 << 20;
/// The bytes of disk that one piece of a bitmap file stands for.
const PIECE: u64 = 4096 * 8 * GRANULE;

/// Rounds with all bits set.
const ROUNDS: usize = 201;
/// Rounds of first touches, each on cleared bitmaps.
const FRESH_ROUNDS: usize = 101;
/// Calls of a batch; two batches of ours touch each granule of an area once.
const BATCH: usize = (AREA / GRANULE / 2) as usize;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bits {
    Set,
    Fresh,
}

/// How the writers lie to each other.
#[derive(Clone, Copy)]
struct Writers {
    threads: u64,
    name: &'static str,
    /// From the start of one thread's area to the next one's.
    apart: u64,
}

const ONE: Writers = Writers {
    threads: 1,
    name: "1",
    apart: 0,
};
const NEAR: Writers = Writers {
    threads: 2,
    name: "2 near",
    apart: AREA,
};
const FAR: Writers = Writers {
    threads: 2,
    name: "2 far",
    apart: PIECE,
};

/// A disk with bitmaps, all of whose areas are allocated and in the page cache.
struct Subject {
    _dir: tempfile::TempDir,
    path: PathBuf,
    image: File,
    names: Vec<String>,
    writers: Writers,
}

impl Subject {
    fn new(folder: &Path, writers: Writers, bitmaps: usize) -> Self {
        let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
        let image = dir.path().join("disk.raw");
        let mut file = File::create_new(&image).expect("an image");
        let content = vec![1; usize::try_from(AREA).expect("a length")];
        for thread in 0..writers.threads {
            file.seek(SeekFrom::Start(thread * writers.apart))
                .expect("a place in the image");
            file.write_all(&content).expect("an area of the image");
        }
        file.sync_all().expect("the image on the disk");
        let path = dir.path().join("disk.qbm");
        CreateOptions::new()
            .image("disk.raw")
            .create(&path)
            .expect("a disk");
        let names: Vec<String> = (0..bitmaps).map(|index| format!("b{index}")).collect();
        let disk = Disk::open(&path).expect("it opens");
        for name in &names {
            disk.bitmap_add(name, AddBitmap::default()).expect("a bitmap");
        }
        disk.close().expect("it closes");
        let image = File::options().write(true).open(&image).expect("the image");
        Self {
            _dir: dir,
            path,
            image,
            names,
            writers,
        }
    }

    /// Sets or clears all bits, as they are when the disk is opened next.
    fn prepare(&self, bits: Bits) {
        let disk = Disk::open(&self.path).expect("it opens");
        for name in &self.names {
            match bits {
                Bits::Set => disk.bitmap_set(name, 0, disk.length()),
                Bits::Fresh => disk.bitmap_clear(name),
            }
            .expect("its bits");
        }
        disk.close().expect("it closes");
    }

    /// Opens the disk and runs these rounds.
    fn rounds(&self, library: &Library, numbers: std::ops::Range<usize>, size: usize) -> Vec<Round> {
        let disk = library.open(&self.path);
        // What is paid once for an open disk and once for 64 MiB, the unclean mark and the region's activation, is paid
        // before: two syncs in 256 writes would hide what each of the writes costs.
        for thread in 0..self.writers.threads {
            disk.write(&[0; 512], thread * self.writers.apart + AREA - GRANULE);
        }
        on_threads(self.writers.threads, |turns| {
            let fd = self.image.as_raw_fd();
            let buf = vec![0x5a; size];
            let mut rounds = Vec::new();
            for number in numbers.clone() {
                let order = self.order(&turns, number);
                // Each side takes the first half and then the second: no granule comes twice on one side.
                let (mut bare, mut ours) = (order.chunks_exact(BATCH), order.chunks_exact(BATCH));
                rounds.push(turns.round(number, |side| match side {
                    Side::Bare => {
                        let offsets = bare.next().unwrap_or_default();
                        batch(offsets.iter().copied(), |at| bare_write(fd, &buf, at))
                    }
                    Side::Ours => {
                        let offsets = ours.next().unwrap_or_default();
                        batch(offsets.iter().copied(), |at| disk.write(&buf, at))
                    }
                }));
            }
            rounds
        })
    }

    /// The granules of a thread's area, in a random order.
    fn order(&self, turns: &Turns<'_>, round: usize) -> Vec<u64> {
        let start = turns.thread * self.writers.apart;
        let mut order: Vec<u64> = (0..AREA / GRANULE).map(|index| start + index * GRANULE).collect();
        let mut random = Random::new(turns.thread + 2 * round as u64, 1, order.len() as u64);
        for index in 0..order.len() {
            order.swap(index, usize::try_from(random.next()).expect("an index"));
        }
        order
    }
}

fn measure(library: &Library, folder: &Path, size: usize, bitmaps: usize, bits: Bits, writers: Writers) {
    let subject = Subject::new(folder, writers, bitmaps);
    let mut rounds = Vec::new();
    if bits == Bits::Set {
        subject.prepare(bits);
        rounds = subject.rounds(library, 0..ROUNDS, size);
    } else {
        for number in 0..FRESH_ROUNDS {
            subject.prepare(bits);
            rounds.extend(subject.rounds(library, number..number + 1, size));
        }
    }
    println!(
        "{:<24} {:>2} KiB {bitmaps:>7}  {:<11} {:<6} {}",
        folder.display(),
        size >> 10,
        if bits == Bits::Set { "set" } else { "first touch" },
        writers.name,
        common::columns(&rounds)
    );
}

fn main() {
    let library = Library::load();
    println!(
        "Writes at random to {} MiB a thread, 64 KiB granules, written through; medians of {ROUNDS} rounds (first \
         touch: {FRESH_ROUNDS}) of 2 × {BATCH} calls of each, in turn",
        AREA >> 20
    );
    println!(
        "{:<24} {:>6} {:>7}  {:<11} {:<6} {}",
        "folder",
        "size",
        "bitmaps",
        "bits",
        "t",
        common::HEADINGS
    );
    for folder in &common::folders() {
        for size in [4 << 10, 64 << 10] {
            for bitmaps in [0, 1, 4] {
                for writers in [ONE, NEAR] {
                    measure(&library, folder, size, bitmaps, Bits::Set, writers);
                }
            }
            for bitmaps in [1, 4] {
                for writers in [ONE, NEAR, FAR] {
                    measure(&library, folder, size, bitmaps, Bits::Fresh, writers);
                }
            }
        }
    }
}

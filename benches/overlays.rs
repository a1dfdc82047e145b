//! Overlays beside the bare file: reads of what is in the overlay, of what is below it and of the two in turn, steady
//! writes, and the first write to a granule.
//!
//! ```text
//! cargo bench --bench overlays [-- FOLDER ...]
//! ```
//!
//! As `calls` does it: the shared library, short batches of bare calls and of ours in turn, medians. The bare call goes
//! to the file that has the bytes, image or backing; that of a first write to a file of its own, which is as sparse.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use common::{Library, Random, Round, Side, bare_read, bare_write, batch, on_threads};
use qbm::{CreateOptions, Disk, Format, WriteFlags};

const BLOCK: usize = 4096;
const GRANULE: u64 = 64 << 10;
const LENGTH: u64 = 64 << 20;
const BATCH: usize = 500;
const ROUNDS: usize = 301;

/// An overlay on a dense base, with the granules in it that `allocated` says.
fn overlay(folder: &Path, allocated: impl Fn(u64) -> bool) {
    let bytes = vec![1u8; usize::try_from(LENGTH).expect("a length")];
    std::fs::write(folder.join("base.img"), bytes).expect("a base");
    let path = folder.join("disk.qbm");
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .create(&path)
        .expect("an overlay");
    let disk = Disk::open(&path).expect("it opens");
    let granule = vec![2u8; usize::try_from(GRANULE).expect("a granule")];
    for index in (0..LENGTH / GRANULE).filter(|index| allocated(*index)) {
        disk.write(&granule, index * GRANULE, WriteFlags::empty())
            .expect("written");
    }
    disk.close().expect("it closes");
}

fn print(folder: &Path, what: &str, rounds: &[Round]) {
    println!("{:<24} {what:<32} {}", folder.display(), common::columns(rounds));
}

/// Calls of 4 KiB at random places of an overlay, beside those to the files that have the bytes.
fn steady(library: &Library, folder: &Path, what: &str, allocated: fn(u64) -> bool, write: bool) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    overlay(dir.path(), allocated);
    let disk = library.open(&dir.path().join("disk.qbm"));
    let bare = ["base.img", "disk-data.img"].map(|name| {
        let file = File::options().read(true).write(true).open(dir.path().join(name));
        file.expect("a file")
    });
    let bare = |at| bare[usize::from(allocated(at / GRANULE))].as_raw_fd();
    let rounds = on_threads(1, |turns| {
        let mut buf = vec![0x5au8; BLOCK];
        let mut random = Random::new(turns.thread, BLOCK as u64, LENGTH);
        (0..ROUNDS)
            .map(|number| {
                turns.round(number, |side| {
                    let offsets: [u64; BATCH] = std::array::from_fn(|_| random.next());
                    let offsets = offsets.into_iter();
                    match (side, write) {
                        (Side::Bare, false) => batch(offsets, |at| bare_read(bare(at), &mut buf, at)),
                        (Side::Bare, true) => batch(offsets, |at| bare_write(bare(at), &buf, at)),
                        (Side::Ours, false) => batch(offsets, |at| disk.read(&mut buf, at)),
                        (Side::Ours, true) => batch(offsets, |at| disk.write(&buf, at)),
                    }
                })
            })
            .collect()
    });
    print(folder, what, &rounds);
}

/// The first write of `size` bytes to each granule of a disk that is new in each round.
fn first_writes(library: &Library, folder: &Path, what: &str, size: usize) {
    const GRANULES: u64 = 64;
    let buf = vec![0x5au8; size];
    let mut rounds = Vec::new();
    for number in 0..41 {
        let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
        overlay(dir.path(), |_| false);
        let disk = library.open(&dir.path().join("disk.qbm"));
        // The very first change of a disk marks it unclean, which costs a sync.
        disk.write(&buf, LENGTH - GRANULE);
        let turns = on_threads(1, |turns| {
            let mut next = [0u64; 2];
            vec![turns.round(number, |side| {
                let counter = &mut next[usize::from(matches!(side, Side::Ours))];
                let first = *counter * GRANULES;
                *counter += 1;
                let offsets: Vec<u64> = (first..first + GRANULES).map(|index| index * GRANULE).collect();
                let bare = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(dir.path().join("bare.img"))
                    .expect("a file");
                bare.set_len(LENGTH).expect("a length");
                let offsets = offsets.into_iter();
                match side {
                    Side::Bare => batch(offsets, |at| bare_write(bare.as_raw_fd(), &buf, at)),
                    Side::Ours => batch(offsets, |at| disk.write(&buf, at)),
                }
            })]
        });
        rounds.extend(turns);
    }
    print(folder, what, &rounds);
}

fn main() {
    let library = Library::load();
    println!("64 MiB in granules of 64 KiB; medians");
    println!("{:<24} {:<32} {}", "folder", "", common::HEADINGS);
    for folder in &common::folders() {
        let all = |_| true;
        let none = |_| false;
        let every_other = |index: u64| index.is_multiple_of(2);
        let steady = |what, allocated, write| steady(&library, folder, what, allocated, write);
        steady("read 4 KiB, allocated", all, false);
        steady("read 4 KiB, in the backing", none, false);
        steady("read 4 KiB, every other granule", every_other, false);
        steady("write 4 KiB, allocated", all, true);
        first_writes(&library, folder, "first write of 64 KiB", 64 << 10);
        first_writes(&library, folder, "first write of 4 KiB", 4 << 10);
    }
}

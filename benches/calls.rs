//! `qbm_pread` and `qbm_pwrite` beside bare `pread` and `pwrite` on the same raw file, in one run.
//!
//! ```text
//! cargo bench --bench calls [-- FOLDER ...]
//! ```
//!
//! The shared library is opened with dlopen, as a C program would use it. The two are timed in turn, short batches
//! of each, many times; a row gives the median time of a call and the median of the round-by-round ratios (bare time
//! through ours: 1.00 is as fast as the bare call, 0.97 is 3 % slower). Folders default to a tmpfs and the build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use common::{Library, OpenDisk, Random, Round, Side, Turns, bare_read, bare_write, batch, on_threads};

const BLOCK: usize = 4096;
const LENGTH: u64 = 64 << 20;
const BATCH: usize = 500;
const ROUNDS: usize = 601;

/// One thread's rounds.
fn one_thread(turns: &Turns<'_>, disk: &OpenDisk<'_>, image: &File, write: bool) -> Vec<Round> {
    let fd = image.as_raw_fd();
    let mut buf = vec![0x5au8; BLOCK];
    let mut random = Random::new(turns.thread, BLOCK as u64, LENGTH);
    let mut rounds = Vec::new();
    for number in 0..ROUNDS {
        rounds.push(turns.round(number, |side| {
            let offsets: [u64; BATCH] = std::array::from_fn(|_| random.next());
            let offsets = offsets.into_iter();
            match (side, write) {
                (Side::Bare, false) => batch(offsets, |at| bare_read(fd, &mut buf, at)),
                (Side::Bare, true) => batch(offsets, |at| bare_write(fd, &buf, at)),
                (Side::Ours, false) => batch(offsets, |at| disk.read(&mut buf, at)),
                (Side::Ours, true) => batch(offsets, |at| disk.write(&buf, at)),
            }
        }));
    }
    rounds
}

fn measure(library: &Library, folder: &Path, write: bool, threads: u64) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let image = dir.path().join("disk.raw");
    std::fs::write(&image, vec![1u8; usize::try_from(LENGTH).expect("a length")]).expect("an image");
    let path = dir.path().join("disk.qbm");
    qbm::CreateOptions::new()
        .image("disk.raw")
        .create(&path)
        .expect("a disk");
    let disk = library.open(&path);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&image)
        .expect("the image");
    let rounds = on_threads(threads, |turns| one_thread(&turns, &disk, &file, write));
    println!(
        "{:<24} {:<5} {threads} {}",
        folder.display(),
        if write { "write" } else { "read" },
        common::columns(&rounds)
    );
}

fn main() {
    let library = Library::load();
    println!("4 KiB at random in 64 MiB; medians of {ROUNDS} rounds of 2 × {BATCH} calls of each, in turn");
    println!("{:<24} {:<5} t {}", "folder", "", common::HEADINGS);
    for folder in &common::folders() {
        for threads in [1, 2] {
            for write in [false, true] {
                measure(&library, folder, write, threads);
            }
        }
    }
}

//! Opening a disk of 1 TiB with three bitmaps of 64 KiB granules, warm: how long it takes, and how much memory it keeps.
//!
//! ```text
//! cargo bench --bench opening [-- FOLDER ...]
//! ```
//!
//! The shared library, as a C program would open it, for writing, with a state file. Bare is a plain read of the three bitmap
//! files into memory. The memory is the growth of what the process has of its own (`RssAnon`), and the goal for it the
//! bitmaps' bytes and a fifth, and 4 MiB. Folders default to a tmpfs and the build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;

use std::path::Path;
use std::time::Instant;

use common::Library;
use qbm::{AddBitmap, CreateOptions, Disk};

const LENGTH: u64 = 1 << 40;
/// Of one bitmap's file.
const BYTES: usize = 2 << 20;
const BITMAPS: [&str; 3] = ["a", "b", "c"];
const ROUNDS: usize = 51;

/// A disk, and how many of a thousand bits are set in each of its bitmaps, strewn or in runs of `run`.
fn disk(folder: &Path, overlay: bool, permille: usize, run: usize) {
    let path = folder.join("disk.qbm");
    let create = CreateOptions::new().size(LENGTH);
    if overlay {
        let base = std::fs::File::create(folder.join("base.img")).expect("a base");
        base.set_len(LENGTH).expect("a length");
        create.backing("base.img", qbm::Format::Raw)
    } else {
        create
    }
    .create(&path)
    .expect("a disk");
    let disk = Disk::open(&path).expect("it opens");
    for name in &BITMAPS[usize::from(overlay)..] {
        disk.bitmap_add(name, AddBitmap::default()).expect("a bitmap");
    }
    disk.close().expect("it closes");
    let mut bytes = vec![0u8; BYTES];
    let every = (1000 * run).checked_div(permille).unwrap_or(usize::MAX);
    for first in (0..BYTES * 8)
        .step_by(every.max(1))
        .skip(usize::from(permille == 0))
    {
        (first..first + run).for_each(|bit| bytes[bit / 8] |= 1 << (bit % 8));
    }
    for file in files(overlay) {
        std::fs::write(folder.join(file), &bytes).expect("a bitmap");
    }
}

fn files(overlay: bool) -> [&'static str; 3] {
    let first = if overlay {
        "disk-allocation.bitmap"
    } else {
        "disk-a.bitmap"
    };
    [first, "disk-b.bitmap", "disk-c.bitmap"]
}

/// What the process has of memory that is no file's, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok()).expect("RssAnon") << 10
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let library = Library::load();
    println!("1 TiB, three bitmaps of 64 KiB granules; medians of {ROUNDS}");
    println!(
        "{:<24} {:<40} bare, ms  open, ms  memory, MiB  goal, MiB",
        "folder", ""
    );
    let goal = (3.0 * BYTES as f64).mul_add(1.2, 4e0 * f64::from(1 << 20)) / f64::from(1 << 20);
    for folder in &common::folders() {
        for (what, overlay, permille, run) in [
            ("three dirty bitmaps, none set", false, 0, 1),
            ("three dirty bitmaps, 1 % strewn", false, 10, 1),
            ("three dirty bitmaps, 1 % in runs of 256", false, 10, 256),
            ("an overlay with two, none set", true, 0, 1),
            ("an overlay with two, 1 % strewn", true, 10, 1),
        ] {
            let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
            disk(dir.path(), overlay, permille, run);
            let path = dir.path().join("disk.qbm");
            let (mut bare, mut ours, mut most) = (Vec::new(), Vec::new(), 0);
            for _ in 0..ROUNDS {
                let begun = Instant::now();
                let bytes =
                    files(overlay).map(|file| std::fs::read(dir.path().join(file)).expect("a bitmap"));
                bare.push(begun.elapsed().as_secs_f64() * 1e3);
                drop(bytes);
                let before = memory();
                let begun = Instant::now();
                let disk = library.open(&path);
                ours.push(begun.elapsed().as_secs_f64() * 1e3);
                most = most.max(memory().saturating_sub(before));
                drop(disk);
            }
            let (bare, ours) = (median(bare), median(ours));
            let most = most as f64 / f64::from(1 << 20);
            println!(
                "{:<24} {what:<40} {bare:>8.2} {ours:>9.2} {most:>12.1} {goal:>10.1}",
                folder.display()
            );
        }
    }
}

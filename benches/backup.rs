//! Backup and restore beside `qemu-img convert` of the same data, and what a guest's writes cost meanwhile.
//!
//! ```text
//! cargo bench --bench backup [-- FOLDER [MIB [ROUNDS]]]
//! ```
//!
//! A raw image of 10 GiB unless another size is given, 30 % of it data: runs of 1 to 16 MiB at random, in the page cache.
//! Ours and theirs in turn, in the order A B B A; each round's ratio of the sums, and the median of these. All of ours is
//! durable at its end, and verified by checksum before a restore; what `qemu-img convert` makes is synced, in its time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot run says why and stops"
)]

#[path = "common/qemu_increments.rs"]
mod qemu_increments;

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qbm::backup::{Backup, BackupFolder, Restore};
use qbm::{CreateOptions, Disk, ScratchFull, WriteFlags};
use qemu_increments::Increments;

const MIB: u64 = 1 << 20;
const GRANULE: u64 = 64 << 10;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let words = (0..len / 8).map(|_| {
            self.below(1);
            (self.0 ^ self.0 >> 29).to_le_bytes()
        });
        words.flatten().collect()
    }
}

struct Room {
    dir: tempfile::TempDir,
    length: u64,
}

impl Room {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn new(folder: &Path, length: u64) -> Self {
        let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
        let room = Self { dir, length };
        let image = File::create(room.path("disk.raw")).expect("an image");
        image.set_len(length).expect("a length");
        let random = &mut Random(1);
        let mut at = 0;
        while at < length {
            let data = (1 + random.below(16)) * MIB;
            let data = data.min(length - at);
            image.write_all_at(&random.bytes(data), at).expect("written");
            // So that three tenths are data.
            at += data * 10 / 3 / MIB * MIB;
        }
        image.sync_all().expect("synced");
        CreateOptions::new()
            .image("disk.raw")
            .create(room.path("disk.qbm"))
            .expect("a disk");
        room
    }

    fn disk(&self) -> Disk {
        Disk::open(self.path("disk.qbm")).expect("it opens")
    }

    /// Some of what was made before goes first, so that no run is the one that has to make room.
    fn clear(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() {
            std::fs::remove_dir_all(path).expect("removed");
        } else if path.exists() {
            std::fs::remove_file(path).expect("removed");
        }
        // The space is given back, and to the device, with the next commit: not in the time of whoever syncs next.
        let synced = Command::new("sync").arg("-f").arg(self.dir.path()).status();
        assert!(synced.is_ok_and(|status| status.success()), "sync -f");
    }

    fn back_up(&self, folder: &str) -> u64 {
        let mut folder = BackupFolder::open_or_create(self.path(folder)).expect("a folder");
        let disk = self.disk();
        let made = Backup::new("nightly").run(&disk, &mut folder, &mut go_on);
        disk.close().expect("closed");
        made.expect("a backup").point.stored
    }

    fn restore(&self, to: &str) -> u64 {
        let folder = BackupFolder::open(self.path("backups")).expect("a folder");
        let point = folder.find("latest").expect("a backup");
        let restored = Restore::new().run(&folder, point, &self.path(to), &mut go_on);
        restored.expect("restored").written
    }

    fn convert(&self, from: &str, to: &str) {
        let done = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "raw"])
            .args([self.path(from), self.path(to)])
            .status();
        assert!(done.is_ok_and(|status| status.success()), "qemu-img convert");
        // It syncs nothing, and a backup that a power cut takes back is none.
        let made = File::open(self.path(to)).and_then(|file| file.sync_all());
        made.expect("synced");
    }

    /// The places of scattered writes to 1 % of the granules.
    fn scattered(&self, seed: u64) -> impl Iterator<Item = u64> {
        let (mut random, granules) = (Random(seed), self.length / GRANULE);
        (0..granules / 100).map(move |_| random.below(granules) * GRANULE)
    }

    fn dirty(&self, seed: u64) {
        let disk = self.disk();
        let random = &mut Random(seed);
        for at in self.scattered(seed) {
            let bytes = random.bytes(4096);
            disk.write(&bytes, at, WriteFlags::empty()).expect("written");
        }
        disk.close().expect("closed");
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what a progress callback returns")]
fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both in turn; prints the medians of their times and of the rounds' ratios.
fn beside(what: &str, rounds: usize, mut ours: impl FnMut() -> f64, mut theirs: impl FnMut() -> f64) {
    let (mut own, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (a, b) = (ours(), theirs());
        let (c, d) = (theirs(), ours());
        own.extend([a, d]);
        other.extend([b, c]);
        ratios.push((b + c) / (a + d));
    }
    println!(
        "{what:<44} libqbm {:>7.2} s   other {:>7.2} s   {:>6.2} times as fast",
        median(own),
        median(other),
        median(ratios)
    );
}

/// Latencies of single writes at random, in the middle and of the slowest hundredth.
fn latencies(disk: &Disk, length: u64, len: u64, seed: u64, stop: &AtomicBool, most: usize) -> Vec<f64> {
    let random = &mut Random(seed);
    let bytes = random.bytes(len);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) && times.len() < most {
        let at = random.below(length / len) * len;
        times.push(timed(|| {
            disk.write(&bytes, at, WriteFlags::empty()).expect("written");
        }));
        thread::sleep(Duration::from_micros(200));
    }
    times
}

fn guest(room: &Room, len: u64) {
    let disk = room.disk();
    let stop = &AtomicBool::new(false);
    // Bits that are set already are what a guest mostly meets.
    let idle = latencies(&disk, room.length, len, 3, stop, 5000);
    let mut busy = Vec::new();
    thread::scope(|scope| {
        let writer = scope.spawn(|| latencies(&disk, room.length, len, 4, stop, usize::MAX));
        room.clear("others");
        let mut folder = BackupFolder::open_or_create(room.path("others")).expect("a folder");
        let delay = ScratchFull::DelayGuest {
            at_most: Duration::from_secs(10),
        };
        let backup = Backup::new("other").scratch_full(delay);
        backup.run(&disk, &mut folder, &mut go_on).expect("a backup");
        stop.store(true, Ordering::Relaxed);
        busy = writer.join().expect("the guest");
    });
    disk.bitmap_remove("other").expect("removed");
    disk.close().expect("closed");
    room.clear("others");
    let row = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: usize| sorted[sorted.len() * share / 1000] * 1e6;
        (at(500), at(990))
    };
    let (alone, beside) = (row(&idle), row(&busy));
    println!(
        "guest write of {len:>6}: alone {:>7.0} us, 99 % within {:>7.0}; during a full backup {:>7.0} ({:.1} times), {:>7.0} ({:.1} times); {} writes",
        alone.0,
        alone.1,
        beside.0,
        beside.0 / alone.0,
        beside.1,
        beside.1 / alone.1,
        busy.len()
    );
}

/// Against QEMU's own incremental backups.
fn increments(room: &Room, rounds: usize) {
    let Some(qemu) = Increments::new(room.dir.path(), &room.path("disk.raw"), room.length) else {
        println!("no qemu-nbd and nbdinfo: nothing to compare increments with");
        return;
    };
    let (mut stored, mut seeds) = (0, [1000, 1000]);
    let [own, other] = &mut seeds;
    beside(
        "incremental, 1 % scattered; qemu-nbd -B",
        rounds,
        || {
            *own += 1;
            room.dirty(*own);
            timed(|| stored = room.back_up("backups"))
        },
        || {
            *other += 1;
            qemu.dirty(room.scattered(*other));
            timed(|| qemu.back_up())
        },
    );
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!(
        "    each stores {:.1} MiB; QEMU's takes {:.1}",
        mib(stored),
        mib(qemu.stored())
    );
    for name in ["disk.qcow2", "full.qcow2", "increment.qcow2"] {
        room.clear(name);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let folder = args.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let number = |at: usize, default: u64| args.get(at).map_or(default, |it| it.parse().expect("a number"));
    let length = number(1, 10 << 10) * MIB;
    let rounds = usize::try_from(number(2, 3)).expect("a number");
    let room = Room::new(&folder, length);

    let full = || {
        room.clear("backups");
        timed(|| {
            room.back_up("backups");
        })
    };
    let convert = |from: &'static str, to: &'static str| {
        let room = &room;
        move || {
            room.clear(to);
            let took = timed(|| room.convert(from, to));
            room.clear(to);
            took
        }
    };
    println!("{} MiB, 30 % data, in {}", length / MIB, folder.display());
    beside(
        "full backup; qemu-img convert",
        rounds,
        full,
        convert("disk.raw", "other.raw"),
    );

    let mut seed = 10;
    let mut stored = 0;
    beside(
        "incremental, 1 % scattered; qemu-img convert",
        rounds,
        || {
            seed += 1;
            room.dirty(seed);
            timed(|| stored = room.back_up("backups"))
        },
        convert("disk.raw", "other.raw"),
    );
    println!("    each stores {:.1} MiB", stored as f64 / MIB as f64);
    increments(&room, rounds);

    room.clear("backups");
    room.back_up("backups");
    let to_new = || {
        room.clear("restored.raw");
        timed(|| {
            room.restore("restored.raw");
        })
    };
    beside(
        "restore, new file; qemu-img convert",
        rounds,
        to_new,
        convert("disk.raw", "other.raw"),
    );
    // What differs is written, all is read.
    let mut written = 0;
    let onto = || {
        let file = File::options()
            .write(true)
            .open(room.path("restored.raw"))
            .expect("it opens");
        let random = &mut Random(99);
        for _ in 0..length / GRANULE / 100 {
            let at = random.below(length / GRANULE) * GRANULE;
            file.write_all_at(&random.bytes(4096), at).expect("written");
        }
        drop(file);
        timed(|| written = room.restore("restored.raw"))
    };
    beside(
        "restore onto 1 % other; qemu-img convert",
        rounds,
        onto,
        convert("disk.raw", "other.raw"),
    );
    println!("    each writes {:.1} MiB", written as f64 / MIB as f64);
    room.clear("restored.raw");

    for len in [4 << 10, 64 << 10] {
        guest(&room, len);
    }
}

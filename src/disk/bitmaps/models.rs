//! A whole disk under the schedule explorer: guests write while a backup freezes, thaws, clears and merges.
//!
//! What must hold in every schedule: whatever differs from what the backup has is dirty, in memory and in the files
//! that a killed process leaves (D1, durability trap 1). Crashes under the guests' writes are in [`crash`].

mod crash;

use super::{AddBitmap, BitmapAction, MergeSource, Thaw};
use crate::disk::{CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::mutation::{self, Fault};
use crate::storage::simulated::SimDisk;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use crate::units::Granularity;

const NAME: &str = "disk.qbm";
const GRANULE: u64 = 512;
const GRANULES: usize = 3;

/// The first byte of each granule: what a backup has, or what the disk says.
type Content = [u8; GRANULES];

fn start_of(granule: usize) -> u64 {
    granule as u64 * GRANULE
}

fn open(sim: &SimDisk) -> Disk {
    OpenOptions::new()
        .folder(sim.folder())
        .no_state(true)
        .open(NAME)
        .unwrap()
}

/// A disk of zeros with two bitmaps, where another thread may come before any call on a file.
fn disk() -> (SimDisk, Arc<Disk>) {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(start_of(GRANULES))
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    let disk = open(&sim);
    let options = AddBitmap {
        granularity: Granularity::new(GRANULE).unwrap(),
        ..AddBitmap::default()
    };
    disk.bitmap_add("b", options).unwrap();
    let kept = AddBitmap {
        recording: false,
        ..options
    };
    disk.bitmap_add("kept", kept).unwrap();
    let step = AtomicUsize::new(0);
    sim.on_call(move |_| {
        step.load(Ordering::SeqCst);
    });
    (sim, Arc::new(disk))
}

fn content(disk: &Disk, granule: usize) -> u8 {
    let mut byte = [0];
    disk.read(&mut byte, start_of(granule)).unwrap();
    byte[0]
}

/// Guests write while the main thread runs `operation`, which returns what its backup has. Then whatever that lacks
/// must be dirty in one of `bitmaps`.
fn guests_and(operation: impl FnOnce(&Disk) -> Content, bitmaps: &[&str]) {
    let (sim, disk) = disk();
    let writes: [&[(usize, u8)]; 2] = [&[(0, 1), (2, 2)], &[(1, 3), (2, 4)]];
    let guests = writes.map(|writes| {
        let disk = Arc::clone(&disk);
        thread::spawn(move || {
            for (granule, value) in writes {
                disk.write(&[*value], start_of(*granule), WriteFlags::empty())
                    .unwrap();
            }
        })
    });
    let backup = operation(&disk);
    for guest in guests {
        guest.join().unwrap();
    }
    for disk in [&open(&sim.kill()), &*disk] {
        for (granule, copied) in backup.into_iter().enumerate() {
            let dirty = |name: &&str| disk.bitmap_get(name, start_of(granule)).unwrap();
            assert!(
                copied == content(disk, granule) || bitmaps.iter().any(dirty),
                "the change of granule {granule} is lost"
            );
        }
    }
}

/// An incremental backup that succeeds, of a disk that was all zeros at the one before.
fn backup(disk: &Disk) -> Content {
    disk.bitmap_freeze("b").unwrap();
    let mut backup = Content::default();
    for (granule, copy) in backup.iter_mut().enumerate() {
        if disk.bitmap_get("b", start_of(granule)).unwrap() {
            *copy = content(disk, granule);
        }
    }
    disk.bitmap_thaw("b", Thaw::Commit).unwrap();
    backup
}

/// The bitmap starts anew, and a full backup is made after that.
fn clear(disk: &Disk) -> Content {
    disk.bitmap_clear("b").unwrap();
    std::array::from_fn(|granule| content(disk, granule))
}

/// Random schedules, and such that let a thread rest for long, as a real one may at any step.
fn explore(model: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(model.clone(), 2_000);
    shuttle::check_pct(model, 2_000, 3);
}

fn backup_under_writes() {
    guests_and(backup, &["b"]);
}

fn clear_under_writes() {
    guests_and(clear, &["b"]);
}

#[test]
fn shuttle_a_backup_and_the_bits_that_are_left_lose_no_change() {
    explore(backup_under_writes);
}

#[test]
fn shuttle_a_clear_loses_no_change() {
    explore(clear_under_writes);
}

#[test]
fn shuttle_a_backup_that_failed_loses_no_change() {
    let failed = |disk: &Disk| {
        disk.bitmap_freeze("b").unwrap();
        disk.bitmap_thaw("b", Thaw::Rollback).unwrap();
        Content::default()
    };
    explore(move || guests_and(failed, &["b"]));
}

#[test]
fn shuttle_bits_that_are_kept_and_cleared_at_once_lose_no_change() {
    let keep = |disk: &Disk| {
        disk.bitmap_transaction(&[
            BitmapAction::Merge {
                target: "kept",
                sources: vec![MergeSource::Bitmap("b")],
            },
            BitmapAction::Clear { name: "b" },
        ])
        .unwrap();
        Content::default()
    };
    explore(move || guests_and(keep, &["b", "kept"]));
}

#[test]
fn shuttle_finds_data_that_goes_out_behind_a_freeze() {
    mutation::must_be_caught(Fault::DataOutsideGate, "is lost", || explore(backup_under_writes));
}

#[test]
fn shuttle_finds_data_that_goes_out_behind_a_clear() {
    mutation::must_be_caught(Fault::DataOutsideGate, "is lost", || explore(clear_under_writes));
}

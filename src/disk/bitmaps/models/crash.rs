//! A whole disk under the schedule explorer, and a crash while guests write: the process is killed, or the power goes.
//!
//! What must hold in every schedule, of the disk as the next process recovers it: whatever differs from the bitmap's starting
//! point is dirty (D1).

use super::{GRANULE, GRANULES, NAME, content, start_of};
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::mutation::{self, Fault};
use crate::storage::simulated::{Keep, SimDisk};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use crate::units::Granularity;

/// How often the crash comes while guests write.
const CRASHES: u64 = 2;

/// After a kill the page cache is there, and vouched for: the bitmap's file is all that tells.
fn open_after_kill(sim: &SimDisk) -> Disk {
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch("cache");
    options.open(NAME).unwrap()
}

fn open_after_cut(sim: &SimDisk) -> Disk {
    OpenOptions::new().folder(sim.folder()).open(NAME).unwrap()
}

/// A disk of zeros with a bitmap, and a region of the intent map for each granule.
fn disk() -> (SimDisk, Arc<Disk>) {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(start_of(GRANULES))
        .region_bytes(GRANULE)
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    let disk = open_after_kill(&sim);
    let options = AddBitmap {
        granularity: Granularity::new(GRANULE).unwrap(),
        ..AddBitmap::default()
    };
    disk.bitmap_add("b", options).unwrap();
    let step = AtomicUsize::new(0);
    sim.on_call(move |_| {
        step.load(Ordering::SeqCst);
    });
    (sim, Arc::new(disk))
}

fn check(disk: &Disk, crash: &str) {
    for granule in 0..GRANULES {
        assert!(
            content(disk, granule) == 0 || disk.bitmap_get("b", start_of(granule)).unwrap(),
            "the change of granule {granule} is lost in {crash}"
        );
    }
}

/// Guests that write to these granules, one each, and the crash at some moments.
fn crashes_under_writes(granules: [usize; 2]) {
    let (sim, disk) = disk();
    let guests = granules.map(|granule| {
        let disk = Arc::clone(&disk);
        thread::spawn(move || {
            disk.write(&[1], start_of(granule), WriteFlags::empty()).unwrap();
        })
    });
    // Looked at afterwards: what the next process does is no step of this one.
    let mut crashes = Vec::new();
    for seed in 0..CRASHES {
        thread::yield_now();
        crashes.push((sim.kill(), sim.power_cut_keeping(Keep::Random(seed))));
    }
    for guest in guests {
        guest.join().unwrap();
    }
    crashes.push((sim.kill(), sim.power_cut_keeping(Keep::All)));
    for (killed, cut) in &crashes {
        check(&open_after_kill(killed), "a kill");
        check(&open_after_cut(cut), "a power cut");
    }
}

fn explore(granules: [usize; 2]) {
    super::explore(move || crashes_under_writes(granules));
}

#[test]
fn shuttle_crashes_under_writes_lose_no_change() {
    explore([0, 0]);
    explore([0, 2]);
}

#[test]
fn shuttle_finds_what_a_kill_loses_of_a_bit_that_comes_before_its_piece() {
    mutation::must_be_caught(Fault::BitBeforePiece, "is lost in a kill", || explore([0, 0]));
}

#[test]
fn shuttle_finds_what_a_power_cut_loses_of_a_joined_running_sync() {
    mutation::must_be_caught(Fault::RunningSyncJoined, "is lost in a power cut", || {
        explore([0, 2])
    });
}

//! A whole disk under the schedule explorer, and a crash while guests write, and regions are retired: the process is killed, or
//! the power goes.
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

/// What another thread does to the disk, once.
#[derive(Clone, Copy)]
enum Act {
    /// A guest writes to this granule.
    Write(usize),
    /// All regions are retired.
    Retire,
}

impl Act {
    fn on(self, disk: &Disk) {
        match self {
            Self::Write(granule) => disk.write(&[1], start_of(granule), WriteFlags::empty()),
            Self::Retire => disk.bitmap_sync(None),
        }
        .unwrap();
    }
}

/// One thread for each of these, and the crash at some moments.
fn crashes_under(acts: [Act; 2]) {
    let (sim, disk) = disk();
    let others = acts.map(|act| {
        let disk = Arc::clone(&disk);
        thread::spawn(move || act.on(&disk))
    });
    // Looked at afterwards: what the next process does is no step of this one.
    let (mut kills, mut cuts) = (Vec::new(), Vec::new());
    for seed in 0..CRASHES {
        thread::yield_now();
        kills.push(sim.kill());
        cuts.push(sim.power_cut_keeping(Keep::Random(seed)));
    }
    for other in others {
        other.join().unwrap();
    }
    kills.push(sim.kill());
    cuts.push(sim.power_cut_keeping(Keep::All));
    if let [_, Act::Retire] = acts {
        // One of what was not synced may be the bit.
        cuts.extend((0..3).map(|one| sim.power_cut_keeping(Keep::AllBut(one))));
    }
    kills.iter().for_each(|it| check(&open_after_kill(it), "a kill"));
    cuts.iter()
        .for_each(|it| check(&open_after_cut(it), "a power cut"));
}

fn explore(acts: [Act; 2]) {
    super::explore(move || crashes_under(acts));
}

#[test]
fn shuttle_crashes_under_writes_lose_no_change() {
    explore([Act::Write(0), Act::Write(0)]);
    explore([Act::Write(0), Act::Write(2)]);
}

#[test]
fn shuttle_crashes_while_regions_are_retired_lose_no_change() {
    explore([Act::Write(0), Act::Retire]);
}

#[test]
fn shuttle_finds_what_a_kill_loses_of_a_bit_that_comes_before_its_piece() {
    mutation::must_be_caught(Fault::BitBeforePiece, "is lost in a kill", || {
        explore([Act::Write(0), Act::Write(0)]);
    });
}

#[test]
fn shuttle_finds_what_a_power_cut_loses_of_a_joined_running_sync() {
    mutation::must_be_caught(Fault::RunningSyncJoined, "is lost in a power cut", || {
        explore([Act::Write(0), Act::Write(2)]);
    });
}

#[test]
fn shuttle_finds_what_a_power_cut_loses_of_a_region_that_is_retired_under_its_writer() {
    mutation::must_be_caught(Fault::RetiredUnderPin, "is lost in a power cut", || {
        explore([Act::Write(0), Act::Retire]);
    });
}

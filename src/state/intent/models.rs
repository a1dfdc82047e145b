//! The intent map under the schedule explorer: writers and retirements, with the crash looked at between any two steps.
//!
//! Run by `RUSTFLAGS="--cfg shuttle" cargo test --release --lib shuttle_`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{IntentMap, RegionSet};
use crate::mutation::{Fault, must_be_caught};
use crate::state::{Header, RegionSize, StateFile};
use crate::storage::simulated::{Keep, SimDisk};
use crate::storage::{Access, Folder, Role, Storage, SyncMode, write_slice};
use crate::sync::thread;
use crate::units::ByteRange;

const REGION: u64 = 512;

/// A disk of a few regions; its bitmap is a file with a piece for each.
#[derive(Clone)]
struct Room {
    disk: SimDisk,
    map: Arc<IntentMap>,
    bitmap: Arc<dyn Storage>,
}

impl Room {
    fn new() -> Self {
        let disk = SimDisk::new();
        let state = disk.create(Role::State, Path::new("state")).unwrap();
        let bitmap = disk.create(Role::Bitmap, Path::new("bitmap")).unwrap();
        write_slice(&*bitmap, &[0; 4 * 512], 0).unwrap();
        bitmap.sync(SyncMode::All).unwrap();
        Folder::sync(&disk).unwrap();
        let header = Header::new(RegionSize::new(REGION).unwrap());
        let file = StateFile::create(state, "state".into(), header).unwrap();
        let map = IntentMap::new(Arc::new(file), RegionSet::new(), 4 * REGION, Duration::ZERO);
        Self {
            disk,
            map: Arc::new(map.unwrap()),
            bitmap,
        }
    }

    /// A first-touch write, up to where its data may be on the disk.
    fn write(&self, region: u64) {
        let pin = self
            .map
            .pin(ByteRange::between(region * REGION, (region + 1) * REGION))
            .unwrap();
        thread::yield_now();
        write_slice(&*self.bitmap, &[1], region * 512).unwrap();
        thread::yield_now();
        drop(pin);
        thread::yield_now();
        self.check(region);
    }

    /// D1: whatever a power cut keeps, the write to `region` is in the bitmap, or in the map.
    fn check(&self, region: u64) {
        for keep in [Keep::Nothing, Keep::All]
            .into_iter()
            .chain((0..3).map(Keep::Random))
        {
            let after = self.disk.power_cut_keeping(keep);
            let state = after
                .open(Role::State, Path::new("state"), Access::default())
                .unwrap();
            let found = StateFile::inspect(&*state, Path::new("state")).unwrap().unwrap();
            let at = usize::try_from(region * 512).unwrap();
            let recorded = after.read("bitmap").unwrap()[at] == 1;
            assert!(
                recorded || found.active().contains(region),
                "region {region} is lost"
            );
        }
    }

    fn settle(&self) -> crate::Result<()> {
        thread::yield_now();
        self.bitmap.sync(SyncMode::Data).unwrap();
        thread::yield_now();
        Ok(())
    }
}

/// Threads that write to these regions, and one that retires all, `passes` times.
fn writers_and_retirement(writers: &'static [&'static [u64]], passes: usize) {
    let room = Room::new();
    let mut workers: Vec<_> = writers
        .iter()
        .map(|regions| {
            let room = room.clone();
            thread::spawn(move || regions.iter().for_each(|region| room.write(*region)))
        })
        .collect();
    let retiring = room.clone();
    workers.push(thread::spawn(move || {
        for _ in 0..passes {
            retiring.map.retire_all(|| retiring.settle()).unwrap();
        }
    }));
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    writers
        .iter()
        .copied()
        .flatten()
        .for_each(|region| room.check(*region));
    // Nothing is left pinned or shut.
    room.map.retire_all(|| room.settle()).unwrap();
    assert_eq!(room.map.active(), 0);
}

/// The same with passes over cold regions.
fn writers_and_cold_passes() {
    let room = Room::new();
    let workers: Vec<_> = [[0, 1], [1, 0]]
        .into_iter()
        .map(|regions| {
            let room = room.clone();
            thread::spawn(move || regions.into_iter().for_each(|region| room.write(region)))
        })
        .collect();
    let now = Instant::now();
    for _ in 0..3 {
        room.map.retire_cold(now, || room.settle()).unwrap();
        thread::yield_now();
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    [0, 1].into_iter().for_each(|region| room.check(region));
}

#[test]
fn shuttle_writers_share_activations() {
    shuttle::check_random(|| writers_and_retirement(&[&[0], &[0], &[1]], 0), 600);
    shuttle::check_pct(|| writers_and_retirement(&[&[0, 2], &[1], &[0]], 0), 600, 3);
}

#[test]
fn shuttle_writers_meet_retirements() {
    shuttle::check_random(|| writers_and_retirement(&[&[0, 1], &[1]], 2), 600);
    shuttle::check_pct(|| writers_and_retirement(&[&[0], &[0]], 2), 600, 3);
}

#[test]
fn shuttle_writers_meet_cold_passes() {
    shuttle::check_random(writers_and_cold_passes, 600);
    shuttle::check_pct(writers_and_cold_passes, 600, 3);
}

/// The explorer must find a schedule in which `model` loses a write once `fault` is in.
fn loses_a_write(fault: Fault, model: fn()) {
    must_be_caught(fault, "is lost", || {
        shuttle::check_random(model, 600);
    });
}

#[test]
fn shuttle_finds_a_skipped_sync() {
    loses_a_write(Fault::IntentUnsynced, || writers_and_retirement(&[&[0]], 0));
}

#[test]
fn shuttle_finds_a_joined_running_sync() {
    loses_a_write(Fault::RunningSyncJoined, || {
        writers_and_retirement(&[&[0], &[1]], 0)
    });
}

#[test]
fn shuttle_finds_a_retirement_under_a_pin() {
    loses_a_write(Fault::RetiredUnderPin, || writers_and_retirement(&[&[0]], 1));
}

#[test]
fn shuttle_finds_a_region_cleared_before_the_bitmaps_are_synced() {
    loses_a_write(Fault::ClearedUnsettled, || writers_and_retirement(&[&[0]], 1));
}

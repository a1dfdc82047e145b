//! A crash while a starting point is taken and writers write: the process is killed, or the power goes.
//!
//! What must hold in every schedule, of what the crash leaves of the files: whatever differs from the starting point that is
//! in force has its bit in that point's bitmap (D1, durability trap 1).

use std::path::Path;
use std::sync::OnceLock;

use super::GRANULES;
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::disk::gate::Gate;
use crate::mutation::{self, Fault};
use crate::storage::simulated::{Keep, SimDisk};
use crate::storage::{Access, Role, Storage, SyncMode, read_slice, write_slice};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use crate::units::{GranuleIndex, GranuleRange};

const SECTOR: usize = 512;
const DATA: &str = "data";
/// Says which bitmap is in force.
const POINT: &str = "point";
const BITMAPS: [&str; 2] = ["before.bitmap", "behind.bitmap"];
/// How often the crash comes while writers write; once more behind them.
const CRASHES: u64 = 3;

/// The first byte of each granule.
type Content = [u8; GRANULES];

/// Files for all that a gate keeps in order.
struct World {
    sim: SimDisk,
    /// Which bitmap records.
    gate: Gate<AtomicUsize>,
    data: Arc<dyn Storage>,
    point: Arc<dyn Storage>,
    bitmaps: [(BitmapFile, Bits); 2],
    /// What there was where each bitmap starts.
    starts: [OnceLock<Content>; 2],
}

impl World {
    fn new() -> Arc<Self> {
        let sim = SimDisk::new();
        let file = |name: &str, len: usize| {
            sim.put(name, &vec![0; len]);
            let access = Access {
                write: true,
                ..Access::default()
            };
            sim.folder().open(Role::Image, Path::new(name), access).unwrap()
        };
        let (data, point) = (file(DATA, GRANULES * SECTOR), file(POINT, 1));
        let bitmaps = BITMAPS.map(|name| {
            let bits = Bits::new(GRANULES as u64).unwrap();
            let file = file(name, usize::try_from(bits.serialized_len()).unwrap());
            (
                BitmapFile::new(file, name.into(), BitmapPolicy::WriteThrough),
                bits,
            )
        });
        // Another thread may come before any call on a file.
        let step = AtomicUsize::new(0);
        sim.on_call(move |_| {
            step.load(Ordering::SeqCst);
        });
        Arc::new(Self {
            sim,
            gate: Gate::new(AtomicUsize::new(0)),
            data,
            point,
            bitmaps,
            starts: [Content::default().into(), OnceLock::new()],
        })
    }

    /// A guest's write: first the bit, then the data.
    fn write(&self, granule: usize, value: u8) {
        let recording = self.gate.enter();
        let (file, bits) = &self.bitmaps[recording.load(Ordering::SeqCst)];
        let one = GranuleRange::one(GranuleIndex(granule as u64));
        file.record(bits, None, one).unwrap();
        // In the place of an intent map, with which the gate has nothing to do.
        file.sync().unwrap();
        write_slice(&*self.data, &[value; SECTOR], (granule * SECTOR) as u64).unwrap();
    }

    /// From now on the second bitmap records, and is in force: what is there now is durable before.
    fn start(&self) {
        let recording = self.gate.close();
        self.data.sync(SyncMode::Data).unwrap();
        let mut now = [0; GRANULES * SECTOR];
        read_slice(&*self.data, &mut now, 0).unwrap();
        self.starts[1].set(first_bytes(&now)).unwrap();
        write_slice(&*self.point, &[1], 0).unwrap();
        self.point.sync(SyncMode::Data).unwrap();
        recording.store(1, Ordering::SeqCst);
    }

    fn crash(&self, seed: u64) {
        for (crash, after) in [
            ("a kill", self.sim.kill()),
            ("a power cut", self.sim.power_cut_keeping(Keep::All)),
            ("a power cut", self.sim.power_cut_keeping(Keep::Random(seed))),
        ] {
            let point = usize::from(after.read(POINT).unwrap()[0]);
            let start = self.starts[point].get().unwrap();
            let now = first_bytes(&after.read(DATA).unwrap());
            let bits = after.read(BITMAPS[point]).unwrap();
            for (granule, (now, start)) in now.into_iter().zip(start).enumerate() {
                assert!(
                    now == *start || bits[granule / 8] & (1 << (granule % 8)) != 0,
                    "the change of granule {granule} is lost in {crash}"
                );
            }
        }
    }
}

fn first_bytes(data: &[u8]) -> Content {
    std::array::from_fn(|granule| data[granule * SECTOR])
}

/// Two writers, a starting point, and the crash at some moments.
fn crashes_around_a_starting_point() {
    let world = World::new();
    let writers = [[0, 1], [1, 0]]
        .into_iter()
        .zip([10, 20])
        .map(|(granules, value)| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                for (granule, value) in granules.into_iter().zip(value..) {
                    world.write(granule, value);
                }
            })
        });
    let mut threads: Vec<_> = writers.collect();
    let crashing = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for seed in 0..CRASHES {
            thread::yield_now();
            crashing.crash(seed);
        }
    }));
    world.start();
    for thread in threads {
        thread.join().unwrap();
    }
    world.crash(CRASHES);
}

fn explore(schedules: usize) {
    shuttle::check_random(crashes_around_a_starting_point, schedules);
    shuttle::check_pct(crashes_around_a_starting_point, schedules, 3);
}

/// Until a fault is found, which some schedule in some thousands shows: few are looked at, then.
fn search() {
    explore(100_000);
}

#[test]
fn shuttle_a_crash_around_a_starting_point_loses_no_change() {
    explore(5_000);
}

#[test]
fn shuttle_finds_what_a_crash_loses_behind_a_point_that_does_not_drain() {
    mutation::must_be_caught(Fault::NoDrain, "is lost", search);
}

#[test]
fn shuttle_finds_what_a_crash_loses_of_a_writer_that_looks_too_early() {
    mutation::must_be_caught(Fault::LookBeforeAnnouncing, "is lost", search);
}

//! The intent map against every crash on a simulated disk, with real threads, and with faults put into it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

use super::*;
use crate::bitmap::BitmapPolicy;
use crate::mutation::{self, Fault as Wrong};
use crate::state::intent::Pin;
use crate::state::{Header, RegionSize};
use crate::storage::simulated::{CallKind, Fault, Keep, SimDisk};
use crate::storage::{Access, Folder, Role, Storage, SyncMode, write_slice};

const NAME: &str = "disk.state";
const REGION: u64 = 512;
const REGIONS: u64 = 12_000;

fn bytes_of(regions: Range<u64>) -> ByteRange {
    ByteRange::between(regions.start * REGION, regions.end * REGION)
}

fn map_on(disk: &SimDisk) -> (Arc<StateFile>, IntentMap) {
    let storage = disk.create(Role::State, Path::new(NAME)).unwrap();
    Folder::sync(disk).unwrap();
    let header = Header::new(RegionSize::new(REGION).unwrap());
    let file = Arc::new(StateFile::create(storage, NAME.into(), header).unwrap());
    file.begin(BitmapPolicy::WriteThrough, None, None).unwrap();
    let map = IntentMap::new(
        Arc::clone(&file),
        RegionSet::new(),
        REGIONS * REGION,
        Duration::from_secs(10),
    );
    (file, map.unwrap())
}

/// The regions that are active in this state of the disk.
fn active(disk: &SimDisk) -> RegionSet {
    let storage = disk
        .open(Role::State, Path::new(NAME), Access::default())
        .unwrap();
    let found = StateFile::inspect(&*storage, Path::new(NAME)).unwrap().unwrap();
    assert_eq!(found.damaged_pieces(), 0);
    found.active().clone()
}

fn after_cut(disk: &SimDisk) -> Vec<u64> {
    active(&disk.power_cut_keeping(Keep::Nothing)).iter().collect()
}

fn syncs(disk: &SimDisk) -> usize {
    disk.events()
        .iter()
        .filter(|it| it.call.kind() == CallKind::Sync)
        .count()
}

#[test]
fn a_pin_is_durable_on_return_and_costs_one_sync_a_region() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    let before = syncs(&disk);
    let pin: Pin<'_> = map.pin(bytes_of(7..9)).unwrap();
    assert_eq!(after_cut(&disk), [7, 8]);
    assert_eq!(syncs(&disk) - before, 1);
    drop(pin);
    drop(map.pin(bytes_of(8..9)).unwrap());
    assert_eq!(syncs(&disk) - before, 1, "it is active already");
    assert_eq!(map.active(), 2);
    // Nothing, and the disk's end.
    drop(map.pin(ByteRange::between(0, 0)).unwrap());
    drop(map.pin(bytes_of(REGIONS - 1..REGIONS)).unwrap());
    let error = map.pin(bytes_of(REGIONS - 1..REGIONS + 1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::OutOfRange);
    assert_eq!(after_cut(&disk), [7, 8, REGIONS - 1]);
}

/// A stream is activated ahead of itself, ever further; writes at random are not.
#[test]
fn streams_are_looked_ahead_of() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    let before = syncs(&disk);
    for region in 0..100 {
        drop(map.pin(bytes_of(region..region + 1)).unwrap());
    }
    let sequential = syncs(&disk) - before;
    assert!(sequential <= 25, "{sequential} syncs for 100 regions");
    assert!(map.active() <= 100 + LOOK_AHEAD);
    let before = (syncs(&disk), map.active());
    for region in (1000..2000).step_by(50) {
        drop(map.pin(bytes_of(region..region + 1)).unwrap());
    }
    assert_eq!((syncs(&disk) - before.0, map.active() - before.1), (20, 20));
}

#[test]
fn only_cold_regions_are_retired_and_not_too_often() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let settled = AtomicU64::new(0);
    let pass = |seconds| {
        map.retire_cold(at(seconds), || {
            settled.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .unwrap()
    };
    drop(map.pin(bytes_of(5..6)).unwrap());
    drop(map.pin(bytes_of(8000..8001)).unwrap());
    let held = map.pin(bytes_of(20..21)).unwrap();
    assert_eq!(pass(0), 0, "all were touched since the pass before");
    drop(map.pin(bytes_of(5..6)).unwrap());
    assert_eq!(pass(9), 0, "the interval has not passed");
    assert_eq!(pass(10), 1, "5 was touched and 20 is pinned");
    assert_eq!(active(&disk.kill()).iter().collect::<Vec<_>>(), [5, 20]);
    assert_eq!(settled.load(Ordering::Relaxed), 1, "not called for nothing");
    assert_eq!(pass(20), 1);
    drop(held);
    // The bitmaps could not be synced: the region stays.
    let failed = map.retire_cold(at(30), || Err(Error::new(ErrorCode::Io, "no")));
    assert_eq!(failed.unwrap_err().message(), "no");
    assert_eq!(active(&disk.kill()).iter().collect::<Vec<_>>(), [20]);
    assert_eq!(pass(40), 1);
    assert!(active(&disk.kill()).is_empty());
    // It becomes active again by a sync of its own, whatever the file still shows.
    drop(map.pin(bytes_of(20..21)).unwrap());
    assert_eq!(after_cut(&disk), [20]);
}

#[test]
fn all_are_retired_in_one_update() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    drop(map.pin(bytes_of(0..10_000)).unwrap());
    let before = disk.events().len();
    assert_eq!(map.retire_all(|| Ok(())).unwrap(), 10_000);
    assert_eq!(disk.events().len() - before, 1, "one write, no sync");
    assert!(active(&disk.kill()).is_empty() && map.active() == 0);
    assert_eq!(map.retire_all(|| panic!("nothing to settle")).unwrap(), 0);
}

/// A region that becomes wanted while a retirement is about to write the same piece goes out with that write, which is
/// not synced. It needs one that is.
#[test]
fn a_pin_beside_a_retirement_gets_its_own_sync() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    drop(map.pin(bytes_of(1..2)).unwrap());
    let start = Instant::now();
    map.retire_cold(start, || Ok(())).unwrap();
    // The pin's own write fails, so its bit is left to the next one: the retirement's.
    disk.fail(Fault::new(libc::EIO).on(CallKind::Write));
    assert!(map.pin(bytes_of(5..6)).is_err());
    assert_eq!(
        map.retire_cold(start + Duration::from_secs(10), || Ok(()))
            .unwrap(),
        1
    );
    drop(map.pin(bytes_of(5..6)).unwrap());
    assert_eq!(after_cut(&disk), [5]);
}

/// A panic in the caller's closure must not stop pins for good.
#[test]
fn a_retirement_that_panics_lets_pins_in_again() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    drop(map.pin(bytes_of(3..4)).unwrap());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(map.retire_all(|| panic!("as a bug would")));
    }));
    assert!(panicked.is_err());
    drop(map.pin(bytes_of(3..4)).unwrap());
    assert_eq!(map.active(), 1);
}

/// What failed to be written is not believed, and may be tried again; what failed to be synced is lost for good (A2).
#[test]
fn failures_pin_nothing() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    disk.fail(Fault::new(libc::ENOSPC).on(CallKind::Write));
    assert_eq!(map.pin(bytes_of(3..4)).unwrap_err().errno(), libc::ENOSPC);
    drop(map.pin(bytes_of(3..4)).unwrap());
    assert_eq!(after_cut(&disk), [3]);
    disk.fail(Fault::new(libc::EIO).on(CallKind::Sync));
    assert_eq!(map.pin(bytes_of(4..5)).unwrap_err().errno(), libc::EIO);
    assert_eq!(map.pin(bytes_of(4..5)).unwrap_err().code(), ErrorCode::Failed);
    // What was active before stays so, and nothing is left pinned.
    drop(map.pin(bytes_of(3..4)).unwrap());
    assert_eq!(map.retire_all(|| Ok(())).unwrap_err().code(), ErrorCode::Failed);
}

/// A longer disk keeps its region size where the map reaches; beyond, the regions get larger, and no crash reads bits of
/// one size with the other in a way that misses a region.
#[test]
fn a_growing_disk_is_covered() {
    let disk = SimDisk::new();
    let (file, map) = map_on(&disk);
    drop(map.pin(bytes_of(11_999..12_000)).unwrap());
    let longer = MAX_REGIONS * REGION;
    map.cover(longer, || panic!("nothing to settle")).unwrap();
    drop(map.pin(ByteRange::between(longer - 1, longer)).unwrap());
    assert_eq!(after_cut(&disk), [11_999, MAX_REGIONS - 1]);

    let before = disk.now().events();
    map.cover(longer + 1, || Ok(())).unwrap();
    let settled = disk.now().events();
    assert_eq!(file.header().region.bytes(), 2 * REGION);
    drop(map.pin(ByteRange::between(longer, longer + 1)).unwrap());
    for point in disk.crash_points().filter(|point| point.events() >= before) {
        for seed in 0..64 {
            let after = point.power_cut_keeping(Keep::Random(seed));
            let storage = after
                .open(Role::State, Path::new(NAME), Access::default())
                .unwrap();
            let found = StateFile::inspect(&*storage, Path::new(NAME)).unwrap().unwrap();
            // Before the header changed everything was settled; after it, the new pin counts in the new size.
            if point.events() > settled + 1 {
                assert_eq!(found.header().region.bytes(), 2 * REGION);
                assert!(found.active().contains(MAX_REGIONS / 2));
            }
        }
    }
    // A shorter disk asks for nothing.
    map.cover(1, || panic!("nothing to settle")).unwrap();
}

/// Callers that come while a sync runs share the next one, and are served by no earlier one.
#[test]
fn callers_share_the_sync_that_begins_after_them() {
    let disk = SimDisk::new();
    let (_file, map) = map_on(&disk);
    let (in_sync, begun) = mpsc::channel();
    let gate = Arc::new(Barrier::new(2));
    let first = AtomicU64::new(1);
    let at_gate = Arc::clone(&gate);
    disk.on_call(move |call| {
        if call.kind() == CallKind::Sync && first.swap(0, Ordering::SeqCst) == 1 {
            in_sync.send(()).unwrap();
            at_gate.wait();
        }
    });
    let before = syncs(&disk);
    thread::scope(|scope| {
        scope.spawn(|| drop(map.pin(bytes_of(0..1)).unwrap()));
        begun.recv().unwrap();
        let late: Vec<_> = (1..9)
            .map(|number| {
                let (map, disk) = (&map, &disk);
                scope.spawn(move || {
                    let region = number * 100;
                    let pin = map.pin(bytes_of(region..region + 1)).unwrap();
                    assert!(
                        after_cut(disk).contains(&region),
                        "reported before it was durable"
                    );
                    drop(pin);
                })
            })
            .collect();
        while map.active() < 9 {
            thread::yield_now();
        }
        gate.wait();
        for it in late {
            it.join().unwrap();
        }
    });
    assert_eq!(syncs(&disk) - before, 2, "one for the first, one for the eight");
}

/// What a crash test plays: first-touch writes, each pinned, recorded and unpinned before its data goes out, and passes
/// that retire. The image and the bitmap (a byte a region) are files of the simulated disk.
struct Play {
    disk: SimDisk,
    map: IntentMap,
    image: Arc<dyn Storage>,
    bitmap: Arc<dyn Storage>,
}

impl Play {
    fn new() -> Self {
        let disk = SimDisk::new();
        let (_, map) = map_on(&disk);
        let make = |role, name: &str| {
            let file = disk.create(role, Path::new(name)).unwrap();
            write_slice(&*file, &vec![0; 64 * 512], 0).unwrap();
            file.sync(SyncMode::All).unwrap();
            file
        };
        let (image, bitmap) = (make(Role::Image, "image"), make(Role::Bitmap, "bitmap"));
        Folder::sync(&disk).unwrap();
        Self {
            disk,
            map,
            image,
            bitmap,
        }
    }

    /// A guest's write to `region`; of the bitmap each region has a piece of its own.
    fn write(&self, region: u64) {
        let mut recorded = [0];
        crate::storage::read_slice(&*self.bitmap, &mut recorded, region * 512).unwrap();
        if recorded == [0] {
            let pin = self.map.pin(bytes_of(region..region + 1)).unwrap();
            write_slice(&*self.bitmap, &[1], region * 512).unwrap();
            drop(pin);
        }
        write_slice(&*self.image, &[1], region * 512).unwrap();
    }

    fn settle(&self) -> Result<()> {
        self.bitmap
            .sync(SyncMode::Data)
            .map_err(|e| Error::io("sync", "bitmap", &e))
    }

    /// D1 in every crash state that the seeds draw: what is in the image is in the bitmap, or its region is active.
    fn check(&self) -> Result<u64, String> {
        let mut states = 0;
        for point in self.disk.crash_points() {
            if !point.names().iter().any(|name| name == Path::new("bitmap")) {
                continue;
            }
            for keep in (0..4).map(Keep::Random).chain([Keep::Nothing, Keep::All]) {
                let after = point.power_cut_keeping(keep);
                let (Ok(image), Ok(bitmap)) = (after.read("image"), after.read("bitmap")) else {
                    continue;
                };
                let active = active(&after);
                states += 1;
                for region in 0..64 {
                    let byte = |file: &[u8]| file.get(region * 512).copied().unwrap_or(0);
                    if byte(&image) != 0 && byte(&bitmap) == 0 && !active.contains(region as u64) {
                        return Err(format!("region {region} is lost after event {}", point.events()));
                    }
                }
            }
        }
        Ok(states)
    }
}

/// Writes and passes, one after the other.
fn play() -> Play {
    let play = Play::new();
    let start = Instant::now();
    for step in 0..60_u64 {
        play.write(step * 7 % 64);
        play.write(step * 7 % 64);
        if step % 10 == 9 {
            let now = start + Duration::from_secs(step * 10);
            play.map.retire_cold(now, || play.settle()).unwrap();
        }
        if step == 45 {
            play.map.retire_all(|| play.settle()).unwrap();
        }
    }
    play
}

#[test]
fn no_crash_loses_a_change() {
    let states = play().check().unwrap();
    assert!(states > 1000, "{states}");
}

#[test]
fn a_skipped_sync_is_caught() {
    let result = mutation::with(Wrong::IntentUnsynced, || play().check());
    assert!(result.unwrap_err().contains("is lost"));
}

#[test]
fn clearing_without_syncing_the_bitmaps_is_caught() {
    let result = mutation::with(Wrong::ClearedUnsettled, || play().check());
    assert!(result.unwrap_err().contains("is lost"));
}

/// A retirement comes while a writer is between its pin and its bit.
fn retire_between(wrong: Option<Wrong>) -> Result<u64, String> {
    let play = Play::new();
    play.write(1);
    let pin = play.map.pin(bytes_of(2..3)).unwrap();
    thread::scope(|scope| {
        let retiring = scope.spawn(|| {
            let retire = || play.map.retire_all(|| play.settle()).unwrap();
            match wrong {
                Some(wrong) => mutation::with(wrong, retire),
                None => retire(),
            }
        });
        // Long enough for a retirement that does not wait; one that does holds nobody up.
        if wrong.is_some() {
            retiring.join().unwrap();
        }
        write_slice(&*play.bitmap, &[1], 2 * 512).unwrap();
        drop(pin);
        write_slice(&*play.image, &[1], 2 * 512).unwrap();
    });
    // A guest's flush, and a first touch elsewhere, whose sync makes durable that the region was cleared.
    play.image.sync(SyncMode::Data).unwrap();
    play.write(30);
    play.check()
}

#[test]
fn a_retirement_waits_for_pins() {
    retire_between(None).unwrap();
}

#[test]
fn retiring_under_a_pin_is_caught() {
    let result = retire_between(Some(Wrong::RetiredUnderPin));
    assert!(result.unwrap_err().contains("region 2 is lost"));
}

/// Many threads, many passes, every region: D1 at the end in every crash state, and nothing hangs.
#[test]
fn threads_and_passes() {
    let play = Play::new();
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let play = &play;
            scope.spawn(move || {
                for step in 0..16 {
                    play.write((step * 5 + thread * 16) % 64);
                }
            });
        }
        for pass in 0..20 {
            let now = start + Duration::from_secs(pass * 10);
            play.map.retire_cold(now, || play.settle()).unwrap();
            if pass % 5 == 4 {
                play.map.retire_all(|| play.settle()).unwrap();
            }
        }
    });
    play.check().unwrap();
}

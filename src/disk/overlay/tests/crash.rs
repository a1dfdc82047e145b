//! Power cuts and killed processes at every point of a random life, against A1 and A2; and each order of steps that
//! the code defends, turned round, to show that these tests would see it.
//!
//! The story that they guard against: an overlay's bit gets to the disk and the granule's bytes do not. After the
//! power cut the guest reads what the image file had there before: another disk's secrets, or a hole's zeros, where it
//! had flushed its own data.

mod qcow2;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::storage::simulated::{CallKind, CrashPoint, Keep};

const SECTOR: u64 = 512;
/// An act of [`act_out`].
const INTERRUPTING_WRITE: u64 = 10;
const LENGTH: u64 = 12 * G + 1000;

/// A write as the disk was told of it: what each of its sectors held when it was done.
struct Written {
    /// How many calls the log had before and behind it.
    begun: u64,
    ended: u64,
    first: u64,
    sectors: Vec<Vec<u8>>,
    /// It was durable when it returned.
    durable: bool,
}

struct Flushed {
    begun: u64,
    ended: u64,
}

/// What was done, and when.
#[derive(Default)]
struct Life {
    content: Vec<u8>,
    writes: Vec<Written>,
    flushes: Vec<Flushed>,
}

impl Life {
    fn new(content: Vec<u8>) -> Self {
        let mut life = Self {
            content,
            ..Self::default()
        };
        // What was there before is there for certain.
        life.note(0, 0, 0, LENGTH, true);
        life
    }

    /// Notes that `content` has changed in a range.
    fn note(&mut self, begun: u64, ended: u64, at: u64, len: u64, durable: bool) {
        let first = at / SECTOR;
        let end = (at + len).div_ceil(SECTOR);
        let sectors = (first..end)
            .map(|sector| sector_of(&self.content, sector).to_vec())
            .collect();
        self.writes.push(Written {
            begun,
            ended,
            first,
            sectors,
            durable,
        });
    }

    /// The first sector of `found` that no write and no flush explains, if the machine stopped after `events` calls.
    fn unexplained(&self, found: &[u8], events: u64) -> Option<u64> {
        let covered = |write: &Written| {
            let flushed = |flush: &Flushed| write.ended <= flush.begun && flush.ended <= events;
            (write.durable && write.ended <= events) || self.flushes.iter().any(flushed)
        };
        (0..LENGTH.div_ceil(SECTOR)).find(|sector| {
            let have = sector_of(found, *sector);
            let mut explained = false;
            for write in self.writes.iter().filter(|write| write.begun <= events) {
                let index = sector
                    .checked_sub(write.first)
                    .map(|it| usize::try_from(it).unwrap());
                let Some(value) = index.and_then(|index| write.sectors.get(index)) else {
                    continue;
                };
                // What is known to be durable ends all that was before it.
                explained = (explained && !covered(write)) || value == have;
            }
            !explained
        })
    }
}

fn sector_of(content: &[u8], sector: u64) -> &[u8] {
    let at = usize::try_from(sector * SECTOR).unwrap();
    &content[at..content.len().min(at + 512)]
}

/// The same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % limit
    }

    fn range(&mut self) -> (u64, u64) {
        let at = self.below(LENGTH);
        let len = match self.below(4) {
            0 => 1 + self.below(600),
            1 => 1 + self.below(3 * G),
            2 => return (at / G * G, G.min(LENGTH - at / G * G)),
            _ => return (at / SECTOR * SECTOR, SECTOR.min(LENGTH - at / SECTOR * SECTOR)),
        };
        (at, len.min(LENGTH - at))
    }
}

/// One random life of an overlay whose image file has other people's bytes in it.
fn live(seed: u64, fault: Option<Fault>) -> (SimDisk, Life) {
    let sim = overlay(LENGTH, 9 * G + 300);
    let stale = vec![0xee; usize::try_from(LENGTH).unwrap()];
    sim.put(IMAGE, &stale);
    let mut content = base(9 * G + 300);
    content.resize(stale.len(), 0);
    let life = Arc::new(Mutex::new(Life::new(content)));
    let disk = Arc::new(with(fault, || open(&sim)));
    let dice = Arc::new(Mutex::new(Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)));
    for _ in 0..24 {
        let nested = roll(&dice, 3) == 0;
        if nested {
            interrupt(&sim, &disk, &life, &dice, fault);
        }
        let act = roll(&dice, 10);
        with(fault, || act_out(&sim, &disk, &life, &dice, act));
        sim.on_call(|_| ());
    }
    Arc::into_inner(disk).unwrap().die();
    let life = Arc::into_inner(life).unwrap().into_inner().unwrap();
    (sim, life)
}

fn roll(dice: &Mutex<Dice>, limit: u64) -> u64 {
    dice.lock().unwrap().below(limit)
}

fn now(sim: &SimDisk) -> u64 {
    sim.events().len() as u64
}

fn act_out(sim: &SimDisk, disk: &Disk, life: &Mutex<Life>, dice: &Mutex<Dice>, act: u64) {
    let begun = now(sim);
    if act < 3 {
        disk.flush().unwrap();
        let ended = now(sim);
        life.lock().unwrap().flushes.push(Flushed { begun, ended });
        return;
    }
    let ((at, len), byte, fua) = {
        let mut dice = dice.lock().unwrap();
        (
            dice.range(),
            u8::try_from(1 + dice.below(200)).unwrap(),
            dice.below(5) == 0 && act != INTERRUPTING_WRITE,
        )
    };
    let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
    let bytes = if act < 5 { 0 } else { byte };
    // Before the disk is told, as what it begins may be seen at once.
    let number = {
        let mut life = life.lock().unwrap();
        life.content[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()].fill(bytes);
        life.note(begun, u64::MAX, at, len, fua);
        life.writes.len() - 1
    };
    match act {
        3 => disk.discard(at, len, flags),
        4 => disk.write_zeroes(at, len, flags | WriteFlags::MAY_UNMAP),
        _ => disk.write(&vec![byte; usize::try_from(len).unwrap()], at, flags),
    }
    .unwrap();
    life.lock().unwrap().writes[number].ended = now(sim);
}

/// Has another request come in the middle of the next sync, or a flush in the middle of the next write.
fn interrupt(
    sim: &SimDisk,
    disk: &Arc<Disk>,
    life: &Arc<Mutex<Life>>,
    dice: &Arc<Mutex<Dice>>,
    fault: Option<Fault>,
) {
    let left = AtomicU64::new(1);
    let (inner, life, dice) = (sim.clone(), Arc::clone(life), Arc::clone(dice));
    // Not the disk itself, which would own the hook that owns it.
    let disk = Arc::downgrade(disk);
    sim.on_call(move |call| {
        let of_image = call.names().any(|name| name.to_str() == Some(IMAGE));
        let act = match call.kind() {
            // Without FUA, which would wait for the flush that it is in the middle of.
            CallKind::Sync => INTERRUPTING_WRITE,
            CallKind::Write => 0,
            _ => return,
        };
        if of_image && left.swap(0, Ordering::Relaxed) == 1 {
            let Some(disk) = disk.upgrade() else { return };
            let (sim, life, dice) = (inner.clone(), Arc::clone(&life), Arc::clone(&dice));
            let step = move || with(fault, || act_out(&sim, &disk, &life, &dice, act));
            std::thread::spawn(step).join().unwrap();
        }
    });
}

fn states(point: &CrashPoint) -> impl Iterator<Item = SimDisk> + '_ {
    let keeps = [Keep::Nothing, Keep::All]
        .into_iter()
        .chain((0..5).map(|seed| Keep::Random(seed + point.events())));
    keeps
        .map(|keep| point.power_cut_keeping(keep))
        .chain([point.kill()])
}

/// How many crash states of a life cannot be explained.
fn violations(seed: u64, fault: Option<Fault>) -> u64 {
    let (sim, life) = live(seed, fault);
    let start = 30;
    let mut bad = 0;
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        for state in states(&point) {
            let found = read_all(&open(&state));
            bad += u64::from(life.unexplained(&found, point.events()).is_some());
        }
    }
    bad
}

#[test]
fn every_sector_is_what_was_flushed_or_what_was_written_since() {
    for seed in 1..=12 {
        assert_eq!(violations(seed, None), 0, "seed {seed}");
    }
}

/// The tests see each of these, or they guard nothing.
#[test]
fn wrong_orders_are_seen() {
    for fault in [
        Fault::BitBeforeGranule,
        Fault::BitsBeforeImage,
        Fault::PendingTakenLate,
        Fault::AllocationUnsynced,
        Fault::FuaOfImageAlone,
    ] {
        assert!(
            (1..=12).any(|seed| violations(seed, Some(fault)) > 0),
            "{fault:?} is not seen"
        );
    }
}

/// How many writes with FUA were lost that were made by a process that found the page cache of one that was killed.
fn lost_after_a_kill(seed: u64, fault: Option<Fault>) -> u64 {
    let (sim, _) = live(seed, None);
    let mut lost = 0;
    for point in sim.crash_points().filter(|point| point.events() >= 30) {
        let state = point.kill();
        let disk = with(fault, || open(&state));
        for granule in 0..12 {
            let at = granule * G + 512;
            disk.write(&[0xfa; 512], at, WriteFlags::FUA).unwrap();
        }
        let after = open(&state.power_cut_keeping(Keep::Nothing));
        let found = read_all(&after);
        lost += (0..12)
            .filter(|granule| {
                sector_of(&found, granule * 8 + 1)
                    .iter()
                    .any(|byte| *byte != 0xfa)
            })
            .count() as u64;
    }
    lost
}

#[test]
fn what_a_killed_process_left_in_the_page_cache_is_not_taken_for_durable() {
    for seed in 1..=4 {
        assert_eq!(lost_after_a_kill(seed, None), 0, "seed {seed}");
    }
    assert!((1..=4).any(|seed| lost_after_a_kill(seed, Some(Fault::FoundIsDurable)) > 0));
}

/// A2: a failed sync of either file ends all success.
#[test]
fn nothing_succeeds_after_a_failed_sync() {
    for file in [IMAGE, BITS] {
        let sim = overlay(8 * G, 8 * G);
        let disk = open(&sim);
        write(&disk, 1, 0, 10);
        sim.fail(
            crate::storage::simulated::Fault::new(libc::EIO)
                .on(CallKind::Sync)
                .on_file(file),
        );
        let error = disk.flush().unwrap_err();
        assert_eq!(
            (error.code(), error.errno()),
            (ErrorCode::Io, libc::EIO),
            "{error}"
        );
        assert!(error.message().contains(file), "{error}");
        sim.heal();
        for result in [
            disk.flush(),
            disk.write(&[1], 0, WriteFlags::empty()),
            disk.write(&[1], 0, WriteFlags::FUA),
            disk.make_empty(),
        ] {
            assert_eq!(result.unwrap_err().code(), ErrorCode::Failed);
        }
        assert!(disk.close().is_err());
    }
}

/// A bitmap that cannot be written (a full file system) is no reason to lose anything: the next flush tries again.
#[test]
fn a_flush_that_could_not_write_the_bits_can_be_repeated() {
    let sim = overlay(8 * G, 8 * G);
    let disk = open(&sim);
    write(&disk, 1, 0, 10);
    sim.fail(
        crate::storage::simulated::Fault::new(libc::ENOSPC)
            .on(CallKind::Write)
            .on_file(BITS),
    );
    assert_eq!(disk.flush().unwrap_err().errno(), libc::ENOSPC);
    disk.flush().unwrap();
    let after = open(&sim.power_cut_keeping(Keep::Nothing));
    assert_same(&read_all(&after)[..10], &[1; 10]);
}

/// A write that fails half-way leaves the granule as it was: of the backing.
#[test]
fn a_granule_that_could_not_be_written_still_shows_the_backing() {
    let sim = overlay(8 * G, 8 * G);
    let disk = open(&sim);
    for kind in [CallKind::Write, CallKind::Read] {
        sim.fail(
            crate::storage::simulated::Fault::new(libc::EIO)
                .on(kind)
                .keeping(crate::storage::simulated::Kept::Random(7)),
        );
        disk.write(&[9; 100], G + 100, WriteFlags::empty()).unwrap_err();
        sim.heal();
        assert_same(&read_all(&disk), &base(8 * G));
    }
    write(&disk, 9, G + 100, 100);
    assert_same(&read_all(&disk)[..4096], &base(G));
}

/// M1 and durability trap 6: all of the old content or all of the backing's, and space is freed last.
#[test]
fn emptying_that_is_cut_off_has_emptied_all_or_nothing() {
    let sim = overlay(8 * G, 8 * G);
    let disk = open(&sim);
    write(&disk, 1, 100, 3 * G);
    disk.flush().unwrap();
    let full = read_all(&disk);
    let start = now(&sim);
    disk.make_empty().unwrap();
    let (mut old, mut new) = (0, 0);
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        for seed in 0..20 {
            let state = point.power_cut_keeping(Keep::Random(seed));
            let found = read_all(&open(&state));
            if found == full {
                old += 1;
            } else {
                assert_same(&found, &base(8 * G));
                new += 1;
            }
        }
    }
    assert!(old > 20 && new > 20, "{old} old, {new} new");
}

/// A sync of the bitmap's file has failed: the kernel shows bits for written that it has dropped. The next process, which
/// finds them, does not take a sync for proof.
fn found_bits_outlive_a_power_cut(fault: Option<Fault>) -> bool {
    let sim = overlay(4 * G, 4 * G);
    let disk = open(&sim);
    write(&disk, 9, 0, G);
    let failing = crate::storage::simulated::Fault::new(libc::EIO);
    sim.fail(failing.on(CallKind::Sync).on_file(BITS));
    disk.flush().unwrap_err();
    sim.heal();
    disk.die();
    with(fault, || open(&sim).flush()).unwrap();
    let after = read_all(&open(&sim.power_cut_keeping(Keep::Nothing)));
    after[..usize::try_from(G).unwrap()].iter().all(|byte| *byte == 9)
}

#[test]
fn bits_that_were_found_are_written_again() {
    assert!(found_bits_outlive_a_power_cut(None));
    assert!(!found_bits_outlive_a_power_cut(Some(Fault::FoundIsWritten)));
}

//! Somebody uses the disk that is another one's image without that one, before or after a crash: no bitmap of the outer disk
//! is trusted that has missed it, and no bit of its shadow is believed that stands for what is gone.

use super::kind::Kind;
use super::life::{INNER_STATE, LENGTH, NAME, base, put_bits_above};
use crate::Format;
use crate::disk::{AddBitmap, CreateOptions, Disk, WriteFlags};
use crate::error::Result;
use crate::mutation::{Fault, with};
use crate::storage::simulated::{CallKind, CrashPoint, Fault as FailingCall, Keep, SimDisk};
use crate::units::Granularity;

const INNER: &str = "inner.qbm";
/// Where the head of a shadow is in a state file, and where its bits are.
const HEAD: usize = 73_728;
const BITS: usize = HEAD + 4096;
const NONE: WriteFlags = WriteFlags::empty();

/// What the outer disk showed when it was left: what was flushed, and what was acknowledged.
struct Left {
    sim: SimDisk,
    flushed: Vec<u8>,
    acknowledged: Vec<u8>,
}

fn open(sim: &SimDisk, name: &str, cache: &str) -> Result<Disk> {
    Kind::RAW.options(sim, cache).open(name)
}

fn content(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; super::life::bytes(LENGTH)];
    disk.read(&mut bytes, 0).map(|()| bytes)
}

/// An overlay whose image is an overlay, with a bitmap that records; closed, or killed with writes that no flush followed.
fn left(closed: bool) -> Result<Left> {
    let sim = SimDisk::new();
    for (file, other) in [("low.img", true), ("base.img", false)] {
        sim.put(file, &base(20_000, other));
    }
    let granularity = Granularity::new(2048).unwrap_or_default();
    CreateOptions::new()
        .size(LENGTH)
        .backing("low.img", Format::Raw)
        .granularity(granularity)
        .folder(sim.folder())
        .create(INNER)?;
    CreateOptions::new()
        .image(INNER)
        .image_format(Format::Qbm)
        .folder(sim.folder())
        .create(NAME)?;
    put_bits_above(&sim);
    let disk = open(&sim, NAME, "first")?;
    disk.bitmap_add("a", AddBitmap::default())?;
    disk.write(&[1; 3000], 900, NONE)?;
    disk.flush()?;
    let flushed = content(&disk)?;
    // Where the two backings differ.
    disk.write(&[2; 3000], 5000, NONE)?;
    let acknowledged = content(&disk)?;
    if closed {
        disk.close()?;
    } else {
        disk.die();
    }
    Ok(Left {
        sim,
        flushed: if closed { acknowledged.clone() } else { flushed },
        acknowledged,
    })
}

/// What is wrong with the outer disk after others have used the inner one: bits that it lacks, or bytes that nobody wrote.
fn wrong(left: &Left, state: &SimDisk, cache: &str, of_others: u8) -> Result<bool> {
    let disk = open(&state.kill(), NAME, cache)?;
    let found = content(&disk)?;
    let unexplained =
        (0..found.len()).any(|at| ![left.flushed[at], left.acknowledged[at], of_others].contains(&found[at]));
    let trusted = !disk.bitmap_info("a")?.inconsistent;
    // The one bit is set since the outer disk wrote, so it tells nothing of others: only distrust does.
    let changed = (0..found.len()).any(|at| ![left.flushed[at], left.acknowledged[at]].contains(&found[at]));
    let missed = trusted && changed;
    Ok(unexplained || missed)
}

fn keeps() -> impl Iterator<Item = Keep> {
    [Keep::Nothing, Keep::All]
        .into_iter()
        .chain((0..4).map(Keep::Random))
}

/// How many crashes from event `start` on are not borne.
fn count(left: &Left, start: u64, of_others: u8) -> u64 {
    let bad = |state: &SimDisk, cache| u64::from(wrong(left, state, cache, of_others).unwrap_or(true));
    let at = |point: CrashPoint| {
        let cuts: u64 = keeps()
            .map(|keep| bad(&point.power_cut_keeping(keep), "second"))
            .sum();
        cuts + bad(&point.kill(), "first")
    };
    left.sim
        .crash_points()
        .filter(|point| point.events() >= start)
        .map(at)
        .sum()
}

/// Somebody writes to the inner disk.
fn written_to(closed: bool) -> u64 {
    let left = left(closed).unwrap();
    let start = left.sim.events().len() as u64;
    let disk = open(&left.sim, INNER, "first").unwrap();
    disk.write(&[77; 3000], 700, NONE).unwrap();
    disk.close().unwrap();
    count(&left, start, 77)
}

/// Somebody who knows nothing of the page cache recovers the inner disk, and so drops what was not flushed.
fn dropped() -> u64 {
    let left = left(false).unwrap();
    let start = left.sim.events().len() as u64;
    open(&left.sim, INNER, "other").unwrap().close().unwrap();
    count(&left, start, 78)
}

/// The same, who is killed when he begins to write; another like him finds the inner disk before the outer one is opened.
fn dropped_by_two() -> u64 {
    let left = left(false).unwrap();
    let start = left.sim.events().len() as u64;
    let disk = open(&left.sim, INNER, "other").unwrap();
    disk.write(&[77; 3000], 12_000, NONE).unwrap();
    disk.die();
    let killed = left.sim.crash_points().filter(|point| point.events() >= start);
    let bad = killed.map(|point| point.kill()).filter(|state| {
        open(state, INNER, "other").unwrap().close().unwrap();
        wrong(&left, state, "first", 77).unwrap_or(true)
    });
    bad.count() as u64
}

#[test]
fn nobody_uses_the_inner_disk_unnoticed() {
    for closed in [true, false] {
        assert_eq!(written_to(closed), 0, "closed: {closed}");
    }
    assert_eq!(dropped(), 0);
    assert_eq!(dropped_by_two(), 0);
}

/// Whoever goes on after a kill is killed too, when he begins to write. Then somebody opens the inner disk alone, and changes
/// nothing. Behind which calls that costs the outer disk a bitmap that it would have had.
fn spoilt_by_two_kills() -> Vec<String> {
    let left = left(false).unwrap();
    let start = left.sim.events().len() as u64;
    let disk = open(&left.sim, NAME, "first").unwrap();
    disk.write(&[3; 3000], 5000, NONE).unwrap();
    drop(disk);
    let inconsistent = |state: &SimDisk| {
        let disk = open(&state.kill(), NAME, "first").unwrap();
        disk.bitmap_info("a").unwrap().inconsistent
    };
    let mut spoilt = Vec::new();
    for point in left.sim.crash_points().filter(|point| point.events() >= start) {
        let killed = point.kill();
        let before = inconsistent(&killed);
        open(&killed, INNER, "first").unwrap().close().unwrap();
        if !before && inconsistent(&killed) {
            let last = left
                .sim
                .events()
                .into_iter()
                .find(|it| it.number == point.events());
            spoilt.push(last.map_or_else(String::new, |it| it.to_string()));
        }
    }
    spoilt
}

#[test]
fn two_kills_cost_the_outer_disk_no_bitmap() {
    let spoilt = spoilt_by_two_kills();
    assert!(spoilt.is_empty(), "{spoilt:#?}");
    assert_ne!(with(Fault::ShadowCutFirst, spoilt_by_two_kills).len(), 0);
}

/// What the two disks of `left` show after `act` and a kill, and what they are to show.
fn after_kill(left: &Left, act: impl FnOnce(&Disk)) -> (Vec<u8>, Vec<u8>) {
    let disk = open(&left.sim, NAME, "first").unwrap();
    act(&disk);
    let acknowledged = content(&disk).unwrap();
    let reader = |cache| {
        let options = Kind::RAW.options(&left.sim.kill(), cache).read_only(true);
        content(&options.open(NAME).unwrap()).unwrap()
    };
    (reader("first"), acknowledged)
}

/// The inner disk had all granules before, so that its shadow has no bit when its process is killed; it has lost nothing.
#[test]
fn an_empty_shadow_of_the_inner_disk_vouches_for_the_outer_one() {
    let left = left(true).unwrap();
    let inner = open(&left.sim, INNER, "first").unwrap();
    inner
        .write(&vec![4; super::life::bytes(LENGTH)], 0, NONE)
        .unwrap();
    inner.close().unwrap();
    let (found, acknowledged) = after_kill(&left, |disk| disk.write(&[5; 3000], 9000, NONE).unwrap());
    assert!(left.sim.read(INNER_STATE).unwrap().len() <= BITS);
    assert!(found == acknowledged);
}

/// A snapshot that fails when the inner disk has ended: it begins again, and its shadow with it.
#[test]
fn the_shadow_of_the_inner_disk_begins_again() {
    let left = left(true).unwrap();
    let (found, acknowledged) = after_kill(&left, |disk| {
        disk.write(&[5; 100], 9000, NONE).unwrap();
        let full = FailingCall::new(libc::ENOSPC);
        left.sim
            .fail(full.matching(|call| call.names().any(|name| name == "snap.qbm")));
        disk.snapshot("snap.qbm", None).unwrap_err();
        left.sim.heal();
        disk.write(&[6; 3000], 12_000, NONE).unwrap();
        assert!(left.sim.read(INNER_STATE).unwrap().len() > BITS);
    });
    assert!(found == acknowledged);
}

/// No room for the shadow of the inner disk: that of the outer one, which nobody would believe, is not relied on either.
#[test]
fn without_the_shadow_of_the_inner_disk_a_write_is_durable() {
    let left = left(true).unwrap();
    let (found, acknowledged) = after_kill(&left, |disk| {
        let full = FailingCall::new(libc::ENOSPC);
        let head = format!("offset {HEAD}");
        left.sim.fail(
            full.on(CallKind::Write)
                .on_file(INNER_STATE)
                .matching(move |call| call.to_string().ends_with(&head)),
        );
        disk.write(&[5; 3000], 9000, NONE).unwrap();
        disk.write(&[6; 3000], 12_000, NONE).unwrap();
        assert!(left.sim.read(INNER_STATE).unwrap().len() <= BITS);
    });
    assert!(found == acknowledged);
}

/// Each of these is seen, or the test guards nothing.
#[test]
fn every_protection_from_others_is_missed() {
    for fault in [Fault::TenureSilent, Fault::UserUnnoted] {
        let seen = [true, false].map(|closed| with(fault, || written_to(closed)));
        assert!(seen.iter().any(|bad| *bad > 0), "{fault:?} is not seen: {seen:?}");
    }
    for fault in [Fault::TenureKept, Fault::ShadowOfOthers] {
        assert!(with(fault, dropped) > 0, "{fault:?} is not seen");
    }
    assert!(with(Fault::ShadowGoesOn, dropped_by_two) > 0);
}

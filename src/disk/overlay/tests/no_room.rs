//! A first touch whose bit fits nowhere: the shadow takes none, and neither does the bitmap's file. The write fails, and the
//! disk goes on.
//!
//! The story that they guard against: the guest writes zeros over what failed, and flushes. The bit is still waiting for room,
//! and when there is some it brings to light what had failed: after the next open, without any crash.

use super::*;
use crate::disk::AddBitmap;
use crate::storage::simulated::{CallKind, Fault as Failing, Keep};

const STATE: &str = "top.state";
const LENGTH: u64 = 8 * G;
/// What lies behind it reads as zeros.
const BACKING: u64 = 4 * G;
/// Where the write is that fails.
const AT: u64 = 6 * G;

fn open(sim: &SimDisk, cache: &str) -> Disk {
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch(cache);
    options.open(TOP).unwrap()
}

/// An overlay that has begun its shadow, and of which all is durable.
fn prepared() -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    sim.put("base.img", &base(BACKING));
    CreateOptions::new()
        .size(LENGTH)
        .backing("base.img", Format::Raw)
        .granularity(granularity(G))
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    let disk = open(&sim, "cache");
    let every = AddBitmap {
        granularity: granularity(G),
        ..AddBitmap::default()
    };
    disk.bitmap_add("b", every).unwrap();
    write(&disk, 1, 0, 10);
    // Its region is active from here on.
    write(&disk, 1, LENGTH - 10, 10);
    disk.flush().unwrap();
    (sim, disk)
}

fn without_room(sim: &SimDisk) {
    for file in [STATE, BITS] {
        sim.fail(
            Failing::new(libc::ENOSPC)
                .on(CallKind::Write)
                .on_file(file)
                .from_then_on(),
        );
    }
}

/// One whose last write has failed, with room again.
fn failed() -> (SimDisk, Disk) {
    let (sim, disk) = prepared();
    without_room(&sim);
    let result = disk.write(&[9; 512], AT, WriteFlags::empty());
    assert_eq!(result.unwrap_err().errno(), libc::ENOSPC);
    sim.heal();
    (sim, disk)
}

/// The same disk for whoever opens it next, in every way that there is.
fn next(sim: &SimDisk) -> [Disk; 3] {
    [
        open(&sim.kill(), "cache"),
        open(&sim.power_cut_keeping(Keep::Nothing), "another"),
        open(&sim.power_cut_keeping(Keep::All), "another"),
    ]
}

/// What the next one sees where a write has failed, zeros came over it, and were flushed.
fn behind_zeros(fault: Option<Fault>) -> Vec<u8> {
    let (sim, disk) = with(fault, failed);
    disk.write_zeroes(AT, 512, WriteFlags::empty()).unwrap();
    disk.flush().unwrap();
    let byte = |disk: Disk| {
        let mut byte = [0xee];
        disk.read(&mut byte, AT).unwrap();
        byte[0]
    };
    let mut seen: Vec<_> = next(&sim).into_iter().map(byte).collect();
    seen.push(byte(disk));
    seen
}

#[test]
fn what_failed_does_not_come_to_light_behind_zeros() {
    assert_eq!(behind_zeros(None), [0; 4]);
    assert_eq!(behind_zeros(Some(Fault::FailedUnshown)), [9, 9, 9, 0]);
}

/// Whether the content changes unseen behind a starting point that came after a write that had failed.
fn changes_behind_a_point(fault: Option<Fault>) -> bool {
    let (sim, disk) = with(fault, failed);
    disk.bitmap_clear("b").unwrap();
    let backup = read_all(&disk);
    disk.die();
    next(&sim)
        .iter()
        .any(|disk| read_all(disk) != backup && !disk.bitmap_get("b", AT).unwrap())
}

#[test]
fn a_starting_point_has_what_failed_before_it() {
    assert!(!changes_behind_a_point(None));
    assert!(changes_behind_a_point(Some(Fault::FailedUnshown)));
}

/// What the next process sees of a write that was answered, in a granule whose bit has no place yet.
fn after_a_kill(fault: Option<Fault>) -> u8 {
    let (sim, disk) = failed();
    with(fault, || write(&disk, 5, AT, 512));
    let mut byte = [0];
    open(&sim.kill(), "cache").read(&mut byte, AT).unwrap();
    byte[0]
}

#[test]
fn whoever_writes_there_next_is_answered_when_the_bit_has_its_place() {
    assert_eq!(after_a_kill(None), 5);
    assert_eq!(after_a_kill(Some(Fault::OwedForgotten)), 0);
}

#[test]
fn until_there_is_room_nothing_there_is_reported_done() {
    let (sim, disk) = prepared();
    without_room(&sim);
    let calls: [&dyn Fn() -> Result<()>; 4] = [
        &|| disk.write(&[9; 512], AT, WriteFlags::empty()),
        &|| disk.write(&[8; 512], AT, WriteFlags::FUA),
        &|| disk.write_zeroes(AT, 512, WriteFlags::MAY_UNMAP),
        &|| disk.discard(AT, 512, WriteFlags::empty()),
    ];
    for call in calls {
        assert_eq!(call().unwrap_err().errno(), libc::ENOSPC);
    }
    // Others are no worse off.
    write(&disk, 7, 0, 512);
    sim.heal();
    for call in calls {
        call().unwrap();
    }
    // The bit is durable by now, and no more is asked of a write.
    let before = sim.events().len();
    write(&disk, 6, AT, 512);
    let events = sim.events();
    assert!(events[before..].iter().all(|it| it.call.kind() != CallKind::Sync));
}

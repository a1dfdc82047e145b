//! Freezing for a backup, and its end.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::storage::simulated::Fault;

#[test]
fn a_frozen_bitmap_shows_its_bits_and_a_successor_records() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    write(&disk, 0, 1).unwrap();
    disk.bitmap_freeze("b").unwrap();
    write(&disk, MIB, 1).unwrap();
    assert_eq!(dirty(&disk, "b"), [0]);
    assert!(disk.bitmap_info("b").unwrap().busy);
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 16], "the file holds both");
}

#[test]
fn a_backup_that_succeeded_drops_the_old_bits() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    write(&disk, 0, 1).unwrap();
    disk.bitmap_freeze("b").unwrap();
    write(&disk, MIB, 1).unwrap();
    let frozen = disk.bitmap_info("b").unwrap();
    disk.bitmap_thaw("b", Thaw::Commit).unwrap();
    assert_eq!(dirty(&disk, "b"), [16]);
    assert_eq!(dirty(&open(&sim.kill()), "b"), [16]);
    let info = disk.bitmap_info("b").unwrap();
    assert_eq!(info.epoch, frozen.next_epoch, "the point of the freeze");
    assert_ne!(info.epoch, frozen.epoch);
    write(&disk, 2 * MIB, 1).unwrap();
    assert_eq!(dirty(&open(&sim.kill()), "b"), [16, 32]);
}

#[test]
fn a_backup_that_failed_keeps_all_bits() {
    let (sim, disk) = disk_of(10 * MIB);
    for (name, options) in [("b", persistent()), ("t", transient())] {
        disk.bitmap_add(name, options).unwrap();
    }
    write(&disk, 0, 1).unwrap();
    let epoch = disk.bitmap_info("b").unwrap().epoch;
    for name in ["b", "t"] {
        disk.bitmap_freeze(name).unwrap();
    }
    write(&disk, MIB, 1).unwrap();
    for name in ["b", "t"] {
        disk.bitmap_thaw(name, Thaw::Rollback).unwrap();
        assert_eq!(dirty(&disk, name), [0, 16]);
    }
    assert_eq!(disk.bitmap_info("b").unwrap().epoch, epoch);
    write(&disk, 2 * MIB, 1).unwrap();
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 16, 32]);
}

#[test]
fn a_bitmap_that_does_not_record_has_a_successor_that_does_not() {
    let (_sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    write(&disk, 0, 1).unwrap();
    disk.bitmap_disable("b").unwrap();
    disk.bitmap_freeze("b").unwrap();
    write(&disk, MIB, 1).unwrap();
    disk.bitmap_thaw("b", Thaw::Rollback).unwrap();
    assert_eq!(dirty(&disk, "b"), [0]);
    assert!(!disk.bitmap_info("b").unwrap().recording);
}

#[test]
fn a_starting_point_needs_a_flush() {
    type Act = fn(&Disk) -> Result<()>;
    let acts: [(Act, bool); 8] = [
        (|disk| disk.bitmap_add("c", persistent()), true),
        (|disk| disk.bitmap_clear("b"), true),
        (|disk| disk.bitmap_freeze("b"), true),
        (|disk| disk.bitmap_reset("b", 0, MIB), true),
        (|disk| disk.bitmap_enable("off"), true),
        (|disk| disk.bitmap_set("b", 0, 1), false),
        (|disk| disk.bitmap_remove("b"), false),
        (|disk| disk.bitmap_disable("b"), false),
    ];
    for (index, (act, starts)) in acts.into_iter().enumerate() {
        let (sim, disk) = disk_of(10 * MIB);
        disk.bitmap_add("b", persistent()).unwrap();
        let off = AddBitmap {
            recording: false,
            ..persistent()
        };
        disk.bitmap_add("off", off).unwrap();
        write(&disk, 0, 1).unwrap();
        sim.fail(Fault::new(libc::EIO).on(CallKind::Sync).on_file(IMAGE));
        let result = act(&disk);
        assert_eq!(result.is_err(), starts, "action {index}: {result:?}");
    }
}

/// A disk with one write under way: its bit is set and its data not yet in the file.
fn with_a_write_in_flight(act: impl Fn(&Disk) + Send + Sync, check: impl FnOnce(&SimDisk, &Disk)) {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_add("other", persistent()).unwrap();
    let (held, reached): (Sender<()>, Receiver<()>) = channel();
    let (release, go): (Sender<()>, Receiver<()>) = channel();
    let gate = Mutex::new(Some((held, go)));
    sim.on_call(move |call| {
        if is_write_to(call, IMAGE)
            && let Some((held, go)) = gate.lock().unwrap().take()
        {
            held.send(()).unwrap();
            go.recv().unwrap();
        }
    });
    let (done, ended) = channel();
    std::thread::scope(|scope| {
        let (disk, act) = (&disk, &act);
        scope.spawn(move || write(disk, 0, 512).unwrap());
        reached.recv().unwrap();
        scope.spawn(move || {
            act(disk);
            done.send(()).unwrap();
        });
        // An operation that did not drain would be over long before the write is.
        let early = ended.recv_timeout(Duration::from_millis(150));
        release.send(()).unwrap();
        assert!(
            early.is_err(),
            "the operation came between a write's bit and its data"
        );
    });
    check(&sim, &disk);
}

/// durability trap 1. A guest write has set its bit, and its data is still on the way when the backup takes the bitmap. A
/// freeze that did not wait would hand the bit to a backup that reads the *old* data; the bit goes when the backup has
/// succeeded, and the change is in no backup ever.
#[test]
fn freeze_waits_for_writes_in_flight() {
    with_a_write_in_flight(
        |disk| {
            disk.bitmap_freeze("b").unwrap();
            let mut byte = [0];
            disk.read(&mut byte, 0).unwrap();
            assert!(
                byte == [7] || !disk.bitmap_get("b", 0).unwrap(),
                "a backup would have copied the old data for this bit"
            );
        },
        |_, disk| assert_eq!(dirty(disk, "b"), [0]),
    );
}

/// The same for everything that takes bits away or hands them on.
#[test]
fn clear_merge_and_remove_wait_for_writes_in_flight() {
    with_a_write_in_flight(
        |disk| disk.bitmap_clear("b").unwrap(),
        |_, disk| assert!(dirty(disk, "b").is_empty()),
    );
    with_a_write_in_flight(
        |disk| disk.bitmap_merge("other", &[MergeSource::Bitmap("b")]).unwrap(),
        |_, disk| assert_eq!(dirty(disk, "other"), [0]),
    );
    with_a_write_in_flight(
        |disk| disk.bitmap_remove("b").unwrap(),
        |sim, _| assert!(sim.read("disk-b.bitmap").is_err()),
    );
    with_a_write_in_flight(
        |disk| disk.truncate(20 * MIB, TruncateFlags::empty()).unwrap(),
        |_, disk| assert_eq!(dirty(disk, "b"), [0]),
    );
}

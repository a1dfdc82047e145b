//! Backups inside the process whose threads write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;

const SLOT: u64 = 4096;
const SLOTS: u64 = 200;

/// What slot `slot` holds when the writer has written all numbers up to `last`, each to the slot that is its remainder.
fn expected(slot: u64, last: u64) -> u64 {
    match last.checked_sub(last.wrapping_sub(slot) % SLOTS) {
        Some(number) if last >= slot => number,
        _ => 0,
    }
}

fn number(content: &[u8], slot: u64) -> u64 {
    let at = usize::try_from(slot * SLOT).unwrap();
    u64::from_le_bytes(content[at..at + 8].try_into().unwrap())
}

#[test]
fn a_backup_while_a_guest_writes_shows_one_instant() {
    let room = Room::new();
    let disk = &Disk::open(room.disk()).unwrap();
    let (stop, written) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let mut folder = room.folder();
    let mut points = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 1u64.. {
                disk.write(&number.to_le_bytes(), number % SLOTS * SLOT, WriteFlags::empty())
                    .unwrap();
                written.store(number, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..8 {
            // The guest gets on while the backup is in the middle.
            let finished = small().run(disk, &mut folder, &mut |_, _| {
                let before = written.load(Ordering::Relaxed);
                while written.load(Ordering::Relaxed) < before + 3 {
                    thread::yield_now();
                }
                ControlFlow::Continue(())
            });
            points.push(finished.unwrap().point);
        }
        stop.store(true, Ordering::Relaxed);
    });
    points.push(
        small()
            .run(disk, &mut folder, &mut |_, _| ControlFlow::Continue(()))
            .unwrap()
            .point,
    );
    assert!(
        points[1..]
            .iter()
            .all(|point| point.kind() == BackupKind::Incremental)
    );
    for point in &points {
        let content = room.restored(&point.name);
        let last = (0..SLOTS).map(|slot| number(&content, slot)).max().unwrap();
        for slot in 0..SLOTS {
            assert_eq!(
                number(&content, slot),
                expected(slot, last),
                "{}, slot {slot}",
                point.name
            );
        }
    }
    assert!(room.restored("latest") == room.content());
}

#[test]
fn a_guest_that_overwrites_too_much_fails_the_backup_alone() {
    let room = Room::new();
    room.with(|disk| disk.truncate(32 << 20, crate::TruncateFlags::empty()));
    room.write(1, 0, 32 << 20);
    let disk = &Disk::open(room.disk()).unwrap();
    let mut folder = room.folder();
    // Some of it has been read by then, and is not kept.
    let error = small()
        .scratch_limit(100_000)
        .run(disk, &mut folder, &mut |_, _| {
            disk.write(&vec![2; 32 << 20], 0, WriteFlags::empty()).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert_eq!(
        error.message(),
        format!(
            "cannot back up {}: the point in time is lost: the guest has overwritten more than the 100000 bytes that may \
             be kept for the backup",
            room.disk().display()
        )
    );
    assert!(room.folder().points().is_empty());
    let point = small()
        .run(disk, &mut folder, &mut |_, _| ControlFlow::Continue(()))
        .unwrap()
        .point;
    assert!(room.restored(&point.name) == vec![2; 32 << 20]);
}

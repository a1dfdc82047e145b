//! A full scratch file that delays the guest: it waits for the reader, for the end, or for as long as was said, and never
//! for ever.

use std::time::{Duration, Instant};

use super::*;

/// Longer than any test may take.
const FOR_EVER: Duration = Duration::from_secs(3600);

const UNIT: u64 = 65_536;

/// A disk full of ones, and a backup of it that may keep `granules`.
fn full_disk(dir: &TempDir, layered: bool) -> Disk {
    let disk = disk(dir, "disk", layered);
    let ones = vec![1; usize::try_from(LENGTH).unwrap()];
    disk.write(&ones, 0, WriteFlags::empty()).unwrap();
    disk
}

fn scratch(dir: &TempDir, granules: u64, at_most: Duration) -> Scratch {
    Scratch::new(dir.path())
        .limit(granules * UNIT)
        .when_full(ScratchFull::DelayGuest { at_most })
}

#[test]
fn a_guest_waits_for_the_reader_and_goes_on() {
    for layered in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let disk = &full_disk(&dir, layered);
        let views = backup_begin(&[(disk, "b")], &scratch(&dir, 2, FOR_EVER)).unwrap();
        let view = &views.views()[0];
        thread::scope(|scope| {
            for writer in 0..3u64 {
                // Each more than ever fits, and one write of them more at once, too.
                scope.spawn(move || {
                    let bytes = vec![2; 3 * 65_536];
                    let mut at = writer * 1000;
                    while at + bytes.len() as u64 <= LENGTH {
                        disk.write(&bytes, at, WriteFlags::empty()).unwrap();
                        at += bytes.len() as u64;
                    }
                });
            }
            let mut buffer = vec![0; 65_536];
            let mut at = 0;
            while at < LENGTH {
                let part = &mut buffer[..usize::try_from(UNIT.min(LENGTH - at)).unwrap()];
                view.read(part, at).unwrap();
                assert!(part.iter().all(|byte| *byte == 1), "layered {layered}, {at}");
                assert!(view.kept() <= 2 * UNIT, "{}", view.kept());
                view.release(at, part.len() as u64).unwrap();
                at += part.len() as u64;
            }
        });
        assert_eq!(view.kept(), 0);
        let error = view.read(&mut [0; 1], 0).unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (
                ErrorCode::InvalidArgument,
                "1 bytes at offset 0 were released, and are not kept any more"
            )
        );
        assert!(view.block_status(0, 1).is_err());
        views.end(true).unwrap();
        let mut last = [0; 1];
        disk.read(&mut last, UNIT * 3).unwrap();
        assert_eq!(last, [2]);
    }
}

/// Waits until a writer waits.
fn until_it_waits(view: &BackupView<'_>) {
    while !view.before.somebody_waits() {
        thread::yield_now();
    }
}

#[test]
fn the_end_releases_who_waits_and_nobody_else_waits_for_him() {
    for success in [false, true] {
        for layered in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let disk = &full_disk(&dir, layered);
            disk.bitmap_add("c", AddBitmap::default()).unwrap();
            let views = backup_begin(&[(disk, "b")], &scratch(&dir, 1, FOR_EVER)).unwrap();
            thread::scope(|scope| {
                let guest = scope.spawn(|| {
                    disk.write(&vec![3; 100_000], 0, WriteFlags::empty()).unwrap();
                    disk.write(&[3; 100], 7 * UNIT, WriteFlags::FUA).unwrap();
                });
                let view = &views.views()[0];
                until_it_waits(view);
                // Whatever closes the gate goes on, and so does a reader, which enters it.
                disk.bitmap_clear("c").unwrap();
                disk.bitmap_add("d", AddBitmap::default()).unwrap();
                assert!(disk.truncate(LENGTH * 2, TruncateFlags::empty()).is_err());
                disk.flush().unwrap();
                let mut all = vec![0; usize::try_from(LENGTH).unwrap()];
                view.read(&mut all, 0).unwrap();
                assert!(all.iter().all(|byte| *byte == 1));
                assert!(!guest.is_finished());
                views.end(success).unwrap();
                guest.join().unwrap();
            });
            let mut found = [0; 100];
            disk.read(&mut found, 7 * UNIT).unwrap();
            assert_eq!(found, [3; 100]);
        }
    }
}

#[test]
fn a_guest_that_reads_the_view_itself_waits_no_longer_than_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let disk = &full_disk(&dir, false);
    let was_dirty = dirty(disk);
    let said = Duration::from_millis(30);
    let views = backup_begin(&[(disk, "b")], &scratch(&dir, 1, said)).unwrap();
    let view = &views.views()[0];
    let begun = Instant::now();
    disk.write(&[2; 100], 0, WriteFlags::empty()).unwrap();
    disk.write(&[2; 100], UNIT, WriteFlags::empty()).unwrap();
    assert!(begun.elapsed() >= said);
    let error = view.read(&mut [0; 1], 0).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(
        error.message(),
        "the point in time is lost: a write of the guest has waited for 30 ms, and there was still no room within the \
         65536 bytes that may be kept for the backup"
    );
    // Once it has failed, nobody waits.
    disk.write(&[2; 100], 2 * UNIT, WriteFlags::empty()).unwrap();
    views.end(false).unwrap();
    assert_eq!(dirty(disk), was_dirty);
}

#[test]
fn what_was_released_is_kept_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let disk = &full_disk(&dir, false);
    let views = backup_begin(&[(disk, "b")], &Scratch::new(dir.path()).limit(UNIT)).unwrap();
    let view = &views.views()[0];
    // Parts of granules are not.
    view.release(0, UNIT - 1).unwrap();
    view.release(2 * UNIT + 1, LENGTH - 2 * UNIT - 1).unwrap();
    disk.write(&vec![2; 5 << 20], 3 * UNIT, WriteFlags::empty())
        .unwrap();
    assert_eq!(view.kept(), 0);
    disk.write(&[2; 100], 0, WriteFlags::empty()).unwrap();
    assert_eq!(view.kept(), UNIT);
    let mut all = vec![0; 3 * 65_536];
    view.read(&mut all, 0).unwrap();
    assert!(all.iter().all(|byte| *byte == 1));
    assert!(view.read(&mut all, UNIT).is_err());
    assert!(view.release(LENGTH, 1).is_err());
    views.end(true).unwrap();
}

/// While one releases what another overwrites and a third reads, what is read is of the moment, or is refused.
#[test]
fn a_release_beside_readers_and_writers_shows_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let disk = &full_disk(&dir, false);
    let views = backup_begin(&[(disk, "b")], &scratch(&dir, 4, FOR_EVER)).unwrap();
    let view = &views.views()[0];
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..LENGTH - UNIT).step_by(10_000) {
                disk.write(&[2; 10_000], at, WriteFlags::empty()).unwrap();
            }
        });
        scope.spawn(|| {
            for at in (0..LENGTH - UNIT).step_by(65_536) {
                view.release(at, UNIT).unwrap();
            }
        });
        let mut refused = 0;
        for round in 0..20 {
            for at in (0..LENGTH - UNIT).step_by(20_000) {
                let mut buffer = vec![0; 20_000];
                match view.read(&mut buffer, at) {
                    Ok(()) => assert!(buffer.iter().all(|byte| *byte == 1), "round {round}, {at}"),
                    Err(error) => {
                        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 0);
    });
    views.end(true).unwrap();
}

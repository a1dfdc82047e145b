//! A view shows what the disk showed when it began, whatever is done to the disk meanwhile.

mod delay;
mod ending;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::descriptor::Format;
use crate::{AddBitmap, CreateOptions, Granularity, OpenOptions, TruncateFlags, WriteFlags};

const MIB: u64 = 1 << 20;
const LENGTH: u64 = 8 * MIB + 5000;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn change(&mut self, disk: &Disk) -> Result<()> {
        let offset = self.below(LENGTH);
        let len = self.below(300_000).min(LENGTH - offset);
        match self.below(6) {
            0 => disk.write_zeroes(offset, len, WriteFlags::MAY_UNMAP),
            1 => disk.discard(offset, len, WriteFlags::empty()),
            _ => {
                let byte = u8::try_from(1 + self.below(255)).unwrap();
                disk.write(
                    &vec![byte; usize::try_from(len).unwrap()],
                    offset,
                    WriteFlags::empty(),
                )
            }
        }
    }
}

/// A raw disk, or an overlay on an image with something in it.
fn disk(dir: &TempDir, name: &str, layered: bool) -> Disk {
    let path = dir.path().join(format!("{name}.qbm"));
    if layered {
        let base = dir.path().join(format!("{name}-base.img"));
        let bytes: Vec<u8> = (0..LENGTH)
            .map(|at| u8::try_from(at / 4096 % 251).unwrap())
            .collect();
        std::fs::write(&base, bytes).unwrap();
        CreateOptions::new()
            .backing(base.to_str().unwrap(), Format::Raw)
            .granularity(Granularity::new(4096).unwrap())
            .create(&path)
            .unwrap();
    } else {
        CreateOptions::new().size(LENGTH).create(&path).unwrap();
    }
    let disk = OpenOptions::new().open(path).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk
}

fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.length()).unwrap()];
    disk.read(&mut bytes, 0).unwrap();
    bytes
}

fn dirty(disk: &Disk) -> u64 {
    disk.bitmap_count("b").unwrap()
}

/// Reads parts of the view, and holds them and what it says of zeros against `expected`.
fn look(view: &BackupView<'_>, expected: &[u8], random: &mut Random) {
    let offset = random.below(LENGTH);
    let len = (1 + random.below(300_000)).min(LENGTH - offset);
    let bytes = |offset: u64, len: u64| {
        let start = usize::try_from(offset).unwrap();
        &expected[start..start + usize::try_from(len).unwrap()]
    };
    let mut buffer = vec![0xee; usize::try_from(len).unwrap()];
    view.read(&mut buffer, offset).unwrap();
    assert!(buffer == bytes(offset, len), "{len} bytes at {offset}");
    let status = view.block_status(offset, len).unwrap();
    assert!((1..=len).contains(&status.len));
    if !status.data {
        assert!(bytes(offset, status.len).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_view_shows_the_moment_of_its_beginning_while_threads_write() {
    for layered in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let disk = &disk(&dir, "disk", layered);
        let scratch = Scratch::new(dir.path());
        let random = &mut Random(3);
        for round in 0..4 {
            for _ in 0..10 {
                random.change(disk).unwrap();
            }
            let (expected, was_dirty) = (content(disk), dirty(disk));
            let views = backup_begin(&[(disk, "b")], &scratch).unwrap();
            let view = &views.views()[0];
            let (stop, changes) = (&AtomicBool::new(false), &AtomicU64::new(0));
            thread::scope(|scope| {
                let _stop = Stop(stop);
                for writer in 0..3 {
                    scope.spawn(move || {
                        let random = &mut Random(round * 10 + writer);
                        while !stop.load(Ordering::Relaxed) {
                            random.change(disk).unwrap();
                            changes.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                for _ in 0..150 {
                    look(view, &expected, random);
                }
                while changes.load(Ordering::Relaxed) < 100 {
                    look(view, &expected, random);
                }
            });
            let mut all = vec![0; expected.len()];
            view.read(&mut all, 0).unwrap();
            assert!(all == expected, "layered {layered}, round {round}");
            assert!(view.kept() > 0);
            assert_eq!(dirty(disk), was_dirty, "the frozen bits");
            views.end(round % 2 == 0).unwrap();
            assert!(!disk.bitmap_info("b").unwrap().busy);
        }
    }
}

/// Ends the writers also where the reader fails: its panic would wait for them.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A read that has begun when nothing was kept, and is overtaken by the first writes to what it reads.
#[test]
fn a_read_that_writers_overtake_shows_the_old_content() {
    let dir = tempfile::tempdir().unwrap();
    let disk = &disk(&dir, "disk", false);
    let len = usize::try_from(LENGTH).unwrap();
    for round in 0..15u8 {
        let old = vec![round; len];
        disk.write(&old, 0, WriteFlags::empty()).unwrap();
        let views = backup_begin(&[(disk, "b")], &Scratch::new(dir.path())).unwrap();
        let view = &views.views()[0];
        let mut found = vec![0xee; len];
        thread::scope(|scope| {
            for writer in 0..2 {
                scope.spawn(move || {
                    let mut at = LENGTH - writer * 65_536 - 100;
                    while at > 131_072 {
                        disk.write(&[0xdd; 100], at, WriteFlags::empty()).unwrap();
                        at -= 131_072;
                    }
                });
            }
            view.read(&mut found, 0).unwrap();
        });
        assert!(found == old, "round {round}");
        views.end(true).unwrap();
    }
}

/// What is dirty in a view is what the backup has to copy: nobody else may have it forgotten, or end the freeze.
#[test]
fn only_the_backup_itself_thaws_its_bitmap() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir, "disk", false);
    disk.bitmap_add("own", AddBitmap::default()).unwrap();
    for success in [false, true] {
        disk.write(&[1; 10], 0, WriteFlags::empty()).unwrap();
        disk.bitmap_freeze("own").unwrap();
        let views = backup_begin(&[(&disk, "b")], &Scratch::default()).unwrap();
        disk.write(&[2; 10], MIB, WriteFlags::empty()).unwrap();
        for outcome in [Thaw::Commit, Thaw::Rollback] {
            let refusal = disk.bitmap_thaw("b", outcome).unwrap_err();
            assert_eq!(refusal.code(), ErrorCode::BitmapBusy);
            assert_eq!(
                refusal.message(),
                "cannot thaw bitmap \"b\": bitmap \"b\" is in use by a backup, whose end thaws it: end that"
            );
        }
        // Who froze one himself thaws it, also beside a backup.
        disk.bitmap_thaw("own", Thaw::Commit).unwrap();
        let found = views.views()[0].next_dirty(0, LENGTH).unwrap();
        assert_eq!(found, Some(ByteRange::between(0, 65_536)));
        views.end(success).unwrap();
        assert_eq!(dirty(&disk), if success { 1 } else { 2 });
        // And again when it is over.
        disk.bitmap_freeze("b").unwrap();
        disk.bitmap_thaw("b", Thaw::Rollback).unwrap();
    }
}

/// Writers that meet in one granule: only the first finds what it was.
#[test]
fn writers_to_one_granule_keep_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let disk = &disk(&dir, "disk", false);
    let len = usize::try_from(LENGTH).unwrap();
    for round in 0..10u8 {
        let old = vec![round; len];
        disk.write(&old, 0, WriteFlags::empty()).unwrap();
        let views = backup_begin(&[(disk, "b")], &Scratch::new(dir.path())).unwrap();
        thread::scope(|scope| {
            for writer in 0..4u64 {
                scope.spawn(move || {
                    for granule in 0..LENGTH / 65_536 {
                        let at = granule * 65_536 + writer * 512;
                        disk.write(&[0xdd; 512], at, WriteFlags::empty()).unwrap();
                    }
                });
            }
        });
        let mut found = vec![0xee; len];
        views.views()[0].read(&mut found, 0).unwrap();
        assert!(found == old, "round {round}");
        views.end(true).unwrap();
    }
}

#[test]
fn several_disks_are_taken_at_one_instant() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (&disk(&dir, "a", false), &disk(&dir, "b", true));
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(stop);
        // First the one, then the other gets each number: at any instant the second is equal, or one behind.
        scope.spawn(move || {
            for number in 1u64.. {
                for disk in [a, b] {
                    disk.write(&number.to_le_bytes(), 512, WriteFlags::empty())
                        .unwrap();
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..20 {
            let views = backup_begin(&[(b, "b"), (a, "b")], &Scratch::new(dir.path())).unwrap();
            let number = |view: &BackupView<'_>| {
                let mut bytes = [0; 8];
                view.read(&mut bytes, 512).unwrap();
                u64::from_le_bytes(bytes)
            };
            let (second, first) = (number(&views.views()[0]), number(&views.views()[1]));
            assert!(first == second || first == second + 1, "{first} {second}");
            views.end(true).unwrap();
        }
    });
}

#[test]
fn a_scratch_file_that_is_full_fails_the_backup_and_not_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir, "disk", false);
    disk.write(&vec![1; 4 << 20], 0, WriteFlags::empty()).unwrap();
    let was_dirty = dirty(&disk);
    let views = backup_begin(&[(&disk, "b")], &Scratch::new(dir.path()).limit(100_000)).unwrap();
    let view = &views.views()[0];
    let mut buffer = [0; 512];
    disk.write(&[2; 512], 0, WriteFlags::empty()).unwrap();
    view.read(&mut buffer, 0).unwrap();
    assert_eq!(buffer, [1; 512]);
    disk.write(&[2; 512], MIB, WriteFlags::empty()).unwrap();
    let error = view.read(&mut buffer, MIB).unwrap_err();
    assert_eq!(
        error.message(),
        "the point in time is lost: the guest has overwritten more than the 100000 bytes that may be kept for the backup"
    );
    assert!(view.read(&mut buffer, 0).is_err());
    disk.write(&[3; 512], 2 * MIB, WriteFlags::empty()).unwrap();
    drop(views);
    assert_eq!(dirty(&disk), was_dirty, "the next backup copies them");
    disk.write(&[3; 512], 3 * MIB, WriteFlags::empty()).unwrap();
}

#[test]
fn what_a_view_needs_cannot_be_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir, "disk", true);
    disk.bitmap_add("c", AddBitmap::default()).unwrap();
    let scratch = Scratch::new(dir.path());
    let expected = content(&disk);
    let views = backup_begin(&[(&disk, "b")], &scratch).unwrap();
    let words = format!(
        "a backup of {} is under way; wait for its end",
        disk.path().display()
    );
    let refusals = [
        disk.truncate(MIB, TruncateFlags::SHRINK),
        disk.make_empty(),
        disk.commit(&mut |_, _| std::ops::ControlFlow::Continue(())),
        disk.rebase(None, &mut |_, _| std::ops::ControlFlow::Continue(())),
        disk.change_backing(None, crate::BackingFlags::empty()),
        backup_begin(&[(&disk, "c")], &scratch).map(drop),
    ];
    for (index, refusal) in refusals.into_iter().enumerate() {
        let error = refusal.unwrap_err();
        assert_eq!(error.code(), ErrorCode::BitmapBusy, "{index}");
        assert!(error.message().ends_with(&words), "{index}: {error}");
    }
    assert!(!disk.bitmap_info("c").unwrap().busy);
    // Other changes of bitmaps go on, and the view stays.
    disk.bitmap_clear("c").unwrap();
    disk.bitmap_add("d", AddBitmap::default()).unwrap();
    disk.write(&[9; 5000], 77, WriteFlags::empty()).unwrap();
    let mut all = vec![0; expected.len()];
    views.views()[0].read(&mut all, 0).unwrap();
    assert!(all == expected);
    assert_eq!(
        backup_begin(&[(&disk, "c"), (&disk, "d")], &scratch)
            .unwrap_err()
            .code(),
        ErrorCode::InvalidArgument
    );
    views.end(true).unwrap();
    disk.truncate(MIB, TruncateFlags::SHRINK).unwrap();
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("scratch")),
        "{names:?}"
    );
}

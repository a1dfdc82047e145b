//! A backup that cannot be ended as it should is over all the same, on every disk that can go on.

use super::*;
use crate::mutation::{self, Fault as Missing};
use crate::storage::simulated::{CallKind, Fault, Keep, SimDisk};

fn simulated(sim: &SimDisk, name: &str) -> Disk {
    CreateOptions::new()
        .size(MIB)
        .folder(sim.folder())
        .create(name)
        .unwrap();
    let disk = OpenOptions::new().folder(sim.folder()).open(name).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk
}

fn is_busy(disk: &Disk) -> bool {
    disk.bitmap_info("b").unwrap().busy
}

/// A backup of both, which have been written to before and since.
fn begun(disks: &[Disk; 2]) -> BackupViews<'_> {
    for disk in disks {
        disk.write(&[1; 10], 0, WriteFlags::empty()).unwrap();
    }
    let both = [(&disks[0], "b"), (&disks[1], "b")];
    let views = backup_begin(&both, &Scratch::default()).unwrap();
    for disk in disks {
        disk.write(&[2; 10], 100_000, WriteFlags::empty()).unwrap();
    }
    views
}

/// Another backup can be made of it, which has `granules`.
fn assert_goes_on(disk: &Disk, granules: u64) {
    assert!(!is_busy(disk));
    assert_eq!(dirty(disk), granules);
    disk.truncate(2 * MIB, TruncateFlags::empty()).unwrap();
    let views = backup_begin(&[(disk, "b")], &Scratch::default()).unwrap();
    views.end(true).unwrap();
    assert_eq!((is_busy(disk), dirty(disk)), (false, 0));
}

#[test]
fn a_disk_that_has_failed_leaves_no_other_frozen() {
    for success in [false, true] {
        for failed in ["one.qbm", "two.qbm"] {
            let sim = SimDisk::new();
            let disks = [simulated(&sim, "one.qbm"), simulated(&sim, "two.qbm")];
            let views = begun(&disks);
            let image = failed.replace(".qbm", "-data.img");
            sim.fail(Fault::new(libc::EIO).on(CallKind::Sync).on_file(&image));
            let (broken, healthy) = if failed == "one.qbm" {
                (&disks[0], &disks[1])
            } else {
                (&disks[1], &disks[0])
            };
            broken.flush().unwrap_err();
            views.end(success).unwrap_err();
            assert_goes_on(healthy, 2);
            assert!(broken.flush().is_err());
        }
    }
}

/// A thaw that forgets needs a new file, for which there may be no room.
#[test]
fn a_backup_that_cannot_be_ended_with_success_is_rolled_back() {
    for kind in [
        CallKind::Create,
        CallKind::Write,
        CallKind::SyncFolder,
        CallKind::Rename,
    ] {
        let sim = SimDisk::new();
        let disks = [simulated(&sim, "one.qbm"), simulated(&sim, "two.qbm")];
        let views = begun(&disks);
        sim.fail(Fault::new(libc::ENOSPC).on(kind).from_then_on());
        views.end(true).unwrap_err();
        sim.heal();
        for disk in &disks {
            assert_goes_on(disk, 2);
        }
    }
}

/// How often a kill behind an end that failed finds a disk whose bitmap has forgotten what was dirty. With power cuts, where
/// that cannot be helped, the epoch says so.
fn forgotten_by_an_end_that_fails() -> usize {
    // Without a state file, as the regions that recovery adds would hide it.
    let open = |sim: &SimDisk| {
        let options = OpenOptions::new().folder(sim.folder()).no_state(true);
        options.open("one.qbm").unwrap()
    };
    let mut forgotten = 0;
    for call in 1.. {
        let sim = SimDisk::new();
        CreateOptions::new()
            .size(MIB)
            .no_state(true)
            .folder(sim.folder())
            .create("one.qbm")
            .unwrap();
        let disk = open(&sim);
        disk.bitmap_add("b", AddBitmap::default()).unwrap();
        disk.write(&[1; 10], 0, WriteFlags::empty()).unwrap();
        disk.bitmap_sync(None).unwrap();
        let views = backup_begin(&[(&disk, "b")], &Scratch::default()).unwrap();
        let then = disk.bitmap_info("b").unwrap();
        sim.fail(Fault::new(libc::EIO).on(CallKind::SyncFolder).nth(call));
        if views.end(true).is_ok() {
            break;
        }
        sim.heal();
        forgotten += usize::from(dirty(&open(&sim.kill())) == 0);
        for seed in 0..20 {
            let found = open(&sim.power_cut_keeping(Keep::Random(seed)));
            let epoch = found.bitmap_info("b").unwrap().epoch;
            if epoch == then.epoch {
                assert_eq!(dirty(&found), 1);
            } else {
                assert_eq!(epoch, then.next_epoch);
            }
        }
    }
    forgotten
}

#[test]
fn a_bitmap_forgets_nothing_by_an_end_that_fails() {
    assert_eq!(forgotten_by_an_end_that_fails(), 0);
    let forgotten = mutation::with(Missing::UnsureLeft, forgotten_by_an_end_that_fails);
    assert!(forgotten > 0);
}

/// In a forked child nobody lets go of what another thread held at the fork.
#[test]
fn an_end_in_a_forked_child_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir, "disk", false);
    let views = backup_begin(&[(&disk, "b")], &Scratch::default()).unwrap();
    let before = Arc::clone(&views.views()[0].before);
    let held = before.hold();
    // SAFETY: the child takes no lock but that of the allocator, which a fork leaves free, and leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let refused = views.end(true).is_err_and(|e| e.code() == ErrorCode::Forked);
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    drop(held);
    assert_eq!(status_of(child), Some(0), "it was refused, at once");
    assert!(is_busy(&disk));
    views.end(true).unwrap();
    assert!(!is_busy(&disk));
}

/// How `child` has ended; `None` of one that does not end by itself.
fn status_of(child: libc::pid_t) -> Option<i32> {
    let mut status = 0;
    for _ in 0..3000 {
        // SAFETY: waits for a child of this test.
        if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
            return Some(status);
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    // SAFETY: as above; it is there still, as nobody has waited for it.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, &raw mut status, 0);
    }
    None
}

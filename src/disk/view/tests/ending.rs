//! A backup that cannot be ended as it should is over all the same, on every disk that can go on.

use super::*;
use crate::storage::simulated::{CallKind, Fault, SimDisk};

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

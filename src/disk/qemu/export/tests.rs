//! An export of a disk that is not closed, and that somebody uses between its recovery and the look at it.

use std::fs;

use super::*;
use crate::disk::{AddBitmap, CreateOptions, WriteFlags};

/// Opens the disk and writes to it, all as if killed before the state file learned of the close.
fn use_and_die(disk: &Path) {
    let open = Disk::open(disk).unwrap();
    open.write(b"x", 100_000, WriteFlags::empty()).unwrap();
    let state = disk.with_extension("state");
    let unclean = fs::read(&state).unwrap();
    open.close().unwrap();
    fs::write(&state, unclean).unwrap();
}

#[test]
fn a_disk_that_others_leave_unclosed_again_is_recovered_again_or_refused() {
    for (times, exported) in [
        (0, true),
        (1, true),
        (MAX_RECOVERIES - 1, true),
        (MAX_RECOVERIES, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (disk, target) = (dir.path().join("disk.qbm"), dir.path().join("thin.qcow2"));
        CreateOptions::new().size(1 << 20).create(&disk).unwrap();
        let open = Disk::open(&disk).unwrap();
        open.bitmap_add("b", AddBitmap::default()).unwrap();
        open.close().unwrap();
        use_and_die(&disk);
        let mut used = 0;
        let told = ExportOptions::new().export_when_recovered(&disk, &target, &mut || {
            if used < times {
                used += 1;
                use_and_die(&disk);
            }
        });
        assert_eq!(told.is_ok(), exported, "{times}: {told:?}");
        assert_eq!(target.exists(), exported);
        if let Err(error) = told {
            assert_eq!(error.code(), ErrorCode::Locked);
            assert!(error.message().contains("is not closed again"), "{error}");
            continue;
        }
        let read = OpenOptions::new().read_only(true).open(&disk).unwrap();
        assert!(read.info().unwrap().recovery.is_none(), "{times}");
    }
}

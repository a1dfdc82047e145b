//! A disk that others change between the moment in which a check reads its descriptor and the one in which it locks it.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::look::Looking;
use super::super::{CheckOptions, CheckReport, FindingKind, Repair};
use super::{Room, kinds};
use crate::disk::open::{ATTEMPTS, Place};
use crate::disk::{AddBitmap, Disk};
use crate::error::{ErrorCode, Result};
use crate::storage::HostFolder;
use crate::storage::hooked::{Hooked, When};

/// Looks at the disk and removes leftovers; whenever its state file is about to be opened, and so before the lock, `change` is
/// called with a number. Says how often that was, too.
fn looked(
    room: &Room,
    change: impl Fn(usize, &Path) + Send + Sync + 'static,
) -> (Result<CheckReport>, usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let (counted, disk) = (Arc::clone(&calls), room.disk());
    let folder = HostFolder::open(room.dir.path()).unwrap();
    let folder = Hooked::new(folder, move |when, what, name| {
        if when == When::Before && what == "open" && name == Path::new("disk.state") {
            change(counted.fetch_add(1, Ordering::Relaxed), &disk);
        }
        Ok(())
    });
    let mut place = Place::find(&room.disk(), None, false).unwrap();
    place.folder = Arc::new(folder);
    let options = CheckOptions::new().repair(Repair::Leaks);
    let looking = Looking::new(&options, &place, Repair::Leaks);
    let found = looking.look(&mut |_, _| ControlFlow::Continue(()));
    (found.map(|(report, _)| report), calls.load(Ordering::Relaxed))
}

/// What another process does.
fn adds_bitmap(disk: &Path, number: usize) {
    let disk = Disk::open(disk).unwrap();
    disk.bitmap_add(&format!("new{number}"), AddBitmap::default())
        .unwrap();
    disk.close().unwrap();
}

/// A bitmap that the first descriptor did not name is no leftover.
#[test]
fn what_was_added_before_the_lock_is_left_alone() {
    let room = Room::new();
    let (found, opens) = looked(&room, |number, disk| {
        if number == 0 {
            adds_bitmap(disk, number);
        }
    });
    assert_eq!(kinds(&found.unwrap()), []);
    assert_eq!(opens, 2);
    assert!(fs::exists(room.path("disk-new0.bitmap")).unwrap());
    assert_eq!(room.count("new0"), 0);
}

#[test]
fn a_disk_that_never_stays_as_it_is_read_is_locked() {
    let room = Room::new();
    let (found, opens) = looked(&room, |number, disk| adds_bitmap(disk, number));
    let error = found.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Locked);
    assert_eq!(
        error.message(),
        "it keeps being changed while it is being checked"
    );
    assert_eq!(opens, ATTEMPTS);
    // All locks are given up.
    assert!(!room.check(Repair::Leaks).has(FindingKind::Leftover));
}

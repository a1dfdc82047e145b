//! A disk that others change between the moment in which an opener reads its descriptor and the one in which he locks it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{ATTEMPTS, OpenOptions, Place};
use crate::descriptor::Format;
use crate::disk::{AddBitmap, CreateOptions, Disk, WriteFlags};
use crate::error::{ErrorCode, Result};
use crate::storage::HostFolder;
use crate::storage::hooked::{Hooked, When};

/// A disk, and who changes it.
#[derive(Clone, Copy, Debug)]
struct Case {
    disk: &'static str,
    /// The state file that its opener is about to open, and so to lock, when it is changed.
    state: &'static str,
    /// Adds the bitmap `new` and that number, as another process does.
    add: fn(&Path, usize),
}

const CASES: [Case; 3] = [
    Case {
        disk: "plain.qbm",
        state: "plain.state",
        add: |dir, number| add(&dir.join("plain.qbm"), number),
    },
    Case {
        disk: "outer.qbm",
        state: "inner.state",
        add: |dir, number| add(&dir.join("inner.qbm"), number),
    },
    // By hand: the disk within is locked already.
    Case {
        disk: "outer.qbm",
        state: "outer.state",
        add: |dir, number| {
            let (path, name) = (dir.join("outer.qbm"), format!("new{number}"));
            let text = fs::read_to_string(&path).unwrap();
            let entry = format!(r#"{{"file": "{name}", "type": "dirty", "granularity-bytes": 65536}}"#);
            let (before, after) = text.split_once("\"bitmaps\"").unwrap();
            let (colon, after) = after.split_once('{').unwrap();
            let comma = if after.trim_start().starts_with('}') {
                ""
            } else {
                ","
            };
            let text = format!("{before}\"bitmaps\"{colon}{{\"{name}\": {entry}{comma}{after}");
            fs::write(dir.join(&name), [0; 8]).unwrap();
            fs::write(dir.join("by hand"), text).unwrap();
            fs::rename(dir.join("by hand"), path).unwrap();
        },
    },
];

fn add(disk: &Path, number: usize) {
    let disk = Disk::open(disk).unwrap();
    disk.bitmap_add(&format!("new{number}"), AddBitmap::default())
        .unwrap();
    disk.close().unwrap();
}

/// A folder with a disk, and with one whose image is a disk.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["plain.qbm", "inner.qbm"] {
        CreateOptions::new()
            .size(1 << 20)
            .create(dir.path().join(name))
            .unwrap();
    }
    CreateOptions::new()
        .image("inner.qbm")
        .image_format(Format::Qbm)
        .create(dir.path().join("outer.qbm"))
        .unwrap();
    dir
}

/// Opens the disk, which is changed as long as `change` says so of the number of times that it was changed. Says how often its
/// state file was opened, too.
fn open(options: &OpenOptions, case: Case, dir: &Path, change: fn(usize) -> bool) -> (Result<Disk>, usize) {
    let opens = Arc::new(AtomicUsize::new(0));
    let (counted, there) = (Arc::clone(&opens), dir.to_owned());
    let folder = Hooked::new(HostFolder::open(dir).unwrap(), move |when, what, name| {
        if when == When::Before && what == "open" && name == Path::new(case.state) {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            if change(number) {
                (case.add)(&there, number);
            }
        }
        Ok(())
    });
    let path = dir.join(case.disk);
    let mut place = Place::find(&path, None, false).unwrap();
    place.folder = Arc::new(folder);
    place.locking = true;
    let result = options.open_in(&path, &place);
    (result, opens.load(Ordering::Relaxed))
}

/// What was added records what is written from then on.
#[test]
fn what_was_added_before_the_lock_is_known() {
    for case in CASES {
        for read_only in [true, false] {
            let dir = folder();
            let options = OpenOptions::new().read_only(read_only);
            let (disk, opens) = open(&options, case, dir.path(), |number| number == 0);
            let disk = disk.unwrap();
            assert_eq!(opens, 2, "{case:?}");
            let changed = match case.state {
                "inner.state" => disk.image().disk().unwrap(),
                _ => &disk,
            };
            assert_eq!(changed.bitmap_count("new0").unwrap(), 0, "{case:?}");
            if !read_only {
                disk.write(&[1], 0, WriteFlags::empty()).unwrap();
                assert_eq!(changed.bitmap_count("new0").unwrap(), 1, "{case:?}");
            }
            disk.close().unwrap();
        }
    }
}

#[test]
fn a_disk_that_never_stays_as_it_is_read_is_locked() {
    for case in CASES {
        let dir = folder();
        let (disk, opens) = open(&OpenOptions::new(), case, dir.path(), |_| true);
        let error = disk.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Locked, "{case:?}");
        assert_eq!(error.message(), "it keeps being changed while it is being opened");
        assert_eq!(opens, ATTEMPTS, "{case:?}");
        // All locks are given up.
        Disk::open(dir.path().join(case.disk)).unwrap().close().unwrap();
    }
}

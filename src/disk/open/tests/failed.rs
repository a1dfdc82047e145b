//! An open that fails, while somebody has copies of the files that it opened, as a child has between its fork and its exec.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::descriptor::Format;
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions};
use crate::error::ErrorCode;
use crate::storage::HostFolder;
use crate::storage::hooked::{Hooked, When};

/// Copies of the open files of this process that lie in `dir`.
fn copies(dir: &Path) -> Vec<OwnedFd> {
    let numbers = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let inside = numbers.filter(|it| fs::read_link(it.path()).is_ok_and(|file| file.starts_with(dir)));
    let copy = |number: i32| {
        // SAFETY: nobody else closes what lies in this folder, and the copy is made at once.
        unsafe { BorrowedFd::borrow_raw(number) }
            .try_clone_to_owned()
            .unwrap()
    };
    inside
        .map(|it| copy(it.file_name().to_str().unwrap().parse().unwrap()))
        .collect()
}

/// Opens the disk `name`, which must fail, and then, with the copies still there, behind `mend`.
fn fails_and_succeeds(dir: &Path, name: &str, mend: impl FnOnce()) {
    let child = Arc::new(Mutex::new(Vec::new()));
    let (has, there) = (Arc::clone(&child), dir.canonicalize().unwrap());
    let folder = Hooked::new(HostFolder::open(dir).unwrap(), move |when, what, _| {
        if (when, what) == (When::Before, "open") {
            has.lock().unwrap().extend(copies(&there));
        }
        Ok(())
    });
    let error = OpenOptions::new()
        .folder(Arc::new(folder))
        .open(name)
        .map(drop)
        .unwrap_err();
    assert_ne!(error.code(), ErrorCode::Locked, "{error}");
    mend();
    Disk::open(dir.join(name)).unwrap().close().unwrap();
    drop(child);
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner.qbm");
    CreateOptions::new().size(1 << 20).create(&inner).unwrap();
    let create = CreateOptions::new().image("inner.qbm").image_format(Format::Qbm);
    create.create(dir.path().join("outer.qbm")).unwrap();
    for name in ["inner.qbm", "outer.qbm"] {
        let disk = Disk::open(dir.path().join(name)).unwrap();
        disk.bitmap_add("b", AddBitmap::default()).unwrap();
        disk.close().unwrap();
    }
    dir
}

/// The disk is locked already when it turns out that a bitmap's file is too small.
#[test]
fn what_an_open_has_locked_is_free_when_it_fails() {
    for name in ["inner.qbm", "outer.qbm"] {
        let dir = folder();
        let bitmap = dir.path().join(name.replace(".qbm", "-b.bitmap"));
        let bits = fs::read(&bitmap).unwrap();
        fs::write(&bitmap, []).unwrap();
        fails_and_succeeds(dir.path(), name, || fs::write(&bitmap, &bits).unwrap());
    }
}

/// The disk within is locked already, and not open yet.
#[test]
fn what_an_open_has_locked_of_an_image_is_free_when_it_fails() {
    let dir = folder();
    let (state, aside) = (dir.path().join("outer.state"), dir.path().join("aside"));
    fs::rename(&state, &aside).unwrap();
    fs::create_dir(&state).unwrap();
    fails_and_succeeds(dir.path(), "outer.qbm", || {
        fs::remove_dir(&state).unwrap();
        fs::rename(&aside, &state).unwrap();
    });
}

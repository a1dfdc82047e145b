//! An open changes the header of a qcow2, whose bitmaps become invalid by that. Whoever is killed before the disk has kept the
//! image's new time has changed nothing but that header, and the disk's bitmaps are what they were.

use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::disk::{AddBitmap, CreateOptions, Disk, ExportOptions, ImportOptions, OpenOptions, WriteFlags};
use crate::mutation::{Fault, with};

/// A disk whose image is a qcow2 that has its bitmap, too, as right before the end of an import.
fn imported() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    CreateOptions::new().size(1 << 20).create(path("a.qbm")).unwrap();
    let disk = Disk::open(path("a.qbm")).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.write(b"x", 0, WriteFlags::empty()).unwrap();
    disk.close().unwrap();
    ExportOptions::new()
        .export_copy(path("a.qbm"), path("vm.qcow2"), &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
    ImportOptions::new()
        .import(path("vm.qcow2"), path("vm.qbm"))
        .unwrap();
    let image = File::options().write(true).open(path("vm.qcow2")).unwrap();
    let modified = image.metadata().unwrap().modified().unwrap();
    // The autoclear bits: the bitmaps are valid.
    image.write_all_at(&1u64.to_be_bytes(), 88).unwrap();
    image.set_times(FileTimes::new().set_modified(modified)).unwrap();
    let vm = path("vm.qbm");
    (dir, vm)
}

/// Opens the disk twice and does something with it, all as if killed before the state file learned of it. Whether the bitmap is
/// consistent for the next one, who only reads, and for the one after him.
fn consistent_behind(act: impl Fn(&Disk), fault: Option<Fault>) -> [bool; 2] {
    let (dir, path) = imported();
    let kept = |name: &str| (dir.path().join(name), fs::read(dir.path().join(name)).unwrap());
    let before = [kept("vm.state"), kept("vm-b.bitmap")];
    let run = || {
        for _ in 0..2 {
            let disk = Disk::open(&path).unwrap();
            act(&disk);
            disk.close().unwrap();
            for (path, content) in &before {
                fs::write(path, content).unwrap();
            }
        }
        let seen = |disk: Disk| !disk.bitmap_info("b").unwrap().inconsistent;
        [
            seen(OpenOptions::new().read_only(true).open(&path).unwrap()),
            seen(Disk::open(&path).unwrap()),
        ]
    };
    match fault {
        Some(fault) => with(fault, run),
        None => run(),
    }
}

fn nothing(_: &Disk) {}

fn writes(disk: &Disk) {
    disk.write(b"y", 200_000, WriteFlags::empty()).unwrap();
}

#[test]
fn a_change_of_the_header_alone_is_no_foreign_write() {
    assert_eq!(consistent_behind(nothing, None), [true; 2]);
}

/// D1: what was written is not in that bitmap.
#[test]
fn the_mark_goes_with_the_first_write() {
    assert_eq!(consistent_behind(writes, None), [false; 2]);
}

/// An import adds the bitmaps and is killed; then somebody else writes to the image, or nobody does. Whether the bitmap is
/// consistent for the next one.
fn consistent_behind_half_an_import(others_write: bool, fault: Option<Fault>) -> bool {
    let (dir, path) = imported();
    let run = || {
        let disk = OpenOptions::new().image_untouched().open(&path).unwrap();
        disk.bitmap_add("c", AddBitmap::default()).unwrap();
        let killed = dir.path().join("killed");
        fs::create_dir(&killed).unwrap();
        // With the times.
        let files = ["vm.qbm", "vm.state", "vm-b.bitmap", "vm-c.bitmap", "vm.qcow2"];
        let done = Command::new("cp")
            .arg("-a")
            .args(files.map(|name| dir.path().join(name)))
            .arg(&killed)
            .status();
        assert!(done.unwrap().success());
        drop(disk);
        if others_write {
            let image = File::options().append(true).open(killed.join("vm.qcow2"));
            image.unwrap().write_all(&[0; 512]).unwrap();
        }
        let disk = Disk::open(killed.join("vm.qbm")).unwrap();
        let infos = ["b", "c"].map(|name| disk.bitmap_info(name).unwrap().inconsistent);
        assert_eq!(infos[0], infos[1]);
        !infos[0]
    };
    match fault {
        Some(fault) => with(fault, run),
        None => run(),
    }
}

/// D1: the disk is unclean, as the image is not.
#[test]
fn half_an_import_knows_what_others_write() {
    assert!(consistent_behind_half_an_import(false, None));
    assert!(!consistent_behind_half_an_import(true, None));
}

/// The tests see each of these, or they guard nothing.
#[test]
fn missing_protections_are_seen() {
    assert!(consistent_behind_half_an_import(
        true,
        Some(Fault::UntouchedUntold)
    ));
    assert_eq!(consistent_behind(nothing, Some(Fault::MarkUnread)), [false; 2]);
    assert_eq!(consistent_behind(writes, Some(Fault::MarkKept)), [true; 2]);
}

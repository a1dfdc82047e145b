//! What a disk is held against after a call has failed.

use std::fs::{self, File, FileTimes};
use std::ops::ControlFlow;
use std::path::Path;

use qbm::{CheckOptions, Disk, FindingKind, Format, OpenOptions, Repair, Severity};

use super::room::Room;

/// Another room with the same files. Their times with them, as a disk whose image is newer than it was left is a disk that
/// somebody else has written to.
pub fn copy(room: &Room) -> Room {
    let new = Room::new();
    copy_folder(&room.path("."), &new.path("."));
    new
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            fs::create_dir(&target).expect("a folder");
            copy_folder(&entry.path(), &target);
            continue;
        }
        fs::copy(entry.path(), &target).expect("a copy");
        let modified = entry.metadata().and_then(|it| it.modified()).expect("its time");
        let copied = File::options().append(true).open(&target).expect("it opens");
        copied
            .set_times(FileTimes::new().set_modified(modified))
            .expect("the same time");
    }
}

/// What a check finds that changes nothing.
pub fn found(room: &Room, name: &str) -> Vec<FindingKind> {
    let report = CheckOptions::new()
        .check(room.path(name), &mut |_, _| ControlFlow::Continue(()))
        .unwrap_or_else(|why| panic!("{name} cannot be checked: {why}"));
    report.findings.iter().map(|it| it.kind).collect()
}

/// Checks and repairs a disk, which must be sound then, and opens it.
pub fn sound(room: &Room, name: &str) -> Disk {
    let report = CheckOptions::new()
        .repair(Repair::All)
        .check(room.path(name), &mut |_, _| ControlFlow::Continue(()))
        .unwrap_or_else(|why| panic!("{name} cannot be checked: {why}"));
    let bad = report
        .findings
        .iter()
        .find(|it| !it.fixed && matches!(it.severity, Severity::Corruption | Severity::Error));
    assert!(bad.is_none(), "{name}: {bad:?}");
    let lost = report
        .findings
        .iter()
        .find(|it| it.kind == FindingKind::BitmapInconsistent);
    assert!(lost.is_none(), "{name}: {lost:?}");
    OpenOptions::new()
        .open(room.path(name))
        .unwrap_or_else(|why| panic!("{name} does not open: {why}"))
}

/// All that a disk shows.
pub fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.length()).expect("a small disk")];
    disk.read(&mut bytes, 0).expect("it can be read");
    bytes
}

/// What a disk shows that is as it must be.
pub fn content_of(room: &Room, name: &str) -> Vec<u8> {
    content(&sound(room, name))
}

/// The number of granules that a bitmap calls dirty; none where there is no such bitmap.
pub fn dirty(disk: &Disk, bitmap: &str) -> Option<u64> {
    let there = disk.bitmap_list().expect("a list").into_iter();
    there
        .filter(|it| it.name == bitmap)
        .map(|it| {
            assert!(!it.inconsistent, "{bitmap} is inconsistent");
            disk.bitmap_count(bitmap).expect("a count")
        })
        .next()
}

/// A backing image: no sector is zeros.
pub fn base(other: u8) -> Vec<u8> {
    (0..1 << 20)
        .map(|at: usize| u8::try_from((at / 512 + usize::from(other)) % 250).expect("small") + 1)
        .collect()
}

/// An overlay over `base.img` with two writes of its own.
pub fn overlay(room: &Room, name: &str) {
    room.write("base.img", &base(0));
    qbm::CreateOptions::new()
        .backing("base.img", Format::Raw)
        .create(room.path(name))
        .expect("an overlay");
    room.guest_writes(name, 100_000, 70_000);
    room.guest_writes(name, 700_001, 3);
}

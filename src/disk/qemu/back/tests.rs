//! What others have written is in the bitmaps by the open itself: from the moment on that the disk takes the changed image
//! as its own, a crash must find the bits there (D1).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use crate::disk::{
    AddBitmap, BitmapContent, CreateOptions, Disk, ExportOptions, OpenOptions, TruncateFlags, WriteFlags,
};
use crate::error::ErrorCode;
use crate::units::Granularity;

const LENGTH: u64 = (4 << 20) + 5;

/// An open disk with a bitmap.
fn with_bitmap() -> (TempDir, PathBuf, Disk) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("disk.qbm");
    CreateOptions::new().size(LENGTH).create(&path).expect("a disk");
    let disk = Disk::open(&path).expect("it opens");
    disk.bitmap_add("b", AddBitmap::default()).expect("a bitmap");
    (dir, path, disk)
}

/// Its image, for others to change.
fn image(dir: &TempDir) -> File {
    let image = File::options().write(true).open(dir.path().join("disk-data.img"));
    image.expect("the image")
}

/// A disk with a bitmap, whose image was written to at the bytes that the content says.
fn written_behind_its_back() -> (TempDir, PathBuf, BitmapContent) {
    let (dir, path, disk) = with_bitmap();
    disk.write(b"x", 0, WriteFlags::empty()).expect("a write");
    disk.close().expect("closed");
    image(&dir).write_at(b"others", 1 << 20).expect("a write");
    let mut content = BitmapContent::new(Granularity::MIN, LENGTH).expect("content");
    // The bit of the granule at 1 MiB.
    content
        .deserialize(256, &[1, 0, 0, 0, 0, 0, 0, 0])
        .expect("a bit");
    (dir, path, content)
}

fn open_with(path: &PathBuf, content: BitmapContent) -> crate::error::Result<Disk> {
    let mut options = OpenOptions::new();
    options.foreign_writes = Some(Arc::new(content));
    options.lengthen_bitmaps = true;
    options.open(path)
}

#[test]
fn the_open_itself_takes_them_in() {
    let (_dir, path, content) = written_behind_its_back();
    // The first change makes the changed image the disk's own. As if killed right behind it.
    let disk = open_with(&path, content).expect("it opens");
    disk.write(b"y", 0, WriteFlags::empty()).expect("a write");
    disk.die();
    let disk = Disk::open(&path).expect("it opens");
    assert!(!disk.bitmap_info("b").expect("facts").inconsistent);
    assert_eq!(disk.bitmap_count("b").expect("a count"), 2);
    assert!(disk.bitmap_get("b", 1 << 20).expect("a bit"));
}

/// Killed before that, the disk does not trust the image, whoever opens it next.
#[test]
fn an_open_that_changes_nothing_says_nothing_of_the_image() {
    let (_dir, path, content) = written_behind_its_back();
    open_with(&path, content).expect("it opens").die();
    let disk = Disk::open(&path).expect("it opens");
    assert!(disk.bitmap_info("b").expect("facts").inconsistent);
}

#[test]
fn those_of_another_length_are_refused_and_the_bitmap_is_not_trusted() {
    let (_dir, path, _) = written_behind_its_back();
    let other = BitmapContent::new(Granularity::MIN, LENGTH + 1).expect("content");
    let refused = open_with(&path, other).expect_err("it is refused");
    assert_eq!(refused.code(), ErrorCode::Locked);
    let disk = Disk::open(&path).expect("it opens");
    assert!(disk.bitmap_info("b").expect("facts").inconsistent);
}

/// Cut short by the disk's own user, and made long again by another: what is there now was never in the last backup.
#[test]
fn what_comes_back_behind_the_end_is_dirty() {
    let (dir, path, disk) = with_bitmap();
    disk.truncate(2 << 20, TruncateFlags::SHRINK).expect("shorter");
    disk.close().expect("closed");
    image(&dir).set_len(LENGTH + (1 << 20)).expect("longer");
    let content = BitmapContent::new(Granularity::MIN, LENGTH + (1 << 20)).expect("content");
    let dirty = |disk: &Disk| {
        (0..=disk.length() >> 16)
            .filter(|granule| disk.bitmap_get("b", granule << 16).is_ok_and(|dirty| dirty))
            .collect::<Vec<_>>()
    };
    // Up to the granule of the old end; what is behind was in no backup.
    let expected: Vec<u64> = (32..=64).collect();
    let disk = open_with(&path, content).expect("it opens");
    assert_eq!(dirty(&disk), expected);
    disk.write(b"y", 32 << 16, WriteFlags::empty()).expect("a write");
    drop(disk);
    assert_eq!(dirty(&Disk::open(&path).expect("it opens")), expected);
}

/// The bitmap's file is too short for a disk that QEMU has made much longer, which no other open accepts.
#[test]
fn a_disk_that_became_much_longer_takes_them_in() {
    let (dir, path, _) = written_behind_its_back();
    let long = 64 << 20;
    image(&dir).set_len(long).expect("longer");
    assert_eq!(
        Disk::open(&path).expect_err("it is refused").code(),
        ErrorCode::FileInvalid
    );
    let mut content = BitmapContent::new(Granularity::MIN, long).expect("content");
    content
        .deserialize(long / 512 / 8 - 8, &[0, 0, 0, 0, 0, 0, 0, 0x80])
        .expect("a bit");
    open_with(&path, content)
        .expect("it opens")
        .close()
        .expect("closed");
    let disk = Disk::open(&path).expect("it opens");
    assert!(!disk.bitmap_info("b").expect("facts").inconsistent);
    assert!(disk.bitmap_get("b", long - 1).expect("a bit"));
    assert_eq!(disk.bitmap_count("b").expect("a count"), 2);
}

/// Its user was killed: only when it is closed does the next open find out that QEMU has written to it.
#[test]
fn an_export_closes_a_disk_that_was_not() {
    let (dir, path, disk) = with_bitmap();
    disk.write(b"x", 0, WriteFlags::empty()).expect("a write");
    disk.die();
    let made = ExportOptions::new().export(&path, dir.path().join("disk.qcow2"));
    assert_eq!(made.expect("an export").bitmaps, ["b"]);
    image(&dir).write_at(b"others", 1 << 20).expect("a write");
    let disk = Disk::open(&path).expect("it opens");
    assert!(disk.bitmap_info("b").expect("facts").inconsistent);
}

//! What others have written is in the bitmaps by the open itself: from the moment on that the disk takes the changed image
//! as its own, a crash must find the bits there (D1).

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use crate::disk::{AddBitmap, BitmapContent, CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::error::ErrorCode;
use crate::units::Granularity;

const LENGTH: u64 = (4 << 20) + 5;

/// A disk with a bitmap, whose image was written to at the bytes that the content says.
fn written_behind_its_back() -> (TempDir, PathBuf, BitmapContent) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("disk.qbm");
    CreateOptions::new().size(LENGTH).create(&path).expect("a disk");
    let disk = Disk::open(&path).expect("it opens");
    disk.bitmap_add("b", AddBitmap::default()).expect("a bitmap");
    disk.write(b"x", 0, WriteFlags::empty()).expect("a write");
    disk.close().expect("closed");
    let image = std::fs::File::options()
        .write(true)
        .open(dir.path().join("disk-data.img"))
        .expect("the image");
    image.write_at(b"others", 1 << 20).expect("a write");
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
    options.open(path)
}

#[test]
fn the_open_itself_takes_them_in() {
    let (_dir, path, content) = written_behind_its_back();
    // The first change makes the changed image the disk's own. As if killed right behind it.
    let disk = open_with(&path, content).expect("it opens");
    disk.write(b"y", 0, WriteFlags::empty()).expect("a write");
    drop(disk);
    let disk = Disk::open(&path).expect("it opens");
    assert!(!disk.bitmap_info("b").expect("facts").inconsistent);
    assert_eq!(disk.bitmap_count("b").expect("a count"), 2);
    assert!(disk.bitmap_get("b", 1 << 20).expect("a bit"));
}

/// Killed before that, the disk does not trust the image, whoever opens it next.
#[test]
fn an_open_that_changes_nothing_says_nothing_of_the_image() {
    let (_dir, path, content) = written_behind_its_back();
    drop(open_with(&path, content).expect("it opens"));
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

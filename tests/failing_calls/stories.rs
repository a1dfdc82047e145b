//! What the tool is asked for, and what must be so afterwards, whatever has failed.

use std::fs;

use qbm::{CreateOptions, Disk, WriteFlags};

use super::held::{base, content, content_of, dirty, found, overlay, sound};
use super::room::Room;

pub struct Story {
    pub args: &'static [&'static str],
    /// Names of which at least one is in what the tool says of a failure.
    pub names: &'static [&'static str],
    pub before: fn(&Room),
    /// Looks at what is left: where the tool said that it was done, and where it did not.
    pub after: fn(&Room, bool),
}

pub const STORIES: [Story; 12] = [
    Story {
        args: &["create", "-q", "disk.qbm", "1M"],
        names: &["disk"],
        before: |_| {},
        after: created,
    },
    Story {
        args: &["bitmap", "--add", "disk.qbm", "new"],
        names: &["disk"],
        before: with_bitmap,
        after: |room, done| {
            let disk = with_bitmap_still(room);
            assert!(dirty(&disk, "new") == Some(0) || !done);
            if dirty(&disk, "new").is_none() {
                disk.bitmap_add("new", qbm::AddBitmap::default())
                    .expect("now it can be added");
            }
        },
    },
    Story {
        args: &["bitmap", "--clear", "disk.qbm", "old"],
        names: &["disk"],
        before: with_bitmap,
        after: |room, done| {
            let disk = sound(room, "disk.qbm");
            assert!(content(&disk) == written(MIB));
            let left = dirty(&disk, "old").expect("it is there");
            assert!(left == 0 || (left == DIRTY && !done), "{left} granules are dirty");
        },
    },
    Story {
        args: &["bitmap", "--merge", "old", "disk.qbm", "other"],
        names: &["disk"],
        before: |room| {
            with_bitmap(room);
            room.done(&["bitmap", "--add", "disk.qbm", "other"]);
        },
        after: |room, done| {
            let disk = with_bitmap_still(room);
            let merged = dirty(&disk, "other").expect("it is there");
            assert!(
                merged == DIRTY || (merged == 0 && !done),
                "{merged} granules are dirty"
            );
        },
    },
    Story {
        args: &["resize", "-q", "disk.qbm", "2M"],
        names: &["disk"],
        before: with_bitmap,
        after: |room, done| {
            let disk = sound(room, "disk.qbm");
            let length = disk.length();
            assert!(
                length == 2 * MIB as u64 || (length == MIB as u64 && !done),
                "{length}"
            );
            assert!(content(&disk) == written(usize::try_from(length).expect("small")));
            assert_eq!(dirty(&disk, "old"), Some(DIRTY));
        },
    },
    Story {
        args: &["check", "-r", "all", "disk.qbm"],
        names: &["disk"],
        before: killed,
        after: |room, done| {
            // Before anything else repairs it.
            if done {
                assert_eq!(found(room, "disk.qbm"), [], "it says that it is repaired");
            }
            let disk = sound(room, "disk.qbm");
            assert!(content(&disk) == written(MIB));
            // Nothing vouches for the page cache of a copy.
            assert_eq!(dirty(&disk, "old"), Some(GRANULES));
        },
    },
    Story {
        args: &[
            "backup", "-q", "--bitmap", "nightly", "--to", "backups", "disk.qbm",
        ],
        names: &["disk", "backups", "nightly"],
        before: backed_up,
        after: backed_up_again,
    },
    Story {
        args: &["restore", "-q", "backups", "--to", "out.img"],
        names: &["backups", "out.img"],
        before: |room| {
            backed_up(room);
            room.done(&BACKUP);
        },
        after: |room, done| {
            if !done {
                room.done(&["restore", "-q", "backups", "--to", "out.img"]);
            }
            assert!(room.read("out.img") == room.read("disk-data.img"));
        },
    },
    Story {
        args: &["commit", "-q", "clone.qbm"],
        names: &["clone", "base.img"],
        before: |room| overlay(room, "clone.qbm"),
        after: |room, done| {
            assert!(content_of(room, "clone.qbm") == above_base());
            if !done {
                room.done(&["commit", "-q", "clone.qbm"]);
                assert!(content_of(room, "clone.qbm") == above_base());
            }
            assert!(room.read("base.img") == above_base());
        },
    },
    Story {
        args: &["snapshot", "-q", "clone.qbm", "before.qbm"],
        names: &["clone", "before", "base.img"],
        before: |room| overlay(room, "clone.qbm"),
        after: |room, done| {
            assert!(content_of(room, "clone.qbm") == above_base());
            let there = room.path("before.qbm").exists();
            assert!(there || !done);
            if there {
                assert!(content_of(room, "before.qbm") == above_base());
            }
        },
    },
    Story {
        args: &["rebase", "-q", "-b", "other.img", "-F", "raw", "clone.qbm"],
        names: &["clone", "other.img", "base.img"],
        before: |room| {
            overlay(room, "clone.qbm");
            room.write("other.img", &base(9));
        },
        after: |room, done| {
            assert!(content_of(room, "clone.qbm") == above_base());
            if done {
                fs::remove_file(room.path("base.img")).expect("nobody needs it");
                assert!(content_of(room, "clone.qbm") == above_base());
            }
        },
    },
    Story {
        args: &["convert", "-q", "clone.qbm", "out.img"],
        names: &["clone", "base.img", "out.img"],
        before: |room| overlay(room, "clone.qbm"),
        after: |room, done| {
            assert!(content_of(room, "clone.qbm") == above_base());
            let there = room.path("out.img").exists();
            assert_eq!(there, done, "all of it or nothing");
            if done {
                assert!(room.read("out.img") == above_base());
            }
        },
    },
];

const MIB: usize = 1 << 20;
/// How many granules of [`written`] are dirty, and how many there are.
const DIRTY: u64 = 3;
const GRANULES: u64 = 16;
const BACKUP: [&str; 7] = [
    "backup", "-q", "--bitmap", "nightly", "--to", "backups", "disk.qbm",
];

/// A disk of `length` bytes with the writes that the stories begin with.
fn written(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[5000..105_000].fill(0x5a);
    bytes[700_000..700_100].fill(0x5a);
    bytes
}

/// What the overlay shows.
pub fn above_base() -> Vec<u8> {
    let mut bytes = base(0);
    bytes[100_000..170_000].fill(0x5a);
    bytes[700_001..700_004].fill(0x5a);
    bytes
}

fn created(room: &Room, done: bool) {
    if !done && !room.path("disk.qbm").exists() {
        CreateOptions::new()
            .size(MIB as u64)
            .create(room.path("disk.qbm"))
            .expect("now it can be made");
    }
    let disk = sound(room, "disk.qbm");
    assert!(content(&disk) == vec![0; MIB]);
    disk.write(&[1], 0, WriteFlags::empty()).expect("a write");
    disk.close().expect("it closes");
}

fn with_bitmap(room: &Room) {
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "old"]);
    room.guest_writes("disk.qbm", 5000, 100_000);
    room.guest_writes("disk.qbm", 700_000, 100);
}

fn with_bitmap_still(room: &Room) -> Disk {
    let disk = sound(room, "disk.qbm");
    assert!(content(&disk) == written(MIB));
    assert_eq!(dirty(&disk, "old"), Some(DIRTY));
    disk
}

/// The same, and nobody has closed it.
fn killed(room: &Room) {
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "old"]);
    room.guest_writes("disk.qbm", 5000, 100_000);
    let disk = Disk::open(room.path("disk.qbm")).expect("it opens");
    disk.write(&[0x5a; 100], 700_000, WriteFlags::empty())
        .expect("a write");
    disk.die();
}

/// A disk of which there is a backup, and that has been written to since.
fn backed_up(room: &Room) {
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.guest_writes("disk.qbm", 5000, 50_000);
    room.done(&BACKUP);
    room.guest_writes("disk.qbm", 30_000, 75_000);
    room.guest_writes("disk.qbm", 700_000, 100);
}

/// The next backup has what the disk has, whether it is the one after the failure or that one.
fn backed_up_again(room: &Room, _: bool) {
    assert!(content_of(room, "disk.qbm") == written(MIB));
    room.done(&BACKUP);
    room.done(&["restore", "-q", "backups", "--to", "out.img"]);
    assert!(room.read("out.img") == written(MIB));
}

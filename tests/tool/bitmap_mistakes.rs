//! The mistakes of those who work with bitmaps: one line that says what, where and why, and nothing changed.

use std::os::unix::fs::FileExt as _;

use super::errors::{refused, usage};
use super::room::Room;

/// `disk.qbm` of 1 MiB with the bitmaps `nightly` and `weekly`, `empty.qbm` with none, `long.qbm` of 2 MiB with
/// `nightly`, and a raw image.
fn room_with_disks() -> Room {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.done(&["create", "-q", "empty.qbm", "1M"]);
    room.done(&["create", "-q", "long.qbm", "2M"]);
    for (disk, name) in [
        ("disk.qbm", "nightly"),
        ("disk.qbm", "weekly"),
        ("long.qbm", "nightly"),
    ] {
        room.done(&["bitmap", "--add", disk, name]);
    }
    room.write("raw.img", &[0; 4096]);
    room
}

/// `qbm bitmap` with these arguments is refused with this line, and the descriptor stays as it is.
fn cannot(room: &Room, args: &[&str], line: &str) {
    let before = room.read("disk.qbm");
    refused(room, &[&["bitmap"], args].concat(), line);
    assert_eq!(room.read("disk.qbm"), before, "{args:?}");
}

#[test]
fn a_bitmap_that_there_is_not() {
    let room = room_with_disks();
    let has = "(the disk has \"nightly\", \"weekly\")";
    for (action, verb) in [
        ("--remove", "remove"),
        ("--clear", "clear"),
        ("--enable", "enable"),
        ("--disable", "disable"),
    ] {
        cannot(
            &room,
            &[action, "disk.qbm", "nightli"],
            &format!("disk.qbm: cannot {verb} bitmap \"nightli\": there is no bitmap \"nightli\" {has}"),
        );
    }
    cannot(
        &room,
        &["--rename", "new", "disk.qbm", "nightli"],
        &format!("disk.qbm: cannot rename bitmap \"nightli\": there is no bitmap \"nightli\" {has}"),
    );
    cannot(
        &room,
        &["--merge", "daily", "disk.qbm", "weekly"],
        &format!("disk.qbm: cannot merge into bitmap \"weekly\": there is no bitmap \"daily\" {has}"),
    );
    cannot(
        &room,
        &["dump", "disk.qbm", "nightli"],
        &format!("disk.qbm: there is no bitmap \"nightli\" {has}"),
    );
    refused(
        &room,
        &["map", "--bitmap", "nightli", "disk.qbm"],
        &format!("disk.qbm: there is no bitmap \"nightli\" {has}"),
    );
    let none = "(the disk has no bitmaps; \"qbm bitmap --add\" makes one)";
    cannot(
        &room,
        &["--clear", "empty.qbm", "nightly"],
        &format!("empty.qbm: cannot clear bitmap \"nightly\": there is no bitmap \"nightly\" {none}"),
    );
    refused(
        &room,
        &["map", "--picture=disk.svg", "--bitmap", "nightly", "empty.qbm"],
        &format!("empty.qbm: there is no bitmap \"nightly\" {none}"),
    );
}

#[test]
fn of_many_names_some_are_told() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    for name in ["a", "b", "c", "d", "e\n", "f", "g"] {
        room.done(&["bitmap", "--add", "disk.qbm", name]);
    }
    cannot(
        &room,
        &["dump", "disk.qbm", "h"],
        "disk.qbm: there is no bitmap \"h\" (the disk has \"a\", \"b\", \"c\", \"d\", \"e\\n\" and 2 more)",
    );
}

#[test]
fn a_name_that_is_taken_or_none() {
    let room = room_with_disks();
    cannot(
        &room,
        &["--add", "disk.qbm", "nightly"],
        "disk.qbm: cannot add bitmap \"nightly\": there is a bitmap \"nightly\" already",
    );
    cannot(
        &room,
        &["--rename", "weekly", "disk.qbm", "nightly"],
        "disk.qbm: cannot rename bitmap \"nightly\": there is a bitmap \"weekly\" already",
    );
    let (code, complaint) = room.fails(&["bitmap", "--add", "disk.qbm", ""]);
    assert_eq!(code, 1);
    assert!(
        complaint.starts_with("qbm: disk.qbm: cannot add bitmap \"\": "),
        "{complaint}"
    );
}

#[test]
fn an_action_on_a_name_that_an_earlier_one_took_away() {
    let room = room_with_disks();
    cannot(
        &room,
        &["--rename", "monday", "--disable", "disk.qbm", "nightly"],
        "disk.qbm: cannot disable bitmap \"nightly\": there is no bitmap \"nightly\" (an action before it has taken \
         that name away, and nothing was changed)",
    );
}

#[test]
fn a_source_that_cannot_be_merged_from() {
    let room = room_with_disks();
    let merge = |source: &[&'static str]| {
        let mut args = vec!["--merge", "nightly", "-b"];
        args.extend(source);
        args.extend(["disk.qbm", "weekly"]);
        args
    };
    cannot(
        &room,
        &merge(&["no.qbm"]),
        "cannot open no.qbm: No such file or directory",
    );
    cannot(
        &room,
        &merge(&["raw.img"]),
        "cannot open raw.img: not readable as JSON: expected value at line 1 column 1 (it is no QBM descriptor; \
         \"qbm create --image\" makes one for a raw image)",
    );
    let line = "cannot merge from old.qcow2: its format is given as \"qcow2\", and only the bitmaps of QBM disks can be \
                merged (-F qbm)";
    assert_eq!(
        room.fails(&[&["bitmap"], &*merge(&["old.qcow2", "-F", "qcow2"])].concat()),
        (2, format!("qbm: {line}\n"))
    );
    cannot(
        &room,
        &merge(&["empty.qbm", "-F", "qbm"]),
        "cannot merge from empty.qbm: there is no bitmap \"nightly\" (the disk has no bitmaps; \"qbm bitmap --add\" \
         makes one)",
    );
    cannot(
        &room,
        &merge(&["long.qbm"]),
        "cannot merge from long.qbm: it is 2097152 bytes long, and disk.qbm is 1048576; a merge is between disks of \
         the same length",
    );
}

#[test]
fn a_part_that_begins_behind_the_end() {
    let room = room_with_disks();
    cannot(
        &room,
        &["dump", "-s", "2M", "disk.qbm", "nightly"],
        "cannot dump disk.qbm: the start offset 2097152 lies behind the disk's end at 1048576",
    );
    refused(
        &room,
        &["map", "--picture", "-s", "2M", "disk.qbm"],
        "cannot map disk.qbm: the start offset 2097152 lies behind the disk's end at 1048576",
    );
}

#[test]
fn a_picture_that_cannot_be_written() {
    let room = room_with_disks();
    refused(
        &room,
        &["map", "--picture=no/disk.svg", "disk.qbm"],
        "cannot write no/disk.svg: No such file or directory",
    );
}

#[test]
fn a_command_line_that_makes_no_sense() {
    let room = Room::new();
    let missing = "error: the following required arguments were not provided:";
    let cases: [(&[&str], &str); 13] = [
        (&["bitmap", "disk.qbm", "nightly"], missing),
        (&["bitmap", "--add", "disk.qbm"], missing),
        (&["bitmap", "dump", "disk.qbm"], missing),
        (&["bitmap", "-g", "4k", "--clear", "disk.qbm", "nightly"], missing),
        (
            &["bitmap", "-b", "other.qbm", "--add", "disk.qbm", "nightly"],
            missing,
        ),
        (
            &["bitmap", "-F", "qbm", "--merge", "a", "disk.qbm", "nightly"],
            missing,
        ),
        (
            &["bitmap", "--add", "-g", "65537", "disk.qbm", "nightly"],
            "error: invalid value '65537' for '--granularity <BYTES>': 65537 is not a power of two from 512 to \
             2147483648",
        ),
        (
            &["bitmap", "--add", "-g", "4G", "disk.qbm", "nightly"],
            "error: invalid value '4G' for '--granularity <BYTES>': 4294967296 is not a power of two from 512 to \
             2147483648",
        ),
        (
            &["bitmap", "--merge"],
            "error: a value is required for '--merge <SOURCE>' but none was supplied",
        ),
        (
            &["bitmap", "list", "disk.qbm", "--add"],
            "error: unexpected argument '--add' found",
        ),
        (
            &["map", "--picture=disk.qbm", "disk.qbm"],
            "error: invalid value 'disk.qbm' for '--picture[=<FILE.svg>]': a picture is written as SVG, into a file \
             whose name ends in .svg",
        ),
        (
            &["map", "--picture", "--output", "json", "disk.qbm"],
            "error: the argument '--picture[=<FILE.svg>]' cannot be used with '--output <FORMAT>'",
        ),
        (
            &["map", "--bitmap", "a", "--bitmap", "b", "disk.qbm"],
            "error: the argument '--bitmap <NAME>' cannot be used multiple times",
        ),
    ];
    for (args, line) in cases {
        usage(&room, args, line);
    }
}

/// A disk that was left open would not notice what others write to its image, and the next backup would lack it.
#[test]
fn a_command_that_fails_leaves_the_disk_closed() {
    let room = room_with_disks();
    room.guest_writes("disk.qbm", 0, 5000);
    let failing: [&[&str]; 5] = [
        &["bitmap", "--remove", "disk.qbm", "nightli"],
        &["bitmap", "--add", "disk.qbm", "nightly"],
        &["bitmap", "--clear", "--rename", "weekly", "disk.qbm", "nightly"],
        &["commit", "disk.qbm"],
        &["snapshot", "disk.qbm", "empty.qbm"],
    ];
    for args in failing {
        room.fails(args);
        let facts = room.json(&["info", "--output", "json", "disk.qbm"]);
        assert!(facts["recovery"].is_null(), "{args:?}: {facts}");
    }
    let image = std::fs::File::options()
        .write(true)
        .open(room.path("disk-data.img"));
    image
        .and_then(|image| image.write_all_at(&[9; 4096], 512 << 10))
        .expect("written");
    let output = room.run(&["check", "disk.qbm"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

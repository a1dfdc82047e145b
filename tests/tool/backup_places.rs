//! `qbm backup` and `qbm restore` where there is no room, or no right to write, or the folder's name cannot be made durable.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;

use super::mounted::Mounted;
use super::room::{Room, TOOL, text};
use super::skip::skipped;

const BACKUP: [&str; 6] = [
    "backup",
    "--bitmap",
    "nightly",
    "--to",
    "place/backups",
    "disk.qbm",
];

/// A disk with 8 MiB of data, a backup of it in `backups`, and a tmpfs of these options at `place`.
fn with_place(options: &str) -> Option<(Room, Mounted)> {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "10M"]);
    room.guest_writes("disk.qbm", 0, 8 << 20);
    room.done(&["backup", "-q", "--bitmap", "other", "--to", "backups", "disk.qbm"]);
    room.folder("place");
    let mount = ["-t", "tmpfs", "-o", options, "tmpfs"].map(OsStr::new);
    match Mounted::new(&mount, &room.path("place")) {
        Ok(mounted) => Some((room, mounted)),
        Err(why) => {
            skipped(format_args!("no small file system could be mounted: {why}"));
            None
        }
    }
}

/// All files of a folder; empty where there is none. The lock of a folder of backups stays when it is made.
fn files(room: &Room, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(room.path(folder)).into_iter().flatten();
    entries
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_type().expect("its type").is_file())
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("read"))
        })
        .filter(|(name, _)| name != "qbm-backup.lock")
        .collect()
}

fn fails(room: &Room, args: &[&str], end: &str) {
    let (code, complaint) = room.fails(args);
    assert_eq!(code, 1, "{args:?}");
    assert!(
        complaint.starts_with("qbm: cannot ") && complaint.lines().count() == 1 && complaint.ends_with(end),
        "{args:?}: {complaint}"
    );
}

const FULL: &str = "No space left on device\n";
const READ_ONLY: &str = "Read-only file system\n";

#[test]
fn a_backup_that_finds_no_room_leaves_the_folder_and_the_bitmap() {
    let Some((room, _mounted)) = with_place("size=2m") else {
        return;
    };
    fails(&room, &BACKUP, FULL);
    assert!(!room.path("place/backups").exists(), "it was made for nothing");
    // One that fits, and then one that does not.
    room.done(&["create", "-q", "small.qbm", "10M"]);
    let small = [
        "backup",
        "-q",
        "--bitmap",
        "nightly",
        "--to",
        "place/small",
        "small.qbm",
    ];
    room.done(&small);
    let before = files(&room, "place/small");
    room.guest_writes("small.qbm", 0, 4 << 20);
    fails(&room, &small, FULL);
    assert!(files(&room, "place/small") == before);
    let bitmaps = room.json(&["bitmap", "list", "--output", "json", "small.qbm"]);
    assert_eq!(bitmaps[0]["count"], 4 << 20, "{bitmaps}");
}

#[test]
fn a_restore_that_finds_no_room_leaves_nothing() {
    let Some((room, mounted)) = with_place("size=2m") else {
        return;
    };
    for (to, format) in [
        ("place/new.img", "raw"),
        ("place/new.qcow2", "qcow2"),
        ("place/new.qbm", "qbm"),
    ] {
        fails(&room, &["restore", "backups", "-O", format, "--to", to], FULL);
        let left = fs::read_dir(mounted.folder()).expect("a folder").count();
        assert_eq!(left, 0, "{to} left something behind");
    }
}

#[test]
fn a_folder_that_may_not_be_written_to_is_told_of() {
    let Some((room, _mounted)) = with_place("ro") else {
        return;
    };
    let before = files(&room, "");
    fails(&room, &BACKUP, READ_ONLY);
    for (to, format) in [
        ("place/new.img", "raw"),
        ("place/new.qcow2", "qcow2"),
        ("place/new.qbm", "qbm"),
    ] {
        fails(
            &room,
            &["restore", "backups", "-O", format, "--to", to],
            READ_ONLY,
        );
    }
    assert!(files(&room, "").keys().eq(before.keys()));
}

/// strace answers the syncs of the folder `place`, which is above that of the backups, with `error`; the exit code, and what the
/// tool complained. `None` where strace cannot.
fn backup_without_syncs_of_place(room: &Room, error: &str) -> Option<(i32, String)> {
    let inject = format!("inject=fsync,fdatasync:error={error}");
    let place = fs::canonicalize(room.path("place")).expect("a folder");
    let mut command = room.command("strace", &["-f", "-qq", "-o", "/dev/null", "-e", &inject, "-P"]);
    let output = match command.arg(place).arg(TOOL).args(BACKUP).output() {
        Ok(output) => output,
        Err(why) => {
            skipped(format_args!("strace: {why}"));
            return None;
        }
    };
    let complaint = text(&output.stderr);
    if complaint.contains("ptrace") || complaint.contains("invalid") {
        skipped(complaint);
        return None;
    }
    Some((output.status.code().expect("an exit, not a signal"), complaint))
}

/// M1: the name of the folder is as durable as what is in it, before the bitmap forgets what the backup has.
#[test]
fn a_folder_that_a_power_cut_may_take_away_gets_no_backup() {
    let room = Room::new();
    room.folder("place");
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.guest_writes("disk.qbm", 0, 100_000);
    // `EINVAL`: a file system that cannot sync folders.
    for (made_before, error, refused) in [
        (false, "EIO", true),
        (true, "EIO", true),
        (false, "EINVAL", true),
        (true, "EINVAL", false),
    ] {
        if made_before {
            room.folder("place/backups");
        }
        let Some((code, complaint)) = backup_without_syncs_of_place(&room, error) else {
            return;
        };
        let when = format!("{error}, {made_before}: {complaint}");
        assert_eq!(code, i32::from(refused), "{when}");
        let there = room.path("place/backups").exists();
        assert_eq!(
            complaint.contains("cannot sync the folder above place/backups: "),
            refused,
            "{when}"
        );
        assert_eq!(files(&room, "place/backups").is_empty(), refused, "{when}");
        // One that was made for nothing has gone: the next backup makes it anew.
        assert_eq!(there, made_before, "{when}");
        if made_before && refused {
            fs::remove_dir_all(room.path("place/backups")).expect("a removal");
        }
    }
}

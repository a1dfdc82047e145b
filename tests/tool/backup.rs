//! `qbm backup` and `qbm restore`: what they say, and what they say to mistakes.

use std::process::Command;

use serde_json::{Value, json};

use super::errors::refused;
use super::room::Room;
use super::skip::skipped;

const TO: [&str; 5] = ["--bitmap", "nightly", "--to", "backups", "disk.qbm"];

fn back_up(room: &Room, more: &[&str]) -> Value {
    let args = ["backup", "--output", "json"];
    let args: Vec<&str> = args.iter().chain(&TO).chain(more).copied().collect();
    room.json(&args)
}

fn name(facts: &Value) -> String {
    facts["name"].as_str().expect("a name").to_owned()
}

fn room() -> Room {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "10M"]);
    room
}

#[test]
fn backups_are_made_listed_verified_restored_and_pruned() {
    let room = room();
    room.guest_writes("disk.qbm", 0, 100_000);
    let said = room.done(&["backup", "--bitmap", "nightly", "--to", "backups", "disk.qbm"]);
    let first = said.split(' ').next().expect("a name").to_owned();
    assert_eq!(
        said,
        format!("{first} full backup, 100 KiB stored: it is the first one in the folder\n")
    );
    room.guest_writes("disk.qbm", 5_000_000, 1);
    let facts = back_up(&room, &[]);
    let second = name(&facts);
    assert_eq!(facts["parent"], first);
    assert_eq!(
        (&facts["kind"], &facts["stored"]),
        (&"incremental".into(), &4096.into())
    );
    room.guest_writes("disk.qbm", 7_000_000, 1);
    let facts = back_up(&room, &["--since", &first]);
    let third = name(&facts);
    assert_eq!(
        (&facts["parent"], &facts["stored"]),
        (&first.clone().into(), &8192.into())
    );
    assert_eq!(
        room.done(&["backup", "list", "backups"]),
        format!(
            "{first}  full of 10 MiB, 100 KiB stored\n\
             {second}  incremental of 10 MiB upon {first}, 4 KiB stored\n\
             {third}  incremental of 10 MiB upon {first}, 8 KiB stored\n"
        )
    );
    assert_eq!(
        room.done(&["backup", "verify", "backups"]),
        format!("{first}  sound\n{second}  sound\n{third}  sound\n")
    );
    assert_eq!(
        room.done(&["restore", "backups", "--to", "new.img"]),
        format!("restored {third} to new.img: 10 MiB (10485760 bytes), 108 KiB written\n")
    );
    assert_eq!(room.read("new.img"), room.read("disk-data.img"));
    let from = format!("backups@{second}");
    assert_eq!(
        room.done(&["restore", &from, "--to", "new.img"]),
        format!("restored {second} to new.img: 10 MiB (10485760 bytes), 4 KiB written\n")
    );
    assert_eq!(
        room.json(&["restore", &from, "--to", "new.img", "--output", "json"])["written"],
        0
    );
    room.done(&["restore", "-q", &from, "--to", "new.qbm", "-O", "qbm"]);
    assert_eq!(room.read("new-data.img"), room.read("new.img"));
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        let compared = room
            .command(
                "qemu-img",
                &["compare", "-f", "raw", "-F", "raw", "new.img", "new-data.img"],
            )
            .status();
        assert!(compared.expect("it runs").success());
    } else {
        skipped("the comparison by qemu-img: it is not installed");
    }
    assert_eq!(
        room.done(&["backup", "prune", "--keep-last", "2", "backups"]),
        format!("{second} is a full one now\n{third} is a full one now\nremoved {first}\n")
    );
    assert_eq!(
        room.done(&["backup", "prune", "--keep-last", "2", "backups"]),
        "nothing to remove\n"
    );
    let list = room.json(&["backup", "list", "--output", "json", "backups"]);
    assert_eq!(list.as_array().map(Vec::len), Some(2));
}

#[test]
fn a_dry_run_of_a_prune_says_what_would_go() {
    let room = room();
    let first = name(&back_up(&room, &[]));
    room.guest_writes("disk.qbm", 0, 1);
    let second = name(&back_up(&room, &[]));
    let said = |args: &[&str]| room.done(&[&["backup", "prune", "--dry-run"], args, &["backups"]].concat());
    assert_eq!(said(&["--keep-within", "1y6m2w3d4h"]), "nothing to remove\n");
    assert_eq!(
        said(&["--keep-last", "1"]),
        format!("{second} would be a full one now\nwould remove {first}\n")
    );
    let facts: Value =
        serde_json::from_str(&said(&["--keep-monthly", "1", "--output", "json"])).expect("JSON");
    assert_eq!(
        facts,
        json!({"dry-run": true, "merged": [{"name": second, "parent": null}], "removed": [first]})
    );
    for duration in [
        "",
        "3",
        "d",
        "3x",
        "-3d",
        "99999999999999999999d",
        "9999999999999999y",
    ] {
        let given = format!("--keep-within={duration}");
        let (status, complaint) = room.fails(&["backup", "prune", &given, "backups"]);
        assert_eq!(status, 2, "{complaint}");
    }
    let list = room.json(&["backup", "list", "--output", "json", "backups"]);
    assert_eq!(list.as_array().map(Vec::len), Some(2));
}

#[test]
fn mistakes_are_told_in_words() {
    let room = room();
    room.folder("empty");
    room.write("file", b"x");
    let backup = |disk, to| ["backup", "--bitmap", "nightly", "--to", to, disk];
    refused(
        &room,
        &backup("missing.qbm", "backups"),
        "cannot open missing.qbm: No such file or directory",
    );
    refused(
        &room,
        &backup("disk-data.img", "backups"),
        "cannot open disk-data.img: not readable as JSON: expected value at line 1 column 1 (it is no QBM descriptor; \
         \"qbm create --image\" makes one for a raw image)",
    );
    refused(
        &room,
        &backup("disk.qbm", "no/backups"),
        "cannot make the folder no/backups: No such file or directory",
    );
    refused(
        &room,
        &backup("disk.qbm", "file"),
        "cannot open the folder file: Not a directory",
    );
    refused(
        &room,
        &["restore", "empty", "--to", "x.img"],
        "there is no backup in empty",
    );
    refused(
        &room,
        &["backup", "list", "nowhere"],
        "cannot open the folder nowhere: No such file or directory",
    );

    let first = name(&back_up(&room, &[]));
    room.guest_writes("disk.qbm", 0, 1);
    refused(
        &room,
        &["restore", "backups@2020", "--to", "x.img"],
        &format!("there is no backup \"2020\" in backups; the newest is {first}"),
    );
    let args: Vec<&str> = ["backup", "--since", "monday"]
        .iter()
        .chain(&TO)
        .copied()
        .collect();
    refused(
        &room,
        &args,
        &format!("cannot back up disk.qbm: there is no backup \"monday\" in backups; the newest is {first}"),
    );
    refused(
        &room,
        &["restore", "backups", "--to", "disk.qbm", "-O", "raw"],
        &format!(
            "cannot restore {first} to disk.qbm: it is a QBM descriptor, which a raw image would replace; ask for the \
             format qbm, or name the image"
        ),
    );
    refused(
        &room,
        &["backup", "prune", "--keep-last", "0", "backups"],
        "cannot prune backups: no rule says which backups to keep, and at least one backup must be kept",
    );
}

#[test]
fn what_is_missing_or_too_much_is_told_in_words() {
    let room = room();
    back_up(&room, &[]);
    for to in ["y.qbm", "x.qcow2", "x.VMDK", "disk.qbm"] {
        refused(
            &room,
            &["restore", "backups", "--to", to],
            &format!("-O must say what {to} is to be"),
        );
    }
    room.done(&["restore", "-q", "backups", "-O", "raw", "--to", "raw.qcow2"]);
    refused(
        &room,
        &["restore", "backups@", "--to", "x.img"],
        "behind the @ of \"backups@\" a backup is missing: its name, which is a time, the beginning of that, or latest",
    );
    refused(
        &room,
        &["backup", "--bitmap", "nigthly", "--to", "backups", "disk.qbm"],
        "cannot back up disk.qbm: the backups in backups were made with the bitmap \"nightly\", which the disk has; a \
         full backup begins a new series (--full)",
    );
    let bitmaps = room.json(&["bitmap", "list", "--output", "json", "disk.qbm"]);
    assert_eq!(bitmaps.as_array().map(Vec::len), Some(1), "none was added");
    room.done(&[
        "backup", "-q", "--full", "--bitmap", "weekly", "--to", "backups", "disk.qbm",
    ]);

    room.folder("empty");
    assert_eq!(room.done(&["backup", "verify", "empty"]), "no backups\n");
    for dry_run in [&["--dry-run"][..], &[]] {
        let args = [&["backup", "prune", "--keep-last", "1", "empty"], dry_run].concat();
        assert_eq!(room.done(&args), "no backups\n");
    }

    let misused = |args: &[&str]| {
        let before = room.names();
        let (code, complaint) = room.fails(args);
        assert_eq!((code, room.names()), (2, before), "{args:?}");
        complaint
    };
    for args in [["backup", "lst", "backups"], ["backup", "disk.qbm", "backups"]] {
        let complaint = misused(&args);
        let needed = [
            "--to <FOLDER>",
            "--bitmap <NAME>",
            "qbm backup list ",
            "qbm backup verify ",
            "qbm backup prune ",
        ];
        for words in needed {
            assert!(complaint.contains(words), "{args:?}: {complaint}");
        }
    }
    let args = [&["backup"], &TO[..], &["backups"]].concat();
    assert_eq!(
        misused(&args),
        "error: \"backups\" is one name too many: the folder of the backups comes behind --to\n"
    );
    let restore = ["restore", "backups", "--to", "x.img"];
    for args in [[&["backup"], &TO[..]].concat(), restore.to_vec()] {
        let complaint = misused(&[&args[..], &["--rate-limit", "0"]].concat());
        assert!(
            complaint.contains("at no bytes in a second nothing would ever be done"),
            "{complaint}"
        );
    }
}

#[test]
fn disks_and_folders_that_do_not_fit_are_told_in_words() {
    let room = room();
    let backup = |disk, to| ["backup", "--bitmap", "nightly", "--to", to, disk];
    let first = name(&back_up(&room, &[]));
    room.guest_writes("disk.qbm", 0, 1);
    room.done(&["create", "-q", "other.qbm", "1M"]);
    let here = std::fs::canonicalize(room.path("disk.qbm")).expect("its path");
    refused(
        &room,
        &backup("other.qbm", "backups"),
        &format!(
            "cannot back up other.qbm: the backups in backups are of {}; use another folder, or say that the disk was \
             moved (--moved)",
            here.display()
        ),
    );
    room.done(&["bitmap", "--disable", "disk.qbm", "nightly"]);
    refused(
        &room,
        &backup("disk.qbm", "backups"),
        "cannot back up disk.qbm: bitmap \"nightly\" is disabled, so that it does not see what is written; enable it \
         first (\"qbm bitmap --enable disk.qbm nightly\"; the next backup is a full one then)",
    );

    // Not even a folder is left behind.
    let before = room.names();
    assert_eq!(room.fails(&backup("disk.qbm", "new")).0, 1);
    assert_eq!(room.names(), before);

    let held = qbm::Disk::open(room.path("disk.qbm")).expect("it opens");
    let (code, complaint) = room.fails(&backup("disk.qbm", "backups"));
    assert_eq!((code, room.names()), (1, before));
    assert!(
        complaint.starts_with("qbm: cannot open disk.qbm: cannot lock ")
            && complaint.ends_with("(who has the disk open must back it up itself, or close it first)\n"),
        "{complaint}"
    );
    drop(held);

    let data = format!("backups/{first}-data.img");
    let mut spoilt = room.read(&data);
    spoilt[4096] ^= 1;
    room.write(&data, &spoilt);
    let output = room.run(&["backup", "verify", "backups"]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        complaint,
        "qbm: 1 of 1 backups in backups cannot be restored as they were made\n"
    );
}

#[test]
fn a_command_line_that_makes_no_sense() {
    let room = room();
    for args in [
        &["backup", "disk.qbm"][..],
        &["backup", "disk.qbm", "--to", "x"],
        &["backup", "prune", "backups"],
        &["restore", "backups"],
        &[
            "backup", "--full", "--since", "x", "--bitmap", "b", "--to", "x", "disk.qbm",
        ],
    ] {
        assert_eq!(room.fails(args).0, 2, "{args:?}");
    }
}

//! `qbm check`, `qbm info` and `-U` as their users meet them: on sound disks, on disks in use, and on broken ones.

use qbm::{BitmapPolicy, Disk, OpenOptions, WriteFlags};
use serde_json::{Value, json};

use super::room::{Room, text};

/// A disk with a bitmap, and something dirty in it, closed.
fn room() -> Room {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "b"]);
    room.guest_writes("disk.qbm", 0, 1);
    room
}

/// The exit code, and what was printed.
fn check(room: &Room, args: &[&str]) -> (i32, String) {
    let mut all = vec!["check"];
    all.extend(args);
    let output = room.run(&all);
    assert_eq!(text(&output.stderr), "", "{all:?}");
    (output.status.code().expect("an exit"), text(&output.stdout))
}

fn findings(room: &Room, args: &[&str]) -> (i32, Value) {
    let mut all = vec!["--output", "json"];
    all.extend(args);
    let (code, said) = check(room, &all);
    (code, serde_json::from_str(&said).expect("JSON"))
}

fn written_by_others(room: &Room) {
    let mut image = room.read("disk-data.img");
    image[4096] ^= 1;
    room.write("disk-data.img", &image);
}

#[test]
fn a_sound_disk() {
    let room = room();
    let sound = (0, "disk.qbm: no errors were found\n".to_owned());
    assert_eq!(check(&room, &["disk.qbm"]), sound);
    assert_eq!(check(&room, &["-r", "all", "disk.qbm"]), sound);
    assert_eq!(check(&room, &["-q", "disk.qbm"]), (0, String::new()));
    assert_eq!(
        findings(&room, &["disk.qbm"]),
        (
            0,
            json!({"filename": "disk.qbm", "format": "qbm", "check-errors": 0, "findings": []})
        )
    );
}

#[test]
fn leaks_are_code_3_and_go() {
    let room = room();
    room.write("disk-old.bitmap", b"");
    let words = "disk-old.bitmap is named by no descriptor: perhaps a crash has left it behind";
    assert_eq!(
        check(&room, &["disk.qbm"]),
        (
            3,
            format!(
                "leak: {words}\n\
                 disk.qbm: 0 corruptions, 1 leak, 0 things that could not be checked or repaired\n\
                 to repair: qbm check -r all disk.qbm\n"
            )
        )
    );
    let (code, report) = findings(&room, &["-r", "leaks", "disk.qbm"]);
    assert_eq!(code, 0);
    assert_eq!(
        report,
        json!({
            "filename": "disk.qbm", "format": "qbm", "check-errors": 0, "leaks-fixed": 1,
            "findings": [{
                "kind": "leftover", "severity": "leak", "subject": "disk-old.bitmap", "message": words, "fixed": true,
            }],
        })
    );
    assert!(!room.names().contains(&"disk-old.bitmap".to_owned()));
}

/// What is repaired needs no advice any more.
#[test]
fn what_was_repaired_is_counted() {
    let room = room();
    std::fs::remove_file(room.path("disk-b.bitmap")).expect("removed");
    room.write("disk-old.bitmap", b"");
    let (code, said) = check(&room, &["-r", "dirty", "disk.qbm"]);
    assert_eq!(code, 3);
    let words = "QBM.bitmaps[\"b\"].file: cannot open disk-b.bitmap: No such file or directory";
    assert!(
        said.starts_with(&format!("repaired corruption: {words}\nleak: ")),
        "{said}"
    );
    let last = "disk.qbm: 0 corruptions, 1 leak, 0 things that could not be checked or repaired; 1 corruption repaired\n";
    assert!(said.contains(last), "{said}");
    std::fs::remove_file(room.path("disk.state")).expect("removed");
    let (code, said) = check(&room, &["-r", "all", "disk.qbm"]);
    assert_eq!(code, 0);
    assert!(!said.contains("-r all"), "{said}");
    assert!(
        said.ends_with("disk.qbm: 1 corruption and 1 leak repaired; no errors are left\n"),
        "{said}"
    );
    let (_, said) = check(&room, &["-r", "all", "disk.qbm"]);
    assert_eq!(said, "disk.qbm: no errors were found\n");
}

#[test]
fn a_disk_without_a_state_file_is_a_note_and_code_0() {
    let room = Room::new();
    room.done(&["create", "-q", "-o", "state=off", "disk.qbm", "1M"]);
    let disk = OpenOptions::new()
        .no_state(true)
        .open(room.path("disk.qbm"))
        .expect("it opens");
    disk.bitmap_add("b", qbm::AddBitmap::default()).expect("a bitmap");
    disk.close().expect("closed");
    let words = "the disk has no state file: a power cut can cost its bitmaps bits, and foreign writes go unnoticed; \
                 the next open for writing makes one, unless it is told not to";
    for args in [&["disk.qbm"][..], &["-r", "all", "disk.qbm"]] {
        let (code, said) = check(&room, args);
        assert_eq!(
            (code, said.lines().next()),
            (0, Some(&*format!("note: {words}"))),
            "{said}"
        );
        let (code, report) = findings(&room, args);
        assert_eq!(
            (code, &report["findings"]),
            (
                0,
                &json!([{
                    "kind": "unprotected", "severity": "note", "subject": "", "message": words, "fixed": false,
                }])
            )
        );
    }
}

#[test]
fn foreign_writes_are_code_2_until_the_user_chooses() {
    for (choice, dirty) in [("dirty", 1 << 20), ("trust", 65536)] {
        let room = room();
        written_by_others(&room);
        let (code, said) = check(&room, &["disk.qbm"]);
        assert_eq!(code, 2);
        assert!(
            said.starts_with("corruption: disk-data.img was written to by others (it was last changed at "),
            "{said}"
        );
        assert!(
            said.contains("-r dirty sets every bit, -r trust takes the image as it is"),
            "{said}"
        );
        assert!(
            said.ends_with("\nto repair: qbm check -r dirty disk.qbm (or -r trust)\n"),
            "{said}"
        );
        let said = room.done(&["info", "disk.qbm"]);
        assert!(
            said.contains("recording, inconsistent; what is dirty is unknown\n"),
            "{said}"
        );
        assert!(
            said.ends_with(
                "inconsistent bitmaps may lack changes: \"qbm check\" says why, and what repairs them\n"
            ),
            "{said}"
        );
        let (code, report) = findings(&room, &["-r", choice, "disk.qbm"]);
        assert_eq!((code, &report["corruptions-fixed"]), (0, &json!(1)), "{report}");
        let list = room.json(&["bitmap", "list", "--output", "json", "disk.qbm"]);
        assert_eq!(list[0]["count"], json!(dirty));
    }
}

#[test]
fn what_cannot_be_checked_is_code_1() {
    let room = room();
    room.write("raw.img", &[0; 512]);
    room.write("cut.qbm", b"{\"QBM\": {");
    assert_eq!(
        room.fails(&["check", "none.qbm"]),
        (
            1,
            "qbm: cannot check none.qbm: No such file or directory\n".to_owned()
        )
    );
    let (code, said) = room.fails(&["check", "raw.img"]);
    assert_eq!(code, 1);
    assert!(
        said.ends_with("\"qbm create --image\" makes one for a raw image)\n"),
        "{said}"
    );
    let (code, said) = check(&room, &["cut.qbm"]);
    assert_eq!(code, 2);
    assert!(said.starts_with("corruption: not readable as JSON"), "{said}");
}

/// A file that nobody can open, not even root.
fn unopenable(room: &Room, name: &str) {
    std::fs::remove_file(room.path(name)).expect("removed");
    std::os::unix::fs::symlink(name, room.path(name)).expect("a link");
}

/// What could not be looked at weighs most, then corruptions, then leaks.
#[test]
fn what_was_not_checked_or_repaired_is_code_1_whatever_else_there_is() {
    let room = room();
    room.done(&["bitmap", "--add", "disk.qbm", "c"]);
    let disk = Disk::open(room.path("disk.qbm")).expect("it opens");
    disk.write(&[1], 1 << 19, WriteFlags::empty()).expect("written");
    disk.die();
    let sound = room.read("disk-b.bitmap");
    room.write("disk-old.bitmap", b"");
    assert_eq!(check(&room, &["disk.qbm"]).0, 3);
    std::fs::remove_file(room.path("disk-c.bitmap")).expect("removed");
    assert_eq!(check(&room, &["disk.qbm"]).0, 2);
    unopenable(&room, "disk-b.bitmap");
    let (code, said) = check(&room, &["disk.qbm"]);
    assert_eq!(code, 1);
    let key = "QBM.bitmaps[\"b\"].file: cannot open disk-b.bitmap: ";
    assert!(said.starts_with(&format!("error: {key}")), "{said}");
    let last = "disk.qbm: 1 corruption, 1 leak, 1 thing that could not be checked or repaired\n\
                to repair: qbm check -r dirty disk.qbm\n";
    assert!(said.ends_with(last), "{said}");

    // It cannot be recovered either.
    let (code, report) = findings(&room, &["-r", "all", "disk.qbm"]);
    assert_eq!((code, &report["check-errors"]), (1, &json!(2)), "{report:#}");
    let found = |kind: &str| {
        let all = report["findings"].as_array().expect("findings");
        all.iter().find(|it| it["kind"] == json!(kind)).cloned()
    };
    let failed = found("repair-failed").expect("that it could not be repaired");
    assert_eq!(failed["severity"], json!("error"));
    let words = failed["message"].as_str().expect("words");
    assert!(
        words.starts_with(&format!("it was not repaired: cannot open disk.qbm: {key}")),
        "{words}"
    );
    assert_eq!(found("not-closed").expect("still")["fixed"], json!(false));

    std::fs::remove_file(room.path("disk-b.bitmap")).expect("removed");
    room.write("disk-b.bitmap", &sound);
    assert_eq!(
        check(&room, &["-r", "all", "disk.qbm"]).0,
        1,
        "c is missing still"
    );
    room.write("disk-c.bitmap", &sound);
    assert_eq!(check(&room, &["-r", "all", "disk.qbm"]).0, 0);
}

#[test]
fn a_checksum_is_compared() {
    let room = room();
    let (code, said) = check(&room, &["--checksum", "disk.qbm"]);
    assert_eq!(code, 0);
    assert!(said.starts_with("note: the descriptor has no checksum"), "{said}");
    let descriptor = String::from_utf8(room.read("disk.qbm")).expect("UTF-8");
    let sum = "0".repeat(64);
    let with = descriptor.replace(
        "\"format\": \"raw\"",
        &format!("\"format\": \"raw\", \"checksum\": \"sha256:{sum}\""),
    );
    room.write("disk.qbm", with.as_bytes());
    assert_eq!(check(&room, &["disk.qbm"]).0, 0);
    let (code, said) = check(&room, &["--checksum", "disk.qbm"]);
    assert_eq!(code, 2);
    assert!(said.contains("the image was changed, or is damaged"), "{said}");
}

/// Whoever only reads may look at a disk in use; who writes, or repairs, hears what to do.
#[test]
fn a_disk_in_use_is_shared_by_force_only() {
    let room = room();
    let disk = Disk::open(room.path("disk.qbm")).expect("it opens");
    disk.write(&[1; 512], 1 << 19, WriteFlags::empty())
        .expect("written");
    for args in [
        &["info", "disk.qbm"][..],
        &["map", "disk.qbm"],
        &["bitmap", "list", "disk.qbm"],
        &["bitmap", "dump", "disk.qbm", "b"],
    ] {
        let (code, said) = room.fails(args);
        assert_eq!(code, 1);
        assert!(said.contains("cannot lock disk.state for reading"), "{said}");
        assert!(said.ends_with(" (-U reads it all the same)\n"), "{said}");
        let mut forced = args.to_vec();
        forced.push("-U");
        room.done(&forced);
        forced.pop();
        forced.push("--force-share");
        room.done(&forced);
    }
    let (code, said) = room.fails(&["check", "disk.qbm"]);
    assert_eq!(code, 1);
    assert!(
        said.ends_with(" (-U checks it all the same, as it is in passing)\n"),
        "{said}"
    );
    let (code, said) = check(&room, &["-U", "disk.qbm"]);
    assert_eq!(code, 0);
    let (first, rest) = said.split_once(", ").expect("two halves");
    assert!(
        first.starts_with(&format!(
            "note: the disk is in use by process {} (",
            std::process::id()
        )),
        "{said}"
    );
    assert!(
        rest.starts_with("and whoever opens it for writing would recover it, were that killed now\n"),
        "{said}"
    );
    let (_, report) = findings(&room, &["-U", "disk.qbm"]);
    let kinds: Vec<&Value> = report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .map(|it| &it["kind"])
        .collect();
    assert_eq!(kinds, [&json!("in-use")]);
    let (_, said) = room.fails(&["check", "-r", "all", "disk.qbm"]);
    assert!(
        said.ends_with(" (a repair needs the disk for itself)\n"),
        "{said}"
    );
    let (_, said) = room.fails(&["resize", "disk.qbm", "2M"]);
    assert!(said.contains("(close the disk there first, "), "{said}");

    let said = room.done(&["info", "-U", "disk.qbm"]);
    assert!(
        said.contains(
            "state file: disk.state (in use; 1 active region of 64 MiB; bitmaps write-through)\n\
             if its user were killed now, as shown here: "
        ),
        "{said}"
    );
    let facts = room.json(&["info", "-U", "--output", "json", "disk.qbm"]);
    let state = &facts["format-specific"]["data"]["state"];
    assert_eq!(state["closed"], json!(false));
    assert_eq!(state["active-regions"], json!(1));
    assert_eq!(state["recovery"], Value::Null, "none is due: {facts:#}");
    assert!(state["if-killed"].is_object(), "{facts:#}");
    disk.close().expect("closed");
    assert!(
        room.done(&["info", "disk.qbm"])
            .contains("state file: disk.state (closed; ")
    );
}

/// Which bitmaps have how much more, and why: to the letter, and without changing anything.
#[test]
fn info_says_what_recovery_would_do() {
    let room = Room::new();
    room.done(&["create", "-q", "-o", "region_size=1M", "disk.qbm", "4M"]);
    for name in ["b", "fine", "stopped"] {
        let granularity = if name == "fine" { "32k" } else { "64k" };
        room.done(&["bitmap", "--add", "-g", granularity, "disk.qbm", name]);
    }
    room.done(&["bitmap", "--disable", "disk.qbm", "stopped"]);
    room.guest_writes("disk.qbm", (2 << 20) + 5000, 1);
    let killed = |policy| {
        let options = OpenOptions::new().bitmap_policy(policy);
        let disk = options.open(room.path("disk.qbm")).expect("it opens");
        disk.write(&[1; 512], 5 << 19, WriteFlags::empty())
            .expect("written");
        disk.die();
    };
    killed(BitmapPolicy::Lazy);
    let recovery = |args: &[&str]| {
        let facts = room.json(&[&["info", "--output", "json"], args].concat());
        let mut state = facts["format-specific"]["data"]["state"].clone();
        let recovery = state["recovery"].take();
        (state, recovery)
    };
    for _ in 0..2 {
        let (state, recovery) = recovery(&["disk.qbm"]);
        assert_eq!(
            state,
            json!({
                "file": "disk.state", "usable": true, "closed": false, "in-use": false, "policy": "lazy",
                "region-size": 1 << 20, "active-regions": 1, "recovery": null, "if-killed": null,
            })
        );
        assert_eq!(
            recovery,
            json!({
                "exact": false, "reason": "the bitmaps were saved lazily",
                "added": [
                    {"bitmap": "b", "bytes": (1 << 20) - 65536},
                    {"bitmap": "fine", "bytes": (1 << 20) - 32768},
                ],
            })
        );
        let said = room.done(&["info", "disk.qbm"]);
        let part = "state file: disk.state (not closed; 1 active region of 1 MiB; bitmaps lazy)\n\
                    recovery: due at the next open for writing, and shown here as done: the bitmaps were saved lazily\n    \
                    960 KiB more dirty in \"b\"\n    992 KiB more dirty in \"fine\"\nbitmaps:\n";
        assert!(said.contains(part), "{said}");
        let whole = "\"b\": dirty, granularity 64 KiB, recording; 1 MiB (1048576 bytes) dirty\n";
        assert!(said.contains(whole), "{said}");
    }
    room.done(&["check", "-q", "-r", "all", "disk.qbm"]);
    assert_eq!(recovery(&["disk.qbm"]).1, Value::Null);

    // Where the kernel tells that nothing was lost, nothing is added.
    killed(BitmapPolicy::WriteThrough);
    let (_, recovery) = recovery(&["disk.qbm"]);
    let said = room.done(&["info", "disk.qbm"]);
    let why = match &recovery["reason"] {
        Value::Null => "nothing was lost, the bitmaps are exact",
        why => why.as_str().expect("words"),
    };
    let line =
        format!("recovery: due at the next open for writing, and shown here as done: {why}\nbitmaps:\n");
    assert!(said.contains(&line), "{said}");
    assert_eq!(
        recovery["exact"],
        json!(recovery["reason"].is_null()),
        "{recovery}"
    );
    assert_eq!(recovery["added"], json!([]), "the whole region is dirty already");
}

#[test]
fn create_takes_qemu_imgs_options() {
    let room = Room::new();
    room.done(&["create", "-q", "-o", "state=off", "bare.qbm", "1M"]);
    assert!(!room.names().contains(&"bare.state".to_owned()));
    assert!(
        room.done(&["info", "bare.qbm"])
            .contains("state file: none (a power cut can cost bitmaps bits; ")
    );
    let options = "preallocation=falloc,region_size=1M";
    room.done(&["create", "-q", "-o", options, "-o", "state=on", "disk.qbm", "1M"]);
    assert!(room.allocated("disk-data.img") >= 1 << 20);
    assert!(
        room.done(&["info", "disk.qbm"])
            .contains("state file: disk.state (closed; regions of 1 MiB)\n")
    );
    room.done(&[
        "create",
        "-q",
        "-b",
        "disk.qbm",
        "-F",
        "qbm",
        "-o",
        "region_size=4M",
        "top.qbm",
    ]);
    let twice = [
        "create",
        "--preallocation",
        "off",
        "-o",
        "preallocation=full",
        "x.qbm",
        "1M",
    ];
    let (code, said) = room.fails(&twice);
    assert_eq!(code, 2);
    assert!(said.contains("are the same; give one of them"), "{said}");
}

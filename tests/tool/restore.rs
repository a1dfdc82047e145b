//! `qbm restore -O qcow2`: QEMU finds nothing wrong with what is made, and in it what the raw restore has.

use std::process::Command;

use serde_json::Value;

use super::errors::refused;
use super::room::{Room, text};
use super::skip::skipped;

/// Where there is no qemu-img, says what is not tested.
fn have_qemu() -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        skipped("whether QEMU finds a restored qcow2 sound: qemu-img is not installed");
    }
    there
}

fn qemu(room: &Room, args: &[&str]) -> String {
    let output = room.command("qemu-img", args).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    text(&output.stdout)
}

fn qemu_facts(room: &Room, verb: &str, file: &str) -> Value {
    let said = qemu(room, &[verb, "-f", "qcow2", "--output", "json", file]);
    serde_json::from_str(&said).expect("JSON")
}

/// It is a clean qcow2 with the content of the raw image `expected`.
fn assert_is(room: &Room, file: &str, expected: &str) {
    let check = qemu_facts(room, "check", file);
    for wrong in ["corruptions", "leaks", "check-errors"] {
        assert_eq!(check[wrong].as_u64().unwrap_or(0), 0, "{check}");
    }
    let info = qemu_facts(room, "info", file);
    assert_eq!(info["dirty-flag"], false, "{info}");
    assert_eq!(
        info["virtual-size"].as_u64(),
        Some(room.length(expected)),
        "{info}"
    );
    qemu(room, &["compare", "-f", "raw", "-F", "qcow2", expected, file]);
}

/// A chain of three backups, of which the last is restored to `raw.img`; says its name.
fn backed_up(room: &Room) -> String {
    room.done(&["create", "-q", "disk.qbm", "10M"]);
    let backup = [
        "backup", "--output", "json", "--bitmap", "nightly", "--to", "backups", "disk.qbm",
    ];
    let mut last = Value::Null;
    for (offset, len) in [(100_000, 300_000), (5_000_000, 100_000), (200_000, 1_000)] {
        room.guest_writes("disk.qbm", offset, len);
        last = room.json(&backup);
    }
    room.done(&["restore", "-q", "backups", "--to", "raw.img"]);
    last["name"].as_str().expect("a name").to_owned()
}

fn as_qcow2<'a>(to: &'a str, from: &'a str) -> [&'a str; 8] {
    ["restore", "--output", "json", "-O", "qcow2", "--to", to, from]
}

#[test]
fn a_new_qcow2_has_what_the_backup_has_and_holes_take_nothing() {
    let room = Room::new();
    let last = backed_up(&room);
    let mut names = room.names();
    let facts = room.json(&as_qcow2("new.qcow2", "backups"));
    assert_eq!(facts["length"], 10 << 20);
    // Of 400,000 bytes that are no zeros, in clusters of 64 KiB, and a few clusters of tables.
    assert!(
        room.length("new.qcow2") <= (8 + 5) << 16,
        "{}",
        room.length("new.qcow2")
    );
    if have_qemu() {
        assert_is(&room, "new.qcow2", "raw.img");
    }
    let compared = room.done(&["compare", "-f", "qcow2", "-F", "raw", "new.qcow2", "raw.img"]);
    assert_eq!(compared, "Images are identical.\n");
    names.push("new.qcow2".to_owned());
    names.sort();
    assert_eq!(room.names(), names, "something is left beside it");

    room.write("odd.img", &[7; 1000]);
    room.done(&["create", "-q", "--image", "odd.img", "odd.qbm"]);
    room.done(&["backup", "-q", "--bitmap", "nightly", "--to", "odd", "odd.qbm"]);
    let points = room.json(&["backup", "list", "--output", "json", "odd"]);
    let odd = points[0]["name"].as_str().expect("a name");
    refused(
        &room,
        &as_qcow2("odd.qcow2", "odd"),
        &format!(
            "cannot restore {odd} to odd.qcow2: a qcow2 cannot be 1000 bytes long: it must be a multiple of 512"
        ),
    );
    let data = format!("backups/{last}-data.img");
    let mut spoilt = room.read(&data);
    spoilt[200_000] ^= 1;
    room.write(&data, &spoilt);
    let before = room.names();
    let (code, complaint) = room.fails(&as_qcow2("spoilt.qcow2", "backups"));
    assert_eq!((code, room.names()), (1, before));
    assert!(complaint.contains("has the checksum"), "{complaint}");
}

#[test]
fn of_a_qcow2_that_exists_only_what_differs_is_written() {
    if !have_qemu() {
        return;
    }
    let room = Room::new();
    let last = backed_up(&room);
    qemu(&room, &["create", "-q", "-f", "raw", "base.raw", "10M"]);
    room.write("base.raw", &vec![9; 10 << 20]);
    let backing = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        "over.qcow2",
    ];
    qemu(&room, &backing);
    qemu(
        &room,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "longer.qcow2",
            "20M",
        ],
    );
    qemu(&room, &["create", "-q", "-f", "qcow2", "shorter.qcow2", "1M"]);
    for file in ["over.qcow2", "longer.qcow2", "shorter.qcow2"] {
        room.done(&as_qcow2(file, "backups"));
        assert_is(&room, file, "raw.img");
        assert_eq!(room.json(&as_qcow2(file, "backups"))["written"], 0);
        // One block of it differs.
        let there = room.read(file);
        let at = there
            .windows(4096)
            .position(|bytes| bytes == [0x5a; 4096])
            .expect("data");
        let mut other = there.clone();
        other[at] = 0;
        room.write(file, &other);
        assert_eq!(room.json(&as_qcow2(file, "backups"))["written"], 4096, "{file}");
        assert_is(&room, file, "raw.img");
    }
    let base = room.read("base.raw");
    assert!(base.iter().all(|byte| *byte == 9));

    // What is none is refused, and stays.
    room.write("none.qcow2", b"hello");
    refused(
        &room,
        &as_qcow2("none.qcow2", "backups"),
        &format!(
            "cannot restore {last} to none.qcow2: none.qcow2: it is no qcow2 image: it does not begin with QFI\\xfb"
        ),
    );
    assert_eq!(room.read("none.qcow2"), b"hello");
    // Damage is found before anything is written.
    let data = format!("backups/{last}-data.img");
    let mut spoilt = room.read(&data);
    spoilt[200_000] ^= 1;
    room.write(&data, &spoilt);
    qemu(&room, &["create", "-q", "-f", "qcow2", "mine.qcow2", "10M"]);
    let before = room.read("mine.qcow2");
    room.fails(&as_qcow2("mine.qcow2", "backups"));
    assert!(room.read("mine.qcow2") == before);
}

#[test]
fn a_backup_that_cannot_be_read_is_not_passed_over_for_another() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    let names: Vec<String> = (0..2)
        .map(|_| {
            let args = [
                "backup", "--output", "json", "--bitmap", "nightly", "--to", "backups", "disk.qbm",
            ];
            room.json(&args)["name"].as_str().expect("a name").to_owned()
        })
        .collect();
    let [first, second] = &names[..] else {
        panic!("{names:?}")
    };
    let record = |name: &str| format!("backups/{name}.qbm");
    let (of_first, of_second) = (room.read(&record(first)), room.read(&record(second)));
    let restore = |from: &str| room.fails(&["restore", from, "--to", "new.img"]).1;
    room.write(&record(second), b"{");
    let complaint = restore("backups");
    let expected = format!(
        "qbm: which backup is the latest is not known ({first} is the newest of the others): the backup {second} cannot be \
         read: "
    );
    assert!(complaint.starts_with(&expected), "{complaint}");
    let complaint = restore(&format!("backups@{second}"));
    assert!(complaint.contains("cannot be read"), "{complaint}");
    room.done(&["restore", "-q", &format!("backups@{first}"), "--to", "first.img"]);

    room.write(&record(second), &of_second);
    room.write(&record(first), b"{");
    let complaint = restore("backups");
    let expected =
        format!("the backup {second} needs the backup {first}: the backup {first} cannot be read: ");
    assert!(complaint.contains(&expected), "{complaint}");

    room.write(&record(second), b"{");
    let complaint = restore("backups");
    assert!(complaint.contains("cannot be read"), "{complaint}");
    room.write(&record(first), &of_first);
    room.write(&record(second), &of_second);
    room.done(&["restore", "-q", "backups", "--to", "new.img"]);
}

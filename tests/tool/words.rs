//! What the tool says, to the letter, of disks that somebody has spoilt.

use super::errors::refused;
use super::room::{Room, text};

/// `disk.qbm` of 1 MiB with the bitmap `b`, closed.
fn room_with_a_bitmap() -> Room {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "b"]);
    room
}

#[test]
fn info_says_what_is_wrong_with_a_state_file() {
    let room = room_with_a_bitmap();
    let said = |why: &str| {
        let said = room.done(&["info", "disk.qbm"]);
        assert!(said.contains(why), "{said}");
    };
    let due = "recovery: due at the next open for writing, and shown here as done: ";
    room.write("disk.state", b"");
    said(&format!(
        "state file: disk.state (damaged)\n{due}disk.state is no valid state file: "
    ));
    std::fs::remove_file(room.path("disk.state")).expect("removed");
    said(&format!(
        "state file: disk.state (missing)\n{due}QBM.state.file: cannot open disk.state: No such file or directory\n"
    ));
}

/// What repairs it depends on whether the disk was opened for writing since, so that only a check can say.
#[test]
fn whatever_meets_an_inconsistent_bitmap_names_the_check() {
    let room = room_with_a_bitmap();
    room.write("disk-data.img", &vec![1; 1 << 20]);
    let hint = "(\"qbm check\" says why, and what repairs it)";
    let what = "bitmap \"b\" is inconsistent (changes may be missing in it): it cannot be";
    let line = "inconsistent bitmaps may lack changes: \"qbm check\" says why, and what repairs them\n";
    let said = room.done(&["info", "disk.qbm"]);
    assert!(said.ends_with(line), "{said}");
    for args in [
        &["bitmap", "dump", "disk.qbm", "b"][..],
        &["map", "--bitmap", "b", "disk.qbm"],
    ] {
        refused(
            &room,
            args,
            &format!("disk.qbm: {what} read, only removed or repaired {hint}"),
        );
    }
    refused(
        &room,
        &["bitmap", "--clear", "disk.qbm", "b"],
        &format!("disk.qbm: cannot clear bitmap \"b\": {what} cleared, only removed or repaired {hint}"),
    );
}

#[test]
fn a_name_that_no_file_can_have() {
    let room = Room::new();
    let name = format!("{}.qbm", "long".repeat(80));
    refused(
        &room,
        &["create", &name, "1M"],
        &format!("cannot create {name}: cannot find out whether there is a file {name}: File name too long"),
    );
}

/// Whoever makes a descriptor chooses the names in it, and another reads them on a terminal.
#[test]
fn a_name_writes_nothing_to_the_terminal_but_itself() {
    const EVIL: &str = "d\u{1b}[31m\nforged\u{9b}2J.img";
    let shown = "d\\u{1b}[31m\\nforged\\u{9b}2J.img";
    let room = Room::new();
    room.write(EVIL, &[1; 4096]);
    let plain = |said: &str, times: usize| {
        let bad = said.chars().any(|it| it.is_control() && it != '\n');
        assert!(!bad && !said.contains("\nforged"), "{said:?}");
        assert_eq!(said.matches(shown).count(), times, "{said}");
    };
    plain(&room.done(&["create", "--image", EVIL, "disk.qbm"]), 1);
    plain(&room.done(&["create", "-b", EVIL, "-F", "raw", "top.qbm"]), 0);
    plain(&room.done(&["info", "disk.qbm"]), 1);
    plain(&room.done(&["info", "--backing-chain", "top.qbm"]), 2);
    plain(&room.done(&["map", "top.qbm"]), 1);
    plain(&room.done(&["commit", "top.qbm"]), 1);
    plain(
        &room.done(&["convert", "-O", "raw", "disk.qbm", &format!("2{EVIL}")]),
        1,
    );
    room.done(&["create", "-q", &format!("{EVIL}.qbm"), "1M"]);
    plain(&room.done(&["resize", &format!("{EVIL}.qbm"), "2M"]), 1);
    plain(&room.done(&["map", "--picture", &format!("{EVIL}.qbm")]), 1);
    std::fs::remove_file(room.path(EVIL)).expect("removed");
    for args in [&["info", "disk.qbm"][..], &["compare", "disk.qbm", "top.qbm"]] {
        plain(&text(&room.run(args).stderr), 1);
    }
    let (_, said) = room.fails(&["resize", &format!("{EVIL}.qbm"), "1M"]);
    plain(&said, 1);
}

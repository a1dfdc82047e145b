//! qemu-img's letters: what is taken, what is refused in words, and what a senseless command line exits with.

use qbm::{Disk, WriteFlags};

use super::room::{Room, text};

/// A base, and an overlay on it.
fn overlay() -> Room {
    let room = Room::new();
    room.write("base.img", &[1; 10_000]);
    room.done(&["create", "-q", "-b", "base.img", "-F", "raw", "clone.qbm"]);
    room
}

#[test]
fn a_descriptor_may_be_said_to_be_one() {
    let room = overlay();
    for args in [
        &["info", "-f", "qbm", "clone.qbm"][..],
        &["map", "-f", "qbm", "clone.qbm"],
        &["check", "-f", "qbm", "clone.qbm"],
        &["resize", "-f", "qbm", "clone.qbm", "200k"],
        &["bitmap", "-f", "qbm", "--add", "clone.qbm", "b"],
        &["commit", "-f", "qbm", "-p", "clone.qbm"],
        &["rebase", "-f", "qbm", "-p", "-b", "", "clone.qbm"],
    ] {
        room.done(args);
        let other: Vec<&str> = args
            .iter()
            .map(|arg| if *arg == "qbm" { "raw" } else { arg })
            .collect();
        let (code, complaint) = room.fails(&other);
        assert_eq!(code, 2, "{other:?}");
        assert!(
            complaint.contains("what is named here is a descriptor, which is always qbm"),
            "{other:?}: {complaint}"
        );
    }
}

#[test]
fn what_there_is_not_is_told_in_words() {
    let room = overlay();
    let cache = "-t: there is one mode, through the page cache, and all is durable at the end";
    let both = "-t and -T: there is one mode, through the page cache, and all is durable at the end";
    let rate = "-r: there is no limit of the rate (ionice and cgroups have one)";
    for (args, line) in [
        (&["commit", "-t", "none", "clone.qbm"][..], cache),
        (
            &["commit", "-d", "clone.qbm"],
            "-d: an overlay is always emptied, since its backing has it all then",
        ),
        (&["commit", "-r", "1M", "clone.qbm"], rate),
        (&["rebase", "-t", "none", "-b", "", "clone.qbm"], both),
        (&["rebase", "-T", "none", "-b", "", "clone.qbm"], both),
        (
            &["rebase", "-d", "-b", "", "clone.qbm"],
            "-d: it is no option of a rebase",
        ),
        (&["rebase", "-r", "1M", "-b", "", "clone.qbm"], rate),
        (
            &["rebase", "-c", "-b", "", "clone.qbm"],
            "-c: what is written is not compressed",
        ),
        (
            &["rebase", "-U", "-b", "", "clone.qbm"],
            "-U: a rebase writes, and needs the disk for itself",
        ),
        (
            &["create", "-u", "-b", "no.img", "-F", "raw", "new.qbm", "1M"],
            "-u: a backing must be there when an overlay is made on it; \"qbm rebase -u\" names another one later",
        ),
        (
            &[
                "convert",
                "-o",
                "cluster_size=4k",
                "-f",
                "raw",
                "in.img",
                "out.img",
            ],
            "cluster_size is of qcow2 images, not of raw ones",
        ),
        (
            &["create", "-f", "qbm", "new.qbm", "1M"],
            "a new disk is always qbm; -f is for --image",
        ),
        (
            &[
                "create",
                "-o",
                "preallocation=full",
                "--preallocation",
                "off",
                "new.qbm",
                "1M",
            ],
            "--preallocation and -o preallocation are the same; give one of them",
        ),
        (
            &["rebase", "-b", "base.img", "clone.qbm"],
            "cannot rebase clone.qbm: -F must say what the backing is; it is never guessed",
        ),
        (
            &["rebase", "-b", "", "-F", "raw", "clone.qbm"],
            "cannot rebase clone.qbm: there is no format of no backing; leave -F out",
        ),
        (
            &["rebase", "-u", "clone.qbm"],
            "cannot rebase clone.qbm: neither -b nor -F says what is to change",
        ),
    ] {
        let before = room.names();
        let failed = room.fails(args);
        assert_eq!(failed, (2, format!("qbm: {line}\n")), "{args:?}");
        assert_eq!(room.names(), before, "{args:?} left something behind");
    }
}

#[test]
fn a_name_that_speaks_of_another_format_is_noted() {
    let room = Room::new();
    room.write("base.QCOW2", &[1; 4096]);
    let output = room.run(&["create", "-b", "base.QCOW2", "-F", "raw", "clone.qbm"]);
    assert!(output.status.success());
    assert_eq!(
        text(&output.stderr),
        "qbm: note: base.QCOW2 is taken as raw: what is shown are the bytes of that file itself; if it is a qcow2, \
         \"qbm rebase -u -F qcow2 clone.qbm\" says so\n"
    );
    room.write("plain.img", &[1; 4096]);
    room.done(&["create", "-b", "plain.img", "-F", "raw", "other.qbm"]);
    room.done(&["create", "-q", "-b", "base.QCOW2", "-F", "raw", "quiet.qbm"]);
}

#[test]
fn a_backing_that_is_in_use_is_told_of() {
    let room = Room::new();
    room.done(&["create", "-q", "base.qbm", "1M"]);
    let disk = Disk::open(room.path("base.qbm")).expect("it opens");
    let said = room.done(&["create", "-b", "base.qbm", "-F", "qbm", "clone.qbm"]);
    assert_eq!(
        said,
        "created clone.qbm, which cannot be opened until base.qbm is closed: it is open for writing elsewhere\n"
    );
    disk.close().expect("it closes");
    room.done(&["info", "clone.qbm"]);
}

#[test]
fn a_disk_in_use_is_not_called_closed() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "b"]);
    let state = |letters: &[&str]| {
        let said = room.done(&[&["info"], letters, &["disk.qbm"]].concat());
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("state file: disk.state "));
        line.expect("a line").to_owned()
    };
    assert_eq!(state(&["-U"]), "(closed; regions of 64 MiB)");
    let disk = Disk::open(room.path("disk.qbm")).expect("it opens");
    assert_eq!(
        state(&["-U"]),
        "(in use, and not written to since it was opened; regions of 64 MiB)"
    );
    disk.write(&[1; 512], 0, WriteFlags::empty()).expect("written");
    assert!(
        state(&["-U"]).starts_with("(in use; 1 active region of 64 MiB; bitmaps write-through)"),
        "{}",
        state(&["-U"])
    );
    disk.close().expect("it closes");
    assert_eq!(state(&[]), "(closed; regions of 64 MiB)");
}

#[test]
fn help_is_written_for_people() {
    let room = Room::new();
    for verb in ["commit", "rebase", "check", "create", "convert"] {
        let help = room.done(&[verb, "--help"]);
        assert!(!help.contains('\\'), "{verb}: {help}");
    }
    // A line of the list that was broken by the terminal's end would begin at its very left.
    let help = room.done(&["check", "--help"]);
    let list = help
        .lines()
        .skip_while(|line| *line != "What -r repairs:")
        .skip(1);
    for line in list.take_while(|line| !line.is_empty()) {
        assert!(line.starts_with("  "), "{line:?}");
    }
}

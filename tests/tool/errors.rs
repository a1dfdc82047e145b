//! Every mistake that a user can make: one line that says what, where and why, and nothing left behind.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Stdio;

use super::room::{Room, TOOL, text};

/// Fails with exit code 1 and exactly this line.
pub fn refused(room: &Room, args: &[&str], line: &str) {
    let before = room.names();
    let (code, complaint) = room.fails(args);
    assert_eq!(complaint, format!("qbm: {line}\n"), "{args:?}");
    assert_eq!(code, 1, "{args:?}");
    assert_eq!(room.names(), before, "{args:?} left something behind");
}

/// Fails with exit code 2 and a complaint that begins with this line.
pub fn usage(room: &Room, args: &[&str], line: &str) {
    let (code, complaint) = room.fails(args);
    assert_eq!(complaint.lines().next(), Some(line), "{args:?}");
    assert_eq!(code, 2, "{args:?}");
    assert_eq!(room.names(), Vec::<String>::new(), "{args:?}");
}

#[test]
fn a_descriptor_that_cannot_be_opened() {
    let room = Room::new();
    room.folder("folder");
    fifo(&room, "fifo");
    room.write("raw.img", &[0; 512]);
    room.write("text", b"hello");
    room.write("empty", b"");
    room.write("bare.qbm", b"{}");
    let image = "it is no QBM descriptor; \"qbm create --image\" makes one for a raw image";
    for (name, why) in [
        ("missing.qbm", "No such file or directory"),
        (
            "folder",
            "it is a directory; only regular files and block devices can be used",
        ),
        (
            "fifo",
            "it is a FIFO; only regular files and block devices can be used",
        ),
        (".", "it does not name a file"),
        ("empty", "the file is empty"),
        ("bare.qbm", "the document: \"QBM\" is missing"),
        (
            "raw.img",
            &format!("not readable as JSON: expected value at line 1 column 1 ({image})"),
        ),
        (
            "text",
            &format!("not readable as JSON: expected value at line 1 column 1 ({image})"),
        ),
    ] {
        for args in [
            &["info", name][..],
            &["map", name],
            &["resize", name, "1M"],
            &["bitmap", "--add", name, "b"],
            &["bitmap", "list", name],
            &["bitmap", "dump", name, "b"],
        ] {
            refused(&room, args, &format!("cannot open {name}: {why}"));
        }
    }
}

#[test]
fn an_image_that_is_gone() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    std::fs::remove_file(room.path("disk-data.img")).expect("removed");
    refused(
        &room,
        &["info", "disk.qbm"],
        "cannot open disk.qbm: QBM.image.file: cannot open disk-data.img: No such file or directory",
    );
}

#[test]
fn a_disk_that_cannot_be_created() {
    let room = Room::new();
    room.folder("sub");
    fifo(&room, "fifo");
    room.write("old.img", &[0; 512]);
    room.write("taken.qbm", b"mine");
    let cases: [(&[&str], &str); 10] = [
        (
            &["taken.qbm", "1M"],
            "cannot create taken.qbm: it exists already, and is not overwritten",
        ),
        (
            &["--image", "old.img", "taken.qbm"],
            "cannot create taken.qbm: it exists already, and is not overwritten",
        ),
        (
            &["no/disk.qbm", "1M"],
            "cannot create no/disk.qbm: cannot open the folder no: No such file or directory",
        ),
        (&[".", "1M"], "cannot create .: it does not name a file"),
        (
            &["--image", "no.img", "disk.qbm"],
            "cannot create disk.qbm: cannot open the image no.img: No such file or directory",
        ),
        (
            &["--image", "old.img", "sub/disk.qbm"],
            "cannot create sub/disk.qbm: cannot open the image sub/old.img: No such file or directory \
             (--image is relative to the descriptor's folder, not to the current one)",
        ),
        (
            &["--image", "fifo", "disk.qbm"],
            "cannot create disk.qbm: cannot open the image fifo: it is a FIFO; only regular files and block devices \
             can be used",
        ),
        (
            &["--image", "sub", "disk.qbm"],
            "cannot create disk.qbm: cannot open the image sub: it is a directory; only regular files and block \
             devices can be used",
        ),
        (
            &["--image", "nbd://host/x", "disk.qbm"],
            "cannot create disk.qbm: image \"nbd://host/x\": begins with the scheme \"nbd:\", and only files are \
             supported (\"./\" in front makes it a file's name)",
        ),
        (
            &["--image", "old.img", "disk.qbm", "1M"],
            "cannot create disk.qbm: the image old.img is 512 bytes long, not 1048576",
        ),
    ];
    for (args, line) in cases {
        refused(&room, &[&["create"], args].concat(), line);
    }
    assert_eq!(room.read("taken.qbm"), b"mine");
}

#[test]
fn a_name_that_a_folder_a_fifo_or_a_dead_link_has_is_taken() {
    let room = Room::new();
    room.folder("folder.qbm");
    fifo(&room, "fifo.qbm");
    std::os::unix::fs::symlink("nowhere", room.path("link.qbm")).expect("a link");
    for name in ["folder.qbm", "fifo.qbm"] {
        let line = format!("cannot create {name}: it exists already, and is not overwritten");
        refused(&room, &["create", name, "1M"], &line);
    }
    refused(
        &room,
        &["create", "link.qbm", "1M"],
        "cannot create link.qbm: cannot follow the link link.qbm: No such file or directory",
    );
}

#[test]
fn a_size_that_a_disk_cannot_have() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    for (size, why) in [
        (
            "4096",
            "4096 bytes are 1044480 fewer than it has, and what lies there would be lost; --shrink allows it",
        ),
        (
            "-4k",
            "1044480 bytes are 4096 fewer than it has, and what lies there would be lost; --shrink allows it",
        ),
        (
            "-2M",
            "it is 1048576 bytes long, and cannot be 2097152 bytes shorter",
        ),
        (
            "+9223372036854775807",
            "9223372036854775807 bytes more than 1048576 would be more than 9223372036854775807 bytes, the largest \
             disk",
        ),
    ] {
        refused(
            &room,
            &["resize", "disk.qbm", size],
            &format!("cannot resize disk.qbm: {why}"),
        );
    }
    assert_eq!(room.length("disk-data.img"), 1 << 20);
    refused(
        &room,
        &["map", "-s", "2M", "disk.qbm"],
        "cannot map disk.qbm: the start offset 2097152 lies behind the disk's end at 1048576",
    );
}

#[test]
fn a_size_that_no_file_system_has_leaves_nothing_behind() {
    let room = Room::new();
    let (code, complaint) = room.fails(&["create", "--preallocation", "falloc", "disk.qbm", "7E"]);
    assert_eq!(code, 1);
    let start = "qbm: cannot create disk.qbm: cannot give 8070450532247928832 bytes to disk-data.img: ";
    assert!(complaint.starts_with(start), "{complaint}");
    assert_eq!(room.names(), Vec::<String>::new());
}

#[test]
fn a_command_line_that_makes_no_sense() {
    let room = Room::new();
    let suffixes = "known are b, k, M, G, T, P and E";
    let cases: [(&[&str], &str); 15] = [
        (&["frob"], "error: unrecognized subcommand 'frob'"),
        (
            &["create", "disk.qbm"],
            "error: the following required arguments were not provided:",
        ),
        (
            &["resize", "disk.qbm"],
            "error: the following required arguments were not provided:",
        ),
        (
            &["create", "disk.qbm", "1q"],
            &format!("error: invalid value '1q' for '[SIZE]': 'q' is no suffix of a size; {suffixes}"),
        ),
        (
            &["create", "disk.qbm", "many"],
            &format!("error: invalid value 'many' for '[SIZE]': 'y' is no suffix of a size; {suffixes}"),
        ),
        (
            &["create", "disk.qbm", "1.5"],
            "error: invalid value '1.5' for '[SIZE]': there is no fraction of a byte",
        ),
        (
            &["create", "disk.qbm", "8E"],
            "error: invalid value '8E' for '[SIZE]': more than 9223372036854775807 bytes, the largest disk",
        ),
        (
            &["create", "-o", "cluster_size=64k", "disk.qbm", "1M"],
            "error: invalid value 'cluster_size=64k' for '-o <KEY=VALUE,...>': the options are \
             preallocation=off, falloc or full, state=on or off, and region_size=BYTES",
        ),
        (
            &["create", "-o", "preallocation=metadata", "disk.qbm", "1M"],
            "error: invalid value 'preallocation=metadata' for '-o <KEY=VALUE,...>': \"metadata\" is no way to \
             preallocate; known are off, falloc and full",
        ),
        (
            &["create", "-o", "state=maybe", "disk.qbm", "1M"],
            "error: invalid value 'state=maybe' for '-o <KEY=VALUE,...>': state is on or off, not \"maybe\"",
        ),
        (
            &["create", "-o", "state=on,region_size=3k", "disk.qbm", "1M"],
            "error: invalid value 'region_size=3k' for '-o <KEY=VALUE,...>': region_size 3072 is not a power of two \
             from 512 on",
        ),
        (
            &["check", "-U", "-r", "all", "disk.qbm"],
            "error: the argument '--force-share' cannot be used with '--repair <WHAT>'",
        ),
        (
            &[
                "create",
                "--image",
                "old.img",
                "--preallocation",
                "full",
                "disk.qbm",
            ],
            "error: the argument '--image <FILE>' cannot be used with '--preallocation <MODE>'",
        ),
        (
            &["resize", "disk.qbm", "-1X"],
            &format!("error: invalid value '-1X' for '<[+|-]SIZE>': 'X' is no suffix of a size; {suffixes}"),
        ),
        (
            &["info", "--output", "xml", "disk.qbm"],
            "error: invalid value 'xml' for '--output <FORMAT>'",
        ),
    ];
    for (args, line) in cases {
        usage(&room, args, line);
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_but_a_reader_that_left_is_none() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "b"]);
    for args in [
        &["info", "disk.qbm"][..],
        &["map", "--picture", "disk.qbm"],
        &["map", "--bitmap", "b", "disk.qbm"],
        &["bitmap", "list", "disk.qbm"],
        &["bitmap", "dump", "disk.qbm", "b"],
        &["bitmap", "dump", "--output", "json", "disk.qbm", "b"],
        &["info", "--output", "json", "disk.qbm"],
        &["map", "disk.qbm"],
        &["map", "--output", "json", "disk.qbm"],
        &["resize", "disk.qbm", "1M"],
        &["man"],
        &["completions", "bash"],
    ] {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = room.command(TOOL, args).stdout(full).output().expect("it runs");
        assert_eq!(
            text(&output.stderr),
            "qbm: cannot write to standard output: No space left on device\n"
        );
        assert_eq!(output.status.code(), Some(1));

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = room
            .command(TOOL, args)
            .stdout(Stdio::from(writer))
            .output()
            .expect("it runs");
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

fn fifo(room: &Room, name: &str) {
    let path = CString::new(room.path(name).as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: a path that ends in NUL, and a mode.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

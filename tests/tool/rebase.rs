//! `qbm rebase` and `qbm commit -b`: real files, in folders of their own, and what they say.

use std::fs;

use super::errors::{refused, usage};
use super::room::Room;

const LENGTH: usize = 1 << 20;

/// Bytes without a zero, and a hole in the middle.
fn content(seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..LENGTH)
        .map(|at| (u8::try_from((at * 7 + at / 512) % 255).expect("a byte") ^ seed) | 1)
        .collect();
    bytes[400 << 10..600 << 10].fill(0);
    bytes
}

/// `base.img`, an overlay on it in the folder `inner`, and one on that; each with something of its own.
fn chain() -> (Room, Vec<u8>) {
    let room = Room::new();
    room.write("base.img", &content(0));
    room.folder("inner");
    room.done(&[
        "create",
        "-q",
        "-b",
        "../base.img",
        "-F",
        "raw",
        "-g",
        "4k",
        "inner/mid.qbm",
    ]);
    room.guest_writes("inner/mid.qbm", 100_000, 5000);
    room.done(&["create", "-q", "-b", "inner/mid.qbm", "-F", "qbm", "top.qbm"]);
    room.guest_writes("top.qbm", 700_000, 9000);
    let mut shown = content(0);
    shown[100_000..105_000].fill(0x5a);
    shown[700_000..709_000].fill(0x5a);
    assert_shows(&room, "top.qbm", &shown);
    (room, shown)
}

fn assert_shows(room: &Room, name: &str, expected: &[u8]) {
    let disk = qbm::OpenOptions::new()
        .read_only(true)
        .open(room.path(name))
        .expect("it opens");
    let mut found = vec![0; expected.len()];
    disk.read(&mut found, 0).expect("read");
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((first, disk.length()), (None, expected.len() as u64), "{name}");
}

fn backing(room: &Room, name: &str) -> String {
    let info = room.json(&["info", "--output", "json", name]);
    info["backing-filename"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_overlay_goes_to_other_images_and_shows_the_same() {
    let (room, shown) = chain();
    room.write("other.img", &content(3)[..LENGTH / 2]);
    let said = room.done(&["rebase", "-b", "other.img", "-F", "raw", "top.qbm"]);
    assert_eq!(said, "rebased top.qbm on other.img (raw), 832 KiB copied\n");
    assert_shows(&room, "top.qbm", &shown);
    assert_eq!(backing(&room, "top.qbm"), "other.img");
    let facts = room.json(&["rebase", "-b", "", "--output", "json", "top.qbm"]);
    assert_eq!(
        facts,
        serde_json::json!({"filename": "top.qbm", "copied-bytes": 0})
    );
    fs::remove_file(room.path("other.img")).expect("removed");
    assert_shows(&room, "top.qbm", &shown);
    assert_eq!(backing(&room, "top.qbm"), "");

    // To the image that is deeper in its chain, and to none at once.
    let (room, shown) = chain();
    let facts = room.json(&[
        "rebase", "-b", "base.img", "-F", "raw", "--output", "json", "top.qbm",
    ]);
    let expected = serde_json::json!({"filename": "top.qbm", "copied-bytes": 65536,
        "backing-filename": "base.img", "backing-filename-format": "raw"});
    assert_eq!(facts, expected);
    assert_shows(&room, "top.qbm", &shown);
    let (room, shown) = chain();
    assert_eq!(room.done(&["rebase", "-q", "-b", "", "top.qbm"]), "");
    assert_shows(&room, "top.qbm", &shown);
    // The hole is none of its own.
    let info = room.json(&["info", "--output", "json", "top.qbm"]);
    let allocated = &info["format-specific"]["data"]["allocation"];
    assert!(
        info["actual-size"].as_u64().expect("a size") <= 1 << 20,
        "{allocated}"
    );
    room.done(&["check", "top.qbm"]);
}

#[test]
fn by_the_name_alone_nothing_is_copied() {
    let (room, shown) = chain();
    room.done(&["bitmap", "--add", "top.qbm", "b"]);
    let dirty = || {
        let bitmaps = room.json(&["bitmap", "list", "--output", "json", "top.qbm"]);
        bitmaps[0]["count"].as_u64().expect("a count")
    };
    // Moved: what it was on is not there any more.
    fs::rename(room.path("inner"), room.path("elsewhere")).expect("moved");
    let args = [
        "rebase",
        "-u",
        "--unchanged",
        "-b",
        "elsewhere/mid.qbm",
        "-F",
        "qbm",
        "top.qbm",
    ];
    let said = room.done(&args);
    assert_eq!(
        said,
        "rebased top.qbm on elsewhere/mid.qbm (qbm), by its name alone\n"
    );
    assert_shows(&room, "top.qbm", &shown);
    assert_eq!(dirty(), 0);
    // The same file by another name is seen to be the same.
    fs::hard_link(room.path("base.img"), room.path("link.img")).expect("linked");
    room.done(&["rebase", "-q", "-b", "base.img", "-F", "raw", "top.qbm"]);
    room.done(&["rebase", "-q", "-u", "-b", "./link.img", "-F", "raw", "top.qbm"]);
    assert_eq!(dirty(), 0);
    room.write("other.img", &content(9));
    room.done(&["rebase", "-q", "-u", "-b", "other.img", "-F", "raw", "top.qbm"]);
    assert!(dirty() > 0);
    let mut shown = content(9);
    let own = &content(0);
    shown[1 << 16..2 << 16].copy_from_slice(&own[1 << 16..2 << 16]);
    shown[100_000..105_000].fill(0x5a);
    shown[10 << 16..11 << 16].copy_from_slice(&own[10 << 16..11 << 16]);
    shown[700_000..709_000].fill(0x5a);
    assert_shows(&room, "top.qbm", &shown);
    room.done(&["rebase", "-q", "-u", "-b", "", "top.qbm"]);
    assert_eq!(backing(&room, "top.qbm"), "");
}

/// What the driver that the format comes from writes for "probe it", which nothing else opens.
#[test]
fn a_backing_without_a_format_is_given_one() {
    let (room, _) = chain();
    let path = room.path("inner/mid.qbm");
    let text = fs::read_to_string(&path).expect("a descriptor");
    let at = text.rfind("\"format\": \"raw\"").expect("the backing's format");
    for format in ["", "\"format\": \"\""] {
        let (before, behind) = text.split_at(at);
        let broken = format!("{before}{format}{}", &behind["\"format\": \"raw\"".len()..]);
        // Without the key, the comma before it goes too.
        let broken = if format.is_empty() {
            let comma = broken[..at].rfind(',').expect("a comma");
            format!("{}{}", &broken[..comma], &broken[comma + 1..])
        } else {
            broken
        };
        fs::write(&path, broken).expect("written");
        let (code, complaint) = room.fails(&["info", "inner/mid.qbm"]);
        assert!(
            code == 1 && complaint.contains("qbm rebase -u -F FORMAT"),
            "{complaint}"
        );
        let said = room.done(&["rebase", "-u", "-F", "raw", "inner/mid.qbm"]);
        assert_eq!(
            said,
            "rebased inner/mid.qbm on ../base.img (raw), by its name alone\n"
        );
        let mut shown = content(0);
        shown[100_000..105_000].fill(0x5a);
        assert_shows(&room, "inner/mid.qbm", &shown);
    }
}

#[test]
fn what_is_above_an_image_goes_into_it() {
    for (base, named) in [
        ("base.img", "base.img"),
        ("inner/../base.img", "base.img"),
        ("./base.img", "base.img"),
    ] {
        let (room, shown) = chain();
        let said = room.done(&["commit", "-b", base, "top.qbm"]);
        let into = backing(&room, "top.qbm");
        assert!(said.ends_with(&format!(" of top.qbm into {into}\n")), "{said}");
        let there = fs::canonicalize(room.path(&into)).expect("it is there");
        assert_eq!(there, fs::canonicalize(room.path(named)).expect("it is there"));
        assert_shows(&room, "top.qbm", &shown);
        assert_eq!(room.read("base.img"), shown);
        room.done(&["check", "top.qbm"]);
    }
    // From another folder than the descriptor's, and with the disk in that.
    let (room, shown) = chain();
    room.done(&["create", "-q", "-b", "../top.qbm", "-F", "qbm", "inner/third.qbm"]);
    room.guest_writes("inner/third.qbm", 0, 100);
    let facts = room.json(&["commit", "-b", "mid.qbm", "--output", "json", "inner/third.qbm"]);
    assert_eq!(facts["backing-filename-format"], "qbm");
    let mut shown = shown;
    shown[..100].fill(0x5a);
    assert_shows(&room, "inner/third.qbm", &shown);
    assert_shows(&room, "inner/mid.qbm", &shown);
}

#[test]
fn mistakes_are_told_of() {
    let (room, _) = chain();
    room.write("here.img", b"");
    room.done(&["create", "-q", "plain.qbm", "1M"]);
    let cases: &[(&[&str], &str)] = &[
        (
            &["rebase", "-u", "-F", "raw", "plain.qbm"],
            "cannot rebase plain.qbm: it has no backing image whose format could be set",
        ),
        (
            &["rebase", "-b", "", "plain.qbm"],
            "cannot rebase plain.qbm: it has no allocation bitmap, so all of it is its own",
        ),
        (
            &["rebase", "-b", "here.img", "-F", "raw", "inner/mid.qbm"],
            "cannot rebase inner/mid.qbm: QBM.bitmaps[\"allocation\"].backing.file: cannot open inner/here.img: No such \
             file or directory (-b is relative to the descriptor's folder, not to the current one)",
        ),
        (
            &["rebase", "-b", "top.qbm", "-F", "qbm", "top.qbm"],
            "cannot rebase top.qbm: the backing chain leads back to top.qbm",
        ),
        (
            &["rebase", "-u", "-b", "none.img", "-F", "raw", "top.qbm"],
            "cannot change the backing of top.qbm: QBM.bitmaps[\"allocation\"].backing.file: cannot open none.img: No \
             such file or directory",
        ),
        (
            &["commit", "-b", "here.img", "top.qbm"],
            "cannot commit top.qbm: no image below it is here.img; \"qbm info --backing-chain top.qbm\" shows them",
        ),
    ];
    for (args, line) in cases {
        refused(&room, args, line);
    }
    let room = Room::new();
    usage(
        &room,
        &["rebase", "disk.qbm"],
        "error: the following required arguments were not provided:",
    );
    usage(
        &room,
        &["rebase", "--unchanged", "-b", "", "disk.qbm"],
        "error: the following required arguments were not provided:",
    );
}

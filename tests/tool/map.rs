//! `qbm map` beside `qemu-img map`: the same raw files, extent for extent.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use serde_json::{Value, json};

use super::room::{Room, text};
use super::skip::skipped;

/// A sparse raw file: its length, and the runs of it that hold data.
struct Shape {
    name: &'static str,
    length: u64,
    data: &'static [(u64, u64)],
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "empty",
        length: 0,
        data: &[],
    },
    Shape {
        name: "one hole",
        length: 1 << 20,
        data: &[],
    },
    Shape {
        name: "all data",
        length: 1 << 20,
        data: &[(0, 1 << 20)],
    },
    Shape {
        name: "hole at the start",
        length: 1 << 20,
        data: &[(512 << 10, 512 << 10)],
    },
    Shape {
        name: "hole at the end",
        length: 1 << 20,
        data: &[(0, 512 << 10)],
    },
    Shape {
        name: "holes of 4 KiB",
        length: 64 << 10,
        data: &[(4096, 4096), (12288, 4096), (40960, 8192)],
    },
    Shape {
        name: "one byte",
        length: 1,
        data: &[(0, 1)],
    },
    Shape {
        name: "a hole of one byte",
        length: 1,
        data: &[],
    },
    Shape {
        name: "data up to an odd end",
        length: 5000,
        data: &[(4096, 904)],
    },
    Shape {
        name: "hole up to an odd end",
        length: 1_000_001,
        data: &[(0, 4096)],
    },
    Shape {
        name: "bytes amid holes",
        length: 300_000,
        data: &[(7, 1), (70_000, 3), (299_999, 1)],
    },
    Shape {
        name: "beyond 4 GiB",
        length: 5 << 30,
        data: &[(0, 4096), ((4 << 30) - 4096, 8192), ((5 << 30) - 1, 1)],
    },
    Shape {
        name: "1 TiB of nothing but its last byte",
        length: 1 << 40,
        data: &[((1 << 40) - 1, 1)],
    },
];

fn room_with(shape: &Shape) -> Room {
    let room = Room::new();
    let file = File::create(room.path("raw.img")).expect("a file");
    file.set_len(shape.length).expect("a length");
    for (start, len) in shape.data {
        let bytes = vec![0x5a; usize::try_from(*len).expect("small")];
        file.write_all_at(&bytes, *start).expect("written");
    }
    room.done(&["create", "-q", "--image", "raw.img", "disk.qbm"]);
    room
}

pub fn have_qemu_img() -> bool {
    let have = Command::new("qemu-img").arg("--version").output().is_ok();
    if !have {
        skipped("qemu-img is not installed, so nothing was compared with it");
    }
    have
}

/// What qemu-img says of the raw file, cut to the bytes that it has: qemu-img counts whole blocks of 512, and says of
/// no bytes at all that they are one extent.
fn qemu(room: &Room, length: u64, options: &[&str]) -> Vec<Value> {
    let args = [&["map", "-f", "raw", "--output", "json"], options, &["raw.img"]].concat();
    let output = room.command("qemu-img", &args).output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let extents: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
    extents
        .into_iter()
        .filter_map(|mut extent| {
            let start = extent["start"].as_u64().expect("a start");
            let len = extent["length"]
                .as_u64()
                .expect("a length")
                .min(length.saturating_sub(start));
            extent["length"] = json!(len);
            (len > 0).then_some(extent)
        })
        .collect()
}

fn ours(room: &Room, options: &[&str]) -> Vec<Value> {
    let args = [&["map", "--output", "json"], options, &["disk.qbm"]].concat();
    serde_json::from_str(&room.done(&args)).expect("a list")
}

#[test]
fn the_extents_are_qemu_imgs() {
    if !have_qemu_img() {
        return;
    }
    for shape in SHAPES {
        let room = room_with(shape);
        let extents = ours(&room, &[]);
        assert_eq!(extents, qemu(&room, shape.length, &[]), "{}", shape.name);
        // Not by agreeing on nothing.
        assert_eq!(extents.is_empty(), shape.length == 0, "{}", shape.name);
    }
}

#[test]
fn the_extents_of_a_part_are_qemu_imgs() {
    if !have_qemu_img() {
        return;
    }
    let parts: [&[&str]; 7] = [
        &["--start-offset", "0", "--max-length", "1"],
        &["--start-offset", "4k"],
        &["--start-offset", "4097"],
        &["--start-offset", "100", "--max-length", "300"],
        &["--max-length", "8k"],
        &["--start-offset", "5000", "--max-length", "100k"],
        &["--start-offset=1.5k", "--max-length=1E"],
    ];
    for shape in SHAPES.iter().filter(|shape| shape.length > 5000) {
        let room = room_with(shape);
        for part in parts {
            let extents = ours(&room, part);
            assert_eq!(
                extents,
                qemu(&room, shape.length, part),
                "{} {part:?}",
                shape.name
            );
            assert!(!extents.is_empty());
        }
    }
}

#[test]
fn the_table_is_qemu_imgs() {
    if !have_qemu_img() {
        return;
    }
    for shape in SHAPES {
        let room = room_with(shape);
        let output = room
            .command("qemu-img", &["map", "-f", "raw", "raw.img"])
            .output()
            .expect("it runs");
        assert_eq!(
            room.done(&["map", "disk.qbm"]),
            text(&output.stdout),
            "{}",
            shape.name
        );
    }
}

#[test]
fn json_has_the_bytes_that_qemu_img_prints() {
    if !have_qemu_img() {
        return;
    }
    for shape in SHAPES
        .iter()
        .filter(|shape| shape.length > 0 && shape.length % 512 == 0)
    {
        let room = room_with(shape);
        let output = room
            .command("qemu-img", &["map", "-f", "raw", "--output", "json", "raw.img"])
            .output()
            .expect("it runs");
        assert_eq!(
            room.done(&["map", "--output", "json", "disk.qbm"]),
            text(&output.stdout),
            "{}",
            shape.name
        );
    }
}

#[test]
fn a_map_covers_every_byte_once() {
    for shape in SHAPES {
        let room = room_with(shape);
        let mut at = 0;
        for extent in ours(&room, &[]) {
            assert_eq!(extent["start"], json!(at), "{}", shape.name);
            assert_ne!(extent["zero"], extent["data"], "{}", shape.name);
            at += extent["length"].as_u64().expect("a length");
        }
        assert_eq!(at, shape.length, "{}", shape.name);
    }
}

#[test]
fn of_no_bytes_there_is_nothing_to_tell() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    assert_eq!(
        room.done(&["map", "--output", "json", "-s", "1M", "disk.qbm"]),
        "[]\n"
    );
    assert_eq!(
        room.done(&["map", "--output", "json", "-l", "0", "disk.qbm"]),
        "[]\n"
    );
    assert_eq!(
        room.done(&["map", "-l0", "disk.qbm"]),
        "Offset          Length          Mapped to       File\n"
    );
}

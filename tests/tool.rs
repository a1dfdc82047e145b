//! The tool as its users meet it: the built binary, its output to the letter, its exit codes, its mistakes in words.

#![allow(
    clippy::expect_used,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "tool/room.rs"]
mod room;

#[path = "common/killed_at.rs"]
mod killed_at;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/names.rs"]
mod names;
#[path = "common/random.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod random;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;

#[path = "tool/backup.rs"]
mod backup;
#[path = "tool/backup_killed.rs"]
mod backup_killed;
#[path = "tool/backup_places.rs"]
mod backup_places;
#[path = "tool/bitmap.rs"]
mod bitmap;
#[path = "tool/bitmap_mistakes.rs"]
mod bitmap_mistakes;
#[path = "tool/check.rs"]
mod check;
#[path = "tool/errors.rs"]
mod errors;
#[path = "tool/generated.rs"]
mod generated;
#[path = "tool/letters.rs"]
mod letters;
#[path = "tool/map.rs"]
mod map;
#[path = "tool/owner.rs"]
mod owner;
#[path = "tool/picture.rs"]
mod picture;
#[path = "tool/prune_killed.rs"]
mod prune_killed;
#[path = "tool/qemu.rs"]
mod qemu;
#[path = "tool/rebase.rs"]
mod rebase;
#[path = "tool/restore.rs"]
mod restore;
#[path = "tool/snapshot.rs"]
mod snapshot;
#[path = "tool/words.rs"]
mod words;

use room::Room;
use serde_json::json;

/// The block sizes that the engine tells, which are the host's affair.
fn blocks(room: &Room, disk: &str) -> (u32, u32) {
    let disk = qbm::Disk::open(room.path(disk)).expect("it opens");
    let limits = disk.info().expect("facts").limits;
    (limits.logical_block, limits.physical_block)
}

#[test]
fn a_disk_is_made_described_and_resized() {
    let room = Room::new();
    let said = room.done(&["create", "disk.qbm", "1.5M"]);
    assert_eq!(
        said,
        "created disk.qbm: 1.5 MiB (1572864 bytes), data in disk-data.img\n"
    );
    let (logical, physical) = blocks(&room, "disk.qbm");
    assert_eq!(
        room.done(&["info", "disk.qbm"]),
        format!(
            "descriptor: disk.qbm\n\
             virtual size: 1.5 MiB (1572864 bytes)\n\
             disk size: 0 B\n\
             image: disk-data.img (raw)\n\
             block size: {logical} B logical, {physical} B physical\n\
             state file: disk.state (closed; regions of 64 MiB)\n\
             bitmaps: none\n"
        )
    );
    assert_eq!(
        room.done(&["resize", "disk.qbm", "+1k"]),
        "resized disk.qbm from 1.5 MiB (1572864 bytes) to 1.5 MiB (1573888 bytes)\n"
    );
    assert_eq!(room.length("disk-data.img"), 1_573_888);
    assert_eq!(
        room.done(&["resize", "disk.qbm", "1573888"]),
        "disk.qbm has 1.5 MiB (1573888 bytes) already\n"
    );
    room.done(&["resize", "--shrink", "disk.qbm", "-1M"]);
    assert_eq!(room.length("disk-data.img"), 525_312);
    assert_eq!(room.done(&["resize", "disk.qbm", "--shrink", "-q", "1b"]), "");
    assert_eq!(room.length("disk-data.img"), 1);
}

#[test]
fn options_may_stand_behind_a_negative_size() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    assert_eq!(room.done(&["resize", "disk.qbm", "-4k", "--shrink", "-q"]), "");
    assert_eq!(
        room.done(&["resize", "-q", "--shrink", "disk.qbm", "--", "-4k"]),
        ""
    );
    assert_eq!(room.length("disk-data.img"), (1 << 20) - 8192);
}

#[test]
fn quiet_says_nothing() {
    let room = Room::new();
    assert_eq!(room.done(&["create", "-q", "disk.qbm", "64k"]), "");
    assert_eq!(room.done(&["resize", "--quiet", "disk.qbm", "128k"]), "");
}

#[test]
fn an_image_that_exists_becomes_a_disk_and_stays_as_it_is() {
    let room = Room::new();
    room.write("old.img", b"what the guest wrote");
    assert_eq!(
        room.done(&["create", "--image", "old.img", "disk.qbm"]),
        "created disk.qbm: 20 B (20 bytes), data in old.img\n"
    );
    assert_eq!(room.read("old.img"), b"what the guest wrote");
    room.done(&["create", "-q", "--image", "old.img", "same.qbm", "20"]);
}

#[test]
fn the_name_of_an_image_is_relative_to_the_descriptor() {
    let room = Room::new();
    room.folder("sub");
    room.write("sub/old.img", &[1; 512]);
    room.done(&["create", "--image", "old.img", "sub/disk.qbm"]);
    assert!(
        room.done(&["info", "sub/disk.qbm"])
            .contains("image: sub/old.img (raw)\n")
    );
}

#[test]
fn preallocation_takes_the_space_at_once() {
    let room = Room::new();
    let cases: [(&str, &[&str]); 5] = [
        ("a", &["--preallocation", "off"]),
        ("b", &["--preallocation", "falloc"]),
        ("c", &["--preallocation=full"]),
        ("d", &["-o", "preallocation=falloc"]),
        ("e", &["-opreallocation=full"]),
    ];
    for (name, options) in cases {
        let disk = format!("{name}.qbm");
        let mut args = vec!["create", "-q", &disk, "1M"];
        args.extend(options);
        room.done(&args);
        let taken = room.allocated(&format!("{name}-data.img"));
        assert_eq!(taken >= 1 << 20, name != "a", "{options:?}: {taken} bytes");
        assert!(
            room.read(&format!("{name}-data.img"))
                .iter()
                .all(|byte| *byte == 0)
        );
    }
}

#[test]
fn info_has_qemu_imgs_keys_in_json() {
    let room = Room::new();
    room.done(&["create", "-q", "--preallocation", "full", "disk.qbm", "1M"]);
    let (logical, physical) = blocks(&room, "disk.qbm");
    assert_eq!(
        room.json(&["info", "--output", "json", "disk.qbm"]),
        json!({
            "filename": "disk.qbm",
            "format": "qbm",
            "virtual-size": 1 << 20,
            "actual-size": room.allocated("disk-data.img"),
            "format-specific": {
                "type": "qbm",
                "data": {
                    "image": {
                        "filename": "disk-data.img",
                        "format": "raw",
                        "block-device": false,
                        "logical-block-size": logical,
                        "physical-block-size": physical,
                    },
                    "state": {
                        "file": "disk.state",
                        "usable": true,
                        "closed": true,
                        "in-use": false,
                        "policy": "write-through",
                        "region-size": 64 << 20,
                        "active-regions": 0,
                        "recovery": null,
                        "if-killed": null,
                    },
                    "bitmaps": [],
                },
            },
        })
    );
}

#[test]
fn info_lists_bitmaps() {
    let room = Room::new();
    room.write("disk-data.img", &[0; 4000]);
    // Bits behind the disk's end are nobody's.
    room.write("a.bitmap", &[0xff; 8]);
    room.write("b.bitmap", &[0; 8]);
    room.write(
        "disk.qbm",
        br#"{"QBM": {"version": 1, "image": {"file": "disk-data.img", "format": "raw"}, "bitmaps": {
            "nightly": {"file": "a.bitmap", "type": "dirty", "granularity-bytes": 65536},
            "odd\u001b[31m": {"file": "b.bitmap", "type": "dirty", "granularity-bytes": 512, "recording": false}
        }}}"#,
    );
    let said = room.done(&["info", "disk.qbm"]);
    let bitmaps = said.split_once("bitmaps:\n").expect("a list").1;
    assert_eq!(
        bitmaps,
        "    \"nightly\": dirty, granularity 64 KiB, recording; 3.91 KiB (4000 bytes) dirty\n    \
         \"odd\\u{1b}[31m\": dirty, granularity 512 B, not recording; nothing dirty\n"
    );
    let facts = room.json(&["info", "--output=json", "disk.qbm"]);
    let bitmap = |name: &str, file: &str, granularity: u32, recording: bool, count: u32| {
        json!({
            "name": name, "type": "dirty", "granularity": granularity, "count": count, "recording": recording,
            "busy": false, "persistent": true, "inconsistent": false, "file": file, "epoch": null,
            "start-length": null,
        })
    };
    assert_eq!(
        facts["format-specific"]["data"]["bitmaps"],
        json!([
            bitmap("nightly", "a.bitmap", 65536, true, 4000),
            bitmap("odd\u{1b}[31m", "b.bitmap", 512, false, 0),
        ])
    );
}

#[test]
fn info_and_map_change_nothing_not_even_the_times() {
    use std::os::unix::fs::MetadataExt as _;
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "b"]);
    let stamps = || {
        ["disk.qbm", "disk-data.img", "disk-b.bitmap"].map(|name| {
            let meta = room.meta(name);
            (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
        })
    };
    let before = stamps();
    room.done(&["info", "disk.qbm"]);
    room.done(&["map", "disk.qbm"]);
    room.done(&["map", "--picture", "disk.qbm"]);
    room.done(&["map", "--bitmap", "b", "disk.qbm"]);
    room.done(&["bitmap", "list", "disk.qbm"]);
    room.done(&["bitmap", "dump", "disk.qbm", "b"]);
    assert_eq!(stamps(), before);
}

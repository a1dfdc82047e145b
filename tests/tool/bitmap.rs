//! `qbm bitmap`: each action, several in one call, all or none; what `list`, `dump` and `map --bitmap` print.

use serde_json::{Value, json};

use super::map::have_qemu_img;
use super::room::{Room, TOOL, text};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A disk of 1 MiB with the bitmap `nightly`, in which 3 bytes at 70,000 are dirty.
fn room_with_nightly() -> Room {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    assert_eq!(room.done(&["bitmap", "--add", "disk.qbm", "nightly"]), "");
    room.guest_writes("disk.qbm", 70_000, 3);
    room
}

/// What `list` says of each bitmap: its name, granularity, dirty bytes, and whether it records.
fn list(room: &Room, disk: &str) -> Vec<(String, u64, u64, bool)> {
    let list = room.json(&["bitmap", "list", "--output", "json", disk]);
    let facts = |bitmap: &Value| {
        (
            bitmap["name"].as_str().expect("a name").to_owned(),
            bitmap["granularity"].as_u64().expect("a granularity"),
            bitmap["count"].as_u64().expect("a count"),
            bitmap["recording"].as_bool().expect("a flag"),
        )
    };
    list.as_array().expect("a list").iter().map(facts).collect()
}

/// The dirty extents: start and length.
fn dump(room: &Room, disk: &str, name: &str) -> Vec<(u64, u64)> {
    let extents = room.json(&["bitmap", "dump", "--output", "json", disk, name]);
    let extent = |extent: &Value| {
        (
            extent["start"].as_u64().expect("a start"),
            extent["length"].as_u64().expect("a length"),
        )
    };
    extents.as_array().expect("a list").iter().map(extent).collect()
}

fn named(name: &str, granularity: u64, count: u64, recording: bool) -> (String, u64, u64, bool) {
    (name.to_owned(), granularity, count, recording)
}

#[test]
fn each_action_does_what_its_name_says() {
    let room = room_with_nightly();
    let disk = "disk.qbm";
    assert_eq!(list(&room, disk), [named("nightly", 65536, 65536, true)]);
    assert_eq!(dump(&room, disk, "nightly"), [(65536, 65536)]);

    room.done(&["bitmap", "--disable", disk, "nightly"]);
    room.guest_writes(disk, 0, 1);
    assert_eq!(list(&room, disk), [named("nightly", 65536, 65536, false)]);

    room.done(&["bitmap", "--enable", disk, "nightly"]);
    room.guest_writes(disk, MIB - 1, 1);
    assert_eq!(list(&room, disk), [named("nightly", 65536, 131_072, true)]);

    room.done(&["bitmap", "--rename", "weekly", disk, "nightly"]);
    assert_eq!(list(&room, disk), [named("weekly", 65536, 131_072, true)]);

    room.done(&["bitmap", "--add", "-g", "4k", disk, "fine"]);
    room.done(&["bitmap", "--merge", "weekly", disk, "fine"]);
    assert_eq!(dump(&room, disk, "fine"), [(65536, 65536), (MIB - 65536, 65536)]);

    room.done(&["bitmap", "--clear", disk, "weekly"]);
    assert_eq!(
        list(&room, disk),
        [
            named("weekly", 65536, 0, true),
            named("fine", 4096, 131_072, true)
        ]
    );

    room.done(&["bitmap", "--remove", disk, "weekly"]);
    room.done(&["bitmap", "--remove", disk, "fine"]);
    assert_eq!(list(&room, disk), []);
    assert_eq!(
        room.names(),
        ["disk-data.img", "disk.qbm", "disk.state"],
        "their files go, too"
    );
}

#[test]
fn actions_take_effect_in_the_order_in_which_they_stand() {
    let room = room_with_nightly();
    let disk = "disk.qbm";
    // Options may stand anywhere, as qemu-img takes them.
    room.done(&["bitmap", disk, "a", "--add", "--disable"]);
    room.done(&["bitmap", "--add", disk, "--disable", "--enable", "b"]);
    room.done(&["bitmap", "--add", "--remove", "--add", "-g128k", disk, "c"]);
    room.done(&["bitmap", "--add", "--merge", "nightly", "--clear", disk, "d"]);
    room.done(&["bitmap", "--clear", "--merge", "nightly", disk, "d"]);
    room.done(&["bitmap", "--remove", "--add", "--granularity=512", disk, "b"]);
    assert_eq!(
        list(&room, disk),
        [
            named("nightly", 65536, 65536, true),
            named("a", 65536, 0, false),
            named("c", 131_072, 0, true),
            named("d", 65536, 65536, true),
            named("b", 512, 0, true),
        ]
    );
}

#[test]
fn a_bitmap_is_replaced_by_a_new_one_of_its_name_in_one_call() {
    let room = room_with_nightly();
    let rotate = ["bitmap", "--disable", "--rename", "monday", "--add"];
    room.done(&[&rotate[..], &["disk.qbm", "nightly"]].concat());
    room.guest_writes("disk.qbm", 0, 1);
    assert_eq!(
        list(&room, "disk.qbm"),
        [
            named("monday", 65536, 65536, false),
            named("nightly", 65536, 65536, true)
        ]
    );
    assert_eq!(dump(&room, "disk.qbm", "monday"), [(65536, 65536)]);
    assert_eq!(dump(&room, "disk.qbm", "nightly"), [(0, 65536)]);
}

#[test]
fn all_actions_or_none() {
    let room = room_with_nightly();
    let disk = "disk.qbm";
    room.done(&["bitmap", "--add", disk, "taken"]);
    let files = room.names();
    // The state file counts its updates: the disk was open for writing.
    let content = || {
        let kept = files.iter().filter(|name| *name != "disk.state");
        kept.map(|name| room.read(name)).collect::<Vec<_>>()
    };
    let before = content();
    for actions in [
        &["--clear", "--disable", "--rename", "taken"][..],
        &["--remove", "--add", "--merge", "nobody"],
        &["--merge", "taken", "--rename", "new", "--clear"],
        &["--rename", "new", "--add", "--remove", "--remove"],
        &["--disable", "--add"],
    ] {
        let (code, _) = room.fails(&[&["bitmap"], actions, &[disk, "nightly"]].concat());
        assert_eq!(code, 1, "{actions:?}");
        assert_eq!(room.names(), files, "{actions:?}");
        assert_eq!(content(), before, "{actions:?}");
    }
}

#[test]
fn a_merge_takes_from_several_bitmaps_of_another_disk_across_granularities() {
    let room = Room::new();
    for disk in ["disk.qbm", "other.qbm"] {
        room.done(&["create", "-q", disk, "1000001b"]);
    }
    room.done(&["bitmap", "--add", "-g", "4k", "other.qbm", "fine"]);
    room.guest_writes("other.qbm", 200_000, 1);
    room.guest_writes("other.qbm", 1_000_000, 1);
    room.done(&["bitmap", "--disable", "other.qbm", "fine"]);
    room.done(&["bitmap", "--add", "-g", "256k", "other.qbm", "coarse"]);
    room.guest_writes("other.qbm", 600_000, 1);
    let before = (room.read("other.qbm"), room.names());

    room.done(&["bitmap", "--add", "disk.qbm", "nightly"]);
    let merge = [
        "bitmap", "--merge", "fine", "--merge", "coarse", "-F", "qbm", "-b",
    ];
    room.done(&[&merge[..], &["other.qbm", "disk.qbm", "nightly"]].concat());
    let last = 15 * 64 * KIB;
    let union = [
        (3 * 64 * KIB, 64 * KIB),
        (512 * KIB, 256 * KIB),
        (last, 1_000_001 - last),
    ];
    assert_eq!(dump(&room, "disk.qbm", "nightly"), union);

    // A disk's own bitmap of the same name does not stand in the way; into granules smaller than the source's.
    let into = [
        "bitmap",
        "-b",
        "other.qbm",
        "--add",
        "-g",
        "64k",
        "--merge",
        "coarse",
    ];
    room.done(&[&into[..], &["disk.qbm", "coarse"]].concat());
    assert_eq!(dump(&room, "disk.qbm", "coarse"), [(512 * KIB, 256 * KIB)]);
    assert_eq!(room.read("other.qbm"), before.0, "the source is only read");
}

#[test]
fn another_disk_may_be_the_disk_itself_by_whatever_name() {
    let room = room_with_nightly();
    std::os::unix::fs::symlink("disk.qbm", room.path("link.qbm")).expect("a link");
    for (source, name) in [("disk.qbm", "a"), ("./disk.qbm", "b"), ("link.qbm", "c")] {
        let actions = ["bitmap", "--add", "--merge", "nightly", "-b", source];
        room.done(&[&actions[..], &["disk.qbm", name]].concat());
        assert_eq!(dump(&room, "disk.qbm", name), [(65536, 65536)], "{source}");
    }
    // As without -b: the merge sees what the action before it has done, not what the disk was like before.
    room.done(&[
        "bitmap", "--clear", "--merge", "nightly", "-b", "link.qbm", "disk.qbm", "nightly",
    ]);
    assert_eq!(dump(&room, "disk.qbm", "nightly"), []);
}

#[test]
fn an_action_in_front_makes_list_and_dump_the_names_of_disks() {
    let room = Room::new();
    for disk in ["list", "dump"] {
        room.done(&["create", "-q", disk, "1M"]);
        room.done(&["bitmap", "--add", disk, "list"]);
        assert_eq!(list(&room, disk), [named("list", 65536, 0, true)]);
        assert_eq!(dump(&room, disk, "list"), []);
    }
}

#[test]
fn list_and_dump_for_people() {
    let room = room_with_nightly();
    assert_eq!(
        room.done(&["bitmap", "list", "disk.qbm"]),
        "\"nightly\": dirty, granularity 64 KiB, recording; 64 KiB (65536 bytes) dirty\n"
    );
    assert_eq!(
        room.done(&["bitmap", "dump", "disk.qbm", "nightly"]),
        "Offset          Length\n\
         0x10000         0x10000\n"
    );
    room.done(&["bitmap", "--clear", "--disable", "disk.qbm", "nightly"]);
    assert_eq!(
        room.done(&["bitmap", "list", "disk.qbm"]),
        "\"nightly\": dirty, granularity 64 KiB, not recording; nothing dirty\n"
    );
    room.done(&["bitmap", "--remove", "disk.qbm", "nightly"]);
    assert_eq!(room.done(&["bitmap", "list", "disk.qbm"]), "no bitmaps\n");
}

#[test]
fn list_for_programs_has_the_keys_of_query_block() {
    let room = room_with_nightly();
    let mut facts = room.json(&["bitmap", "list", "--output", "json", "disk.qbm"]);
    let info = room.json(&["info", "--output", "json", "disk.qbm"]);
    assert_eq!(facts, info["format-specific"]["data"]["bitmaps"]);
    let epoch = facts[0]["epoch"].take();
    assert_eq!(epoch.as_str().expect("an id").len(), 32);
    assert_eq!(
        facts,
        json!([{
            "name": "nightly",
            "type": "dirty",
            "granularity": 65536,
            "count": 65536,
            "recording": true,
            "busy": false,
            "persistent": true,
            "inconsistent": false,
            "file": "disk-nightly.bitmap",
            "epoch": null,
            "start-length": MIB,
        }])
    );
}

#[test]
fn dump_and_map_of_a_part() {
    let room = room_with_nightly();
    let part = ["-s", "64k", "-l", "4k", "disk.qbm"];
    let json = |args: &[&str]| room.json(args);
    let options = [&["bitmap", "dump", "--output", "json"], &part[..], &["nightly"]].concat();
    assert_eq!(json(&options), json!([{"start": 65536, "length": 4096}]));
    let end = [
        "bitmap", "dump", "--output", "json", "-s", "1M", "disk.qbm", "nightly",
    ];
    assert_eq!(json(&end), json!([]));

    let map = ["map", "--output", "json", "--bitmap", "nightly"];
    assert_eq!(
        json(&[&map[..], &["disk.qbm"]].concat()),
        json!([
            {"start": 0, "length": 65536, "dirty": false},
            {"start": 65536, "length": 65536, "dirty": true},
            {"start": 131_072, "length": MIB - 131_072, "dirty": false},
        ])
    );
    assert_eq!(
        json(&[&map[..], &part].concat()),
        json!([{"start": 65536, "length": 4096, "dirty": true}])
    );
    assert_eq!(json(&[&map[..], &["-l0", "disk.qbm"]].concat()), json!([]));
    assert_eq!(
        room.done(&[
            "map", "--bitmap", "nightly", "-s", "120k", "-l", "16k", "disk.qbm"
        ]),
        "Offset          Length          State\n\
         0x1e000         0x2000          dirty\n\
         0x20000         0x2000          clean\n"
    );
}

#[test]
fn a_bitmap_goes_with_the_disk_when_that_is_resized() {
    let room = room_with_nightly();
    room.guest_writes("disk.qbm", MIB - 1, 1);
    room.done(&["resize", "-q", "disk.qbm", "+1000"]);
    let tail = (MIB - 65536, 65536);
    assert_eq!(dump(&room, "disk.qbm", "nightly"), [(65536, 65536), tail]);
    room.guest_writes("disk.qbm", MIB + 999, 1);
    assert_eq!(
        dump(&room, "disk.qbm", "nightly"),
        [(65536, 65536), (tail.0, 65536 + 1000)]
    );
    room.done(&["resize", "-q", "--shrink", "disk.qbm", "128k"]);
    assert_eq!(dump(&room, "disk.qbm", "nightly"), [(65536, 65536)]);
    // What was cut off and is there again differs from what a backup of the longer disk has.
    room.done(&["resize", "-q", "disk.qbm", "256k"]);
    assert_eq!(dump(&room, "disk.qbm", "nightly"), [(65536, 3 * 65536)]);
}

/// What qemu-img made of the same command line, on a qcow2 image with the same bitmaps.
#[test]
fn a_command_line_of_qemu_img_does_what_qemu_img_does() {
    if !have_qemu_img() {
        return;
    }
    let lines: [&[&str]; 15] = [
        &["--add", "IMAGE", "new"],
        &["--add", "--disable", "IMAGE", "new"],
        &["--add", "-g", "128k", "--merge", "a", "IMAGE", "new"],
        &["--add", "--remove", "IMAGE", "new"],
        &["--add", "--remove", "--add", "--disable", "IMAGE", "new"],
        &["-g", "4096", "--remove", "--add", "IMAGE", "a"],
        &["--disable", "IMAGE", "a"],
        &["--disable", "--enable", "IMAGE", "a"],
        &["--merge", "b", "--merge", "b", "--clear", "IMAGE", "a"],
        &["IMAGE", "a", "--remove"],
        &["--add", "IMAGE", "a"],
        &["--clear", "IMAGE", "new"],
        &["--merge", "new", "IMAGE", "a"],
        &["-g", "64k", "--clear", "IMAGE", "a"],
        &["-g", "65537", "--add", "IMAGE", "new"],
    ];
    for line in lines {
        let room = Room::new();
        room.done(&["create", "-q", "disk.qbm", "1M"]);
        let made = room
            .command("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"])
            .output()
            .expect("it runs");
        assert!(made.status.success());
        let both = |line: &[&str]| {
            [(TOOL, "disk.qbm"), ("qemu-img", "disk.qcow2")].map(|(program, image)| {
                let words = line
                    .iter()
                    .map(|word| if *word == "IMAGE" { image } else { word });
                let args: Vec<&str> = ["bitmap"].into_iter().chain(words).collect();
                let output = room.command(program, &args).output().expect("it runs");
                output.status.success()
            })
        };
        for name in ["a", "b"] {
            assert_eq!(both(&["--add", "IMAGE", name]), [true; 2]);
        }
        let [ours, qemus] = both(line);
        assert_eq!(ours, qemus, "{line:?}");
        if ours {
            assert_eq!(recorders(list(&room, "disk.qbm")), qemu_list(&room), "{line:?}");
        }
    }
}

type Recorder = (String, u64, bool);

fn recorders(list: Vec<(String, u64, u64, bool)>) -> Vec<Recorder> {
    let mut list: Vec<Recorder> = list
        .into_iter()
        .map(|(name, granularity, _, recording)| (name, granularity, recording))
        .collect();
    list.sort();
    list
}

/// qemu-img's flag for a bitmap that records is "auto".
fn qemu_list(room: &Room) -> Vec<Recorder> {
    let args = ["info", "--output", "json", "disk.qcow2"];
    let output = room.command("qemu-img", &args).output().expect("it runs");
    let info: Value = serde_json::from_str(&text(&output.stdout)).expect("JSON");
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array();
    let mut list: Vec<Recorder> = bitmaps
        .into_iter()
        .flatten()
        .map(|bitmap| {
            (
                bitmap["name"].as_str().expect("a name").to_owned(),
                bitmap["granularity"].as_u64().expect("a granularity"),
                bitmap["flags"]
                    .as_array()
                    .expect("flags")
                    .contains(&json!("auto")),
            )
        })
        .collect();
    list.sort();
    list
}

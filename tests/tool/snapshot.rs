//! `qbm snapshot`.

use serde_json::json;

use super::room::Room;

#[test]
fn a_disk_goes_on_above_its_snapshot() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    room.done(&["bitmap", "--add", "disk.qbm", "nightly"]);
    room.guest_writes("disk.qbm", 0, 1000);
    assert_eq!(
        room.done(&["snapshot", "disk.qbm", "monday.qbm"]),
        "monday.qbm is what disk.qbm was; the disk goes on in disk-data-1.img\n"
    );
    room.guest_writes("disk.qbm", 200_000, 1000);
    let facts = room.json(&[
        "snapshot",
        "--output",
        "json",
        "-g",
        "4k",
        "disk.qbm",
        "tuesday.qbm",
    ]);
    let expected = json!({"filename": "disk.qbm", "snapshot": "tuesday.qbm", "image": "disk-data-2.img"});
    assert_eq!(facts, expected);
    assert_eq!(room.done(&["snapshot", "-q", "disk.qbm", "wednesday.qbm"]), "");
    let chain = room.json(&["info", "--backing-chain", "--output", "json", "disk.qbm"]);
    assert_eq!(chain.as_array().map(Vec::len), Some(4), "{chain:#}");
    let dirty = room.done(&["bitmap", "dump", "disk.qbm", "nightly"]);
    assert!(dirty.contains("0x30000"), "{dirty}");
    for verb in ["check", "info", "map"] {
        room.done(&[verb, "disk.qbm"]);
        room.done(&[verb, "monday.qbm"]);
    }
    room.done(&["commit", "disk.qbm"]);
    room.done(&["check", "disk.qbm"]);
}

#[test]
fn what_cannot_be_is_told() {
    let room = Room::new();
    room.done(&["create", "disk.qbm", "1M"]);
    let cases = [
        (
            &["snapshot", "disk.qbm", "a/b.qbm"][..],
            "qbm: cannot take a snapshot of disk.qbm: \"a/b.qbm\" is not the plain name of a file, to be made in the descriptor's \
             folder\n",
        ),
        (
            &["snapshot", "disk.qbm", "disk.qbm"],
            "qbm: cannot take a snapshot of disk.qbm: cannot create disk.qbm: File exists\n",
        ),
        (
            &["snapshot", "none.qbm", "a.qbm"],
            "qbm: cannot open none.qbm: No such file or directory\n",
        ),
    ];
    for (args, words) in cases {
        assert_eq!(room.fails(args), (1, words.to_owned()));
    }
}

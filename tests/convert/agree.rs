//! `qbm compare` and `measure` say what qemu-img says.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::random::Random;
use super::room::{Room, text};
use super::{have_qemu, scatter};

/// What both tools say of two raw images, and their exit codes.
fn verdicts(room: &Room, options: &[&str]) -> [(i32, String); 2] {
    let args = [
        &["compare", "-f", "raw", "-F", "raw"],
        options,
        &["a.img", "b.img"],
    ]
    .concat();
    ["qemu-img", super::room::TOOL].map(|program| {
        let output = room.command(program, &args).output().expect("it starts");
        let code = output.status.code().expect("an exit");
        (code, text(&output.stdout))
    })
}

/// A copy of `a.img`, holes and all, that differs in one way or none.
fn vary(room: &Room, way: u64, random: &mut Random) {
    room.done(&["convert", "-q", "-f", "raw", "a.img", "b.img"]);
    let file = File::options()
        .write(true)
        .open(room.path("b.img"))
        .expect("it opens");
    let length = room.length("b.img");
    let longer = || length + 512 * 3000;
    match way {
        // A byte that may be the same already.
        0 | 1 => {
            for _ in 0..=random.below(3) {
                file.write_all_at(&[0x77], random.below(length)).expect("written");
            }
        }
        // Zeros over what may be data.
        2 => {
            let at = random.below(length);
            let len = (1 + random.below(100_000)).min(length - at);
            file.write_all_at(&vec![0; usize::try_from(len).expect("small")], at)
                .expect("written");
        }
        // Longer, by zeros or not.
        3 => file.set_len(longer()).expect("a length"),
        4 => file.write_all_at(&[1], longer() - 1).expect("written"),
        5 => {
            file.write_all_at(&vec![0; 512 * 3000], length).expect("written");
        }
        // Shorter, in whole sectors.
        6 => file.set_len(random.below(length / 512) * 512).expect("a length"),
        _ => {}
    }
}

#[test]
fn both_tools_have_the_same_verdict_and_the_same_offset() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    let mut differed = 0;
    for round in 0..64 {
        let room = Room::new();
        let length = 512 * (8 + random.below(12_000));
        scatter(&room, "a.img", length, &mut random);
        vary(&room, round % 8, &mut random);
        let [theirs, ours] = verdicts(&room, &[]);
        assert_eq!(ours, theirs, "round {round}");
        differed += ours.0;
        // The other way round; and one thread finds what several find.
        std::fs::rename(room.path("a.img"), room.path("c.img")).expect("renamed");
        std::fs::rename(room.path("b.img"), room.path("a.img")).expect("renamed");
        std::fs::rename(room.path("c.img"), room.path("b.img")).expect("renamed");
        let [theirs, ours] = verdicts(&room, &[]);
        assert_eq!(ours, theirs, "round {round}, the other way round");
        let alone = room
            .command(
                super::room::TOOL,
                &["compare", "-m", "1", "-f", "raw", "-F", "raw", "a.img", "b.img"],
            )
            .output()
            .expect("it starts");
        assert_eq!(text(&alone.stdout), ours.1, "round {round}");
        let [theirs, ours] = verdicts(&room, &["-q"]);
        assert_eq!(ours, theirs, "round {round}, quiet");
    }
    assert!(differed > 10, "hardly any pair differed");
}

#[test]
fn strictly_the_lengths_and_the_holes_must_agree() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    for round in 0..16 {
        let room = Room::new();
        scatter(&room, "a.img", 512 * (8 + random.below(12_000)), &mut random);
        vary(&room, 2 + round % 4, &mut random);
        let [theirs, ours] = verdicts(&room, &["-s"]);
        assert_eq!(ours.0, theirs.0, "round {round}: {} / {}", ours.1, theirs.1);
        if theirs.1.contains("size") {
            assert_eq!(ours.1, theirs.1, "round {round}");
        }
    }
}

#[test]
fn what_differs_is_told_to_programs_to_the_byte() {
    let room = Room::new();
    room.write("a.img", &[1; 5000]);
    let mut other = vec![1; 5000];
    other[4321] = 2;
    room.write("b.img", &other);
    let output = room.run(&[
        "compare", "-f", "raw", "-F", "raw", "--output", "json", "a.img", "b.img",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        facts,
        serde_json::json!({
            "identical": false, "lengths": [5000, 5000], "differs": "content", "offset": 4096, "byte": 4321
        })
    );
}

#[test]
fn overlays_of_one_backing_are_compared_by_what_is_in_them() {
    let room = Room::new();
    room.write("base.img", &vec![9; 4 << 20]);
    for name in ["one.qbm", "other.qbm"] {
        room.done(&["create", "-q", "-b", "base.img", "-F", "raw", name]);
    }
    let same = room.done(&["compare", "one.qbm", "other.qbm"]);
    assert_eq!(same, "Images are identical.\n");
    room.guest_writes("other.qbm", 3_000_000, 1);
    let output = room.run(&["compare", "one.qbm", "other.qbm"]);
    assert_eq!(
        text(&output.stdout),
        format!("Content mismatch at offset {}!\n", 3_000_000 / 512 * 512)
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn measured_sizes_are_those_of_qemu_img() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    let mut sizes = vec![0, 1, 511, 512, 65536, 1 << 30, (1 << 40) + 512, 40 << 40];
    sizes.extend((0..20).map(|step| random.below(1 << (10 + step % 34))));
    let room = Room::new();
    for size in sizes {
        for cluster in ["512", "4k", "64k", "2M"] {
            let size = size.to_string();
            let cluster = format!("cluster_size={cluster}");
            let args = [
                "measure", "-O", "qcow2", "-o", &cluster, "--output", "json", "--size", &size,
            ];
            same_size(&room, &args);
        }
    }
    for _ in 0..12 {
        let room = Room::new();
        scatter(&room, "a.img", 1 + random.below(20_000_000), &mut random);
        same_size(
            &room,
            &["measure", "-f", "raw", "-O", "raw", "--output", "json", "a.img"],
        );
        for cluster in ["512", "4k", "64k", "2M"] {
            let cluster = format!("cluster_size={cluster}");
            let args = [
                "measure", "-f", "raw", "-O", "qcow2", "-o", &cluster, "--output", "json", "a.img",
            ];
            same_size(&room, &args);
        }
    }
}

/// Both tools say the same, or both refuse.
fn same_size(room: &Room, args: &[&str]) {
    let theirs = room.command("qemu-img", args).output().expect("it starts");
    let ours = room.run(args);
    let facts = |bytes: &[u8]| {
        let facts: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        (facts["required"].as_u64(), facts["fully-allocated"].as_u64())
    };
    assert_eq!(
        ours.status.success(),
        theirs.status.success(),
        "{args:?}: {}{}",
        text(&ours.stderr),
        text(&theirs.stderr)
    );
    if ours.status.success() {
        assert_eq!(facts(&ours.stdout), facts(&theirs.stdout), "{args:?}");
    }
}

#[test]
fn a_disk_takes_no_more_than_was_measured() {
    let mut random = Random::new(Random::seed());
    let room = Room::new();
    scatter(&room, "a.img", 7_000_001, &mut random);
    let facts = room.json(&["measure", "-f", "raw", "-O", "qbm", "--output", "json", "a.img"]);
    room.done(&["convert", "-q", "-f", "raw", "a.img", "disk.qbm"]);
    let files = ["disk.qbm", "disk-data.img", "disk.state"];
    let taken: u64 = files.iter().map(|name| room.allocated(name)).sum();
    let required = facts["required"].as_u64().expect("a number");
    assert!(taken <= required, "{taken} bytes, and {required} were measured");
    // qemu-img has no such format.
    assert!(facts["fully-allocated"].as_u64() > Some(7_000_001));
    room.done(&["bitmap", "--add", "disk.qbm", "nightly"]);
    let said = room.done(&["measure", "-O", "qbm", "disk.qbm"]);
    assert!(said.ends_with("bitmaps size: 16\n"), "{said}");
}

//! What is converted is what was there, whatever it is converted from and to.

use qbm::{CreateOptions, Disk, Format, Granularity, WriteFlags};

use super::random::Random;
use super::room::Room;
use super::{have_qemu, qemu, scatter};

/// Lengths on and off the borders of sectors, blocks and pieces.
const LENGTHS: [u64; 8] = [0, 1, 512, 4095, 1_000_001, 4 << 20, (6 << 20) + 512, 9_999_999];

#[test]
fn raw_images_come_out_as_they_went_in() {
    let mut random = Random::new(Random::seed());
    for length in LENGTHS {
        let room = Room::new();
        scatter(&room, "in.img", length, &mut random);
        let content = room.read("in.img");
        for (index, options) in [
            &[][..],
            &["-S", "64k", "-m", "1"],
            &["-S", "512", "-m", "7"],
            &["-S", "0"],
            &["-C", "-W"],
            &["-S", "0", "-C"],
            &["-S", "16M"],
        ]
        .iter()
        .enumerate()
        {
            let target = format!("out{index}.img");
            let args = [&["convert", "-q", "-f", "raw"], *options, &["in.img", &target]].concat();
            room.done(&args);
            assert!(
                room.read(&target) == content,
                "{args:?} of {length} bytes changed them"
            );
        }
        if length > 0 {
            assert!(
                room.allocated("out3.img") >= length,
                "-S 0 left holes in {length} bytes"
            );
        }
        // Zeros that were written have become holes. Where the file system scatters the rest, it takes a block more to find it.
        assert!(room.allocated("out0.img") <= room.allocated("in.img") + 4096);
    }
}

#[test]
fn holes_and_zeros_stay_or_become_holes() {
    let room = Room::new();
    let mut content = vec![0; 4 << 20];
    content[1 << 20..(1 << 20) + 4096].fill(7);
    content[3 << 20] = 7;
    room.write("dense.img", &content);
    room.done(&["convert", "-q", "-f", "raw", "dense.img", "out.img"]);
    assert!(room.read("out.img") == content);
    let (dense, sparse) = (room.allocated("dense.img"), room.allocated("out.img"));
    assert!(dense >= 4 << 20 && sparse <= 64 << 10, "{dense}, {sparse}");
    // With larger holes only, the zeros around the data are kept.
    room.done(&[
        "convert",
        "-q",
        "-S",
        "2M",
        "-f",
        "raw",
        "dense.img",
        "coarse.img",
    ]);
    assert!(room.read("coarse.img") == content);
    assert!(room.allocated("coarse.img") > 1 << 20);
}

/// A chain of overlays with random writes in each, of lengths and granularities of their own.
fn chain(room: &Room, depth: usize, random: &mut Random) -> String {
    scatter(room, "base.img", 1 + random.below(5_000_000), random);
    let mut below = ("base.img".to_owned(), Format::Raw);
    for level in 0..depth {
        let name = format!("layer{level}.qbm");
        let granularity = 512 << random.below(9);
        let length = 1 + random.below(6_000_000);
        CreateOptions::new()
            .backing(&*below.0, below.1)
            .granularity(Granularity::new(granularity).expect("a granularity"))
            .size(length)
            .create(room.path(&name))
            .expect("an overlay");
        let disk = Disk::open(room.path(&name)).expect("it opens");
        for _ in 0..random.below(20) {
            let at = random.below(length);
            let len = (1 + random.below(100_000)).min(length - at);
            let bytes =
                vec![u8::try_from(random.below(256)).expect("a byte"); usize::try_from(len).expect("small")];
            if random.one_in(3) {
                disk.write_zeroes(at, len, WriteFlags::MAY_UNMAP).expect("zeros");
            } else {
                disk.write(&bytes, at, WriteFlags::empty()).expect("written");
            }
        }
        disk.close().expect("closed");
        below = (name, Format::Qbm);
    }
    below.0
}

#[test]
fn what_a_chain_shows_becomes_one_image() {
    let mut random = Random::new(Random::seed());
    for round in 0..12 {
        let room = Room::new();
        let top = chain(&room, 1 + round % 4, &mut random);
        let disk = Disk::open(room.path(&top)).expect("it opens");
        let mut content = vec![0; usize::try_from(disk.length()).expect("small")];
        disk.read(&mut content, 0).expect("read");
        drop(disk);
        room.done(&["convert", "-q", &top, "flat.img"]);
        assert!(room.read("flat.img") == content, "round {round}");
        room.done(&["convert", "-q", "-S", "0", &top, "flat.qbm"]);
        assert!(room.read("flat-data.img") == content, "round {round}");
        let said = room.done(&["compare", &top, "flat.qbm"]);
        assert_eq!(said, "Images are identical.\n");
        room.done(&["check", "-q", "flat.qbm"]);
    }
}

#[test]
fn images_go_to_qemu_img_and_come_from_it() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    for length in LENGTHS.into_iter().filter(|length| *length > 0) {
        let room = Room::new();
        scatter(&room, "mine.img", length, &mut random);
        qemu(
            &room,
            &["convert", "-f", "raw", "-O", "qcow2", "mine.img", "theirs.qcow2"],
        );
        // QEMU rounds the length up to its sectors.
        qemu(
            &room,
            &[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "theirs.qcow2",
                "theirs.img",
            ],
        );
        room.done(&["convert", "-q", "-f", "raw", "theirs.img", "disk.qbm"]);
        qemu(
            &room,
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "qcow2",
                "disk-data.img",
                "theirs.qcow2",
            ],
        );
        room.done(&["convert", "-q", "disk.qbm", "back.img"]);
        qemu(
            &room,
            &["compare", "-f", "raw", "-F", "raw", "mine.img", "back.img"],
        );
    }
}

#[test]
fn what_exists_is_overwritten_only_when_asked_and_only_as_far_as_the_source_goes() {
    let mut random = Random::new(Random::seed());
    let room = Room::new();
    scatter(&room, "in.img", 3_000_001, &mut random);
    let content = room.read("in.img");
    room.write("out.img", &vec![0xee; 4_000_000]);
    room.done(&["convert", "-q", "-n", "-f", "raw", "in.img", "out.img"]);
    let found = room.read("out.img");
    assert!(found[..content.len()] == content[..]);
    assert!(found[content.len()..].iter().all(|byte| *byte == 0xee));

    room.done(&["create", "-q", "disk.qbm", "4M"]);
    room.guest_writes("disk.qbm", 0, 4 << 20);
    room.done(&["bitmap", "--add", "disk.qbm", "nightly"]);
    room.done(&["convert", "-q", "-n", "-f", "raw", "in.img", "disk.qbm"]);
    let found = room.read("disk-data.img");
    assert!(found[..content.len()] == content[..]);
    assert!(found[content.len()..].iter().all(|byte| *byte == 0x5a));
    // A backup must copy what was converted.
    let disk = Disk::open(room.path("disk.qbm")).expect("it opens");
    let dirty = disk.bitmap_count("nightly").expect("a count");
    assert_eq!(dirty, 3_000_001_u64.div_ceil(65536));
}

#[test]
fn what_was_done_is_told() {
    let room = Room::new();
    let mut content = vec![0; 100_000];
    content[50_000..50_010].fill(1);
    room.write("in.img", &content);
    let said = room.done(&["convert", "-f", "raw", "-O", "raw", "in.img", "out"]);
    assert!(
        said == "converted to out (raw): 97.7 KiB (100000 bytes), 4 KiB written\n"
            // A file system that shares space has nothing to write.
            || said.contains("shared with the source"),
        "{said}"
    );
    let facts = room.json(&["convert", "-f", "raw", "--output", "json", "in.img", "disk.qbm"]);
    assert_eq!(facts["format"], "qbm");
    assert_eq!(facts["virtual-size"], 100_000);
    assert_eq!(
        room.names(),
        ["disk-data.img", "disk.qbm", "disk.state", "in.img", "out"]
    );
}

#[test]
fn an_overlay_on_a_qcow2_becomes_one_image_and_is_compared_with_it() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    for compressed in [false, true] {
        let room = Room::new();
        scatter(&room, "base.img", 5_000_192, &mut random);
        let base = ["convert", "-f", "raw", "-O", "qcow2", "base.img", "base.qcow2"];
        let options: &[&str] = if compressed { &["-c"] } else { &[] };
        qemu(&room, &[&base[..1], options, &base[1..]].concat());
        room.done(&["create", "-q", "-b", "base.qcow2", "-F", "qcow2", "top.qbm"]);
        let same = room.done(&["compare", "-F", "raw", "top.qbm", "base.img"]);
        assert_eq!(same, "Images are identical.\n");
        room.guest_writes("top.qbm", 1_234_567, 200_000);
        let disk = Disk::open(room.path("top.qbm")).expect("it opens");
        let mut content = vec![0; usize::try_from(disk.length()).expect("small")];
        disk.read(&mut content, 0).expect("read");
        drop(disk);
        room.done(&["convert", "-q", "top.qbm", "flat.img"]);
        assert!(room.read("flat.img") == content);
        let output = room.run(&["compare", "-F", "raw", "top.qbm", "base.img"]);
        assert_eq!(output.status.code(), Some(1));
    }
}

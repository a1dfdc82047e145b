//! A qcow2 that is made is one that QEMU finds nothing wrong with; qcow2 and vmdk images are read.

use serde_json::Value;

use super::random::Random;
use super::room::Room;
use super::{have_qemu, qemu, scatter};

/// Lengths on and off the borders of clusters, pieces and what one table covers (512 MiB), all of whole sectors.
const LENGTHS: [u64; 7] = [
    0,
    512,
    65_536,
    1_000_448,
    (6 << 20) + 512,
    512 << 20,
    (512 << 20) + 512,
];

/// What qemu-img says of a file.
fn facts(room: &Room, verb: &str, file: &str) -> Value {
    let said = qemu(room, &[verb, "-f", "qcow2", "--output", "json", file]);
    serde_json::from_str(&said).expect("JSON")
}

/// QEMU finds nothing wrong with it, and as many clusters as it says.
fn assert_sound(room: &Room, file: &str) -> Value {
    assert_sound_with(room, file, 65_536)
}

/// The same of other clusters than the usual ones.
fn assert_sound_with(room: &Room, file: &str, cluster: u64) -> Value {
    // What is wrong makes it fail; leaks too.
    let check = facts(room, "check", file);
    for wrong in ["corruptions", "leaks", "check-errors"] {
        assert_eq!(check[wrong].as_u64().unwrap_or(0), 0, "{file}: {check}");
    }
    assert_eq!(
        check["image-end-offset"].as_u64(),
        Some(room.length(file)),
        "{check}"
    );
    let info = facts(room, "info", file);
    let specific = &info["format-specific"]["data"];
    assert_eq!(specific["compat"], "1.1", "{info}");
    assert_eq!(specific["corrupt"], false, "{info}");
    assert_eq!(specific["refcount-bits"], 16, "{info}");
    assert_eq!(info["dirty-flag"], false, "{info}");
    assert_eq!(info["cluster-size"], cluster, "{info}");
    assert!(info["backing-filename"].is_null(), "{info}");
    check
}

#[test]
fn a_qcow2_may_have_clusters_of_every_size() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    for bits in 9..=21 {
        let room = Room::new();
        let cluster = 1u64 << bits;
        // Several tables, where they are small enough.
        scatter(&room, "in.img", (9 << 20) + 512, &mut random);
        let option = format!("cluster_size={cluster}");
        room.done(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            &option,
            "in.img",
            "out.qcow2",
        ]);
        let check = assert_sound_with(&room, "out.qcow2", cluster);
        let verdict = qemu(
            &room,
            &["compare", "-f", "raw", "-F", "qcow2", "in.img", "out.qcow2"],
        );
        assert_eq!(verdict, "Images are identical.\n", "{cluster}: {check}");
    }
}

#[test]
fn a_qcow2_is_sound_and_has_what_the_source_shows() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    for length in LENGTHS {
        let room = Room::new();
        scatter(&room, "in.img", length, &mut random);
        for options in [
            &[][..],
            &["-m", "1"],
            &["-m", "7", "-S", "512"],
            &["-S", "64k"],
            &["-C"],
        ] {
            room.done(
                &[
                    &["convert", "-q", "-f", "raw", "-O", "qcow2"],
                    options,
                    &["in.img", "out.qcow2"],
                ]
                .concat(),
            );
            assert_sound(&room, "out.qcow2");
            qemu(
                &room,
                &["compare", "-f", "raw", "-F", "qcow2", "in.img", "out.qcow2"],
            );
            assert_eq!(
                facts(&room, "info", "out.qcow2")["virtual-size"].as_u64(),
                Some(length)
            );
            // Zeros take no cluster, so that it is no larger than qemu-img's, which looks for them likewise.
            if options.is_empty() {
                qemu(
                    &room,
                    &["convert", "-f", "raw", "-O", "qcow2", "in.img", "theirs.qcow2"],
                );
                let (ours, theirs) = (
                    facts(&room, "check", "out.qcow2")["allocated-clusters"].as_u64(),
                    facts(&room, "check", "theirs.qcow2")["allocated-clusters"].as_u64(),
                );
                assert_eq!(ours, theirs, "clusters of {length} bytes");
                let measured = room.json(&[
                    "measure", "-f", "raw", "-O", "qcow2", "--output", "json", "in.img",
                ]);
                // Without a table at all, as QEMU has it for no bytes, it would be a cluster less.
                assert!(
                    length == 0 || Some(room.length("out.qcow2")) <= measured["required"].as_u64(),
                    "{measured}"
                );
            }
            // And this one reads what it has written.
            let same = ["compare", "-f", "raw", "-F", "qcow2", "in.img", "out.qcow2"];
            assert_eq!(room.done(&same), "Images are identical.\n");
            std::fs::remove_file(room.path("out.qcow2")).expect("removed");
        }
    }
}

#[test]
fn a_qcow2_without_holes_takes_all_of_its_space() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    let room = Room::new();
    let length = 9_999_872;
    scatter(&room, "in.img", length, &mut random);
    room.done(&[
        "convert",
        "-q",
        "-S",
        "0",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "in.img",
        "out.qcow2",
    ]);
    let check = assert_sound(&room, "out.qcow2");
    assert_eq!(
        check["allocated-clusters"].as_u64(),
        Some(length.div_ceil(65_536))
    );
    assert!(room.allocated("out.qcow2") >= length, "it has holes");
    qemu(
        &room,
        &["compare", "-f", "raw", "-F", "qcow2", "in.img", "out.qcow2"],
    );
}

/// More data than one refcount block of 64 KiB counts the clusters of (2 GiB) needs a second one.
#[test]
fn a_qcow2_of_several_refcount_blocks_is_sound() {
    if !have_qemu() {
        return;
    }
    let room = Room::new();
    let file = std::fs::File::create(room.path("in.img")).expect("a file");
    // A sector in each cluster: what is taken is small, and what is counted is not.
    let clusters = 32_768 + 5;
    file.set_len(clusters << 16).expect("a length");
    for cluster in 0..clusters {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 512], cluster << 16).expect("written");
    }
    room.done(&["convert", "-q", "-f", "raw", "-O", "qcow2", "in.img", "out.qcow2"]);
    let check = assert_sound(&room, "out.qcow2");
    assert_eq!(check["allocated-clusters"].as_u64(), Some(clusters));
    assert!(
        room.allocated("out.qcow2") < 1 << 30,
        "holes within clusters were filled"
    );
    qemu(
        &room,
        &["compare", "-f", "raw", "-F", "qcow2", "in.img", "out.qcow2"],
    );
}

#[test]
fn an_overlay_with_all_below_it_becomes_one_qcow2() {
    if !have_qemu() {
        return;
    }
    let room = Room::new();
    room.write("base.img", &vec![9; 3 << 20]);
    room.done(&["create", "-q", "-b", "base.img", "-F", "raw", "top.qbm", "5M"]);
    room.guest_writes("top.qbm", 4 << 20, 70_000);
    room.done(&["convert", "-q", "-O", "qcow2", "top.qbm", "flat.qcow2"]);
    assert_sound(&room, "flat.qcow2");
    room.done(&["convert", "-q", "top.qbm", "flat.img"]);
    qemu(
        &room,
        &["compare", "-f", "raw", "-F", "qcow2", "flat.img", "flat.qcow2"],
    );
    let same = room.done(&["compare", "-F", "qcow2", "top.qbm", "flat.qcow2"]);
    assert_eq!(same, "Images are identical.\n");
}

#[test]
fn qcow2_and_vmdk_images_are_sources() {
    if !have_qemu() {
        return;
    }
    let mut random = Random::new(Random::seed());
    for (format, options) in [
        ("qcow2", "compat=1.1"),
        ("qcow2", "cluster_size=4k"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
    ] {
        let room = Room::new();
        let length = 512 * (1 + random.below(20_000));
        scatter(&room, "in.img", length, &mut random);
        qemu(
            &room,
            &[
                "convert", "-f", "raw", "-O", format, "-o", options, "in.img", "theirs",
            ],
        );
        let verdict = room.done(&["compare", "-f", format, "-F", "raw", "theirs", "in.img"]);
        assert_eq!(verdict, "Images are identical.\n", "{format} {options}");
        room.done(&["convert", "-q", "-f", format, "-O", "raw", "theirs", "out.img"]);
        assert!(room.read("out.img") == room.read("in.img"), "{format} {options}");
        room.done(&[
            "convert",
            "-q",
            "-f",
            format,
            "-O",
            "qcow2",
            "theirs",
            "out.qcow2",
        ]);
        assert_sound(&room, "out.qcow2");
        let verdict = room.done(&["compare", "-f", format, "-F", "qcow2", "theirs", "out.qcow2"]);
        assert_eq!(verdict, "Images are identical.\n", "{format} {options}");
        // What differs is seen.
        let file = std::fs::File::options()
            .write(true)
            .open(room.path("out.img"))
            .expect("it opens");
        let at = random.below(length);
        let other = !room.read("in.img")[usize::try_from(at).expect("small")];
        std::os::unix::fs::FileExt::write_all_at(&file, &[other], at).expect("written");
        let output = room.run(&["compare", "-f", format, "-F", "raw", "theirs", "out.img"]);
        assert_eq!(output.status.code(), Some(1), "{format} {options}");
    }
}

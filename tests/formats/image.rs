//! Images as a disk's own.

use qbm::{AddBitmap, CreateOptions, Disk, Format, Granularity, OpenOptions, TruncateFlags, WriteFlags};

use crate::random::Random;
use crate::room::{KIB, MIB, Room, assert_same, read_all, statuses};

const NONE: WriteFlags = WriteFlags::empty();

/// A descriptor `d.qbm` for an image.
fn adopt(room: &Room, image: &str, format: Format) -> qbm::Result<()> {
    for name in ["d.qbm", "d.state", "d-bits.bitmap"] {
        let _ = std::fs::remove_file(room.path(name));
    }
    CreateOptions::new()
        .image(image)
        .image_format(format)
        .create(room.path("d.qbm"))
}

fn open(room: &Room) -> Disk {
    OpenOptions::new().open(room.path("d.qbm")).expect("opened")
}

/// Changes of every kind, on the disk and on a plain copy of what it shows.
fn change(disk: &Disk, model: &mut [u8], random: &mut Random, count: usize) {
    let length = disk.length();
    for _ in 0..count {
        let at = random.below(length);
        let len = (1 + random.below(200 * KIB)).min(length - at);
        let range = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
        match random.below(8) {
            0 => disk.write_zeroes(at, len, NONE).expect("zeros"),
            1 => disk.write_zeroes(at, len, WriteFlags::MAY_UNMAP).expect("zeros"),
            2 => disk.discard(at, len, NONE).expect("a discard"),
            3 => {
                disk.flush().expect("a flush");
                continue;
            }
            kind => {
                let byte = u8::try_from(1 + random.below(255)).expect("a byte");
                let bytes = vec![byte; range.len()];
                let flags = if kind == 4 { WriteFlags::FUA } else { NONE };
                disk.write(&bytes, at, flags).expect("a write");
                model[range].fill(byte);
                continue;
            }
        }
        model[range].fill(0);
    }
}

/// The disk shows the model, and so does QEMU of the image once the disk is closed, which is a sound one.
#[track_caller]
fn check(room: &Room, disk: Disk, model: &[u8], image: &str) {
    assert_same(&read_all(&disk), model);
    disk.close().expect("closed");
    room.img(&format!("check -q -f qcow2 {image}"));
    assert_same(&room.content(image, "qcow2"), model);
}

/// Writes, zeros and discards in clusters of every size, over what is there already: plain, compressed, with a backing,
/// with a snapshot, in another file.
#[test]
fn qcow2_that_is_written_to() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 2 * MIB);
    room.raw("full.raw", 3 * MIB);
    let mut random = Random::new(7);
    for (number, (how, more)) in [
        ("create -q -f qcow2 -o cluster_size=512 a.qcow2 3M", ""),
        ("create -q -f qcow2 -o cluster_size=64k a.qcow2 3M", ""),
        ("create -q -f qcow2 -o cluster_size=2M a.qcow2 5M", ""),
        ("create -q -f qcow2 -o refcount_bits=1 a.qcow2 3M", ""),
        ("create -q -f qcow2 -o preallocation=metadata a.qcow2 3M", ""),
        (
            "create -q -f qcow2 -o data_file=a.data,data_file_raw=off a.qcow2 3M",
            "",
        ),
        (
            "create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw a.qcow2 3M",
            "",
        ),
        ("convert -c -f raw -O qcow2 full.raw a.qcow2", ""),
        (
            "convert -f raw -O qcow2 full.raw a.qcow2",
            "snapshot -c before a.qcow2",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let _ = std::fs::remove_file(room.path("a.data"));
        room.img(how);
        if !more.is_empty() {
            room.img(more);
        }
        let mut model = room.content("a.qcow2", "qcow2");
        adopt(&room, "a.qcow2", Format::Qcow2).expect(how);
        for _ in 0..2 {
            let disk = open(&room);
            assert_same(&read_all(&disk), &model);
            change(&disk, &mut model, &mut random, 60);
            check(&room, disk, &model, "a.qcow2");
        }
        if !more.is_empty() {
            room.img("snapshot -a before a.qcow2");
            room.img("check -q -f qcow2 a.qcow2");
            let full = std::fs::read(room.path("full.raw")).expect("the image");
            assert_same(&room.content("a.qcow2", "qcow2"), &full);
        }
        assert!(number < 20);
    }
}

/// What QEMU says of what is where, and in which images.
#[test]
fn the_status_goes_through_to_the_backing() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 2 * MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw -o cluster_size=4k a.qcow2 3M");
    room.io("a.qcow2", "qcow2", &["write -P 1 64k 100k", "write -z 1M 100k"]);
    room.img("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 4M");
    room.io(
        "b.qcow2",
        "qcow2",
        &["write -P 2 128k 100k", "write -P 3 3500k 10k"],
    );
    adopt(&room, "b.qcow2", Format::Qcow2).expect("adopted");
    let disk = open(&room);
    assert_eq!(statuses(&disk), room.map_unlocked("b.qcow2", "qcow2"));
    let formats: Vec<_> = (0..disk.info().expect("facts").layers)
        .map(|index| disk.layer(index).expect("a layer").format)
        .collect();
    assert_eq!(formats, [Format::Qcow2, Format::Qcow2, Format::Raw]);
    disk.close().expect("closed");
    // And the same below another disk.
    let top = room.over("d.qbm", Format::Qbm);
    let mut expected = room.map("b.qcow2", "qcow2");
    for it in &mut expected {
        it.depth += 1;
    }
    assert_eq!(statuses(&top), expected);
    assert_same(&read_all(&top), &room.content("b.qcow2", "qcow2"));
    assert_eq!(top.info().expect("facts").layers, 4);
}

/// Dirty bitmaps stand beside a qcow2 as beside a raw image; what others write to it is noticed.
#[test]
fn dirty_bitmaps_of_a_qcow2() {
    let Some(room) = Room::new() else { return };
    room.img("create -q -f qcow2 a.qcow2 3M");
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let disk = open(&room);
    disk.bitmap_add(
        "bits",
        AddBitmap {
            granularity: Granularity::new(4096).expect("one"),
            ..AddBitmap::default()
        },
    )
    .expect("added");
    disk.write(&[1; 5000], 10_000, NONE).expect("a write");
    disk.discard(MIB, 8192, NONE).expect("a discard");
    disk.close().expect("closed");
    let count = |disk: &Disk| {
        let info = disk.bitmap_list().expect("a list").remove(0);
        (info.count, info.inconsistent)
    };
    let disk = open(&room);
    assert_eq!(count(&disk), (Some(4), false));
    disk.close().expect("closed");
    room.io("a.qcow2", "qcow2", &["write -P 2 0 1k"]);
    let disk = open(&room);
    assert!(count(&disk).1, "a foreign write was not noticed");
}

/// A disk that is dropped without a word has its bytes all the same, as one with a raw image has.
#[test]
fn a_disk_that_is_only_dropped() {
    let Some(room) = Room::new() else { return };
    room.img("create -q -f qcow2 a.qcow2 3M");
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let disk = open(&room);
    disk.write(&[1; 5000], 10_000, NONE).expect("a write");
    drop(disk);
    room.img("check -q -f qcow2 a.qcow2");
    assert!(
        room.content("a.qcow2", "qcow2")[10_000..15_000]
            .iter()
            .all(|it| *it == 1)
    );
}

/// QEMU's own bitmaps in the image do not know what libqbm writes: they must not stay valid.
#[test]
fn bitmaps_of_qemu_in_the_image() {
    let Some(room) = Room::new() else { return };
    room.img("create -q -f qcow2 a.qcow2 3M");
    room.img("bitmap --add a.qcow2 theirs");
    let info = || String::from_utf8(room.run("qemu-img", &["info", "a.qcow2"])).expect("text");
    assert!(info().contains("theirs"));
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    OpenOptions::new()
        .read_only(true)
        .open(room.path("d.qbm"))
        .expect("opened");
    assert!(info().contains("theirs"), "reading changed the image");
    let disk = open(&room);
    disk.write(&[1; 5000], 10_000, NONE).expect("a write");
    disk.close().expect("closed");
    assert!(!info().contains("theirs"), "{}", info());
    room.img("check -q -r all -f qcow2 a.qcow2");
}

#[test]
fn growing_and_cutting() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 3 * MIB);
    for (how, smaller) in [
        ("create -q -f qcow2 a.qcow2 2M", MIB),
        ("create -q -f qcow2 -o cluster_size=512 a.qcow2 2M", MIB + 512),
        ("create -q -f qcow2 -b base.raw -F raw a.qcow2 2M", MIB),
    ] {
        room.img(how);
        let mut model = room.content("a.qcow2", "qcow2");
        adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
        let disk = open(&room);
        change(&disk, &mut model, &mut Random::new(3), 20);
        disk.truncate(4 * MIB + 512, TruncateFlags::empty())
            .expect("grown");
        model.resize(4 << 20 | 512, 0);
        assert_same(&read_all(&disk), &model);
        change(&disk, &mut model, &mut Random::new(4), 20);
        disk.truncate(smaller, TruncateFlags::SHRINK).expect("cut");
        model.truncate(usize::try_from(smaller).expect("small"));
        disk.truncate(3 * MIB, TruncateFlags::empty()).expect("grown");
        model.resize(3 << 20, 0);
        let error = disk
            .truncate(3 * MIB + 1, TruncateFlags::empty())
            .expect_err("no sector");
        assert_eq!(error.errno(), 22, "{error}");
        change(&disk, &mut model, &mut Random::new(5), 20);
        check(&room, disk, &model, "a.qcow2");
    }
}

/// An allocation bitmap beside a qcow2, which then has no backing of its own.
#[test]
fn an_overlay_whose_image_is_a_qcow2() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 2 * MIB);
    room.img("create -q -f qcow2 a.qcow2 2M");
    let text = r#"{"QBM": {"version": 1, "image": {"file": "a.qcow2", "format": "qcow2"}, "bitmaps": {"a": {
        "file": "bits", "type": "allocation", "granularity-bytes": 4096,
        "backing": {"file": "base.raw", "format": "raw"}}}}}"#;
    std::fs::write(room.path("d.qbm"), text).expect("written");
    std::fs::write(room.path("bits"), [0; 64]).expect("written");
    let mut model = std::fs::read(room.path("base.raw")).expect("the base");
    let disk = open(&room);
    change(&disk, &mut model, &mut Random::new(3), 40);
    disk.close().expect("closed");
    let disk = open(&room);
    assert_same(&read_all(&disk), &model);
    disk.commit(&mut |_, _| std::ops::ControlFlow::Continue(()))
        .expect("committed");
    disk.close().expect("closed");
    assert_same(&std::fs::read(room.path("base.raw")).expect("the base"), &model);
    room.img("check -q -f qcow2 a.qcow2");
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2");
    let error = OpenOptions::new()
        .open(room.path("d.qbm"))
        .expect_err("two backings");
    assert!(error.message().contains("it cannot have both"), "{error}");
}

#[test]
fn images_that_are_refused() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", MIB);
    room.img("convert -f raw -O vmdk base.raw a.vmdk");
    adopt(&room, "a.vmdk", Format::Vmdk).expect("adopted");
    let error = OpenOptions::new().open(room.path("d.qbm")).expect_err("a vmdk");
    assert!(
        error
            .message()
            .contains("a.vmdk is a vmdk, which can only be read: open the disk read-only"),
        "{error}"
    );
    let disk = OpenOptions::new()
        .read_only(true)
        .open(room.path("d.qbm"))
        .expect("opened");
    assert_same(
        &read_all(&disk),
        &std::fs::read(room.path("base.raw")).expect("the base"),
    );
    room.img("create -q -f qcow2 -o data_file=a.data,data_file_raw=on a.qcow2 1M");
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let error = OpenOptions::new()
        .open(room.path("d.qbm"))
        .expect_err("a raw data file");
    assert!(
        error.message().contains("its data file is a raw image by itself"),
        "{error}"
    );
    OpenOptions::new()
        .read_only(true)
        .open(room.path("d.qbm"))
        .expect("opened");
    room.img("create -q -f qcow2 -o compat=0.10 a.qcow2 1M");
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let error = OpenOptions::new()
        .open(room.path("d.qbm"))
        .expect_err("version 2");
    assert!(
        error.message().contains("qemu-img amend -f qcow2 -o compat=1.1"),
        "{error}"
    );
    room.img("amend -f qcow2 -o compat=1.1 a.qcow2");
    let disk = open(&room);
    disk.write(&[1; 512], 0, NONE).expect("a write");
    // Whoever comes before the disk is closed is told so.
    let before = std::fs::read(room.path("a.qcow2")).expect("the image");
    disk.close().expect("closed");
    let after = std::fs::read(room.path("a.qcow2")).expect("the image");
    assert_eq!((before[79], after[79]), (1, 0));
    // As if it never had been: QEMU repairs it, and goes on.
    std::fs::write(room.path("a.qcow2"), before).expect("written");
    let error = OpenOptions::new()
        .open(room.path("d.qbm"))
        .expect_err("not closed");
    assert!(
        error.message().contains("\"qemu-img check -r all\" repairs it"),
        "{error}"
    );
    room.img("check -q -r all a.qcow2");
    open(&room).close().expect("closed");
    let error = adopt(&room, "base.raw", Format::Qcow2).expect_err("raw");
    assert!(error.message().contains("it is no qcow2 image"), "{error}");
    assert!(!room.path("d.qbm").exists());
    let error = adopt(&room, "base.raw", Format::Qbm).expect_err("qbm");
    assert!(error.message().contains("base.raw: not UTF-8"), "{error}");
}

/// What was opened without its backing is an error to read, not zeros.
#[test]
fn without_the_backing() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2 1M");
    room.io("a.qcow2", "qcow2", &["write -P 1 64k 64k"]);
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let disk = OpenOptions::new()
        .no_backing(true)
        .open(room.path("d.qbm"))
        .expect("opened");
    let mut bytes = [0; 4096];
    disk.read(&mut bytes, 64 * KIB).expect("its own");
    assert_eq!(bytes, [1; 4096]);
    let error = disk.read(&mut bytes, 0).expect_err("not its own");
    assert!(
        error.message().contains("the disk was opened without it"),
        "{error}"
    );
    disk.write(&bytes, 0, NONE)
        .expect_err("a part of a cluster that is below");
    disk.write(&vec![2; 64 << 10], 0, NONE).expect("a whole cluster");
}

/// Many threads in the same clusters: what is read last is what somebody wrote, and the image stays sound.
#[test]
fn many_threads_in_the_same_clusters() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 2 * MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2 2M");
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let disk = open(&room);
    let base = std::fs::read(room.path("base.raw")).expect("the base");
    std::thread::scope(|scope| {
        for number in 0..4u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut random = Random::new(11 + number);
                for _ in 0..300 {
                    // Each thread has every fourth sector of all clusters.
                    let at = (random.below(MIB / 2048) * 4 + number) * 512;
                    let byte = u8::try_from(number + 1).expect("a byte");
                    disk.write(&[byte; 512], at, NONE).expect("a write");
                    if random.below(20) == 0 {
                        disk.discard(MIB + number * 256 * KIB, 256 * KIB, NONE)
                            .expect("a discard");
                        disk.flush().expect("a flush");
                    }
                    let mut seen = [0; 512];
                    disk.read(&mut seen, at).expect("a read");
                    assert_eq!(seen, [byte; 512]);
                }
            });
        }
    });
    let found = read_all(&disk);
    for (sector, bytes) in found[..1 << 20].chunks(512).enumerate() {
        let byte = u8::try_from(sector % 4 + 1).expect("a byte");
        assert!(
            bytes == [byte; 512] || bytes == &base[sector * 512..][..512],
            "sector {sector}"
        );
    }
    check(&room, disk, &found, "a.qcow2");
}

/// A snapshot closes the image that was written to, as far as others can see: it opens for whoever reads.
#[test]
fn qcow2_that_a_snapshot_takes_over() {
    let Some(room) = Room::new() else { return };
    room.raw("low.img", MIB);
    room.img("create -q -f qcow2 -b low.img -F raw a.qcow2 3M");
    adopt(&room, "a.qcow2", Format::Qcow2).expect("adopted");
    let mut random = Random::new(11);
    let disk = open(&room);
    disk.bitmap_add("bits", AddBitmap::default()).expect("a bitmap");
    let mut model = read_all(&disk);
    change(&disk, &mut model, &mut random, 40);
    disk.snapshot("s.qbm", None).expect("a snapshot");
    let kept = model.clone();
    change(&disk, &mut model, &mut random, 40);
    assert_same(&read_all(&disk), &model);
    let reader = OpenOptions::new().read_only(true).open(room.path("s.qbm"));
    assert_same(&read_all(&reader.expect("a reader")), &kept);
    disk.close().expect("closed");
    assert_same(&read_all(&open(&room)), &model);
    room.img("check -q -f qcow2 a.qcow2");
    assert_same(&room.content("a.qcow2", "qcow2"), &kept);
}

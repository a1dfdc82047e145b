//! Images as the backing of a disk.

use qbm::{Disk, Format};

use crate::room::{KIB, MIB, Room, assert_same, read_all, statuses};

/// The disk shows what QEMU shows of the image, and says the same of what is where, one layer deeper.
#[track_caller]
fn check(room: &Room, image: &str, format: Format) -> Disk {
    let disk = room.over(image, format);
    assert_same(&read_all(&disk), &room.content(image, format.word()));
    let mut expected = room.map(image, format.word());
    for status in &mut expected {
        status.depth += 1;
    }
    let found = statuses(&disk);
    if found != expected {
        let differs = found.iter().zip(&expected).find(|(a, b)| a != b);
        panic!(
            "{image}: libqbm says {:?}, QEMU {:?}",
            differs.map(|it| it.0),
            differs.map(|it| it.1)
        );
    }
    disk
}

/// Data, zeros, holes and rewritten pieces, in clusters of every size.
#[test]
fn qcow2_of_every_cluster_size() {
    let Some(room) = Room::new() else { return };
    for cluster in [512, 1024, 4096, 65536, 2 << 20] {
        for (compat, length) in [("1.1", 5 * MIB + 512), ("0.10", 3 * MIB), ("1.1", 7 * KIB)] {
            room.img(&format!(
                "create -q -f qcow2 -o cluster_size={cluster},compat={compat} a.qcow2 {length}"
            ));
            if length > MIB {
                room.io(
                    "a.qcow2",
                    "qcow2",
                    &[
                        "write -P 1 0 100k",
                        "write -P 2 1M 300k",
                        "write -z 1100k 64k",
                        "write -P 3 2500k 1k",
                        "write -z 2048k 100k",
                    ],
                );
            } else {
                room.io("a.qcow2", "qcow2", &["write -P 1 1k 2k"]);
            }
            check(&room, "a.qcow2", Format::Qcow2);
        }
    }
}

/// Compressed clusters, and plain ones beside them.
#[test]
fn qcow2_with_compressed_clusters() {
    let Some(room) = Room::new() else { return };
    room.raw("a.raw", 3 * MIB + 5 * 512);
    for cluster in [512, 65536, 1 << 20] {
        room.img(&format!(
            "convert -c -f raw -O qcow2 -o cluster_size={cluster} a.raw a.qcow2"
        ));
        room.io("a.qcow2", "qcow2", &["write -P 9 1M 70k", "write -z 2M 64k"]);
        check(&room, "a.qcow2", Format::Qcow2);
    }
}

/// A chain of three qcow2 images over a raw one that is shorter than they are.
#[test]
fn qcow2_with_its_own_backing() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 2 * MIB);
    std::fs::create_dir(room.path("deep")).expect("a folder");
    room.img("create -q -f qcow2 -b ../base.raw -F raw -o cluster_size=4k deep/a.qcow2 3M");
    room.io(
        "deep/a.qcow2",
        "qcow2",
        &["write -P 1 64k 100k", "write -z 1M 100k"],
    );
    room.img("create -q -f qcow2 -b deep/a.qcow2 -F qcow2 b.qcow2 4M");
    room.io(
        "b.qcow2",
        "qcow2",
        &["write -P 2 128k 100k", "write -P 3 3500k 10k"],
    );
    room.img("create -q -f qcow2 -b b.qcow2 -F qcow2 -o cluster_size=512 c.qcow2 4M");
    room.io("c.qcow2", "qcow2", &["write -P 4 1k 1k", "write -z 1100k 1k"]);
    let disk = check(&room, "c.qcow2", Format::Qcow2);
    let layers: Vec<_> = (0..disk.info().expect("facts").layers)
        .map(|index| {
            let layer = disk.layer(index).expect("a layer");
            (layer.path, layer.format, layer.length)
        })
        .collect();
    let layer = |name: &str, format, length| (room.path(name), format, length);
    assert_eq!(
        layers,
        [
            layer("top-data.img", Format::Raw, 4 * MIB),
            layer("c.qcow2", Format::Qcow2, 4 * MIB),
            layer("b.qcow2", Format::Qcow2, 4 * MIB),
            layer("deep/a.qcow2", Format::Qcow2, 3 * MIB),
            layer("deep/../base.raw", Format::Raw, 2 * MIB),
        ]
    );
}

/// Data in another file: a raw one, and one that is not.
#[test]
fn qcow2_with_a_data_file() {
    let Some(room) = Room::new() else { return };
    for raw in ["on", "off"] {
        room.img(&format!(
            "create -q -f qcow2 -o data_file=a.data,data_file_raw={raw} a.qcow2 3M"
        ));
        room.io(
            "a.qcow2",
            "qcow2",
            &["write -P 1 0 100k", "write -P 2 1M 300k", "write -z 1100k 64k"],
        );
        let disk = room.over("a.qcow2", Format::Qcow2);
        assert_same(&read_all(&disk), &room.content("a.qcow2", "qcow2"));
        std::fs::remove_file(room.path("a.data")).expect("removed");
    }
}

/// The active layer of an image with internal snapshots.
#[test]
fn qcow2_with_snapshots() {
    let Some(room) = Room::new() else { return };
    room.img("create -q -f qcow2 a.qcow2 3M");
    room.io("a.qcow2", "qcow2", &["write -P 1 0 200k"]);
    room.img("snapshot -c before a.qcow2");
    room.io("a.qcow2", "qcow2", &["write -P 2 100k 200k"]);
    check(&room, "a.qcow2", Format::Qcow2);
}

/// Every kind of vmdk that qemu-img makes.
#[test]
fn vmdk_of_every_kind() {
    let Some(room) = Room::new() else { return };
    room.raw("a.raw", 5 * MIB + 512);
    for kind in [
        "monolithicSparse",
        "monolithicFlat",
        "streamOptimized",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
    ] {
        for zeroed in ["off", "on"] {
            if zeroed == "on" && kind.ends_with("Flat") {
                continue;
            }
            let options = format!(
                "subformat={kind}{}",
                if zeroed == "on" { ",zeroed_grain=on" } else { "" }
            );
            room.img(&format!("convert -f raw -O vmdk -o {options} a.raw a.vmdk"));
            let disk = room.over("a.vmdk", Format::Vmdk);
            assert_same(&read_all(&disk), &room.content("a.vmdk", "vmdk"));
            if kind == "monolithicSparse" {
                check(&room, "a.vmdk", Format::Vmdk);
            }
        }
    }
}

/// More than one extent: two files of 2 GiB and a rest.
#[test]
fn vmdk_of_several_extents() {
    let Some(room) = Room::new() else { return };
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        room.img(&format!("create -q -f vmdk -o subformat={kind} a.vmdk 5G"));
        let writes = [
            "write -P 1 2047M 2M",
            "write -P 2 4095M 2M",
            "write -P 3 5119M 1M",
        ];
        room.io("a.vmdk", "vmdk", &writes);
        let disk = room.over("a.vmdk", Format::Vmdk);
        for (byte, at, len) in [(1, 2047, 2), (2, 4095, 2), (3, 5119, 1), (0, 3000, 1)] {
            let mut bytes = vec![0xee; len << 20];
            disk.read(&mut bytes, at << 20).expect("a read");
            assert!(bytes.iter().all(|it| *it == byte), "{kind}: at {at} MiB");
        }
    }
}

/// A disk that is written to takes from all of them, and changes none.
#[test]
fn a_disk_over_them_is_written_to() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 2 * MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2 3M");
    room.io("a.qcow2", "qcow2", &["write -P 1 64k 100k"]);
    let before = std::fs::read(room.path("a.qcow2")).expect("the image");
    let mut expected = room.content("a.qcow2", "qcow2");
    let disk = room.over("a.qcow2", Format::Qcow2);
    for (byte, at, len) in [(7, 100, 1000), (8, 70_000, 300_000), (9, 2_999_000, 77)] {
        disk.write(&vec![byte; len], at as u64, qbm::WriteFlags::empty())
            .expect("a write");
        expected[at..at + len].fill(byte);
    }
    assert_same(&read_all(&disk), &expected);
    disk.close().expect("closed");
    assert_same(&std::fs::read(room.path("a.qcow2")).expect("the image"), &before);
}

//! What is where, as the outer disk tells.

use qbm::{StatusFlags, StatusHints};

use crate::*;

/// Every run of data, at the place where its layer says that it is.
fn data_is_where_it_says(disk: &Disk, content: &[u8]) -> Vec<(u64, u32, u32)> {
    let layers = disk.info().expect("facts").layers;
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < disk.length() {
        let status = disk.block_status(at, disk.length() - at).expect("a status");
        assert!(status.length > 0 && status.layer < layers, "{status:?}");
        let bytes = &content[usize::try_from(at).expect("in memory")..]
            [..usize::try_from(status.length).expect("too")];
        if status.flags.contains(StatusFlags::ZERO) {
            assert!(bytes.iter().all(|byte| *byte == 0), "{status:?} at {at}");
        }
        if status
            .flags
            .contains(StatusFlags::DATA | StatusFlags::OFFSET_VALID)
        {
            let file = std::fs::read(disk.layer(status.layer).expect("a layer").path).expect("its file");
            let there = &file[usize::try_from(status.offset).expect("in memory")..][..bytes.len()];
            assert!(bytes == there, "{status:?} at {at}");
        }
        runs.push((at, status.depth, status.layer));
        at += status.length;
    }
    runs
}

fn named(disk: &Disk) -> Vec<(String, &'static str, Option<String>, Option<u32>)> {
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    (0..disk.info().expect("facts").layers)
        .map(|index| {
            let layer = disk.layer(index).expect("a layer");
            (
                name(&layer.path),
                layer.format.word(),
                layer.descriptor.as_deref().map(name),
                layer.part_of,
            )
        })
        .collect()
}

fn of(
    file: &str,
    format: &'static str,
    descriptor: Option<&str>,
    part: Option<u32>,
) -> (String, &'static str, Option<String>, Option<u32>) {
    (file.to_owned(), format, descriptor.map(str::to_owned), part)
}

#[test]
fn layers_and_places() {
    let room = Room::new();
    room.overlay("inner.qbm", "low.img");
    room.overlay_around("inner.qbm", "middle.qbm", "base.img");
    room.overlay_around("middle.qbm", "outer.qbm", "lowest.img");
    let disk = room.open("outer.qbm");
    assert_eq!(
        named(&disk),
        [
            of("middle.qbm", "qbm", Some("outer.qbm"), None),
            of("lowest.img", "raw", None, None),
            of("inner.qbm", "qbm", Some("middle.qbm"), Some(0)),
            of("base.img", "raw", None, Some(0)),
            of("inner-data.img", "raw", Some("inner.qbm"), Some(2)),
            of("low.img", "raw", None, Some(2)),
        ]
    );
    disk.write(&[7; 3000], 9000, NONE).expect("a write");
    disk.write_zeroes(100 << 10, 30_000, NONE).expect("zeros");
    let content = read_all(&disk);
    let runs = data_is_where_it_says(&disk, &content);
    assert!(
        runs.contains(&(0, 1, 1)),
        "the outer disk's own backing: {runs:?}"
    );
    // In the granule that was allocated, the innermost file has the bytes, which are the outer disk's own all the same.
    assert!(runs.contains(&(8192, 0, 4)), "{runs:?}");
    disk.close().expect("closed");

    // As a backing, and a disk with no bits of its own above an overlay.
    room.around("inner.qbm", "plain.qbm").expect("a disk");
    let disk = room.look("plain.qbm");
    let runs = data_is_where_it_says(&disk, &read_all(&disk));
    assert!(
        runs.iter().all(|(_, depth, layer)| *depth == 0 && *layer > 0),
        "{runs:?}"
    );
    assert!(
        runs.iter().any(|run| run.2 == 2),
        "what the inner disk takes from its backing: {runs:?}"
    );
    drop(disk);
    CreateOptions::new()
        .backing("outer.qbm", Format::Qbm)
        .granularity(Granularity::new(4096).expect("a granularity"))
        .create(room.path("top.qbm"))
        .expect("an overlay");
    let disk = room.open("top.qbm");
    assert_eq!(
        named(&disk),
        [
            of("top-data.img", "raw", Some("top.qbm"), None),
            of("middle.qbm", "qbm", Some("outer.qbm"), None),
            of("lowest.img", "raw", None, None),
            of("inner.qbm", "qbm", Some("middle.qbm"), Some(1)),
            of("base.img", "raw", None, Some(1)),
            of("inner-data.img", "raw", Some("inner.qbm"), Some(3)),
            of("low.img", "raw", None, Some(3)),
        ]
    );
    disk.write(&[9; 5000], 50_000, NONE).expect("a write");
    let content = read_all(&disk);
    let runs = data_is_where_it_says(&disk, &content);
    assert!(runs.contains(&(8192, 1, 5)), "{runs:?}");
    let short = StatusHints {
        allocation_only: true,
        deepest: Some(0),
    };
    let status = disk.block_status_with(8192, 4096, short).expect("a status");
    assert_eq!((status.flags, status.depth), (StatusFlags::empty(), 1));
    let error = disk.layer(7).expect_err("no such layer");
    assert_eq!(error.message(), "there is no layer 7: the disk has 7");
    // Layers of images are none to commit into.
    let error = disk
        .commit_into(5, &mut |_, _| std::ops::ControlFlow::Continue(()))
        .expect_err("a part");
    assert!(
        error.message().contains("there is no layer 5 below it: it has 2"),
        "{error}"
    );
}

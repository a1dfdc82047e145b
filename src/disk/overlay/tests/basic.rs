//! Reads, writes and what is where.

use super::*;
use crate::disk::{AddBitmap, StatusFlags, StatusHints};
use crate::storage::simulated::CallKind;

#[test]
fn an_overlay_shows_its_backing_until_it_is_written() {
    let sim = overlay(10 * G, 10 * G);
    let disk = open(&sim);
    let mut content = base(10 * G);
    assert_same(&read_all(&disk), &content);
    // A part of a granule, across two granules, whole granules with both edges.
    for (at, len) in [(100, 7), (2 * G - 1, 2), (4 * G + 5, 3 * G), (8 * G, G)] {
        write(&disk, 0xab, at, len);
        content[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()].fill(0xab);
        assert_same(&read_all(&disk), &content);
    }
    disk.close().unwrap();
    assert_same(&sim.read("base.img").unwrap(), &base(10 * G));
    assert_same(&read_all(&open(&sim)), &content);
    // Granules 0, 1, 2, 4, 5, 6, 7 and 8.
    assert_eq!(sim.read(BITS).unwrap(), [0b1111_0111, 1, 0, 0, 0, 0, 0, 0]);
}

/// One I/O of the image for a write, and one of each file for each run of a read.
#[test]
fn a_run_is_one_transfer() {
    let sim = overlay(64 * G, 64 * G);
    let disk = open(&sim);
    let count = |kind, name: &str, act: &dyn Fn()| {
        let before = sim.events().len();
        act();
        let events = sim.events();
        events[before..]
            .iter()
            .filter(|event| event.call.kind() == kind)
            .filter(|event| event.call.names().any(|it| it.to_str() == Some(name)))
            .count()
    };
    let one = |at, len| write(&disk, 1, at, len);
    assert_eq!(count(CallKind::Write, IMAGE, &|| one(0, 4 * G)), 1);
    assert_eq!(
        count(CallKind::Read, "base.img", &|| one(4 * G, G)),
        0,
        "a whole granule copies nothing"
    );
    assert_eq!(count(CallKind::Write, IMAGE, &|| one(8 * G + 1, 3 * G)), 1);
    assert_eq!(count(CallKind::Read, "base.img", &|| one(30 * G + 1, 3 * G)), 2);
    let all = || drop(read_all(&disk));
    assert_eq!(count(CallKind::Read, IMAGE, &all), 3);
    assert_eq!(count(CallKind::Read, "base.img", &all), 3);
    assert_eq!(
        count(CallKind::Write, BITS, &|| disk.flush().unwrap()),
        1,
        "all bits are in one piece"
    );
}

#[test]
fn a_backing_that_ends_early_is_followed_by_zeros() {
    let (length, end) = (8 * G, 5 * G + 100);
    let sim = overlay(length, end);
    let disk = open(&sim);
    let mut content = base(end);
    content.resize(usize::try_from(length).unwrap(), 0);
    assert_same(&read_all(&disk), &content);
    // What the image has had before is never shown.
    disk.close().unwrap();
    let stale = vec![0x55; usize::try_from(length).unwrap()];
    sim.put(IMAGE, &stale);
    let disk = open(&sim);
    assert_same(&read_all(&disk), &content);
    for at in [5 * G + 50, 5 * G + 3000, 7 * G + 10] {
        write(&disk, 9, at, 1);
        content[usize::try_from(at).unwrap()] = 9;
        assert_same(&read_all(&disk), &content);
    }
}

#[test]
fn an_overlay_can_be_shorter_than_its_backing() {
    let sim = overlay(3 * G + 7, 10 * G);
    let disk = open(&sim);
    let mut content = base(3 * G + 7);
    assert_same(&read_all(&disk), &content);
    write(&disk, 5, 3 * G + 6, 1);
    *content.last_mut().unwrap() = 5;
    assert_same(&read_all(&disk), &content);
    assert_eq!(sim.read(IMAGE).unwrap().len(), content.len());
}

#[test]
fn a_thin_disk_reads_as_zeros_until_it_is_written() {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(8 * G)
        .granularity(granularity(G))
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    let stale = vec![0x55; usize::try_from(8 * G).unwrap()];
    sim.put(IMAGE, &stale);
    let disk = open(&sim);
    let mut content = vec![0; stale.len()];
    assert_same(&read_all(&disk), &content);
    write(&disk, 3, G + 1, 1);
    disk.discard(3 * G - 1, 2 * G, WriteFlags::empty()).unwrap();
    content[usize::try_from(G).unwrap() + 1] = 3;
    assert_same(&read_all(&disk), &content);
    disk.close().unwrap();
    assert_eq!(
        sim.read(BITS).unwrap()[0],
        0b10,
        "zeros need no granule of their own where there is no backing"
    );
    assert_eq!(open(&sim).info().unwrap().layers, 1);
}

#[test]
fn zeros_and_discards_hide_the_backing() {
    for discard in [false, true] {
        let sim = overlay(16 * G, 16 * G);
        let stale = vec![0x55; usize::try_from(16 * G).unwrap()];
        sim.put(IMAGE, &stale);
        let disk = open(&sim);
        let mut content = base(16 * G);
        write(&disk, 1, 6 * G, G);
        content[usize::try_from(6 * G).unwrap()..usize::try_from(7 * G).unwrap()].fill(1);
        for (at, len) in [(5, 1), (G - 1, 2), (3 * G + 100, 6 * G), (12 * G, 4 * G)] {
            if discard {
                disk.discard(at, len, WriteFlags::empty()).unwrap();
            } else {
                disk.write_zeroes(at, len, WriteFlags::empty()).unwrap();
            }
            content[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()].fill(0);
            assert_same(&read_all(&disk), &content);
        }
        disk.close().unwrap();
        assert_same(&read_all(&open(&sim)), &content);
    }
}

#[test]
fn dirty_bits_are_there_before_a_granule_is_allocated() {
    let sim = overlay(16 * G, 16 * G);
    let disk = open(&sim);
    for (name, bytes) in [("fine", 512), ("coarse", 8 * G)] {
        let options = AddBitmap {
            granularity: granularity(bytes),
            ..AddBitmap::default()
        };
        disk.bitmap_add(name, options).unwrap();
    }
    let before = sim.events().len();
    write(&disk, 1, 2 * G + 600, 10);
    let events = sim.events();
    let position = |name: &str| {
        events[before..]
            .iter()
            .position(|event| {
                event.call.kind() == CallKind::Write && event.call.names().any(|it| it.to_str() == Some(name))
            })
            .unwrap()
    };
    assert!(position("top-fine.bitmap") < position(IMAGE));
    assert!(position("top-coarse.bitmap") < position(IMAGE));
    // What the guest did not write is not dirty, though it was copied.
    assert_eq!(disk.bitmap_count("fine").unwrap(), 1);
    assert_eq!(disk.bitmap_count("coarse").unwrap(), 1);
    disk.write(&[7; 512], 9 * G, WriteFlags::UNCHANGED).unwrap();
    assert_eq!(disk.bitmap_count("coarse").unwrap(), 1);
    let error = disk.bitmap_add("allocation", AddBitmap::default()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::BitmapExists);
}

/// Every run of the disk: where it begins and how long it is in granules, at which depth, and what.
fn walk(disk: &Disk, hints: StatusHints) -> Vec<(u64, u64, u32, StatusFlags)> {
    let mut at = 0;
    let mut found = Vec::new();
    while at < disk.length() {
        let status = disk.block_status_with(at, disk.length() - at, hints).unwrap();
        assert!(status.length > 0 && status.layer == status.depth);
        if status.flags.contains(StatusFlags::OFFSET_VALID) {
            assert_eq!(status.offset, at);
        }
        found.push((at / G, status.length / G, status.depth, status.flags));
        at += status.length;
    }
    found
}

#[test]
fn the_status_says_which_layer_has_it() {
    let sim = overlay(16 * G, 8 * G);
    CreateOptions::new()
        .backing(TOP, Format::Qbm)
        .granularity(granularity(2 * G))
        .size(20 * G)
        .folder(sim.folder())
        .create("third.qbm")
        .unwrap();
    let middle = open(&sim);
    write(&middle, 1, 4 * G, G);
    middle.write_zeroes(12 * G, G, WriteFlags::empty()).unwrap();
    middle.write_zeroes(2 * G, G, WriteFlags::MAY_UNMAP).unwrap();
    middle.close().unwrap();
    let disk = open_as(&sim, "third.qbm");
    write(&disk, 2, 6 * G, 2 * G);
    let (data, zero) = (StatusFlags::DATA, StatusFlags::ZERO);
    let place = StatusFlags::OFFSET_VALID;
    assert_eq!(
        walk(&disk, StatusHints::default()),
        [
            (0, 2, 2, data | place),
            (2, 1, 1, zero | place),
            (3, 1, 2, data | place),
            (4, 1, 1, data | place),
            (5, 1, 2, data | place),
            (6, 2, 0, data | place | StatusFlags::ALLOCATED),
            // The base ends, and so the middle one says zeros; then the middle one ends.
            (8, 8, 1, zero),
            (16, 4, 0, zero),
        ]
    );
    // With less to find out: holes are not looked for, nor images below a depth.
    let bits_alone = StatusHints {
        allocation_only: true,
        ..StatusHints::default()
    };
    assert_eq!(walk(&disk, bits_alone)[1], (2, 1, 1, data | place));
    let own = (6, 2, 0, data | place | StatusFlags::ALLOCATED);
    let to = |depth| StatusHints {
        deepest: Some(depth),
        ..StatusHints::default()
    };
    let nothing = StatusFlags::empty();
    assert_eq!(walk(&disk, to(0)), [(0, 6, 1, nothing), own, (8, 12, 1, nothing)]);
    assert_eq!(
        walk(&disk, to(1)),
        [
            (0, 2, 2, nothing),
            (2, 1, 1, zero | place),
            (3, 1, 2, nothing),
            (4, 1, 1, data | place),
            (5, 1, 2, nothing),
            own,
            (8, 8, 2, nothing),
            (16, 4, 0, zero),
        ]
    );
    assert_eq!(walk(&disk, to(2)), walk(&disk, StatusHints::default()));
    assert_eq!(walk(&disk, to(u32::MAX)), walk(&disk, StatusHints::default()));
    assert_eq!(disk.info().unwrap().layers, 3);
    let layers: Vec<_> = (0..3).map(|index| disk.layer(index).unwrap()).collect();
    let paths: Vec<_> = layers.iter().map(|layer| layer.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["third-data.img", IMAGE, "base.img"]);
    assert_eq!(layers[1].descriptor.as_deref(), Some(std::path::Path::new(TOP)));
    assert_eq!(layers[2].descriptor, None);
    assert_eq!(layers.map_length(), [20 * G, 16 * G, 8 * G]);
    assert_fails(
        disk.layer(3),
        ErrorCode::OutOfRange,
        "there is no layer 3: the disk has 3",
    );
}

trait Lengths {
    fn map_length(&self) -> Vec<u64>;
}

impl Lengths for Vec<crate::disk::Layer> {
    fn map_length(&self) -> Vec<u64> {
        self.iter().map(|layer| layer.length).collect()
    }
}

#[test]
fn a_middle_layer_that_ends_hides_what_is_below_its_end() {
    let sim = overlay(3 * G, 10 * G);
    CreateOptions::new()
        .backing(TOP, Format::Qbm)
        .size(10 * G)
        .folder(sim.folder())
        .create("third.qbm")
        .unwrap();
    let mut content = base(3 * G);
    content.resize(usize::try_from(10 * G).unwrap(), 0);
    assert_same(&read_all(&open_as(&sim, "third.qbm")), &content);
}

#[test]
fn an_emptied_overlay_shows_its_backing_again() {
    let sim = overlay(16 * G, 16 * G);
    let disk = open(&sim);
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    write(&disk, 1, 3 * G + 1, 5 * G);
    disk.bitmap_clear("b").unwrap();
    disk.make_empty().unwrap();
    assert_same(&read_all(&disk), &base(16 * G));
    assert_eq!(disk.bitmap_count("b").unwrap(), 1, "what was taken out is dirty");
    assert!(sim.read(IMAGE).unwrap().iter().all(|byte| *byte == 0));
    write(&disk, 2, 5 * G, G);
    disk.close().unwrap();
    let mut content = base(16 * G);
    content[usize::try_from(5 * G).unwrap()..usize::try_from(6 * G).unwrap()].fill(2);
    assert_same(&read_all(&open(&sim)), &content);
    assert!(!sim.names().contains(&BITS.into()), "the old bitmap is gone");

    CreateOptions::new()
        .size(G)
        .folder(sim.folder())
        .create("plain.qbm")
        .unwrap();
    assert_fails(
        open_as(&sim, "plain.qbm").make_empty(),
        ErrorCode::NotSupported,
        "cannot empty plain.qbm: it has no allocation bitmap, so all of it is its own",
    );
}

/// durability trap 9.
#[test]
fn a_read_only_overlay_changes_nothing() {
    let sim = overlay(4 * G, 4 * G);
    let before = sim.events().len();
    let disk = OpenOptions::new()
        .read_only(true)
        .folder(sim.folder())
        .open(TOP)
        .unwrap();
    assert_same(&read_all(&disk), &base(4 * G));
    assert!(disk.make_empty().is_err() && disk.truncate(G, TruncateFlags::SHRINK).is_err());
    disk.close().unwrap();
    assert!(sim.events()[before..].iter().all(|event| !event.call.changes()));
}

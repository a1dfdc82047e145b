//! Another image below a disk: the disk shows the same before, while and after, whatever the two images have; or, by the
//! name alone, what the new one has.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::descriptor::BackingEntry;
use crate::disk::{AddBitmap, BackingFlags, StatusFlags};
use crate::storage::simulated::CallKind;

/// A backing, as calls take it.
#[allow(clippy::unnecessary_wraps, reason = "the calls take an option")]
pub(super) fn on(file: &str, format: Format) -> Option<BackingEntry> {
    Some(BackingEntry {
        file: file.to_owned(),
        format,
    })
}

pub(super) fn rebase(disk: &Disk, backing: Option<BackingEntry>) -> Result<()> {
    disk.rebase(backing, &mut |_, _| ControlFlow::Continue(()))
}

pub(super) fn allocated(disk: &Disk) -> u64 {
    disk.info().unwrap().overlay.unwrap().allocated
}

pub(super) fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// An overlay over `base.img` with data and zeros of its own, unflushed, in an image that has other people's bytes; and
/// what it shows.
pub(super) fn prepared() -> (SimDisk, Disk, Vec<u8>) {
    let sim = overlay(14 * G + 9, 10 * G);
    sim.put(IMAGE, &vec![0xee; at(14 * G + 9)]);
    let disk = open(&sim);
    write(&disk, 1, 100, 2 * G);
    disk.write_zeroes(5 * G, 2 * G, WriteFlags::MAY_UNMAP).unwrap();
    write(&disk, 2, 13 * G, G + 9);
    let content = read_all(&disk);
    (sim, disk, content)
}

/// `base.img` with a granule changed, a hole in the place of one, and more behind its end.
pub(super) fn other() -> Vec<u8> {
    let mut bytes = base(12 * G);
    bytes[at(4 * G + 7)] ^= 1;
    bytes[at(7 * G)..at(8 * G)].fill(0);
    bytes
}

#[test]
fn only_what_differs_is_copied() {
    let (sim, disk, content) = prepared();
    sim.put("other.img", &other());
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    let mut seen = Vec::new();
    disk.rebase(on("other.img", Format::Raw), &mut |done, total| {
        seen.push((done, total));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|(done, total)| done <= total));
    assert_eq!(seen.last(), Some(&(14 * G + 9, 14 * G + 9)));
    assert_same(&read_all(&disk), &content);
    // 3 + 2 + 2 of its own, the two that differ, and two that the old backing was too short for.
    assert_eq!(allocated(&disk), 7 + 4);
    assert_eq!(
        disk.bitmap_count("b").unwrap(),
        0,
        "nothing changed for the guest"
    );
    let info = disk.info().unwrap().overlay.unwrap();
    assert_eq!(info.backing, on("other.img", Format::Raw));
    assert_eq!(disk.layer(1).unwrap().path.to_str(), Some("other.img"));
    disk.close().unwrap();
    sim.put("base.img", b"gone");
    let disk = open(&sim);
    assert_same(&read_all(&disk), &content);
    assert_same(&sim.read("other.img").unwrap(), &other());
    // And it is what the disk is on.
    disk.make_empty().unwrap();
    assert_same(&read_all(&disk)[..at(12 * G)], &other());
}

#[test]
fn on_nothing_it_has_all_that_is_no_zero() {
    let sim = overlay(40 * G, 30 * G);
    let mut below = base(30 * G);
    below[at(3 * G)..at(9 * G)].fill(0);
    below[at(20 * G + 1)..at(22 * G)].fill(0);
    sim.put("base.img", &below);
    let disk = open(&sim);
    write(&disk, 9, 4 * G, 10);
    let content = read_all(&disk);
    rebase(&disk, None).unwrap();
    assert_same(&read_all(&disk), &content);
    assert_eq!(allocated(&disk), 30 - 6 + 1 - 1);
    assert_eq!(disk.info().unwrap().layers, 1);
    let status = disk.block_status(21 * G, G).unwrap();
    assert_eq!(status.flags, StatusFlags::ZERO, "nowhere at all");
    disk.close().unwrap();
    sim.put("base.img", b"gone");
    let text = String::from_utf8(sim.read(TOP).unwrap()).unwrap();
    assert!(!text.contains("backing"), "{text}");
    let disk = open(&sim);
    assert_same(&read_all(&disk), &content);
    // It goes on as a thin disk, and can be put on an image again, which shows nothing of itself.
    sim.put("new.img", &base(50 * G));
    rebase(&disk, on("new.img", Format::Raw)).unwrap();
    assert_same(&read_all(&disk), &content);
    assert_eq!(allocated(&disk), 40);
    disk.truncate(45 * G, TruncateFlags::empty()).unwrap();
    let mut content = content;
    content.resize(at(45 * G), 0);
    assert_same(&read_all(&disk), &content);
}

/// A part of the granule is a hole, and the image is one there: it stays one.
#[test]
fn holes_within_a_granule_stay_holes() {
    let sim = SimDisk::new();
    let mut below = vec![0; at(64 * KIB)];
    below[at(20 * KIB)] = 7;
    sim.put("base.img", &below);
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .no_state(true)
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    let disk = open(&sim);
    rebase(&disk, None).unwrap();
    assert_same(&read_all(&disk), &below);
    let status = disk.block_status(0, 64 * KIB).unwrap();
    assert!(status.flags.contains(StatusFlags::ZERO | StatusFlags::ALLOCATED));
    assert_eq!(status.length, 20 * KIB);
}

/// One granule that is longer than what is held in memory at a time.
#[test]
fn long_granules_are_copied_in_steps() {
    let sim = SimDisk::new();
    let length = 9 << 20;
    sim.put("base.img", &base(length));
    let mut other = base(length);
    other[5 << 20] ^= 1;
    sim.put("other.img", &other);
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .granularity(granularity(4 << 20))
        .no_state(true)
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    let disk = open(&sim);
    rebase(&disk, on("other.img", Format::Raw)).unwrap();
    assert_eq!(allocated(&disk), 1);
    assert_same(&read_all(&disk), &base(length));
    rebase(&disk, None).unwrap();
    assert_eq!(allocated(&disk), 3);
    assert_same(&read_all(&disk), &base(length));
}

/// A chain of three on `base.img`: two granules of each are its own.
fn chain_of_three() -> (SimDisk, Vec<u8>) {
    let sim = SimDisk::new();
    sim.put("base.img", &base(16 * G));
    let mut content = base(16 * G);
    for (index, name) in ["low.qbm", "mid.qbm", TOP].into_iter().enumerate() {
        let (backing, format) = match index {
            0 => ("base.img", Format::Raw),
            1 => ("low.qbm", Format::Qbm),
            _ => ("mid.qbm", Format::Qbm),
        };
        CreateOptions::new()
            .backing(backing, format)
            .granularity(granularity(G))
            .folder(sim.folder())
            .create(name)
            .unwrap();
        let disk = open_as(&sim, name);
        let start = index as u64 * 3 * G;
        write(&disk, 10 + u8::try_from(index).unwrap(), start + 5, G);
        content[at(start + 5)..][..at(G)].fill(10 + u8::try_from(index).unwrap());
        disk.close().unwrap();
    }
    (sim, content)
}

#[test]
fn on_an_image_deeper_in_the_chain_it_takes_what_the_others_have() {
    for (file, format, layers, own) in [
        ("mid.qbm", Format::Qbm, 4, 2),
        ("low.qbm", Format::Qbm, 3, 4),
        ("base.img", Format::Raw, 2, 6),
    ] {
        let (sim, content) = chain_of_three();
        let disk = open(&sim);
        let reads = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&reads);
        sim.on_call(move |call| {
            let of_base = call.names().any(|name| name.to_str() == Some("base.img"));
            if call.kind() == CallKind::Read && of_base {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        rebase(&disk, on(file, format)).unwrap();
        assert_eq!(
            (disk.info().unwrap().layers, allocated(&disk)),
            (layers, own),
            "{file}"
        );
        let reads = reads.load(Ordering::Relaxed);
        // What comes from the same file by either way is not read.
        assert!(reads <= own - 2, "{file}: {reads} reads of the base");
        assert_same(&read_all(&disk), &content);
        disk.close().unwrap();
        assert_same(&read_all(&open(&sim)), &content);
    }
}

#[test]
fn by_the_name_alone_the_new_image_shows() {
    let (sim, disk, mut content) = prepared();
    sim.put("other.img", &other());
    let dirty = AddBitmap {
        granularity: granularity(G),
        ..AddBitmap::default()
    };
    disk.bitmap_add("b", dirty).unwrap();
    let change = |backing| disk.change_backing(backing, BackingFlags::empty());
    change(on("other.img", Format::Raw)).unwrap();
    let mut shown = content.clone();
    for (granule, part) in other().chunks(at(G)).enumerate() {
        // Its own: 0 to 2, 5 and 6.
        if ![0, 1, 2, 5, 6].contains(&granule) {
            shown[granule * at(G)..][..part.len()].copy_from_slice(part);
        }
    }
    assert_same(&read_all(&disk), &shown);
    assert_eq!(allocated(&disk), 7);
    // D1: whatever may read otherwise is dirty, up to the longer one's end.
    assert_eq!(disk.bitmap_count("b").unwrap(), 12 - 5);
    disk.bitmap_clear("b").unwrap();
    change(None).unwrap();
    for granule in [3, 4, 7, 8, 9, 10, 11, 12] {
        content[granule * at(G)..][..at(G)].fill(0);
    }
    assert_same(&read_all(&disk), &content);
    assert_eq!(disk.bitmap_count("b").unwrap(), 12 - 5);
    disk.bitmap_clear("b").unwrap();
    // The same file, by another name or not; and a promise.
    let unchanged = |file| disk.change_backing(on(file, Format::Raw), BackingFlags::UNCHANGED);
    unchanged("other.img").unwrap();
    change(on("./other.img", Format::Raw)).unwrap();
    change(on("file:other.img", Format::Raw)).unwrap();
    assert_eq!(disk.bitmap_count("b").unwrap(), 0);
    disk.close().unwrap();
    assert_same(&read_all(&open(&sim)), &shown);
    let text = String::from_utf8(sim.read(TOP).unwrap()).unwrap();
    assert!(
        text.contains("\"file:other.img\""),
        "kept as it was given: {text}"
    );
}

#[test]
fn without_its_backing_a_disk_can_be_given_another() {
    let (sim, disk, content) = prepared();
    disk.close().unwrap();
    let bytes = sim.read("base.img").unwrap();
    sim.put("moved.img", &bytes);
    let without = || {
        let options = OpenOptions::new().no_state(true).no_backing(true);
        options.folder(sim.folder()).open(TOP).unwrap()
    };
    let disk = without();
    let change = |backing| disk.change_backing(backing, BackingFlags::UNCHANGED);
    let words = "cannot change the backing of top.qbm: QBM.bitmaps[\"allocation\"].backing.file: cannot open lost.img: No such file or directory";
    let error = change(on("lost.img", Format::Raw)).unwrap_err();
    assert_eq!((error.code(), error.message()), (ErrorCode::FileNotFound, words));
    change(on("moved.img", Format::Raw)).unwrap();
    let mut byte = [0];
    assert_eq!(
        disk.read(&mut byte, 4 * G).unwrap_err().code(),
        ErrorCode::NotSupported,
        "it was not to be opened"
    );
    let words = "cannot rebase top.qbm: it was opened without its backing image";
    assert_fails(rebase(&disk, None), ErrorCode::NotSupported, words);
    disk.close().unwrap();
    assert_same(&read_all(&open(&sim)), &content);
}

#[test]
fn what_cannot_be_below_is_refused() {
    let (sim, disk, content) = prepared();
    let create = |name: &str| {
        CreateOptions::new()
            .backing(TOP, Format::Qbm)
            .granularity(granularity(G))
            .folder(sim.folder())
            .create(name)
            .unwrap();
    };
    disk.close().unwrap();
    create("on_top.qbm");
    create("above.qbm");
    let disk = open(&sim);
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    let cases = [
        (
            on("none.img", Format::Raw),
            ErrorCode::FileNotFound,
            "No such file",
        ),
        (on("", Format::Raw), ErrorCode::InvalidArgument, "file"),
        (on("nbd:x", Format::Raw), ErrorCode::NotSupported, "scheme"),
        (
            on(IMAGE, Format::Raw),
            ErrorCode::FileInvalid,
            "is the same file as QBM.image.file",
        ),
        (
            on(TOP, Format::Raw),
            ErrorCode::FileInvalid,
            "is the same file as the descriptor",
        ),
        (
            on(BITS, Format::Raw),
            ErrorCode::FileInvalid,
            "is the same file as the allocation bitmap",
        ),
        (
            on("top-b.bitmap", Format::Raw),
            ErrorCode::FileInvalid,
            "is the same file as a dirty bitmap",
        ),
        (
            on(TOP, Format::Qbm),
            ErrorCode::FileInvalid,
            "the backing chain leads back to top.qbm",
        ),
        (
            on("on_top.qbm", Format::Qbm),
            ErrorCode::FileInvalid,
            "the backing chain leads back to top.qbm",
        ),
        (
            on("base.img", Format::Qbm),
            ErrorCode::DescriptorInvalid,
            "base.img",
        ),
    ];
    let before = sim.read(TOP).unwrap();
    for (backing, code, words) in cases {
        for result in [
            rebase(&disk, backing.clone()),
            disk.change_backing(backing.clone(), BackingFlags::empty()),
        ] {
            let error = result.expect_err(words);
            assert_eq!(error.code(), code, "{backing:?}: {error}");
            assert!(error.message().contains(words), "{backing:?}: {error}");
        }
    }
    assert!(sim.read(TOP).unwrap() == before);
    assert_same(&read_all(&disk), &content);
    disk.close().unwrap();

    let read_only = OpenOptions::new()
        .read_only(true)
        .folder(sim.folder())
        .open(TOP)
        .unwrap();
    assert_eq!(rebase(&read_only, None).unwrap_err().code(), ErrorCode::ReadOnly);
    drop(read_only);
    CreateOptions::new()
        .size(G)
        .folder(sim.folder())
        .create("plain.qbm")
        .unwrap();
    let plain = open_as(&sim, "plain.qbm");
    let words = "cannot rebase plain.qbm: it has no allocation bitmap, so all of it is its own";
    assert_fails(rebase(&plain, None), ErrorCode::NotSupported, words);
    let words =
        "cannot change the backing of plain.qbm: it has no allocation bitmap, so all of it is its own";
    let result = plain.change_backing(None, BackingFlags::empty());
    assert_fails(result, ErrorCode::NotSupported, words);
}

#[test]
fn one_that_is_ended_leaves_the_disk_where_it_was() {
    let (sim, disk, content) = prepared();
    let before = sim.read(TOP).unwrap();
    let result = disk.rebase(None, &mut |_, _| ControlFlow::Break(()));
    let words = "cannot rebase top.qbm: the caller ended it; the disk is as it was";
    assert_fails(result, ErrorCode::Canceled, words);
    assert!(sim.read(TOP).unwrap() == before);
    assert_same(&read_all(&disk), &content);
    rebase(&disk, None).unwrap();
    assert_same(&read_all(&disk), &content);
}

/// Writers, zeroers and readers go on; nothing of theirs is lost, and nothing of the new image is seen.
#[test]
fn nothing_is_lost_under_writers() {
    let sim = overlay(64 * G, 64 * G);
    sim.put(IMAGE, &vec![0xee; at(64 * G)]);
    let foreign: Vec<u8> = vec![0xdd; at(80 * G)];
    sim.put("other.img", &foreign);
    let below = base(64 * G);
    sim.put("copy.img", &below);
    let disk = open(&sim);
    let done = AtomicBool::new(false);
    let written: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let (disk, done) = (&disk, &done);
                let mut mine = below[at(writer * 16 * G)..][..at(16 * G)].to_vec();
                scope.spawn(move || {
                    let mut round = 0u64;
                    while !done.load(Ordering::Relaxed) || round < 50 {
                        let from = round * 2777 % (16 * G - 300);
                        let byte = u8::try_from(round % 200).unwrap();
                        let offset = writer * 16 * G + from;
                        if round.is_multiple_of(5) {
                            disk.write_zeroes(offset, 300, WriteFlags::MAY_UNMAP).unwrap();
                            mine[at(from)..][..300].fill(0);
                        } else {
                            write(disk, byte, offset, 300);
                            mine[at(from)..][..300].fill(byte);
                        }
                        if round.is_multiple_of(16) {
                            let mut seen = vec![0; mine.len()];
                            disk.read(&mut seen, writer * 16 * G).unwrap();
                            assert_same(&seen, &mine);
                        }
                        round += 1;
                    }
                    mine
                })
            })
            .collect();
        for backing in [on("other.img", Format::Raw), None, on("base.img", Format::Raw)] {
            rebase(&disk, backing).unwrap();
        }
        for file in ["copy.img", "base.img"] {
            disk.change_backing(on(file, Format::Raw), BackingFlags::UNCHANGED)
                .unwrap();
        }
        done.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert_same(&read_all(&disk), &written.concat());
    disk.close().unwrap();
    assert_same(&read_all(&open(&sim)), &written.concat());
}

/// durability trap 4: a guest's write lands in a granule between the look at it and its copy.
fn keeps_what_comes_before_the_copy(fault: Option<Fault>) -> bool {
    let sim = overlay(8 * G, 8 * G);
    let disk = Arc::new(open(&sim));
    let weak = Arc::downgrade(&disk);
    let armed = AtomicBool::new(true);
    // The granules are read, to be compared, in one go.
    sim.on_call(move |call| {
        let of_base = call.names().any(|name| name.to_str() == Some("base.img"));
        if call.kind() == CallKind::Read && of_base && armed.swap(false, Ordering::SeqCst) {
            let disk = weak.upgrade().unwrap();
            let work = move || write(&disk, 0xcc, 3 * G + 50, 10);
            std::thread::spawn(work).join().unwrap();
        }
    });
    with(fault, || rebase(&disk, None)).unwrap();
    let mut content = base(8 * G);
    content[at(3 * G + 50)..][..10].fill(0xcc);
    read_all(&disk) == content
}

#[test]
fn a_write_that_comes_before_the_copy_is_kept() {
    assert!(keeps_what_comes_before_the_copy(None));
    assert!(
        !keeps_what_comes_before_the_copy(Some(Fault::NoSecondLook)),
        "it must be able to fail"
    );
}

//! Snapshots of plain disks and of overlays: what they show, what the disk shows, and who may come between.

mod nested;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::descriptor::Format;
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode};
use crate::storage::simulated::{Fault, SimDisk};
use crate::units::Granularity;

const G: u64 = 4096;
const LENGTH: u64 = 10 * G + 700;
const NAME: &str = "disk.qbm";

/// A new disk, and what is on it: plain, or with an allocation bitmap of its own.
fn disk(layered: bool) -> (SimDisk, Disk, Vec<u8>) {
    let sim = SimDisk::new();
    let mut content = vec![0; usize::try_from(LENGTH).unwrap()];
    let mut create = CreateOptions::new().size(LENGTH).folder(sim.folder());
    if layered {
        let base: Vec<u8> = (0..6 * G).map(|at| u8::try_from(at % 200).unwrap() + 1).collect();
        content[..base.len()].copy_from_slice(&base);
        sim.put("base.img", &base);
        create = create
            .backing("base.img", Format::Raw)
            .granularity(Granularity::new(G).unwrap());
    }
    create.create(NAME).unwrap();
    let disk = open(&sim, NAME);
    put(&disk, &mut content, 201, 3 * G - 100, 300);
    disk.flush().unwrap();
    (sim, disk, content)
}

fn open(sim: &SimDisk, name: &str) -> Disk {
    OpenOptions::new()
        .folder(sim.folder())
        .cache_epoch("e")
        .open(name)
        .unwrap()
}

fn put(disk: &Disk, content: &mut [u8], byte: u8, at: u64, len: u64) {
    let part = &mut content[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()];
    part.fill(byte);
    disk.write(part, at, WriteFlags::empty()).unwrap();
}

fn content_of(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.length()).unwrap()];
    disk.read(&mut bytes, 0).unwrap();
    bytes
}

#[track_caller]
fn assert_shows(disk: &Disk, expected: &[u8]) {
    let found = content_of(disk);
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((found.len(), first), (expected.len(), None));
}

fn below(sim: &SimDisk, name: &str) -> Disk {
    OpenOptions::new()
        .folder(sim.folder())
        .read_only(true)
        .open(name)
        .unwrap()
}

#[test]
fn the_snapshot_stays_and_the_disk_goes_on() {
    for layered in [false, true] {
        let (sim, disk, mut content) = disk(layered);
        disk.bitmap_add("kept", AddBitmap::default()).unwrap();
        let transient = AddBitmap {
            persistent: false,
            ..AddBitmap::default()
        };
        disk.bitmap_add("transient", transient).unwrap();
        put(&disk, &mut content, 202, 9 * G, G + 10);
        let first = content.clone();
        disk.snapshot("first.qbm", None).unwrap();
        assert_shows(&disk, &first);
        assert_eq!(disk.bitmap_count("kept").unwrap(), 1, "the content is the same");
        put(&disk, &mut content, 203, 100, 5000);
        disk.write_zeroes(9 * G, 50, WriteFlags::empty()).unwrap();
        content[usize::try_from(9 * G).unwrap()..][..50].fill(0);
        let second = content.clone();
        let granularity = Granularity::new(512).unwrap();
        disk.snapshot("second.qbm", Some(granularity)).unwrap();
        put(&disk, &mut content, 204, 4 * G, 1);
        let info = disk.info().unwrap();
        assert_eq!(info.layers, if layered { 4 } else { 3 });
        let overlay = info.overlay.unwrap();
        assert_eq!((overlay.granularity.bytes(), overlay.allocated), (512, 1));
        assert_shows(&disk, &content);
        assert!(disk.bitmap_get("transient", 4 * G).unwrap());
        assert_shows(&below(&sim, "first.qbm"), &first);
        assert_shows(&below(&sim, "second.qbm"), &second);
        disk.close().unwrap();

        let disk = open(&sim, NAME);
        assert_shows(&disk, &content);
        assert!(disk.info().unwrap().recovery.is_none());
        assert!(disk.bitmap_get("kept", 4 * G).unwrap());
        disk.truncate(LENGTH + 2 * G, TruncateFlags::empty()).unwrap();
        content.resize(usize::try_from(LENGTH + 2 * G).unwrap(), 0);
        assert_shows(&disk, &content);
        // And back together.
        disk.commit(&mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_shows(&disk, &content);
        assert_shows(&below(&sim, "second.qbm"), &content);
        assert_shows(&below(&sim, "first.qbm"), &first);
    }
}

/// A bitmap of the disk may have any name, also the one that allocation bitmaps have.
#[test]
fn the_allocation_bitmap_takes_a_name_that_is_free() {
    let (sim, disk, content) = disk(false);
    disk.bitmap_add("allocation", AddBitmap::default()).unwrap();
    let transient = AddBitmap {
        persistent: false,
        ..AddBitmap::default()
    };
    disk.bitmap_add("allocation-2", transient).unwrap();
    disk.snapshot("s.qbm", None).unwrap();
    assert_eq!(disk.info().unwrap().overlay.unwrap().bitmap, "allocation-3");
    disk.close().unwrap();
    assert_shows(&open(&sim, NAME), &content);
}

/// Every writer writes its number into its first sector and then into its second; no snapshot may have the second without
/// the first. Every reader sees what it wrote itself.
#[test]
fn a_snapshot_is_one_point_between_the_writes() {
    for layered in [false, true] {
        let (sim, disk, _) = disk(layered);
        disk.write_zeroes(0, LENGTH, WriteFlags::empty()).unwrap();
        let (done, late) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for writer in 0..3u64 {
                let (disk, done, late) = (&disk, &done, &late);
                scope.spawn(move || {
                    let at = writer * 3 * G;
                    let mut number = 0u64;
                    while !done.load(Ordering::Relaxed) {
                        number += 1;
                        for place in [at, at + 2 * G] {
                            disk.write(&number.to_le_bytes(), place, WriteFlags::empty())
                                .unwrap();
                            let mut found = [0; 8];
                            disk.read(&mut found, place).unwrap();
                            late.fetch_add(u64::from(u64::from_le_bytes(found) != number), Ordering::Relaxed);
                        }
                    }
                });
            }
            for snapshot in 0..12 {
                disk.snapshot(&format!("{snapshot}.qbm"), None).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(late.into_inner(), 0, "somebody did not see his own write");
        for snapshot in 0..12 {
            let content = content_of(&below(&sim, &format!("{snapshot}.qbm")));
            for writer in 0..3u64 {
                let number = |at: u64| {
                    let at = usize::try_from(at).unwrap();
                    u64::from_le_bytes(content[at..at + 8].try_into().unwrap())
                };
                let (first, second) = (number(writer * 3 * G), number(writer * 3 * G + 2 * G));
                assert!(
                    first == second || first == second + 1,
                    "snapshot {snapshot}: {first} and then {second}"
                );
            }
        }
    }
}

/// Whatever call fails, the disk shows what it showed, and no file is left but what it names; then it works.
#[test]
fn a_snapshot_that_fails_leaves_nothing() {
    for layered in [false, true] {
        let (sim, disk, _) = disk(layered);
        let start = sim.events().len();
        disk.snapshot("s.qbm", None).unwrap();
        let calls = (sim.events().len() - start) as u64;
        for call in 1..=calls {
            let (sim, disk, mut content) = self::disk(layered);
            let before = sim.names();
            sim.fail(Fault::new(libc::ENOSPC).nth(call));
            let result = disk.snapshot("s.qbm", None);
            sim.heal();
            assert_shows(&disk, &content);
            if result.is_err() && !disk.info().unwrap().failed {
                assert_eq!(sim.names(), before, "call {call}");
                match disk.snapshot("s.qbm", None) {
                    // The state file takes nothing more; whoever reopens the disk goes on.
                    Err(error) if error.code() == ErrorCode::Failed => continue,
                    again => again.unwrap(),
                }
                put(&disk, &mut content, 9, 5000, 5000);
                disk.flush().unwrap();
                assert_shows(&disk, &content);
            }
            assert_shows(&open(&sim.kill(), NAME), &content);
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let (sim, disk, content) = disk(true);
    let refused = |disk: &Disk, name: &str| {
        let error: Error = disk.snapshot(name, None).unwrap_err();
        (error.code(), error.message().to_owned())
    };
    let plain = |name: &str| {
        let words = format!(
            "cannot take a snapshot of disk.qbm: {name:?} is not the plain name of a file, to be made in the descriptor's folder"
        );
        (ErrorCode::InvalidArgument, words)
    };
    for name in ["a/b.qbm", "../b.qbm", "/b.qbm", "..", ".", "b.qbm/", "./b.qbm"] {
        assert_eq!(refused(&disk, name), plain(name));
    }
    assert_eq!(refused(&disk, "").0, ErrorCode::InvalidArgument);
    assert_eq!(refused(&disk, "nbd:x").0, ErrorCode::NotSupported);
    for taken in [NAME, "base.img"] {
        assert_eq!(refused(&disk, taken).0, ErrorCode::FileExists);
    }
    let names = sim.names();
    disk.close().unwrap();
    let reader = below(&sim, NAME);
    assert_eq!(refused(&reader, "s.qbm").0, ErrorCode::ReadOnly);
    let options = OpenOptions::new().folder(sim.folder()).no_backing(true);
    let words = "cannot take a snapshot of disk.qbm: it was opened without its backing image";
    assert_eq!(
        refused(&options.open(NAME).unwrap(), "s.qbm"),
        (ErrorCode::NotSupported, words.to_owned())
    );
    assert_eq!(sim.names(), names);
    assert_shows(&open(&sim, NAME), &content);
}

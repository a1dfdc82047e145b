//! Bitmaps of a disk that grows and shrinks (durability trap 5).

use super::*;
use crate::storage::simulated::Fault;
use crate::storage::{Access, Role};

const GRANULE: u64 = 64 * KIB;

fn grow(disk: &Disk, length: u64) {
    disk.truncate(length, TruncateFlags::empty()).unwrap();
}

fn shrink(disk: &Disk, length: u64) {
    disk.truncate(length, TruncateFlags::SHRINK).unwrap();
}

#[test]
fn new_granules_are_clean_and_record() {
    let (sim, disk) = disk_of(GRANULE + 1);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_add("t", transient()).unwrap();
    write(&disk, 0, 1).unwrap();
    grow(&disk, 1000 * GRANULE);
    write(&disk, 999 * GRANULE, 1).unwrap();
    for name in ["b", "t"] {
        assert_eq!(dirty(&disk, name), [0, 999]);
    }
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 999]);
}

#[test]
fn what_comes_back_is_dirty() {
    let (sim, disk) = disk_of(100 * GRANULE);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_add("t", transient()).unwrap();
    disk.bitmap_add(
        "off",
        AddBitmap {
            recording: false,
            ..persistent()
        },
    )
    .unwrap();
    shrink(&disk, 90 * GRANULE + 1);
    disk.bitmap_add("later", persistent()).unwrap();
    assert_eq!(sim.read("disk-b.bitmap").unwrap().len(), 16);
    drop(disk);
    let disk = open(&sim.kill());
    disk.bitmap_add("t", transient()).unwrap();
    grow(&disk, 200 * GRANULE);
    // The granule that the cut went through has zeros now where it had data.
    assert_eq!(dirty(&disk, "b"), (90..100).collect::<Vec<_>>());
    for name in ["later", "off", "t"] {
        assert!(dirty(&disk, name).is_empty(), "{name}");
    }
}

#[test]
fn a_bitmap_of_another_program_learns_the_length_before_it_is_cut() {
    let sim = SimDisk::new();
    sim.put(IMAGE, &[0; 8192]);
    sim.put("x.bitmap", &[0; 8]);
    let text = r#"{"QBM":{"version":1,"image":{"file":"disk-data.img","format":"raw"},"bitmaps":{"x":
        {"file":"x.bitmap","type":"dirty","granularity-bytes":512}}}}"#;
    sim.put(NAME, text.as_bytes());
    shrink(&open(&sim), 4096);
    let disk = open(&sim.kill());
    grow(&disk, 16384);
    assert_eq!(dirty(&disk, "x"), (8..16).collect::<Vec<_>>());
}

#[test]
fn stale_bits_of_a_longer_disk_do_not_come_back() {
    let (sim, disk) = disk_of(10 * GRANULE);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.close().unwrap();
    let mut stale = vec![0xff; 5000];
    stale[..2].copy_from_slice(&[1, 0xfc]);
    sim.put("disk-b.bitmap", &stale);
    let disk = open(&sim);
    // Into the second piece of the file, so that not all of it is written over anyway.
    grow(&disk, 39_000 * GRANULE);
    assert_eq!(dirty(&disk, "b"), [0]);
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0]);
}

#[test]
fn files_grow_before_the_disk_and_shrink_after_it() {
    let (sim, disk) = disk_of(10 * GRANULE);
    disk.bitmap_add("b", persistent()).unwrap();
    let before = sim.events().len();
    grow(&disk, 100_000 * GRANULE);
    let events = changes(&sim, before);
    let image = position(&events, CallKind::SetLength, IMAGE);
    assert!(position(&events, CallKind::SetLength, "disk-b.bitmap") < image);
    assert!(position(&events, CallKind::Sync, "disk-b.bitmap") < image);
    let before = sim.events().len();
    shrink(&disk, GRANULE);
    let events = changes(&sim, before);
    let image = position(&events, CallKind::SetLength, IMAGE);
    assert!(position(&events, CallKind::SetLength, "disk-b.bitmap") > image);
}

#[test]
fn a_failed_growth_leaves_all_as_it_was() {
    for kind in [CallKind::SetLength, CallKind::Write] {
        let (sim, disk) = disk_of(65 * GRANULE);
        disk.bitmap_add("b", persistent()).unwrap();
        write(&disk, 64 * GRANULE, 1).unwrap();
        let name = "disk-b.bitmap";
        sim.fail(Fault::new(libc::ENOSPC).on(kind).on_file(name));
        let error = disk.truncate(MIB * 100, TruncateFlags::empty()).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC, "{error}");
        assert_eq!(disk.length(), 65 * GRANULE);
        assert_eq!(dirty(&disk, "b"), [64]);
        write(&disk, 0, 1).unwrap();
        assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 64]);
        grow(&disk, 100 * MIB);
        assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 64]);
    }
}

/// Cut at 1 granule, frozen, grown again, and the backup fails: the range that came back is new to the freeze but not
/// to the bitmap.
#[test]
fn a_freeze_between_cut_and_growth_loses_nothing() {
    for (outcome, expected) in [(Thaw::Rollback, vec![1, 2, 3]), (Thaw::Commit, vec![])] {
        let (sim, disk) = disk_of(4 * GRANULE);
        disk.bitmap_add("b", persistent()).unwrap();
        shrink(&disk, GRANULE);
        disk.bitmap_freeze("b").unwrap();
        grow(&disk, 10 * GRANULE);
        disk.bitmap_thaw("b", outcome).unwrap();
        assert_eq!(dirty(&disk, "b"), expected);
        assert_eq!(dirty(&open(&sim.kill()), "b"), expected);
    }
}

/// Regions are of 4 KiB, and the map has no room for those of a disk that others have made longer: while it was closed, or had
/// been left by a process that was killed.
#[test]
fn a_disk_that_others_made_longer_than_the_map_reaches_is_written_to() {
    const GIB: u64 = 1 << 30;
    for closed in [true, false] {
        let sim = SimDisk::new();
        let create = CreateOptions::new().size(GIB).region_bytes(4 * KIB);
        create.folder(sim.folder()).create(NAME).unwrap();
        let open = || {
            let options = OpenOptions::new().folder(sim.folder()).cache_epoch("first");
            options.trust_image(true).open(NAME).unwrap()
        };
        let disk = open();
        let bitmap = AddBitmap {
            granularity: Granularity::new(GIB).unwrap(),
            ..persistent()
        };
        disk.bitmap_add("b", bitmap).unwrap();
        write(&disk, 5, 1).unwrap();
        if closed {
            disk.close().unwrap();
        } else {
            drop(disk);
        }
        let access = Access {
            write: true,
            direct: false,
        };
        let image = sim.folder().open(Role::Image, IMAGE.as_ref(), access).unwrap();
        image.set_length(40 * GIB).unwrap();
        let disk = open();
        write(&disk, 39 * GIB, 1).unwrap();
        assert_eq!(dirty(&disk, "b"), [0, 39]);
        disk.close().unwrap();
        assert_eq!(dirty(&open(), "b"), [0, 39]);
    }
}

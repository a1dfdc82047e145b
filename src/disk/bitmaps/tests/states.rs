//! Which flag forbids what; and the operations that change bits without writes.

use super::*;
use crate::disk::BitmapContent;

type Act<'a> = &'a dyn Fn() -> Result<()>;

#[test]
fn names_are_checked_and_unique() {
    let (_sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    assert_refused(
        disk.bitmap_add("b", transient()),
        ErrorCode::BitmapExists,
        "\"b\" already",
    );
    assert_refused(
        disk.bitmap_add("", transient()),
        ErrorCode::InvalidArgument,
        "0 bytes",
    );
    let long = "x".repeat(1024);
    assert_refused(
        disk.bitmap_add(&long, transient()),
        ErrorCode::InvalidArgument,
        "1024 bytes",
    );
    assert_refused(
        disk.bitmap_clear("c"),
        ErrorCode::BitmapNotFound,
        "cannot clear bitmap \"c\"",
    );
    assert_refused(
        disk.bitmap_count("c"),
        ErrorCode::BitmapNotFound,
        "no bitmap \"c\"",
    );
    disk.bitmap_add("c", transient()).unwrap();
    assert_refused(
        disk.bitmap_rename("b", "c"),
        ErrorCode::BitmapExists,
        "\"c\" already",
    );
}

#[test]
fn a_frozen_bitmap_refuses_what_qemu_refuses() {
    let (_sim, disk) = disk_of(MIB);
    for name in ["b", "other"] {
        disk.bitmap_add(name, persistent()).unwrap();
    }
    let blank = disk.bitmap_blank("b").unwrap();
    disk.bitmap_freeze("b").unwrap();
    let acts: [Act<'_>; 14] = [
        &|| disk.bitmap_remove("b"),
        &|| disk.bitmap_clear("b"),
        &|| disk.bitmap_enable("b"),
        &|| disk.bitmap_disable("b"),
        &|| disk.bitmap_rename("b", "c"),
        &|| disk.bitmap_set_persistent("b", false),
        &|| disk.bitmap_set("b", 0, 1),
        &|| disk.bitmap_reset("b", 0, 1),
        &|| disk.bitmap_freeze("b"),
        &|| disk.bitmap_merge("b", &[MergeSource::Bitmap("other")]),
        &|| disk.bitmap_merge("other", &[MergeSource::Bitmap("b")]),
        &|| disk.bitmap_replace("b", &blank),
        &|| disk.bitmap_content("b").map(drop),
        &|| disk.bitmap_blank("b").map(drop),
    ];
    for act in acts {
        assert_refused(
            act(),
            ErrorCode::BitmapBusy,
            "bitmap \"b\" is frozen (a backup uses it): it cannot be",
        );
    }
    assert_refused(
        disk.bitmap_thaw("other", Thaw::Commit),
        ErrorCode::BitmapState,
        "is not frozen",
    );
    disk.bitmap_thaw("b", Thaw::Rollback).unwrap();
    disk.bitmap_clear("b").unwrap();
}

#[test]
fn an_inconsistent_bitmap_is_only_removed_or_repaired() {
    let (sim, disk) = disk_of(MIB);
    for name in ["b", "gone", "other"] {
        disk.bitmap_add(name, persistent()).unwrap();
    }
    disk.make_inconsistent("b");
    disk.make_inconsistent("gone");
    write(&disk, 0, 1).unwrap();
    let acts: [Act<'_>; 13] = [
        &|| disk.bitmap_clear("b"),
        &|| disk.bitmap_enable("b"),
        &|| disk.bitmap_disable("b"),
        &|| disk.bitmap_rename("b", "c"),
        &|| disk.bitmap_set_persistent("b", false),
        &|| disk.bitmap_set("b", 0, 1),
        &|| disk.bitmap_reset("b", 0, 1),
        &|| disk.bitmap_freeze("b"),
        &|| disk.bitmap_merge("b", &[MergeSource::Bitmap("other")]),
        &|| disk.bitmap_merge("other", &[MergeSource::Bitmap("b")]),
        &|| disk.bitmap_count("b").map(drop),
        &|| disk.bitmap_next_dirty("b", 0, 1).map(drop),
        &|| disk.bitmap_serialize("b", 0, &mut [0; 8]),
    ];
    for act in acts {
        assert_refused(
            act(),
            ErrorCode::BitmapInconsistent,
            "bitmap \"b\" is inconsistent",
        );
    }
    assert!(disk.bitmap_info("b").unwrap().inconsistent);
    disk.bitmap_remove("gone").unwrap();
    disk.truncate(2 * MIB, TruncateFlags::empty()).unwrap();
    disk.bitmap_repair("b").unwrap();
    assert_eq!(disk.bitmap_count("b").unwrap(), 32);
    assert_refused(
        disk.bitmap_repair("b"),
        ErrorCode::BitmapState,
        "nothing to repair",
    );
    disk.close().unwrap();
    let disk = open(&sim);
    assert_eq!(disk.bitmap_count("b").unwrap(), 32);
    assert_eq!(disk.bitmap_list().unwrap().len(), 2);
}

#[test]
fn what_is_added_to_a_read_only_disk_is_transient() {
    let (sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_add("clean", persistent()).unwrap();
    write(&disk, 0, 1).unwrap();
    disk.close().unwrap();
    let before = sim.events().len();
    let disk = options(&sim).read_only(true).open(NAME).unwrap();
    disk.bitmap_add("t", persistent()).unwrap();
    assert!(!disk.bitmap_info("t").unwrap().persistent);
    disk.bitmap_set("t", 0, 1).unwrap();
    disk.bitmap_merge("t", &[MergeSource::Bitmap("b")]).unwrap();
    disk.bitmap_freeze("t").unwrap();
    disk.bitmap_thaw("t", Thaw::Commit).unwrap();
    disk.bitmap_rename("t", "u").unwrap();
    let blank = disk.bitmap_blank("b").unwrap();
    let acts: [Act<'_>; 8] = [
        &|| disk.bitmap_replace("b", &blank),
        &|| disk.bitmap_remove("b"),
        &|| disk.bitmap_clear("b"),
        &|| disk.bitmap_disable("b"),
        &|| disk.bitmap_set("b", 0, 1),
        &|| disk.bitmap_rename("b", "c"),
        &|| disk.bitmap_freeze("b"),
        &|| disk.bitmap_set_persistent("u", true),
    ];
    for act in acts {
        assert_refused(act(), ErrorCode::ReadOnly, "read-only");
    }
    assert_eq!(dirty(&disk, "b"), [0]);
    disk.bitmap_sync(None).unwrap();
    disk.close().unwrap();
    assert!(changes(&sim, before).is_empty(), "nothing was written");
}

#[test]
fn set_and_reset_round_to_the_safe_side() {
    let (sim, disk) = disk_of(10 * 64 * KIB + 1);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_set("b", 64 * KIB - 1, 64 * KIB + 2).unwrap();
    assert_eq!(dirty(&disk, "b"), [0, 1, 2]);
    disk.bitmap_reset("b", 1, 3 * 64 * KIB).unwrap();
    assert_eq!(
        dirty(&disk, "b"),
        [0],
        "a granule that is reset in part stays dirty"
    );
    disk.bitmap_set("b", 10 * 64 * KIB, 1).unwrap();
    assert_eq!(dirty(&disk, "b"), [0, 10]);
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 10]);
    disk.bitmap_reset("b", 10 * 64 * KIB, 1).unwrap();
    assert_eq!(dirty(&disk, "b"), [0]);
    assert_refused(
        disk.bitmap_set("b", 0, 11 * 64 * KIB),
        ErrorCode::OutOfRange,
        "do not lie within",
    );
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0]);
}

#[test]
fn setting_bits_needs_no_folder() {
    let (sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_add("c", persistent()).unwrap();
    sim.fail(
        crate::storage::simulated::Fault::new(libc::EROFS)
            .on(CallKind::CheckWritable)
            .from_then_on(),
    );
    let before = sim.events().len();
    disk.bitmap_set("b", 0, 1).unwrap();
    disk.bitmap_merge("c", &[MergeSource::Bitmap("b")]).unwrap();
    let events = changes(&sim, before);
    assert!(
        position(&events, CallKind::Write, "disk-b.bitmap")
            < position(&events, CallKind::Sync, "disk-b.bitmap")
    );
    assert_refused(
        disk.bitmap_clear("b"),
        ErrorCode::ReadOnly,
        "cannot clear bitmap \"b\"",
    );
    assert_refused(
        disk.bitmap_rename("b", "d"),
        ErrorCode::ReadOnly,
        "cannot rename bitmap \"b\"",
    );
    assert_eq!(dirty(&disk, "b"), [0]);
    assert_eq!(dirty(&open(&sim.kill()), "c"), [0]);
}

#[test]
fn merging_across_granularities_loses_no_dirty_byte() {
    let (_sim, disk) = disk_of(10 * MIB + 1);
    disk.bitmap_add("fine", of(512)).unwrap();
    disk.bitmap_add("coarse", of(2 * MIB)).unwrap();
    disk.bitmap_add("both", transient()).unwrap();
    disk.bitmap_set("fine", 64 * KIB - 1, 2).unwrap();
    disk.bitmap_set("coarse", 10 * MIB, 1).unwrap();
    let sources = [MergeSource::Bitmap("fine"), MergeSource::Bitmap("coarse")];
    disk.bitmap_merge("both", &sources).unwrap();
    assert_eq!(dirty(&disk, "both"), [0, 1, 160]);
    disk.bitmap_merge("coarse", &[MergeSource::Bitmap("fine")])
        .unwrap();
    assert_eq!(dirty(&disk, "coarse"), [0, 5]);
}

#[test]
fn merging_from_another_disk() {
    let (_one, from) = disk_of(10 * MIB);
    let (_two, into) = disk_of(10 * MIB);
    let (_three, longer) = disk_of(11 * MIB);
    from.bitmap_add("b", of(512)).unwrap();
    for disk in [&into, &longer] {
        disk.bitmap_add("b", persistent()).unwrap();
    }
    write(&from, MIB, 1).unwrap();
    let content = from.bitmap_content("b").unwrap();
    into.bitmap_merge("b", &[MergeSource::Content(&content)]).unwrap();
    assert_eq!(dirty(&into, "b"), [16]);
    assert_refused(
        longer.bitmap_merge("b", &[MergeSource::Content(&content)]),
        ErrorCode::InvalidArgument,
        "a disk of 10485760 bytes",
    );
}

#[test]
fn serialized_bits_replace_others_only_when_all_are_there() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("from", of(512)).unwrap();
    disk.bitmap_add("into", of(512)).unwrap();
    write(&disk, MIB, 2048).unwrap();
    disk.bitmap_clear("into").unwrap();
    write(&disk, 2 * MIB, 1).unwrap();
    let epoch = disk.bitmap_info("into").unwrap().epoch;
    let mut content: BitmapContent = disk.bitmap_blank("into").unwrap();
    let len = disk.bitmap_serialized_len("from").unwrap();
    assert_eq!(len, 10 * 2048 / 8);
    for offset in (0..len).step_by(64) {
        let mut part = [0; 64];
        disk.bitmap_serialize("from", offset, &mut part).unwrap();
        content.deserialize(offset, &part).unwrap();
    }
    assert_eq!(dirty(&disk, "into"), [4096]);
    disk.bitmap_replace("into", &content).unwrap();
    assert_eq!(dirty(&disk, "into"), [2048, 2049, 2050, 2051, 4096]);
    assert_eq!(dirty(&open(&sim.kill()), "into"), dirty(&disk, "from"));
    assert_ne!(
        disk.bitmap_info("into").unwrap().epoch,
        epoch,
        "a restored bitmap starts anew"
    );

    assert_refused(
        disk.bitmap_serialize("from", 4, &mut [0; 8]),
        ErrorCode::InvalidArgument,
        "words",
    );
    let other = disk.bitmap_content("from").unwrap();
    disk.bitmap_add("coarse", persistent()).unwrap();
    assert_refused(
        disk.bitmap_replace("coarse", &other),
        ErrorCode::InvalidArgument,
        "granularity of 512",
    );
}

#[test]
fn areas_are_found_in_bytes() {
    let (_sim, disk) = disk_of(10 * 64 * KIB + 100);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_set("b", 2 * 64 * KIB, 2 * 64 * KIB).unwrap();
    disk.bitmap_set("b", 10 * 64 * KIB, 1).unwrap();
    let next = |offset, len| {
        let found = disk.bitmap_next_dirty("b", offset, len).unwrap();
        found.map(|range| (range.start(), range.len()))
    };
    assert_eq!(next(0, u64::MAX), Some((2 * 64 * KIB, 2 * 64 * KIB)));
    assert_eq!(next(0, 2 * 64 * KIB), None);
    assert_eq!(next(0, 2 * 64 * KIB + 1), Some((2 * 64 * KIB, 1)));
    assert_eq!(
        next(3 * 64 * KIB + 5, u64::MAX),
        Some((3 * 64 * KIB + 5, 64 * KIB - 5))
    );
    assert_eq!(next(4 * 64 * KIB, u64::MAX), Some((10 * 64 * KIB, 100)));
    assert_eq!(next(disk.length(), 1), None);
    let zero = |offset, len| disk.bitmap_next_zero("b", offset, len).unwrap();
    assert_eq!(zero(7, u64::MAX), Some(7));
    assert_eq!(zero(2 * 64 * KIB + 7, u64::MAX), Some(4 * 64 * KIB));
    assert_eq!(zero(10 * 64 * KIB, u64::MAX), None);
    assert_refused(
        disk.bitmap_next_dirty("b", disk.length() + 1, 1),
        ErrorCode::OutOfRange,
        "offset",
    );
    assert_refused(
        disk.bitmap_get("b", disk.length()),
        ErrorCode::OutOfRange,
        "offset",
    );
}

#[test]
fn starting_points_have_ids_of_their_own() {
    let (_sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    let mut seen = Vec::new();
    let mut note = |changed: bool| {
        let info = disk.bitmap_info("b").unwrap();
        let epoch = info.epoch.unwrap();
        assert_eq!(epoch.len(), 32);
        assert_eq!(info.start_length, Some(disk.length()));
        assert_eq!(!seen.contains(&epoch), changed);
        seen.push(epoch);
    };
    note(true);
    write(&disk, 0, 1).unwrap();
    disk.bitmap_disable("b").unwrap();
    disk.bitmap_set("b", 0, 1).unwrap();
    disk.bitmap_rename("b", "c").unwrap();
    disk.bitmap_rename("c", "b").unwrap();
    disk.bitmap_set_persistent("b", false).unwrap();
    note(false);
    disk.bitmap_enable("b").unwrap();
    note(true);
    disk.bitmap_enable("b").unwrap();
    note(false);
    disk.bitmap_clear("b").unwrap();
    note(true);
}

//! Operations that fail or are cut off at each of their steps: all or nothing, and the disk opens.

use std::collections::BTreeMap;

use super::*;
use crate::storage::simulated::{Fault, Keep};

/// What each bitmap says, and whether it records.
type Bitmaps = BTreeMap<String, (Vec<u64>, bool)>;

fn state(disk: &Disk) -> Bitmaps {
    let list = disk.bitmap_list().unwrap();
    list.into_iter()
        .map(|info| {
            let bits = dirty(disk, &info.name);
            (info.name, (bits, info.recording))
        })
        .collect()
}

fn prepared() -> (SimDisk, Disk) {
    let (sim, disk) = disk_of(4 * MIB);
    for name in ["a", "b", "c"] {
        disk.bitmap_add(name, persistent()).unwrap();
    }
    write(&disk, 0, 1).unwrap();
    disk.bitmap_freeze("c").unwrap();
    write(&disk, MIB, 1).unwrap();
    disk.flush().unwrap();
    disk.bitmap_sync(None).unwrap();
    (sim, disk)
}

/// A backup's end: what it covers goes, what comes next begins, at one point.
fn act(disk: &Disk) -> Result<()> {
    disk.bitmap_transaction(&[
        BitmapAction::Merge {
            target: "a",
            sources: vec![MergeSource::Bitmap("b")],
        },
        BitmapAction::Set {
            name: "a",
            offset: 2 * MIB,
            len: 1,
        },
        BitmapAction::Clear { name: "b" },
        BitmapAction::Thaw {
            name: "c",
            outcome: Thaw::Commit,
        },
        BitmapAction::Rename { name: "a", to: "x" },
        BitmapAction::Add {
            name: "a",
            options: AddBitmap {
                recording: false,
                ..persistent()
            },
        },
        BitmapAction::SetPersistent {
            name: "a",
            persistent: true,
        },
    ])
}

fn before() -> Bitmaps {
    [("a", vec![0, 16]), ("b", vec![0, 16]), ("c", vec![0, 16])]
        .map(|(name, bits)| (name.to_owned(), (bits, true)))
        .into()
}

fn after() -> Bitmaps {
    [
        ("a", vec![], false),
        ("b", vec![], true),
        ("c", vec![16], true),
        ("x", vec![0, 16, 32], true),
    ]
    .map(|(name, bits, recording)| (name.to_owned(), (bits, recording)))
    .into()
}

#[test]
fn a_transaction_does_all() {
    let (sim, disk) = prepared();
    act(&disk).unwrap();
    assert_eq!(state(&disk), after());
    assert_eq!(state(&open(&sim.kill())), after());
    assert_eq!(
        sim.names().len(),
        2 + 4,
        "no file is left over: {:?}",
        sim.names()
    );
}

#[test]
fn a_transaction_that_is_refused_does_nothing() {
    let (sim, disk) = prepared();
    let events = sim.events().len();
    let result = disk.bitmap_transaction(&[
        BitmapAction::Remove { name: "a" },
        BitmapAction::Set {
            name: "b",
            offset: 0,
            len: MIB,
        },
        BitmapAction::Clear { name: "c" },
    ]);
    assert_refused(result, ErrorCode::BitmapBusy, "cannot clear bitmap \"c\"");
    assert_eq!(dirty(&disk, "b"), [0, 16]);
    assert!(disk.bitmap_info("a").is_ok());
    let written = changes(&sim, events);
    assert!(
        written.iter().all(|event| event.call.kind() == CallKind::Sync),
        "{written:?}"
    );
}

/// One call after the other fails. Whatever the call was, the disk in memory says all of the old or all of the new,
/// and so does what a reopen finds; and no file is left that no descriptor names unless the disk says that it failed.
#[test]
fn a_transaction_that_fails_at_any_call_does_all_or_nothing() {
    let (sim, disk) = prepared();
    let start = sim.events().len();
    act(&disk).unwrap();
    let calls = sim.events().len() - start;
    assert!(calls > 20);
    let (mut undone, mut done) = (0, 0);
    for call in 1..=calls as u64 {
        let (sim, disk) = prepared();
        sim.fail(Fault::new(libc::EIO).nth(call));
        let result = act(&disk);
        sim.heal();
        let found = state(&open(&sim.kill()));
        if result.is_ok() {
            assert_eq!(found, after(), "call {call}");
            assert_eq!(state(&disk), after(), "call {call}");
            done += 1;
        } else if disk.info().unwrap().failed {
            assert!(found == before() || found == after(), "call {call}: {found:?}");
        } else {
            let mut seen = state(&disk);
            assert_eq!(found, before(), "call {call}");
            // In memory `c` shows its frozen bits alone.
            assert_eq!(seen.remove("c"), Some((vec![0], true)));
            let mut expected = before();
            expected.remove("c");
            assert_eq!(seen, expected, "call {call}");
            assert_eq!(sim.names().len(), 2 + 3, "call {call}: {:?}", sim.names());
            act(&disk).unwrap();
            assert_eq!(state(&open(&sim.kill())), after(), "call {call}, again");
            undone += 1;
        }
    }
    assert!(undone > 15 && done > 0, "{undone} undone, {done} done");
}

/// The power goes after each call, and what was not synced is there or not, at random.
#[test]
fn a_transaction_that_is_cut_off_is_old_or_new() {
    let (sim, disk) = prepared();
    let start = sim.events().len() as u64;
    act(&disk).unwrap();
    let (mut old, mut new) = (0, 0);
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        for seed in 0..40 {
            let after_cut = point.power_cut_keeping(Keep::Random(seed));
            let found = state(&open(&after_cut));
            if found == after() {
                new += 1;
            } else {
                assert_eq!(found, before(), "after {} events", point.events());
                old += 1;
            }
        }
        let killed = state(&open(&point.kill()));
        assert!(killed == before() || killed == after());
    }
    assert!(old > 100 && new > 40, "{old} old, {new} new");
}

/// durability trap 7: the file of a removed bitmap goes after the descriptor stopped naming it.
#[test]
fn the_descriptor_forgets_a_bitmap_before_its_file_goes() {
    let (sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    let start = sim.events().len();
    disk.bitmap_remove("b").unwrap();
    let events = changes(&sim, start);
    let rename = position(&events, CallKind::Rename, NAME);
    let gone = position(&events, CallKind::Remove, "disk-b.bitmap");
    assert!(rename < gone);
    assert!(
        events[rename..gone]
            .iter()
            .any(|event| event.call.kind() == CallKind::SyncFolder),
        "the rename must be durable first"
    );
    for point in sim.crash_points().filter(|point| point.events() >= start as u64) {
        for seed in 0..20 {
            let disk = open(&point.power_cut_keeping(Keep::Random(seed)));
            assert!(disk.bitmap_list().unwrap().len() <= 1);
        }
    }
}

/// A new file has its content and its name durably before a descriptor names it.
#[test]
fn a_new_file_is_durable_before_the_descriptor_names_it() {
    let (sim, disk) = disk_of(MIB);
    let start = sim.events().len();
    disk.bitmap_add("b", persistent()).unwrap();
    let events = changes(&sim, start);
    let rename = position(&events, CallKind::Rename, NAME);
    let file = position(&events, CallKind::Sync, "disk-b.bitmap");
    assert!(
        position(&events, CallKind::Sync, IMAGE) < file,
        "what was written before is flushed first"
    );
    assert!(file < rename);
    assert!(
        events[file..rename]
            .iter()
            .any(|event| event.call.kind() == CallKind::SyncFolder)
    );
}

/// Nothing widens a bitmap that no longer records, so what it was told of must be durable before it stops.
#[test]
fn a_bitmap_is_durable_before_it_stops_recording() {
    let (sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    write(&disk, 0, 1).unwrap();
    let start = sim.events().len();
    disk.bitmap_disable("b").unwrap();
    let events = changes(&sim, start);
    assert!(position(&events, CallKind::Sync, "disk-b.bitmap") < position(&events, CallKind::Rename, NAME));
    assert_eq!(dirty(&open(&sim.power_cut_keeping(Keep::Nothing)), "b"), [0]);
}

/// Whatever a resize leaves behind when the power goes, the disk opens and no bit is lost.
#[test]
fn a_resize_that_is_cut_off_leaves_a_disk_that_opens() {
    for (length, flags) in [(40 * MIB, TruncateFlags::empty()), (MIB, TruncateFlags::SHRINK)] {
        let (sim, disk) = disk_of(4 * MIB);
        disk.bitmap_add("b", of(512)).unwrap();
        write(&disk, 0, 1).unwrap();
        write(&disk, MIB - 1, 1).unwrap();
        disk.bitmap_sync(None).unwrap();
        let start = sim.events().len() as u64;
        disk.truncate(length, flags).unwrap();
        for point in sim.crash_points().filter(|point| point.events() >= start) {
            for seed in 0..20 {
                let disk = open(&point.power_cut_keeping(Keep::Random(seed)));
                let bits = dirty(&disk, "b");
                assert_eq!(bits, [0, 2047], "after {} events", point.events());
            }
        }
    }
}

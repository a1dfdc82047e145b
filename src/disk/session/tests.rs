//! What a close makes durable before the state file says clean, and how.

use crate::descriptor::Format;
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::mutation::{Fault, with};
use crate::storage::simulated::{Call, CallKind, Fault as Failing, SimDisk};
use crate::storage::{Role, SyncMode};

const GRANULE: u64 = 64 << 10;

/// How a disk's close syncs the image behind the last change to it, and before the last word of the state file; in order.
fn syncs_before_clean(overlay: bool) -> Vec<SyncMode> {
    let sim = SimDisk::new();
    let mut create = CreateOptions::new().size(4 * GRANULE).folder(sim.folder());
    if overlay {
        sim.put("base.img", &[1; 4096]);
        create = create.backing("base.img", Format::Raw);
    }
    create.create("disk.qbm").unwrap();
    let disk = OpenOptions::new().folder(sim.folder()).open("disk.qbm").unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.write(&[2; 512], 0, WriteFlags::empty()).unwrap();
    disk.flush().unwrap();
    // In place, with its bits set: a sync of the content alone leaves nothing but the time behind.
    disk.write(&[3; 512], 0, WriteFlags::empty()).unwrap();
    disk.close().unwrap();

    let events = sim.events();
    let last = |is_it: fn(&Call) -> bool| events.iter().rposition(|event| is_it(&event.call)).unwrap();
    let changed = last(|call| matches!(call, Call::Write { file, .. } if file.role == Role::Image));
    let clean = last(|call| matches!(call, Call::Write { file, .. } if file.role == Role::State));
    let between = events
        .get(changed..clean)
        .expect("the state file has the last word");
    let syncs = between.iter().filter_map(|event| match &event.call {
        Call::Sync { file, mode } if file.role == Role::Image => Some(*mode),
        _ => None,
    });
    syncs.collect()
}

/// A time that a power cut takes back would look like a foreign write. The simulated disk has no times: the call is all that
/// tells. What a real file system loses is in `tests/real_power_cut.rs`.
#[test]
fn the_image_is_synced_with_its_times_before_the_stamp_is_kept() {
    for overlay in [false, true] {
        assert_eq!(syncs_before_clean(overlay).last(), Some(&SyncMode::All));
    }
}

#[test]
fn a_stamp_of_times_that_are_not_durable_is_noticed() {
    with(Fault::StampUnsynced, || {
        for overlay in [false, true] {
            let syncs = syncs_before_clean(overlay);
            assert!(!syncs.contains(&SyncMode::All), "{syncs:?}");
        }
    });
}

/// Whether a disk that was written to, and given up so, is closed.
fn is_closed_after(give_up: impl FnOnce(&SimDisk, Disk)) -> bool {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(4 * GRANULE).folder(sim.folder());
    create.create("disk.qbm").unwrap();
    let open = |read_only| {
        let options = OpenOptions::new().folder(sim.folder());
        options.read_only(read_only).open("disk.qbm").unwrap()
    };
    let disk = open(false);
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.write(&[2; 512], 0, WriteFlags::empty()).unwrap();
    give_up(&sim, disk);
    open(true).info().unwrap().recovery.is_none()
}

/// Whoever leaves by an error drops the disk. Were it not closed then, nobody would notice what others write to its image before
/// the next open.
#[test]
fn a_disk_that_is_dropped_is_closed() {
    assert!(is_closed_after(|_, disk| disk.close().unwrap()));
    assert!(is_closed_after(|_, disk| drop(disk)));
    assert!(!is_closed_after(|_, disk| disk.die()));
}

/// What failed, or may be in the middle of something, is left to recovery.
#[test]
fn a_disk_that_has_failed_is_not_closed_by_dropping_it() {
    assert!(!is_closed_after(|sim, disk| {
        sim.fail(
            Failing::new(libc::EIO)
                .on(CallKind::Sync)
                .on_file("disk-data.img"),
        );
        disk.flush().unwrap_err();
        sim.heal();
        drop(disk);
    }));
    assert!(!is_closed_after(|_, disk| {
        let panicked = std::thread::spawn(move || {
            let _dropped = disk;
            panic!("in the middle of something");
        });
        panicked.join().unwrap_err();
    }));
}

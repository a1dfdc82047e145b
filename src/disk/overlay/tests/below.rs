//! Images below a disk that whoever made them has left in the page cache alone, and a power cut.
//!
//! The story that they guard against: a template is copied, an overlay put on it, a bitmap added and a full backup taken. The
//! power goes before the system has written the copy out. The overlay reads otherwise then, and its bitmap is clean: no
//! incremental backup will ever tell.

use super::commit_qcow2::{disk_on, image};
use super::*;
use crate::disk::{AddBitmap, Thaw};
use crate::storage::simulated::{Call, CallKind, Event, Fault as Failing, Keep};
use crate::storage::{Access, Role, write_slice};

const LENGTH: u64 = 8 * G;
const BASE: &str = "base.img";
/// The backing of the qcow2s of these tests.
const LOW: &str = "low.img";

fn options(sim: &SimDisk, cache: &str) -> OpenOptions {
    OpenOptions::new().folder(sim.folder()).cache_epoch(cache)
}

fn over(sim: &SimDisk, name: &str, backing: &str, format: Format) {
    CreateOptions::new()
        .size(LENGTH)
        .backing(backing, format)
        .granularity(granularity(G))
        .folder(sim.folder())
        .create(name)
        .unwrap();
}

/// What the file has becomes `content`, in the page cache alone.
fn overwrite(sim: &SimDisk, name: &str, content: &[u8]) {
    let access = Access {
        write: true,
        direct: false,
    };
    let file = sim.folder().open(Role::Backing, name.as_ref(), access).unwrap();
    file.set_length(content.len() as u64).unwrap();
    write_slice(&*file, content, 0).unwrap();
}

/// Where the file is that is not synced.
#[derive(Clone, Copy, Debug)]
enum Where {
    /// It is the backing.
    Nearest,
    /// Below that.
    Deeper,
    /// The disk's image is a qcow2, which names it.
    OfQcow2,
    /// The disk's image is an overlay on it.
    OfInner,
    /// The backing's image is an overlay on it.
    OfNested,
}

const PLACES: [Where; 5] = [
    Where::Nearest,
    Where::Deeper,
    Where::OfQcow2,
    Where::OfInner,
    Where::OfNested,
];

/// A disk above a file whose content is in the page cache alone.
fn prepared(place: Where) -> SimDisk {
    let sim = SimDisk::new();
    let unsynced = match place {
        Where::OfQcow2 => LOW,
        _ => BASE,
    };
    sim.put(unsynced, &vec![0; usize::try_from(LENGTH).unwrap()]);
    match place {
        Where::Nearest => over(&sim, TOP, BASE, Format::Raw),
        Where::Deeper => {
            over(&sim, "middle.qbm", BASE, Format::Raw);
            over(&sim, TOP, "middle.qbm", Format::Qbm);
        }
        Where::OfQcow2 => {
            sim.put("a.qcow2", &image(true));
            disk_on(&sim, TOP, "a.qcow2", Format::Qcow2);
        }
        Where::OfInner => {
            over(&sim, "inner.qbm", BASE, Format::Raw);
            disk_on(&sim, TOP, "inner.qbm", Format::Qbm);
        }
        Where::OfNested => {
            over(&sim, "inner.qbm", BASE, Format::Raw);
            disk_on(&sim, "middle.qbm", "inner.qbm", Format::Qbm);
            over(&sim, TOP, "middle.qbm", Format::Qbm);
        }
    }
    overwrite(&sim, unsynced, &base(LENGTH));
    sim
}

/// What is not the same after a power cut, and is clean in bitmap "b", though `backup` was read behind its starting point.
fn lost(sim: &SimDisk, backup: &[u8]) -> Vec<u64> {
    let disk = options(&sim.power_cut_keeping(Keep::Nothing), "another")
        .read_only(true)
        .open(TOP)
        .unwrap();
    let now = read_all(&disk);
    let part = |granule: u64| {
        let at = usize::try_from(granule * G).unwrap();
        at..now.len().min(at + 4096)
    };
    (0..disk.length().div_ceil(G))
        .filter(|it| now[part(*it)] != backup[part(*it)])
        .filter(|it| !disk.bitmap_get("b", it * G).unwrap())
        .collect()
}

fn every_granule() -> AddBitmap {
    AddBitmap {
        granularity: granularity(G),
        ..AddBitmap::default()
    }
}

/// What is lost behind a starting point of a disk that nobody has written to.
fn lost_behind_a_point(place: Where, fault: Option<Fault>) -> usize {
    let sim = prepared(place);
    let disk = with(fault, || {
        let disk = options(&sim, "cache").open(TOP).unwrap();
        disk.bitmap_add("b", every_granule()).unwrap();
        disk
    });
    let backup = read_all(&disk);
    disk.die();
    lost(&sim, &backup).len()
}

#[test]
fn a_starting_point_finds_what_is_below_durable() {
    for place in PLACES {
        assert_eq!(lost_behind_a_point(place, None), 0, "{place:?}");
        let lost = lost_behind_a_point(place, Some(Fault::BelowUnsynced));
        assert!(lost > 0, "{place:?}");
    }
}

/// Zeros that were written where the backing ends, and flushed: they are in no image.
fn shown_where_the_backing_ends(flags: WriteFlags, fault: Option<Fault>) -> u8 {
    let sim = SimDisk::new();
    sim.put(BASE, &base(LENGTH));
    over(&sim, TOP, BASE, Format::Raw);
    overwrite(&sim, BASE, &base(4 * G));
    let disk = options(&sim, "cache").open(TOP).unwrap();
    with(fault, || {
        disk.write_zeroes(6 * G, G, flags).unwrap();
        if !flags.contains(WriteFlags::FUA) {
            disk.flush().unwrap();
        }
    });
    let after = sim.power_cut_keeping(Keep::Nothing);
    let mut byte = [0xee];
    let disk = options(&after, "another").open(TOP).unwrap();
    disk.read(&mut byte, 6 * G).unwrap();
    byte[0]
}

#[test]
fn zeros_that_were_flushed_stay_where_the_backing_ends() {
    for flags in [WriteFlags::empty(), WriteFlags::FUA] {
        assert_eq!(shown_where_the_backing_ends(flags, None), 0);
        let shown = shown_where_the_backing_ends(flags, Some(Fault::BelowUnsynced));
        assert_eq!(shown, base_byte(6 * G));
    }
}

/// The next user shows what this one did, where the backing's descriptor was replaced by one whose name is not synced.
fn shows_the_same_below_a_new_name(fault: Option<Fault>) -> bool {
    let sim = SimDisk::new();
    sim.put(BASE, &base(LENGTH));
    sim.put("other.img", &vec![7; usize::try_from(LENGTH).unwrap()]);
    over(&sim, "middle.qbm", BASE, Format::Raw);
    over(&sim, TOP, "middle.qbm", Format::Qbm);
    over(&sim, "new.qbm", "other.img", Format::Raw);
    // The first user of a state file syncs the folder.
    let disk = options(&sim, "cache").open(TOP).unwrap();
    write(&disk, 1, 5 * G, 10);
    disk.close().unwrap();
    sim.folder()
        .rename("new.qbm".as_ref(), "middle.qbm".as_ref())
        .unwrap();
    let disk = options(&sim, "cache").open(TOP).unwrap();
    let content = read_all(&disk);
    assert_eq!(content[0], 7);
    with(fault, || disk.flush()).unwrap();
    disk.die();
    let after = sim.power_cut_keeping(Keep::Nothing);
    read_all(&options(&after, "another").open(TOP).unwrap()) == content
}

#[test]
fn the_descriptor_of_a_backing_is_durable_under_its_name() {
    assert!(shows_the_same_below_a_new_name(None));
    assert!(!shows_the_same_below_a_new_name(Some(Fault::NamesBelowUnsynced)));
}

/// A backing whose last user was killed: some of what it shows is in the page cache alone.
fn above_a_killed_one() -> SimDisk {
    let sim = SimDisk::new();
    sim.put(BASE, &base(LENGTH));
    over(&sim, "killed.qbm", BASE, Format::Raw);
    over(&sim, "middle.qbm", "killed.qbm", Format::Qbm);
    over(&sim, TOP, "middle.qbm", Format::Qbm);
    let killed = options(&sim, "cache").open("killed.qbm").unwrap();
    write(&killed, 9, 2 * G, G);
    sim.kill()
}

/// It is read, written above and flushed. But nothing begins there.
#[test]
fn a_starting_point_waits_for_a_recovery_below() {
    let sim = above_a_killed_one();
    let disk = options(&sim, "cache").open(TOP).unwrap();
    write(&disk, 1, 0, 10);
    disk.flush().unwrap();
    let words = "cannot add bitmap \"b\": killed.qbm was not closed by its last user; \"qbm check -r all killed.qbm\" recovers it";
    assert_fails(
        disk.bitmap_add("b", every_granule()),
        ErrorCode::FileInvalid,
        words,
    );
    assert!(disk.bitmap_list().unwrap().is_empty());
    disk.close().unwrap();
    options(&sim, "cache")
        .open("killed.qbm")
        .unwrap()
        .close()
        .unwrap();
    let disk = options(&sim, "cache").open(TOP).unwrap();
    disk.bitmap_add("b", every_granule()).unwrap();
    let backup = read_all(&disk);
    assert!(lost(&sim, &backup).is_empty());
}

#[test]
fn one_that_does_not_wait_loses_a_change() {
    let sim = above_a_killed_one();
    let disk = options(&sim, "cache").open(TOP).unwrap();
    with(Some(Fault::ShadowBelowKept), || {
        disk.bitmap_add("b", every_granule()).unwrap();
    });
    let backup = read_all(&disk);
    assert_eq!(lost(&sim, &backup), [2]);
}

fn is_sync_below(event: &Event) -> bool {
    matches!(&event.call, Call::Sync { file, .. } if file.role == Role::Backing)
}

/// Once, by the first that promises anything.
#[test]
fn what_is_below_is_synced_once() {
    let sim = prepared(Where::Deeper);
    let calls = |from: usize| {
        let events = sim.events();
        events[from..].iter().filter(|it| is_sync_below(it)).count()
    };
    let start = sim.events().len();
    let disk = options(&sim, "cache").read_only(true).open(TOP).unwrap();
    read_all(&disk);
    disk.close().unwrap();
    let disk = options(&sim, "cache").open(TOP).unwrap();
    write(&disk, 1, 0, 10);
    assert_eq!(calls(start), 0);
    disk.flush().unwrap();
    // Both images, and the bits of the nearer one.
    assert_eq!(calls(start), 3);
    let start = sim.events().len();
    write(&disk, 1, 2 * G, 10);
    disk.bitmap_add("b", every_granule()).unwrap();
    disk.bitmap_freeze("b").unwrap();
    disk.bitmap_thaw("b", Thaw::Commit).unwrap();
    disk.close().unwrap();
    assert_eq!(calls(start), 0);
}

/// What the kernel has dropped no later sync tells of (A2).
#[test]
fn a_failed_sync_below_is_for_good() {
    for file in [BASE, "middle-data.img", "middle-allocation.bitmap"] {
        let sim = prepared(Where::Deeper);
        let disk = options(&sim, "cache").open(TOP).unwrap();
        write(&disk, 1, 0, 10);
        sim.fail(Failing::new(libc::EIO).on(CallKind::Sync).on_file(file));
        let error = disk.flush().unwrap_err();
        assert_eq!(error.errno(), libc::EIO, "{error}");
        assert!(error.message().contains(file), "{error}");
        sim.heal();
        assert!(disk.info().unwrap().failed);
        for result in [
            disk.flush(),
            disk.write(&[1], 0, WriteFlags::empty()),
            disk.bitmap_add("b", every_granule()),
        ] {
            assert_eq!(result.unwrap_err().code(), ErrorCode::Failed, "{file}");
        }
        disk.close().unwrap_err();
    }
}

/// On a file system that never writes, as squashfs, there is nothing to be synced, and no way to ask for it.
#[test]
fn a_backing_that_cannot_be_synced_has_lost_nothing() {
    let sim = prepared(Where::Deeper);
    let of_backing = |call: &Call| call.file().is_some_and(|file| file.role == Role::Backing);
    let fault = Failing::new(libc::EINVAL).on(CallKind::Sync).matching(of_backing);
    sim.fail(fault.from_then_on());
    let disk = options(&sim, "cache").open(TOP).unwrap();
    disk.bitmap_add("b", every_granule()).unwrap();
    disk.close().unwrap();
}

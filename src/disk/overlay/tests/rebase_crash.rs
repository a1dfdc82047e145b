//! A rebase that is cut off, or in which a call fails: the disk shows what it showed, from the one image or the other.
//!
//! The story that they guard against: the descriptor names the new image, and what had been copied up, or written by the
//! guest into its own image, is not there after the power cut. The guest reads what the new image has.

use std::ops::ControlFlow;

use super::rebase::{at, on, other, prepared, rebase};
use super::*;
use crate::descriptor::BackingEntry;
use crate::disk::BackingFlags;
use crate::storage::simulated::{Fault as Failing, Keep};
use crate::storage::{Access, Role, write_slice};

fn targets() -> [Option<BackingEntry>; 2] {
    [on("other.img", Format::Raw), None]
}

fn start(flushed: bool) -> (SimDisk, Disk, Vec<u8>) {
    let (sim, disk, content) = prepared();
    sim.put("other.img", &other());
    if flushed {
        disk.flush().unwrap();
    }
    (sim, disk, content)
}

/// How many crash states of a rebase of a flushed disk show what it did not show.
fn violations(backing: Option<&BackingEntry>, fault: Option<Fault>) -> (u64, [u64; 2]) {
    let (sim, disk, content) = start(true);
    let begin = sim.events().len() as u64;
    with(fault, || rebase(&disk, backing.cloned())).unwrap();
    let (mut bad, mut sides) = (0, [0, 0]);
    for point in sim.crash_points().filter(|point| point.events() >= begin) {
        let cuts = (0..12).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
        for state in cuts
            .map(|keep| point.power_cut_keeping(keep))
            .chain([point.kill()])
        {
            let disk = open(&state);
            bad += u64::from(read_all(&disk) != content);
            let moved = disk.info().unwrap().overlay.unwrap().backing.as_ref() == backing;
            sides[usize::from(moved)] += 1;
        }
    }
    (bad, sides)
}

#[test]
fn one_that_is_cut_off_shows_what_was_there() {
    for backing in targets() {
        let (bad, [old, new]) = violations(backing.as_ref(), None);
        assert_eq!(bad, 0, "{backing:?}");
        assert!(
            old > 20 && new > 10,
            "{backing:?}: {old} on the old image, {new} on the new"
        );
    }
}

#[test]
fn a_descriptor_that_is_saved_too_early_is_seen() {
    for backing in targets() {
        let (bad, _) = violations(backing.as_ref(), Some(Fault::RebasedUnflushed));
        assert!(bad > 0, "{backing:?}");
    }
}

/// What the guest had written, and not flushed, does not turn into what the new image has.
#[test]
fn what_was_not_flushed_shows_nothing_of_the_new_image() {
    for backing in targets() {
        let (sim, disk, content) = start(false);
        rebase(&disk, backing).unwrap();
        // It is as good as flushed.
        assert_same(&read_all(&open(&sim.power_cut_keeping(Keep::Nothing))), &content);
    }
}

/// A file that has its name, and its content in the page cache alone.
fn unsynced(sim: &SimDisk, name: &str, content: &[u8]) {
    let file = sim.folder().create(Role::Backing, name.as_ref()).unwrap();
    sim.folder().sync().unwrap();
    write_slice(&*file, content, 0).unwrap();
}

/// What whoever made the new image has left in the page cache is relied on from now on.
fn outlives_a_power_cut_on_a_new_image(format: Format, fault: Option<Fault>) -> bool {
    let (sim, disk, content) = start(true);
    let new = base(14 * G);
    match format {
        Format::Raw => unsynced(&sim, "new", &new),
        Format::Vmdk => {
            let text = format!(
                "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                 RW {} FLAT \"new-flat.vmdk\" 0\n",
                new.len() / 512
            );
            sim.put("new", text.as_bytes());
            unsynced(&sim, "new-flat.vmdk", &new);
        }
        _ => {
            let text =
                br#"{"QBM": {"version": 1, "image": {"file": "new.img", "format": "raw"}, "bitmaps": {"a":
                {"file": "new.bits", "type": "allocation", "granularity-bytes": 4096}}}}"#;
            sim.put("new", text);
            sim.put("new.img", &new);
            // As a process has left it that was killed between writing the bits and syncing them.
            sim.put("new.bits", &[0; 8]);
            let access = Access {
                write: true,
                direct: false,
            };
            let bits = sim
                .folder()
                .open(Role::Bitmap, "new.bits".as_ref(), access)
                .unwrap();
            write_slice(&*bits, &[0xff, 0x3f], 0).unwrap();
        }
    }
    with(fault, || rebase(&disk, on("new", format))).unwrap();
    let cut = sim.power_cut_keeping(Keep::Nothing);
    // Where the new image has lost its length too, it may be none any more.
    let disk = OpenOptions::new().no_state(true).folder(cut.folder()).open(TOP);
    disk.is_ok_and(|disk| read_all(&disk) == content)
}

#[test]
fn a_new_image_is_durable_first() {
    for format in [Format::Raw, Format::Vmdk, Format::Qbm] {
        assert!(outlives_a_power_cut_on_a_new_image(format, None), "{format}");
        let fault = Some(Fault::FoundBackingUnsynced);
        assert!(!outlives_a_power_cut_on_a_new_image(format, fault), "{format}");
    }
}

/// What is in the new image by the word of a killed process alone would go with a power cut.
#[test]
fn an_image_that_is_to_be_recovered_is_refused() {
    let (sim, disk, content) = start(true);
    CreateOptions::new()
        .size(14 * G)
        .backing("other.img", Format::Raw)
        .folder(sim.folder())
        .create("killed.qbm")
        .unwrap();
    let options = |sim: &SimDisk| OpenOptions::new().folder(sim.folder()).cache_epoch("e");
    let killed = options(&sim).open("killed.qbm").unwrap();
    write(&killed, 1, 0, G);
    killed.die();
    disk.close().unwrap();
    let disk = options(&sim).open(TOP).unwrap();
    let words = "cannot rebase top.qbm: killed.qbm was not closed by its last user; \"qbm check -r all killed.qbm\" recovers it";
    let killed = || on("killed.qbm", Format::Qbm);
    assert_fails(rebase(&disk, killed()), ErrorCode::FileInvalid, words);
    assert_same(&read_all(&disk), &content);
    options(&sim).open("killed.qbm").unwrap().close().unwrap();
    rebase(&disk, killed()).unwrap();
    assert_same(&read_all(&disk), &content);
}

/// How the disk comes to the deeper one of the images below it.
#[derive(Clone, Copy, Debug)]
enum Deeper {
    Rebased,
    /// By the name alone: it shows the same.
    Renamed,
}

impl Deeper {
    fn put(self, disk: &Disk, backing: Option<BackingEntry>) -> Result<()> {
        match self {
            Self::Rebased => rebase(disk, backing),
            Self::Renamed => disk.change_backing(backing, BackingFlags::UNCHANGED),
        }
    }
}

/// An overlay on two images; the nearer one has granule 2 itself.
fn on_two(deeper: (&str, Format)) -> SimDisk {
    let sim = SimDisk::new();
    let over = |name, (backing, format)| {
        CreateOptions::new()
            .size(8 * G)
            .backing(backing, format)
            .granularity(granularity(G))
            .folder(sim.folder())
            .create(name)
            .unwrap();
    };
    sim.put("base.img", &base(8 * G));
    if deeper.1 == Format::Qbm {
        over(deeper.0, ("base.img", Format::Raw));
    }
    over("middle.qbm", deeper);
    over(TOP, ("middle.qbm", Format::Qbm));
    let middle = in_cache(&sim, "middle.qbm");
    write(&middle, 9, 2 * G, G);
    middle.close().unwrap();
    sim
}

fn in_cache(sim: &SimDisk, name: &str) -> Disk {
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch("cache");
    options.open(name).unwrap()
}

/// What the image between has for good, the deeper one has, too, but in the page cache alone.
fn outlives_a_power_cut_on_a_deeper_image(way: Deeper, fault: Option<Fault>) -> bool {
    let sim = on_two(("base.img", Format::Raw));
    let access = Access {
        write: true,
        direct: false,
    };
    let file = sim
        .folder()
        .open(Role::Backing, "base.img".as_ref(), access)
        .unwrap();
    write_slice(&*file, &[9; 4096], 2 * G).unwrap();
    let disk = in_cache(&sim, TOP);
    let content = read_all(&disk);
    with(fault, || way.put(&disk, on("base.img", Format::Raw))).unwrap();
    assert_same(&read_all(&disk), &content);
    disk.die();
    read_all(&open(&sim.power_cut_keeping(Keep::Nothing))) == content
}

#[test]
fn what_a_deeper_image_shows_in_place_of_another_is_durable_first() {
    for way in [Deeper::Rebased, Deeper::Renamed] {
        assert!(outlives_a_power_cut_on_a_deeper_image(way, None), "{way:?}");
        let fault = Some(Fault::BelowUnsynced);
        assert!(!outlives_a_power_cut_on_a_deeper_image(way, fault), "{way:?}");
    }
}

/// The same of a deeper one that has it by the word of a killed process.
fn on_a_killed_one(way: Deeper) -> (SimDisk, Disk, Result<()>) {
    let sim = on_two(("killed.qbm", Format::Qbm));
    let killed = in_cache(&sim, "killed.qbm");
    write(&killed, 9, 2 * G, G);
    killed.die();
    let sim = sim.kill();
    let disk = in_cache(&sim, TOP);
    // What it is on already it may be told of again.
    way.put(&disk, on("middle.qbm", Format::Qbm)).unwrap();
    let result = way.put(&disk, on("killed.qbm", Format::Qbm));
    (sim, disk, result)
}

#[test]
fn a_deeper_image_that_is_to_be_recovered_takes_no_place() {
    for way in [Deeper::Rebased, Deeper::Renamed] {
        let (_, disk, result) = on_a_killed_one(way);
        let what = match way {
            Deeper::Rebased => "cannot rebase top.qbm",
            Deeper::Renamed => "cannot change the backing of top.qbm",
        };
        let words = format!(
            "{what}: killed.qbm was not closed by its last user; \"qbm check -r all killed.qbm\" recovers it"
        );
        assert_fails(result, ErrorCode::FileInvalid, &words);
        assert_eq!(read_all(&disk)[at(2 * G)], 9);

        let (sim, disk, result) = with(Some(Fault::ShadowBelowKept), || on_a_killed_one(way));
        result.unwrap();
        assert_eq!(read_all(&disk)[at(2 * G)], 9);
        disk.die();
        let after = open(&sim.power_cut_keeping(Keep::Nothing));
        assert_eq!(read_all(&after)[at(2 * G)], base_byte(2 * G), "{way:?}");
    }
}

#[test]
fn one_in_which_a_call_fails_shows_what_was_there() {
    for backing in targets() {
        let (sim, disk, _) = start(true);
        let begin = sim.events().len();
        rebase(&disk, backing.clone()).unwrap();
        let calls = (sim.events().len() - begin) as u64;
        for call in 1..=calls {
            for errno in [libc::EIO, libc::ENOSPC] {
                let (sim, disk, content) = start(true);
                sim.fail(Failing::new(errno).nth(call));
                let result = rebase(&disk, backing.clone());
                sim.heal();
                assert_same(&read_all(&disk), &content);
                if let Err(error) = &result {
                    assert!(error.message().starts_with("cannot rebase top.qbm: "), "{error}");
                    if !disk.info().unwrap().failed {
                        rebase(&disk, backing.clone()).unwrap();
                        assert_same(&read_all(&disk), &content);
                    }
                }
                assert_same(&read_all(&open(&sim.kill())), &content);
            }
        }
    }
}

/// M1: by the name alone, all shows the one or all shows the other.
#[test]
fn a_change_of_the_name_is_done_or_not() {
    let (sim, disk, old) = start(true);
    let begin = sim.events().len() as u64;
    disk.change_backing(on("other.img", Format::Raw), BackingFlags::empty())
        .unwrap();
    let new = read_all(&disk);
    assert!(new[at(4 * G)..at(5 * G)] != old[at(4 * G)..at(5 * G)]);
    let (mut of_old, mut of_new) = (0, 0);
    for point in sim.crash_points().filter(|point| point.events() >= begin) {
        for keep in (0..12).map(Keep::Random).chain([Keep::Nothing, Keep::All]) {
            let found = read_all(&open(&point.power_cut_keeping(keep)));
            if found == old {
                of_old += 1;
            } else {
                assert_same(&found, &new);
                of_new += 1;
            }
        }
    }
    assert!(of_old > 10 && of_new > 10, "{of_old}, {of_new}");
    // Where it fails, it has not been done, or the disk says that it does not know.
    let calls = (sim.events().len() as u64) - begin;
    for call in 1..=calls {
        let (sim, disk, old) = start(true);
        sim.fail(Failing::new(libc::EIO).nth(call));
        let result = disk.change_backing(on("other.img", Format::Raw), BackingFlags::empty());
        sim.heal();
        let expected = if result.is_ok() { &new } else { &old };
        assert_same(&read_all(&disk), expected);
        let found = read_all(&open(&sim.kill()));
        let failed = disk.info().unwrap().failed;
        assert!(
            &found == expected || (failed && found == new),
            "call {call}: {result:?}"
        );
    }
}

/// A callback that ends it at each of its calls in turn.
#[test]
fn it_can_be_ended_at_any_time() {
    for backing in targets() {
        for last in 0.. {
            let (sim, disk, content) = start(true);
            let mut calls = 0;
            let result = disk.rebase(backing.clone(), &mut |_, _| {
                calls += 1;
                if calls > last {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            assert_same(&read_all(&disk), &content);
            disk.close().unwrap();
            assert_same(&read_all(&open(&sim)), &content);
            if result.is_ok() {
                assert!(last > 1);
                break;
            }
        }
    }
}

//! Power cuts in and after a repair.

use std::ops::ControlFlow;

use super::super::{CheckOptions, Repair};
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, TruncateFlags, WriteFlags};
use crate::mutation::{Fault, with};
use crate::storage::simulated::{Keep, SimDisk};
use crate::units::Granularity;

const NAME: &str = "disk.qbm";
const BITMAP: &str = "disk-a.bitmap";

/// What others do to a disk whose user was killed, before it is repaired.
type Spoil = fn(&SimDisk);

/// A process is killed in the middle of `act`, the disk is repaired, and the power goes in the middle of that. Says what is wrong then.
fn wrong_after_a_repair(fault: Option<Fault>, act: fn(&Disk)) -> Option<String> {
    wrong_after(fault, act, |_| (), Repair::All)
}

/// The same behind what others have done, and with any repair.
///
/// A cut may leave a disk as it was that does not open; then the same repair ends what it began.
fn wrong_after(fault: Option<Fault>, act: fn(&Disk), spoil: Spoil, repair: Repair) -> Option<String> {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(24 << 10).region_bytes(4096);
    create.folder(sim.folder()).create(NAME).unwrap();
    let open = |sim: &SimDisk, cache: &str| {
        OpenOptions::new()
            .folder(sim.folder())
            .cache_epoch(cache)
            .open(NAME)
    };
    let disk = open(&sim, "first").unwrap();
    let options = AddBitmap {
        granularity: Granularity::MIN,
        ..AddBitmap::default()
    };
    disk.bitmap_add("a", options).unwrap();
    disk.write(&vec![7; 24 << 10], 0, WriteFlags::empty()).unwrap();
    let epoch = disk.bitmap_list().unwrap()[0].epoch.clone();
    // So that no region is active.
    disk.close().unwrap();
    let disk = open(&sim, "first").unwrap();
    let start = sim.events().len() as u64;
    act(&disk);
    disk.die();
    for point in sim.crash_points().filter(|it| it.events() >= start) {
        let killed = point.kill();
        spoil(&killed);
        let options = |sim: &SimDisk, cache| {
            let options = CheckOptions::new().folder(sim.folder()).cache_epoch(cache);
            options.repair(repair)
        };
        let descriptor = |sim: &SimDisk| sim.read(NAME).unwrap();
        let before = descriptor(&killed);
        let run = || options(&killed, "first").check(NAME, &mut |_, _| ControlFlow::Continue(()));
        fault.map_or_else(run, |fault| with(fault, run)).unwrap();
        let keeps = [Keep::Nothing, Keep::All, Keep::Random(1), Keep::Random(2)];
        let cuts = killed.crash_points().flat_map(|cut| {
            keeps
                .iter()
                .map(move |keep| (cut.events(), cut.power_cut_keeping(*keep)))
        });
        for (calls, cut) in cuts {
            let when = format!("killed after {} calls, cut off after {calls}", point.events());
            let opened = open(&cut, "second").or_else(|error| {
                if descriptor(&cut) != before {
                    return Err(error);
                }
                options(&cut, "second").check(NAME, &mut |_, _| ControlFlow::Continue(()))?;
                open(&cut, "second")
            });
            let disk = match opened {
                Ok(disk) => disk,
                Err(error) => return Some(format!("{when}: {error}")),
            };
            let info = disk.bitmap_list().unwrap().remove(0);
            // One that is called inconsistent promises nothing; one of another starting point has every bit where it was made anew.
            if info.inconsistent || (repair == Repair::All && info.epoch != epoch) {
                continue;
            }
            let mut found = vec![0; usize::try_from(disk.length()).unwrap()];
            disk.read(&mut found, 0).unwrap();
            let lacks = |at: &u64| !disk.bitmap_get("a", *at * 512).unwrap();
            let written =
                (0..disk.length() / 512).filter(|at| found[usize::try_from(at * 512).unwrap()] == 7);
            if let Some(at) = written.into_iter().find(lacks) {
                return Some(format!("{when}: granule {at} lacks its bit"));
            }
        }
    }
    None
}

#[test]
fn a_repair_relies_on_nothing_that_a_power_cut_takes_back() {
    let shrink = |disk: &Disk| disk.truncate(8192, TruncateFlags::SHRINK).unwrap();
    let clear = |disk: &Disk| disk.bitmap_clear("a").unwrap();
    for act in [shrink, clear] {
        assert_eq!(wrong_after_a_repair(None, act), None);
    }
    assert!(wrong_after_a_repair(Some(Fault::FoundLengthUnsynced), shrink).is_some());
    assert!(wrong_after_a_repair(Some(Fault::FoundNamesUnsynced), clear).is_some());
}

/// Its file is gone.
const GONE: Spoil = |sim| {
    sim.folder().remove(BITMAP.as_ref()).unwrap();
    sim.folder().sync().unwrap();
};
/// Somebody has cut it.
const CUT: Spoil = |sim| {
    let bits = sim.read(BITMAP).unwrap();
    sim.put(BITMAP, &bits[..bits.len().min(1)]);
};
/// The image is longer than it reaches.
const LONGER: Spoil = |sim| {
    let mut image = sim.read("disk-data.img").unwrap();
    image.resize(64 << 10, 0);
    sim.put("disk-data.img", &image);
};

/// A new file for a bitmap vouches for all of the disk, also for what comes back of it with the power.
#[test]
fn a_bitmap_made_anew_lacks_nothing_whenever_the_power_goes() {
    let shrink = |disk: &Disk| disk.truncate(8192, TruncateFlags::SHRINK).unwrap();
    let write = |disk: &Disk| disk.write(&[7; 512], 4096, WriteFlags::empty()).unwrap();
    assert_eq!(wrong_after(None, write, CUT, Repair::Dirty), None);
    assert_eq!(wrong_after(None, shrink, GONE, Repair::Dirty), None);
    let without = |fault, act| wrong_after(Some(fault), act, GONE, Repair::Dirty);
    assert!(without(Fault::FoundLengthUnsynced, shrink).is_some());
}

/// Nor does one lack anything that others made longer while it was not closed.
#[test]
fn a_disk_made_longer_while_in_use_lacks_nothing_whenever_the_power_goes() {
    let write = |disk: &Disk| disk.write(&[7; 512], 4096, WriteFlags::empty()).unwrap();
    for repair in [Repair::Dirty, Repair::Trust] {
        assert_eq!(wrong_after(None, write, LONGER, repair), None);
        assert!(wrong_after(Some(Fault::NewBitsUnsynced), write, LONGER, repair).is_some());
    }
}

/// What is wrong when the power goes while a disk is repaired that was closed, and spoilt then.
fn wrong_after_close(fault: Option<Fault>, (spoil, longer): (Spoil, bool), repair: Repair) -> Option<String> {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(24 << 10).region_bytes(4096);
    create.folder(sim.folder()).create(NAME).unwrap();
    let open = |sim: &SimDisk| {
        let options = OpenOptions::new().folder(sim.folder());
        options.cache_epoch("first").open(NAME)
    };
    let disk = open(&sim).unwrap();
    let fine = AddBitmap {
        granularity: Granularity::MIN,
        ..AddBitmap::default()
    };
    disk.bitmap_add("a", fine).unwrap();
    disk.write(&[7; 512], 4096, WriteFlags::empty()).unwrap();
    disk.close().unwrap();
    spoil(&sim);
    let sim = sim.power_cut_keeping(Keep::All);
    let descriptor = |sim: &SimDisk| sim.read(NAME).unwrap();
    let before = descriptor(&sim);
    let check = |sim: &SimDisk| {
        let options = CheckOptions::new().folder(sim.folder()).cache_epoch("first");
        let options = options.repair(repair);
        options
            .check(NAME, &mut |_, _| ControlFlow::Continue(()))
            .unwrap()
    };
    fault.map_or_else(|| check(&sim), |fault| with(fault, || check(&sim)));
    let last = sim.events().len() as u64;
    let some = (0..6).flat_map(|it| [Keep::Only(it), Keep::AllBut(it)]);
    let keeps: Vec<Keep> = [Keep::Nothing, Keep::All].into_iter().chain(some).collect();
    for point in sim.crash_points() {
        for keep in &keeps {
            let cut = point.power_cut_keeping(*keep);
            let when = format!("cut off after {} calls of {last}, {keep:?}", point.events());
            let begun = if longer {
                point.events() < last
            } else {
                descriptor(&cut) == before
            };
            if begun {
                check(&cut);
            }
            let disk = match open(&cut) {
                Ok(disk) => disk,
                Err(error) => return Some(format!("{when}: {error}")),
            };
            if disk.bitmap_list().unwrap().remove(0).inconsistent {
                return Some(format!("{when}: it is inconsistent"));
            }
            if !disk.bitmap_get("a", 4096).unwrap() {
                return Some(format!("{when}: a bit is missing"));
            }
        }
    }
    None
}

#[test]
fn a_disk_that_others_made_longer_is_repaired_for_good() {
    for repair in [Repair::Dirty, Repair::Trust] {
        assert_eq!(wrong_after_close(None, (LONGER, true), repair), None);
    }
}

/// The descriptor that names the new file, and never the old one with what is not whole yet.
#[test]
fn a_bitmap_made_anew_is_there_before_it_is_named() {
    for spoil in [GONE, CUT] {
        assert_eq!(wrong_after_close(None, (spoil, false), Repair::Dirty), None);
    }
    for fault in [Fault::NamesUnsynced, Fault::NewBitsUnsynced, Fault::RemadeInPlace] {
        let found = wrong_after_close(Some(fault), (GONE, false), Repair::Dirty);
        assert!(found.is_some(), "{fault:?}");
    }
}

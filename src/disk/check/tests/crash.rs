//! Power cuts in and after a repair.

use std::ops::ControlFlow;

use super::super::{CheckOptions, Repair};
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, TruncateFlags, WriteFlags};
use crate::mutation::{Fault, with};
use crate::storage::simulated::{Keep, SimDisk};
use crate::units::Granularity;

/// A process is killed in the middle of `act`, the disk is repaired, and the power goes in the middle of that. Says what is wrong then.
fn wrong_after_a_repair(fault: Option<Fault>, act: fn(&Disk)) -> Option<String> {
    const NAME: &str = "disk.qbm";
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
        let options = CheckOptions::new().folder(killed.folder()).cache_epoch("first");
        let options = options.repair(Repair::All);
        let repair = || options.check(NAME, &mut |_, _| ControlFlow::Continue(()));
        fault.map_or_else(repair, |fault| with(fault, repair)).unwrap();
        let keeps = [Keep::Nothing, Keep::All, Keep::Random(1), Keep::Random(2)];
        let cuts = killed
            .crash_points()
            .flat_map(|cut| keeps.map(|keep| (cut.events(), cut.power_cut_keeping(keep))));
        for (calls, cut) in cuts {
            let when = format!("killed after {} calls, cut off after {calls}", point.events());
            let disk = match open(&cut, "second") {
                Ok(disk) => disk,
                Err(error) => return Some(format!("{when}: {error}")),
            };
            let info = disk.bitmap_list().unwrap().remove(0);
            let mut found = vec![0; usize::try_from(disk.length()).unwrap()];
            disk.read(&mut found, 0).unwrap();
            let lacks = |at: &u64| !disk.bitmap_get("a", *at * 512).unwrap();
            let written =
                (0..disk.length() / 512).filter(|at| found[usize::try_from(at * 512).unwrap()] == 7);
            if let Some(at) = written.filter(|_| info.epoch == epoch).find(lacks) {
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

//! Somebody writes to the image while the disk is closed. From the first open on, no crash may let a bitmap that missed
//! these writes be trusted: the mark is durable before the stamp that tells of them is replaced.

use super::kind::Kind;
use super::life::NAME;
use crate::disk::{AddBitmap, CreateOptions, WriteFlags};
use crate::mutation::{Fault, with};
use crate::storage::simulated::{Keep, SimDisk};

const IMAGE: &str = "disk-data.img";

/// How many crashes end with a bitmap that is trusted, of how many.
fn trusted() -> (u64, u64) {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(24 << 10).folder(sim.folder());
    create.create(NAME).unwrap();
    let disk = Kind::RAW.options(&sim, "first").open(NAME).unwrap();
    disk.bitmap_add("a", AddBitmap::default()).unwrap();
    disk.write(&[1; 700], 900, WriteFlags::empty()).unwrap();
    disk.close().unwrap();

    sim.put(IMAGE, &vec![7; 25 << 10]);
    let start = sim.events().len() as u64;
    let disk = Kind::RAW.options(&sim, "first").open(NAME).unwrap();
    disk.write(&[2; 700], 5000, WriteFlags::FUA).unwrap();
    disk.close().unwrap();
    let (mut trusted, mut all) = (0, 0);
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        let keeps = [Keep::Nothing, Keep::All]
            .into_iter()
            .chain((0..6).map(Keep::Random));
        let cuts = keeps.map(|keep| (point.power_cut_keeping(keep), "second"));
        for (state, cache) in cuts.chain([(point.kill(), "first")]) {
            let disk = Kind::RAW.options(&state, cache).open(NAME).unwrap();
            trusted += u64::from(!disk.bitmap_info("a").unwrap().inconsistent);
            all += 1;
        }
    }
    (trusted, all)
}

#[test]
fn a_foreign_write_is_never_forgotten() {
    let (trusted_anyway, all) = trusted();
    assert!(trusted_anyway == 0 && all > 100, "{trusted_anyway} of {all}");
    let (noticed, _) = with(Fault::StampFirst, trusted);
    assert!(noticed > 0, "marks that come late are not noticed");
}

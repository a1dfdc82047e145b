//! A state file that an open adds: it vouches for what was there before, and is relied on by whoever opens the disk next (D1).

use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{CallKind, Keep, SimDisk};

const NAME: &str = "disk.qbm";

fn options(sim: &SimDisk, cache: &str) -> OpenOptions {
    OpenOptions::new().folder(sim.folder()).cache_epoch(cache)
}

/// A disk with a bitmap and no state file, and its only user so far.
fn without_state() -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(1 << 20).no_state(true);
    create.folder(sim.folder()).create(NAME).unwrap();
    let disk = options(&sim, "one").no_state(true).open(NAME).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    (sim, disk)
}

fn write_and_flush(disk: &Disk) {
    disk.write(&[7; 4096], 0, WriteFlags::empty()).unwrap();
    disk.flush().unwrap();
}

/// Cuts the power in many ways: wherever the byte is there, so is its bit.
fn survives(sim: &SimDisk) -> std::result::Result<(), String> {
    for seed in 0..200 {
        let keep = if seed == 0 {
            Keep::Nothing
        } else {
            Keep::Random(seed)
        };
        let after = options(&sim.power_cut_keeping(keep), "two").open(NAME).unwrap();
        let mut byte = [0];
        after.read(&mut byte, 0).unwrap();
        let told = after.bitmap_info("b").unwrap().inconsistent || after.bitmap_get("b", 0).unwrap();
        if byte == [7] && !told {
            return Err(format!("D1: seed {seed}"));
        }
    }
    Ok(())
}

/// What a process without a state file has left in the page cache is durable before one vouches for it.
#[test]
fn bits_of_a_killed_process_are_made_durable_first() {
    let case = || {
        let (sim, disk) = without_state();
        write_and_flush(&disk);
        let sim = sim.kill();
        let disk = options(&sim, "one").open(NAME).unwrap();
        survives(&sim)?;
        disk.close().unwrap();
        survives(&sim)
    };
    case().unwrap();
    with(Wrong::NotRewritten, case).unwrap_err();
}

/// After the rename that names the state file, the opener is killed.
fn unsure_name() -> std::result::Result<(), String> {
    let (sim, disk) = without_state();
    disk.close().unwrap();
    options(&sim, "one").open(NAME).unwrap().die();
    let events = sim.events();
    let renamed = events
        .iter()
        .find(|it| it.call.kind() == CallKind::Rename && names_the_state(&sim, it.number));
    let sim = sim.after(renamed.unwrap().number).kill();
    let disk = options(&sim, "one").open(NAME).unwrap();
    write_and_flush(&disk);
    survives(&sim)
}

fn names_the_state(sim: &SimDisk, event: u64) -> bool {
    let descriptor = sim.after(event).kill().read(NAME).unwrap();
    String::from_utf8(descriptor).unwrap().contains("disk.state")
}

#[test]
fn the_name_of_the_state_file_is_durable_before_it_is_relied_on() {
    unsure_name().unwrap();
    with(Wrong::FoundNamesUnsynced, unsure_name).unwrap_err();
}

/// Nothing changes until the next close, and then somebody writes to the image.
#[test]
fn a_state_file_that_was_just_added_tells_of_foreign_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    CreateOptions::new()
        .size(1 << 20)
        .no_state(true)
        .create(&path)
        .unwrap();
    let disk = OpenOptions::new().no_state(true).open(&path).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    Disk::open(&path).unwrap().close().unwrap();
    std::fs::write(dir.path().join("disk-data.img"), vec![1; 1 << 20]).unwrap();
    let disk = Disk::open(&path).unwrap();
    assert!(disk.bitmap_info("b").unwrap().inconsistent);
}

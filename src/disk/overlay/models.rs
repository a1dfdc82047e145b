//! An overlay under the schedule explorer: two writers and a reader in one granule, and flushes between them.
//!
//! What must hold in every schedule: nobody's bytes are lost (durability trap 4), a reader sees each sector as before or
//! after, and what a flush has answered for is there after a power cut, beside nobody else's bytes (A1, A2).

use crate::descriptor::Format;
use crate::disk::{CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::mutation::{self, Fault};
use crate::storage::simulated::{Call, Fault as Failing, Keep, SimDisk};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use crate::units::Granularity;

const NAME: &str = "top.qbm";
const SECTOR: usize = 512;
const GRANULE: usize = 4 * SECTOR;
const LENGTH: usize = 2 * GRANULE;
/// What the backing has, and what the image had before it was the disk's.
const BACKING: u8 = 1;
const FOREIGN: u8 = 0xee;
const WRITTEN: u8 = 10;

fn open(sim: &SimDisk) -> Disk {
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch("cache");
    options.open(NAME).unwrap()
}

fn open_after_cut(sim: &SimDisk) -> Disk {
    OpenOptions::new().folder(sim.folder()).open(NAME).unwrap()
}

/// Two granules over a backing, where another thread may come before any call on a file.
fn disk() -> (SimDisk, Arc<Disk>) {
    let sim = SimDisk::new();
    sim.put("base.img", &[BACKING; LENGTH]);
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .granularity(Granularity::new(GRANULE as u64).unwrap())
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    sim.put("top-data.img", &[FOREIGN; LENGTH]);
    let disk = open(&sim);
    let step = AtomicUsize::new(0);
    sim.on_call(move |_| {
        step.load(Ordering::SeqCst);
    });
    (sim, Arc::new(disk))
}

/// What each sector has, which must be the same in all of it.
fn sectors(disk: &Disk) -> [u8; 8] {
    let mut bytes = [0; LENGTH];
    disk.read(&mut bytes, 0).unwrap();
    std::array::from_fn(|index| {
        let sector = &bytes[index * SECTOR..][..SECTOR];
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector");
        sector[0]
    })
}

/// Two writers of a sector each in one granule, one of whom goes on to the next granule, and one flushes; a reader
/// beside them; then the power goes.
fn writers_of_one_granule() {
    let (sim, disk) = disk();
    let writers = [[0, 4], [2, 2]].map(|places: [u64; 2]| {
        let disk = Arc::clone(&disk);
        thread::spawn(move || {
            for at in places {
                let value = [WRITTEN; SECTOR];
                disk.write(&value, at * SECTOR as u64, WriteFlags::empty())
                    .unwrap();
                if at == 2 {
                    disk.flush().unwrap();
                }
            }
        })
    });
    let check = |found: [u8; 8]| {
        for (index, value) in found.into_iter().enumerate() {
            let written = [0, 2, 4].contains(&index) && value == WRITTEN;
            assert!(written || value == BACKING, "sector {index} has {value}");
        }
    };
    for _ in 0..2 {
        check(sectors(&disk));
    }
    for writer in writers {
        writer.join().unwrap();
    }
    let expected = std::array::from_fn(|index| match index {
        0 | 2 | 4 => WRITTEN,
        _ => BACKING,
    });
    assert_eq!(sectors(&disk), expected, "somebody's bytes are lost");
    for keep in [Keep::Nothing, Keep::Random(1), Keep::Random(2)] {
        let found = sectors(&open_after_cut(&sim.power_cut_keeping(keep)));
        assert!(found[2] == WRITTEN, "what was flushed is lost");
        check(found);
    }
}

/// Two flushes at once: each answers for the write before it.
fn flushes_at_once() {
    let (sim, disk) = disk();
    let writers = [0u8, 1].map(|writer| {
        let (sim, disk) = (sim.clone(), Arc::clone(&disk));
        thread::spawn(move || {
            let at = usize::from(writer) * 2;
            disk.write(&[WRITTEN; SECTOR], (at * SECTOR) as u64, WriteFlags::empty())
                .unwrap();
            disk.flush().unwrap();
            let found = sectors(&open_after_cut(&sim.power_cut_keeping(Keep::Nothing)));
            assert!(found[at] == WRITTEN, "what was flushed is lost");
        })
    });
    for writer in writers {
        writer.join().unwrap();
    }
}

/// Two writers, to one granule or to two whose bits share a piece of the shadow: whenever one of them has been answered, the
/// process may be killed, and the next one shows what he wrote (A3).
fn killed_behind_each_write(second: usize) {
    let (sim, disk) = disk();
    let writers = [0, second].map(|at| {
        let (sim, disk) = (sim.clone(), Arc::clone(&disk));
        thread::spawn(move || {
            let offset = (at * SECTOR) as u64;
            disk.write(&[WRITTEN; SECTOR], offset, WriteFlags::empty())
                .unwrap();
            let found = sectors(&open(&sim.kill()));
            assert!(found[at] == WRITTEN, "what was written is lost");
            for (index, value) in found.into_iter().enumerate() {
                assert!(value == BACKING || value == WRITTEN, "sector {index} has {value}");
            }
        })
    });
    for writer in writers {
        writer.join().unwrap();
    }
}

/// Two writers whose bits are in one piece, where the shadow takes none: what each was answered for is durable.
fn writers_without_room_for_the_shadow() {
    let (sim, disk) = disk();
    let in_shadow = |call: &Call| matches!(call, Call::Write { bytes, .. } if bytes.len() == 8);
    let fault = Failing::new(libc::ENOSPC)
        .on_file("top.state")
        .matching(in_shadow);
    sim.fail(fault.from_then_on());
    let writers = [0, 4].map(|at: usize| {
        let disk = Arc::clone(&disk);
        thread::spawn(move || {
            let offset = (at * SECTOR) as u64;
            disk.write(&[WRITTEN; SECTOR], offset, WriteFlags::empty())
                .unwrap();
        })
    });
    for writer in writers {
        writer.join().unwrap();
    }
    let found = sectors(&open_after_cut(&sim.power_cut_keeping(Keep::Nothing)));
    assert!(
        found[0] == WRITTEN && found[4] == WRITTEN,
        "what was written is lost"
    );
}

/// Random schedules, and such that let a thread rest for long, as a real one may at any step.
fn explore(model: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(model.clone(), 2_000);
    shuttle::check_pct(model, 2_000, 3);
}

#[test]
fn shuttle_writers_of_one_granule_lose_nothing() {
    explore(writers_of_one_granule);
}

#[test]
fn shuttle_flushes_at_once_answer_for_what_came_before_them() {
    explore(flushes_at_once);
}

#[test]
fn shuttle_finds_a_second_writer_that_does_not_look_again() {
    mutation::must_be_caught(Fault::NoSecondLook, "lost", || explore(writers_of_one_granule));
}

#[test]
fn shuttle_finds_a_bit_that_comes_before_its_granule() {
    mutation::must_be_caught(Fault::BitBeforeGranule, "", || explore(writers_of_one_granule));
}

#[test]
fn shuttle_finds_pending_bits_that_are_taken_late() {
    mutation::must_be_caught(Fault::PendingTakenLate, "has 238", || {
        explore(writers_of_one_granule)
    });
}

#[test]
fn shuttle_finds_a_flush_that_joins_one_that_runs() {
    mutation::must_be_caught(Fault::RunningFlushJoined, "lost", || explore(flushes_at_once));
}

#[test]
fn shuttle_kills_behind_each_write_lose_nothing() {
    explore(|| killed_behind_each_write(2));
    explore(|| killed_behind_each_write(4));
}

#[test]
fn shuttle_finds_a_bit_that_comes_before_its_shadow() {
    mutation::must_be_caught(Fault::BitBeforeShadow, "lost", || {
        explore(|| killed_behind_each_write(2));
    });
}

#[test]
fn shuttle_finds_writers_that_share_a_piece_of_the_shadow() {
    mutation::must_be_caught(Fault::PiecesShared, "lost", || {
        explore(|| killed_behind_each_write(4));
    });
}

#[test]
fn shuttle_writers_without_room_for_the_shadow_lose_nothing() {
    explore(writers_without_room_for_the_shadow);
}

#[test]
fn shuttle_finds_a_flush_that_forgets_late_bits() {
    mutation::must_be_caught(Fault::LateForgotten, "lost", || {
        explore(writers_without_room_for_the_shadow);
    });
}

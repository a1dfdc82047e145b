//! A power cut on a real file system: ext4 and xfs over a block device that records every write and flush.
//!
//! A disk is worked on by three writers at a time, with flushes, freezes, thaws, clears, additions, removals and closes
//! between; its regions are retired as soon as they are cold. Then the record is replayed to a flush, or to anywhere
//! between two, where the device keeps what it likes of what was not flushed; the file system is mounted and recovers,
//! the disk is opened and recovers, and must hold what the work up to there was promised: D1 by content, A2, M1, and
//! D2 after a close.
//!
//! An ordinary run cuts 100 times on each file system; `QBM_LONG=1` cuts at every flush and as often between two.
//! `QBM_SEED` repeats the choices of a run. Needs root, FUSE, loop devices and qemu-storage-daemon; says so and passes
//! where the machine has not got them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "power_cut/history.rs"]
mod history;
#[path = "common/loops.rs"]
mod loops;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/random.rs"]
mod random;
#[path = "power_cut/record.rs"]
mod record;
#[path = "power_cut/replay.rs"]
mod replay;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;
#[path = "common/units.rs"]
mod units;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use history::History;
use mounted::Mounted;
use qbm::Disk;
use random::Random;
use record::{EXT4, Kind, Recorder, XFS};
use replay::{Device, Log};
use run::run;

const STEPS: usize = 120;
/// In an ordinary run.
const CUTS: usize = 100;

#[test]
fn on_ext4() {
    on(EXT4);
}

#[test]
fn on_xfs() {
    on(XFS);
}

fn on(kind: Kind) {
    let seed = Random::seed();
    let mut random = Random::new(seed);
    // The images are sparse, and no media are needed: where there is a tmpfs, it is fast.
    let place = [Path::new("/dev/shm"), &std::env::temp_dir()]
        .into_iter()
        .find(|it| it.is_dir())
        .map(Path::to_owned);
    let folder = tempfile::tempdir_in(place.expect("a temporary folder")).expect("a folder");
    let folder = folder.path();
    let Some(recorder) = Recorder::start(folder, kind) else {
        return;
    };
    units::create(recorder.folder());
    let history = History::make(&recorder, STEPS, &mut random);
    drop(recorder);

    let log = Log::read(&folder.join("log"));
    let cuts = cuts(&log, log.entries_before(history.start), &mut random);
    let (image, copy, mount) = (folder.join("flushed"), folder.join("cut"), folder.join("mount"));
    let mut device = Device::new(&log, &image, kind.size);
    let (mut recovered, mut widened) = (0, 0);
    for cut in &cuts {
        device.flush_until(*cut);
        run(Command::new("cp").arg("--sparse=auto").arg(&image).arg(&copy)).expect("a copy");
        device.unflushed(&copy, *cut, &mut random);
        let mounted = Mounted::new(
            &["-o".as_ref(), "loop,noatime".as_ref(), copy.as_os_str()],
            &mount,
        );
        let mounted = mounted.unwrap_or_else(|why| panic!("cut {cut}: the file system is lost: {why}"));
        let disk = Disk::open(units::path(mounted.folder()));
        let disk = disk.unwrap_or_else(|why| panic!("cut {cut}: {why}"));
        let recovery = disk.info().expect("facts").recovery;
        recovered += usize::from(recovery.is_some());
        widened += usize::from(recovery.is_some_and(|it| !it.added.is_empty()));
        if let Err(wrong) = history.check(&disk, log.position(*cut)) {
            panic!("{}, cut at entry {cut} of {}: {wrong}", kind.name, log.len());
        }
        disk.close().expect("it closes");
    }
    println!(
        "{}: {} entries, {} cuts, {recovered} of an unclean disk, {widened} with bits added",
        kind.name,
        log.len(),
        cuts.len()
    );
}

/// After how many entries the power is cut: at flushes, and between.
fn cuts(log: &Log, start: usize, random: &mut Random) -> BTreeSet<usize> {
    let flushes: Vec<_> = (start..log.len())
        .filter(|entry| log.is_flush(*entry))
        .map(|it| it + 1)
        .collect();
    let span = (log.len() - start) as u64;
    let mut any = || start + 1 + usize::try_from(random.below(span)).expect("an entry");
    if std::env::var_os("QBM_LONG").is_some() {
        return flushes.into_iter().flat_map(|flush| [flush, any()]).collect();
    }
    let mut cuts = BTreeSet::new();
    while cuts.len() < CUTS.min(log.len() - start) {
        // At the next flush from anywhere, or there.
        let place = any();
        let flush = flushes[flushes
            .partition_point(|flush| *flush < place)
            .min(flushes.len() - 1)];
        cuts.insert(if cuts.len().is_multiple_of(2) {
            flush
        } else {
            place
        });
    }
    cuts
}

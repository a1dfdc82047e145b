//! A power cut on a real file system: ext4 and xfs over a block device that records every write and flush.
//!
//! A disk is worked on by three writers at a time, with flushes, freezes, thaws, clears, additions, removals and closes
//! between; its regions are retired as soon as they are cold. Then the record is replayed to a flush, or to anywhere
//! between two, where the device keeps what it likes of what was not flushed; the file system is mounted and recovers,
//! the disk is opened and recovers, and must hold what the work up to there was promised: D1 by content, A2, M1, and
//! D2 after a close.
//!
//! The same under backups, in [`backups`].
//!
//! An ordinary run cuts 100 times on each file system; `QBM_LONG=1` cuts at every flush and as often between two.
//! `QBM_SEED` repeats the choices of a run. Needs root, FUSE, loop devices and qemu-storage-daemon; says so and passes
//! where the machine has not got them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "power_cut/backups.rs"]
mod backups;
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
    let mut random = Random::new(Random::seed());
    let place = place();
    let folder = place.path();
    let Some(recorder) = Recorder::start(folder, kind, 1) else {
        return;
    };
    units::create(recorder.folder());
    let history = History::make(&recorder, STEPS, &mut random);
    drop(recorder);

    let log = Log::read(&folder.join("log"));
    let cuts = cuts(&log, log.entries_before(history.start), CUTS, &mut random);
    let (mut recovered, mut widened) = (0, 0);
    let checked = at_each(
        &log,
        &cuts,
        folder,
        (kind, 1),
        &mut random,
        |systems, position| {
            let disk = Disk::open(units::path(systems[0].folder())).map_err(|why| why.to_string())?;
            let recovery = disk.info().expect("facts").recovery;
            recovered += usize::from(recovery.is_some());
            widened += usize::from(recovery.is_some_and(|it| !it.added.is_empty()));
            history.check(&disk, position)?;
            disk.close().map_err(|why| why.to_string())
        },
    );
    if let Err(wrong) = checked {
        panic!("{}: {wrong}", kind.name);
    }
    println!(
        "{}: {} entries, {} cuts, {recovered} of an unclean disk, {widened} with bits added",
        kind.name,
        log.len(),
        cuts.len()
    );
}

/// A folder for images. They are sparse, and no media are needed: where there is a tmpfs, it is fast.
fn place() -> tempfile::TempDir {
    let place = [Path::new("/dev/shm"), &std::env::temp_dir()]
        .into_iter()
        .find(|it| it.is_dir())
        .map(Path::to_owned);
    tempfile::tempdir_in(place.expect("a temporary folder")).expect("a folder")
}

/// Replays the log to each of `cuts`, mounts the file systems, so many of that kind, and has `check` look at them. Ends
/// with the first thing that is wrong.
fn at_each(
    log: &Log,
    cuts: &BTreeSet<usize>,
    folder: &Path,
    (kind, systems): (Kind, u64),
    random: &mut Random,
    mut check: impl FnMut(&[Mounted], u64) -> Result<(), String>,
) -> Result<(), String> {
    let (image, copy) = (folder.join("flushed"), folder.join("cut"));
    let mut device = Device::new(log, &image, kind.size * systems);
    for cut in cuts {
        device.flush_until(*cut);
        run(Command::new("cp").arg("--sparse=auto").arg(&image).arg(&copy)).expect("a copy");
        device.unflushed(&copy, *cut, random);
        let at = |why| format!("cut at entry {cut} of {}: {why}", log.len());
        let mut mounted = Vec::new();
        for system in 0..systems {
            let part = format!(
                "loop,noatime,offset={},sizelimit={}",
                system * kind.size,
                kind.size
            );
            let options = ["-o".as_ref(), part.as_ref(), copy.as_os_str()];
            let system = Mounted::new(&options, &folder.join(format!("mount-{system}")));
            mounted.push(system.map_err(|why| at(format!("the file system is lost: {why}")))?);
        }
        check(&mounted, log.position(*cut)).map_err(at)?;
    }
    Ok(())
}

/// After how many entries the power is cut: at flushes, and between.
fn cuts(log: &Log, start: usize, most: usize, random: &mut Random) -> BTreeSet<usize> {
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
    while cuts.len() < most.min(log.len() - start) {
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

//! A power cut on a real file system: ext4 and xfs over a block device that records every write and flush.
//!
//! A disk is worked on by three writers at a time, with flushes, freezes, thaws, clears, additions, removals and closes
//! between; its regions are retired as soon as they are cold. Then the record is replayed to a flush, or to anywhere
//! between two, where the device keeps what it likes of what was not flushed; the file system is mounted and recovers,
//! the disk is opened and recovers, and must hold what the work up to there was promised: D1 by content, A2, M1, and
//! D2 after a close.
//!
//! The same for an overlay, in [`overlay`], under backups, in [`backups`], and where syncs are missing, in [`unsynced`].
//!
//! An ordinary run cuts each kind of disk 100 times on each file system, and twice more at every close; `QBM_LONG=1` cuts at
//! every flush and as often between two.
//! `QBM_SEED` repeats the choices of a run. Needs root, FUSE, loop devices and qemu-storage-daemon; says so and passes
//! where the machine has not got them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "power_cut/backups.rs"]
mod backups;
#[path = "common/faults.rs"]
mod faults;
#[path = "power_cut/history.rs"]
mod history;
#[cfg(feature = "faults")]
#[path = "power_cut/lacking.rs"]
mod lacking;
#[path = "common/loops.rs"]
mod loops;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "power_cut/overlay.rs"]
mod overlay;
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
#[path = "power_cut/unsynced.rs"]
mod unsynced;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use history::{History, Plan};
use mounted::Mounted;
use qbm::{CheckOptions, Disk, Severity};
use random::Random;
use record::{EXT4, Kind, Recorder, XFS};
use replay::{Device, Log};
use run::run;
use units::Active;

/// In an ordinary run: 200 of both kinds of disk where there is but one of the file systems.
const CUTS: usize = 100;

const RAW: Plan = Plan {
    overlay: false,
    unsynced: None,
};

#[test]
fn on_ext4() {
    holds(EXT4, RAW);
}

#[test]
fn on_xfs() {
    holds(XFS, RAW);
}

fn holds(kind: Kind, plan: Plan) {
    if let Some(Err(wrong)) = cut(kind, plan) {
        panic!("{}: {wrong}", kind.name);
    }
}

/// What was found wrong with a disk that is worked on so, or nothing. `None` where the machine cannot.
fn cut(kind: Kind, plan: Plan) -> Option<Result<(), String>> {
    let mut random = Random::new(Random::seed());
    let place = place();
    let folder = place.path();
    let recorder = Recorder::start(folder, kind, 1)?;
    plan.create(recorder.folder());
    faults::put_in();
    // A thread of its own: a sync that is left out is so for as long as the thread lives.
    let history = std::thread::scope(|scope| {
        let make = scope.spawn(|| History::make(&recorder, plan, &mut random));
        make.join().expect("the work goes well")
    });
    #[cfg(feature = "faults")]
    qbm::faults::take_out();
    drop(recorder);
    let history = match history {
        Ok(history) => history,
        Err(why) => return Some(Err(why)),
    };

    let log = Log::read(&folder.join("log"));
    let mut cuts = cuts(&log, log.entries_before(history.start), CUTS, &mut random);
    for (began, ended) in history.closes() {
        // Whatever is in doubt when a close has ended stays so for as long as nothing else is written; and once within.
        let [began, ended] = [began, ended].map(|place| log.entries_before(place));
        let within = random.below((ended - began).max(1) as u64);
        cuts.extend([ended, began + usize::try_from(within).expect("an entry")]);
    }
    let (mut recovered, mut widened) = (0, 0);
    let checked = at_each(
        &log,
        &cuts,
        folder,
        (kind, 1),
        &mut random,
        |systems, position| {
            let path = units::path(systems[0].folder());
            let map = Active::read(systems[0].folder());
            let disk = Disk::open(&path).map_err(|why| why.to_string())?;
            let recovery = disk.info().expect("facts").recovery;
            // Where the header says clean the map means nothing.
            let active = recovery.as_ref().map(|_| map).unwrap_or_default();
            recovered += usize::from(recovery.is_some());
            widened += usize::from(recovery.is_some_and(|it| !it.added.is_empty()));
            history.check(&disk, active, position)?;
            disk.close().map_err(|why| why.to_string())?;
            is_sound(&path)
        },
    );
    println!(
        "{plan:?} on {}: {} entries, {} cuts, {recovered} of an unclean disk, {widened} with bits added: {checked:?}",
        kind.name,
        log.len(),
        cuts.len()
    );
    if checked.is_ok() {
        assert!(recovered > 0, "no cut left a disk to recover");
        assert!(widened > 0, "no recovery added a bit");
        assert!(recovered < cuts.len(), "no cut left a disk at rest");
    }
    Some(checked)
}

/// A check of the disk finds nothing worse than files that nobody needs.
fn is_sound(path: &Path) -> Result<(), String> {
    let report = CheckOptions::new().check(path, &mut |_, _| ControlFlow::Continue(()));
    let report = report.map_err(|why| why.to_string())?;
    let bad = [Severity::Corruption, Severity::Error].map(|it| report.remaining(it));
    if bad == [0, 0] {
        Ok(())
    } else {
        Err(format!("M1: {:?}", report.findings))
    }
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
    let image = folder.join("flushed");
    let mut device = Device::new(log, &image, kind.size * systems);
    for cut in cuts {
        device.flush_until(*cut);
        // Each a file of its own: a loop device that somebody else still looks at outlives the mount, and the next mount of
        // the same file would take it up again, with what it remembers of the file.
        let copy = folder.join(format!("cut-{cut}"));
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
        drop(mounted);
        std::fs::remove_file(copy).expect("a copy");
    }
    Ok(())
}

/// After how many entries the power is cut: at flushes, and between; in so many places, or, in a long run, in all that there
/// are.
fn cuts(log: &Log, start: usize, ordinary: usize, random: &mut Random) -> BTreeSet<usize> {
    let flushes: Vec<_> = (start..log.len())
        .filter(|entry| log.is_flush(*entry))
        .map(|it| it + 1)
        .collect();
    let span = (log.len() - start) as u64;
    let mut any = || start + 1 + usize::try_from(random.below(span)).expect("an entry");
    if std::env::var_os("QBM_LONG").is_some() {
        let cuts: BTreeSet<_> = flushes.into_iter().flat_map(|flush| [flush, any()]).collect();
        assert!(
            cuts.len() >= ordinary,
            "{} cuts are too few to prove anything",
            cuts.len()
        );
        return cuts;
    }
    assert!(
        log.len() - start >= ordinary,
        "{span} entries are too few to cut at {ordinary} places"
    );
    let mut cuts = BTreeSet::new();
    while cuts.len() < ordinary {
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

//! Calls that fail while a disk is looked at or repaired: what was not looked at, and what was not repaired, is told.

use std::ops::ControlFlow;

use super::super::{CheckOptions, CheckReport, FindingKind, Repair, Severity};
use super::{MIB, kinds, words};
use crate::disk::{AddBitmap, CreateOptions, OpenOptions, WriteFlags};
use crate::error::Result;
use crate::storage::simulated::{CallKind, Failure, Fault, SimDisk};

const NAME: &str = "disk.qbm";
const BITMAP: &str = "disk-b.bitmap";
/// What EIO is called.
const WORDS: &str = "Input/output error";
/// A file that could be one of the disk's, and that another disk's descriptor names.
const OTHERS: &str = "disk-others.bitmap";

/// A disk with a bitmap `b`, whose user was killed when he had written to it.
fn killed() -> SimDisk {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(4 * MIB)
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    let open = || OpenOptions::new().folder(sim.folder()).open(NAME).unwrap();
    let disk = open();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    let disk = open();
    disk.write(&[1], 2 * MIB, WriteFlags::empty()).unwrap();
    disk.die();
    sim.kill()
}

/// The same, with bits behind the end of `b`, a file that a crash has left behind, and one that is another disk's.
fn killed_with_all() -> SimDisk {
    let sim = killed();
    let mut bits = sim.read(BITMAP).unwrap();
    bits.resize(bits.len() + 8, 1);
    sim.put(BITMAP, &bits);
    sim.put("disk-old.bitmap", b"");
    sim.put(OTHERS, &[0; 8]);
    sim.put("other.img", &vec![0; 1 << 20]);
    let image = r#""image": {"file": "other.img", "format": "raw"}"#;
    let bitmap = format!(r#""x": {{"file": "{OTHERS}", "type": "dirty", "granularity-bytes": 65536}}"#);
    let other = format!(r#"{{"QBM": {{"version": 1, {image}, "bitmaps": {{{bitmap}}}}}}}"#);
    sim.put("other.qbm", other.as_bytes());
    sim
}

fn look(sim: &SimDisk, repair: Repair) -> Result<CheckReport> {
    CheckOptions::new()
        .folder(sim.folder())
        .repair(repair)
        .check(NAME, &mut |_, _| ControlFlow::Continue(()))
}

fn check(sim: &SimDisk, repair: Repair) -> CheckReport {
    look(sim, repair).unwrap()
}

#[test]
fn a_bitmap_that_cannot_be_read_is_not_checked() {
    let sim = killed();
    sim.fail(Fault::new(libc::EIO).on(CallKind::Read).on_file(BITMAP));
    let report = check(&sim, Repair::None);
    assert_eq!(
        kinds(&report),
        [(FindingKind::NotChecked, false), (FindingKind::NotClosed, false)]
    );
    assert_eq!(report.findings[0].subject, BITMAP);
    assert_eq!(report.remaining(Severity::Error), 1);
    words(&report, "cannot read disk-b.bitmap: Input/output error");
}

#[test]
fn a_recovery_that_fails_is_no_repair() {
    let sim = killed();
    sim.fail(Fault::new(libc::EIO).on(CallKind::Write).on_file("disk.state"));
    let report = check(&sim, Repair::All);
    assert_eq!(
        kinds(&report),
        [
            (FindingKind::NotClosed, false),
            (FindingKind::RepairFailed, false)
        ]
    );
    assert_eq!(report.remaining(Severity::Error), 1);
    words(&report, "it was not repaired: cannot open disk.qbm: ");
    words(&report, WORDS);
    assert_eq!(
        kinds(&check(&sim, Repair::None)),
        [(FindingKind::NotClosed, false)]
    );
    assert_eq!(kinds(&check(&sim, Repair::All)), [(FindingKind::NotClosed, true)]);
}

/// As on a file system that is read-only, or of another owner.
#[test]
fn what_cannot_be_written_to_is_looked_at_and_not_repaired() {
    let read_only = |sim: &SimDisk| {
        let fault = Fault::new(libc::EROFS).on_file("disk.state");
        // Opened for writing, that is: the second time it is opened, it is not.
        sim.fail(fault.on(CallKind::Open).nth(1));
    };
    let sim = killed();
    read_only(&sim);
    let report = check(&sim, Repair::All);
    assert_eq!(
        kinds(&report),
        [
            (FindingKind::NotClosed, false),
            (FindingKind::RepairFailed, false)
        ]
    );
    words(
        &report,
        "nothing was repaired: QBM.state.file: cannot open disk.state: Read-only file system",
    );
    check(&sim, Repair::All);
    read_only(&sim);
    assert_eq!(
        kinds(&check(&sim, Repair::All)),
        [],
        "there is nothing to be repaired"
    );
}

/// The open that is to make a new state file goes on without one, and tells of that.
#[test]
fn a_state_file_that_cannot_be_made_is_told_of() {
    let sim = killed();
    sim.folder().remove("disk.state".as_ref()).unwrap();
    let fault = Fault::new(libc::EACCES).on(CallKind::Create);
    sim.fail(fault.from_then_on());
    let report = check(&sim, Repair::All);
    assert_eq!(
        kinds(&report),
        [
            (FindingKind::StateMissing, false),
            (FindingKind::RepairFailed, false)
        ]
    );
    words(
        &report,
        "it was not repaired: the disk has no state file and can be given none",
    );
    words(&report, "Permission denied");
    sim.heal();
    assert_eq!(
        kinds(&check(&sim, Repair::All)),
        [(FindingKind::StateMissing, true)]
    );
}

#[test]
fn bits_that_cannot_be_cleared_stay_and_are_told() {
    for (kind, file) in [(CallKind::WriteZeroes, BITMAP), (CallKind::Sync, "disk-data.img")] {
        let sim = killed_with_all();
        check(&sim, Repair::Leaks);
        sim.fail(Fault::new(libc::EIO).on(kind).on_file(file));
        let report = check(&sim, Repair::All);
        assert_eq!(
            kinds(&report),
            [
                (FindingKind::NotClosed, true),
                (FindingKind::TailBits, false),
                (FindingKind::RepairFailed, false)
            ]
        );
        assert_eq!(report.findings[2].subject, "b");
        assert_eq!(report.remaining(Severity::Error), 1);
    }
}

/// Whatever call fails: nothing is passed over in silence, nothing is called repaired that is not, and nothing is removed that
/// may be another disk's.
#[test]
fn each_call_that_fails_is_told_of() {
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        let sound = killed_with_all();
        let whole = [check(&sound, repair), check(&sound, Repair::None)];
        for for_good in [false, true] {
            for nth in 1.. {
                let sim = killed_with_all();
                let before = sim.events().len();
                let fault = Fault::new(libc::EIO).nth(nth);
                sim.fail(if for_good { fault.from_then_on() } else { fault });
                let found = look(&sim, repair);
                sim.heal();
                let events = sim.events();
                let Some(failed) = events[before..].iter().find(|it| it.failure.is_some()) else {
                    break;
                };
                if let Some(what) = wrong(&sim, &whole, &found) {
                    panic!("{repair:?}, for good: {for_good}, {failed}: {what}");
                }
            }
        }
    }
}

/// The same of a repair that makes a bitmap's file anew: the bitmap is as it was, or has every bit.
#[test]
fn each_call_that_fails_while_a_bitmap_is_made_anew_is_told_of() {
    let lost = || {
        let sim = killed();
        sim.folder().remove(BITMAP.as_ref()).unwrap();
        sim.folder().sync().unwrap();
        sim
    };
    for for_good in [false, true] {
        for nth in 1.. {
            let sim = lost();
            let before = sim.events().len();
            let fault = Fault::new(libc::EIO).nth(nth);
            sim.fail(if for_good { fault.from_then_on() } else { fault });
            let found = look(&sim, Repair::Dirty);
            sim.heal();
            let events = sim.events();
            // That the file is not there is a failure, too.
            let put_in = Some(Failure::Errno(libc::EIO));
            let Some(failed) = events[before..].iter().find(|it| it.failure == put_in) else {
                assert!(nth > 20, "only {nth} calls");
                break;
            };
            let told = match &found {
                Ok(report) => report.findings.iter().any(|it| it.message.contains(WORDS)),
                Err(error) => error.message().contains(WORDS),
            };
            // What a later check does as well need not be told of: that the old file was not there to be removed, or a new one left.
            let done = found.is_ok_and(|report| report.findings[0].fixed);
            assert!(told || done, "{failed}");
            check(&sim, Repair::Dirty);
            check(&sim, Repair::All);
            assert_eq!(kinds(&check(&sim, Repair::None)), [], "{failed}");
            let disk = OpenOptions::new().folder(sim.folder()).open(NAME).unwrap();
            assert_eq!(disk.bitmap_count("b").unwrap(), 64, "{failed}");
        }
    }
}

/// What is wrong after a check in which a call failed. `whole` is what it and the next one find where none does.
fn wrong(sim: &SimDisk, whole: &[CheckReport; 2], found: &Result<CheckReport>) -> Option<String> {
    if sim.read(OTHERS).is_err() {
        return Some("it has removed another disk's file".to_owned());
    }
    let told = match found {
        Ok(report) => report.findings.iter().any(|it| it.message.contains(WORDS)),
        Err(error) => error.message().contains(WORDS),
    };
    let next = check(sim, Repair::None);
    if !told && (found.as_ref().ok() != Some(&whole[0]) || next != whole[1]) {
        return Some(format!("it does not tell: {found:#?}"));
    }
    let repaired = check(sim, Repair::All);
    let left = check(sim, Repair::None);
    (repaired.findings.iter().any(|it| !it.fixed) || !left.findings.is_empty())
        .then(|| format!("it cannot be repaired any more: {repaired:#?}, {left:#?}"))
}

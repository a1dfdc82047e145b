//! Single calls whose failure has more to it than what every failing call has.

use std::ops::ControlFlow;

use super::super::check::Opening;
use super::super::kind::Kind;
use super::super::life::{Life, NAME, STATE};
use super::super::steps::{Step, write};
use crate::descriptor::Format;
use crate::disk::{CreateOptions, OpenOptions, WriteFlags};
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{CallKind, Fault, Keep, Kept, SimDisk};

const BITMAP: &str = "disk-a.bitmap";

/// A file whose sync failed may have lost bits that the page cache still shows: it is not called exact again.
#[test]
fn a_bitmap_whose_sync_failed_is_not_taken_for_exact() {
    for step in [
        Step::Set {
            name: "a",
            at: 12_000,
            len: 1,
        },
        Step::Truncate(30_000),
        Step::Sync,
    ] {
        let (mut life, _) = Life::new(Kind::PATIENT).unwrap();
        let add = Step::Add {
            name: "a",
            granularity: 1024,
            persistent: true,
            recording: true,
        };
        life.step(add).unwrap();
        let (at, len) = (700, 3000);
        life.step(Step::Write { at, len, fua: false }).unwrap();
        let fault = Fault::new(libc::EIO).on(CallKind::Sync).on_file(BITMAP);
        life.sim.fail(fault);
        life.step(step).unwrap_err();
        assert!(life.has_failed(), "{step:?}");
        let disk = Kind::PATIENT
            .options(&life.sim.kill(), "first")
            .open(NAME)
            .unwrap();
        let recovery = disk.info().unwrap().recovery.unwrap();
        let reason = recovery.reason.unwrap_or_default();
        assert!(reason.contains("could not be written"), "{step:?}: {reason:?}");
    }
}

/// A life in which a bitmap has bits that no sync has made durable; and its file as it was before.
fn with_unsynced_bits() -> Result<(Life, Vec<u8>), String> {
    let (mut life, _) = Life::new(Kind::PATIENT).map_err(|e| e.to_string())?;
    let add = Step::Add {
        name: "a",
        granularity: 1024,
        persistent: true,
        recording: true,
    };
    life.step(add).map_err(|e| e.to_string())?;
    let before = life.sim.read(BITMAP).map_err(|e| e.to_string())?;
    let (at, len) = (700, 3000);
    life.step(Step::Write { at, len, fua: false })
        .map_err(|e| e.to_string())?;
    Ok((life, before))
}

/// Whether the bits are there for the next process, when the kernel has dropped what it could not write of the bitmap.
fn found_without(sim: &SimDisk, before: &[u8]) -> Result<u64, String> {
    let killed = sim.kill();
    killed.put(BITMAP, before);
    let disk = Kind::PATIENT
        .options(&killed, "first")
        .open(NAME)
        .map_err(|e| e.to_string())?;
    for at in (700..3700).step_by(500) {
        if !disk.bitmap_get("a", at).map_err(|e| e.to_string())? {
            return Err(format!("D1: byte {at} is clean"));
        }
    }
    Ok(1)
}

/// Nothing can be written to the state file.
fn break_state(sim: &SimDisk) {
    for kind in [CallKind::Write, CallKind::Sync] {
        sim.fail(Fault::new(libc::EIO).on(kind).on_file(STATE).from_then_on());
    }
}

/// The sync of a bitmap fails, and then its note in the state file.
fn after_a_sync_that_cannot_be_noted() -> Result<u64, String> {
    let (mut life, before) = with_unsynced_bits()?;
    life.sim
        .fail(Fault::new(libc::EIO).on(CallKind::Sync).on_file(BITMAP));
    break_state(&life.sim);
    match life.step(Step::Sync) {
        Err(_) if life.has_failed() => found_without(&life.sim, &before),
        other => Err(format!("it can be used: {other:?}")),
    }
}

/// A recovery fails to make a bitmap durable; and to tell of it, where the state file is `broken`.
fn after_a_recovery_that_failed(broken: bool) -> Result<u64, String> {
    let (life, before) = with_unsynced_bits()?;
    let killed = life.sim.kill();
    killed.fail(Fault::new(libc::EIO).on(CallKind::Sync).on_file(BITMAP));
    if broken {
        break_state(&killed);
    }
    let opened = Kind::PATIENT.options(&killed, "first").open(NAME);
    match opened.map(drop) {
        Err(error) if error.message().contains(BITMAP) => found_without(&killed, &before),
        other => Err(format!("it opens: {other:?}")),
    }
}

/// Evidence does not tell that the kernel has dropped what it could not write: whoever was told of it says so, by whatever way
/// there is, or the next process would call the file exact.
#[test]
fn a_failed_sync_is_known_to_the_next_process() {
    after_a_sync_that_cannot_be_noted().unwrap();
    for broken in [false, true] {
        after_a_recovery_that_failed(broken).unwrap();
    }
    let untold = || {
        [
            after_a_sync_that_cannot_be_noted(),
            after_a_recovery_that_failed(true),
        ]
    };
    for seen in with(Wrong::FailureUntold, untold) {
        assert!(seen.unwrap_err().contains("D1"));
    }
    let seen = with(Wrong::RecoveryForgotten, || after_a_recovery_that_failed(false));
    assert!(seen.unwrap_err().contains("D1"));
}

/// What an overlay shows when a sync of its image has failed, the process was killed, and the next one has flushed before the
/// power went.
fn after_a_failed_sync() -> Result<u64, String> {
    let (mut life, _) = Life::new(Kind::OVERLAY).map_err(|e| e.to_string())?;
    let data = "disk-data.img";
    life.sim.put(data, &vec![0xee; 24 << 10]);
    let (at, len) = (700, 3000);
    life.step(Step::Write { at, len, fua: false })
        .map_err(|e| e.to_string())?;
    life.sim
        .fail(Fault::new(libc::EIO).on(CallKind::Sync).on_file(data));
    let begun = life.now();
    if life.step(Step::Flush).is_ok() {
        return Err("it flushes".to_owned());
    }
    life.look_again(begun);
    life.model.image_failed = true;
    let killed = life.sim.kill();
    let next = Kind::OVERLAY
        .options(&killed, "first")
        .open(NAME)
        .and_then(|disk| disk.flush());
    next.map_err(|e| e.to_string())?;
    let state = killed.power_cut_keeping(Keep::Nothing);
    let opening = Opening {
        kind: Kind::OVERLAY,
        cache: "second",
        writable: false,
        bits: true,
        extra: u64::MAX,
    };
    let model = life.model.at(begun, false);
    model.check(&state, opening).map(|_| 1)
}

/// The shadow of allocation bits says nothing of an image that may have lost what it stands for (A1).
#[test]
fn a_failed_sync_ends_the_shadow() {
    after_a_failed_sync().unwrap();
    let seen = with(Wrong::ShadowOutlivesFailure, after_a_failed_sync).unwrap_err();
    assert!(seen.contains("A1"), "{seen}");
}

/// A resize that fails has done nothing, or the disk says that it cannot be relied on: writers that went on by the old
/// length would cost bits of the new one.
#[test]
fn a_length_that_was_set_by_a_call_that_failed_kills_the_disk() {
    for (kept, dies) in [(Kept::Nothing, false), (Kept::All, true)] {
        let (mut life, _) = Life::new(Kind::RAW).unwrap();
        let fault = Fault::new(libc::EIO)
            .on(CallKind::SetLength)
            .on_file("disk-data.img");
        life.sim.fail(fault.keeping(kept));
        life.step(Step::Truncate(13_000)).unwrap_err();
        assert_eq!(life.has_failed(), dies, "{kept:?}");
        assert_eq!(life.step(Step::Truncate(13_000)).is_ok(), !dies, "{kept:?}");
    }
}

/// A snapshot ends its image, where that is a disk itself, and goes on with it if the snapshot fails. No flush may succeed behind
/// a sync in there that failed, whichever it was (A2).
#[test]
fn a_failed_sync_at_the_end_of_an_inner_disk_is_for_good() {
    for kind in [Kind::NESTED, Kind::NESTED_OVERLAY] {
        for number in 1.. {
            let (mut life, _) = Life::new(kind).unwrap();
            life.step(write(700, 3000)).unwrap();
            let fault = Fault::new(libc::EIO).on(CallKind::Sync).on_file("inner-data.img");
            life.sim.fail(fault.nth(number));
            let result = life.step(Step::Snapshot);
            life.sim.heal();
            if result.is_ok() {
                assert!(number > 2, "{kind:?}: {number} syncs");
                break;
            }
            life.step(Step::Flush).unwrap_err();
            assert!(life.has_failed(), "{kind:?}, sync {number}");
        }
    }
}

/// Whether its state file says "clean" by now nobody knows; behind that word a killed process would lose what it was told is
/// written (A3).
#[test]
fn an_inner_disk_whose_end_failed_is_written_to_no_more_or_says_so() {
    for number in 1.. {
        let sim = SimDisk::new();
        sim.put("low.img", &vec![0x11; 1 << 20]);
        let inner = CreateOptions::new().size(1 << 20).backing("low.img", Format::Raw);
        inner.folder(sim.folder()).create("inner.qbm").unwrap();
        let outer = CreateOptions::new().image("inner.qbm").image_format(Format::Qbm);
        outer.folder(sim.folder()).create(NAME).unwrap();
        let options = OpenOptions::new().folder(sim.folder()).cache_epoch("one");
        let disk = options.open(NAME).unwrap();
        disk.write(&[7; 4096], 0, WriteFlags::empty()).unwrap();
        let fault = Fault::new(libc::EIO).on(CallKind::Sync).on_file("inner.state");
        sim.fail(fault.nth(number));
        let snapshot = disk.snapshot("old.qbm", None);
        sim.heal();
        if snapshot.is_ok() {
            assert!(number > 1, "no sync of the inner state file failed");
            break;
        }
        let written = disk.write(&[8; 4096], 256 << 10, WriteFlags::empty());
        let options = OpenOptions::new().folder(sim.kill().folder()).cache_epoch("one");
        let mut byte = [0];
        options.open(NAME).unwrap().read(&mut byte, 256 << 10).unwrap();
        assert!(written.is_err() || byte == [8], "sync {number}: {byte:?}");
    }
}

/// What was copied behind it may be what a power cut takes back (A2).
#[test]
fn a_commit_does_not_succeed_behind_a_failed_flush() {
    let sim = SimDisk::new();
    sim.put("base.img", &vec![0x22; 4 << 20]);
    let create = CreateOptions::new()
        .size(4 << 20)
        .backing("base.img", Format::Raw);
    create.folder(sim.folder()).create(NAME).unwrap();
    let disk = OpenOptions::new().folder(sim.folder()).open(NAME).unwrap();
    disk.write(&vec![7; 2 << 20], 0, WriteFlags::FUA).unwrap();
    let mut flushed = None;
    let committed = disk.commit(&mut |_, _| {
        if flushed.is_none() {
            disk.write(&[9; 4096], 0, WriteFlags::empty()).unwrap();
            sim.fail(Fault::new(libc::EIO).on(CallKind::Sync).on_file("disk-data.img"));
            flushed = Some(disk.flush());
            sim.heal();
        }
        ControlFlow::Continue(())
    });
    flushed.unwrap().unwrap_err();
    committed.unwrap_err();
}

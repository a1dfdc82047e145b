//! (d) Every call of a life fails in turn: with EIO and ENOSPC, doing nothing, a part of it, or all of it; a failed call
//! is one, or the first of many. The error is in words, nothing that was promised is lost, neither in a kill nor in a power
//! cut, and the disk is usable afterwards or says that it is not.

use super::check::Opening;
use super::life::{Kind, Life, refused};
use super::power::{Depth, Look};
use super::steps::{Step, write};
use crate::error::{Error, ErrorCode};
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{CallKind, Fault, Keep, Kept};

/// Few steps, in which there is every kind of call.
fn script(kind: Kind) -> Vec<Step> {
    use Step::*;
    let mut steps = vec![
        Add {
            name: "a",
            granularity: 1024,
            persistent: true,
            recording: true,
        },
        write(700, 3000),
        Flush,
        Write {
            at: 9000,
            len: 1500,
            fua: true,
        },
        Freeze("a"),
        write(1024, 2048),
        Thaw("a", true),
        Truncate(13_000),
        Truncate(20_000),
        write(9500, 600),
        Flush,
        Set {
            name: "a",
            at: 15_000,
            len: 1,
        },
        Zero {
            at: 4096,
            len: 4096,
            unmap: true,
        },
        Add {
            name: "b",
            granularity: 512,
            persistent: true,
            recording: true,
        },
        Die,
        write(18_000, 700),
        Hand("a", "b"),
        Sync,
        Disable("b"),
        write(3000, 512),
        Remove("b"),
        Discard { at: 0, len: 2048 },
        Reopen,
        write(12_000, 300),
        Flush,
        Backup {
            name: "a",
            at: 12_000,
            len: 3000,
        },
        Backup {
            name: "a",
            at: 100,
            len: 900,
        },
    ];
    if kind.overlay {
        steps.splice(8..8, [MakeEmpty, write(100, 5000)]);
        steps.splice(5..5, [Snapshot, write(300, 300)]);
        steps.extend([
            Commit,
            write(2000, 100),
            Rebase(1),
            write(8000, 300),
            ChangeBacking(2),
        ]);
    }
    steps
}

/// How a call fails.
#[derive(Clone, Copy, Debug)]
struct Failing {
    errno: i32,
    kept: Kept,
    /// So do all like it that follow, until the step is over.
    on: bool,
}

const WAYS: [Failing; 4] = [
    Failing {
        errno: libc::EIO,
        kept: Kept::Nothing,
        on: false,
    },
    Failing {
        errno: libc::ENOSPC,
        kept: Kept::First(1),
        on: false,
    },
    Failing {
        errno: libc::EIO,
        kept: Kept::All,
        on: false,
    },
    Failing {
        errno: libc::ENOSPC,
        kept: Kept::Nothing,
        on: true,
    },
];

/// What an error must be to be one in words.
fn in_words(error: &Error, errno: i32) -> Result<(), String> {
    let words = error.message();
    let reason = if errno == libc::EIO {
        "Input/output error"
    } else {
        "No space left on device"
    };
    let told = words.contains(reason) || error.code() == ErrorCode::Failed;
    let clean = !words.contains("os error") && words.contains(' ') && !words.contains(" :");
    if told && clean {
        return Ok(());
    }
    Err(format!("no words for people: {error:?}"))
}

/// One life in which call number `call` fails. `None` where there are not that many.
fn one(kind: Kind, call: u64, way: Failing) -> Result<Option<u64>, String> {
    let (mut life, start) = Life::new(kind).map_err(|e| e.to_string())?;
    let fault = Fault::new(way.errno).nth(call).keeping(way.kept);
    life.sim.fail(if way.on { fault.from_then_on() } else { fault });
    let mut struck = false;
    let mut points = Vec::new();
    for step in script(kind) {
        let begun = life.now();
        let result = life.step(step);
        let here = life
            .sim
            .events()
            .iter()
            .skip(usize::try_from(begun).unwrap_or(0))
            .find_map(|event| {
                let failure = event.failure?;
                let errno = crate::storage::simulated::Failure::Errno(way.errno);
                (failure == errno).then(|| event.call.clone())
            });
        if let (Some(call), false) = (here, struck) {
            struck = true;
            life.sim.heal();
            if let Err(error) = &result {
                in_words(error, way.errno).map_err(|what| format!("{step:?}: {what}"))?;
            }
            life.look_again(begun);
            points.push(life.now());
            let of_data = call.kind() == CallKind::Sync && call.names().any(|it| life.is_image(it));
            life.model.image_failed |= of_data;
            if of_data && !matches!(step, Step::Reopen | Step::Die) {
                let retry = life.step(Step::Flush);
                if retry.is_ok() || !life.has_failed() {
                    return Err(format!("{step:?}: A2: a flush succeeds after a failed sync"));
                }
            }
            // What the kernel has dropped, no later process can know of: nothing is promised for that one.
            if of_data || call.kind() == CallKind::SyncFolder {
                break;
            }
            if result.is_err() && !life.has_failed() {
                retry(&mut life, step)?;
            }
        } else if struck && result.is_ok() && step == Step::Flush && points.len() == 1 {
            // What the failure dropped is durable now, or this flush lied.
            points.push(life.now());
        } else if struck && result.is_err() && !refused(&result) && !life.has_failed() {
            return Err(format!("then {step:?} on a sound disk: {result:?}"));
        } else if struck && life.has_failed() {
            // Dead, and it says so; the next process goes on.
            if let Err(error) = &result
                && error.code() != ErrorCode::Failed
                && !refused(&result)
                && !matches!(step, Step::Reopen | Step::Die)
            {
                return Err(format!("then {step:?} on a dead disk: {error:?}"));
            }
            let _ = life.step(Step::Die);
            life.look_again(begun);
        }
    }
    if !struck {
        return Ok(None);
    }
    points.push(life.now());
    let look = Look {
        sim: &life.sim,
        model: &life.model,
        kind,
        caches: ("first", "second"),
        extra: 0,
        shortest: life.shortest,
        depth: Depth {
            states: 2,
            onward: 24,
        },
    };
    let mut states = 0;
    for point in life
        .sim
        .crash_points()
        .filter(|it| it.events() >= start && points.contains(&it.events()))
    {
        states += look
            .at(&point)
            .map_err(|what| format!("after {} calls: {what}", point.events()))?;
    }
    Ok(Some(states))
}

/// The step that failed is tried again, as guests do: it may not be taken for done.
fn retry(life: &mut Life, step: Step) -> Result<(), String> {
    let begun = life.now();
    let result = life.step(step);
    if result.is_ok() || refused(&result) {
        return Ok(());
    }
    if life.has_failed() {
        life.look_again(begun);
        return Ok(());
    }
    // The state file takes nothing after a failed update, and says so; whoever reopens the disk goes on.
    let told = result.as_ref().is_err_and(|e| e.code() == ErrorCode::Failed);
    if told && life.step(Step::Die).is_ok() {
        life.look_again(begun);
        return Ok(());
    }
    Err(format!("{step:?} cannot be done again: {result:?}"))
}

/// Every call of a life of this kind fails, in every way.
pub(super) fn every_call(kind: Kind) -> Result<u64, String> {
    let mut states = 0;
    // The other kinds differ in what is called, not in how it can fail.
    let ways = if kind == Kind::RAW { &WAYS[..] } else { &WAYS[1..3] };
    for call in 1.. {
        let mut any = false;
        for way in ways.iter().copied() {
            let found = one(kind, call, way).map_err(|what| format!("call {call}, {way:?}: {what}"))?;
            any |= found.is_some();
            states += found.unwrap_or(0);
        }
        if !any {
            println!("{kind:?}: {} calls, {states} states", call - 1);
            return Ok(states);
        }
    }
    Ok(states)
}

#[test]
fn every_call_that_fails_is_told_of_and_costs_nothing() {
    for kind in [Kind::RAW, Kind::LAZY, Kind::OVERLAY] {
        every_call(kind).unwrap_or_else(|what| panic!("{kind:?}: {what}"));
    }
}

/// The same of both disks where one is the image of the other.
#[test]
fn every_call_of_a_disk_in_a_disk_that_fails_costs_nothing() {
    every_call(Kind::NESTED).unwrap_or_else(|what| panic!("{what}"));
}

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
        let fault = Fault::new(libc::EIO).on(CallKind::Sync).on_file("disk-a.bitmap");
        life.sim.fail(fault);
        life.step(step).unwrap_err();
        assert!(life.has_failed(), "{step:?}");
        let disk = Kind::PATIENT
            .options(&life.sim.kill(), "first")
            .open(super::life::NAME)
            .unwrap();
        let recovery = disk.info().unwrap().recovery.unwrap();
        let reason = recovery.reason.unwrap_or_default();
        assert!(reason.contains("could not be written"), "{step:?}: {reason:?}");
    }
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
        .open(super::life::NAME)
        .and_then(|disk| disk.flush());
    next.map_err(|e| e.to_string())?;
    let state = killed.power_cut_keeping(Keep::Nothing);
    let opening = Opening {
        kind: Kind::OVERLAY,
        cache: "second",
        writable: false,
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

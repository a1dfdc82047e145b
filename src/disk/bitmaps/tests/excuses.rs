//! A bitmap that cannot be written while the guest's data can: the write fails, or the bitmap becomes inconsistent,
//! durably, before the write goes out. Never neither.

use std::sync::Mutex;

use super::*;
use crate::disk::{NoticeCode, OnBitmapError};
use crate::state::MarkId;
use crate::storage::simulated::{Fault, Keep};

const BITMAP: &str = "disk-b.bitmap";
const STATE: &str = "disk.state";

struct World {
    sim: SimDisk,
    disk: Disk,
    heard: Arc<Mutex<Vec<String>>>,
}

fn reopen(sim: &SimDisk, choice: OnBitmapError) -> World {
    reopen_under(sim, choice, BitmapPolicy::default())
}

fn reopen_under(sim: &SimDisk, choice: OnBitmapError, policy: BitmapPolicy) -> World {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&heard);
    let disk = OpenOptions::new()
        .folder(sim.folder())
        .on_bitmap_error(choice)
        .bitmap_policy(policy)
        .notify(move |notice| {
            if notice.code == NoticeCode::BitmapInconsistent {
                listener.lock().unwrap().push(notice.message.to_owned());
            }
        })
        .open(NAME)
        .unwrap();
    World {
        sim: sim.clone(),
        disk,
        heard,
    }
}

/// A disk with a state file and two bitmaps, of which `b` will be the broken one, and one write behind it.
fn world(choice: OnBitmapError) -> World {
    world_under(choice, BitmapPolicy::default())
}

fn world_under(choice: OnBitmapError, policy: BitmapPolicy) -> World {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(16 * MIB)
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    let world = reopen_under(&sim, choice, policy);
    world.disk.bitmap_add("b", persistent()).unwrap();
    world.disk.bitmap_add("sound", persistent()).unwrap();
    write(&world.disk, 0, 1).unwrap();
    world.disk.flush().unwrap();
    world
}

fn broken(kind: CallKind, name: &str, errno: i32) -> Fault {
    Fault::new(errno).on(kind).on_file(name).from_then_on()
}

fn inconsistent(disk: &Disk, name: &str) -> bool {
    disk.bitmap_info(name).unwrap().inconsistent
}

#[test]
fn the_write_fails_unless_the_opener_says_otherwise() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let world = world(OnBitmapError::FailWrite);
        world.sim.fail(broken(CallKind::Write, BITMAP, errno));
        let error = write(&world.disk, MIB, 1).unwrap_err();
        assert_eq!(error.errno(), errno);
        assert!(error.message().contains("bitmap \"b\""), "{error}");
        assert!(!inconsistent(&world.disk, "b"));
        let mut byte = [1];
        world.disk.read(&mut byte, MIB).unwrap();
        assert_eq!(byte, [0], "the data went out without its bit");
        world.sim.heal();
        write(&world.disk, MIB, 1).unwrap();
        assert_eq!(dirty(&world.disk, "b"), [0, 16]);
        assert!(world.heard.lock().unwrap().is_empty());
    }
}

#[test]
fn the_bitmap_becomes_inconsistent_and_the_write_goes_on() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let world = world(OnBitmapError::MarkInconsistent);
        world.sim.fail(broken(CallKind::Write, BITMAP, errno));
        write(&world.disk, MIB, 1).unwrap();
        assert!(inconsistent(&world.disk, "b"), "told at once");
        assert_refused(
            world.disk.bitmap_count("b"),
            ErrorCode::BitmapInconsistent,
            "only removed or repaired",
        );
        assert_eq!(dirty(&world.disk, "sound"), [0, 16]);
        assert!(!world.disk.info().unwrap().failed);
        {
            let heard = world.heard.lock().unwrap();
            assert_eq!(heard.len(), 1, "{heard:?}");
            assert!(
                heard[0].starts_with("bitmap \"b\" could not be written"),
                "{heard:?}"
            );
        }
        // The next write finds nothing missing: it neither fails nor marks again.
        let before = world.sim.events().len();
        write(&world.disk, MIB, 1).unwrap();
        let events = changes(&world.sim, before);
        assert_eq!(events.len(), 1, "{events:?}");
        write(&world.disk, 2 * MIB, 1).unwrap();
        assert_eq!(world.heard.lock().unwrap().len(), 1);

        world.disk.close().unwrap();
        world.sim.heal();
        let again = reopen(&world.sim, OnBitmapError::FailWrite);
        assert!(inconsistent(&again.disk, "b"));
        assert_eq!(dirty(&again.disk, "sound"), [0, 16, 32]);
        again.disk.bitmap_repair("b").unwrap();
        assert_eq!(again.disk.bitmap_count("b").unwrap(), 256);
        again.disk.close().unwrap();
        let last = reopen(&world.sim, OnBitmapError::FailWrite);
        assert!(!inconsistent(&last.disk, "b"));
    }
}

/// The mark is durable before the data goes out, so no crash finds the data without it, or its bit.
#[test]
fn no_crash_finds_the_data_without_the_mark() {
    let world = world(OnBitmapError::MarkInconsistent);
    let start = world.sim.events().len();
    world.sim.fail(broken(CallKind::Write, BITMAP, libc::EIO));
    write(&world.disk, MIB, 1).unwrap();
    let events = changes(&world.sim, start);
    let data = position(&events, CallKind::Write, IMAGE);
    let synced = events[..data]
        .iter()
        .rposition(|event| event.call.kind() == CallKind::Sync);
    let marked = events[..data]
        .iter()
        .rposition(|event| is_write_to(&event.call, STATE));
    assert!(marked.is_some() && marked < synced, "{events:#?}");
    world.sim.heal();
    let mut excused = 0;
    for point in world
        .sim
        .crash_points()
        .filter(|point| point.events() >= start as u64)
    {
        let killed = std::iter::once(point.kill());
        let cut = (0..40).map(|seed| point.power_cut_keeping(Keep::Random(seed)));
        for after in killed.chain(cut) {
            let found = reopen(&after, OnBitmapError::FailWrite);
            let mut byte = [0];
            found.disk.read(&mut byte, MIB).unwrap();
            let marked = inconsistent(&found.disk, "b");
            excused += usize::from(marked);
            if byte == [7] && !marked {
                assert!(found.disk.bitmap_get("b", MIB).unwrap(), "D1");
            }
        }
    }
    assert!(excused > 20, "{excused}");
}

/// Where the mark cannot be stored, the write fails: with a state file that takes nothing, and with none.
#[test]
fn a_mark_that_cannot_be_stored_excuses_nothing() {
    for kind in [CallKind::Write, CallKind::Sync] {
        for errno in [libc::EIO, libc::ENOSPC] {
            let world = world(OnBitmapError::MarkInconsistent);
            // The region is active already, so that the state file is met by the mark alone.
            world.sim.fail(broken(CallKind::Write, BITMAP, errno));
            world.sim.fail(broken(kind, STATE, errno));
            let error = write(&world.disk, MIB, 1).unwrap_err();
            assert_eq!(error.errno(), errno);
            assert!(
                error.message().contains("inconsistent cannot be noted"),
                "{error}"
            );
            let mut byte = [1];
            world.disk.read(&mut byte, MIB).unwrap();
            assert_eq!(byte, [0], "the data went out without its bit");
            assert!(world.heard.lock().unwrap().is_empty());
            world.sim.heal();
            let again = reopen(&world.sim.kill(), OnBitmapError::FailWrite);
            again.disk.read(&mut byte, MIB).unwrap();
            assert_eq!(byte, [0]);
        }
    }
    let (sim, disk) = disk_of(MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.close().unwrap();
    let disk = options(&sim)
        .on_bitmap_error(OnBitmapError::MarkInconsistent)
        .open(NAME)
        .unwrap();
    sim.fail(broken(CallKind::Write, BITMAP, libc::EIO));
    assert_refused(write(&disk, 0, 1), ErrorCode::Io, BITMAP);
    assert!(!inconsistent(&disk, "b"));
}

/// A sync of the bitmap's file that fails ends the disk, or, with the mark, the bitmap alone.
#[test]
fn a_failed_sync_of_the_file_is_excused_too() {
    for (choice, ends) in [
        (OnBitmapError::FailWrite, true),
        (OnBitmapError::MarkInconsistent, false),
    ] {
        let world = world(choice);
        world.sim.fail(broken(CallKind::Sync, BITMAP, libc::EIO));
        assert_eq!(world.disk.bitmap_sync(None).is_err(), ends);
        assert_eq!(world.disk.info().unwrap().failed, ends);
        if ends {
            continue;
        }
        assert!(inconsistent(&world.disk, "b"));
        assert_refused(
            world.disk.bitmap_sync(Some("b")),
            ErrorCode::BitmapInconsistent,
            "cannot be synced",
        );
        write(&world.disk, MIB, 1).unwrap();
        world.disk.close().unwrap();
        world.sim.heal();
        assert!(inconsistent(&reopen(&world.sim, choice).disk, "b"));
    }
}

/// A bitmap that stops recording must be durable: then the caller hears, as nothing would tell him later.
#[test]
fn what_is_asked_of_the_broken_bitmap_says_so() {
    let world = world(OnBitmapError::MarkInconsistent);
    world.sim.fail(broken(CallKind::Sync, BITMAP, libc::EIO));
    assert_refused(
        world.disk.bitmap_disable("b"),
        ErrorCode::BitmapInconsistent,
        "cannot be disabled",
    );
    assert!(world.disk.bitmap_info("b").unwrap().recording);
    world.sim.heal();
    world.disk.bitmap_remove("b").unwrap();
    assert!(world.sim.read(BITMAP).is_err());
}

/// A transaction is refused for the broken bitmap whose name or epoch it was to change. The mark must be one of the bitmap
/// as the descriptor goes on to name it, or the next open would trust it and miss what was written since (D1).
#[test]
fn a_refused_transaction_leaves_a_mark_that_fits() {
    let rename = |name, to| BitmapAction::Rename { name, to };
    let disable = |name| BitmapAction::Disable { name };
    let transactions = [
        vec![rename("b", "c"), disable("c")],
        vec![disable("b"), BitmapAction::Enable { name: "b" }, disable("b")],
        vec![rename("sound", "c"), rename("b", "sound"), disable("sound")],
    ];
    for (policy, kind) in [
        (BitmapPolicy::WriteThrough, CallKind::Sync),
        (BitmapPolicy::Lazy, CallKind::Write),
    ] {
        for (number, actions) in transactions.iter().enumerate() {
            let words = format!("{policy:?}, transaction {number}");
            let world = world_under(OnBitmapError::MarkInconsistent, policy);
            world.sim.fail(broken(kind, BITMAP, libc::EIO));
            assert_refused(
                world.disk.bitmap_transaction(actions),
                ErrorCode::BitmapInconsistent,
                "cannot be disabled",
            );
            world.sim.heal();
            assert!(inconsistent(&world.disk, "b"), "{words}");
            write(&world.disk, 3 * MIB, 1).unwrap();
            assert_eq!(dirty(&world.disk, "sound"), [0, 48], "{words}");
            let killed = reopen(&world.sim.kill(), OnBitmapError::FailWrite);
            assert!(inconsistent(&killed.disk, "b"), "{words}, killed");
            world.disk.close().unwrap();
            let again = reopen(&world.sim, OnBitmapError::FailWrite);
            assert!(inconsistent(&again.disk, "b"), "{words}, closed");
            assert!(!inconsistent(&again.disk, "sound"), "{words}");
            assert_eq!(dirty(&again.disk, "sound"), [0, 48], "{words}");
            let heard = world.heard.lock().unwrap();
            assert!(
                heard[0].starts_with("bitmap \"b\" could not"),
                "{words}: {heard:?}"
            );
        }
    }
}

/// A backup has frozen the bitmap when it breaks: its end may only be the way back.
#[test]
fn a_frozen_bitmap_that_breaks_is_thawed_by_rolling_back() {
    let world = world(OnBitmapError::MarkInconsistent);
    world.disk.bitmap_freeze("b").unwrap();
    world.sim.fail(broken(CallKind::Write, BITMAP, libc::EIO));
    write(&world.disk, MIB, 1).unwrap();
    assert!(inconsistent(&world.disk, "b"));
    world.sim.heal();
    world.disk.truncate(32 * MIB, TruncateFlags::empty()).unwrap();
    assert_refused(
        world.disk.bitmap_thaw("b", Thaw::Commit),
        ErrorCode::BitmapInconsistent,
        "roll it back",
    );
    world.disk.bitmap_thaw("b", Thaw::Rollback).unwrap();
    assert!(inconsistent(&world.disk, "b"));
    world.disk.bitmap_repair("b").unwrap();
    assert_eq!(world.disk.bitmap_count("b").unwrap(), 512);
    write(&world.disk, 20 * MIB, 1).unwrap();
    world.disk.close().unwrap();
    assert!(!inconsistent(
        &reopen(&world.sim, OnBitmapError::FailWrite).disk,
        "b"
    ));
}

/// There is room for 420 marks, and none for those of bitmaps that are no more.
#[test]
fn marks_of_bitmaps_that_are_gone_take_no_room() {
    let world = world(OnBitmapError::MarkInconsistent);
    for round in 0..425 {
        world.disk.bitmap_add("passing", persistent()).unwrap();
        world
            .sim
            .fail(broken(CallKind::Write, "disk-passing.bitmap", libc::EIO));
        write(&world.disk, 0, 1).unwrap();
        world.sim.heal();
        assert!(inconsistent(&world.disk, "passing"), "round {round}");
        if round == 0 {
            world.sim.fail(broken(CallKind::Write, BITMAP, libc::EIO));
            write(&world.disk, MIB, 1).unwrap();
            world.sim.heal();
        }
        world.disk.bitmap_remove("passing").unwrap();
    }
    // One that is still there keeps its own, whatever comes.
    drop(world.disk);
    let after = world.sim.power_cut_keeping(Keep::Nothing);
    let world = reopen(&after, OnBitmapError::MarkInconsistent);
    assert!(inconsistent(&world.disk, "b"));
    assert!(!inconsistent(&world.disk, "sound"));
}

/// Notes of what recovery has widened only explain: they stay while there is room, and give way to a mark.
#[test]
fn notes_give_way_to_marks() {
    for (notes, stay) in [(419, true), (420, false)] {
        let world = world(OnBitmapError::MarkInconsistent);
        let names: Vec<String> = (0..notes).map(|number| format!("n{number}")).collect();
        let add = |name| BitmapAction::Add {
            name,
            options: AddBitmap::default(),
        };
        let actions: Vec<_> = names.iter().map(|name| add(name.as_str())).collect();
        world.disk.bitmap_transaction(&actions).unwrap();
        let epoch = |name: &str| world.disk.bitmap_info(name).unwrap().epoch.unwrap();
        let ids = names.iter().map(|name| MarkId::widened(name, &epoch(name)));
        let session = world.disk.session.as_ref().unwrap();
        session.mark(&[], &ids.collect::<Vec<_>>()).unwrap();
        world.sim.fail(broken(CallKind::Write, BITMAP, libc::EIO));
        write(&world.disk, MIB, 1).unwrap();
        world.sim.heal();
        world.disk.close().unwrap();
        let world = reopen(&world.sim, OnBitmapError::FailWrite);
        assert!(inconsistent(&world.disk, "b"));
        for name in &names {
            let info = world.disk.bitmap_info(name).unwrap();
            assert_eq!((info.widened, info.inconsistent), (stay, false), "{notes} notes");
        }
    }
}

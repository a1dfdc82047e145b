//! Who waits at the gate while an operation fails in there: the descriptor on disk may be the new one, and the shape in memory
//! the old one. Nothing may be acknowledged that is recorded by that (D1, A3, M1).

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::descriptor::Format;
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, Thaw, TruncateFlags, WriteFlags};
use crate::error::Result;
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{Call, CallKind, Fault, Keep, SimDisk};

const NAME: &str = "disk.qbm";
const LENGTH: u64 = 1 << 20;
/// How long the operation stands in its last call, for the other to come to the gate.
const STAND: Duration = Duration::from_millis(300);

fn open(sim: &SimDisk) -> Disk {
    open_in(sim, "one")
}

/// The same in that page cache.
fn open_in(sim: &SimDisk, cache: &str) -> Disk {
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch(cache);
    options.open(NAME).unwrap()
}

fn create(sim: &SimDisk, options: CreateOptions) -> Disk {
    options.folder(sim.folder()).create(NAME).unwrap();
    open(sim)
}

/// What `waiter` says, who comes while `operation` stands in the sync of the folder that is about to fail behind its rename.
fn behind<T: Send>(
    sim: &SimDisk,
    operation: impl FnOnce() -> Result<()> + Send,
    waiter: impl FnOnce() -> T,
) -> T {
    let (stands, standing) = mpsc::channel();
    let stands = Mutex::new(stands);
    let renamed = AtomicUsize::new(0);
    sim.on_call(move |call: &Call| {
        if call.kind() == CallKind::Rename {
            renamed.fetch_add(1, Ordering::SeqCst);
        }
        if call.kind() == CallKind::SyncFolder && renamed.swap(0, Ordering::SeqCst) > 0 {
            let _ = stands.lock().unwrap_or_else(PoisonError::into_inner).send(());
            std::thread::sleep(STAND);
        }
    });
    let (renamed, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    sim.fail(
        Fault::new(libc::EIO)
            .from_then_on()
            .matching(move |call: &Call| match call.kind() {
                CallKind::SyncFolder => {
                    let fails = renamed.load(Ordering::SeqCst);
                    failed.fetch_or(fails, Ordering::SeqCst);
                    fails
                }
                CallKind::Rename => {
                    renamed.store(true, Ordering::SeqCst);
                    // Nor can the old descriptor get its name back.
                    failed.load(Ordering::SeqCst)
                }
                _ => false,
            }),
    );
    let said = std::thread::scope(|scope| {
        let operation = scope.spawn(operation);
        standing.recv().unwrap();
        let said = waiter();
        operation.join().unwrap().unwrap_err();
        said
    });
    sim.heal();
    said
}

fn write(disk: &Disk) -> Result<()> {
    disk.write(&[7; 4096], 0, WriteFlags::empty())
}

/// A write that was acknowledged while a bitmap got another file is in that bitmap (D1).
fn recorded(thaw: bool) -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    let disk = create(&sim, CreateOptions::new().size(LENGTH));
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.write(&[1; 4096], 0, WriteFlags::FUA).unwrap();
    if thaw {
        disk.bitmap_freeze("b").unwrap();
    }
    let operation = || {
        if thaw {
            disk.bitmap_thaw("b", Thaw::Commit)
        } else {
            disk.bitmap_clear("b")
        }
    };
    let written = behind(&sim, operation, || write(&disk));
    // Behind the failure a power cut finds the old descriptor or the new one.
    let cuts = (0..100).map(|seed| open_in(&sim.power_cut_keeping(Keep::Random(seed)), "another"));
    for after in cuts.chain([open(&sim.kill())]) {
        let mut byte = [0];
        after.read(&mut byte, 0).unwrap();
        if written.is_ok() && byte == [7] && !after.bitmap_get("b", 0).unwrap() {
            return Err("D1: an acknowledged write is in no bitmap".to_owned());
        }
    }
    Ok(())
}

/// A write that was acknowledged while an overlay let go of what it has is there (A3).
fn kept(commit: bool) -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    sim.put("base.img", &vec![0x22; 1 << 20]);
    let options = CreateOptions::new().size(LENGTH).backing("base.img", Format::Raw);
    let disk = create(&sim, options);
    disk.write(&[1; 4096], 0, WriteFlags::FUA).unwrap();
    let operation = || {
        if commit {
            disk.commit(&mut |_, _| ControlFlow::Continue(()))
        } else {
            disk.make_empty()
        }
    };
    let written = behind(&sim, operation, || write(&disk));
    let mut byte = [0];
    open(&sim.kill()).read(&mut byte, 0).unwrap();
    if written.is_ok() && byte != [7] {
        return Err(format!("A3: an acknowledged write reads {byte:?}"));
    }
    Ok(())
}

#[test]
fn a_writer_who_waits_while_the_disk_fails_is_told() {
    for case in [
        || recorded(false),
        || recorded(true),
        || kept(false),
        || kept(true),
    ] {
        case().unwrap();
        with(Wrong::NoLookBehindGate, case).unwrap_err();
    }
}

/// It would lengthen the old bitmap's file, and the image, where the new one's may be the one that stands.
#[test]
fn a_resize_that_waits_while_the_disk_fails_changes_nothing() {
    let sim = SimDisk::new();
    let disk = create(&sim, CreateOptions::new().size(LENGTH));
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    let grown = behind(
        &sim,
        || disk.bitmap_clear("b"),
        || disk.truncate(64 << 20, TruncateFlags::empty()),
    );
    grown.unwrap_err();
    assert_eq!(open(&sim.kill()).length(), LENGTH);
}

/// What a power cut takes back of a write that was on its way to the image while a starting point flushed the disk for the first
/// time: its bit is dropped at the point, which a backup reads.
fn in_flight_at_a_point() -> std::result::Result<(), String> {
    const BEFORE: u8 = 0;
    const WRITING: u8 = 1;
    const FLUSHED: u8 = 2;
    let sim = SimDisk::new();
    let disk = create(&sim, CreateOptions::new().size(LENGTH));
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.write(&[1; 4096], 0, WriteFlags::FUA).unwrap();
    disk.bitmap_sync(None).unwrap();
    let stage = Arc::new((Mutex::new(BEFORE), Condvar::new()));
    let (stands, standing) = mpsc::channel();
    let (stands, seen) = (Mutex::new(stands), Arc::clone(&stage));
    sim.on_call(move |call: &Call| {
        if !call.names().any(|name| name == "disk-data.img") {
            return;
        }
        let (now, changed) = &*seen;
        let mut at = now.lock().unwrap_or_else(PoisonError::into_inner);
        match (call.kind(), *at) {
            (CallKind::Write, BEFORE) => {
                *at = WRITING;
                let _ = stands.lock().unwrap_or_else(PoisonError::into_inner).send(());
                let at = changed.wait_while(at, |at| *at < FLUSHED);
                drop(at);
                // For the point to come to the gate.
                std::thread::sleep(STAND);
            }
            (CallKind::Sync, WRITING) => {
                *at = FLUSHED;
                changed.notify_all();
            }
            _ => {}
        }
    });
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&disk));
        standing.recv().unwrap();
        disk.bitmap_clear("b").unwrap();
        writer.join().unwrap().unwrap();
    });
    let mut start = [0];
    disk.read(&mut start, 0).unwrap();
    assert_eq!(
        (start, disk.bitmap_get("b", 0).unwrap()),
        ([7], false),
        "it came before the point"
    );
    for seed in 0..200 {
        let after = open_in(&sim.power_cut_keeping(Keep::Random(seed)), "another");
        let mut byte = [0];
        after.read(&mut byte, 0).unwrap();
        if byte != start && !after.bitmap_get("b", 0).unwrap() {
            return Err(format!("D1: it reads {byte:?}, and is in no bitmap"));
        }
    }
    Ok(())
}

#[test]
fn a_point_flushes_what_was_in_flight_when_it_came() {
    in_flight_at_a_point().unwrap();
    with(Wrong::FlushedOutsideGate, in_flight_at_a_point).unwrap_err();
}

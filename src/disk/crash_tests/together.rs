//! Two threads sync one file, and the sync fails: through one open file description, the kernel tells one of them alone. The
//! other may not have called durable what is lost (A1, A2, D1).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::error::Result;
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{Call, CallKind, Fault, Keep, SimDisk};
use crate::storage::{Access, Role, SyncMode};

const NAME: &str = "disk.qbm";
const BASE: &str = "base.img";
const KIB: u64 = 1 << 10;
/// How long the first caller stands in his sync, for the second to come by, if he can.
const STAND: Duration = Duration::from_millis(500);

fn open(sim: &SimDisk, cache: &str) -> Disk {
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch(cache);
    options.open(NAME).unwrap()
}

fn write(disk: &Disk, byte: u8, at: u64, flags: WriteFlags) -> Result<()> {
    disk.write(&[byte; 4096], at, flags)
}

fn first_byte(disk: &Disk, at: u64) -> u8 {
    let mut found = [0; 1];
    disk.read(&mut found, at).unwrap();
    found[0]
}

fn of_image(call: &Call) -> bool {
    call.names().any(|name| name == "disk-data.img")
}

/// What both say when `first` stands in a sync of a file that is `like`, while `second` gets the error of his own, if one
/// `fails`.
fn at_a_time(
    sim: &SimDisk,
    like: fn(&Call) -> bool,
    fails: bool,
    first: impl FnOnce() -> Result<()> + Send,
    second: impl FnOnce() -> Result<()>,
) -> (Result<()>, Result<()>) {
    let (stands, standing) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    let goes_on = Mutex::new(goes_on);
    let once = AtomicBool::new(true);
    let is_sync = move |call: &Call| call.kind() == CallKind::Sync && like(call);
    sim.on_call(move |call: &Call| {
        if is_sync(call) && once.swap(false, Ordering::SeqCst) {
            let _ = stands.send(());
            let goes_on = goes_on.lock().unwrap_or_else(PoisonError::into_inner);
            let _: std::result::Result<(), _> = goes_on.recv_timeout(STAND);
        }
    });
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        standing.recv().unwrap();
        if fails {
            sim.fail(Fault::new(libc::EIO).matching(is_sync));
        }
        let second = second();
        sim.heal();
        let _ = go_on.send(());
        (first.join().unwrap(), second)
    })
}

/// A plain disk that has 0x77 at its start, durably.
fn plain() -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(64 * KIB).folder(sim.folder());
    create.create(NAME).unwrap();
    let disk = open(&sim, "one");
    write(&disk, 0x77, 0, WriteFlags::FUA).unwrap();
    (sim, disk)
}

/// Of a disk whose second sync fails, whether the first caller was told a lie.
fn flushes() -> std::result::Result<(), String> {
    let (sim, disk) = plain();
    write(&disk, 0x78, 0, WriteFlags::empty()).unwrap();
    let (first, second) = at_a_time(&sim, of_image, true, || disk.flush(), || disk.flush());
    let after = open(&sim.power_cut_keeping(Keep::Nothing), "two");
    if second.is_ok() || (first.is_ok() && first_byte(&after, 0) != 0x78) {
        return Err(format!("A2: {first:?}, {second:?}"));
    }
    Ok(())
}

/// The same of an overlay, where the bits that a flush makes durable show what is lost.
fn a_flush_beside_a_write_with_fua() -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    sim.put(BASE, &vec![0x11; 512 << 10]);
    let create = CreateOptions::new().backing(BASE, crate::descriptor::Format::Raw);
    create.folder(sim.folder()).create(NAME).unwrap();
    let disk = open(&sim, "one");
    write(&disk, 0x70, 0, WriteFlags::empty()).unwrap();
    disk.flush().unwrap();
    write(&disk, 0x77, 128 * KIB, WriteFlags::empty()).unwrap();
    let fua = || write(&disk, 0x71, 0, WriteFlags::FUA);
    let (first, second) = at_a_time(&sim, of_image, true, || disk.flush(), fua);
    let after = open(&sim.power_cut_keeping(Keep::Nothing), "two");
    let shown = first_byte(&after, 128 * KIB);
    if second.is_ok() || (first.is_ok() && shown != 0x77) || ![0x77, 0x11].contains(&shown) {
        return Err(format!("A1, A2: {first:?}, {second:?}, {shown:x} is shown"));
    }
    Ok(())
}

/// And of a bitmap: whoever is told that it is durable retires regions.
fn bitmaps() -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(64 * KIB).folder(sim.folder());
    create.create(NAME).unwrap();
    let disk = open(&sim, "one");
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    write(&disk, 0x77, 0, WriteFlags::FUA).unwrap();
    let of_bits = |call: &Call| call.names().any(|name| name == "disk-b.bitmap");
    let sync = || disk.bitmap_sync(None);
    let (first, second) = at_a_time(&sim, of_bits, true, sync, sync);
    for seed in 0..100 {
        let after = open(&sim.power_cut_keeping(Keep::Random(seed)), "two");
        let bitmap = after.bitmap_info("b").unwrap();
        if second.is_ok() || (!bitmap.inconsistent && bitmap.count == Some(0)) {
            return Err(format!("D1: {first:?}, {second:?}"));
        }
    }
    Ok(())
}

#[test]
fn no_caller_calls_durable_what_another_was_told_is_lost() {
    for (case, words) in [
        (flushes as fn() -> _, "A2"),
        (a_flush_beside_a_write_with_fua, "A1, A2"),
        (bitmaps, "D1"),
    ] {
        case().unwrap();
        let seen = with(Wrong::SyncsApart, case).unwrap_err();
        assert!(seen.contains(words), "{seen}");
    }
}

/// Once two have met, they have a file description each: neither waits for the other, and both are told of what is lost.
#[test]
fn flushes_that_have_met_run_side_by_side() {
    let (sim, disk) = plain();
    write(&disk, 0x78, 0, WriteFlags::empty()).unwrap();
    let flush = || disk.flush();
    let (first, second) = at_a_time(&sim, of_image, false, flush, flush);
    first.and(second).unwrap();
    write(&disk, 0x79, 0, WriteFlags::empty()).unwrap();
    let (first, second) = at_a_time(&sim, of_image, true, flush, flush);
    // Had the second waited, the first would have made it durable before.
    first.unwrap_err();
    second.unwrap_err();
}

/// A description that is opened behind an error of which somebody was told already is never told of it.
fn a_flush_behind_a_failure_that_another_was_told() -> std::result::Result<(), String> {
    let (sim, disk) = plain();
    write(&disk, 0x78, 0, WriteFlags::empty()).unwrap();
    let access = Access {
        write: true,
        direct: false,
    };
    let foreign = sim
        .folder()
        .open(Role::Image, "disk-data.img".as_ref(), access)
        .unwrap();
    sim.fail(Fault::new(libc::EIO).on(CallKind::Sync));
    foreign.sync(SyncMode::Data).unwrap_err();
    let flush = || disk.flush();
    let (first, second) = at_a_time(&sim, of_image, false, flush, flush);
    first.unwrap_err();
    match second {
        Ok(()) => Err("A2: a flush succeeds, and what was written before is lost".to_owned()),
        Err(_) => Ok(()),
    }
}

#[test]
fn a_new_description_is_not_believed_before_an_old_one_has_vouched_for_it() {
    a_flush_behind_a_failure_that_another_was_told().unwrap();
    let seen = with(
        Wrong::LaneUnproven,
        a_flush_behind_a_failure_that_another_was_told,
    );
    seen.unwrap_err();
}

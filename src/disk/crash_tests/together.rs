//! Two threads sync one file, and a sync fails: the kernel may tell one of them alone. The other may not have called durable
//! what is lost (A1, A2, D1).

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

/// Who is told of what is lost while two sync a file.
#[derive(Clone, Copy, Debug)]
enum Told {
    Nobody,
    /// The first, who has not come back from his sync yet when the second comes by: the kernel could not write a page.
    First,
    /// The second, who comes by while the first is on his way to sync; the same.
    Second,
    /// The second: the device could not flush its own cache, which nobody else is ever told, by whatever description.
    SecondOfCache,
}

/// What both say when `first` stands in a sync of a file that is `like` until `second` is done, or for a while.
fn at_a_time(
    sim: &SimDisk,
    like: fn(&Call) -> bool,
    told: Told,
    first: impl FnOnce() -> Result<()> + Send,
    second: impl FnOnce() -> Result<()>,
) -> (Result<()>, Result<()>) {
    let is_sync = move |call: &Call| call.kind() == CallKind::Sync && like(call);
    let page = || Fault::new(libc::EIO).matching(is_sync);
    match told {
        Told::Nobody => standing(sim, false, is_sync, None, first, second),
        Told::First => {
            sim.fail(page());
            standing(sim, true, is_sync, None, first, second)
        }
        Told::Second => standing(sim, false, is_sync, Some(page()), first, second),
        Told::SecondOfCache => {
            let cache = Fault::of_cache().matching(is_sync);
            standing(sim, false, is_sync, Some(cache), first, second)
        }
    }
}

/// The same, with `fault` from when the first stands: before his sync has taken effect, or `behind` that.
fn standing(
    sim: &SimDisk,
    behind: bool,
    is_sync: impl Fn(&Call) -> bool + Send + Sync + 'static,
    fault: Option<Fault>,
    first: impl FnOnce() -> Result<()> + Send,
    second: impl FnOnce() -> Result<()>,
) -> (Result<()>, Result<()>) {
    let (stands, standing) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    let goes_on = Mutex::new(goes_on);
    let once = AtomicBool::new(true);
    let stand = move |call: &Call| {
        if is_sync(call) && once.swap(false, Ordering::SeqCst) {
            let _ = stands.send(());
            let goes_on = goes_on.lock().unwrap_or_else(PoisonError::into_inner);
            let _: std::result::Result<(), _> = goes_on.recv_timeout(STAND);
        }
    };
    if behind {
        sim.on_synced(stand);
    } else {
        sim.on_call(stand);
    }
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        standing.recv().unwrap();
        if let Some(fault) = fault {
            sim.fail(fault);
        }
        let second = second();
        sim.heal();
        let _ = go_on.send(());
        (first.join().unwrap(), second)
    })
}

/// What `act` comes to without a protection, in whatever thread it runs.
fn lacking<T>(wrong: Option<Wrong>, act: impl FnOnce() -> T) -> T {
    match wrong {
        Some(wrong) => with(wrong, act),
        None => act(),
    }
}

/// Two have met before: there is a description for each.
fn meet(sim: &SimDisk, disk: &Disk) {
    let flush = || disk.flush();
    let (first, second) = at_a_time(sim, of_image, Told::Nobody, flush, flush);
    first.and(second).unwrap();
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

/// Whether somebody was told a lie.
fn flushes(told: Told, wrong: Option<Wrong>) -> std::result::Result<(), String> {
    let (sim, disk) = plain();
    meet(&sim, &disk);
    write(&disk, 0x78, 0, WriteFlags::empty()).unwrap();
    let flush = || lacking(wrong, || disk.flush());
    let (first, second) = at_a_time(&sim, of_image, told, flush, flush);
    let after = open(&sim.power_cut_keeping(Keep::Nothing), "two");
    if (first.is_ok() || second.is_ok()) && first_byte(&after, 0) != 0x78 {
        return Err(format!("A2: {first:?}, {second:?}"));
    }
    Ok(())
}

/// The same of an overlay, where the bits that a flush makes durable show what is lost.
fn a_flush_beside_a_write_with_fua(told: Told, wrong: Option<Wrong>) -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    sim.put(BASE, &vec![0x11; 512 << 10]);
    let create = CreateOptions::new().backing(BASE, crate::descriptor::Format::Raw);
    create.folder(sim.folder()).create(NAME).unwrap();
    let disk = open(&sim, "one");
    write(&disk, 0x70, 0, WriteFlags::empty()).unwrap();
    disk.flush().unwrap();
    let fua = |byte| write(&disk, byte, 0, WriteFlags::FUA);
    // Flushes take turns at the bits; a write to a granule that is there syncs beside one.
    let (first, second) = at_a_time(&sim, of_image, Told::Nobody, || disk.flush(), || fua(0x70));
    first.and(second).unwrap();
    write(&disk, 0x77, 128 * KIB, WriteFlags::empty()).unwrap();
    let flush = || lacking(wrong, || disk.flush());
    let beside = || lacking(wrong, || fua(0x71));
    let (first, second) = at_a_time(&sim, of_image, told, flush, beside);
    let after = open(&sim.power_cut_keeping(Keep::Nothing), "two");
    let (there, shown) = (first_byte(&after, 0), first_byte(&after, 128 * KIB));
    let lied = (first.is_ok() && shown != 0x77) || (second.is_ok() && there != 0x71);
    if lied || ![0x77, 0x11].contains(&shown) {
        return Err(format!(
            "A1, A2: {first:?}, {second:?}, {there:x} and {shown:x} are shown"
        ));
    }
    Ok(())
}

/// And of a bitmap: whoever is told that it is durable retires regions.
fn bitmaps(told: Told, wrong: Option<Wrong>) -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(64 * KIB).folder(sim.folder());
    create.create(NAME).unwrap();
    let disk = open(&sim, "one");
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    write(&disk, 0x77, 0, WriteFlags::FUA).unwrap();
    let of_bits = |call: &Call| call.names().any(|name| name == "disk-b.bitmap");
    let sync = || lacking(wrong, || disk.bitmap_sync(None));
    let (first, second) = at_a_time(&sim, of_bits, told, sync, sync);
    for seed in 0..100 {
        let after = open(&sim.power_cut_keeping(Keep::Random(seed)), "two");
        let bitmap = after.bitmap_info("b").unwrap();
        if !bitmap.inconsistent && bitmap.count == Some(0) {
            return Err(format!("D1: {first:?}, {second:?}"));
        }
    }
    Ok(())
}

#[test]
fn no_caller_calls_durable_what_another_was_told_is_lost() {
    for (case, words) in [
        (flushes as fn(_, _) -> _, "A2"),
        (a_flush_beside_a_write_with_fua, "A1, A2"),
        (bitmaps, "D1"),
    ] {
        for told in [Told::First, Told::Second, Told::SecondOfCache] {
            case(told, None).unwrap_or_else(|lie| panic!("{told:?}: {lie}"));
        }
        let seen = case(Told::Second, Some(Wrong::SyncsApart)).unwrap_err();
        assert!(seen.contains(words), "{seen}");
    }
    // Also where the other has not come back with what he was told, so that nobody could ask what has become of him.
    flushes(Told::First, Some(Wrong::SyncsApart)).unwrap_err();
}

#[test]
fn a_sync_does_not_count_beside_one_that_has_failed() {
    for case in [flushes as fn(_, _) -> _, a_flush_beside_a_write_with_fua] {
        case(Told::SecondOfCache, Some(Wrong::CountedAlone)).unwrap_err();
    }
}

/// Once two have met, they have a file description each: neither waits for the other to begin, and both are told of what is lost.
#[test]
fn flushes_that_have_met_run_side_by_side() {
    let (sim, disk) = plain();
    meet(&sim, &disk);
    write(&disk, 0x79, 0, WriteFlags::empty()).unwrap();
    let flush = || disk.flush();
    let (first, second) = at_a_time(&sim, of_image, Told::Second, flush, flush);
    // Had the second waited, the first would have made it durable before.
    first.unwrap_err();
    second.unwrap_err();
}

/// A description that is opened behind an error of which somebody was told already is never told of it; nor is a sync that has
/// been done before, beside which it is opened.
fn a_flush_behind_a_failure_that_another_was_told(wrong: Option<Wrong>) -> std::result::Result<(), String> {
    let (sim, disk) = plain();
    let access = Access {
        write: true,
        direct: false,
    };
    let foreign = sim
        .folder()
        .open(Role::Image, "disk-data.img".as_ref(), access)
        .unwrap();
    let is_sync = |call: &Call| call.kind() == CallKind::Sync && of_image(call);
    let second = || {
        write(&disk, 0x78, 0, WriteFlags::empty()).unwrap();
        sim.fail(Fault::new(libc::EIO).on(CallKind::Sync));
        foreign.sync(SyncMode::Data).unwrap_err();
        lacking(wrong, || disk.flush())
    };
    let (first, second) = standing(&sim, true, is_sync, None, || disk.flush(), second);
    first.unwrap();
    match second {
        Ok(()) => Err("A2: a flush succeeds, and what was written before is lost".to_owned()),
        Err(_) => Ok(()),
    }
}

#[test]
fn a_new_description_is_not_believed_before_an_old_one_has_vouched_for_it() {
    a_flush_behind_a_failure_that_another_was_told(None).unwrap();
    let seen = a_flush_behind_a_failure_that_another_was_told(Some(Wrong::LaneUnproven));
    seen.unwrap_err();
}

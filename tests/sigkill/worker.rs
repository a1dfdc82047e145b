//! The process that is killed: three threads write, one flushes and works on the bitmaps, until the end comes.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qbm::{BitmapPolicy, Disk, OpenOptions, Thaw, WriteFlags};

use super::log::{Act, Log};
use super::random::Random;
use super::units::{BITMAPS, LENGTH, UNIT, UNITS, content, path};

/// Where the disk is.
pub const FOLDER: &str = "QBM_SIGKILL_FOLDER";
pub const SEED: &str = "QBM_SIGKILL_SEED";
pub const EPOCH: &str = "QBM_SIGKILL_EPOCH";
pub const LAZY: &str = "QBM_SIGKILL_LAZY";
/// The operator stays away, so that nothing is ever flushed.
pub const UNFLUSHED: &str = "QBM_SIGKILL_UNFLUSHED";
/// Of the units so many are written to, if not all.
pub const ROOM: &str = "QBM_SIGKILL_ROOM";

const WRITERS: usize = 3;
const THREADS: [usize; WRITERS + 1] = [0, 1, 2, 3];

/// Works on the disk in `folder` until it is killed.
pub fn work(folder: &Path) -> ! {
    let seed = std::env::var(SEED).expect("a seed").parse().expect("a number");
    // No region stays long: what is retired must be as safe as what is active.
    let mut options = OpenOptions::new().retire_interval(Duration::from_millis(1));
    if let Ok(epoch) = std::env::var(EPOCH) {
        options = options.cache_epoch(&epoch);
    }
    if std::env::var_os(LAZY).is_some() {
        options = options.bitmap_policy(BitmapPolicy::Lazy);
    }
    let clock = AtomicU64::new(0);
    let mut logs = THREADS.map(|thread| Log::create(folder, thread, &clock));
    let disk = options.open(path(folder)).expect("it opens");
    let overlay = disk.info().expect("facts").overlay.is_some();
    let unflushed = std::env::var_os(UNFLUSHED).is_some();
    let room = std::env::var(ROOM).map_or(UNITS, |units| units.parse().expect("a number"));
    logs[0].around(Act::Open, || ());
    // Above what any process before this one has written.
    let values = AtomicU64::new((seed << 24) | 1_u64);
    let [operator, writers @ ..] = &mut logs;
    std::thread::scope(|scope| {
        for (number, log) in (1..).zip(writers) {
            let (disk, values) = (&disk, &values);
            scope.spawn(move || {
                write(
                    disk,
                    room,
                    unflushed,
                    log,
                    values,
                    &mut Random::new(seed ^ number << 40),
                )
            });
        }
        if unflushed {
            loop {
                std::thread::park();
            }
        }
        operate(&disk, overlay, operator, &mut Random::new(seed));
    })
}

fn write(
    disk: &Disk,
    room: u64,
    unflushed: bool,
    log: &mut Log<'_>,
    values: &AtomicU64,
    random: &mut Random,
) -> ! {
    loop {
        let most = if random.one_in(8) { 300 } else { 16 };
        let units = 1 + random.below(most.min(room - 1));
        let first = random.below(room - units);
        let (offset, len) = (first * UNIT, units * UNIT);
        let how = random.below(10);
        let value = if how < 8 {
            values.fetch_add(1, Ordering::Relaxed)
        } else {
            0
        };
        let small = |number| u32::try_from(number).expect("a small disk");
        let act = Act::Write {
            first: small(first),
            units: small(units),
            value,
        };
        let content = content(value, units);
        log.around(act, || match how {
            8 => disk.write_zeroes(offset, len, WriteFlags::MAY_UNMAP),
            9 => disk.discard(offset, len, WriteFlags::empty()),
            7 if !unflushed => disk.write(&content, offset, WriteFlags::FUA),
            _ => disk.write(&content, offset, WriteFlags::empty()),
        })
        .expect("a write");
    }
}

fn operate(disk: &Disk, overlay: bool, log: &mut Log<'_>, random: &mut Random) -> ! {
    let list = disk.bitmap_list().expect("the bitmaps");
    let mut present = BITMAPS.map(|it| list.iter().any(|bitmap| bitmap.name == it.name));
    let mut frozen = [false; BITMAPS.len()];
    loop {
        if overlay && random.one_in(20) {
            log.around(Act::Commit, || disk.commit(&mut |_, _| ControlFlow::Continue(())))
                .expect("commit");
        }
        let number = usize::try_from(random.below(BITMAPS.len() as u64)).expect("an index");
        let bitmap = &BITMAPS[number];
        let (name, id) = (bitmap.name, u32::try_from(number).expect("a number"));
        match random.below(6) {
            0 if !present[number] => {
                log.around(Act::Add(id), || disk.bitmap_add(name, bitmap.options()))
                    .expect("add");
                present[number] = true;
            }
            _ if !present[number] => {}
            0 | 1 if frozen[number] => {
                if random.one_in(2) {
                    log.around(Act::ThawCommit(id), || disk.bitmap_thaw(name, Thaw::Commit))
                } else {
                    log.around(Act::ThawRollback(id), || disk.bitmap_thaw(name, Thaw::Rollback))
                }
                .expect("thaw");
                frozen[number] = false;
            }
            0 | 1 => {
                log.around(Act::Freeze(id), || disk.bitmap_freeze(name))
                    .expect("freeze");
                frozen[number] = true;
            }
            2 if !frozen[number] => log
                .around(Act::Clear(id), || disk.bitmap_clear(name))
                .expect("clear"),
            3 if !frozen[number] && bitmap.comes_and_goes => {
                log.around(Act::Remove(id), || disk.bitmap_remove(name))
                    .expect("remove");
                present[number] = false;
            }
            _ => log.around(Act::Flush, || disk.flush()).expect("flush"),
        }
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        assert_eq!(disk.length(), LENGTH);
    }
}

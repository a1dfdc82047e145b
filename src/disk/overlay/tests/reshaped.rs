//! Guests that go on while a disk is emptied, or becomes shorter and longer, again and again.
//!
//! The rule for what a guest has written where such a point takes things away: a write that begins when the point has
//! returned stays; one that has ended before the point begins is gone when it returns; one that comes between is either.
//! Elsewhere a write stays. Each sector is one write's as a whole, its own, or what is there without any (trap 4).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use super::*;
use crate::storage::simulated::CallKind;

const SECTOR: u64 = 512;
const GUESTS: u64 = 4;
const PER_GRANULE: u64 = G / SECTOR;

/// How many points have begun, and how many of them have returned.
#[derive(Default)]
struct Points {
    begun: AtomicU64,
    returned: AtomicU64,
}

impl Points {
    fn pass(&self, act: impl FnOnce()) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        act();
        self.returned.fetch_add(1, Ordering::SeqCst);
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    fn returned(&self) -> u64 {
        self.returned.load(Ordering::SeqCst)
    }
}

/// What the guests work on.
struct Arena<'d> {
    disk: &'d Disk,
    points: Points,
    /// No point takes anything from the sectors before this one.
    stays: u64,
    sectors: u64,
    /// What a sector shows where no write is.
    bare: fn(u64) -> Vec<u8>,
}

/// The last write to a sector.
#[derive(Clone, Copy)]
struct Written {
    round: u64,
    /// How many points had returned when it began.
    after: u64,
    /// How many points had begun when it had ended.
    before: u64,
}

/// What the write of this round puts into a sector.
fn stamp(sector: u64, round: u64) -> Vec<u8> {
    let word = sector << 32 | round | 1 << 63;
    word.to_le_bytes().repeat(64)
}

/// The round whose write the sector is, where it is one.
fn stamped(sector: u64, bytes: &[u8]) -> Option<u64> {
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let round = word & u64::from(u32::MAX);
    (stamp(sector, round) == bytes).then_some(round)
}

impl Arena<'_> {
    /// Reads so many sectors; `None` where the disk has become too short for them.
    fn read(&self, first: u64, count: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0xaa; usize::try_from(count * SECTOR).unwrap()];
        match self.disk.read(&mut bytes, first * SECTOR) {
            Ok(()) => Some(bytes),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::OutOfRange, "{error}");
                None
            }
        }
    }

    fn write(&self, first: u64, bytes: &[u8]) -> bool {
        match self.disk.write(bytes, first * SECTOR, WriteFlags::empty()) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::OutOfRange, "{error}");
                false
            }
        }
    }

    /// Whoever writes to a sector: each third granule is one guest's, the others are shared by all.
    fn owner(sector: u64) -> u64 {
        match sector / PER_GRANULE {
            granule if granule.is_multiple_of(3) => granule / 3 % GUESTS,
            _ => sector % GUESTS,
        }
    }

    /// What is at `sector`, whose last write is `last`, as it must be by the rule.
    fn check(&self, sector: u64, last: Option<Written>) -> Result<(), String> {
        let returned = self.points.returned();
        let found = self.read(sector, 1);
        let begun = self.points.begun();
        let stays = sector < self.stays;
        let bare = found.as_ref().is_none_or(|found| *found == (self.bare)(sector));
        let round = found.as_ref().and_then(|found| stamped(sector, found));
        let right = match last {
            None => bare && !(stays && found.is_none()),
            Some(last) if stays || begun == last.after => round == Some(last.round),
            Some(last) if returned > last.before => bare,
            Some(last) => bare || round == Some(last.round),
        };
        if right {
            return Ok(());
        }
        Err(format!(
            "sector {sector}: round {round:?}, bare: {bare}, begins with {:?}; written: {:?}; {returned} points had \
             returned, and {begun} begun",
            found.map(|found| found[..8].to_vec()),
            last.map(|last| (last.round, last.after, last.before)),
        ))
    }

    /// One guest, until all is done.
    fn guest(&self, number: u64, start: &Barrier, done: &AtomicBool) -> Result<(), String> {
        let mine: Vec<u64> = (0..self.sectors)
            .filter(|sector| Self::owner(*sector) == number)
            .collect();
        let mut written: Vec<Option<Written>> = vec![None; usize::try_from(self.sectors).unwrap()];
        let untouched = mine.iter().try_for_each(|sector| self.check(*sector, None));
        start.wait();
        untouched?;
        let mut round = 0;
        while !done.load(Ordering::SeqCst) || round < 60 {
            round += 1;
            let first = mine[usize::try_from(round * 7).unwrap() % mine.len()];
            let granule = first / PER_GRANULE * PER_GRANULE;
            let whole = Self::owner(granule) == number && Self::owner(granule + 1) == number;
            let sectors = if whole {
                granule..granule + PER_GRANULE
            } else {
                first..first + 1
            };
            let bytes: Vec<u8> = sectors.clone().flat_map(|at| stamp(at, round)).collect();
            let after = self.points.returned();
            if self.write(sectors.start, &bytes) {
                let before = self.points.begun();
                for sector in sectors {
                    written[usize::try_from(sector).unwrap()] = Some(Written { round, after, before });
                }
            }
            for step in [round * 7, round * 7 + 3, round * 11] {
                let sector = mine[usize::try_from(step).unwrap() % mine.len()];
                self.check(sector, written[usize::try_from(sector).unwrap()])?;
            }
        }
        mine.into_iter()
            .try_for_each(|sector| self.check(sector, written[usize::try_from(sector).unwrap()]))
    }

    /// Whoever reads everything finds each sector whole, and nobody else's.
    fn look(&self, done: &AtomicBool) -> Result<(), String> {
        while !done.load(Ordering::SeqCst) {
            let count = self.disk.length() / SECTOR;
            let Some(all) = self.read(0, count) else { continue };
            for (sector, bytes) in (0..).zip(all.chunks(512)) {
                if stamped(sector, bytes).is_none() && bytes != (self.bare)(sector) {
                    return Err(format!("sector {sector} is foreign: {:?}", &bytes[..8]));
                }
            }
        }
        Ok(())
    }

    /// Guests and a reader go on while `point` is passed again and again. What went wrong, if anything did.
    fn run(&self, fault: Option<Fault>, times: u64, point: impl Fn(u64, &Points)) -> Result<(), String> {
        let done = AtomicBool::new(false);
        let start = Barrier::new(usize::try_from(GUESTS + 1).unwrap());
        std::thread::scope(|scope| {
            let (done, start) = (&done, &start);
            let guests: Vec<_> = (0..GUESTS)
                .map(|number| scope.spawn(move || with(fault, || self.guest(number, start, done))))
                .collect();
            start.wait();
            let reader = scope.spawn(|| self.look(done));
            for round in 0..times {
                point(round, &self.points);
                std::thread::yield_now();
            }
            done.store(true, Ordering::SeqCst);
            let results: Vec<_> = guests
                .into_iter()
                .chain([reader])
                .map(std::thread::ScopedJoinHandle::join)
                .collect();
            results.into_iter().try_for_each(|result| result.unwrap())
        })
    }
}

fn of_backing(sector: u64) -> Vec<u8> {
    (sector * SECTOR..(sector + 1) * SECTOR).map(base_byte).collect()
}

/// Every other write waits a little before it takes effect, so that others overtake it.
fn shuffled(sim: &SimDisk) {
    let turn = AtomicU64::new(0);
    sim.on_call(move |call| {
        if call.kind() == CallKind::Write && turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            std::thread::yield_now();
        }
    });
}

fn emptied_under_guests(fault: Option<Fault>, times: u64) -> Result<(), String> {
    let sim = overlay(12 * G, 12 * G);
    sim.put(IMAGE, &vec![0xee; usize::try_from(12 * G).unwrap()]);
    shuffled(&sim);
    let disk = open(&sim);
    let arena = Arena {
        disk: &disk,
        points: Points::default(),
        stays: 0,
        sectors: 12 * PER_GRANULE,
        bare: of_backing,
    };
    arena.run(fault, times, |_, points| {
        points.pass(|| disk.make_empty().unwrap());
    })?;
    assert_eq!(arena.points.returned(), times);
    disk.make_empty().unwrap();
    assert_same(&read_all(&disk), &base(12 * G));
    Ok(())
}

#[test]
fn emptying_takes_what_was_written_before_and_nothing_else() {
    emptied_under_guests(None, 60).unwrap();
}

#[test]
fn guests_that_copy_the_backing_over_each_other_while_a_disk_is_emptied_are_seen() {
    assert!((0..40).any(|_| emptied_under_guests(Some(Fault::NoSecondLook), 60).is_err()));
}

/// A guest writes to a granule that was taken out, just when the image's space is given back.
fn keeps_what_comes_while_space_is_freed(fault: Option<Fault>) -> bool {
    let sim = overlay(4 * G, 4 * G);
    let disk = Arc::new(open(&sim));
    write(&disk, 0xf0, 0, 4 * G);
    let weak = Arc::downgrade(&disk);
    let writer = Arc::new(Mutex::new(None));
    let begun = Arc::clone(&writer);
    sim.on_call(move |call| {
        let of_image = call.names().any(|name| name.to_str() == Some(IMAGE));
        let mut begun = begun.lock().unwrap();
        if call.kind() != CallKind::WriteZeroes || !of_image || begun.is_some() {
            return;
        }
        let disk = weak.upgrade().unwrap();
        let (done, is_done) = mpsc::channel();
        *begun = Some(std::thread::spawn(move || {
            write(&disk, 0xcc, G + 5, 10);
            let _ = done.send(());
        }));
        drop(begun);
        if fault.is_some() {
            // Nothing keeps it: it has returned when the space is freed.
            is_done.recv().unwrap();
        } else {
            // It waits for the granule, however long that takes.
            let _ = is_done.recv_timeout(Duration::from_millis(50));
        }
    });
    with(fault, || disk.make_empty()).unwrap();
    let writer = writer.lock().unwrap().take().expect("space was given back");
    writer.join().unwrap();
    let mut content = base(4 * G);
    content[usize::try_from(G + 5).unwrap()..][..10].fill(0xcc);
    read_all(&disk) == content
}

#[test]
fn an_emptied_disk_gives_space_back_while_guests_write() {
    assert!(keeps_what_comes_while_space_is_freed(None));
}

#[test]
fn space_of_an_emptied_disk_that_is_given_back_under_a_writer_is_seen() {
    assert!(!keeps_what_comes_while_space_is_freed(Some(
        Fault::FreedUnclaimed
    )));
}

/// What stays ends within a granule, and the backing is longer.
const STAYS: u64 = 8 * G + 3 * SECTOR;

fn resized_under_guests(growing: Option<Fault>, guests: Option<Fault>) -> Result<(), String> {
    let sim = overlay(STAYS, 20 * G);
    sim.put(IMAGE, &vec![0xee; usize::try_from(STAYS).unwrap()]);
    shuffled(&sim);
    let disk = open(&sim);
    let lengths = [9 * G, 12 * G + SECTOR, 24 * G, STAYS + SECTOR];
    let grow = |round: u64| {
        let length = lengths[usize::try_from(round).unwrap() % lengths.len()];
        with(growing, || disk.truncate(length, TruncateFlags::empty())).unwrap();
    };
    let arena = Arena {
        disk: &disk,
        points: Points::default(),
        stays: STAYS / SECTOR,
        sectors: 24 * PER_GRANULE,
        bare: |sector| match sector * SECTOR {
            ..STAYS => of_backing(sector),
            _ => vec![0; 512],
        },
    };
    grow(2);
    arena.run(guests, 60, |round, points| {
        points.pass(|| disk.truncate(STAYS, TruncateFlags::SHRINK).unwrap());
        grow(round);
    })
}

#[test]
fn a_disk_that_is_cut_and_grows_takes_what_was_cut_and_nothing_else() {
    resized_under_guests(None, None).unwrap();
}

#[test]
fn a_tail_that_is_left_to_the_backing_is_seen_by_guests() {
    assert!(resized_under_guests(Some(Fault::TailLeftToBacking), None).is_err());
}

#[test]
fn guests_that_copy_over_each_other_while_a_disk_is_resized_are_seen() {
    assert!((0..40).any(|_| resized_under_guests(None, Some(Fault::NoSecondLook)).is_err()));
}

//! What was done to the disk, with the place that the log had reached before and after each step.

#[path = "judge.rs"]
mod judge;

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use qbm::{Disk, OpenOptions, Thaw, WriteFlags};

use super::overlay::{self, Change};
use super::random::Random;
use super::record::Recorder;
use super::units::{self, BITMAPS, UNIT, UNITS, bits_of, content, path};
use super::unsynced;

const WRITERS: u64 = 3;
/// In units. Each third belongs to one writer, so that the granules belong to all, and the units to one each.
const STRIPE: u64 = 24;
const STEPS: usize = 120;

/// What is worked on, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub overlay: bool,
    /// The syncs of this file are left out. There are writes and flushes only, as the file must stay the same.
    pub unsynced: Option<&'static str>,
}

#[derive(Clone)]
struct Write {
    units: Range<usize>,
    /// Zero is a hole.
    value: u64,
    flags: WriteFlags,
    /// The place in the log that it is durable before, by itself.
    durable: u64,
}

impl Write {
    fn new(units: Range<usize>, value: u64) -> Self {
        Self {
            units,
            value,
            flags: WriteFlags::empty(),
            durable: u64::MAX,
        }
    }

    fn make(&mut self, disk: &Disk, recorder: &Recorder) {
        let (offset, units) = (self.units.start as u64 * UNIT, self.units.len() as u64);
        let written = match self.value {
            0 => disk.write_zeroes(offset, units * UNIT, self.flags | WriteFlags::MAY_UNMAP),
            value => disk.write(&content(value, units), offset, self.flags),
        };
        written.expect("a write");
        if self.flags.contains(WriteFlags::FUA) {
            self.durable = recorder.position();
        }
    }
}

enum Act {
    Writes(Vec<Write>),
    /// All that was written before is durable when it ends.
    Flush,
    /// The same, and the bitmap starts at a new point; or it is removed.
    Start {
        bitmap: usize,
        point: Point,
    },
    /// The same, and the disk shows this: what is below it.
    Empty(Vec<u64>),
    /// The same, and the disk is not open.
    Close {
        bits: Vec<Option<Vec<bool>>>,
    },
}

/// From which a bitmap knows what changed.
#[derive(Clone)]
struct Point {
    /// `None` where there is no bitmap.
    epoch: Option<String>,
    units: Vec<u64>,
    /// How many steps came before it.
    since: usize,
}

struct Step {
    /// Nothing of it is before this place in the log.
    began: u64,
    /// And nothing behind this one.
    ended: u64,
    act: Act,
    /// What the disk is on when it has ended.
    backing: Option<String>,
}

pub struct History {
    plan: Plan,
    /// The disk was there.
    pub start: u64,
    steps: Vec<Step>,
    first: [Point; BITMAPS.len()],
    /// What the disk was on.
    backing: Option<String>,
}

/// The disk at work.
struct Work<'r> {
    plan: Plan,
    recorder: &'r Recorder,
    steps: Vec<Step>,
    units: Vec<u64>,
    /// What the disk showed, and how many steps there were.
    frozen: [Option<(Vec<u64>, usize)>; BITMAPS.len()],
    present: [bool; BITMAPS.len()],
    value: u64,
    snapshots: u64,
    backing: Option<String>,
}

fn epoch(disk: &Disk, bitmap: usize) -> Option<String> {
    let list = disk.bitmap_list().expect("the bitmaps");
    list.into_iter()
        .find(|it| it.name == BITMAPS[bitmap].name)
        .and_then(|it| it.epoch)
}

fn backing(disk: &Disk) -> Option<String> {
    overlay::backing(disk).map(|it| it.file)
}

impl Plan {
    pub fn create(self, folder: &Path) {
        if self.overlay {
            overlay::create(folder);
        } else {
            units::create(folder);
        }
    }

    /// What the new disk shows.
    fn first(self) -> Vec<u64> {
        if self.overlay {
            overlay::base()
        } else {
            vec![0; usize::try_from(UNITS).expect("a length")]
        }
    }
}

impl History {
    /// Between which places in the log the disk was closed.
    pub fn closes(&self) -> impl Iterator<Item = (u64, u64)> {
        let is_close = |step: &&Step| matches!(step.act, Act::Close { .. });
        self.steps
            .iter()
            .filter(is_close)
            .map(|step| (step.began, step.ended))
    }

    /// Works on the new disk in the recorder's folder. An error where a sync cannot be left out.
    pub fn make(recorder: &Recorder, plan: Plan, random: &mut Random) -> Result<Self, String> {
        let options = OpenOptions::new().retire_interval(Duration::from_millis(1));
        let open = || options.open(path(recorder.folder())).expect("it opens");
        let start = recorder.position();
        let mut disk = open();
        if let Some(file) = plan.unsynced {
            unsynced::leave_out(&recorder.folder().join(file))?;
        }
        let units = plan.first();
        let first = std::array::from_fn(|bitmap| Point {
            epoch: epoch(&disk, bitmap),
            units: units.clone(),
            since: 0,
        });
        let mut work = Work {
            plan,
            recorder,
            steps: Vec::new(),
            units,
            frozen: [const { None }; BITMAPS.len()],
            present: [true; BITMAPS.len()],
            value: 0,
            snapshots: 0,
            backing: backing(&disk),
        };
        let before = work.backing.clone();
        for _ in 0..STEPS {
            match random.below(20) {
                0..=10 => work.write(&disk, random),
                11 | 12 => work.step(|_| {
                    disk.flush().expect("a flush");
                    Act::Flush
                }),
                _ if plan.unsynced.is_some() => {}
                13..=15 if plan.overlay => work.rearrange(&disk, random),
                13..=18 => work.operate(&disk, random),
                _ => {
                    work.close(disk, !random.one_in(4));
                    // So that some cuts find a disk at rest.
                    std::thread::sleep(Duration::from_millis(random.below(50)));
                    disk = open();
                }
            }
        }
        if plan.unsynced.is_none() {
            work.close(disk, true);
        } else {
            disk.close().expect("it closes");
        }
        Ok(Self {
            plan,
            start,
            steps: work.steps,
            first,
            backing: before,
        })
    }
}

impl Work<'_> {
    fn step(&mut self, act: impl FnOnce(&mut Self) -> Act) {
        let began = self.recorder.position();
        let act = act(self);
        let ended = self.recorder.position();
        self.steps.push(Step {
            began,
            ended,
            act,
            backing: self.backing.clone(),
        });
    }

    fn close(&mut self, disk: Disk, in_place: bool) {
        for bitmap in disk.bitmap_list().expect("the bitmaps") {
            if bitmap.busy {
                disk.bitmap_thaw(&bitmap.name, Thaw::Rollback).expect("a thaw");
            }
        }
        self.frozen.fill(None);
        if in_place {
            self.write_in_place(&disk);
        }
        let bits = BITMAPS.iter().map(|kind| bits_of(&disk, kind)).collect();
        self.step(|_| {
            disk.close().expect("it closes");
            Act::Close { bits }
        });
    }

    /// Some writes by each of the writers at the same time; sometimes with flushes beside them, which promise nothing
    /// of these writes, but retire regions under them; or with a change of the structure, which the guest does not see.
    fn write(&mut self, disk: &Disk, random: &mut Random) {
        let mut parts: Vec<Vec<Write>> = Vec::new();
        for writer in 0..WRITERS {
            let mut writes = Vec::new();
            // Mostly near each other, as guests do.
            let home = random.below(UNITS / STRIPE / WRITERS);
            for _ in 0..=random.below(6) {
                let place = if random.one_in(4) {
                    random.below(UNITS / STRIPE / WRITERS)
                } else {
                    home
                };
                let stripe = (place * WRITERS + writer) * STRIPE;
                let first = random.below(STRIPE);
                let len = 1 + random.below(STRIPE - first);
                self.value += 1;
                let small = |number| usize::try_from(number).expect("a small disk");
                let value = if random.one_in(8) { 0 } else { self.value };
                let units = small(stripe + first)..small(stripe + first + len);
                let mut write = Write::new(units, value);
                // Not where a sync is left out: this one the filter does not know.
                if self.plan.unsynced.is_none() && random.one_in(6) {
                    write.flags = WriteFlags::FUA;
                }
                writes.push(write);
            }
            parts.push(writes);
        }
        let flushes = if random.one_in(2) { 3 } else { 0 };
        let changes = self.plan.overlay && self.plan.unsynced.is_none() && random.one_in(3);
        let change = changes.then(|| Change::choose(disk, &mut self.snapshots, random));
        let recorder = self.recorder;
        self.step(|work| {
            std::thread::scope(|scope| {
                if let Some(change) = &change {
                    scope.spawn(|| change.make(disk));
                }
                for _ in 0..flushes {
                    scope.spawn(|| disk.flush().expect("a flush"));
                }
                for writes in &mut parts {
                    scope.spawn(move || {
                        for write in writes {
                            write.make(disk, recorder);
                        }
                    });
                }
            });
            work.backing = backing(disk);
            let writes = parts.concat();
            for write in &writes {
                work.units[write.units.clone()].fill(write.value);
            }
            Act::Writes(writes)
        });
    }

    /// A write that leaves nothing behind but content and a time: its place is there, in the image and in the bitmaps, and its
    /// region is retired.
    fn write_in_place(&mut self, disk: &Disk) {
        self.write_first(disk);
        self.step(|_| {
            for _ in 0..3 {
                disk.flush().expect("a flush");
                std::thread::sleep(Duration::from_millis(2));
            }
            Act::Flush
        });
        self.write_first(disk);
    }

    fn write_first(&mut self, disk: &Disk) {
        self.value += 1;
        let mut write = Write::new(0..1, self.value);
        self.step(|work| {
            write.make(disk, work.recorder);
            work.units[0] = write.value;
            Act::Writes(vec![write])
        });
    }

    fn rearrange(&mut self, disk: &Disk, random: &mut Random) {
        if random.one_in(3) {
            let below = overlay::below(self.recorder.folder(), disk);
            self.step(|work| {
                disk.make_empty().expect("an empty disk");
                work.units.clone_from(&below);
                Act::Empty(below)
            });
        } else {
            let change = Change::choose(disk, &mut self.snapshots, random);
            self.step(|work| {
                change.make(disk);
                work.backing = backing(disk);
                Act::Flush
            });
        }
    }

    fn operate(&mut self, disk: &Disk, random: &mut Random) {
        let bitmap = usize::try_from(random.below(BITMAPS.len() as u64)).expect("an index");
        let kind = &BITMAPS[bitmap];
        let (name, now) = (kind.name, (self.units.clone(), self.steps.len()));
        let start = |(units, since)| Act::Start {
            bitmap,
            point: Point {
                epoch: epoch(disk, bitmap),
                units,
                since,
            },
        };
        self.step(|work| {
            if !work.present[bitmap] {
                disk.bitmap_add(name, kind.options()).expect("a bitmap");
                work.present[bitmap] = true;
                return start(now);
            }
            match (work.frozen[bitmap].take(), random.below(4)) {
                (Some(then), 0..=2) => {
                    disk.bitmap_thaw(name, Thaw::Commit).expect("a thaw");
                    start(then)
                }
                (Some(_), _) => {
                    disk.bitmap_thaw(name, Thaw::Rollback).expect("a thaw");
                    Act::Writes(Vec::new())
                }
                (None, 0) if kind.comes_and_goes => {
                    disk.bitmap_remove(name).expect("no bitmap");
                    work.present[bitmap] = false;
                    start(now)
                }
                (None, 0 | 1) => {
                    disk.bitmap_clear(name).expect("no bits");
                    start(now)
                }
                (None, _) => {
                    disk.bitmap_freeze(name).expect("a freeze");
                    work.frozen[bitmap] = Some(now);
                    Act::Flush
                }
            }
        });
    }
}

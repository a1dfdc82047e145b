//! What was done to the disk, with the place that the log had reached before and after each step; and what may then be
//! on the disk at any place of the log.

use std::ops::Range;
use std::time::Duration;

use qbm::{Disk, OpenOptions, Thaw, WriteFlags};

use super::random::Random;
use super::record::Recorder;
use super::units::{BITMAPS, UNIT, UNITS, bits_of, content, path, units_of};

const WRITERS: u64 = 3;
/// In units. Each third belongs to one writer, so that the granules belong to all, and the units to one each.
const STRIPE: u64 = 24;

#[derive(Clone)]
struct Write {
    units: Range<usize>,
    value: u64,
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
}

struct Step {
    /// Nothing of it is before this place in the log.
    began: u64,
    /// And nothing behind this one.
    ended: u64,
    act: Act,
}

pub struct History {
    /// The disk was there.
    pub start: u64,
    steps: Vec<Step>,
    first: [Point; BITMAPS.len()],
}

/// The disk at work.
struct Work<'r> {
    recorder: &'r Recorder,
    steps: Vec<Step>,
    units: Vec<u64>,
    frozen: [Option<Vec<u64>>; BITMAPS.len()],
    present: [bool; BITMAPS.len()],
    value: u64,
}

fn epoch(disk: &Disk, bitmap: usize) -> Option<String> {
    let list = disk.bitmap_list().expect("the bitmaps");
    list.into_iter()
        .find(|it| it.name == BITMAPS[bitmap].name)
        .and_then(|it| it.epoch)
}

impl History {
    /// Takes so many steps on the new disk in the recorder's folder.
    pub fn make(recorder: &Recorder, steps: usize, random: &mut Random) -> Self {
        let options = OpenOptions::new().retire_interval(Duration::from_millis(1));
        let open = || options.open(path(recorder.folder())).expect("it opens");
        let start = recorder.position();
        let mut disk = open();
        let units = vec![0; usize::try_from(UNITS).expect("a length")];
        let first = std::array::from_fn(|bitmap| Point {
            epoch: epoch(&disk, bitmap),
            units: units.clone(),
        });
        let mut work = Work {
            recorder,
            steps: Vec::new(),
            units,
            frozen: [const { None }; BITMAPS.len()],
            present: [true; BITMAPS.len()],
            value: 0,
        };
        for _ in 0..steps {
            match random.below(20) {
                0..=10 => work.write(&disk, random),
                11..=13 => work.step(|_| {
                    disk.flush().expect("a flush");
                    Act::Flush
                }),
                14..=18 => work.operate(&disk, random),
                _ => {
                    let bits = BITMAPS.iter().map(|kind| {
                        let list = disk.bitmap_list().expect("the bitmaps");
                        let frozen = list.iter().any(|it| it.name == kind.name && it.busy);
                        if frozen {
                            disk.bitmap_thaw(kind.name, Thaw::Rollback).expect("a thaw");
                        }
                        bits_of(&disk, kind)
                    });
                    let bits = bits.collect();
                    work.frozen.fill(None);
                    work.step(|_| {
                        disk.close().expect("it closes");
                        Act::Close { bits }
                    });
                    // So that some cuts find a disk at rest.
                    std::thread::sleep(Duration::from_millis(random.below(50)));
                    disk = open();
                }
            }
        }
        disk.close().expect("it closes");
        Self {
            start,
            steps: work.steps,
            first,
        }
    }
}

impl Work<'_> {
    fn step(&mut self, act: impl FnOnce(&mut Self) -> Act) {
        let began = self.recorder.position();
        let act = act(self);
        let ended = self.recorder.position();
        self.steps.push(Step { began, ended, act });
    }

    /// Some writes by each of the writers at the same time; sometimes with flushes beside them, which promise nothing
    /// of these writes, but retire regions under them.
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
                writes.push(Write {
                    units: small(stripe + first)..small(stripe + first + len),
                    value: self.value,
                });
            }
            parts.push(writes);
        }
        let flushes = if random.one_in(2) { 3 } else { 0 };
        self.step(|work| {
            std::thread::scope(|scope| {
                for _ in 0..flushes {
                    scope.spawn(|| disk.flush().expect("a flush"));
                }
                for writes in &parts {
                    scope.spawn(move || {
                        for write in writes {
                            let bytes = content(write.value, write.units.len() as u64);
                            let offset = write.units.start as u64 * UNIT;
                            disk.write(&bytes, offset, WriteFlags::empty()).expect("a write");
                        }
                    });
                }
            });
            let writes = parts.concat();
            for write in &writes {
                work.units[write.units.clone()].fill(write.value);
            }
            Act::Writes(writes)
        });
    }

    fn operate(&mut self, disk: &Disk, random: &mut Random) {
        let bitmap = usize::try_from(random.below(BITMAPS.len() as u64)).expect("an index");
        let kind = &BITMAPS[bitmap];
        let (name, now) = (kind.name, self.units.clone());
        let start = |units| Act::Start {
            bitmap,
            point: Point {
                epoch: epoch(disk, bitmap),
                units,
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

impl Act {
    fn flushes(&self) -> bool {
        // Removing a bitmap promises nothing of the data.
        match self {
            Self::Writes(_) => false,
            Self::Start { point, .. } => point.epoch.is_some(),
            Self::Flush | Self::Close { .. } => true,
        }
    }
}

impl History {
    /// What is wrong with a disk whose power was cut when the log had got to `cut`.
    pub fn check(&self, disk: &Disk, cut: u64) -> Result<(), String> {
        let units = units_of(disk);
        let begun = self.steps.partition_point(|step| step.began <= cut);
        let steps = &self.steps[..begun];
        self.check_flushed(steps, &units, cut)?;
        for (bitmap, kind) in BITMAPS.iter().enumerate() {
            let bits = bits_of(disk, kind);
            let point = self.point(bitmap, steps, epoch(disk, bitmap).as_deref(), cut)?;
            let Some(bits) = bits else { continue };
            let granule = usize::try_from(kind.granularity / UNIT).expect("a granule");
            for (unit, (now, then)) in units.iter().zip(&point.units).enumerate() {
                if now != then && !bits[unit / granule] {
                    return Err(format!(
                        "D1: {:?} lacks the bit of unit {unit}: {now:#x}, and at its start {then:#x}",
                        kind.name
                    ));
                }
            }
        }
        if let Some(Step {
            ended,
            act: Act::Close { bits },
            ..
        }) = steps.last()
            && *ended <= cut
        {
            let recovery = disk.info().expect("facts").recovery;
            if recovery.is_some() {
                // The next open, which is no step, may have begun: but it has changed nothing yet.
                return Err(format!("D2: it was closed, and yet recovered: {recovery:?}"));
            }
            let found: Vec<_> = BITMAPS.iter().map(|kind| bits_of(disk, kind)).collect();
            if found != *bits {
                return Err("D2: other bits than before the close".to_owned());
            }
        }
        Ok(())
    }

    /// A2: all that was flushed is there, or what was written since.
    fn check_flushed(&self, steps: &[Step], units: &[u64], cut: u64) -> Result<(), String> {
        let flushed = steps
            .iter()
            .rposition(|step| step.act.flushes() && step.ended <= cut);
        let flushed = flushed.map_or(0, |it| it + 1);
        let mut expected = self.first[0].units.clone();
        let writes = |step: &Step| match &step.act {
            Act::Writes(writes) => writes.clone(),
            _ => Vec::new(),
        };
        for write in steps[..flushed].iter().flat_map(writes) {
            expected[write.units].fill(write.value);
        }
        let mut allowed: Vec<Vec<u64>> = expected.iter().map(|value| vec![*value]).collect();
        for write in steps[flushed..].iter().flat_map(writes) {
            allowed[write.units]
                .iter_mut()
                .for_each(|values| values.push(write.value));
        }
        for (unit, (found, allowed)) in units.iter().zip(&allowed).enumerate() {
            if !allowed.contains(found) {
                return Err(format!(
                    "A2: unit {unit} holds {found:#x}, not one of {allowed:x?}"
                ));
            }
        }
        Ok(())
    }

    /// M1: the point that a bitmap starts from is the last that was durable, or one that was on its way.
    fn point(&self, bitmap: usize, steps: &[Step], epoch: Option<&str>, cut: u64) -> Result<&Point, String> {
        let mut possible = vec![&self.first[bitmap]];
        for (index, step) in steps.iter().enumerate() {
            if let Act::Start { bitmap: it, .. } = &step.act
                && *it == bitmap
            {
                if step.ended <= cut {
                    possible.clear();
                }
                if let Act::Start { point, .. } = &self.steps[index].act {
                    possible.push(point);
                }
            }
        }
        let found = possible
            .iter()
            .rev()
            .find(|point| point.epoch.as_deref() == epoch);
        found.copied().ok_or_else(|| {
            let epochs: Vec<_> = possible.iter().map(|point| &point.epoch).collect();
            format!(
                "M1: {:?} starts at {epoch:?}, not at one of {epochs:?}",
                BITMAPS[bitmap].name
            )
        })
    }
}

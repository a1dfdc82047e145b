//! What is to be found on a disk after a kill.
//!
//! Of two writes to a unit at the same time
//! either may be the last; one that was on its way may be there or not. So a check asks whether anything that may have
//! happened explains what is there: A3 for the content, D1 and D2 for the bits, M1 for the starting points.

use std::path::Path;

use qbm::{CreateOptions, Disk};

use super::log::{Act, Event};
pub use super::units::{Active, BITMAPS, LENGTH, UNIT, UNITS, path};
use super::units::{REGION, add_bitmaps, bits_of, create, create_overlay, units_of};

/// What the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape<'d> {
    Raw,
    /// With this block device, which is as long and empty, as its image.
    Device(&'d Path),
    /// Over a backing that is full of numbers, with an image that is full of others' bytes.
    Overlay,
}

impl Shape<'_> {
    /// A new disk of this shape.
    pub fn create(self, folder: &Path) {
        match self {
            Self::Raw => create(folder),
            Self::Device(device) => {
                CreateOptions::new()
                    .image(device.to_str().expect("a name"))
                    .region_bytes(REGION)
                    .create(path(folder))
                    .expect("a disk");
                add_bitmaps(folder);
            }
            Self::Overlay => create_overlay(folder, 4 << 10, &Found::new(self).units),
        }
    }

    /// The number that a unit of a new disk is full of.
    fn unit(self, number: u64) -> u64 {
        match self {
            Self::Raw | Self::Device(_) => 0,
            Self::Overlay => number | 0xba5e << 48,
        }
    }
}

/// What is on a disk.
pub struct Found {
    /// The number that each unit is full of.
    pub units: Vec<u64>,
    /// Of each bitmap whether each granule is dirty; `None` where there is no such bitmap.
    pub bits: [Option<Vec<bool>>; BITMAPS.len()],
}

impl Found {
    /// What a new disk has.
    pub fn new(shape: Shape<'_>) -> Self {
        Self {
            units: (0..UNITS).map(|number| shape.unit(number)).collect(),
            bits: BITMAPS.map(|it| {
                Some(vec![
                    false;
                    usize::try_from(LENGTH / it.granularity).expect("a length")
                ])
            }),
        }
    }

    pub fn on(disk: &Disk) -> Self {
        Self {
            units: units_of(disk),
            bits: BITMAPS.map(|kind| bits_of(disk, &kind)),
        }
    }
}

/// How precise the bits have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// None without a write.
    Exact,
    /// Beyond that these regions, as the intent map had them before the open, may count as changed.
    Regions(Active),
}

impl Precision {
    /// Whether there may be a bit without a write at this place.
    fn excuses(self, offset: u64) -> bool {
        match self {
            Self::Exact => false,
            Self::Regions(active) => active.has(offset),
        }
    }
}

/// Holds what was found against what was there before and what a process says to have done since.
pub fn check(before: &Found, events: &[Event], found: &Found, precision: Precision) -> Result<(), String> {
    let mut writes: Vec<Vec<&Event>> = vec![Vec::new(); before.units.len()];
    for event in events {
        if let Act::Write { first, units, .. } = event.act {
            for unit in &mut writes[first as usize..(first + units) as usize] {
                unit.push(event);
            }
        }
    }
    let causes: Vec<Causes<'_>> = writes
        .iter()
        .enumerate()
        .map(|(unit, writes)| Causes::of(unit, before.units[unit], writes, found.units[unit]))
        .collect::<Result<_, _>>()?;
    for (number, kind) in BITMAPS.iter().enumerate() {
        let pasts = pasts(number, before.bits[number].is_some(), events);
        let wrong: Vec<String> = pasts
            .iter()
            .filter_map(|past| past.differs(number, before, &causes, found, precision))
            .collect();
        if wrong.len() == pasts.len() {
            return Err(format!("bitmap {:?}: {}", kind.name, wrong.join("; or else: ")));
        }
    }
    Ok(())
}

/// What has been done to one unit, and what of it explains what it holds.
struct Causes<'e> {
    writes: &'e [&'e Event],
    /// It holds what it held before, and may.
    untouched: bool,
    /// These may have been the last.
    last: Vec<&'e Event>,
}

impl<'e> Causes<'e> {
    fn of(unit: usize, before: u64, writes: &'e [&'e Event], found: u64) -> Result<Self, String> {
        let untouched = before == found && writes.iter().all(|write| write.ended.is_none());
        let latest = writes
            .iter()
            .filter(|it| it.ended.is_some())
            .map(|it| it.began)
            .max();
        let last: Vec<_> = writes
            .iter()
            .copied()
            .filter(|write| matches!(write.act, Act::Write { value, .. } if value == found))
            // Not where another one began after its end, and ended.
            .filter(|write| {
                write
                    .ended
                    .is_none_or(|end| latest.is_none_or(|began| began <= end))
            })
            .collect();
        if !untouched && last.is_empty() {
            return Err(format!(
                "A3: unit {unit} holds {found:#x}, before {before:#x}, since {writes:x?}"
            ));
        }
        Ok(Self {
            writes,
            untouched,
            last,
        })
    }
}

/// A point from which a bitmap may know what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// There is no such bitmap.
    None,
    /// Its bits of before count, too.
    Before,
    /// It starts between these two moments.
    Since(u64, u64),
}

/// What may have become of a bitmap: one thing, or two where an operation was on its way (M1).
fn pasts(number: usize, present: bool, events: &[Event]) -> Vec<Past> {
    let mut now = if present { Past::Before } else { Past::None };
    let mut frozen = None;
    for event in events {
        let here = Past::Since(event.began, event.ended.unwrap_or(u64::MAX));
        let ours = |bitmap: u32| bitmap as usize == number;
        let next = match event.act {
            Act::Clear(bitmap) | Act::Add(bitmap) if ours(bitmap) => here,
            Act::Remove(bitmap) if ours(bitmap) => Past::None,
            Act::Freeze(bitmap) if ours(bitmap) => {
                frozen = Some(here);
                continue;
            }
            Act::ThawCommit(bitmap) if ours(bitmap) => frozen.take().expect("frozen before"),
            Act::ThawRollback(bitmap) if ours(bitmap) => {
                frozen = None;
                continue;
            }
            _ => continue,
        };
        if event.ended.is_none() {
            return vec![now, next];
        }
        now = next;
    }
    vec![now]
}

impl Past {
    /// In what way the bitmap is not one with this past.
    fn differs(
        self,
        number: usize,
        before: &Found,
        causes: &[Causes<'_>],
        found: &Found,
        precision: Precision,
    ) -> Option<String> {
        let bits = match (self, &found.bits[number]) {
            (Self::None, None) => return None,
            (Self::None, Some(_)) => return Some("it was removed, and is there".to_owned()),
            (_, None) => return Some(format!("it is not there ({self:?})")),
            (_, Some(bits)) => bits,
        };
        let granule = usize::try_from(BITMAPS[number].granularity / UNIT).expect("a granule");
        for (index, (bit, causes)) in bits.iter().zip(causes.chunks_exact(granule)).enumerate() {
            let kept = self == Self::Before && before.bits[number].as_ref().is_some_and(|bits| bits[index]);
            let may = kept || causes.iter().any(|unit| self.may_know(unit));
            let must = kept || causes.iter().any(|unit| self.must_know(unit));
            if must && !bit {
                return Some(format!("D1: granule {index} lacks its bit ({self:?})"));
            }
            if *bit && !may && !precision.excuses(index as u64 * BITMAPS[number].granularity) {
                return Some(format!(
                    "D2: granule {index} has a bit without a write ({self:?})"
                ));
            }
        }
        None
    }

    fn may_know(self, unit: &Causes<'_>) -> bool {
        unit.writes.iter().any(|write| match self {
            Self::Since(earliest, _) => write.ended.is_none_or(|end| end > earliest),
            _ => true,
        })
    }

    fn must_know(self, unit: &Causes<'_>) -> bool {
        let after = |write: &&Event| match self {
            Self::Since(_, latest) => write.began > latest,
            _ => true,
        };
        // A write that has ended; or one that was on its way and is the only explanation of what is there.
        unit.writes
            .iter()
            .any(|write| write.ended.is_some() && after(write))
            || !unit.untouched && unit.last.iter().all(after)
    }
}

//! What may be on the disk after a power cut at any place of the log.

use std::collections::BTreeSet;

use qbm::Disk;

use super::{Act, History, Point, Step, backing, epoch};
use crate::units::{Active, BITMAPS, UNIT, bits_of, units_of};

impl Act {
    fn flushes(&self) -> bool {
        // Removing a bitmap promises nothing of the data.
        match self {
            Self::Writes(_) => false,
            Self::Start { point, .. } => point.epoch.is_some(),
            Self::Flush | Self::Empty(_) | Self::Close { .. } => true,
        }
    }
}

/// The granules, of so many units, that were written to.
fn written(steps: &[Step], granule: usize) -> BTreeSet<usize> {
    let writes = steps.iter().filter_map(|step| match &step.act {
        Act::Writes(writes) => Some(writes),
        _ => None,
    });
    writes
        .flatten()
        .flat_map(|write| write.units.start / granule..write.units.end.div_ceil(granule))
        .collect()
}

impl History {
    /// What is wrong with a disk whose power was cut when the log had got to `cut`, and which had these regions active then.
    pub fn check(&self, disk: &Disk, active: Active, cut: u64) -> Result<(), String> {
        let list = disk.bitmap_list().expect("the bitmaps");
        if let Some(it) = list.iter().find(|it| it.inconsistent) {
            return Err(format!("D2: nobody wrote behind its back, and yet {it:?}"));
        }
        let units = units_of(disk);
        let begun = self.steps.partition_point(|step| step.began < cut);
        let steps = &self.steps[..begun];
        self.check_content(steps, &units, cut)?;
        self.check_bits(steps, &units, active, disk, cut)?;
        self.check_backing(steps, disk, cut)?;
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

    /// A2: all that was flushed is there, or what was written since. A1: nothing else was ever seen there.
    fn check_content(&self, steps: &[Step], units: &[u64], cut: u64) -> Result<(), String> {
        if let Some((last, before)) = steps.split_last()
            && let Act::Empty(below) = &last.act
            && last.ended > cut
        {
            // M1: all of it, or nothing.
            return if units == below {
                Ok(())
            } else {
                self.check_content(before, units, cut)
            };
        }
        let flushed = steps
            .iter()
            .rposition(|step| step.act.flushes() && step.ended <= cut);
        let flushed = flushed.map_or(0, |it| it + 1);
        let mut allowed: Vec<Vec<u64>> = self.first[0].units.iter().map(|value| vec![*value]).collect();
        let mut ever = allowed.clone();
        for (number, step) in steps.iter().enumerate() {
            match &step.act {
                Act::Writes(writes) => {
                    for write in writes {
                        for unit in write.units.clone() {
                            if number < flushed || write.durable <= cut {
                                allowed[unit].clear();
                            }
                            allowed[unit].push(write.value);
                            ever[unit].push(write.value);
                        }
                    }
                }
                Act::Empty(below) => {
                    for (unit, value) in below.iter().enumerate() {
                        allowed[unit] = vec![*value];
                        ever[unit].push(*value);
                    }
                }
                Act::Flush | Act::Start { .. } | Act::Close { .. } => {}
            }
        }
        for (unit, found) in units.iter().enumerate() {
            let (allowed, ever) = (&allowed[unit], &ever[unit]);
            if !ever.contains(found) {
                return Err(format!(
                    "A1: unit {unit} holds {found:#x}, and never had but {ever:x?}"
                ));
            }
            if !allowed.contains(found) {
                return Err(format!(
                    "A2: unit {unit} holds {found:#x}, not one of {allowed:x?}"
                ));
            }
        }
        Ok(())
    }

    /// D1: whatever differs from what it was where a bitmap starts has its bit. D2: and beyond what was written since, nothing
    /// but the regions that were active.
    fn check_bits(
        &self,
        steps: &[Step],
        units: &[u64],
        active: Active,
        disk: &Disk,
        cut: u64,
    ) -> Result<(), String> {
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
            // An overlay's bits are set by what another backing shows, too.
            if self.plan.overlay {
                continue;
            }
            let written = written(&steps[point.since..], granule);
            for (index, bit) in bits.iter().enumerate() {
                if *bit && !written.contains(&index) && !active.has(index as u64 * kind.granularity) {
                    return Err(format!(
                        "D2: {:?} has the bit of granule {index}, which nobody has written to, nor is its region active",
                        kind.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// M1: the disk is on the image that it was put on last, or on one that it was about to be put on.
    fn check_backing(&self, steps: &[Step], disk: &Disk, cut: u64) -> Result<(), String> {
        let ended = steps.iter().rev().find(|step| step.ended <= cut);
        let last = ended.map_or(&self.backing, |step| &step.backing);
        let begun = steps.last().map(|step| &step.backing);
        let found = backing(disk);
        if found == *last || Some(&found) == begun {
            return Ok(());
        }
        Err(format!(
            "M1: it is on {found:?}, not on {last:?}, nor on {begun:?}"
        ))
    }

    /// M1: the point that a bitmap starts from is the last that was durable, or one that was on its way.
    fn point<'h>(
        &'h self,
        bitmap: usize,
        steps: &'h [Step],
        epoch: Option<&str>,
        cut: u64,
    ) -> Result<&'h Point, String> {
        let mut possible = vec![&self.first[bitmap]];
        for step in steps {
            if let Act::Start { bitmap: it, point } = &step.act
                && *it == bitmap
            {
                if step.ended <= cut {
                    possible.clear();
                }
                possible.push(point);
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

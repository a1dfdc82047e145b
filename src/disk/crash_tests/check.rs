//! What must hold of a disk that is opened after a crash: D1, D2, A1, A2, A3 and M1 (docs/durability.md), held against the model.

use super::backup;
use super::kind::Kind;
use super::life::{INNER_STATE, NAME, REGION, STATE, bytes, view_of};
use super::model::{Moments, Seen, View, differing};
use crate::bitmap::BitmapPolicy;
use crate::disk::Disk;
use crate::state::{Found as StateFound, StateFile};
use crate::storage::simulated::{Keep, SimDisk};
use crate::storage::{Access, Role};

/// How the disk is opened after a crash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening<'a> {
    pub(super) kind: Kind,
    /// The page cache's epoch.
    pub(super) cache: &'a str,
    pub(super) writable: bool,
    /// Whether bits are judged: those of a disk without a state file promise nothing after a power cut.
    pub(super) bits: bool,
    /// Bytes in which bits too many are no fault, a bit for each 512 of them: what an earlier crash has added.
    pub(super) extra: u64,
}

/// What was found after a crash.
pub(super) struct Found {
    pub(super) disk: Disk,
    pub(super) content: Vec<u8>,
    pub(super) view: View,
    /// As [`Opening::extra`], of this crash.
    pub(super) extra: u64,
}

impl Moments<'_> {
    /// Opens what a crash has left, and holds it against what may be there. An error says what is wrong.
    pub(super) fn check(&self, state: &SimDisk, opening: Opening<'_>) -> Result<Found, String> {
        let before = state.events().len();
        let disk = opening
            .kind
            .options(state, opening.cache)
            .read_only(!opening.writable)
            .open(NAME)
            .map_err(|e| format!("M1: it does not open: {e}"))?;
        let mut content = vec![0; bytes(disk.length())];
        disk.read(&mut content, 0)
            .map_err(|e| format!("A1: it cannot be read: {e}"))?;
        let word = |name: &str| {
            let mut word = [0; 8];
            disk.bitmap_serialize(name, 0, &mut word)?;
            Ok(u64::from_le_bytes(word))
        };
        let view = view_of(&disk, word).map_err(|e| format!("D1: a bitmap cannot be read: {e}"))?;
        let bitmaps = disk.bitmap_list().unwrap_or_default();
        if let (Some(_), Some(lost)) = (opening.kind.inner, bitmaps.iter().find(|it| it.inconsistent)) {
            return Err(format!("D2: bitmap {:?} is inconsistent", lost.name));
        }
        self.check_shape(&view, opening.kind)?;
        if let Some(sector) = self.unexplained(&content) {
            return Err(format!(
                "A1, A2: sector {sector} is neither what was flushed nor newer: {:?}, {}",
                &content[sector * 512..][..4],
                self.explain(sector)
            ));
        }
        let mut extra = opening.extra;
        for (name, seen) in view.bitmaps.iter().filter(|_| opening.bits) {
            self.check_marks(name, seen)?;
            if seen.inconsistent {
                continue;
            }
            self.check_changes(name, seen, &content, view.length)?;
            self.check_backup(name, seen, &content, state)?;
            let (least, most) = self.bounds(name, seen);
            let whole = granules(view.length, seen.granularity);
            if least & whole & !seen.bits != 0 {
                return Err(format!(
                    "D1: bitmap {name:?} has lost granules {:b}",
                    least & whole & !seen.bits
                ));
            }
            let more = seen.bits & !most;
            if more == 0 || self.anything_failed() {
                continue;
            }
            let exact = self.killed && opening.kind.policy == BitmapPolicy::WriteThrough;
            if !exact && !opening.kind.stateless {
                extra |= active(state)?;
            }
            if more & !touched(extra, seen.granularity) != 0 {
                return Err(format!("D2: bitmap {name:?} has granules {more:b} too many"));
            }
        }
        if !opening.writable {
            check_untouched(state, before)?;
        }
        Ok(Found {
            disk,
            content,
            view,
            extra,
        })
    }

    /// M1: all of the old or all of the new.
    fn check_shape(&self, found: &View, kind: Kind) -> Result<(), String> {
        let shape = |view: &View| {
            let bitmaps = view.bitmaps.iter();
            let bitmaps =
                bitmaps.map(|(name, it)| (name.clone(), it.granularity, it.recording, it.epoch.clone()));
            bitmaps.collect::<Vec<_>>()
        };
        let known = |view: &View| shape(view) == shape(found);
        // Without a state file nobody knows that a length which was found may not be durable before the next flush.
        let length = found.length == self.before.length
            || found.length == self.after.length
            || (kind.stateless && self.was_found_at(found.length));
        if self.anything_failed() || (length && (known(self.before) || known(self.after))) {
            return Ok(());
        }
        Err(format!(
            "M1: neither the old nor the new: {found:?}\nthe old: {:?}\nthe new: {:?}",
            self.before, self.after
        ))
    }

    /// D1, D2: a bitmap is inconsistent where it was so before or behind the step in which the crash came, and not where it
    /// was sound in both.
    fn check_marks(&self, name: &str, found: &Seen) -> Result<(), String> {
        let same: Vec<_> = self.of_one_epoch(name, found).collect();
        if same.is_empty()
            || self.anything_failed()
            || same.iter().any(|it| it.inconsistent == found.inconsistent)
        {
            return Ok(());
        }
        Err(if found.inconsistent {
            format!("D2: bitmap {name:?} is inconsistent for no reason")
        } else {
            format!("D1: bitmap {name:?} was inconsistent and is not any more")
        })
    }

    /// What was reported of a bitmap that had the starting point of this one.
    fn of_one_epoch<'v>(&'v self, name: &'v str, found: &'v Seen) -> impl Iterator<Item = &'v Seen> {
        let views = [self.before, self.after];
        let same = views.into_iter().filter_map(move |view| view.bitmaps.get(name));
        same.filter(|it| it.epoch == found.epoch)
    }

    /// D1: every granule that differs from what it was at the starting point is dirty.
    fn check_changes(&self, name: &str, seen: &Seen, content: &[u8], length: u64) -> Result<(), String> {
        // One that does not record misses what comes; what it had is in the bounds.
        if !seen.recording {
            return Ok(());
        }
        let changed = self.changed(
            &content[..bytes(self.judged(length))],
            &seen.epoch,
            seen.granularity,
        )?;
        let missing = changed.iter().map(|bits| bits & !seen.bits);
        match missing.min_by_key(|bits| bits.count_ones()) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(format!(
                "D1: bitmap {name:?} lacks granules {missing:b} of {} bytes",
                seen.granularity
            )),
        }
    }

    /// D1: with every granule that is dirty copied over it, the backup at the starting point is the disk.
    fn check_backup(&self, name: &str, seen: &Seen, content: &[u8], state: &SimDisk) -> Result<(), String> {
        let Some(backup) = backup::taken_at(state, &seen.epoch).filter(|_| seen.recording) else {
            return Ok(());
        };
        let judged = bytes(self.judged(content.len() as u64)).min(backup.len());
        match differing(&content[..judged], &backup, bytes(seen.granularity)) & !seen.bits {
            0 => Ok(()),
            missing => Err(format!(
                "D1: bitmap {name:?} lacks granules {missing:b} that its backup has not"
            )),
        }
    }

    /// How much of a disk of `length` bytes is judged. A simulated file's length, and what is behind it, are lost and kept
    /// apart from each other. No file system does that, so a cut that is cut off is judged by what it was to leave.
    fn judged(&self, length: u64) -> u64 {
        let judged = self.after.length.min(length);
        if self.anything_failed() {
            self.before.length.min(judged)
        } else {
            judged
        }
    }

    /// The bits that a bitmap must have, and those that it may: by what was reported before and behind the step in which
    /// the crash came.
    fn bounds(&self, name: &str, found: &Seen) -> (u64, u64) {
        let same = self.of_one_epoch(name, found).filter(|it| !it.inconsistent);
        let same: Vec<_> = same.map(|it| it.bits).collect();
        if same.is_empty() {
            return (0, u64::MAX);
        }
        let least = same.iter().fold(u64::MAX, |all, bits| all & bits);
        (least, same.iter().fold(0, |all, bits| all | bits))
    }
}

/// An open that only reads has recovered in memory alone: behind so many calls, none has changed anything, nor made it durable.
fn check_untouched(state: &SimDisk, before: usize) -> Result<(), String> {
    let events = state.events();
    match events.iter().skip(before).find(|event| event.call.changes()) {
        Some(event) => Err(format!("a read-only open changes something: {event}")),
        None => Ok(()),
    }
}

/// The granules of a disk.
fn granules(length: u64, granularity: u64) -> u64 {
    match length.div_ceil(granularity) {
        64 => u64::MAX,
        count => (1 << count) - 1,
    }
}

/// The granules that share a byte with these, of which each bit is 512 bytes.
fn touched(bytes: u64, granularity: u64) -> u64 {
    let units = granularity / 512;
    let granule = |at: u64| {
        if units >= 64 {
            u64::MAX
        } else {
            ((1 << units) - 1) << (at * units)
        }
    };
    (0..64 / units)
        .filter(|at| bytes & granule(*at) != 0)
        .fold(0, |bits, at| bits | 1 << at)
}

/// The regions that the state file calls active.
fn active(state: &SimDisk) -> Result<u64, String> {
    let found = state_file(state, STATE)?;
    if found.header().clean {
        return Ok(0);
    }
    let units = REGION / 512;
    let region = |at: u64| ((1 << units) - 1) << (at * units);
    Ok(found.active().iter().fold(0, |bytes, at| bytes | region(at)))
}

/// A close that has succeeded has left a state file, where there is one, that says so, durably, and calls no region active: that of
/// the disk, and of one that is its image.
///
/// The latter if it is `whole`: where a call has failed in it, that of the map may be the one, and nobody minds a region that is
/// active in a file that says clean.
pub(super) fn check_closed(sim: &SimDisk, kind: Kind, whole: bool) -> Result<(), String> {
    let own = [STATE].into_iter().filter(|_| !kind.stateless);
    let files = own.chain(kind.inner.map(|_| INNER_STATE));
    for file in files {
        for state in [sim.kill(), sim.power_cut_keeping(Keep::Nothing)] {
            if !state_file(&state, file)?.header().clean {
                return Err(format!("D2: {file} does not say clean behind a close"));
            }
        }
        // That regions were cleared is synced with the header, but nobody relies on that.
        let active = state_file(&sim.kill(), file)?.active().len();
        if whole && active > 0 {
            return Err(format!("D2: a close leaves {active} regions active in {file}"));
        }
    }
    Ok(())
}

fn state_file(state: &SimDisk, name: &str) -> Result<StateFound, String> {
    let storage = state
        .folder()
        .open(Role::State, name.as_ref(), Access::default())
        .map_err(|e| e.to_string())?;
    let found = StateFile::inspect(&*storage, name.as_ref()).map_err(|e| e.to_string())?;
    found.map_err(|e| e.to_string())
}

//! The intent map of an open disk: which regions may hold changes that no durable bitmap shows.
//!
//! May call `storage`, through the state file. Invariant (D1): while a region is pinned, and from then until the bitmaps
//! were made durable with no pin on it, its bit is durable in the state file.
//!
//! A writer that finds a granule not recorded yet [pins](IntentMap::pin) the bytes that it writes to, gets the bits into
//! the bitmap files, publishes them, and unpins. A writer that finds everything recorded needs no pin: the bits are in the
//! files, and [retiring](IntentMap::retire_all) a region makes the files durable before it clears the region.
//!
//! One lock, which is held for no system call. It is off the fast path, since that needs no pin.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::file::StateFile;
use super::map::{MAX_REGIONS, RegionSet};
use super::region::RegionSize;
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use crate::units::ByteRange;

/// The most regions that are activated ahead of a sequential stream.
const LOOK_AHEAD: u64 = 4;

/// The intent map. Any thread may use it at any time.
pub(crate) struct IntentMap {
    file: Arc<StateFile>,
    /// Between two passes over cold regions at least.
    interval: Duration,
    state: Mutex<State>,
    /// Told of everything that a thread may wait for.
    changed: Condvar,
}

struct State {
    region: RegionSize,
    /// How many regions the disk has.
    count: u64,
    /// The map as it goes to the file.
    wanted: RegionSet,
    /// What is certain to be active after any crash; a part of `wanted`.
    durable: RegionSet,
    /// Pieces that differ from the file's, or may do so. A region that is wanted but not durable is in one of them, or in
    /// what is being written.
    dirty: BTreeSet<usize>,
    /// Somebody writes pieces, and mostly syncs: one at a time, so that an older copy of a piece never lands last.
    writing: bool,
    /// No new pins on these.
    retiring: RegionSet,
    retirement: bool,
    /// Pinned since the last pass.
    touched: RegionSet,
    /// Of each region, how many pins.
    pins: Vec<u32>,
    /// How many [`Pin`]s there are.
    held: u64,
    last_pass: Option<Instant>,
}

/// Holds regions active. A thread that has one must not ask for another, nor retire regions: each would wait for the
/// other.
#[derive(Debug)]
#[must_use = "the regions are held only as long as this lives"]
pub(crate) struct Pin<'m> {
    map: &'m IntentMap,
    regions: Range<u64>,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.map.unpin(self.regions.clone());
    }
}

impl IntentMap {
    /// The map of a disk of `length` bytes whose active regions are `active`, as
    /// [`adopt`](StateFile::adopt) gave them.
    pub(crate) fn new(
        file: Arc<StateFile>,
        active: RegionSet,
        length: u64,
        interval: Duration,
    ) -> Result<Self> {
        let region = file.header().region;
        let count = region.regions_in(length).min(MAX_REGIONS);
        let mut pins = Vec::new();
        grow(&mut pins, count)?;
        let state = State {
            region,
            count,
            wanted: active.clone(),
            durable: active,
            dirty: BTreeSet::new(),
            writing: false,
            retiring: RegionSet::new(),
            retirement: false,
            touched: RegionSet::new(),
            pins,
            held: 0,
            last_pass: None,
        };
        Ok(Self {
            file,
            interval,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Makes the regions that `bytes` touch active, and keeps them so until the pin is dropped. They are durably active
    /// on return.
    ///
    /// Waits while one of them is being retired, holding none meanwhile. On an error nothing is pinned, and the write
    /// must not go out.
    pub(crate) fn pin(&self, bytes: ByteRange) -> Result<Pin<'_>> {
        let mut state = self.lock();
        // Asked anew after each wait: the regions may have another size by then.
        let regions = loop {
            let regions = state.region.touched_by(bytes);
            if regions.end > state.count {
                return Err(Error::new(
                    ErrorCode::OutOfRange,
                    format!(
                        "{bytes} do not all lie in the {} regions of the intent map",
                        state.count
                    ),
                ));
            }
            if !regions.clone().any(|region| state.retiring.contains(region)) {
                break regions;
            }
            state = self.wait(state);
        };
        state.hold(regions.clone());
        // From here on the regions cannot be retired, so what becomes active stays so.
        let pin = Pin { map: self, regions };
        self.activate(state, pin.regions.clone())?;
        Ok(pin)
    }

    /// Returns when all of `regions` are durably active.
    fn activate<'m>(&'m self, mut state: MutexGuard<'m, State>, regions: Range<u64>) -> Result<()> {
        state.want(regions.clone());
        while !regions.clone().all(|region| state.durable.contains(region)) {
            if state.writing {
                // That write may have begun before our bits were set. Then it does not make them durable, and we write
                // them ourselves, with those of all who came meanwhile.
                state = self.wait(state);
                if mutation::on(Fault::RunningSyncJoined) {
                    return Ok(());
                }
            } else {
                state = self.write_out(state, Durably::Yes)?;
            }
        }
        Ok(())
    }

    /// Writes the dirty pieces as they are now, without holding the lock. The lock is given back on an error too: by
    /// dropping it.
    fn write_out<'m>(
        &'m self,
        mut state: MutexGuard<'m, State>,
        durably: Durably,
    ) -> Result<MutexGuard<'m, State>> {
        let pieces: Vec<_> = std::mem::take(&mut state.dirty)
            .into_iter()
            .map(|piece| (piece, state.wanted.encode(piece)))
            .collect();
        state.writing = true;
        drop(state);

        let mut result = self.file.write_map(&pieces);
        if durably == Durably::Yes && result.is_ok() {
            result = self.sync();
        }

        let mut state = self.lock();
        state.writing = false;
        match (&result, durably) {
            // Nothing was cleared meanwhile: that waits for `writing`.
            (Ok(()), Durably::Yes) => {
                for (piece, bytes) in &pieces {
                    state.durable.add_piece(*piece, bytes);
                }
            }
            // What somebody else set meanwhile is written, but that it is durable takes another write with a sync.
            (Ok(()), Durably::Later) => {
                let unsure = |piece: &usize| !state.durable.has_piece(*piece, &state.wanted);
                let unsure: Vec<_> = pieces.iter().map(|(piece, _)| *piece).filter(unsure).collect();
                state.dirty.extend(unsure);
            }
            (Err(_), _) => state.dirty.extend(pieces.iter().map(|(piece, _)| *piece)),
        }
        self.changed.notify_all();
        result.map(|()| state)
    }

    fn sync(&self) -> Result<()> {
        if mutation::on(Fault::IntentUnsynced) {
            return Ok(());
        }
        self.file.sync()
    }

    fn unpin(&self, regions: Range<u64>) {
        let mut state = self.lock();
        state.release(regions);
        if state.held == 0 && state.retirement {
            self.changed.notify_all();
        }
    }

    /// Retires the regions that were not pinned since the last pass, where the interval has passed since. Never waits
    /// for a pin. Tells how many were retired.
    ///
    /// `settle` writes and syncs every bitmap file. It is not called where there is nothing to retire. Where it fails,
    /// so does this, and the regions stay active.
    pub(crate) fn retire_cold(&self, now: Instant, settle: impl FnOnce() -> Result<()>) -> Result<u64> {
        let mut state = self.lock();
        let due = state
            .last_pass
            .is_none_or(|last| now.saturating_duration_since(last) >= self.interval);
        if !due || state.retirement {
            return Ok(0);
        }
        state.last_pass = Some(now);
        let cold: Vec<u64> = state
            .wanted
            .iter()
            .filter(|region| !state.touched.contains(*region) && !state.is_pinned(*region))
            .collect();
        state.touched.clear();
        if cold.is_empty() {
            return Ok(0);
        }
        for region in cold {
            state.retiring.insert(region);
        }
        state.retirement = true;
        self.retire(state, settle, || Ok(()))
    }

    /// Retires every region: at a close, at a resize, on request. Waits for all pins, and holds up new ones.
    pub(crate) fn retire_all(&self, settle: impl FnOnce() -> Result<()>) -> Result<u64> {
        let state = self.begin_retirement();
        self.retire(state, settle, || Ok(()))
    }

    /// Makes the map reach to the end of a disk of `length` bytes, before the disk gets that long. A shorter disk needs
    /// no call.
    ///
    /// Mostly only memory changes, as the file's map has room for 31.5 TiB at 64 MiB a region. Beyond that the regions
    /// get larger: first all are retired, so that a map read with either size says nothing, then the header changes.
    pub(crate) fn cover(&self, length: u64, settle: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        let region = state.region.for_length(length);
        if region == state.region {
            let count = region.regions_in(length).max(state.count);
            grow(&mut state.pins, count)?;
            state.count = count;
            return Ok(());
        }
        drop(state);
        let count = region.regions_in(length);
        let mut pins = Vec::new();
        grow(&mut pins, count)?;
        let state = self.begin_retirement();
        let reshape = || {
            // Where this fails the file takes no more activations, so none goes out with the old size.
            self.file.update(|header| {
                header.region = region;
                Ok(())
            })?;
            let mut state = self.lock();
            state.region = region;
            state.count = count;
            state.pins = pins;
            Ok(())
        };
        self.retire(state, settle, reshape).map(drop)
    }

    /// How many regions are active.
    pub(crate) fn active(&self) -> u64 {
        self.lock().wanted.len()
    }

    /// Stops new pins, and waits for the last to go.
    fn begin_retirement(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.retirement {
            state = self.wait(state);
        }
        state.retirement = true;
        // All that there are, not only the active ones: none may become active meanwhile.
        state.retiring.fill();
        while state.held > 0 && !mutation::on(Fault::RetiredUnderPin) {
            state = self.wait(state);
        }
        state
    }

    /// The rest of a retirement, of the regions in `retiring`, which have no pins. At the end, `then`, before new pins.
    fn retire<'m>(
        &'m self,
        state: MutexGuard<'m, State>,
        settle: impl FnOnce() -> Result<()>,
        then: impl FnOnce() -> Result<()>,
    ) -> Result<u64> {
        let leaving: Vec<u64> = state
            .wanted
            .iter()
            .filter(|it| state.retiring.contains(*it))
            .collect();
        drop(state);
        let ending = Ending { map: self };
        if leaving.is_empty() {
            return then().map(|()| 0);
        }
        if !mutation::on(Fault::ClearedUnsettled) {
            settle()?;
        }

        let mut state = self.lock();
        while state.writing {
            state = self.wait(state);
        }
        for region in &leaving {
            state.wanted.remove(*region);
            state.durable.remove(*region);
            state.dirty.insert(RegionSet::piece_of(*region));
        }
        // Not synced: until the next sync of the file a power cut may bring the bits back, and a bit too many costs
        // precision and nothing else, as the bitmaps are durable.
        drop(self.write_out(state, Durably::Later)?);
        then()?;
        drop(ending);
        Ok(leaving.len() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'m>(&'m self, state: MutexGuard<'m, State>) -> MutexGuard<'m, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hold(&mut self, regions: Range<u64>) {
        for pins in self.pins_of(regions.clone()) {
            *pins += 1;
        }
        self.held += 1;
        for region in regions {
            self.touched.insert(region);
        }
    }

    fn release(&mut self, regions: Range<u64>) {
        for pins in self.pins_of(regions) {
            *pins -= 1;
        }
        self.held -= 1;
    }

    fn is_pinned(&self, region: u64) -> bool {
        let at = usize::try_from(region).unwrap_or(usize::MAX);
        self.pins.get(at).is_some_and(|pins| *pins > 0)
    }

    /// The pins of regions that are the disk's; others have none.
    fn pins_of(&mut self, regions: Range<u64>) -> &mut [u32] {
        let at = |region| usize::try_from(region).unwrap_or(usize::MAX);
        self.pins
            .get_mut(at(regions.start)..at(regions.end))
            .unwrap_or_default()
    }

    /// Puts `regions` into the map, and where one is new as many behind them as there are active in front, up to
    /// [`LOOK_AHEAD`]: a stream that goes on finds its next regions active, and a write at random adds none.
    fn want(&mut self, regions: Range<u64>) {
        let before = |steps: &u64| {
            regions
                .start
                .checked_sub(*steps)
                .is_some_and(|region| self.wanted.contains(region))
        };
        let stream = (1..=LOOK_AHEAD).take_while(before).count() as u64;
        let mut any_new = false;
        for region in regions.clone() {
            any_new |= self.want_one(region);
        }
        if any_new {
            for region in regions.end..regions.end.saturating_add(stream).min(self.count) {
                self.want_one(region);
            }
        }
    }

    fn want_one(&mut self, region: u64) -> bool {
        let new = self.wanted.insert(region);
        if new {
            self.touched.insert(region);
            self.dirty.insert(RegionSet::piece_of(region));
        }
        new
    }
}

/// Whether what is written is synced, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durably {
    Yes,
    Later,
}

/// Lets new pins in again, also when the retirement failed or panicked.
struct Ending<'m> {
    map: &'m IntentMap,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = self.map.lock();
        state.retiring.clear();
        state.retirement = false;
        self.map.changed.notify_all();
    }
}

/// Makes room for the pins of `count` regions.
fn grow(pins: &mut Vec<u32>, count: u64) -> Result<()> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let more = count.saturating_sub(pins.len());
    pins.try_reserve_exact(more).map_err(|_| {
        Error::new(
            ErrorCode::NoMemory,
            format!("no memory for an intent map of {count} regions"),
        )
    })?;
    pins.resize(pins.len().max(count), 0);
    Ok(())
}

impl std::fmt::Debug for IntentMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntentMap")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, shuttle))]
mod models;
#[cfg(test)]
mod tests;

//! The state file: made, read after whatever happened to it, and updated in place.
//!
//! May call `storage`. Invariant: at every moment, and in every state that a crash can leave, the file holds the header
//! of the last update that returned success or of one begun since, and a map with every region that was reported active.
//! A slot is overwritten only while the other one holds the newest durable header. After a failed sync nothing that goes
//! through this file reports success (A2).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::evidence::Evidence;
use super::header::{Header, SLOT, Slot, highest_generation};
use super::map::{MAP_PIECES, PIECE, RegionSet};
use super::shadow::ShadowId;
use super::stamp::Stamp;
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Storage, SyncMode, read_slice, write_slice};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::ByteRange;

/// Where the map begins: behind two slots.
const MAP: usize = 2 * SLOT;
/// Header and map; what is behind them is the shadow's.
pub(crate) const LENGTH: usize = MAP + MAP_PIECES * PIECE;
/// The same for whoever adds up what a disk takes.
pub(crate) const LENGTH_BYTES: u64 = LENGTH as u64;

/// The generation of a new file's header.
const FIRST: u64 = 1;
/// In the slots of a file that is being made.
const UNDONE: &[u8] = b"a state file that is not finished";

/// What a state file says, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    generation: u64,
    /// Of any piece in the slots: left by an update that a crash cut short, it may be higher.
    highest: u64,
    header: Header,
    active: RegionSet,
    damaged_pieces: usize,
}

/// Why a file is no valid state file, in words that begin with its name. Nothing is known then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Found {
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The regions of the map that are active. Only of an unclean disk does that say anything.
    pub(crate) fn active(&self) -> &RegionSet {
        &self.active
    }

    /// Whether nobody has changed the disk since the file was made.
    pub(crate) fn is_new(&self) -> bool {
        self.generation == FIRST
    }

    /// How many pieces of the map were damaged; their regions count as active.
    pub(crate) fn damaged_pieces(&self) -> usize {
        self.damaged_pieces
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Some((slots, map)) = bytes.split_at_checked(MAP).filter(|_| bytes.len() >= LENGTH) else {
            return Err(format!("it has {} bytes, and a state file {LENGTH}", bytes.len()));
        };
        let mut newest: Option<(u64, Box<Header>)> = None;
        for (number, slot) in (0..).zip(slots.chunks_exact(SLOT)) {
            match Header::decode(slot, number) {
                Slot::Empty | Slot::Torn => {}
                Slot::Valid { generation, header } => {
                    if newest.as_ref().is_none_or(|(newest, _)| generation > *newest) {
                        newest = Some((generation, header));
                    }
                }
                // The other slot may hold what this one replaced: "clean", say, of a disk that is not.
                Slot::Damaged(why) => return Err(format!("header slot {number} is damaged: {why}")),
            }
        }
        let highest = slots
            .chunks_exact(SLOT)
            .map(highest_generation)
            .max()
            .unwrap_or(0);
        let (generation, header) = newest.ok_or("neither header slot holds a header")?;
        let mut active = RegionSet::new();
        let pieces = map.chunks_exact(PIECE).take(MAP_PIECES).enumerate();
        let damaged_pieces = pieces
            .filter(|(piece, bytes)| !active.decode(*piece, bytes))
            .count();
        Ok(Self {
            generation,
            highest,
            header: *header,
            active,
            damaged_pieces,
        })
    }
}

/// The state file of an open disk. Any thread may use it at any time.
pub(crate) struct StateFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    current: Mutex<Current>,
    /// Held in a sync. Two at a time would share one report of a failure, and the other would call lost bytes durable.
    syncing: Mutex<()>,
    failed: AtomicBool,
}

struct Current {
    /// Of the newest header that is durable.
    generation: u64,
    /// Of any piece in the slots, or higher.
    highest: u64,
    header: Header,
}

impl Current {
    /// The next generation: it belongs to the other slot, and no piece there has it already. Pieces that an update left
    /// when a crash cut it short must not pass for pieces of the next.
    fn next(&self) -> u64 {
        let next = self.highest.max(self.generation) + 1;
        next + u64::from(next % 2 == self.generation % 2)
    }
}

impl StateFile {
    /// Makes `storage` a state file with this header and no active region, whatever is in it. It is durable on return,
    /// its name is not.
    ///
    /// Everything is written, so that later updates need no space. First both slots are made invalid, durably: an older
    /// header must not come to light when the newer one goes, nor an old header stand beside the new map. So a crash
    /// leaves the old content, nothing valid, or the new.
    pub(crate) fn create(storage: Arc<dyn Storage>, path: PathBuf, header: Header) -> Result<Self> {
        let failed = |action: &str, error: std::io::Error| Error::io(action, &path, &error);
        let write = |bytes: &[u8], at: usize| {
            write_slice(&*storage, bytes, at as u64).map_err(|e| failed("write", e))
        };
        let sync = |mode| storage.sync(mode).map_err(|e| failed("sync", e));
        let mut bytes = vec![0; MAP];
        for slot in bytes.chunks_exact_mut(SLOT) {
            slot[..UNDONE.len()].copy_from_slice(UNDONE);
        }
        if storage.length().map_err(|e| failed("measure", e))? > 0 {
            // Only what makes each slot damaged: one that looked torn would let the other one count.
            for slot in [0, SLOT] {
                write(&bytes[slot..slot + PIECE], slot)?;
            }
            sync(SyncMode::Data)?;
        }
        match storage.allocate(ByteRange::between(0, LENGTH as u64)) {
            Err(e) if e.raw_os_error() != Some(libc::EOPNOTSUPP) => {
                return Err(failed("reserve space for", e));
            }
            _ => {}
        }
        let empty = RegionSet::new();
        (0..MAP_PIECES).for_each(|piece| bytes.extend(empty.encode(piece)));
        write(&bytes, 0)?;
        sync(SyncMode::All)?;
        let mut slots = vec![0; MAP];
        let encoded = header.encode(FIRST);
        slots[slot_of(FIRST)..][..encoded.len()].copy_from_slice(&encoded);
        write(&slots, 0)?;
        sync(SyncMode::Data)?;
        let current = Current {
            generation: FIRST,
            highest: FIRST,
            header,
        };
        Ok(Self::with(storage, path, current))
    }

    /// Reads a state file, and changes nothing.
    ///
    /// The outer failure is a read that failed; the inner one a file that is no valid state file, which only says that
    /// nothing is known.
    pub(crate) fn inspect(storage: &dyn Storage, path: &Path) -> Result<Result<Found, Unusable>> {
        let failed = |action: &str, error: std::io::Error| Error::io(action, path, &error);
        let length = storage.length().map_err(|e| failed("measure", e))?;
        // Never more, however long the file is.
        let length = usize::try_from(length).map_or(LENGTH, |length| length.min(LENGTH));
        let mut bytes = vec![0; length];
        read_slice(storage, &mut bytes, 0).map_err(|e| failed("read", e))?;
        Ok(Found::parse(&bytes)
            .map_err(|why| Unusable(format!("{} is no valid state file: {why}", path.display()))))
    }

    /// Goes on with the state that was found, for writing.
    ///
    /// It is written again and synced first: it may have been in the page cache alone, as what a process that was killed
    /// wrote last, and the kernel does not write again what a failed sync of that process has dropped. Without that, the
    /// next update would overwrite the only header that is durable.
    ///
    /// The regions that come with it are the ones for [`IntentMap::new`](super::IntentMap::new): none after a clean
    /// close, whatever the map still shows.
    pub(crate) fn adopt(storage: Arc<dyn Storage>, path: PathBuf, found: Found) -> Result<(Self, RegionSet)> {
        let active = if found.header.clean {
            RegionSet::new()
        } else {
            found.active
        };
        let slot = found.header.encode(found.generation);
        let current = Current {
            generation: found.generation,
            highest: found.highest,
            header: found.header,
        };
        let file = Self::with(storage, path, current);
        file.write(&slot, slot_of(found.generation))?;
        let map: Vec<_> = (0..MAP_PIECES)
            .map(|piece| (piece, active.encode(piece)))
            .collect();
        file.write_map(&map)?;
        file.sync()?;
        Ok((file, active))
    }

    fn with(storage: Arc<dyn Storage>, path: PathBuf, current: Current) -> Self {
        Self {
            storage,
            path,
            current: Mutex::new(current),
            syncing: Mutex::new(()),
            failed: AtomicBool::new(false),
        }
    }

    /// The bits that lie behind everything else, from byte `base` on.
    pub(super) fn bits_behind(&self, base: u64) -> BitmapFile {
        BitmapFile::behind(Arc::clone(&self.storage), self.path.clone(), base)
    }

    /// What messages call the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself.
    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// The header in force.
    pub(crate) fn header(&self) -> Header {
        self.current().header.clone()
    }

    /// Changes the header; the change is durable on return. Where that fails, the file takes nothing more, and an opener
    /// finds the old header or the new one.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Header) -> Result<()>) -> Result<()> {
        let mut current = self.current();
        let mut header = current.header.clone();
        change(&mut header)?;
        let generation = current.next();
        // The other slot: this one is all that is known to be durable.
        self.write(&header.encode(generation), slot_of(generation))
            // What it did all the same is not known, so nothing may go on by the old header: an activation, say, with a
            // region size that is no longer the file's.
            .inspect_err(|_| self.failed.store(true, Ordering::Release))?;
        self.sync()?;
        *current = Current {
            generation,
            highest: generation,
            header,
        };
        Ok(())
    }

    /// [`Self::begin_and`] nothing else.
    #[cfg(test)]
    pub(crate) fn begin(
        &self,
        policy: BitmapPolicy,
        evidence: Option<Evidence>,
        shadow: Option<ShadowId>,
    ) -> Result<()> {
        self.begin_and(policy, evidence, shadow, |_| ())
    }

    /// Marks the disk unclean, before the first write of any kind. Durable on return.
    ///
    /// The policy with it, since under the lazy one the files are stale even where nothing was lost; and the evidence,
    /// which vouches for all that is written from here on, with the shadow that belongs to it. It is also the last step of a recovery: what recovery relied
    /// on must be durable, because from now on the new evidence is asked about it. `also` changes what else there is.
    pub(crate) fn begin_and(
        &self,
        policy: BitmapPolicy,
        evidence: Option<Evidence>,
        shadow: Option<ShadowId>,
        also: impl FnOnce(&mut Header),
    ) -> Result<()> {
        self.update(|header| {
            header.clean = false;
            header.policy = policy;
            header.failure_noted = false;
            header.untouched = false;
            header.evidence = evidence;
            header.shadow = shadow;
            also(header);
            Ok(())
        })
    }

    /// [`Self::end_and`] nothing else.
    #[cfg(test)]
    pub(crate) fn end(&self, stamp: Option<Stamp>) -> Result<()> {
        self.end_and(stamp, |_| ())
    }

    /// Marks the disk clean. All regions must be retired, and the bitmaps' other changes and the image durable. `also` changes
    /// what else there is.
    pub(crate) fn end_and(&self, stamp: Option<Stamp>, also: impl FnOnce(&mut Header)) -> Result<()> {
        self.update(|header| {
            header.clean = true;
            header.failure_noted = false;
            header.untouched = false;
            header.evidence = None;
            header.shadow = None;
            header.stamp = stamp;
            also(header);
            Ok(())
        })
    }

    /// Notes that a bitmap file failed to take bits that the map still covers. Durable on return, but where the header
    /// cannot say so: then the file is made none that is valid, and whoever comes next takes every bit for set. That is in
    /// the page cache at least, and so as good as the evidence, which would call the bitmap file exact (D1).
    pub(crate) fn note_failure(&self) -> Result<()> {
        let header = self.header();
        if header.failure_noted {
            return Ok(());
        }
        let noted = self.update(|header| {
            header.failure_noted = true;
            Ok(())
        });
        match noted {
            // Of a clean disk nobody asks the evidence.
            Err(_) if !header.clean && undo(&*self.storage) => Ok(()),
            noted => noted,
        }
    }

    /// The same of a file that was found and not adopted yet.
    pub(crate) fn note_failure_in(storage: &Arc<dyn Storage>, path: PathBuf, found: Found) -> Result<()> {
        let unclean = !found.header.clean;
        match Self::adopt(Arc::clone(storage), path, found) {
            Ok((file, _)) => file.note_failure(),
            Err(_) if unclean && undo(&**storage) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes these pieces of the map, neighbours in one call. Not durable before a [`Self::sync`] that begins later.
    ///
    /// A failure leaves each piece old or new, and may be followed by another try.
    pub(super) fn write_map(&self, pieces: &[(usize, [u8; PIECE])]) -> Result<()> {
        for run in pieces.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, bytes)| bytes).copied().collect();
            self.write(&bytes, MAP + run[0].0 * PIECE)?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: usize) -> Result<()> {
        self.check()?;
        write_slice(&*self.storage, bytes, offset as u64).map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Makes durable what was written before the call. A failure is for good.
    pub(super) fn sync(&self) -> Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.storage.sync(SyncMode::Data).map_err(|e| {
            self.failed.store(true, Ordering::Release);
            Error::io("sync", &self.path, &e)
        })
    }

    /// Fails after a failed sync, or a failed update: the kernel has dropped what it could not write, and another sync
    /// proves nothing.
    fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Failed,
            format!(
                "an earlier update of {} failed, so what it holds is not known; close and reopen the disk",
                self.path.display()
            ),
        ))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for StateFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Makes a state file none that is valid; false where that cannot be done.
///
/// By its length first: that goes another way through the file system than the bytes that have just failed to.
fn undo(storage: &dyn Storage) -> bool {
    let damage = |slot: usize| write_slice(storage, UNDONE, slot as u64).is_ok();
    !mutation::on(Fault::FailureUntold) && (storage.set_length(0).is_ok() || damage(0) || damage(SLOT))
}

/// Where the slot of a generation begins.
const fn slot_of(generation: u64) -> usize {
    if generation.is_multiple_of(2) { 0 } else { SLOT }
}

#[cfg(any(test, fuzzing))]
pub(super) mod oracle;
#[cfg(test)]
mod tests;

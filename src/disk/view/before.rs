//! Copy before write: what a granule was before the first write to it since a backup began.
//!
//! Every writer that is about to change a granule whose old content is not kept comes here first, on the way on which
//! it also records the granule in bitmaps; those to granules that are kept pass by at the cost of one load. Invariant:
//! a bit of `kept` is set when the old content is in the scratch file, or nobody wants it any more, and before the granule
//! is written to.
//!
//! Where a full scratch file delays the guest, a writer keeps what it must before it enters the gate, and waits there for
//! room. It holds nothing then that a reader, or the end of the backup, would have to wait for; and it waits for so long
//! at most as the backup was given.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::bitmap::Bits;
use crate::disk::Child;
use crate::disk::overlay::{Claims, Overlay};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Extent, Scatter, read_slice, write_slice};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use crate::units::{ByteRange, Granularity, GranuleIndex, GranuleRange};
use crate::zeros::is_zero;

/// In which unit old content is kept.
const UNIT: Granularity = Granularity::DEFAULT;

/// The most granules that are copied in one go.
const STEP: u64 = 16;

/// What happens when the file is full in which a backup keeps what guests overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ScratchFull {
    /// The backup fails, and the guest goes on.
    #[default]
    FailBackup,
    /// The guest's write waits until there is room, since the backup needs less of what is kept, or the backup ends. Each
    /// write waits for so long at most; then the backup fails, and the guest goes on.
    DelayGuest {
        /// How long one write waits at most.
        at_most: Duration,
    },
}

/// Who waits for room in the scratch file.
#[derive(Default)]
struct Promised {
    /// What writers may store, in bytes, and have not stored yet.
    bytes: u64,
    #[cfg(test)]
    waiting: bool,
}

/// The old content of one disk.
pub(in crate::disk) struct BeforeWrite {
    image: Child,
    /// What is below the image. No resize, commit or emptying puts another in its place while this is here.
    overlay: Option<Arc<Overlay>>,
    length: u64,
    /// As long as the disk, with holes where nothing is kept or zeros were.
    scratch: Child,
    /// The most bytes to be in it, and what happens to a writer who would need more.
    limit: u64,
    full: ScratchFull,
    /// Granules that have their content in the scratch file count whole.
    stored: AtomicU64,
    stored_bits: Bits,
    kept: Arc<Bits>,
    /// What nobody will read any more.
    released: Bits,
    claims: Claims,
    promised: Mutex<Promised>,
    /// There may be more room, or nobody needs any.
    roomier: Condvar,
    /// The backup is at its end.
    over: AtomicBool,
    /// Why content is missing that a view would need.
    failure: OnceLock<String>,
}

impl BeforeWrite {
    pub(super) fn new(
        image: Child,
        overlay: Option<Arc<Overlay>>,
        length: u64,
        scratch: Child,
        limit: u64,
        full: ScratchFull,
    ) -> Result<Self> {
        let granules = UNIT.granules_in(length);
        Ok(Self {
            image,
            overlay,
            length,
            scratch,
            limit,
            full,
            stored: AtomicU64::new(0),
            stored_bits: Bits::new(granules)?,
            kept: Arc::new(Bits::new(granules)?),
            released: Bits::new(granules)?,
            claims: Claims::default(),
            promised: Mutex::default(),
            roomier: Condvar::new(),
            over: AtomicBool::new(false),
            failure: OnceLock::new(),
        })
    }

    pub(in crate::disk) fn granularity() -> Granularity {
        UNIT
    }

    pub(in crate::disk) fn kept(&self) -> &Arc<Bits> {
        &self.kept
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Keeps what `range` is now. The caller, who is inside the gate, may change it afterwards in any case: where the
    /// old content could not be kept it is the backup that fails, not the guest.
    pub(in crate::disk) fn keep(&self, range: ByteRange) {
        let granules = UNIT.touched_by(range);
        if self.is_wanted() {
            self.copy_or_fail(granules);
        }
        // After a failure nothing is kept any more, so that writers pass by. It was noted before, and a reader looks
        // for it last.
        self.kept.set(granules);
        // The bits come before the write that follows: a reader that finds none has read nothing of it.
        fence(Ordering::SeqCst);
    }

    /// Whether a writer to `range` has to come to [`keep_waiting`](Self::keep_waiting) first.
    pub(in crate::disk) fn delays(&self, range: ByteRange) -> bool {
        matches!(self.full, ScratchFull::DelayGuest { .. })
            && self.is_wanted()
            && !self.kept.all_set(UNIT.touched_by(range))
    }

    /// Keeps what `range` is now, after waiting for room. The caller is outside of the gate, and holds no lock.
    pub(in crate::disk) fn keep_waiting(&self, range: ByteRange) {
        let ScratchFull::DelayGuest { at_most } = self.full else {
            return;
        };
        let begun = Instant::now();
        let granules = UNIT.touched_by(range);
        let step = (self.limit / UNIT.bytes()).clamp(1, STEP);
        let mut at = granules.start;
        while self.is_wanted()
            && let Some(start) = self.kept.next_clear(GranuleRange {
                start: at,
                end: granules.end,
            })
        {
            let end = granules.end.min(GranuleIndex(start.0.saturating_add(step)));
            let piece = GranuleRange { start, end };
            let Some(promise) = self.wait_for_room(piece, begun, at_most) else {
                return;
            };
            self.copy_or_fail(piece);
            self.take_back(promise);
            at = end;
        }
    }

    /// Promises the caller room for `piece`; `None` where it need not be kept any more.
    fn wait_for_room(&self, piece: GranuleRange, begun: Instant, at_most: Duration) -> Option<u64> {
        let limit = self.limit.max(UNIT.bytes());
        let mut promised = self.promised();
        while self.is_wanted() {
            // Zeros and holes take none, but that is not known before they are read.
            let need = piece.len() * UNIT.bytes();
            if self.stored() + promised.bytes + need <= limit {
                promised.bytes += need;
                return Some(need);
            }
            if self.kept.all_set(piece) {
                return Some(0);
            }
            let Some(rest) = at_most.checked_sub(begun.elapsed()) else {
                drop(promised);
                self.fail(format!(
                    "a write of the guest has waited for {} ms, and there was still no room within the {} bytes that may \
                     be kept for the backup",
                    at_most.as_millis(),
                    self.limit
                ));
                return None;
            };
            #[cfg(test)]
            {
                promised.waiting = true;
            }
            promised = match self.roomier.wait_timeout(promised, rest) {
                Ok((promised, _)) => promised,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        None
    }

    fn take_back(&self, promise: u64) {
        self.promised().bytes -= promise;
        self.roomier.notify_all();
    }

    fn promised(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_wanted(&self) -> bool {
        self.failure.get().is_none() && !self.over.load(Ordering::SeqCst)
    }

    /// From now on nothing is kept, and nobody waits: the backup ends.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn fail(&self, why: String) {
        let _ = self.failure.set(why);
        self.wake();
    }

    fn wake(&self) {
        // Taking the lock makes sure that whoever waits has seen the change, or is waiting already.
        drop(self.promised());
        self.roomier.notify_all();
    }

    /// Nobody will read the granules that lie wholly in `range`: writers pass by them, and what was kept goes.
    pub(super) fn release(&self, range: ByteRange) {
        let granules = UNIT.covered_by(range, self.length);
        if granules.is_empty() {
            return;
        }
        let claim = self.claims.claim(granules);
        // In this order: who finds that it is kept, and not what was kept, must find that it was released.
        self.released.set(granules);
        fence(Ordering::SeqCst);
        self.kept.set(granules);
        let gone = self.stored_bits.clear(granules);
        if gone > 0 {
            // Space that cannot be given back goes with the file.
            let _ = self.scratch.storage.discard(UNIT.bytes_of(granules, self.length));
            self.stored.fetch_sub(gone * UNIT.bytes(), Ordering::Relaxed);
        }
        drop(claim);
        self.wake();
    }

    /// Whoever comes second waits for the first to have copied it, and then finds the bit.
    fn copy_or_fail(&self, granules: GranuleRange) {
        let _claim = self.claims.claim(granules);
        if let Err(error) = self.copy(granules) {
            self.fail(error.message().to_owned());
        }
    }

    fn copy(&self, granules: GranuleRange) -> Result<()> {
        let mut buffer = Vec::new();
        let mut at = granules.start;
        while let Some(start) = self.kept.next_clear(GranuleRange {
            start: at,
            end: granules.end,
        }) {
            let rest = GranuleRange {
                start,
                end: granules.end.min(GranuleIndex(start.0.saturating_add(STEP))),
            };
            let end = self.kept.next_set(rest).unwrap_or(rest.end);
            let run = GranuleRange { start, end };
            self.copy_bytes(UNIT.bytes_of(run, self.length), &mut buffer)?;
            self.kept.set(run);
            at = end;
        }
        Ok(())
    }

    fn copy_bytes(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let extent = self.extent(ByteRange::between(at, range.end()))?;
            let part = ByteRange::between(at, at.saturating_add(extent.len.max(1)).min(range.end()));
            at = part.end();
            if !extent.data {
                continue;
            }
            buffer.resize(usize::try_from(part.len()).unwrap_or(0), 0);
            self.read_now(buffer, part)?;
            if is_zero(buffer) {
                continue;
            }
            let more = self.stored_bits.set(UNIT.touched_by(part)) * UNIT.bytes();
            let stored = self.stored.fetch_add(more, Ordering::Relaxed) + more;
            if stored > self.limit && self.full == ScratchFull::FailBackup {
                return Err(Error::with_errno(
                    ErrorCode::Io,
                    libc::ENOSPC,
                    format!(
                        "the guest has overwritten more than the {} bytes that may be kept for the backup",
                        self.limit
                    ),
                ));
            }
            write_slice(&*self.scratch.storage, buffer, part.start())
                .map_err(|e| self.scratch.failed("keep old content in", &e))?;
        }
        Ok(())
    }

    /// What the disk has where, without entering the gate, in which the writer is.
    fn extent(&self, range: ByteRange) -> Result<Extent> {
        let (image, range) = match &self.overlay {
            None => (&self.image, range),
            Some(overlay) => match overlay.image_of(&self.image, range)? {
                (Some(image), range) => (image, range),
                (None, range) => {
                    return Ok(Extent {
                        data: false,
                        len: range.len(),
                    });
                }
            },
        };
        image
            .storage
            .extent(range)
            .map_err(|e| image.failed("find the data in", &e))
    }

    fn read_now(&self, buffer: &mut [u8], range: ByteRange) -> Result<()> {
        match &self.overlay {
            None => read_slice(&*self.image.storage, buffer, range.start())
                .map_err(|e| self.image.failed(&format!("read {range} from"), &e)),
            Some(overlay) => overlay.read_slice(&self.image, range, buffer),
        }
    }

    /// Whether the first granule of `range` is kept, and the bytes up to where that changes.
    pub(super) fn run(&self, range: ByteRange) -> (bool, ByteRange) {
        let granules = UNIT.touched_by(range);
        let kept = self.kept.get(granules.start);
        let change = if kept {
            self.kept.next_clear(granules)
        } else {
            self.kept.next_set(granules)
        };
        let first = UNIT.start_of(GranuleIndex(granules.start.0 + 1));
        let end = change.map_or(range.end(), |at| UNIT.start_of(at).max(first));
        fence(Ordering::SeqCst);
        (kept, ByteRange::between(range.start(), end.min(range.end())))
    }

    /// The part of `range` before the first granule that is kept by now: what was found out there is of before.
    pub(super) fn unkept(&self, range: ByteRange) -> ByteRange {
        fence(Ordering::SeqCst);
        let found = self.kept.next_set(UNIT.touched_by(range));
        let end = found.map_or(range.end(), |at| UNIT.start_of(at).min(range.end()));
        ByteRange::between(range.start(), end.max(range.start()))
    }

    pub(super) fn read_kept(&self, into: Scatter<'_>, offset: u64) -> Result<()> {
        self.scratch
            .storage
            .read(into, offset)
            .map_err(|e| self.scratch.failed("read old content from", &e))
    }

    pub(super) fn kept_extent(&self, range: ByteRange) -> Result<Extent> {
        self.scratch
            .storage
            .extent(range)
            .map_err(|e| self.scratch.failed("find the data in", &e))
    }

    /// Fails where old content of `range` is missing.
    pub(super) fn check(&self, range: ByteRange) -> Result<()> {
        fence(Ordering::SeqCst);
        match self.failure.get() {
            None if self.released.any_set(UNIT.touched_by(range)) => Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("{range} were released, and are not kept any more"),
            )),
            None => Ok(()),
            Some(why) => Err(Error::with_errno(
                ErrorCode::Io,
                libc::ENOSPC,
                format!("the point in time is lost: {why}"),
            )),
        }
    }
}

#[cfg(test)]
impl BeforeWrite {
    /// Whether a writer has found no room.
    pub(super) fn somebody_waits(&self) -> bool {
        self.promised().waiting
    }

    /// Holds the lock that the end takes, as a writer does for a moment.
    pub(super) fn hold(&self) -> impl Sized + '_ {
        self.promised()
    }
}

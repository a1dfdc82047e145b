//! What of the allocation bits is on disk, and how the rest gets there.
//!
//! Invariant (A1): the file gets a bit only after a sync of the image that began when the granule was in it. So durable
//! and pending bits are kept apart, and a flush takes the pending ones *before* it syncs the image: what becomes
//! pending meanwhile has bytes that this sync need not have seen.

use std::sync::Arc;

use super::{Chain, Overlay};
use crate::bitmap::{BitmapFile, Bits};
use crate::disk::Disk;
use crate::disk::bitmaps::Shape;
use crate::disk::rounds::Rounds;
use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::state::Shadow;
use crate::storage::SyncMode;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::GranuleRange;

#[derive(Debug)]
pub(super) struct Durability {
    pub(super) file: Arc<BitmapFile>,
    unsettled: Mutex<Unsettled>,
    /// Whether what is in the file is durable. Not so when the disk is opened: what an earlier process has left in the
    /// page cache goes with a power cut, and takes with it what was written into such a granule since.
    synced: AtomicBool,
    rounds: Rounds<()>,
    /// Whether there are bits that a change waits for: see [`owes`](Self::owes).
    owing: AtomicBool,
    /// Where a bit stands as long as it is pending, so that it outlives the process (A3).
    shadow: Option<Arc<Shadow>>,
}

/// The bits of granules that are in the image and not yet durable in the file. All other bits in memory are.
#[derive(Debug)]
struct Unsettled {
    /// For the next flush.
    pending: Bits,
    /// Those that a flush is at work on.
    taken: Option<Arc<Bits>>,
    /// No bit set; comes in the place of `pending` when these are taken. `None` while a flush is at work.
    spare: Option<Bits>,
    /// Those that are to be durable before they are set in memory. Where they are not pending, the file has them already,
    /// and memory not yet.
    late: Vec<GranuleRange>,
    /// Some of the pending ones stand nowhere but in memory: neither the shadow nor the file took them, and the change that set
    /// them has failed.
    pending_owed: bool,
    /// So do some of those that were taken.
    taken_owed: bool,
}

impl std::fmt::Debug for BitmapFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BitmapFile")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl Durability {
    /// Of `len` bits that were just read from `file`. A disk that is not writable has nothing to keep apart.
    pub(super) fn new(file: Arc<BitmapFile>, len: u64, writable: bool) -> Result<Self> {
        let len = if writable { len } else { 0 };
        Ok(Self {
            file,
            unsettled: Mutex::new(Unsettled {
                pending: Bits::new(len)?,
                taken: None,
                spare: Some(Bits::new(len)?),
                late: Vec::new(),
                pending_owed: false,
                taken_owed: false,
            }),
            synced: AtomicBool::new(mutation::on(Fault::FoundIsDurable)),
            rounds: Rounds::new(()),
            owing: AtomicBool::new(false),
            shadow: None,
        })
    }

    /// Of bits whose file was just written and synced.
    pub(super) fn of_synced(file: Arc<BitmapFile>, bits: &Bits) -> Result<Self> {
        let this = Self::new(file, bits.len(), true)?;
        this.synced.store(true, Ordering::Relaxed);
        Ok(this)
    }

    /// What comes in its place on the same disk, with other bits that were just written and synced. Nothing is pending any
    /// more, or what is has got elsewhere, durably: the shadow lets go of it, before the bits do (A1).
    pub(super) fn renewed(&self, file: Arc<BitmapFile>, bits: &Bits) -> Result<Self> {
        if let Some(shadow) = &self.shadow {
            shadow.empty()?;
        }
        Ok(Self {
            shadow: self.shadow.clone(),
            ..Self::of_synced(file, bits)?
        })
    }

    /// From now on what is pending stands in `shadow` too.
    pub(super) fn keep_shadow(&mut self, shadow: Option<Arc<Shadow>>) {
        self.shadow = shadow;
    }

    /// Sets `granules`, which are pending, in `bits`, when they stand in the shadow; false where it did not take them.
    pub(super) fn publish(&self, bits: &Bits, granules: GranuleRange) -> bool {
        match &self.shadow {
            Some(shadow) if !mutation::on(Fault::ShadowLeftOut) => shadow.record(bits, granules),
            _ => {
                bits.set(granules);
                true
            }
        }
    }

    /// For [`Fault::ShadowBeforeGranule`].
    #[cold]
    pub(super) fn shadow_early(&self, len: u64, granules: GranuleRange) {
        if let (Some(shadow), Ok(bits)) = (&self.shadow, Bits::new(len)) {
            shadow.record(&bits, granules);
        }
    }

    /// Makes bits durable, which are in `own`, that a killed process has left in the shadow. Their granules must be durable.
    pub(super) fn adopt(&self, own: &Bits, found: &Bits) -> Result<()> {
        // A sync that fails ends the open.
        self.write(own, found, |_| ())
    }

    /// The next flush is to make these bits durable. Their granules must be in the image. Comes before they are set in
    /// memory, so that whoever finds one set there, and not here, knows it to be durable.
    pub(super) fn add(&self, granules: GranuleRange) {
        self.unsettled().pending.set(granules);
    }

    /// Sets `granules`, which are pending, in `own` when `flush` has made them durable: nothing else would keep them for
    /// whoever comes after this process.
    ///
    /// Where it fails they stay pending, and some flush will find room for them, or has got some of them into the file. So they
    /// are set all the same: what failed shows at once, and not when the disk is opened again (A1, D1).
    pub(super) fn publish_late(
        &self,
        own: &Bits,
        granules: GranuleRange,
        flush: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // Another flush that comes between must not take them out of the file again, as memory has not got them.
        if !mutation::on(Fault::LateForgotten) {
            self.unsettled().late.push(granules);
        }
        let flushed = flush();
        let mut unsettled = self.unsettled();
        if flushed.is_err() {
            // Before the bits are set, as whoever finds them set asks for this next.
            unsettled.owe(granules);
            self.note_owed(&unsettled);
        }
        if flushed.is_ok() || !mutation::on(Fault::FailedUnshown) {
            own.set(granules);
        }
        if let Some(index) = unsettled.late.iter().position(|it| *it == granules) {
            unsettled.late.swap_remove(index);
        }
        drop(unsettled);
        flushed
    }

    /// Whether a change of `granules`, which are set in memory, may not be reported done before a flush: there is nothing else
    /// that keeps their bits for whoever comes after this process (A3).
    pub(super) fn owes(&self, granules: GranuleRange) -> bool {
        self.owing.load(Ordering::Acquire)
            && !mutation::on(Fault::OwedForgotten)
            && self.unsettled().touches(granules)
    }

    fn note_owed(&self, unsettled: &Unsettled) {
        let owing = unsettled.pending_owed || unsettled.taken_owed;
        self.owing.store(owing, Ordering::Release);
    }

    /// Whether the bits of `granules`, as `own` has them, outlive a power cut.
    fn has(&self, own: &Bits, granules: GranuleRange) -> bool {
        // Acquires: pairs with the release of the flush that synced the file.
        self.synced.load(Ordering::Acquire) && own.all_set(granules) && !self.unsettled().touches(granules)
    }

    /// One flush: `sync_image`, and the bits of what is in the image. `fail` is told of a sync that failed.
    fn settle(
        &self,
        own: &Bits,
        sync_image: impl FnOnce() -> Result<()>,
        fail: impl FnOnce(&crate::error::Error),
    ) -> Result<()> {
        if mutation::on(Fault::PendingTakenLate) {
            sync_image()?;
            return self.take()?.write(own, fail);
        }
        let taken = self.take()?;
        if mutation::on(Fault::BitsBeforeImage) {
            taken.write(own, fail)?;
            return sync_image();
        }
        sync_image()?;
        taken.write(own, fail)
    }

    /// Takes what is pending, for a flush to make durable: only one is at work at a time.
    fn take(&self) -> Result<Taken<'_>> {
        let mut unsettled = self.unsettled();
        if unsettled.pending.count() == 0 {
            return Ok(Taken {
                durability: self,
                bits: None,
            });
        }
        let fresh = match unsettled.spare.take() {
            Some(spare) => spare,
            None => Bits::new(unsettled.pending.len())?,
        };
        let bits = Arc::new(std::mem::replace(&mut unsettled.pending, fresh));
        unsettled.taken = Some(Arc::clone(&bits));
        unsettled.taken_owed = std::mem::take(&mut unsettled.pending_owed);
        Ok(Taken {
            durability: self,
            bits: Some(bits),
        })
    }

    /// Writes the bits `taken`, whose granules are durable, beside those of `own` that are durable; and makes them so.
    fn write(&self, own: &Bits, taken: &Bits, fail: impl FnOnce(&crate::error::Error)) -> Result<()> {
        // Where a sync has failed before, the kernel takes what it dropped for written, and no sync brings it back: what was
        // found in the file is written again.
        let synced = self.synced.load(Ordering::Relaxed) || mutation::on(Fault::FoundIsWritten);
        // Before memory is looked at: whatever is in neither was pending then.
        let late = self.unsettled().late.clone();
        let words_at = |start, words: &mut [u8]| {
            let mut others = [0; BitmapFile::PIECE];
            let others = &mut others[..words.len()];
            // In this order: a bit that is set meanwhile was pending before.
            own.serialize(start, words)?;
            for granules in &late {
                add_to(words, start, *granules);
            }
            self.unsettled().pending.serialize(start, others)?;
            words
                .iter_mut()
                .zip(&*others)
                .for_each(|(word, not)| *word &= !not);
            if taken.count() > 0 {
                taken.serialize(start, others)?;
                words
                    .iter_mut()
                    .zip(&*others)
                    .for_each(|(word, also)| *word |= also);
            }
            Ok(())
        };
        if !synced {
            self.file.write_pieces(own, words_at)?;
        }
        // Late ones are in memory nowhere.
        if synced || !late.is_empty() {
            self.file.write_pieces(taken, words_at)?;
        }
        if !mutation::on(Fault::AllocationUnsynced) {
            // A file whose sync failed may have lost what the kernel had for it: no later sync proves anything (A2).
            self.file.sync().inspect_err(|e| fail(e))?;
        }
        self.synced.store(true, Ordering::Release);
        Ok(())
    }

    fn unsettled(&self) -> MutexGuard<'_, Unsettled> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the bits of `granules` in the bytes of a bitmap from `start` on.
fn add_to(bytes: &mut [u8], start: u64, granules: GranuleRange) {
    let first = start * 8;
    let end = first + bytes.len() as u64 * 8;
    for index in granules.start.0.max(first)..granules.end.0.min(end) {
        let bit = index - first;
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| bytes.get_mut(at)) {
            *byte |= 1 << (bit % 8);
        }
    }
}

impl Unsettled {
    fn touches(&self, granules: GranuleRange) -> bool {
        let taken = self.taken.as_ref();
        self.pending.any_set(granules) || taken.is_some_and(|taken| taken.any_set(granules))
    }

    /// Nothing keeps the bits of `granules` but memory, as far as they are not durable: another's flush may have come between.
    fn owe(&mut self, granules: GranuleRange) {
        let taken = self.taken.as_ref();
        self.taken_owed |= taken.is_some_and(|taken| taken.any_set(granules));
        self.pending_owed |= self.pending.any_set(granules);
    }
}

/// What a flush is at work on. Dropping it, after whatever failure, makes the bits pending again.
struct Taken<'d> {
    durability: &'d Durability,
    bits: Option<Arc<Bits>>,
}

impl Taken<'_> {
    /// Makes the bits durable; their granules are.
    fn write(mut self, own: &Bits, fail: impl FnOnce(&crate::error::Error)) -> Result<()> {
        let durability = self.durability;
        match &self.bits {
            None if durability.synced.load(Ordering::Relaxed) => return Ok(()),
            None => return durability.write(own, &Bits::new(0)?, fail),
            Some(bits) => durability.write(own, bits, fail)?,
        }
        let len = self.bits.take().map_or(0, |bits| bits.len());
        // New ones instead of the same ones cleared: these would keep the memory that they had taken.
        let spare = Bits::new(len).ok();
        let mut unsettled = durability.unsettled();
        unsettled.taken = None;
        unsettled.spare = spare;
        unsettled.taken_owed = false;
        durability.note_owed(&unsettled);
        Ok(())
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(bits) = self.bits.take() {
            let mut unsettled = self.durability.unsettled();
            unsettled.pending.merge_from(&bits);
            unsettled.taken = None;
            unsettled.pending_owed |= std::mem::take(&mut unsettled.taken_owed);
        }
    }
}

impl Disk {
    /// Makes every change that completed before this call durable, with its allocation bits (A2).
    ///
    /// The caller is inside the gate, or has closed it.
    pub(in crate::disk) fn sync_shape(&self, shape: &Shape) -> Result<()> {
        match &shape.overlay {
            Some(overlay) => self.flush_overlay(overlay),
            None => self.sync_image(SyncMode::Data),
        }
    }

    /// The same from outside of the gate.
    pub(in crate::disk) fn sync_written(&self) -> Result<()> {
        if self.own.current().layered {
            return self.sync_shape(&self.gate.enter());
        }
        self.sync_image(SyncMode::Data)
    }

    /// Makes pending bits durable, where there are any: their shadow is about to go.
    pub(super) fn flush_pending(&self, overlay: &Overlay) -> Result<()> {
        if overlay.durability.unsettled().pending.count() == 0 {
            return Ok(());
        }
        self.flush_overlay(overlay)
    }

    /// Makes durable what is below the disk, once: what it has not itself it shows from there, and some of that by the guest's
    /// own word, who may have written zeros where an image ends (A1, A2). Whoever made these images need not have done it.
    pub(in crate::disk) fn sync_below(&self, chain: &Chain) -> Result<()> {
        if mutation::on(Fault::BelowUnsynced) {
            return Ok(());
        }
        chain.sync().inspect_err(|e| self.fail(e))
    }

    /// Fails where what is below the disk shows what only a recovery there could make durable: a starting point would take it for
    /// granted (D1). From outside of the gate.
    pub(in crate::disk) fn check_recovered_below(&self) -> Result<()> {
        if let Some(inner) = self.image().disk() {
            inner.check_recovered_below()?;
        }
        if let Some(below) = &self.below {
            below.check_recovered()?;
        }
        let shape = self.gate.enter();
        let overlay = shape.overlay.as_ref();
        overlay.map_or(Ok(()), |it| it.chain.check_recovered())
    }

    pub(super) fn flush_overlay(&self, overlay: &Overlay) -> Result<()> {
        self.sync_below(&overlay.chain)?;
        let durability = &overlay.durability;
        let round = |(): &()| {
            // A round that failed before this one has the disk fail for good.
            self.alive.check_unfailed()?;
            durability.settle(
                &overlay.own.bits,
                || self.sync_image(SyncMode::Data),
                |e| self.fail(e),
            )
        };
        // The pending bits are taken by one at a time, and so no round is beside another.
        durability.rounds.join(|| None, round, || Ok(()))
    }

    /// Makes a change of `granules` durable that has just been done, and all before it to the same granules.
    pub(super) fn sync_granules(&self, overlay: &Overlay, granules: GranuleRange) -> Result<()> {
        if overlay.durability.has(&overlay.own.bits, granules) || mutation::on(Fault::FuaOfImageAlone) {
            return self.sync_image(SyncMode::Data);
        }
        self.flush_overlay(overlay)
    }
}

//! What of the allocation bits is on disk, and how the rest gets there.
//!
//! Invariant (A1): the file gets a bit only after a sync of the image that began when the granule was in it. So durable
//! and pending bits are kept apart, and a flush takes the pending ones *before* it syncs the image: what becomes
//! pending meanwhile has bytes that this sync need not have seen.

use std::sync::Arc;

use super::Overlay;
use super::rounds::Rounds;
use crate::bitmap::{BitmapFile, Bits};
use crate::disk::Disk;
use crate::disk::bitmaps::Shape;
use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::storage::SyncMode;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::GranuleRange;

#[derive(Debug)]
pub(super) struct Durability {
    pub(super) file: Arc<BitmapFile>,
    /// Bits that are in the file.
    durable: Bits,
    /// Bits that are set in memory alone, and whose granules are in the image.
    pending: Mutex<Bits>,
    /// No bit set; to be put in the place of the pending ones. Held by the one who flushes.
    spare: Mutex<Bits>,
    /// Whether what is in the file is durable. Not so when the disk is opened: what an earlier process has left in the
    /// page cache goes with a power cut, and takes with it what was written into such a granule since.
    synced: AtomicBool,
    rounds: Rounds,
}

impl std::fmt::Debug for BitmapFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BitmapFile")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl Durability {
    /// Of bits that were just read from `file`. A disk that is not writable has nothing to keep apart.
    pub(super) fn new(file: Arc<BitmapFile>, bits: &Bits, writable: bool) -> Result<Self> {
        let len = if writable { bits.len() } else { 0 };
        let durable = Bits::new(len)?;
        durable.merge_from(bits);
        Ok(Self {
            file,
            durable,
            pending: Mutex::new(Bits::new(len)?),
            spare: Mutex::new(Bits::new(len)?),
            synced: AtomicBool::new(mutation::on(Fault::FoundIsDurable)),
            rounds: Rounds::default(),
        })
    }

    /// As [`new`](Self::new), of a file that was just written and synced.
    pub(super) fn of_synced(file: Arc<BitmapFile>, bits: &Bits) -> Result<Self> {
        let this = Self::new(file, bits, true)?;
        this.synced.store(true, Ordering::Relaxed);
        Ok(this)
    }

    /// The next flush is to make these bits durable. Their granules must be in the image.
    pub(super) fn add(&self, granules: GranuleRange) {
        locked(&self.pending).set(granules);
    }

    /// Whether the bits of `granules` outlive a power cut.
    fn has(&self, granules: GranuleRange) -> bool {
        // Acquires: pairs with the release of the flush that synced the file.
        self.synced.load(Ordering::Acquire) && self.durable.all_set(granules)
    }

    /// One flush: `sync_image`, and the bits of what is in the image. `fail` is told of a sync that failed.
    fn settle(
        &self,
        sync_image: impl FnOnce() -> Result<()>,
        fail: impl FnOnce(&crate::error::Error),
    ) -> Result<()> {
        let mut spare = locked(&self.spare);
        if mutation::on(Fault::PendingTakenLate) {
            sync_image()?;
            std::mem::swap(&mut *locked(&self.pending), &mut *spare);
            return self.write(&mut spare, fail);
        }
        std::mem::swap(&mut *locked(&self.pending), &mut *spare);
        if mutation::on(Fault::BitsBeforeImage) {
            self.write(&mut spare, fail)?;
            return sync_image();
        }
        if let Err(error) = sync_image() {
            self.put_back(&mut spare);
            return Err(error);
        }
        self.write(&mut spare, fail)
    }

    /// Writes the `taken` bits, whose granules are durable, and makes them durable too.
    fn write(&self, taken: &mut Bits, fail: impl FnOnce(&crate::error::Error)) -> Result<()> {
        if taken.count() == 0 && self.synced.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Err(error) = self.file.write_more(&self.durable, taken) {
            self.put_back(taken);
            return Err(error);
        }
        if !mutation::on(Fault::AllocationUnsynced) {
            // A file whose sync failed may have lost what the kernel had for it: no later sync proves anything (A2).
            self.file.sync().inspect_err(|e| fail(e))?;
        }
        self.durable.merge_from(taken);
        self.synced.store(true, Ordering::Release);
        taken.clear_all();
        Ok(())
    }

    fn put_back(&self, taken: &mut Bits) {
        locked(&self.pending).merge_from(taken);
        taken.clear_all();
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
        if self.layered {
            return self.sync_shape(&self.gate.enter());
        }
        self.sync_image(SyncMode::Data)
    }

    pub(super) fn flush_overlay(&self, overlay: &Overlay) -> Result<()> {
        let durability = &overlay.durability;
        durability.rounds.join(|| {
            // A round that failed before this one has the disk fail for good.
            self.alive.check_unfailed()?;
            durability.settle(|| self.sync_image(SyncMode::Data), |e| self.fail(e))
        })
    }

    /// Makes a change of `granules` durable that has just been done, and all before it to the same granules.
    pub(super) fn sync_granules(&self, overlay: &Overlay, granules: GranuleRange) -> Result<()> {
        if overlay.durability.has(granules) || mutation::on(Fault::FuaOfImageAlone) {
            return self.sync_image(SyncMode::Data);
        }
        self.flush_overlay(overlay)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

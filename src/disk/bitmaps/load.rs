//! Getting bits into memory: at open those that record, others when they are first asked for.
//!
//! Invariant: the bits that a disk has in memory never take more than the limit that its opener set.

use std::sync::Arc;

use super::Bitmap;
use crate::bitmap::Bits;
use crate::error::{Error, ErrorCode, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, PoisonError};

/// The limit on memory, and the lock of those who load.
pub(in crate::disk) struct Loading {
    limit: Option<u64>,
    /// What the allocation bits take, which are in memory for as long as the disk is open.
    allocation: AtomicU64,
    /// What the bitmaps of an image that is a disk itself take.
    image: AtomicU64,
    /// Two readers of one bitmap load it once, and no two together pass the limit.
    one_at_a_time: Mutex<()>,
}

impl Loading {
    /// At most `limit` bytes, or as many as there are.
    pub(in crate::disk) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            allocation: AtomicU64::new(0),
            image: AtomicU64::new(0),
            one_at_a_time: Mutex::new(()),
        }
    }

    /// With the same limit, for what is to be below a disk that keeps `own` allocation bits.
    pub(in crate::disk) fn afresh(&self, own: &Bits) -> Self {
        Self {
            allocation: AtomicU64::new(own.memory()),
            image: AtomicU64::new(self.image.load(Ordering::Relaxed)),
            ..Self::new(self.limit)
        }
    }

    /// What `other` has loaded takes the place of the allocation bits that there were.
    pub(in crate::disk) fn follow(&self, other: &Self) {
        let bytes = other.allocation.load(Ordering::Relaxed);
        self.allocation.store(bytes, Ordering::Relaxed);
    }

    /// So many bytes are what the bitmaps of the disk's image take.
    pub(in crate::disk) fn count_image(&self, bytes: u64) {
        self.image.store(bytes, Ordering::Relaxed);
    }

    /// What `bitmaps`, and all else that is counted, take.
    pub(super) fn all_used(&self, bitmaps: &[Bitmap]) -> u64 {
        used(bitmaps).saturating_add(self.counted())
    }

    fn counted(&self) -> u64 {
        let allocation = self.allocation.load(Ordering::Relaxed);
        allocation.saturating_add(self.image.load(Ordering::Relaxed))
    }

    /// The bits of `bitmap`, one of `all`, on a disk of `length` bytes.
    pub(super) fn bits<'b>(&self, bitmap: &'b Bitmap, all: &[Bitmap], length: u64) -> Result<&'b Arc<Bits>> {
        if let Some(bits) = bitmap.loaded() {
            return Ok(bits);
        }
        let _alone = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bits) = bitmap.loaded() {
            return Ok(bits);
        }
        self.load(bitmap, all, length)
            .map_err(|e| e.context(format_args!("bitmap {:?}", bitmap.name)))
    }

    fn load<'b>(&self, bitmap: &'b Bitmap, all: &[Bitmap], length: u64) -> Result<&'b Arc<Bits>> {
        let granules = bitmap.granularity.granules_in(length);
        let bits = match &bitmap.kept {
            Some(kept) => {
                // Asked with the least that the bits can take, before any of it is taken.
                self.check(used(all).saturating_add(granules / 8))?;
                kept.file.load(granules)?
            }
            None => Bits::new(granules)?,
        };
        self.check(used(all).saturating_add(bits.memory()))?;
        Ok(bitmap.bits.get_or_init(|| Arc::new(bits)))
    }

    /// Loads `granules` allocation bits, if there is room for them; it is counted from now on.
    pub(in crate::disk) fn reserved(
        &self,
        granules: u64,
        load: impl FnOnce() -> Result<Bits>,
    ) -> Result<Bits> {
        let before = self.allocation.load(Ordering::Relaxed);
        // Asked with the least that the bits can take, before any of it is taken.
        self.check(granules / 8)?;
        let bits = load()?;
        self.check(bits.memory())?;
        self.allocation.store(before + bits.memory(), Ordering::Relaxed);
        Ok(bits)
    }

    /// Loads what writes will be recorded in.
    pub(in crate::disk) fn recording(&self, all: &[Bitmap], length: u64) -> Result<()> {
        all.iter()
            .filter(|bitmap| bitmap.records())
            .try_for_each(|bitmap| self.bits(bitmap, all, length).map(drop))
    }

    /// Fails where the bits of `all` take too much.
    pub(super) fn check_all(&self, all: &[Bitmap]) -> Result<()> {
        self.check(used(all))
    }

    fn check(&self, bytes: u64) -> Result<()> {
        let bytes = bytes.saturating_add(self.counted());
        match self.limit {
            Some(limit) if bytes > limit => Err(Error::new(
                ErrorCode::NoMemory,
                format!("the bitmaps would take {bytes} bytes of memory, more than the limit of {limit}"),
            )),
            _ => Ok(()),
        }
    }
}

fn used(all: &[Bitmap]) -> u64 {
    all.iter().map(Bitmap::memory).sum()
}

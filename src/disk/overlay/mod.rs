//! Copy-on-write: a disk that keeps an allocation bitmap, and the images below it.
//!
//! A set bit says that the granule is in the disk's own image, a clear one that it is in the backing, or reads as
//! zeros where there is none. May call `state`, `bitmap`, `descriptor`, `storage` and the disk's `blocking` executor;
//! whoever calls is inside the disk's gate. Invariant (A1): a bit is set after the whole granule is in the image, never cleared
//! while the gate is open, and gets into the bitmap's file only after the granule's bytes are durable.

mod backing;
mod below;
mod chain;
mod claim;
mod commit;
mod durable;
mod empty;
mod formats;
mod hold;
mod open;
mod progress;
mod read;
mod rebase;
mod resize;
mod status;
mod target;
mod write;

#[cfg(test)]
#[cfg(shuttle)]
mod models;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use backing::BackingFlags;
pub(super) use below::Below;
pub(super) use chain::{Chain, Layer, Run, Source};
pub(super) use formats::{OwnImage, two_backings};
pub(super) use hold::Hold;
pub(super) use open::{Backing, measured};
pub use progress::Progress;
pub(super) use read::in_memory;
pub(super) use status::number;

use crate::bitmap::{BitmapFile, Bits};
use crate::descriptor::{BackingEntry, BitmapEntry, BitmapKind, Descriptor};
use crate::disk::bitmaps::Loading;
use crate::disk::info::OverlayInfo;
use crate::error::Result;
use crate::state::Shadow;
use crate::sync::atomic::{Ordering, fence};
use crate::units::{ByteRange, Granularity};
use chain::Allocated;
pub(super) use claim::Claims;
use durable::Durability;

/// The allocation bits of an open disk, and what is below them.
#[derive(Debug)]
pub(super) struct Overlay {
    /// The bitmap's name in the descriptor.
    name: Arc<str>,
    /// What reads and writes go by.
    own: Allocated,
    claims: Claims,
    durability: Durability,
    /// The image below, as the descriptor names it.
    backing: Option<BackingEntry>,
    chain: Arc<Chain>,
}

impl Overlay {
    /// The bits in `file`, which `entry` of the descriptor names `name`, of a disk of `length` bytes.
    pub(super) fn load(
        name: &str,
        entry: &BitmapEntry,
        file: BitmapFile,
        length: u64,
        chain: Chain,
        loading: &Loading,
        writable: bool,
    ) -> Result<Self> {
        let granularity = entry.granularity;
        let granules = granularity.granules_in(length);
        let bits = loading.reserved(granules, || file.load(granules))?;
        Ok(Self {
            name: name.into(),
            durability: Durability::new(Arc::new(file), granules, writable)?,
            own: Allocated { granularity, bits },
            claims: Claims::default(),
            backing: backing_of(entry),
            chain: Arc::new(chain),
        })
    }

    /// How many granules the disk has, and of which size.
    pub(super) fn granules(&self) -> (Granularity, u64) {
        (self.own.granularity, self.own.bits.len())
    }

    /// What is pending is to stand in `shadow`, too.
    pub(super) fn keep_shadow(&mut self, shadow: Option<Arc<Shadow>>) {
        self.durability.keep_shadow(shadow);
    }

    /// Recovery has found that the image has these granules, too. In memory alone.
    pub(super) fn add_found(&self, found: &Bits) {
        self.own.bits.merge_from(found);
    }

    /// Makes what recovery has found durable. The image was synced.
    pub(super) fn make_found_durable(&self, found: &Bits) -> Result<()> {
        self.durability
            .adopt(&self.own.bits, found)
            .map_err(|e| e.context(format_args!("bitmap {:?}", self.name)))
    }

    /// One without any bit, whose `file` was just written and synced, above `chain`. What was pending before is durable,
    /// and `before` is what the disk had until now.
    pub(super) fn empty(
        before: Option<&Self>,
        entry: (Arc<str>, Granularity, BackingEntry),
        (file, bits): (Arc<BitmapFile>, Bits),
        chain: Chain,
    ) -> Result<Self> {
        let (name, granularity, backing) = entry;
        let durability = match before {
            Some(before) => before.durability.renewed(file, &bits)?,
            None => Durability::of_synced(file, &bits)?,
        };
        Ok(Self {
            name,
            durability,
            own: Allocated { granularity, bits },
            claims: Claims::default(),
            backing: Some(backing),
            chain: Arc::new(chain),
        })
    }

    /// The file of the bits.
    pub(super) fn bits_file(&self) -> &BitmapFile {
        &self.durability.file
    }

    /// The images below.
    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The same disk with other bits, and other images below it. What it had is durable.
    fn with(&self, bits: Bits, durability: Durability, chain: Arc<Chain>) -> Self {
        Self {
            name: Arc::clone(&self.name),
            own: Allocated {
                granularity: self.own.granularity,
                bits,
            },
            claims: Claims::default(),
            durability,
            backing: self.backing.clone(),
            chain,
        }
    }

    /// The same disk as `descriptor` has it: over the image that it names, which is the chain's nearest.
    fn named_in(self, descriptor: &Descriptor) -> Self {
        let backing = descriptor.bitmap(&self.name).and_then(backing_of);
        Self { backing, ..self }
    }

    /// Facts.
    pub(super) fn info(&self) -> OverlayInfo {
        OverlayInfo {
            bitmap: self.name.to_string(),
            granularity: self.own.granularity,
            allocated: self.own.bits.count(),
            backing: self.backing.clone(),
        }
    }

    /// Where the first bytes of `range` are.
    pub(super) fn find(&self, range: ByteRange) -> Result<Run> {
        self.find_to(range, usize::MAX)
    }

    /// The same, with no look at images that have so many or more above them, the disk's own not counted.
    fn find_to(&self, range: ByteRange, limit: usize) -> Result<Run> {
        let (own, end) = self.own.run(range.start(), range.end());
        // Whoever saw a bit must see the bytes that its setter wrote before.
        fence(Ordering::Acquire);
        let range = ByteRange::between(range.start(), end);
        if own {
            let source = Source::Own;
            return Ok(Run { source, range });
        }
        self.chain.find_to(range, limit)
    }

    /// Whether all of `range` is in the disk's own image, as that of most requests is after a while: one load tells.
    #[inline]
    fn owns(&self, range: ByteRange) -> bool {
        self.own.bits.all_set(self.own.granularity.touched_by(range))
    }
}

fn backing_of(entry: &BitmapEntry) -> Option<BackingEntry> {
    match &entry.kind {
        BitmapKind::Allocation { backing } => backing.clone(),
        BitmapKind::Dirty => None,
    }
}

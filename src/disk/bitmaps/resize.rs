//! The bitmaps of a disk that becomes longer or shorter.
//!
//! Invariant (D1): what a bitmap knew stays known, and a range that was cut off and comes back is dirty in every
//! bitmap that records and whose starting point had it: it reads as zeros now.

use std::sync::{Arc, OnceLock};

use super::{Bitmap, Loading, Shape, Start};
use crate::bitmap::{BitmapFile, Bits};
use crate::descriptor::Descriptor;
use crate::disk::overlay::Overlay;
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};
use crate::units::{ByteRange, Granularity};

/// The bitmaps as they are on a disk of another length.
pub(in crate::disk) struct Resized {
    old: u64,
    new: u64,
    bitmaps: Vec<Bitmap>,
}

impl Resized {
    /// The bitmaps of `shape` for a disk that is `old` bytes long and is to be `new`. Changes nothing.
    pub(in crate::disk) fn new(shape: &Shape, loading: &Loading, old: u64, new: u64) -> Result<Self> {
        let mut bitmaps = shape.bitmaps.clone();
        for bitmap in &mut bitmaps {
            // One that is on its way out may have bits that cannot be had; it has none that matter.
            if bitmap.is_inconsistent() {
                bitmap.bits = Arc::default();
                continue;
            }
            resize(bitmap, shape, loading, old, new)
                .map_err(|e: Error| e.context(format_args!("bitmap {:?}", bitmap.name)))?;
        }
        loading.check_all(&bitmaps)?;
        Ok(Self { old, new, bitmaps })
    }

    /// Makes room in the files before the disk grows; then [`sync_files`](Self::sync_files) them. A power cut between
    /// leaves files that are too long, which does no harm, and never one that is too short (durability trap 5).
    pub(in crate::disk) fn grow_files(&self) -> Result<()> {
        self.each_file(|bitmap, file| {
            let from = bitmap.granularity.granules_in(self.old);
            match (bitmap.loaded(), &bitmap.frozen) {
                (None, _) => file.grow_unread(bitmap.granularity.granules_in(self.new)),
                (Some(bits), None) => file.grow(bits, None, from),
                (Some(bits), Some(frozen)) => file.grow(&frozen.successor, Some(bits), from),
            }
        })
    }

    /// Makes the files durable.
    pub(in crate::disk) fn sync_files(&self) -> Result<()> {
        self.each_file(|_, file| file.sync())
    }

    fn each_file(&self, act: impl Fn(&Bitmap, &BitmapFile) -> Result<()>) -> Result<()> {
        self.bitmaps.iter().try_for_each(|bitmap| match &bitmap.kept {
            Some(kept) => {
                act(bitmap, &kept.file).map_err(|e| e.context(format_args!("bitmap {:?}", bitmap.name)))
            }
            None => Ok(()),
        })
    }

    /// Cuts the files, after the disk was cut.
    pub(in crate::disk) fn shrink_files(&self) {
        for bitmap in &self.bitmaps {
            if let (Some(kept), Some(bits)) = (&bitmap.kept, bitmap.loaded()) {
                // A file that stays too long does no harm: what is behind the bits is ignored, and cut when it grows.
                let _ = kept.file.shrink(bits);
            }
        }
    }

    /// The descriptor with the length before the cut in every entry that does not know how long the disk was at its
    /// starting point; `None` where each does. Must be durable before the cut, or a later growth would not know that
    /// the range had been there.
    pub(in crate::disk) fn note_length(&mut self, descriptor: &Descriptor) -> Result<Option<Descriptor>> {
        let mut changed = None;
        for bitmap in &mut self.bitmaps {
            if !bitmap.records() || bitmap.start.length.is_some() {
                continue;
            }
            bitmap.start.length = Some(self.old);
            if let Some(entry) = descriptor.bitmap(&bitmap.name) {
                let mut entry = entry.clone();
                entry.start_length = Some(self.old);
                changed
                    .get_or_insert_with(|| descriptor.clone())
                    .update_bitmap(&bitmap.name, entry)?;
            }
        }
        Ok(changed)
    }

    /// The disk's new shape, over these layers.
    pub(in crate::disk) fn into_shape(self, old: &Shape, overlay: Option<Arc<Overlay>>) -> Shape {
        Shape::new(
            self.bitmaps,
            overlay,
            old.intent.clone(),
            old.excuses.clone(),
            true,
        )
    }
}

fn resize(bitmap: &mut Bitmap, shape: &Shape, loading: &Loading, old: u64, new: u64) -> Result<()> {
    let own = loading.bits(bitmap, &shape.bitmaps, old)?;
    let bits = resized(own, bitmap, &bitmap.start, old, new)?;
    if let Some(frozen) = &bitmap.frozen {
        let successor = resized(&frozen.successor, bitmap, &frozen.start, old, new)?;
        let start = frozen.start.clone();
        bitmap.frozen = Some(super::Frozen {
            successor: Arc::new(successor),
            start,
        });
    }
    bitmap.bits = Arc::new(OnceLock::from(Arc::new(bits)));
    Ok(())
}

/// The bits for a disk of `new` bytes, with what comes back since `start` set.
fn resized(bits: &Bits, bitmap: &Bitmap, start: &Start, old: u64, new: u64) -> Result<Bits> {
    let granularity: Granularity = bitmap.granularity;
    let other = Bits::new(granularity.granules_in(new))?;
    other.merge_from(bits);
    if bitmap.records() && !mutation::on(Fault::RegrownClean) {
        let back = ByteRange::between(old, new.min(start.length.unwrap_or(0)));
        other.set(granularity.touched_by(back));
    }
    Ok(other)
}

//! The layers of a disk that becomes longer or shorter.
//!
//! Invariant (durability trap 5): what a disk gains reads as zeros, whatever a longer backing has there: such granules are
//! allocated, and so is a granule that the old end cut. Their bits are durable before the disk is longer.

use std::sync::Arc;

use super::Overlay;
use super::write::Top;
use crate::bitmap::Bits;
use crate::disk::Disk;
use crate::disk::bitmaps::Shape;
use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::units::{ByteRange, GranuleRange};

impl Disk {
    /// Prepares the layers of a disk that is `old` bytes long and is to be `new`, and returns how they will be.
    ///
    /// The gate is closed, and all that was written is durable on return. `None` where the disk has no layers.
    pub(in crate::disk) fn resized_layers(
        &self,
        shape: &Shape,
        old: u64,
        new: u64,
    ) -> Result<Option<Arc<Overlay>>> {
        let Some(overlay) = &shape.overlay else {
            return Ok(None);
        };
        let granularity = overlay.own.granularity;
        let gained = ByteRange::between(old, new);
        // What of the new bytes the backing would show.
        let shown = ByteRange::between(old, new.min(overlay.chain.length()));
        let last = granularity.granule_of(old);
        let cut = ByteRange::between(granularity.start_of(last), old);
        if !shown.is_empty() && !cut.is_empty() && !mutation::on(Fault::TailLeftToBacking) {
            let top = Top {
                overlay,
                disk: self,
                image: self.image(),
                length: old,
            };
            top.copy_up(cut)?;
        }
        self.flush_overlay(overlay)?;
        let bits = Bits::new(granularity.granules_in(new))?;
        bits.merge_from(&overlay.own.bits);
        if !gained.is_empty() {
            if !shown.is_empty() {
                let whole = granularity.touched_by(shown);
                let after_cut = granularity.granules_in(old);
                bits.set(whole.intersect(GranuleRange::new(after_cut, u64::MAX)));
            }
            let file = &overlay.durability.file;
            file.grow(&bits, None, granularity.granules_in(old))
                .and_then(|()| file.sync().inspect_err(|e| self.fail(e)))
                .map_err(|e| e.context(format_args!("bitmap {:?}", overlay.name)))?;
        }
        let durability = overlay
            .durability
            .renewed(Arc::clone(&overlay.durability.file), &bits)?;
        let chain = Arc::clone(&overlay.chain);
        Ok(Some(Arc::new(overlay.with(bits, durability, chain))))
    }
}

impl Overlay {
    /// Cuts the bitmap's file, after the disk was cut.
    pub(in crate::disk) fn shrink_file(&self) {
        // A file that stays too long does no harm: what is behind the bits is ignored, and cut when it grows.
        let _ = self.durability.file.shrink(&self.own.bits);
    }
}

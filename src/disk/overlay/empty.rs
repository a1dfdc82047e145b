//! Taking everything out of an overlay, so that it shows its backing again.
//!
//! Invariant (M1, durability trap 6): the bits go all at once, by a new file and the descriptor's rename; the image's space
//! is freed when that is durable.

use std::path::Path;
use std::sync::Arc;

use super::{Chain, Overlay};
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::descriptor::Descriptor;
use crate::descriptor::names::{FileName, child_path, create_unique_like};
use crate::descriptor::save::SaveError;
use crate::disk::bitmaps::Marks;
use crate::disk::{Disk, Structure, bitmaps::Shape};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Role, Zeroing};
use crate::units::{GranuleIndex, GranuleRange};

/// The most bytes that are freed in one go: a guest that allocates one of them waits as long.
const FREE_STEP: u64 = 64 << 20;

impl Disk {
    /// Takes every granule out of the disk's own image: it shows its backing again, or zeros where it has none.
    /// Durable on return.
    ///
    /// What is taken out is dirty in every bitmap that records. Waits for the requests in flight. An error leaves all
    /// as it was, but for dirty bits, unless it says that a power cut may leave the old descriptor or the new one.
    pub fn make_empty(&self) -> Result<()> {
        self.check_for_change()?;
        self.check_writable()?;
        let mut structure = self.structure();
        structure.check_below()?;
        let mut shape = self.gate.close();
        self.check_for_change()?;
        shape.check_no_backup(&self.path)?;
        let Some(overlay) = shape.overlay.clone() else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "cannot empty {}: it has no allocation bitmap, so all of it is its own",
                    self.path.display()
                ),
            ));
        };
        self.mark_taken_out(&shape, &overlay)?;
        let descriptor = structure.descriptor.clone();
        let chain = Arc::clone(&overlay.chain);
        self.clear_allocation(&mut structure, &mut shape, &overlay, (descriptor, chain))?;
        drop(shape);
        self.free_image();
        Ok(())
    }

    /// Every byte that the image has may read otherwise soon, and the bits that say so must be durable by then (D1).
    fn mark_taken_out(&self, shape: &Shape, overlay: &Overlay) -> Result<()> {
        let own = &overlay.own;
        for run in own.bits.runs(own.bits.all()) {
            let bytes = own.granularity.bytes_of(run, self.length());
            if let Some(marks) = Marks::needed(shape, bytes) {
                marks.record()?;
            }
        }
        self.settle_all(shape)
    }

    /// Fails where no file can be made beside the descriptor.
    pub(super) fn check_folder(&self) -> Result<()> {
        self.place
            .folder
            .check_writable()
            .map_err(|e| Error::io("create files in", self.place.folder_name(), &e))
    }

    /// Puts a bitmap without any bit in the place of the allocation bitmap, and `chain` below it, which `descriptor`
    /// names.
    pub(super) fn clear_allocation(
        &self,
        structure: &mut Structure,
        shape: &mut Shape,
        overlay: &Overlay,
        (mut descriptor, chain): (Descriptor, Arc<Chain>),
    ) -> Result<()> {
        self.flush_pending(overlay)?;
        self.check_folder()?;
        let folder = &*self.place.folder;
        let file_name = FileName::bitmap(&self.place.name, &overlay.name);
        let (name, storage) = create_unique_like(folder, Role::Bitmap, &file_name, &self.place.name)?;
        let remove = |name: &str| {
            // One that stays does no harm, and a check finds it.
            if let Ok(path) = child_path(name) {
                let _ = folder.remove(path);
            }
        };
        let bits = Bits::new(overlay.own.bits.len())?;
        let path = self.place.shown.join(Path::new(&name));
        let file = Arc::new(BitmapFile::new(storage, path, BitmapPolicy::WriteThrough));
        let prepared = file
            .write_new(&bits)
            .and_then(|()| {
                folder
                    .sync()
                    .map_err(|e| Error::io("sync the folder", self.place.folder_name(), &e))
            })
            .and_then(|()| renamed(&mut descriptor, &overlay.name, &name))
            .and_then(|old| Ok((old, overlay.durability.renewed(file, &bits)?)));
        let (old, durability) = prepared.inspect_err(|_| remove(&name))?;
        if let Err(error) = self.save(&descriptor) {
            if matches!(error, SaveError::Unchanged(_)) {
                remove(&name);
            }
            return Err(error.into());
        }
        let overlay = overlay.with(bits, durability, chain).named_in(&descriptor);
        structure.descriptor = descriptor;
        shape.overlay = Some(Arc::new(overlay));
        remove(&old);
        Ok(())
    }

    /// Gives back the space of what is not allocated any more, where that is quickly done. The caller holds the structure and
    /// has opened the gate again: guests go on, and wait only where they allocate what is just being freed.
    pub(super) fn free_image(&self) {
        let Some(overlay) = self.gate.enter().overlay.clone() else {
            return;
        };
        let (own, all) = (&overlay.own, overlay.own.bits.all());
        let step = (FREE_STEP / own.granularity.bytes()).max(1);
        let how = Zeroing {
            may_unmap: true,
            no_fallback: true,
        };
        let mut at = all.start;
        while at < all.end {
            let piece = GranuleRange {
                start: at,
                end: all.end.min(GranuleIndex(at.0.saturating_add(step))),
            };
            at = piece.end;
            // Whoever has allocated a granule since has its bit set by now; whoever is about to waits.
            let claim = (!mutation::on(Fault::FreedUnclaimed)).then(|| overlay.claims.claim(piece));
            let mut rest = piece;
            while let Some(start) = own.bits.next_clear(rest) {
                rest.start = start;
                let end = own.bits.next_set(rest).unwrap_or(piece.end);
                rest.start = end;
                let bytes = own
                    .granularity
                    .bytes_of(GranuleRange { start, end }, self.length());
                // What is not given back is only space: bytes of granules without a bit are never shown.
                if self.image().storage.write_zeroes(bytes, how).is_err() {
                    return;
                }
            }
            drop(claim);
        }
    }
}

/// Makes `file` the file of `bitmap`, and returns the one that it had.
fn renamed(descriptor: &mut Descriptor, bitmap: &str, file: &str) -> Result<String> {
    let Some(mut entry) = descriptor.bitmap(bitmap).cloned() else {
        return Err(Error::new(
            ErrorCode::BitmapNotFound,
            format!("there is no bitmap {bitmap:?} in the descriptor"),
        ));
    };
    let old = std::mem::replace(&mut entry.file, file.to_owned());
    descriptor.update_bitmap(bitmap, entry)?;
    Ok(old)
}

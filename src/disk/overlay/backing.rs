//! Another image below a disk: by name alone, or behind a job that has made sure that nothing changes.
//!
//! Invariant (M1): the descriptor names the new image by one atomic save, the disk reads from it from the same point
//! between requests on, and what it shows by its own bits is durable by then (A1): a bit that a power cut takes back
//! would show the new image where the old one had been.

use std::path::Path;
use std::sync::Arc;

use super::chain::Layer;
use super::open::Backing;
use super::{Chain, Overlay};
use crate::bitmap::Bits;
use crate::descriptor::{BackingEntry, BitmapKind, Descriptor};
use crate::disk::bitmaps::{Loading, Marks, Shape};
use crate::disk::open::Files;
use crate::disk::{Disk, Structure};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Access, Role};
use crate::units::{ByteRange, GranuleRange};

bitflags::bitflags! {
    /// What [`Disk::change_backing`] may rely on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct BackingFlags: u32 {
        /// The new image shows what the old one showed, so no dirty bitmap records the change. The caller's promise.
        const UNCHANGED = 1;
    }
}

/// What is to be below a disk, open and ready.
pub(super) struct Below {
    pub(super) descriptor: Descriptor,
    pub(super) chain: Chain,
    pub(super) loading: Loading,
}

impl Disk {
    /// Puts another image below the disk, or none, by its name alone: no byte is copied, and what the disk has not in
    /// its own image reads as the new image from now on. [`rebase`](Disk::rebase) keeps the content instead.
    ///
    /// The name goes into the descriptor as it is: a relative one is relative to the descriptor's folder. Durable on
    /// return. The new image, and all below it, must open, and no file may be in use twice; where the disk was opened
    /// without its backing the new one is tried out, and closed again. Waits for the requests in flight.
    ///
    /// What may read otherwise now is dirty in every bitmap that records, unless `flags` say that nothing does, or the
    /// chain has the same files as before.
    pub fn change_backing(&self, backing: Option<BackingEntry>, flags: BackingFlags) -> Result<()> {
        self.change_backing_parts(backing, flags).map_err(|e| {
            e.context(format_args!(
                "cannot change the backing of {}",
                self.path.display()
            ))
        })
    }

    fn change_backing_parts(&self, backing: Option<BackingEntry>, flags: BackingFlags) -> Result<()> {
        self.check_for_change()?;
        self.check_writable()?;
        let mut structure = self.structure();
        let overlay = self.overlay_of_its_own()?;
        let below = self.below((&structure.descriptor, &self.gate.enter()), &overlay, backing)?;
        below.chain.check_in_place_of(&overlay.chain)?;
        let mut shape = self.gate.close();
        self.check_for_change()?;
        shape.check_no_backup(&self.path)?;
        if !flags.contains(BackingFlags::UNCHANGED) && !overlay.chain.has_the_files_of(&below.chain) {
            self.mark_shown(&shape, &overlay, &below.chain)?;
        }
        self.switch(&mut structure, &mut shape, &overlay, below)
    }

    /// The overlay that the disk is. The caller has the disk's structure, so that it stays the same.
    pub(super) fn overlay_of_its_own(&self) -> Result<Arc<Overlay>> {
        let overlay = self.gate.enter().overlay.clone();
        overlay.ok_or_else(|| {
            Error::new(
                ErrorCode::NotSupported,
                "it has no allocation bitmap, so all of it is its own",
            )
        })
    }

    /// Opens what `backing` names for a disk with this descriptor and shape, and all below it, as an open of the disk
    /// would.
    pub(super) fn below(
        &self,
        (descriptor, shape): (&Descriptor, &Shape),
        overlay: &Overlay,
        backing: Option<BackingEntry>,
    ) -> Result<Below> {
        self.check_folder()?;
        let descriptor = over(descriptor, &overlay.name, backing)?;
        let loading = self.loading.afresh(&overlay.own.bits);
        let mut files = self.files_of_its_own(overlay, shape);
        let mut chain = Chain::open(&mut files, Backing::of(&descriptor), &loading)?;
        chain.sync_but(&overlay.chain)?;
        if overlay.chain.unopened {
            // Tried out only: who has opened the disk did not want what is below it.
            chain = Chain::without_images(!chain.layers.is_empty());
        }
        Ok(Below {
            descriptor,
            chain,
            loading,
        })
    }

    /// The files of the disk itself, none of which can be below it too.
    fn files_of_its_own(&self, overlay: &Overlay, shape: &Shape) -> Files<'_> {
        let files = Files::new(&self.place);
        // Where it cannot be opened any more, its own descriptor is found out by the image that it names.
        let descriptor = self
            .place
            .folder
            .open(Role::Descriptor, &self.place.name, Access::default());
        if let Ok(storage) = descriptor {
            files.note("the descriptor", &*storage, true);
        }
        self.image().note(&files);
        files.note("the allocation bitmap", overlay.durability.file.storage(), false);
        for file in shape.bitmap_files() {
            files.note("a dirty bitmap", file.storage(), false);
        }
        if let Some(session) = &self.session {
            files.note("QBM.state.file", session.file().storage(), false);
        }
        files
    }

    /// Whatever the disk shows of its chain, or would show of `other`, may read otherwise soon, and the bits that say
    /// so must be durable by then (D1).
    fn mark_shown(&self, shape: &Shape, overlay: &Overlay, other: &Chain) -> Result<()> {
        if mutation::on(Fault::RebasedClean) {
            return Ok(());
        }
        let own = &overlay.own;
        let shown = overlay.chain.length().max(other.length()).min(self.length());
        let mut rest = own.granularity.touched_by(ByteRange::between(0, shown));
        while let Some(start) = own.bits.next_clear(rest) {
            rest.start = start;
            let end = own.bits.next_set(rest).unwrap_or(rest.end);
            let run = own
                .granularity
                .bytes_of(GranuleRange { start, end }, self.length());
            if let Some(marks) = Marks::needed(shape, run) {
                marks.record()?;
            }
            rest.start = end;
        }
        self.settle_all(shape)
    }

    /// Opens the images below again, one of which has become another. What the disk has itself stays. The gate is closed.
    pub(super) fn reopen_chain(
        &self,
        descriptor: &Descriptor,
        shape: &mut Shape,
        overlay: &Overlay,
    ) -> Result<()> {
        let below = self.below((descriptor, shape), overlay, overlay.backing.clone())?;
        self.flush_overlay(overlay)?;
        let bits = Bits::new(overlay.own.bits.len())?;
        bits.merge_from(&overlay.own.bits);
        let file = Arc::clone(&overlay.durability.file);
        let durability = overlay.durability.renewed(file, &bits)?;
        self.loading.follow(&below.loading);
        let overlay = overlay.with(bits, durability, Arc::new(below.chain));
        shape.overlay = Some(Arc::new(overlay));
        Ok(())
    }

    /// Has the descriptor name what is `below`, and the disk read from it. The gate is closed.
    pub(super) fn switch(
        &self,
        structure: &mut Structure,
        shape: &mut Shape,
        overlay: &Overlay,
        below: Below,
    ) -> Result<()> {
        if !mutation::on(Fault::RebasedUnflushed) {
            self.flush_overlay(overlay)?;
        }
        let bits = Bits::new(overlay.own.bits.len())?;
        bits.merge_from(&overlay.own.bits);
        let file = Arc::clone(&overlay.durability.file);
        if !mutation::on(Fault::RebasedUnflushed) {
            // Written anew: after a sync that failed, in this process or another, what the page cache shows need not be in
            // the file, and no later sync puts it there.
            file.write_pieces(&bits, |start, words| bits.serialize(start, words))?;
            file.sync().inspect_err(|e| self.fail(e))?;
        }
        let durability = overlay.durability.renewed(file, &bits)?;
        // What a commit that failed could not make durable is no surer for being opened once more.
        let below_again = below.chain.shares_files_with(&overlay.chain);
        self.save(&below.descriptor)?;
        self.loading.follow(&below.loading);
        let overlay = overlay.with(bits, durability, Arc::new(below.chain));
        shape.overlay = Some(Arc::new(overlay.named_in(&below.descriptor)));
        structure.descriptor = below.descriptor;
        if !below_again {
            structure.outdated = None;
        }
        Ok(())
    }
}

impl Chain {
    /// Makes the images durable that `other` has not. Who made them may not have done so, and what is to be relied on in
    /// place of another's bytes must not go with a power cut that leaves the descriptor (A1).
    fn sync_but(&self, other: &Self) -> Result<()> {
        let is_new = |layer: &&Layer| !other.layers.iter().any(|it| it.is_the_image_of(layer));
        if mutation::on(Fault::FoundBackingUnsynced) {
            return Ok(());
        }
        self.layers.iter().filter(is_new).try_for_each(|layer| {
            layer.check_recovered()?;
            layer.sync()
        })
    }

    /// Fails where the disk cannot go over to these images from `other`'s, of which it lets some go: what these alone kept
    /// through a power cut must be kept by the ones that stay, too (A1). The flush before makes them durable as far as that goes.
    pub(super) fn check_in_place_of(&self, other: &Self) -> Result<()> {
        if other.has_the_files_of(self) {
            return Ok(());
        }
        self.check_recovered()
    }

    /// Whether any image is in both.
    fn shares_files_with(&self, other: &Self) -> bool {
        let file = |layer: &Layer| layer.image.storage.identity();
        self.layers
            .iter()
            .any(|layer| other.layers.iter().any(|it| file(it) == file(layer)))
    }

    /// Whether both are made of the same files in the same formats, one by one.
    pub(in crate::disk) fn has_the_files_of(&self, other: &Self) -> bool {
        let bits = |layer: &Layer| layer.bits_file.as_ref().and_then(|it| it.storage().identity());
        let same = |(a, b): (&Layer, &Layer)| a.is_the_image_of(b) && bits(a) == bits(b);
        !self.unopened
            && !other.unopened
            && self.layers.len() == other.layers.len()
            && self.layers.iter().zip(&other.layers).all(same)
    }
}

/// The descriptor with another image, or none, below that with the allocation bitmap `name`.
pub(super) fn over(descriptor: &Descriptor, name: &str, backing: Option<BackingEntry>) -> Result<Descriptor> {
    let mut descriptor = descriptor.clone();
    let Some(mut entry) = descriptor.bitmap(name).cloned() else {
        return Err(Error::new(
            ErrorCode::BitmapNotFound,
            format!("there is no bitmap {name:?} in the descriptor"),
        ));
    };
    entry.kind = BitmapKind::Allocation { backing };
    descriptor.update_bitmap(name, entry)?;
    Ok(descriptor)
}

/// How the descriptor names the file of `layer`, whose name as the disk's folder sees it leads to `shown`.
pub(super) fn name_from(folder: &Path, shown: &Path) -> Result<String> {
    let path = shown.strip_prefix(folder).unwrap_or(shown);
    let Some(name) = path.to_str() else {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!("the name {} is not UTF-8, which a descriptor is", path.display()),
        ));
    };
    if crate::descriptor::names::child_path(name).is_ok_and(|again| again == path) {
        return Ok(name.to_owned());
    }
    // What looks like a scheme is one unless a folder stands before it.
    Ok(format!("./{name}"))
}

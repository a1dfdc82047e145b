//! External snapshots: what a disk is now is put behind a descriptor of its own, and the disk goes on above it.
//!
//! The disk's descriptor keeps its name, its dirty bitmaps and its state file, and gets a new image over the old one: so
//! whoever opens the disk by its name needs to be told nothing, and old or new is decided by one rename (M1).
//! Invariant: before that rename everything that the new descriptor names is durable, and so is what was written to the old
//! image, which no later flush syncs.

#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::create::{ALLOCATION, allocation_entry, image_entry};
use super::open::{Files, Place};
use super::overlay::{Backing, Chain, Overlay};
use super::own_image::Own;
use super::{Child, Disk};
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::descriptor::names::{FileName, child_path, create_unique_like};
use crate::descriptor::save::{self, SaveError};
use crate::descriptor::{BackingEntry, BitmapEntry, Descriptor, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::state::{Evidence, Lock, Shadow, Sharing};
use crate::storage::{Access, Role, Storage, SyncMode};
use crate::sync::PoisonError;
use crate::units::Granularity;

type MaybeShadow = Option<Arc<Shadow>>;

impl Disk {
    /// Keeps the disk as it is now under the name `name`, and goes on in a new image above it. Durable on return.
    ///
    /// `name` is a new file in the descriptor's folder: a descriptor of the image that was the disk's, with the same
    /// images below. The disk itself keeps its descriptor's name, its dirty bitmaps, of which none changes, and its state
    /// file; its new image takes what is written from now on, in granules of `granularity` (as before where it is `None`,
    /// or 64 KiB). From now on nobody may write to the old image, and [`commit`](Disk::commit) takes the two together
    /// again.
    ///
    /// Requests go on, but for a moment in which all that was written is made durable: each comes whole before the
    /// snapshot or whole behind it. An error leaves the disk as it was, unless it says that a power cut may leave the
    /// old descriptor or the new one. After a crash the disk is the old or the new one; a file `name` that it does not use may
    /// be left.
    pub fn snapshot(&self, name: &str, granularity: Option<Granularity>) -> Result<()> {
        self.snapshot_parts(name, granularity)
            .map_err(|e| e.context(format_args!("cannot take a snapshot of {}", self.path.display())))
    }

    fn snapshot_parts(&self, name: &str, granularity: Option<Granularity>) -> Result<()> {
        self.check_for_arrangement()?;
        self.check_writable()?;
        check_name(name)?;
        let mut structure = self.structure();
        let before = self.gate.enter().overlay.clone();
        let granularity = granularity
            .or_else(|| before.as_ref().map(|it| it.granules().0))
            .unwrap_or_default();
        let below = before.as_ref().map(|it| it.chain()).or(self.below.as_deref());
        if below.is_some_and(|it| it.unopened) {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "it was opened without its backing image",
            ));
        }
        let bitmap = self.name_for_bits(&structure.descriptor);

        let mut made = Made::begin(&self.place)?;
        let like = child_path(&structure.descriptor.image().file)?;
        let like = self.place.model(like, &**self.image().storage.shared());
        let image = made.image(self.length(), self.direct, like)?;
        let image_name = made.last().to_owned();
        let lock = if self.place.locking {
            Lock::image(image.storage.shared(), &image.path, Sharing::Write)?
        } else {
            None
        };
        let bits = Bits::new(granularity.granules_in(self.length()))?;
        let bits_file = made.bits(&bitmap, &bits)?;
        let old = kept(&structure.descriptor)?;
        let backing = BackingEntry {
            file: name.to_owned(),
            format: Format::Qbm,
        };
        let entry = allocation_entry(made.last(), Some(backing.clone()), granularity);
        let next = above(&structure.descriptor, &image_name, &bitmap, entry)?;
        if !mutation::on(Fault::SnapshotUnflushed) {
            // Most of it, before requests have to wait.
            self.sync_written()?;
        }

        let mut shape = self.gate.close();
        self.check_for_arrangement()?;
        shape.check_no_backup(&self.path)?;
        if !mutation::on(Fault::SnapshotUnflushed) {
            self.sync_shape(&shape)?;
        }
        if self.image().mapped.is_some() {
            // A qcow2 that says of itself that it was not closed opens for nobody.
            self.sync_image(SyncMode::All)?;
        }
        // From now on it is below, and nothing there is ever written to. Where it comes otherwise, it begins again.
        let ended = Ended::of(self)?;
        made.descriptor(name, &old)?;
        // Its images are held when our own lock on one of them is given up.
        let unlocked = self.place.unlocked();
        let loading = self.loading.afresh(&bits);
        let chain = Chain::open(&mut Files::new(&unlocked), Backing::of(&next), &loading)?;
        let entry = (bitmap.into(), granularity, backing);
        let mut overlay = Overlay::empty(before.as_deref(), entry, (bits_file, bits), chain)?;
        let (old_shadow, shadow) = self.new_shadow(granularity, &image)?;
        overlay.keep_shadow(shadow);
        self.save(&next).inspect_err(|error| {
            if let Some(shadow) = &old_shadow {
                shadow.spoil();
            }
            made.end(matches!(error, SaveError::Unchanged(_)));
        })?;
        made.end(false);
        ended.for_good();

        self.loading.follow(&loading);
        structure.descriptor = next;
        let before = self.image();
        self.own.switch_to(Own::new(image, true));
        if let Some(session) = &self.session {
            session.renew_stamp();
        }
        self.exchange_locks(before, lock, &overlay);
        shape.overlay = Some(Arc::new(overlay));
        Ok(())
    }

    /// A shadow for the allocation bits of a disk that is about to have `image`, and the one that it had, which nobody is to
    /// believe if that does not come. None where nothing vouches for the image's page cache.
    fn new_shadow(&self, granularity: Granularity, image: &Child) -> Result<(MaybeShadow, MaybeShadow)> {
        let Some(session) = &self.session else {
            return Ok((None, None));
        };
        let evidence = match &self.place.cache_epoch {
            Some(epoch) => Evidence::of_epoch(epoch).ok(),
            None => image.evidence(session.file().storage()).ok(),
        };
        let Some(evidence) = evidence else {
            return Ok((None, None));
        };
        let old = session.shadow();
        if let Err(error) = session.renew_shadow(granularity, evidence) {
            if let Some(old) = old {
                old.spoil();
            }
            return Err(error);
        }
        Ok((old, session.shadow()))
    }

    /// The name of the allocation bitmap that the disk has, or gets.
    fn name_for_bits(&self, descriptor: &Descriptor) -> String {
        if let Some((name, _)) = descriptor.allocation() {
            return name.to_owned();
        }
        let shape = self.gate.enter();
        let taken = |name: &str| descriptor.bitmap(name).is_some() || shape.has(name);
        let mut name = ALLOCATION.to_owned();
        let mut number = 1;
        while taken(&name) {
            number += 1;
            name = format!("{ALLOCATION}-{number}");
        }
        name
    }

    /// The image that was the disk's is read only from now on, as all in `overlay` is.
    fn exchange_locks(&self, old: &Child, lock: Option<Lock>, overlay: &Overlay) {
        if !self.place.locking {
            return;
        }
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Also those of other files that it consists of.
        locks
            .extract_if(.., |it| it.is_of_image())
            .for_each(Lock::release);
        locks.extend(lock);
        if let Some(inner) = old.disk() {
            inner.give_up_locks();
        }
        overlay.chain().take_holds();
    }
}

/// A disk whose image has ended. Dropping it begins again, before any writer comes who has looked that it has begun.
struct Ended<'d>(Option<&'d Disk>);

impl<'d> Ended<'d> {
    fn of(disk: &'d Disk) -> Result<Self> {
        let ended = Self(disk.image().disk().map(|_| disk));
        disk.image().end()?;
        Ok(ended)
    }

    fn for_good(mut self) {
        self.0 = None;
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(disk) = self.0 {
            disk.alive.rest_again();
            // Where it fails, the next change tries it, and fails.
            let _ = disk.check_for_change();
        }
    }
}

/// The files that a snapshot makes. Dropping it removes them, unless it has ended otherwise.
struct Made<'d> {
    place: &'d Place,
    names: Vec<String>,
}

impl<'d> Made<'d> {
    fn begin(place: &'d Place) -> Result<Self> {
        place
            .folder
            .check_writable()
            .map_err(|e| Error::io("create files in", place.folder_name(), &e))?;
        let names = Vec::new();
        Ok(Self { place, names })
    }

    /// A file whose name nobody has, with the attributes of the file `like`, or else the descriptor's.
    fn file(
        &mut self,
        role: Role,
        name: &FileName,
        like: Option<&Path>,
    ) -> Result<(Arc<dyn Storage>, PathBuf)> {
        let like = like.unwrap_or(&self.place.name);
        let (name, storage) = create_unique_like(&*self.place.folder, role, name, like)?;
        let path = self.place.shown.join(&name);
        self.names.push(name);
        Ok((storage, path))
    }

    /// A new image of `length` bytes, to be accessed through the page cache or around it.
    fn image(&mut self, length: u64, direct: bool, like: Option<&Path>) -> Result<Child> {
        let (storage, path) = self.file(Role::Image, &FileName::data(&self.place.name), like)?;
        storage
            .set_length(length)
            .and_then(|()| storage.sync(SyncMode::All))
            .map_err(|e| Error::io(&format!("give {length} bytes to"), &path, &e))?;
        if !direct {
            return Ok(Child::new(storage, path));
        }
        let access = Access { write: true, direct };
        let folder = &self.place.folder;
        let again = folder
            .open(Role::Image, Path::new(self.last()), access)
            .map_err(|e| Error::io("open", &path, &e))?;
        if again.identity() != storage.identity() {
            return Err(Error::new(
                ErrorCode::FileInvalid,
                format!("{} is not the file any more that was made", path.display()),
            ));
        }
        Ok(Child::new(again, path))
    }

    /// A file with these bits.
    fn bits(&mut self, bitmap: &str, bits: &Bits) -> Result<Arc<BitmapFile>> {
        let (storage, path) = self.file(Role::Bitmap, &FileName::bitmap(&self.place.name, bitmap), None)?;
        let file = BitmapFile::new(storage, path, BitmapPolicy::WriteThrough);
        file.write_new(bits)?;
        Ok(Arc::new(file))
    }

    /// The file `name` with this descriptor. Durable on return, as are the names of all files made before.
    fn descriptor(&mut self, name: &str, descriptor: &Descriptor) -> Result<()> {
        save::create_new(
            &*self.place.folder,
            Path::new(name),
            descriptor,
            Some(&self.place.name),
        )?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// The file that was made last.
    fn last(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }

    fn end(&mut self, remove: bool) {
        for name in self.names.drain(..).filter(|_| remove) {
            // The first failure is the one to tell; a file that stays is found by a check.
            let _ = self.place.folder.remove(Path::new(&name));
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.end(true);
    }
}

/// Only a plain name: what the descriptor names relative to its folder must mean the same in the snapshot's.
fn check_name(name: &str) -> Result<()> {
    let path = child_path(name)?;
    let mut parts = path.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Ok(()),
        _ => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{name:?} is not the plain name of a file, to be made in the descriptor's folder"),
        )),
    }
}

/// What the disk was, as a disk of its own: the image and what is below it.
fn kept(now: &Descriptor) -> Result<Descriptor> {
    let mut old = now.clone();
    let dirty = now.bitmaps().filter(|(_, entry)| !entry.kind.is_allocation());
    for (name, _) in dirty {
        old.remove_bitmap(name)?;
    }
    old.set_state(None)?;
    Ok(old)
}

/// The descriptor of what the disk is to be: with another image, and `entry` as its allocation bitmap.
fn above(now: &Descriptor, image: &str, bitmap: &str, entry: BitmapEntry) -> Result<Descriptor> {
    let mut next = now.clone();
    next.set_image(image_entry(image, Format::Raw))?;
    if next.bitmap(bitmap).is_some() {
        next.update_bitmap(bitmap, entry)?;
    } else {
        next.insert_bitmap(bitmap, entry)?;
    }
    Ok(next)
}

//! Several changes of one disk's bitmaps as one: all or none, at one point between writes.
//!
//! New bits go into new files, which are durable before the descriptor names them; the descriptor's rename is the
//! point at which all takes effect (M1); files that no descriptor names any more go last, so that a crash at any point
//! leaves a disk that opens (durability trap 7). Invariant: what is in memory changes last, when nothing can fail any more.

use std::sync::Arc;

use super::stage::{Change, Stage, Staged};
use super::{Bitmap, BitmapAction, Kept, Shape, several};
use crate::bitmap::BitmapFile;
use crate::descriptor::names::{FileName, child_path, create_unique_like};
use crate::descriptor::save::{self, SaveError};
use crate::descriptor::{BitmapEntry, BitmapKind, Descriptor};
use crate::disk::{Disk, Structure};
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};
use crate::storage::Role;

impl Disk {
    /// Applies all of `actions`, in their order, or none, at one point between writes. Durable on return.
    ///
    /// Waits for the writes in flight; later ones wait meanwhile. Where an action makes a starting point, the disk is
    /// flushed first, and a flush that fails is an error. An error leaves all as it was, also for who reopens the disk
    /// after a kill, unless it says that a power cut may leave the old descriptor or the new one: then the disk has failed
    /// and must be reopened, and only its bitmaps' epochs say which of the two it is.
    ///
    /// Changes that need the descriptor or a new file fail with `EROFS` where the folder cannot be written to. Setting
    /// bits, as the only action or by a merge, does not need them.
    pub fn bitmap_transaction(&self, actions: &[BitmapAction<'_>]) -> Result<()> {
        let actions: Vec<_> = actions.iter().map(|action| (self, action)).collect();
        several::at_one_point(&actions, &mut ())
    }

    /// The bitmaps as they are, to try actions out on.
    pub(super) fn stage<'d>(&'d self, structure: &Structure, shape: &Shape) -> Stage<'d> {
        Stage {
            bitmaps: shape.bitmaps.iter().cloned().map(Staged::new).collect(),
            descriptor: structure.descriptor.clone(),
            lent: shape.lent().cloned(),
            loading: &self.loading,
            length: self.length(),
            writable: self.writable,
        }
    }

    /// Ends a transaction that did nothing but add bits to one bitmap. No partner can lose bits by it, and whatever
    /// part of it a crash keeps is the old bits and some of the new ones (D1); so it goes into the file that there is.
    /// False where there is no such file, and nothing is done.
    pub(super) fn commit_added(&self, shape: &mut Shape, stage: &Stage<'_>) -> Result<bool> {
        stage.check_memory()?;
        let added = |staged: &&Staged| staged.change == Change::Added && staged.bitmap.kept.is_some();
        let Some(staged) = stage.bitmaps.iter().find(added) else {
            return Ok(false);
        };
        let old = shape.find(&staged.bitmap.name)?.loaded();
        if let (Some(kept), Some(old), Some(new)) = (&staged.bitmap.kept, old, staged.bitmap.loaded()) {
            kept.file.add_in_place(old, new)?;
            if !mutation::on(Fault::AddedUnsynced) {
                kept.file.sync().inspect_err(|e| self.bits_unsure(e))?;
            }
        }
        *shape = shape.with(stage.all(), self.writable);
        Ok(true)
    }

    /// Writes the files that the new descriptor needs, durably with their names, and returns that descriptor. Appends
    /// the names of the files to `made`, also when it fails.
    fn prepare(&self, stage: &mut Stage<'_>, shape: &Shape, made: &mut Vec<String>) -> Result<Descriptor> {
        let needs_file = |staged: &Staged| {
            staged.to_keep || (staged.bitmap.kept.is_some() && staged.change != Change::None)
        };
        if stage.bitmaps.iter().any(needs_file) {
            self.place
                .folder
                .check_writable()
                .map_err(|e| Error::io("create files in", self.place.folder_name(), &e))?;
        }
        for staged in &mut stage.bitmaps {
            if needs_file(staged) {
                staged.bitmap.kept = self.make_file(&staged.bitmap, made)?;
            } else if staged.stopped && !mutation::on(Fault::StoppedUnsettled) {
                // Recovery no longer widens it, so nothing that it was told of may be in the page cache alone.
                // As what it is on disk: a mark under the name and epoch that it is to get would mean nothing when the
                // transaction is refused for it (D1).
                if let Some(live) = shape.in_file_of(&staged.bitmap) {
                    self.settle(live)?;
                }
                staged.bitmap.check_consistent("disabled")?;
            }
        }
        if !made.is_empty() && !mutation::on(Fault::NamesUnsynced) {
            // M1: a power cut must not keep the new descriptor and lose the names of the files in it.
            self.place
                .folder
                .sync()
                .map_err(|e| Error::io("sync the folder", self.place.folder_name(), &e))?;
        }
        let mut descriptor = stage.descriptor.clone();
        for staged in &stage.bitmaps {
            enter(&mut descriptor, staged)?;
        }
        Ok(descriptor)
    }

    /// A new file with the bits of `bitmap`.
    fn make_file(&self, bitmap: &Bitmap, made: &mut Vec<String>) -> Result<Option<Kept>> {
        let Some(bits) = bitmap.loaded() else {
            return Ok(bitmap.kept.clone());
        };
        let name = FileName::bitmap(&self.place.name, &bitmap.name);
        let (name, storage) = create_unique_like(&*self.place.folder, Role::Bitmap, &name, &self.place.name)?;
        made.push(name.clone());
        let file = BitmapFile::new(storage, self.place.shown.join(&name), self.policy);
        file.write_new(bits)?;
        Ok(Some(Kept {
            name: name.into(),
            file: Arc::new(file),
        }))
    }

    /// Puts `descriptor` in the place of the one on disk.
    pub(in crate::disk) fn save(&self, descriptor: &Descriptor) -> Result<(), SaveError> {
        save::replace(&*self.place.folder, &self.place.name, descriptor).inspect_err(|error| {
            // Which of two descriptors is on disk is not known any more, so nothing may be built on either.
            if let SaveError::Unsure(error) = error
                && !mutation::on(Fault::UnsureForgotten)
            {
                self.fail(error);
            }
        })
    }

    /// Removes files that no descriptor names. One that cannot be removed does no harm, and a check finds it.
    fn remove_files(&self, names: &[String]) {
        for name in names {
            if let Ok(path) = child_path(name) {
                let _ = self.place.folder.remove(path);
            }
        }
    }
}

/// One disk's part of a transaction whose files are written, and whose descriptor is to be saved.
pub(super) struct Part<'d> {
    disk: &'d Disk,
    bitmaps: Vec<Bitmap>,
    descriptor: Descriptor,
    /// The files that were written for it.
    made: Vec<String>,
}

impl<'d> Part<'d> {
    /// Writes the files that the new descriptor needs. Leaves none behind when it fails.
    pub(super) fn prepare(disk: &'d Disk, stage: &mut Stage<'_>, shape: &Shape) -> Result<Self> {
        let mut made = Vec::new();
        match disk.prepare(stage, shape, &mut made) {
            Ok(descriptor) => Ok(Self {
                disk,
                bitmaps: stage.all(),
                descriptor,
                made,
            }),
            Err(error) => {
                disk.remove_files(&made);
                Err(error)
            }
        }
    }

    /// Puts the new descriptor in the place of the old one: the point at which all takes effect. Where the old one
    /// stands, the new files are gone afterwards; where a power cut may leave either, a kill leaves the old one.
    pub(super) fn save(&self, structure: &Structure) -> Result<(), SaveError> {
        if self.descriptor == structure.descriptor {
            return Ok(());
        }
        self.disk.save(&self.descriptor).inspect_err(|error| match error {
            SaveError::Unchanged(_) => self.abandon(),
            // D1: the caller is told that no bitmap has lost anything. The disk has failed, and what both name stays.
            SaveError::Unsure(_) if !mutation::on(Fault::UnsureLeft) => {
                let _ = self.disk.save(&structure.descriptor);
            }
            SaveError::Unsure(_) => {}
        })
    }

    /// Ends it before it was saved.
    pub(super) fn abandon(&self) {
        self.disk.remove_files(&self.made);
    }

    /// Ends it after it was saved, as if it had not been: another disk could not follow. False where the new descriptor
    /// may be there for good.
    pub(super) fn take_back(&self, structure: &Structure) -> bool {
        if self.descriptor != structure.descriptor
            && let Err(SaveError::Unchanged(error) | SaveError::Unsure(error)) =
                self.disk.save(&structure.descriptor)
        {
            // What is on disk is not what memory says, so nothing may be built on either.
            self.disk.fail(&error);
            return false;
        }
        self.abandon();
        true
    }

    /// Makes memory say what the disk says. Cannot fail.
    pub(super) fn finish(self, structure: &mut Structure, shape: &mut Shape) {
        let retired = files_of(&structure.descriptor, &self.descriptor);
        structure.descriptor = self.descriptor;
        *shape = shape.with(self.bitmaps, self.disk.writable);
        if let Some(excuses) = &self.disk.excuses {
            excuses.know(shape.bitmaps.iter());
        }
        self.disk.remove_files(&retired);
    }
}

/// Makes the entry of a persistent bitmap say what is true of it.
fn enter(descriptor: &mut Descriptor, staged: &Staged) -> Result<()> {
    let bitmap = &staged.bitmap;
    let Some(kept) = &bitmap.kept else { return Ok(()) };
    let (epoch, start_length) = (
        bitmap.start.epoch.as_deref().map(str::to_owned),
        bitmap.start.length,
    );
    let Some(before) = descriptor.bitmap(&bitmap.name) else {
        let entry = BitmapEntry {
            file: kept.name.to_string(),
            kind: BitmapKind::Dirty,
            granularity: bitmap.granularity,
            recording: Some(bitmap.recording),
            epoch,
            start_length,
        };
        return descriptor.insert_bitmap(&bitmap.name, entry);
    };
    let mut entry = before.clone();
    entry.file = kept.name.to_string();
    // An entry that does not say is left so: absent means that it records.
    if entry.recording.unwrap_or(true) != bitmap.recording {
        entry.recording = Some(bitmap.recording);
    }
    entry.epoch = epoch;
    entry.start_length = start_length;
    if entry != *before {
        descriptor.update_bitmap(&bitmap.name, entry)?;
    }
    Ok(())
}

/// The bitmap files that `old` names and `new` does not.
fn files_of(old: &Descriptor, new: &Descriptor) -> Vec<String> {
    old.bitmaps()
        .map(|(_, entry)| &entry.file)
        .filter(|file| new.bitmaps().all(|(_, entry)| entry.file != **file))
        .cloned()
        .collect()
}

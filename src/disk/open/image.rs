//! A disk's own image that is a disk itself.
//!
//! Invariant: the inner disk is opened by the same rules and options as the outer one, has its files open and locked before
//! either recovers, and has recovered before the outer one looks at it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Files, FilesFound, OpenOptions, Place};
use crate::descriptor::ImageEntry;
use crate::disk::Child;
use crate::disk::bitmaps::Loading;
use crate::disk::nested::Nested;
use crate::error::Result;
use crate::storage::Storage;

/// What the image is, opened.
pub(in crate::disk) enum ImageFound {
    File(Arc<dyn Storage>, PathBuf),
    Disk(Box<DiskFound>),
}

/// A disk that is an image; its first files are open and locked.
pub(in crate::disk) struct DiskFound {
    options: OpenOptions,
    place: Place,
    path: PathBuf,
    found: FilesFound,
}

impl OpenOptions {
    /// The disk that is the image of the one whose files these are. `None` where its descriptor has changed since it was read.
    pub(in crate::disk) fn image_disk(
        &self,
        files: &mut Files<'_>,
        entry: &ImageEntry,
    ) -> Result<Option<ImageFound>> {
        let place = files.image_place("QBM.image.file", &entry.file)?;
        let path = place.shown.join(&place.name);
        let mut options = self.clone();
        options.image_format = None;
        options.backing_format = None;
        options.foreign_writes = None;
        let found = options
            .find(&place, &mut files.within(&place))
            .map_err(|e| e.context(path.display()))?;
        Ok(found.map(|found| {
            ImageFound::Disk(Box::new(DiskFound {
                options,
                place,
                path,
                found,
            }))
        }))
    }

    /// As the opener of an outer disk: told where an image could not be made durable.
    pub(super) fn told_of_loss(mut self) -> Self {
        self.lost.get_or_insert_with(|| Arc::new(AtomicBool::new(false)));
        self
    }
}

impl DiskFound {
    /// Opens the disk as an image. What its bitmaps take in memory is taken from what the outer disk may.
    pub(in crate::disk) fn open(self, files: &Files<'_>, loading: &Loading) -> Result<Child> {
        let disk = self
            .options
            .finish(
                (&self.path, &self.place),
                &mut files.within(&self.place),
                self.found,
            )
            .map_err(|e| e.context(self.path.display()))?;
        loading.count_image(disk.bitmap_memory());
        Ok(Child::nested(Nested::Disk(Box::new(disk)), self.path))
    }
}

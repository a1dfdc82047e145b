//! A QBM disk of a qcow2: on the raw image that it has its data in, or on the qcow2 itself.
//!
//! Invariant: no data is changed, and a failure leaves nothing behind (M1). The bitmaps in a qcow2 that becomes an image
//! lose their validity, and not before the disk has them: whoever is killed, or fails, has the one or the other.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::source::{self, Source};
use super::{SINCE_EXPORT, name_from};
use crate::descriptor::names::child_path;
use crate::descriptor::{Descriptor, Format};
use crate::disk::open::Place;
use crate::disk::{AddBitmap, BitmapAction, BitmapContent, CreateOptions, Disk, OpenOptions};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{BitmapRecord, DataFile, Qcow2};
use crate::storage::{Access, Role};

/// How to take over a disk, or its bitmaps, from QEMU; then [`import`](ImportOptions::import) it, or
/// [`merge_bitmaps`](ImportOptions::merge_bitmaps).
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    pub(super) skip_in_use: bool,
    image: Option<String>,
}

/// What an import has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The image, as the descriptor names it.
    pub image: String,
    /// What that is: raw, or a qcow2, which is the source then.
    pub format: Format,
    /// The bitmaps that the disk has now.
    pub bitmaps: Vec<String>,
    /// Those that were left out, as they were in use.
    pub left_out: Vec<String>,
}

impl ImportOptions {
    /// The image is the raw one that the qcow2 names, or else the qcow2 itself; and all its bitmaps are usable.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bitmaps that QEMU has not saved are left out, instead of an error.
    #[must_use]
    pub fn skip_in_use(mut self, yes: bool) -> Self {
        self.skip_in_use = yes;
        self
    }

    /// The raw image `name` has what the qcow2 shows, and nobody has written to either since it was made from that:
    /// `qemu-img convert` makes one. The name goes into the descriptor as it is: a relative one is relative to the
    /// descriptor's folder.
    #[must_use]
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// Makes the disk `disk` on the raw data file of the qcow2 `source`, with its persistent bitmaps. Where it has none,
    /// the disk's image is the qcow2 itself.
    ///
    /// No data is changed, and nothing is copied but bits. The bitmaps get new epochs; those that QEMU calls auto record.
    /// From then on what is written by one of the programs is not in the bitmaps of the other. So those in a qcow2 that
    /// becomes the image are made invalid, as the format provides for that; any other is not changed at all.
    ///
    /// Fails with `BitmapInconsistent` where a bitmap is in use, `NotSupported` where the qcow2 cannot be written to here,
    /// `FileInvalid` where it is of another length than the qcow2, and `Locked` where somebody writes to one of them.
    pub fn import(&self, source: impl AsRef<Path>, disk: impl AsRef<Path>) -> Result<Imported> {
        let (source, disk) = (source.as_ref(), disk.as_ref());
        self.import_parts(source, disk)
            .map_err(|error| error.context(format_args!("cannot import {}", source.display())))
    }

    fn import_parts(&self, path: &Path, disk: &Path) -> Result<Imported> {
        let source = Source::open(path)?;
        let qcow2 = source.read()?;
        let place = Place::find(disk, None, false).map_err(|e| e.context(disk.display()))?;
        let is_image = self.image.is_none() && !matches!(qcow2.data_file(), DataFile::Raw(_));
        let (image, format, length) = if is_image {
            (name_from(&place.shown, path)?, Format::Qcow2, qcow2.size())
        } else {
            let (image, length) = self.image_of(&source, &qcow2, &place)?;
            (image, Format::Raw, length)
        };
        let (taken, left_out) = self.choose(&qcow2)?;
        source::check_memory(taken.iter().map(|record| record.granularity), length)?;
        let mut contents = Vec::with_capacity(taken.len());
        for record in &taken {
            contents.push(source::content(&qcow2, record, length)?);
        }
        let options = CreateOptions::new().image(&image).size(length);
        options.image_format(format).create(disk)?;
        let mut open = OpenOptions::new();
        if is_image {
            // It stays as it is, and locked, until the disk has the bitmaps.
            open = open.image_untouched();
        }
        let added = source.sync().and_then(|()| add(&open, disk, &taken, &contents));
        let bitmaps = taken.iter().map(|record| record.name.clone()).collect();
        drop(source);
        let made = match added {
            Ok(()) if is_image => make_theirs_invalid(disk),
            done => done,
        };
        if let Err(error) = made {
            if is_image && !has_its_bitmaps(path) {
                return Err(error.context(format_args!(
                    "{} is made, and has the bitmaps, but it could not be finished",
                    disk.display()
                )));
            }
            take_back(&place);
            return Err(error);
        }
        Ok(Imported {
            image,
            format,
            bitmaps,
            left_out,
        })
    }

    /// The raw image as the descriptor is to name it, and its length.
    fn image_of(&self, source: &Source, qcow2: &Qcow2<'_>, place: &Place) -> Result<(String, u64)> {
        let name = match &self.image {
            Some(name) => name.clone(),
            None => name_from(&place.shown, &source.data_file(qcow2)?)?,
        };
        let child = child_path(&name).map_err(|e| e.context(format_args!("image {name:?}")))?;
        let shown = place.shown.join(child);
        let length = place
            .folder
            .open(Role::Image, child, Access::default())
            .map_err(|e| Error::io("open the image", &shown, &e))?
            .length()
            .map_err(|e| Error::io("measure", &shown, &e))?;
        source::check_length(qcow2, length, &shown)?;
        Ok((name, length))
    }

    /// Those that are taken along, and the names of those that are left out.
    fn choose<'q>(&self, qcow2: &'q Qcow2<'_>) -> Result<(Vec<&'q BitmapRecord>, Vec<String>)> {
        if qcow2.has_lost_bitmaps() && !self.skip_in_use {
            return Err(source::lost());
        }
        let (in_use, taken): (Vec<_>, Vec<_>) = qcow2
            .bitmaps()
            .iter()
            .filter(|record| record.name != SINCE_EXPORT)
            .partition(|record| record.in_use);
        if !in_use.is_empty() && !self.skip_in_use {
            return Err(source::in_use(&in_use));
        }
        Ok((taken, in_use.iter().map(|record| record.name.clone()).collect()))
    }
}

/// Gives the new disk its bitmaps, all of them or none.
fn add(open: &OpenOptions, disk: &Path, records: &[&BitmapRecord], contents: &[BitmapContent]) -> Result<()> {
    let disk = open.open(disk)?;
    let mut actions = Vec::with_capacity(2 * records.len());
    for (record, content) in records.iter().zip(contents) {
        let name = record.name.as_str();
        let options = AddBitmap {
            granularity: record.granularity,
            recording: record.recording,
            ..AddBitmap::default()
        };
        actions.push(BitmapAction::Add { name, options });
        actions.push(BitmapAction::Replace { name, content });
    }
    disk.bitmap_transaction(&actions)?;
    disk.close()
}

/// Opens the disk as it will be used. Its image loses QEMU's bitmaps by that: they would not see what is written to the disk,
/// and QEMU would believe them.
fn make_theirs_invalid(disk: &Path) -> Result<()> {
    let disk = Disk::open(disk)?;
    // For a moment nobody had the image locked.
    if let Some(info) = disk.bitmap_list()?.iter().find(|info| info.inconsistent) {
        return Err(Error::new(
            ErrorCode::BitmapInconsistent,
            format!(
                "it was written to meanwhile, so that changes are missing in bitmap {:?}",
                info.name
            ),
        ));
    }
    disk.close()
}

/// Whether nothing is lost with the disk that was just made: the qcow2 has its bitmaps, if it had any.
fn has_its_bitmaps(qcow2: &Path) -> bool {
    Source::open(qcow2)
        .and_then(|source| Ok(!source.read()?.has_lost_bitmaps()))
        .unwrap_or(false)
}

/// Removes the disk that was just made. The first failure is the one to tell.
fn take_back(place: &Place) {
    let folder = &*place.folder;
    let Ok(descriptor) = folder
        .open(Role::Descriptor, &place.name, Access::default())
        .map_err(|e| Error::system(&e))
        .and_then(|storage| Descriptor::read(&*storage))
    else {
        return;
    };
    let _ = folder.remove(&place.name);
    let bitmaps = descriptor.bitmaps().map(|(_, entry)| entry.file.as_str());
    for file in bitmaps.chain(descriptor.state().map(|state| state.file.as_str())) {
        let _ = folder.remove(&PathBuf::from(file));
    }
    let _ = folder.sync();
}

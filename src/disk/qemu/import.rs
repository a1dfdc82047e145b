//! A QBM disk on the raw image that a qcow2 has its data in.
//!
//! Invariant: nothing that exists is changed, and a failure leaves nothing behind (M1).

use std::path::{Path, PathBuf};

use super::source::{self, Source};
use super::{SINCE_EXPORT, name_from};
use crate::descriptor::Descriptor;
use crate::descriptor::names::child_path;
use crate::disk::open::Place;
use crate::disk::{AddBitmap, BitmapAction, BitmapContent, CreateOptions, Disk};
use crate::error::{Error, Result};
use crate::format::qcow2::{BitmapRecord, Qcow2};
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
    /// The raw image, as the descriptor names it.
    pub image: String,
    /// The bitmaps that the disk has now.
    pub bitmaps: Vec<String>,
    /// Those that were left out, as they were in use.
    pub left_out: Vec<String>,
}

impl ImportOptions {
    /// The qcow2 names the image, and all its bitmaps are usable.
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

    /// Makes the disk `disk` on the raw data file of the qcow2 `source`, with its persistent bitmaps.
    ///
    /// Neither of the two files is changed, and nothing is copied but bits. The bitmaps get new epochs; those that QEMU
    /// calls auto record. From then on what is written by one of the programs is not in the bitmaps of the other.
    ///
    /// Fails with `BitmapInconsistent` where a bitmap is in use, `NotSupported` where there is no raw image,
    /// `FileInvalid` where it is of another length than the qcow2, and `Locked` where somebody writes to one of them.
    pub fn import(&self, source: impl AsRef<Path>, disk: impl AsRef<Path>) -> Result<Imported> {
        let (source, disk) = (source.as_ref(), disk.as_ref());
        self.import_parts(source, disk)
            .map_err(|error| error.context(format_args!("cannot import {}", source.display())))
    }

    fn import_parts(&self, source: &Path, disk: &Path) -> Result<Imported> {
        let source = Source::open(source)?;
        let qcow2 = source.read()?;
        let place = Place::find(disk, None, false).map_err(|e| e.context(disk.display()))?;
        let (image, length) = self.image_of(&source, &qcow2, &place)?;
        let (taken, left_out) = self.choose(&qcow2)?;
        let mut contents = Vec::with_capacity(taken.len());
        for record in &taken {
            contents.push(source::content(&qcow2, record, length)?);
        }
        CreateOptions::new().image(&image).size(length).create(disk)?;
        if let Err(error) = add(disk, &taken, &contents) {
            take_back(&place);
            return Err(error);
        }
        Ok(Imported {
            image,
            bitmaps: taken.iter().map(|record| record.name.clone()).collect(),
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
fn add(disk: &Path, records: &[&BitmapRecord], contents: &[BitmapContent]) -> Result<()> {
    let disk = Disk::open(disk)?;
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

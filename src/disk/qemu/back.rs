//! The way back: what QEMU has recorded in an exported qcow2 comes into the disk's bitmaps.
//!
//! Invariant (D1): no bitmap that records stays consistent without what was written through the qcow2 since it was
//! exported. That is in a bitmap of its own, and is merged before the disk's stamp of the image is renewed: a crash in
//! between leaves bitmaps that the next open calls inconsistent.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use super::source::{self, Source};
use super::{ImportOptions, SINCE_EXPORT};
use crate::descriptor::Descriptor;
use crate::descriptor::names::child_path;
use crate::disk::open::Place;
use crate::disk::{BitmapAction, BitmapContent, BitmapInfo, MergeSource, OpenOptions};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{BitmapRecord, Qcow2};
use crate::storage::{Access, FileIdentity, Role};

/// What has come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The disk's bitmaps that have it all.
    pub bitmaps: Vec<String>,
    /// Those that were inconsistent already, and still are.
    pub inconsistent: Vec<String>,
    /// Bitmaps of the qcow2 that were left out: those that are in use, and those that the disk has none of.
    pub left_out: Vec<String>,
}

impl ImportOptions {
    /// Merges the bitmaps of the qcow2 `source`, which [`ExportOptions::export`] has made from `disk`, back into the
    /// bitmaps of `disk`: what was written through it since is dirty in all that record, and what is dirty in one of its
    /// bitmaps is so in the disk's of the same name. Epochs stay, and no bit is lost.
    ///
    /// Call it before anybody opens the disk for writing: such an open finds that the image was written to, and calls
    /// the bitmaps inconsistent, which they remain. Writes that went through neither the disk nor this qcow2 are in none
    /// of their bitmaps; the caller vouches that there were none.
    ///
    /// Fails with `FileInvalid` where the qcow2 is none of this disk, or its `qbm-since-export` is missing, disabled or in
    /// use, and with `BitmapInconsistent` where a bitmap is in use that is to be merged.
    ///
    /// [`ExportOptions::export`]: super::ExportOptions::export
    pub fn merge_bitmaps(&self, source: impl AsRef<Path>, disk: impl AsRef<Path>) -> Result<Merged> {
        let (source, disk) = (source.as_ref(), disk.as_ref());
        self.merge_parts(source, disk).map_err(|error| {
            error.context(format_args!(
                "cannot merge the bitmaps of {} into those of {}",
                source.display(),
                disk.display()
            ))
        })
    }

    fn merge_parts(&self, source: &Path, disk: &Path) -> Result<Merged> {
        let source = Source::open(source)?;
        let qcow2 = source.read()?;
        if qcow2.has_lost_bitmaps() {
            return Err(unknown(
                "is not valid any more, as a program has written that knows nothing of bitmaps",
            ));
        }
        let (descriptor, length) = same_image(&source, &qcow2, disk)?;
        let dirty = || {
            descriptor
                .bitmaps()
                .filter(|(_, entry)| !entry.kind.is_allocation())
        };
        let (known, mut left_out): (Vec<_>, Vec<_>) = qcow2
            .bitmaps()
            .iter()
            .filter(|record| record.name != SINCE_EXPORT)
            .partition(|record| dirty().any(|(name, _)| *name == record.name));
        let (in_use, known): (Vec<_>, Vec<_>) = known.into_iter().partition(|record| record.in_use);
        if !in_use.is_empty() && !self.skip_in_use {
            return Err(source::in_use(&in_use));
        }
        left_out.extend(in_use);
        source::check_memory(qcow2.bitmaps().iter().map(|record| record.granularity), length)?;
        let since = if dirty().any(|(_, entry)| entry.recording.unwrap_or(true)) {
            Some(Arc::new(since_export(&qcow2, length)?))
        } else {
            None
        };
        let mut contents = Vec::with_capacity(known.len());
        for record in known {
            contents.push((record.name.as_str(), source::content(&qcow2, record, length)?));
        }
        let (bitmaps, inconsistent) = merge(disk, since.as_ref(), &contents)?;
        Ok(Merged {
            bitmaps,
            inconsistent,
            left_out: left_out.into_iter().map(|record| record.name.clone()).collect(),
        })
    }
}

/// There is no way back, because the bitmap that would be it is not as it must be.
fn unknown(why: &str) -> Error {
    Error::new(
        ErrorCode::FileInvalid,
        format!("its bitmap {SINCE_EXPORT:?} {why}: nobody knows what was written since it was exported"),
    )
}

/// What was written through the qcow2 since it was exported.
fn since_export(qcow2: &Qcow2<'_>, length: u64) -> Result<BitmapContent> {
    let record: &BitmapRecord = qcow2
        .bitmaps()
        .iter()
        .find(|record| record.name == SINCE_EXPORT)
        .ok_or_else(|| unknown("is missing"))?;
    if record.in_use {
        return Err(unknown(
            "was not saved, as its last user was killed or still runs",
        ));
    }
    if !record.recording {
        return Err(unknown("does not record"));
    }
    source::content(qcow2, record, length)
}

/// The descriptor of the disk whose image is the data file of the qcow2, and the image's length.
fn same_image(source: &Source, qcow2: &Qcow2<'_>, disk: &Path) -> Result<(Descriptor, u64)> {
    let place = Place::find(disk, None, false).map_err(|e| e.context(disk.display()))?;
    let descriptor = place
        .folder
        .open(Role::Descriptor, &place.name, Access::default())
        .map_err(|e| Error::io("open", disk, &e))
        .and_then(|storage| Descriptor::read(&*storage).map_err(|e| e.context(disk.display())))?;
    let own = child_path(&descriptor.image().file)?;
    let theirs = source.data_file(qcow2)?;
    // Both as paths from here: the folder that is open is the descriptor's.
    let own = place.shown.join(own);
    let (length, image) = look_at(&own)?;
    let (_, data_file) = look_at(&theirs)?;
    if image.is_none() || image != data_file {
        return Err(Error::new(
            ErrorCode::FileInvalid,
            format!(
                "its data file is {}, and the image of the disk is {}",
                theirs.display(),
                own.display()
            ),
        ));
    }
    source::check_length(qcow2, length, &own)?;
    Ok((descriptor, length))
}

/// How long a file is, and which.
fn look_at(path: &Path) -> Result<(u64, Option<FileIdentity>)> {
    let place = Place::find(path, None, false).map_err(|e| e.context(path.display()))?;
    let storage = place
        .folder
        .open(Role::Image, &place.name, Access::default())
        .map_err(|e| Error::io("open", path, &e))?;
    let length = storage.length().map_err(|e| Error::io("measure", path, &e))?;
    Ok((length, storage.identity()))
}

/// Merges into all that are consistent; names those, and the others.
fn merge(
    path: &Path,
    since: Option<&Arc<BitmapContent>>,
    contents: &[(&str, BitmapContent)],
) -> Result<(Vec<String>, Vec<String>)> {
    let mut options = OpenOptions::new();
    options.foreign_writes = since.cloned();
    // QEMU may have made the disk longer, and its bitmap with it.
    options.lengthen_bitmaps = since.is_some();
    let disk = options.open(path)?;
    let (inconsistent, sound): (Vec<BitmapInfo>, Vec<BitmapInfo>) = disk
        .bitmap_list()?
        .into_iter()
        .partition(|info| info.inconsistent);
    let mut actions = Vec::with_capacity(sound.len());
    for info in &sound {
        // Those of a disk without a state file have it only by this.
        let since = since.filter(|_| info.recording).map(|since| &**since);
        let named = contents.iter().filter(|(name, _)| *name == info.name);
        let sources: Vec<_> = named
            .map(|(_, content)| content)
            .chain(since)
            .map(MergeSource::Content)
            .collect();
        if !sources.is_empty() {
            let target = info.name.as_str();
            actions.push(BitmapAction::Merge { target, sources });
        }
    }
    disk.bitmap_transaction(&actions)?;
    disk.close()?;
    let names = |infos: Vec<BitmapInfo>| infos.into_iter().map(|info| info.name).collect();
    Ok((names(sound), names(inconsistent)))
}

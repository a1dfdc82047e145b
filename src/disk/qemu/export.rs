//! A qcow2 whose raw data file is the disk's image, with the disk's bitmaps in it.
//!
//! Invariant: an existing file is never written to, and a failure leaves nothing behind.

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use super::{SINCE_EXPORT, in_words, whole_path};
use crate::descriptor::Format;
use crate::disk::open::Place;
use crate::disk::{BitmapInfo, Disk, OpenOptions};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{NewBitmap, Thin, shown_length};
use crate::storage::{Role, Storage, SyncMode};

/// So often a disk is recovered that others leave unclosed again before it is looked at.
const MAX_RECOVERIES: usize = 4;

/// How to hand a disk to QEMU; then [`export`](ExportOptions::export) it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    skip_inconsistent: bool,
}

/// What an export has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The raw image, as the qcow2 names it: from the root, as QEMU takes a relative name from wherever it runs.
    pub image: String,
    /// The length of the disk that QEMU shows: the image's, up to the next multiple of 512.
    pub length: u64,
    /// The disk's bitmaps that are in it.
    pub bitmaps: Vec<String>,
    /// Those that were left out, as they are inconsistent.
    pub left_out: Vec<String>,
}

impl ExportOptions {
    /// All bitmaps must be consistent.
    pub fn new() -> Self {
        Self::default()
    }

    /// Inconsistent bitmaps are left out, instead of an error.
    #[must_use]
    pub fn skip_inconsistent(mut self, yes: bool) -> Self {
        self.skip_inconsistent = yes;
        self
    }

    /// Makes the qcow2 `target`, whose raw data file is the image of the disk `disk`, with the disk's bitmaps in it.
    ///
    /// Nothing is copied but bits, and neither the disk nor its image is changed; but a disk that was not closed is
    /// recovered and closed first, as only a closed one finds out who else has written to it. The qcow2 has one bitmap more where a
    /// bitmap records: `qbm-since-export`, in which QEMU records what [`ImportOptions::merge_bitmaps`] needs. Until that
    /// is called, writes of QEMU are not in the disk's bitmaps, and its next open for writing calls them inconsistent.
    ///
    /// Fails with `NotSupported` for an overlay, whose image has only a part of it, `BitmapInconsistent` where a bitmap
    /// is, `FileExists` where the name is taken, and `Locked` where somebody has the disk open for writing.
    ///
    /// [`ImportOptions::merge_bitmaps`]: super::ImportOptions::merge_bitmaps
    pub fn export(self, disk: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<Exported> {
        self.export_when_recovered(disk.as_ref(), target.as_ref(), &mut || {})
    }

    /// The same. `recovered` is called whenever the disk has been recovered, and is not open.
    fn export_when_recovered(
        self,
        disk: &Path,
        target: &Path,
        recovered: &mut dyn FnMut(),
    ) -> Result<Exported> {
        let open = open_closed(disk, recovered)?;
        self.export_parts(&open, target).map_err(|error| {
            error.context(format_args!(
                "cannot export {} to {}",
                disk.display(),
                target.display()
            ))
        })
    }

    fn export_parts(self, disk: &Disk, target: &Path) -> Result<Exported> {
        if disk.own.current().layered {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!("it is an overlay, whose image has only what was written to it; {COPY}"),
            ));
        }
        let image = disk.layer(0)?;
        if image.format != Format::Raw {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "its image is a {}, and the data file of such a qcow2 must be raw; {COPY}",
                    image.format
                ),
            ));
        }
        let (bitmaps, left_out) = self.choose(disk)?;
        if bitmaps.iter().any(|info| info.name == SINCE_EXPORT) {
            return Err(Error::new(
                ErrorCode::BitmapExists,
                format!("its bitmap {SINCE_EXPORT:?} has the name of one that the qcow2 is to have besides"),
            ));
        }
        let place = Place::find(target, None, false)?;
        // QEMU takes a relative name from the folder that it happens to run in.
        let image = in_words(&whole_path(&image.path)?)?;
        let length = shown_length(disk.length())
            .ok_or_else(|| Error::new(ErrorCode::NotSupported, "QEMU shows no disk of this length"))?;
        let thin = Thin {
            path: target,
            size: length,
            data_file: &image,
            bitmaps: in_qcow2(disk, &bitmaps)?,
        };
        write(&thin, &place)?;
        drop(thin);
        Ok(Exported {
            image,
            length,
            bitmaps: bitmaps.into_iter().map(|info| info.name).collect(),
            left_out,
        })
    }

    /// Those that go along, and the names of those that are left out.
    pub(crate) fn choose(self, disk: &Disk) -> Result<(Vec<BitmapInfo>, Vec<String>)> {
        let (broken, sound): (Vec<_>, Vec<_>) = disk
            .bitmap_list()?
            .into_iter()
            .partition(|info| info.inconsistent);
        if let (Some(first), false) = (broken.first(), self.skip_inconsistent) {
            return Err(Error::new(
                ErrorCode::BitmapInconsistent,
                format!(
                    "bitmap {:?} is inconsistent (changes may be missing in it), so that the next backup must be a full \
                     one",
                    first.name
                ),
            ));
        }
        Ok((sound, broken.into_iter().map(|info| info.name).collect()))
    }
}

/// Opens a disk that is closed, for reading: nobody writes to it until that is dropped. Recovers it first where it has to.
fn open_closed(disk: &Path, recovered: &mut dyn FnMut()) -> Result<Disk> {
    let mut recoveries = 0;
    loop {
        let open = OpenOptions::new().read_only(true).open(disk)?;
        // Looked at behind each recovery: somebody else may have used the disk since, and been killed.
        let Some(found) = open.info()?.recovery else {
            return Ok(open);
        };
        drop(open);
        if recoveries == MAX_RECOVERIES {
            return Err(Error::new(
                ErrorCode::Locked,
                format!(
                    "{} was recovered and closed {MAX_RECOVERIES} times, and each time it is not closed again: {}",
                    disk.display(),
                    found.reason.as_deref().unwrap_or("others use it and are killed"),
                ),
            ));
        }
        let closed = OpenOptions::new().open(disk).and_then(Disk::close);
        closed.map_err(|e| e.context("it was not closed, and could not be recovered"))?;
        recovered();
        recoveries += 1;
    }
}

/// What else there is, in the words of an error.
const COPY: &str = "a copy (--copy) can be made of any disk";

/// The disk's bitmaps, as a qcow2 takes them.
pub(crate) fn bitmaps_for_qemu<'d>(disk: &'d Disk, infos: &'d [BitmapInfo]) -> Result<Vec<NewBitmap<'d>>> {
    infos
        .iter()
        .map(|info| {
            Ok(NewBitmap {
                name: &info.name,
                granularity: info.granularity,
                recording: info.recording,
                bytes: disk.bitmap_serialized_len(&info.name)?,
                serialize: Box::new(|offset, out| disk.bitmap_serialize(&info.name, offset, out)),
            })
        })
        .collect()
}

/// The bitmaps of the qcow2, with one more where there must be a way back.
fn in_qcow2<'d>(disk: &'d Disk, infos: &'d [BitmapInfo]) -> Result<Vec<NewBitmap<'d>>> {
    let mut bitmaps = bitmaps_for_qemu(disk, infos)?;
    let recording = bitmaps.iter().filter(|bitmap| bitmap.recording);
    // As fine as the finest: the way back is to make none of them coarser.
    if let Some(finest) = recording.min_by_key(|bitmap| bitmap.granularity) {
        let (granularity, bytes) = (finest.granularity, finest.bytes);
        bitmaps.push(NewBitmap {
            name: SINCE_EXPORT,
            granularity,
            recording: true,
            bytes,
            serialize: Box::new(|_, out| {
                out.fill(0);
                Ok(())
            }),
        });
    }
    Ok(bitmaps)
}

/// Makes the file, durably, or leaves none.
fn write(thin: &Thin<'_>, place: &Place) -> Result<()> {
    let folder = &*place.folder;
    folder
        .check_writable()
        .map_err(|e| Error::io("create files in", &place.shown, &e))?;
    let storage = folder
        .create(Role::Image, &place.name)
        .map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::new(ErrorCode::FileExists, "it exists already, and is not overwritten")
            }
            _ => Error::system(&e),
        })?;
    let written = thin.write(&*storage).and_then(|()| sync(&*storage, place));
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = folder.remove(&place.name);
    }
    written
}

fn sync(storage: &dyn Storage, place: &Place) -> Result<()> {
    storage
        .sync(SyncMode::All)
        .and_then(|()| place.folder.sync())
        .map_err(|e| Error::io("sync", place.shown.join(&place.name), &e))
}

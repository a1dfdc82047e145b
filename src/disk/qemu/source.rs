//! The qcow2 that something is taken from.
//!
//! Invariant: it is locked, as QEMU's programs lock it, for as long as it is read: nobody writes to it meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::descriptor::names::child_path;
use crate::disk::BitmapContent;
use crate::disk::open::Place;
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{BitmapRecord, DataFile, Part, Qcow2, shown_length};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Role, Storage, SyncMode};
use crate::units::Granularity;

/// An open qcow2.
pub(super) struct Source {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// The folder that it lies in.
    folder: PathBuf,
    lock: Option<Lock>,
}

impl Drop for Source {
    fn drop(&mut self) {
        // A child that another thread is just starting has a copy of the file.
        if let Some(lock) = self.lock.take() {
            lock.release();
        }
    }
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let place = Place::find(path, None, false)?;
        let storage = place
            .folder
            .open(Role::Image, &place.name, Access::default())
            .map_err(|e| Error::system(&e))?;
        let lock = Lock::image(&storage, path, Sharing::Read)?;
        Ok(Self {
            storage,
            path: path.to_owned(),
            folder: place.shown,
            lock,
        })
    }

    pub(super) fn read(&self) -> Result<Qcow2<'_>> {
        Qcow2::read(&*self.storage, &self.path)
    }

    /// Makes durable what whoever wrote to it last has left.
    pub(super) fn sync(&self) -> Result<()> {
        self.storage
            .sync(SyncMode::Data)
            .map_err(|e| Error::io("sync", &self.path, &e))
    }

    /// Where a data file of this name is. QEMU takes a relative one from the folder that it runs in, and people from that
    /// of the qcow2; the two are mostly one.
    fn found(&self, name: &Path) -> Result<PathBuf> {
        let beside = self.folder.join(name);
        if name.is_absolute() || !name.exists() {
            return Ok(beside);
        }
        if !beside.exists() {
            return Ok(name.to_owned());
        }
        let followed = |path: &Path| std::fs::canonicalize(path).map_err(|e| Error::io("find", path, &e));
        if followed(&beside)? == followed(name)? {
            return Ok(beside);
        }
        Err(Error::new(
            ErrorCode::FileInvalid,
            format!(
                "its data file {:?} is in its own folder and in the current one, and they are not the same",
                name.display()
            ),
        ))
    }

    /// Where its raw data file is.
    pub(super) fn data_file(&self, qcow2: &Qcow2<'_>) -> Result<PathBuf> {
        let refused = |why: &str| Error::new(ErrorCode::NotSupported, why);
        match qcow2.data_file() {
            DataFile::Raw(Some(name)) => {
                let path = child_path(name).map_err(|e| e.context(format_args!("its data file {name:?}")))?;
                self.found(path)
            }
            DataFile::Raw(None) => Err(refused("it does not say which raw image its data file is")),
            DataFile::Inside => Err(refused(
                "its data lies within the qcow2, as that of a copy does, from which there is no way back (\"qbm import\" \
                 without --bitmaps makes a new disk of it)",
            )),
            DataFile::Mapped => Err(refused(
                "its data file is no raw image, and so not a disk's (\"qbm import\" without --bitmaps makes a new disk of it)",
            )),
        }
    }
}

/// The most memory that the bits of all bitmaps of one qcow2 may take: they are there together, as they become a disk's
/// together, and a small file can say that there are terabytes of them.
const MAX_BITS_BYTES: u64 = 4 << 30;

/// Fails where the bits of bitmaps of these granularities, for an image of `length` bytes, would take more memory than
/// anybody's do.
pub(super) fn check_memory(granularities: impl Iterator<Item = Granularity>, length: u64) -> Result<()> {
    let bytes = |granularity: Granularity| granularity.granules_in(length).div_ceil(8);
    let all = granularities.map(bytes).fold(0, u64::saturating_add);
    if all <= MAX_BITS_BYTES {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::NoMemory,
        format!(
            "the bits of its bitmaps would take {all} bytes of memory, more than the limit of {MAX_BITS_BYTES}"
        ),
    ))
}

/// The bits of a bitmap, for an image of `length` bytes.
pub(super) fn content(qcow2: &Qcow2<'_>, record: &BitmapRecord, length: u64) -> Result<BitmapContent> {
    let mut content = BitmapContent::new(record.granularity, length)?;
    qcow2.bits(record, &mut |range, part| match part {
        Part::Zeros => Ok(()),
        Part::Ones => content.deserialize_ones(range),
        Part::Bytes(bytes) => content.deserialize(range.start(), bytes),
    })?;
    Ok(content)
}

/// Fails where the qcow2 shows more or less than the whole of the image, up to QEMU's next sector.
pub(super) fn check_length(qcow2: &Qcow2<'_>, length: u64, image: &Path) -> Result<()> {
    if shown_length(length) == Some(qcow2.size()) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::FileInvalid,
        format!(
            "it shows a disk of {} bytes, and {} is {length} bytes long; a QBM disk is as long as its image",
            qcow2.size(),
            image.display()
        ),
    ))
}

/// All bitmaps, where a program that knows nothing of them has written, in words.
pub(super) fn lost() -> Error {
    Error::new(
        ErrorCode::BitmapInconsistent,
        "a program that knows nothing of bitmaps has written to it since they were saved, so that changes are missing in \
         all of them, and the next backup must be a full one",
    )
}

/// The bitmaps that QEMU did not save, in words.
pub(super) fn in_use(records: &[&BitmapRecord]) -> Error {
    let names: Vec<String> = records
        .iter()
        .map(|record| format!("{:?}", record.name))
        .collect();
    let they_are = match records {
        [_] => format!("bitmap {} is", names.join(", ")),
        _ => format!("the bitmaps {} are", names.join(", ")),
    };
    Error::new(
        ErrorCode::BitmapInconsistent,
        format!(
            "{they_are} marked as in use: the program that recorded last has not saved its bits (it was killed, or still \
             runs), so that changes may be missing, and the next backup must be a full one"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's largest bitmaps: 512 MiB each.
    #[test]
    fn more_bits_than_anybody_has_are_refused_before_memory_is_taken() {
        let largest = |count| check_memory(std::iter::repeat_n(Granularity::MIN, count), 2 << 40);
        largest(8).unwrap();
        let refused = largest(9).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NoMemory);
        assert!(refused.message().contains("4831838208 bytes"), "{refused}");
    }
}

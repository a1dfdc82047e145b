//! The image that a commit writes to.
//!
//! Invariant: it is the very file that the disk has open as a layer, whatever has happened to its name since.

use std::path::Path;
use std::sync::Arc;

use super::chain::Layer;
use crate::descriptor::names::child_path;
use crate::descriptor::{BackingEntry, Format};
use crate::disk::open::{OpenOptions, Place};
use crate::disk::{Child, Disk, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Role, SyncMode, Zeroing, start_writeback, write_slice};
use crate::units::ByteRange;

/// It, open for writing.
pub(super) enum Target {
    Raw(Child),
    Qbm(Box<Disk>),
}

impl Target {
    /// Opens the backing of `disk`, which is open as `layer` already.
    pub(super) fn open(disk: &Disk, backing: &BackingEntry, layer: &Layer) -> Result<Self> {
        let path = child_path(&backing.file).map_err(|e| e.context(format_args!("{:?}", backing.file)))?;
        let target = match backing.format {
            Format::Raw => Self::open_raw(&disk.place, path)?,
            Format::Qbm => Self::open_disk(&disk.place, path)?,
            other => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!(
                        "{} is a {other} image, and this version writes to raw and qbm images only",
                        layer.image.path.display()
                    ),
                ));
            }
        };
        if target.image().storage.identity() == layer.image.storage.identity() {
            return Ok(target);
        }
        Err(Error::new(
            ErrorCode::FileInvalid,
            format!(
                "{} is not the file any more that the disk was opened with",
                target.image().path.display()
            ),
        ))
    }

    fn open_disk(place: &Place, path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new()
            .confined(place.confined)
            .no_lock(!place.locking);
        if let Some(epoch) = &place.cache_epoch {
            options = options.cache_epoch(epoch);
        }
        let disk = if !place.handed_in {
            options.open(place.shown.join(path))?
        } else if path.parent().is_none_or(|folder| folder.as_os_str().is_empty()) {
            options.folder(Arc::clone(&place.folder)).open(path)?
        } else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "the backing {} lies in another folder than the disk, and the files come from the caller",
                    path.display()
                ),
            ));
        };
        Ok(Self::Qbm(Box::new(disk)))
    }

    fn open_raw(place: &Place, path: &Path) -> Result<Self> {
        let access = Access {
            write: true,
            direct: false,
        };
        let shown = place.shown.join(path);
        let storage = place
            .folder
            .open(Role::Backing, path, access)
            .map_err(|e| Error::io("open for writing", &shown, &e))?;
        if place.locking {
            // Held for as long as the file is open.
            let _: Option<Lock> = Lock::image(&storage, &shown, Sharing::Write)?;
        }
        Ok(Self::Raw(Child::new(storage, shown)))
    }

    fn image(&self) -> &Child {
        match self {
            Self::Raw(image) => image,
            Self::Qbm(disk) => disk.image(),
        }
    }

    /// Makes it as long as the disk, where it is shorter; what it gains reads as zeros.
    pub(super) fn grow(&self, from: u64, to: u64) -> Result<()> {
        if to <= from {
            return Ok(());
        }
        match self {
            Self::Raw(image) => image
                .storage
                .set_length(to)
                .map_err(|e| image.failed("resize", &e)),
            Self::Qbm(disk) => disk.truncate(to, TruncateFlags::empty()),
        }
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            Self::Raw(image) => write_slice(&*image.storage, bytes, offset)
                .map_err(|e| image.failed(&format!("write {} bytes at offset {offset} to", bytes.len()), &e)),
            Self::Qbm(disk) => disk.write(bytes, offset, WriteFlags::empty()),
        }
    }

    /// Has the system begin to write `range` out, so that the sync at the end has less to wait for.
    pub(super) fn start_writeback(&self, range: ByteRange) {
        start_writeback(&*self.image().storage, range);
    }

    pub(super) fn zero(&self, range: ByteRange) -> Result<()> {
        let how = Zeroing {
            may_unmap: true,
            no_fallback: false,
        };
        match self {
            Self::Raw(image) => image
                .storage
                .write_zeroes(range, how)
                .map_err(|e| image.failed(&format!("zero {range} of"), &e)),
            Self::Qbm(disk) => disk.write_zeroes(range.start(), range.len(), WriteFlags::MAY_UNMAP),
        }
    }

    /// Makes all of it durable.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Raw(_) if mutation::on(Fault::BackingUnsynced) => Ok(()),
            Self::Raw(image) => image
                .storage
                .sync(SyncMode::Data)
                .map_err(|e| image.failed("flush", &e)),
            Self::Qbm(disk) => disk.close(),
        }
    }
}

//! What an image is converted into.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, OpenOptions, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{Fresh, NewBitmap};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Folder as _, HostFolder, Role, Storage, SyncMode, Zeroing, write_slice};
use crate::units::ByteRange;

/// What bytes are written to.
pub(super) enum Target {
    /// A raw image, or the one of a disk to be.
    Raw(RawTarget),
    /// A disk, whose dirty bitmaps record it.
    Disk(Box<Disk>),
    /// A new qcow2.
    Qcow2(NewQcow2),
}

/// A qcow2 that is being made.
pub(super) struct NewQcow2 {
    pub(super) image: Fresh,
    /// Zeros take no space.
    pub(super) holes: bool,
}

/// A raw file or a block device.
pub(super) struct RawTarget {
    pub(super) storage: Arc<dyn Storage>,
    /// What messages call it.
    pub(super) path: PathBuf,
    /// All of it reads as zeros before anything is written.
    pub(super) new: bool,
    pub(super) lock: Option<Lock>,
}

impl Drop for RawTarget {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.release();
        }
    }
}

impl Target {
    /// Opens a disk that exists.
    pub(super) fn disk(path: &Path) -> Result<Self> {
        OpenOptions::new()
            .open(path)
            .map(|disk| Self::Disk(Box::new(disk)))
    }

    /// Opens a raw image or a block device that exists.
    pub(super) fn raw(path: &Path) -> Result<Self> {
        let (folder, name) = split(path)?;
        let access = Access {
            write: true,
            direct: false,
        };
        let storage = folder
            .open(Role::Image, Path::new(name), access)
            .map_err(|e| Error::io("open for writing", path, &e))?;
        let target = RawTarget {
            lock: Lock::image(&storage, path, Sharing::Write)?,
            storage,
            path: path.to_owned(),
            new: false,
        };
        Disk::check_overwrite(&folder, &*target.storage)?;
        Ok(Self::Raw(target))
    }

    pub(super) fn length(&self) -> Result<u64> {
        match self {
            Self::Raw(raw) => raw.length(),
            Self::Disk(disk) => Ok(disk.length()),
            Self::Qcow2(new) => Ok(new.image.size()),
        }
    }

    /// Whether zeros need not be written.
    pub(super) fn is_new(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.new,
            Self::Disk(_) => false,
            Self::Qcow2(new) => new.holes,
        }
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            Self::Raw(raw) => write_slice(&*raw.storage, bytes, offset)
                .map_err(|e| raw.failed(&format!("write {} bytes at offset {offset} to", bytes.len()), &e)),
            Self::Disk(disk) => disk.write(bytes, offset, WriteFlags::empty()),
            Self::Qcow2(new) => new.image.write(bytes, offset),
        }
    }

    /// Makes `range` zeros; a hole, if it may be one.
    pub(super) fn zero(&self, range: ByteRange, hole: bool) -> Result<()> {
        let how = Zeroing {
            may_unmap: hole,
            no_fallback: false,
        };
        let flags = if hole {
            WriteFlags::MAY_UNMAP
        } else {
            WriteFlags::empty()
        };
        match self {
            Self::Raw(raw) => raw
                .storage
                .write_zeroes(range, how)
                .map_err(|e| raw.failed(&format!("zero {range} of"), &e)),
            Self::Disk(disk) => disk.write_zeroes(range.start(), range.len(), flags),
            Self::Qcow2(new) => new.image.take(range),
        }
    }

    /// The file itself, where bytes may come to it past this process.
    pub(super) fn plain(&self) -> Option<&dyn Storage> {
        match self {
            Self::Raw(raw) => Some(&*raw.storage),
            Self::Disk(_) | Self::Qcow2(_) => None,
        }
    }

    /// Ends what was written: makes it durable, where it existed before; and what is new has a name to get yet.
    pub(super) fn finish(self) -> Result<()> {
        self.finish_with(&[])
    }

    /// The same, with bitmaps in a new qcow2; nothing else can have any.
    pub(super) fn finish_with(self, bitmaps: &[NewBitmap<'_>]) -> Result<()> {
        match self {
            Self::Raw(raw) => raw
                .storage
                .sync(SyncMode::All)
                .map_err(|e| raw.failed("sync", &e)),
            Self::Disk(disk) => disk.close(),
            Self::Qcow2(new) => new.image.finish(bitmaps),
        }
    }
}

impl RawTarget {
    fn length(&self) -> Result<u64> {
        self.storage.length().map_err(|e| self.failed("measure", &e))
    }

    pub(super) fn failed(&self, action: &str, error: &std::io::Error) -> Error {
        Error::io(action, &self.path, error)
    }
}

/// The folder and the name of a file.
fn split(path: &Path) -> Result<(HostFolder, &Path)> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorCode::InvalidArgument, "it does not name a file"));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let opened = HostFolder::open(folder).map_err(|e| Error::io("open the folder", folder, &e))?;
    Ok((opened, Path::new(name)))
}

/// The same of a file that is to be made, and whose name must be free.
pub(super) fn place_for_new(path: &Path) -> Result<(HostFolder, &Path)> {
    let (folder, name) = split(path)?;
    if std::fs::symlink_metadata(path).is_ok() {
        return Err(taken());
    }
    folder
        .check_writable()
        .map_err(|e| Error::io("create files in", folder.path(), &e))?;
    Ok((folder, name))
}

pub(super) fn taken() -> Error {
    Error::new(ErrorCode::FileExists, "it exists already, and is not overwritten")
}

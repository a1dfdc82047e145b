//! The way back: a backup into a raw image, a block device, a qcow2 or a QBM disk.
//!
//! A target that exists is compared and written only where it differs ([`onto`]); a new one is written whole, and gets its
//! name at the end ([`anew`]). Invariant: nobody finds bytes in a target that are not what was stored.

mod anew;
mod onto;

use std::fs;
use std::io;
use std::path::Path;

use super::folder::BackupFolder;
use super::point::BackupPoint;
use crate::disk::Progress;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::HostFolder;

/// What a backup is restored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RestoreFormat {
    /// A raw image or a block device.
    #[default]
    Raw,
    /// A QBM disk: a descriptor, and a raw image beside it. One that exists keeps its bitmaps, which record what the
    /// restore changes.
    Qbm,
    /// A qcow2 by itself. One that exists keeps what it is: its clusters, and the backing that it may have.
    Qcow2,
}

/// How to restore; then [`run`](Restore::run).
#[derive(Clone, Debug, Default)]
pub struct Restore {
    format: RestoreFormat,
    limit: Option<u64>,
}

/// What a restore did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The length of what was restored, in bytes.
    pub length: u64,
    /// How many bytes had to be written, zeros included.
    pub written: u64,
}

impl Restore {
    /// As a raw image.
    pub fn new() -> Self {
        Self::default()
    }

    /// As something else.
    #[must_use]
    pub fn format(mut self, format: RestoreFormat) -> Self {
        self.format = format;
        self
    }

    /// At most so many bytes written in a second.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Restores `point` to `to`. Durable on return.
    ///
    /// All that is stored and that the backup stands on is compared with its checksums. Where `to` does not exist, that is
    /// done on the way, and the file gets its name when all of it was found good; where it does, before anything is
    /// written, and `progress` begins anew for the copy. An image that exists is part old and part new after an error;
    /// the same call again does the rest.
    ///
    /// Fails with `InvalidArgument` for a qcow2 where the length is no multiple of 512.
    pub fn run(
        &self,
        folder: &BackupFolder,
        point: &BackupPoint,
        to: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Restored> {
        self.run_parts(folder, point, to, progress)
            .map_err(|e| e.context(format_args!("cannot restore {} to {}", point.name, to.display())))
    }

    fn run_parts(
        &self,
        folder: &BackupFolder,
        point: &BackupPoint,
        to: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Restored> {
        let exists = match fs::metadata(to) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(to).is_ok() {
                    return Err(Error::new(
                        ErrorCode::FileExists,
                        "it is a link to a file that does not exist, and is not overwritten",
                    ));
                }
                false
            }
            Err(e) => return Err(Error::io("find", to, &e)),
        };
        let written = if exists {
            onto::restore(self, folder, point, to, progress)?
        } else {
            anew::restore(self, folder, point, to, progress)?
        };
        Ok(Restored {
            length: point.length,
            written,
        })
    }
}

/// The folder of a file, and its name there.
fn place(path: &Path) -> Result<(HostFolder, &Path)> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorCode::InvalidArgument, "it does not name a file"));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let opened = HostFolder::open(folder).map_err(|e| Error::io("open the folder", folder, &e))?;
    Ok((opened, Path::new(name)))
}

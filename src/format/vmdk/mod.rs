//! `VMware`'s vmdk, for reading.
//!
//! `imago` reads a part of it only: flat extents, and no descriptor with a key that it does not know, as `VMware`'s own
//! have. What is needed here is small, so it is here whole. May call `storage`, `units` and `error`. Invariant: no field
//! is used before it was checked against the file it is in.

mod descriptor;
mod image;
mod shared;
mod sparse;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, read_slice};
use crate::units::MAX_LENGTH;
use descriptor::{Contents, Described, ExtentLine};
use image::{Extent, Part, VmdkImage};
use shared::Shared;
use sparse::Sparse;

/// vmdk counts in these.
const SECTOR: u64 = 512;

/// The longest descriptor. One of as many extents as are opened is far shorter.
const MAX_DESCRIPTOR: u64 = 2 << 20;

/// The most bytes that the directories of all sparse extents of an image take. In grains and tables as `VMware` makes them
/// they reach for 1 PiB.
const MAX_DIRECTORIES: u64 = 128 << 20;

/// A vmdk that was looked at, and whose extents are not open yet.
pub(crate) struct Unopened {
    file: Arc<dyn Storage>,
    path: PathBuf,
    what: What,
}

enum What {
    /// The file has the data.
    Sparse(Sparse),
    /// The file says which files have the data.
    Described(Described),
}

impl Unopened {
    /// Looks at `file`, which messages call `path`.
    pub(crate) fn read(file: Arc<dyn Storage>, path: &Path) -> Result<Self> {
        let what = Self::look(&*file).map_err(|e| e.context(path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            what,
        })
    }

    fn look(file: &dyn Storage) -> Result<What> {
        let length = file.length().map_err(|e| Error::system(&e))?;
        let first = bytes(file, 0, length.min(4))?;
        if first == *sparse::MAGIC {
            let sparse = Sparse::read(file, &Shared::new(1))?;
            if let Some(range) = sparse.descriptor {
                // Its extent is the file itself; it is the parent that matters.
                Described::parse(&bytes(file, range.start(), range.len())?)?;
            }
            return Ok(What::Sparse(sparse));
        }
        if first == *b"COWD" {
            return Err(not_supported(
                "it is an ESX server's sparse file, which cannot be read",
            ));
        }
        if length > MAX_DESCRIPTOR {
            return Err(invalid(format!(
                "it is no vmdk: it does not begin with KDMV, and {length} bytes are no descriptor"
            )));
        }
        Ok(What::Described(Described::parse(&bytes(file, 0, length)?)?))
    }

    /// The names of the files that have its data, each as often as it is to be opened.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        let extents = match &self.what {
            What::Sparse(_) => &[][..],
            What::Described(described) => &described.extents,
        };
        extents.iter().filter_map(|extent| match &extent.contents {
            Contents::Flat { file, .. } | Contents::Sparse { file } => Some(file.as_str()),
            Contents::Zeros => None,
        })
    }

    /// Opens the image with the `files` that it named, in that order, and their paths.
    pub(crate) fn open(self, files: Vec<(Arc<dyn Storage>, PathBuf)>) -> Result<VmdkImage> {
        let parts = match self.what {
            What::Sparse(sparse) => {
                let length = sparse.length;
                vec![Part {
                    length,
                    extent: Extent::Sparse(Arc::clone(&self.file), sparse),
                }]
            }
            What::Described(described) => {
                let mut files = files.into_iter();
                let is_sparse = |extent: &&ExtentLine| matches!(extent.contents, Contents::Sparse { .. });
                let shared = Shared::new(described.extents.iter().filter(is_sparse).count());
                let mut parts = Vec::with_capacity(described.extents.len());
                for extent in described.extents {
                    let mut next = || {
                        files
                            .next()
                            .ok_or_else(|| invalid("an extent's file was not opened"))
                    };
                    let opened = match extent.contents {
                        Contents::Zeros => Extent::Zeros,
                        Contents::Flat { offset, .. } => Extent::Flat(next()?.0, offset),
                        Contents::Sparse { .. } => {
                            let (file, path) = next()?;
                            let sparse =
                                Sparse::read(&*file, &shared).map_err(|e| e.context(path.display()))?;
                            Extent::Sparse(file, sparse)
                        }
                    };
                    parts.push(Part {
                        length: extent.length,
                        extent: opened,
                    });
                }
                parts
            }
        };
        let mut length = 0u64;
        for part in &parts {
            length = length
                .checked_add(part.length)
                .filter(|length| *length <= MAX_LENGTH)
                .ok_or_else(|| {
                    not_supported(format!(
                        "its extents are longer than the limit of {MAX_LENGTH} bytes"
                    ))
                    .context(self.path.display())
                })?;
        }
        Ok(VmdkImage::new(self.file, parts, length))
    }
}

/// Bytes of a file, few enough to be had.
fn bytes(file: &dyn Storage, offset: u64, len: u64) -> Result<Vec<u8>> {
    let wanted = usize::try_from(len).map_err(|_| invalid("a part of it is too long"))?;
    let mut bytes = zeros(wanted)
        .map_err(|_| Error::new(ErrorCode::NoMemory, format!("no memory for {len} bytes of it")))?;
    read_slice(file, &mut bytes, offset).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => invalid(format!(
            "it ends before the {len} bytes at {offset} that it must have"
        )),
        _ => Error::system(&e),
    })?;
    Ok(bytes)
}

/// Memory, or an error where there is none.
fn zeros(len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

#[cold]
fn invalid(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::FileInvalid, words)
}

#[cold]
fn not_supported(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::NotSupported, words)
}

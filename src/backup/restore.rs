//! The way back: a backup into a raw image, a block device or a QBM disk.
//!
//! A target that exists is compared and written only where it differs. A new one gets its name when all of it is
//! durable, so that whoever is killed leaves none that looks whole. Invariant: nothing is written before all that the
//! backup stands on has been found to be what was stored.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::{CHUNK, Content, RawFile};
use super::digest::{BLOCK, is_zero, runs};
use super::folder::BackupFolder;
use super::pace::Pace;
use super::point::BackupPoint;
use crate::descriptor::Descriptor;
use crate::disk::{CreateOptions, Disk, OpenOptions, Progress, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::parallel::{self, Buffers};
use crate::state::{Lock, Sharing};
use crate::storage::{
    Access, Folder, HostFolder, Role, Storage, SyncMode, Zeroing, start_writeback, write_slice,
};
use crate::units::ByteRange;

/// What a backup is restored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RestoreFormat {
    /// A raw image or a block device.
    #[default]
    Raw,
    /// A QBM disk: a descriptor, and a raw image beside it. One that exists keeps its bitmaps, which record what the
    /// restore changes.
    Qbm,
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
    /// First all that is stored is compared with its checksums; then `progress` begins anew for the copy. An image that
    /// exists is part old and part new after an error; the same call again does the rest.
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
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io("find", to, &e)),
        };
        let target = match (self.format, exists) {
            (RestoreFormat::Raw, true) => Target::Raw(open_raw(to, point.length)?),
            (RestoreFormat::Qbm, true) => Target::Disk(Box::new(OpenOptions::new().open(to)?)),
            (_, false) => Target::Raw(New::create(to)?),
        };
        let written = folder
            .verify_chain(point, progress)
            .and_then(|()| folder.open_point(point))
            .and_then(|source| {
                target.set_length(point.length)?;
                let mut pace = Pace::new(progress, self.limit, point.length);
                let written = overwrite(&source, &target, &mut pace)?;
                target.finish()?;
                Ok(written)
            });
        if !exists {
            New::end(to, self.format, written.is_ok())?;
        }
        Ok(Restored {
            length: point.length,
            written: written?,
        })
    }
}

/// Where a backup goes.
enum Target {
    Raw(RawTarget),
    Disk(Box<Disk>),
}

struct RawTarget {
    file: RawFile,
    lock: Option<Lock>,
}

impl Drop for RawTarget {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.release();
        }
    }
}

impl RawTarget {
    fn lock(storage: Arc<dyn Storage>, path: PathBuf) -> Result<Self> {
        let lock = Lock::image(&storage, &path, Sharing::Write)?;
        let file = RawFile::new(storage, path)?;
        Ok(Self { file, lock })
    }
}

impl Target {
    fn set_length(&self, length: u64) -> Result<()> {
        match self {
            Self::Disk(disk) if disk.length() == length => Ok(()),
            Self::Disk(disk) => disk.truncate(length, TruncateFlags::SHRINK),
            Self::Raw(raw) if raw.file.length == length || raw.file.storage.limits().block_device => Ok(()),
            Self::Raw(raw) => raw
                .file
                .storage
                .set_length(length)
                .map_err(|e| Error::io("resize", &raw.file.path, &e)),
        }
    }

    fn content(&self) -> &dyn Content {
        match self {
            Self::Raw(raw) => &raw.file,
            Self::Disk(disk) => &**disk,
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if !is_zero(bytes) {
            return match self {
                Self::Raw(raw) => write_slice(&*raw.file.storage, bytes, offset).map_err(|e| {
                    let action = format!("write {} bytes at offset {offset} to", bytes.len());
                    Error::io(&action, &raw.file.path, &e)
                }),
                Self::Disk(disk) => disk.write(bytes, offset, WriteFlags::empty()),
            };
        }
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        let how = Zeroing {
            may_unmap: true,
            no_fallback: false,
        };
        match self {
            Self::Raw(raw) => raw
                .file
                .storage
                .write_zeroes(range, how)
                .map_err(|e| Error::io(&format!("zero {range} of"), &raw.file.path, &e)),
            Self::Disk(disk) => disk.write_zeroes(range.start(), range.len(), WriteFlags::MAY_UNMAP),
        }
    }

    fn finish(&self) -> Result<()> {
        match self {
            Self::Raw(raw) => raw
                .file
                .storage
                .sync(SyncMode::All)
                .map_err(|e| Error::io("sync", &raw.file.path, &e)),
            Self::Disk(disk) => disk.flush().and_then(|()| disk.bitmap_sync(None)),
        }
    }
}

/// Makes the first bytes of `target` those of `source`. Says how many had to be written.
fn overwrite(source: &Disk, target: &Target, pace: &mut Pace<'_, '_>) -> Result<u64> {
    let length = source.length();
    let (mut at, mut written) = (0, 0);
    let next = || {
        while at < length {
            let range = ByteRange::between(at, length);
            let (from, into) = (source.extent(range)?, target.content().extent(range)?);
            let end = at.saturating_add(from.len.min(into.len).max(1)).min(length);
            let start = at;
            if !from.data && !into.data {
                at = end;
                continue;
            }
            at = end.min(start - start % CHUNK + CHUNK);
            return Ok(Some(Piece {
                range: ByteRange::between(start, at),
                from_has: from.data,
                into_has: into.data,
            }));
        }
        Ok(None)
    };
    parallel::in_order(
        next,
        |piece, buffers| make_equal(source, target, piece, buffers),
        |piece, changed| {
            written += changed;
            pace.moved(changed)?;
            pace.reached(piece.range.end())
        },
    )?;
    pace.reached(length)?;
    Ok(written)
}

/// What is compared in one go.
struct Piece {
    range: ByteRange,
    /// Whether the source, and the target, have data there.
    from_has: bool,
    into_has: bool,
}

fn make_equal(source: &Disk, target: &Target, piece: &Piece, buffers: &mut Buffers) -> Result<u64> {
    let (at, end) = (piece.range.start(), piece.range.end());
    let [new, old] = buffers;
    fill(source, piece.from_has, new, at, end)?;
    let mut written = 0;
    let mut put = |run: std::ops::Range<usize>| {
        written += run.len() as u64;
        target.write(&new[run.clone()], at + run.start as u64)
    };
    if piece.into_has {
        fill(target.content(), true, old, at, end)?;
        differing(new, old).try_for_each(&mut put)?;
    } else {
        runs(new).try_for_each(&mut put)?;
    }
    if let (Target::Raw(raw), true) = (target, written > 0) {
        start_writeback(&*raw.file.storage, piece.range);
    }
    Ok(written)
}

fn fill(content: &dyn Content, data: bool, buffer: &mut Vec<u8>, at: u64, end: u64) -> Result<()> {
    buffer.clear();
    buffer.resize(usize::try_from(end - at).unwrap_or(0), 0);
    if data {
        content.read(buffer, at)?;
    }
    Ok(())
}

/// Runs of blocks in which two buffers of one length differ; each is zeros throughout, or has none that is.
fn differing<'b>(new: &'b [u8], old: &'b [u8]) -> impl Iterator<Item = std::ops::Range<usize>> + 'b {
    let step = usize::try_from(BLOCK).unwrap_or(usize::MAX);
    let kind = move |at: usize| {
        let block = at..new.len().min(at + step);
        (new[block.clone()] != old[block.clone()]).then(|| is_zero(&new[block]))
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < new.len() && kind(at).is_none() {
            at += step;
        }
        let start = at;
        let first = (at < new.len()).then(|| kind(at)).flatten()?;
        while at < new.len() && kind(at) == Some(first) {
            at += step;
        }
        at = at.min(new.len());
        Some(start..at)
    })
}

/// Opens what is to be overwritten.
fn open_raw(path: &Path, length: u64) -> Result<RawTarget> {
    let (folder, name) = place(path)?;
    let access = Access {
        write: true,
        direct: false,
    };
    let storage = folder
        .open(Role::Image, Path::new(&name), access)
        .map_err(|e| Error::io("open for writing", path, &e))?;
    let target = RawTarget::lock(storage, path.to_owned())?;
    if target.file.length <= Descriptor::MAX_BYTES && Descriptor::read(&*target.file.storage).is_ok() {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            "it is a QBM descriptor, which a raw image would replace; ask for the format qbm, or name the image",
        ));
    }
    if target.file.storage.limits().block_device && target.file.length < length {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!(
                "the backup is of a disk of {length} bytes, and the block device has only {}",
                target.file.length
            ),
        ));
    }
    Ok(target)
}

/// A target that does not exist yet.
struct New;

impl New {
    /// A file beside it that is to be it, or its image.
    fn create(to: &Path) -> Result<RawTarget> {
        let (folder, name) = place(to)?;
        let temporary = temporary(&name);
        // What somebody who was killed has left there is worth nothing.
        match folder.remove(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", to.with_file_name(&temporary), &e));
            }
            _ => {}
        }
        let path = to.with_file_name(&temporary);
        let storage = folder
            .create(Role::Image, &temporary)
            .map_err(|e| Error::io("create", &path, &e))?;
        RawTarget::lock(storage, path)
    }

    /// Gives it its name, or removes it.
    fn end(to: &Path, format: RestoreFormat, whole: bool) -> Result<()> {
        let (folder, name) = place(to)?;
        let temporary = temporary(&name);
        if !whole {
            // Why it is not whole is what the caller is told.
            let _ = folder.remove(&temporary);
            return Ok(());
        }
        let image = match format {
            RestoreFormat::Raw => name,
            RestoreFormat::Qbm => free_name(to)?,
        };
        folder
            .rename(&temporary, Path::new(&image))
            .and_then(|()| folder.sync())
            .map_err(|e| Error::io("rename", to.with_file_name(&temporary), &e))?;
        match (format, image.to_str()) {
            (RestoreFormat::Raw, _) => Ok(()),
            (RestoreFormat::Qbm, Some(image)) => CreateOptions::new().image(image).create(to),
            (RestoreFormat::Qbm, None) => Err(Error::new(
                ErrorCode::InvalidArgument,
                "its name is not UTF-8, which a descriptor is",
            )),
        }
    }
}

fn temporary(name: &OsString) -> PathBuf {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".restoring");
    temporary.into()
}

/// A name for the image of the disk `to`: nothing that exists is overwritten.
fn free_name(to: &Path) -> Result<OsString> {
    let stem = to.file_stem().unwrap_or_default();
    for number in 0..1000 {
        let mut name = stem.to_owned();
        name.push("-data");
        if number > 0 {
            name.push(format!("-{number}"));
        }
        name.push(".img");
        if fs::symlink_metadata(to.with_file_name(&name)).is_err() {
            return Ok(name);
        }
    }
    Err(Error::new(
        ErrorCode::FileExists,
        "every name for its image is taken",
    ))
}

fn place(path: &Path) -> Result<(HostFolder, OsString)> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorCode::InvalidArgument, "it does not name a file"));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let opened = HostFolder::open(folder).map_err(|e| Error::io("open the folder", folder, &e))?;
    Ok((opened, name.to_owned()))
}

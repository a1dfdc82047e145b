//! Onto what exists: compared, and written only where it differs.
//!
//! Invariant: nothing is written before all that the backup stands on has been found to be what was stored.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::place;
use crate::backup::content::{CHUNK, Content, RawFile};
use crate::backup::digest::{BLOCK, is_zero, runs};
use crate::backup::folder::BackupFolder;
use crate::backup::pace::Pace;
use crate::backup::point::BackupPoint;
use crate::descriptor::Format;
use crate::disk::{Disk, OpenOptions, Progress, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::parallel::{self, Buffer, Buffers};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Folder as _, Role, Storage, SyncMode, Zeroing, start_writeback, write_slice};
use crate::units::ByteRange;

use super::{Restore, RestoreFormat};

/// Restores `point` onto `to`. Says how many bytes had to be written.
pub(super) fn restore(
    how: &Restore,
    folder: &BackupFolder,
    point: &BackupPoint,
    to: &Path,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    let target = match how.format {
        RestoreFormat::Raw => Target::Raw(open_raw(to, point.length)?),
        RestoreFormat::Qbm => Target::disk(OpenOptions::new().open(to)?),
        RestoreFormat::Qcow2 => Target::disk(
            OpenOptions::new()
                .image_format(Format::Qcow2)
                .image_writable()
                .open(to)?,
        ),
    };
    folder.verify_chain(point, progress)?;
    let source = folder.open_point(point)?;
    target.set_length(point.length)?;
    let mut pace = Pace::new(progress, how.limit, point.length);
    let written = overwrite(&source, &target, &mut pace)?;
    target.finish()?;
    Ok(written)
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
    fn disk(disk: Disk) -> Self {
        Self::Disk(Box::new(disk))
    }

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

    fn finish(self) -> Result<()> {
        match self {
            Self::Raw(raw) => raw
                .file
                .storage
                .sync(SyncMode::All)
                .map_err(|e| Error::io("sync", &raw.file.path, &e)),
            Self::Disk(disk) => disk.close(),
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
    let new = fill(source, piece.from_has, new, at, end)?;
    let mut written = 0;
    let mut put = |run: std::ops::Range<usize>| {
        written += run.len() as u64;
        target.write(&new[run.clone()], at + run.start as u64)
    };
    if piece.into_has {
        let old = fill(target.content(), true, old, at, end)?;
        differing(new, old).try_for_each(&mut put)?;
    } else {
        runs(new).try_for_each(&mut put)?;
    }
    if let (Target::Raw(raw), true) = (target, written > 0) {
        start_writeback(&*raw.file.storage, piece.range);
    }
    Ok(written)
}

fn fill<'b>(
    content: &dyn Content,
    data: bool,
    buffer: &'b mut Buffer,
    at: u64,
    end: u64,
) -> Result<&'b [u8]> {
    let bytes = buffer.take(usize::try_from(end - at).unwrap_or(0));
    if data {
        content.read(bytes, at)?;
    } else {
        bytes.fill(0);
    }
    Ok(bytes)
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
    Disk::check_overwrite(&folder, &*target.file.storage)?;
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

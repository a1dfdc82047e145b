//! To a new file: all that the backup stands on is read once, and what is read is what is summed up and written.
//!
//! Of each link of the chain the checksum is of all that is stored in it. So blocks that a later backup hides are read
//! too, once. Invariant: the file has no name before every checksum was found to be the one of when the backup was made.

use std::io;
use std::iter::{self, Once};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Restore, RestoreFormat, place};
use crate::backup::content::{CHUNK, Chunk, Chunks, Content as _, RawFile};
use crate::backup::digest::{BlockDigest, ChunkSum, TreeDigest, runs};
use crate::backup::folder::{BackupFolder, check_length};
use crate::backup::pace::Pace;
use crate::backup::point::BackupPoint;
use crate::backup::verify::{check_data, damaged};
use crate::descriptor::names::FileName;
use crate::disk::{CreateOptions, Disk, Progress, StatusFlags, StatusHints};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{DEFAULT_CLUSTER, Fresh};
use crate::parallel::{self, Buffer};
use crate::storage::{NewFile, Storage, Writeback, write_slice};
use crate::units::ByteRange;

/// Restores `point` to `to`, which does not exist. Says how many bytes were written.
pub(super) fn restore(
    how: &Restore,
    folder: &BackupFolder,
    point: &BackupPoint,
    to: &Path,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    let (into, name) = place(to)?;
    let chain = Chain::open(folder, point)?;
    let failed = |e: &io::Error| match e.kind() {
        io::ErrorKind::AlreadyExists => Error::new(
            ErrorCode::FileExists,
            "somebody has made a file of that name meanwhile; it is not overwritten",
        ),
        _ => Error::io("create", to, e),
    };
    let mut file = NewFile::create(into).map_err(|e| failed(&e))?;
    let target = Target::new(&file, how.format, to, point.length)?;
    let mut pace = Pace::new(progress, how.limit, chain.longest());
    let written = chain.copy(&target, &mut pace)?;
    target.finish()?;
    if how.format == RestoreFormat::Qbm {
        let image = FileName::data(name).give_to(&mut file).map_err(|e| failed(&e))?;
        CreateOptions::new()
            .image(&*image)
            .create(to)
            .inspect_err(|_| file.take_back(Path::new(&image)))?;
    } else {
        file.publish(name).map_err(|e| failed(&e))?;
    }
    Ok(written)
}

/// What becomes the new file.
enum Target {
    Raw {
        storage: Arc<dyn Storage>,
        path: PathBuf,
        /// The file system lets one write to a file at a time, and the others spin meanwhile. They have sums to compute.
        writing: Mutex<()>,
    },
    Qcow2(Fresh),
}

impl Target {
    fn new(file: &NewFile, format: RestoreFormat, path: &Path, length: u64) -> Result<Self> {
        let (storage, path) = (file.storage(), path.to_owned());
        if format == RestoreFormat::Qcow2 {
            return Fresh::new(storage, path, length, DEFAULT_CLUSTER).map(Self::Qcow2);
        }
        storage
            .set_length(length)
            .map_err(|e| Error::io(&format!("give {length} bytes to"), &path, &e))?;
        Ok(Self::Raw {
            storage,
            path,
            writing: Mutex::new(()),
        })
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            Self::Raw {
                storage,
                path,
                writing,
            } => {
                let _turn = writing.lock().unwrap_or_else(PoisonError::into_inner);
                write_slice(&**storage, bytes, offset).map_err(|e| {
                    let action = format!("write {} bytes at offset {offset} to", bytes.len());
                    Error::io(&action, path, &e)
                })
            }
            Self::Qcow2(image) => image.write(bytes, offset),
        }
    }

    /// Nothing more comes before `end`.
    fn reached(&self, end: u64, writeback: &mut Writeback) {
        if let Self::Raw { storage, .. } = self {
            writeback.reached(&**storage, end);
        }
    }

    fn finish(&self) -> Result<()> {
        match self {
            Self::Raw { .. } => Ok(()),
            Self::Qcow2(image) => image.finish(&[]),
        }
    }
}

/// A backup and all that it stands on, open.
struct Chain<'f> {
    /// Knows which link has what.
    disk: Disk,
    /// As the disk counts its layers.
    links: Vec<Link<'f>>,
}

struct Link<'f> {
    point: &'f BackupPoint,
    file: RawFile,
}

/// One chunk of all links that have something in it.
struct Piece {
    range: ByteRange,
    of: Vec<(usize, Chunk)>,
}

/// What was found in one.
struct Done {
    /// In the order of the piece; `None` where a link has nothing but zeros.
    sums: Vec<Option<ChunkSum>>,
    written: u64,
}

impl<'f> Chain<'f> {
    /// With small things found to be as they were: what leads to the data files, and what says which of them has what.
    fn open(folder: &'f BackupFolder, point: &'f BackupPoint) -> Result<Self> {
        let points = folder.chain(point)?;
        let disk = folder.open_point(point)?;
        if disk.info()?.layers as usize != points.len() {
            return Err(damaged(format!(
                "its descriptor does not lead to the {} backups that it stands on by its record",
                points.len() - 1
            )));
        }
        let mut links = Vec::with_capacity(points.len());
        for (point, index) in points.into_iter().zip(0..) {
            let layer = disk.layer(index)?;
            check_length(point, layer.length)?;
            let file = folder.data_of(point, &layer)?;
            folder.verify_bitmap(point)?;
            links.push(Link { point, file });
        }
        Ok(Self { disk, links })
    }

    /// How far the longest link goes.
    fn longest(&self) -> u64 {
        let lengths = self.links.iter().map(|link| link.file.length);
        lengths.max().unwrap_or(0)
    }

    /// Reads all that is stored, once, and writes to `target` what the backup shows of it. Fails where anything is not what
    /// was stored, be it shown or hidden; what was written is worth nothing then.
    fn copy(&self, target: &Target, pace: &mut Pace<'_, '_>) -> Result<u64> {
        let mut walks: Vec<Walk<'_>> = self.links.iter().map(Walk::new).collect::<Result<_>>()?;
        let mut trees: Vec<TreeDigest> = self.links.iter().map(|_| TreeDigest::default()).collect();
        let mut written = 0;
        let mut writeback = Writeback::default();
        parallel::in_order(
            || next(&mut walks),
            |piece, buffers| self.one(piece, target, &mut buffers[0]),
            |piece, done| {
                for ((link, _), sum) in piece.of.iter().zip(&done.sums) {
                    if let Some(sum) = sum {
                        trees[*link].add(piece.range.start(), sum);
                    }
                }
                written += done.written;
                target.reached(piece.range.end(), &mut writeback);
                pace.moved(done.written)?;
                pace.reached(piece.range.end())
            },
        )?;
        for (link, tree) in self.links.iter().zip(trees) {
            check_data(link.point, &tree.finish())?;
        }
        pace.reached(pace.total)?;
        Ok(written)
    }

    fn one(&self, piece: &Piece, target: &Target, buffer: &mut Buffer) -> Result<Done> {
        let shown = self.shown(piece.range)?;
        let mut written = 0;
        let mut sums = Vec::with_capacity(piece.of.len());
        for (link, chunk) in &piece.of {
            let own = || shown.iter().filter(|(of, _)| of == link).map(|(_, range)| *range);
            let mut digest = BlockDigest::default();
            let mut empty = true;
            for step in chunk.steps() {
                let buffer = buffer.take(usize::try_from(step.len()).unwrap_or(0));
                self.links[*link].file.read(buffer, step.start())?;
                for run in runs(buffer) {
                    let (from, bytes) = (step.start() + run.start as u64, &buffer[run]);
                    digest.add(from, bytes);
                    empty = false;
                    for (bytes, at) in parts(bytes, from, own()) {
                        target.write(bytes, at)?;
                        written += bytes.len() as u64;
                    }
                }
            }
            sums.push((!empty).then(|| digest.finish()));
        }
        Ok(Done { sums, written })
    }

    /// Which link the backup shows where in `range`, in ascending order; what none has is left out.
    fn shown(&self, range: ByteRange) -> Result<Vec<(usize, ByteRange)>> {
        // Where there are holes, the file itself tells.
        let hints = StatusHints {
            allocation_only: true,
            deepest: None,
        };
        let mut shown = Vec::new();
        let (mut at, end) = (range.start(), range.end().min(self.disk.length()));
        while at < end {
            let status = self.disk.block_status_with(at, end - at, hints)?;
            let next = at.saturating_add(status.length.max(1)).min(end);
            if !status.flags.contains(StatusFlags::ZERO) {
                shown.push((status.layer as usize, ByteRange::between(at, next)));
            }
            at = next;
        }
        Ok(shown)
    }
}

/// What of `bytes`, which begin at `offset`, lies in `ranges`, and where.
fn parts(
    bytes: &[u8],
    offset: u64,
    ranges: impl Iterator<Item = ByteRange>,
) -> impl Iterator<Item = (&[u8], u64)> {
    let end = offset + bytes.len() as u64;
    ranges.filter_map(move |range| {
        let (start, stop) = (range.start().max(offset), range.end().min(end));
        // Within a slice that is in memory.
        let part = usize::try_from(start - offset).ok()?..usize::try_from(stop.checked_sub(offset)?).ok()?;
        let part = bytes.get(part).filter(|part| !part.is_empty())?;
        Some((part, start))
    })
}

/// A link on the way, with the chunk that comes next.
struct Walk<'c> {
    chunks: Chunks<'c, Once<ByteRange>>,
    next: Option<Chunk>,
}

impl<'c> Walk<'c> {
    fn new(link: &'c Link<'_>) -> Result<Self> {
        let whole = iter::once(ByteRange::between(0, link.file.length));
        let mut chunks = Chunks::new(&link.file, whole);
        let next = chunks.next()?;
        Ok(Self { chunks, next })
    }

    /// Its next chunk, if it is the one at `start`.
    fn take(&mut self, start: u64) -> Result<Option<Chunk>> {
        if self.next.as_ref().is_none_or(|chunk| chunk.start() != start) {
            return Ok(None);
        }
        let after = self.chunks.next()?;
        Ok(std::mem::replace(&mut self.next, after))
    }
}

/// The next chunk in which any link may have data.
fn next(walks: &mut [Walk<'_>]) -> Result<Option<Piece>> {
    let starts = walks
        .iter()
        .filter_map(|walk| walk.next.as_ref().map(Chunk::start));
    let Some(start) = starts.min() else {
        return Ok(None);
    };
    let mut of = Vec::new();
    for (index, walk) in walks.iter_mut().enumerate() {
        of.extend(walk.take(start)?.map(|chunk| (index, chunk)));
    }
    Ok(Some(Piece {
        range: ByteRange::between(start, start + CHUNK),
        of,
    }))
}

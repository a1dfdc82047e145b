//! Copying what is not zeros into a new data file, and summing up what a data file says.
//!
//! Both go by chunks, several at a time. Every byte has to be in memory for its checksum, so a copy in the kernel would
//! read it a second time; but where the file system can share blocks, they are shared instead of written.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::content::{Chunk, Chunks, Content};
use super::digest::{self, BlockDigest, ChunkSum, TreeDigest};
use super::pace::Pace;
use crate::error::{Error, Result};
use crate::parallel::{self, Buffer};
use crate::storage::{Storage, Writeback, write_slice};
use crate::units::ByteRange;

/// What was written to a data file.
pub(super) struct Copied {
    /// In bytes; zeros are not.
    pub(super) stored: u64,
    pub(super) checksum: String,
}

/// Copies `parts` of `source`, in ascending order, into an empty file at `path` of the same length, each widened to
/// whole blocks: a checksum is of these. Holes stay holes, and zeros become some. What `source` keeps for us is released.
pub(super) fn copy(
    source: &dyn Content,
    parts: impl Iterator<Item = ByteRange>,
    target: &dyn Storage,
    path: &Path,
    pace: &mut Pace<'_, '_>,
) -> Result<Copied> {
    target
        .set_length(source.length())
        .map_err(|e| Error::io("resize", path, &e))?;
    let target = Target {
        storage: target,
        path,
        // A first attempt tells.
        shares: AtomicBool::new(true),
        writing: Mutex::new(()),
    };
    each(source, parts, Some(&target), pace)
}

/// The checksum of `content`.
pub(super) fn checksum(content: &dyn Content, pace: &mut Pace<'_, '_>) -> Result<String> {
    let whole = std::iter::once(ByteRange::between(0, content.length()));
    Ok(each(content, whole, None, pace)?.checksum)
}

struct Target<'t> {
    storage: &'t dyn Storage,
    path: &'t Path,
    /// Whether it can share blocks with the source.
    shares: AtomicBool,
    /// The file system lets one write to a file at a time, and the others spin meanwhile. They have sums to compute.
    writing: Mutex<()>,
}

fn each(
    source: &dyn Content,
    parts: impl Iterator<Item = ByteRange>,
    target: Option<&Target<'_>>,
    pace: &mut Pace<'_, '_>,
) -> Result<Copied> {
    let before = pace.done;
    let mut chunks = Chunks::new(source, parts);
    let mut tree = TreeDigest::default();
    let mut stored = 0;
    let mut writeback = Writeback::default();
    parallel::in_order(
        || chunks.next(),
        |chunk: &Chunk, buffers| {
            let summed = one(source, chunk, target, &mut buffers[0])?;
            source.release(chunk.covers)?;
            Ok(summed)
        },
        |chunk, summed| {
            if let Some((sum, bytes)) = summed {
                tree.add(chunk.start(), &sum);
                stored += bytes;
                pace.moved(bytes)?;
            }
            if let Some(target) = target {
                writeback.reached(target.storage, chunk.covers.end());
            }
            pace.reached(before.saturating_add(chunk.passed))
        },
    )?;
    pace.reached(before.saturating_add(chunks.passed()))?;
    Ok(Copied {
        stored,
        checksum: tree.finish(),
    })
}

/// Sums up one chunk and copies it. Says how many bytes it has; `None` where it is all zeros.
fn one(
    source: &dyn Content,
    chunk: &Chunk,
    target: Option<&Target<'_>>,
    buffer: &mut Buffer,
) -> Result<Option<(ChunkSum, u64)>> {
    let mut digest = BlockDigest::default();
    let mut bytes = 0;
    for step in chunk.steps() {
        let buffer = buffer.take(usize::try_from(step.len()).unwrap_or(0));
        source.read(buffer, step.start())?;
        for run in digest::runs(buffer) {
            let offset = step.start() + run.start as u64;
            let run = &buffer[run];
            digest.add(offset, run);
            bytes += run.len() as u64;
            if let Some(target) = target {
                target.put(source, run, offset)?;
            }
        }
    }
    Ok((bytes > 0).then(|| (digest.finish(), bytes)))
}

impl Target<'_> {
    fn put(&self, source: &dyn Content, bytes: &[u8], offset: u64) -> Result<()> {
        let range = ByteRange::between(offset, offset + bytes.len() as u64);
        if self.shares.load(Ordering::Relaxed) {
            match source.share(range, self.storage) {
                Some(Ok(true)) => return Ok(()),
                // It has been overwritten meanwhile: the bytes at hand are what it was.
                Some(Ok(false)) => {}
                Some(Err(_)) | None => self.shares.store(false, Ordering::Relaxed),
            }
        }
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write_slice(self.storage, bytes, offset).map_err(|e| {
            Error::io(
                &format!("write {} bytes at offset {offset} to", bytes.len()),
                self.path,
                &e,
            )
        })
    }
}

//! The copy itself: pieces of the source, by several threads.
//!
//! Invariant: what is not written is zeros on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::extents::{Extents, What};
use super::target::Target;
use crate::disk::{Disk, Progress};
use crate::error::{Error, ErrorCode, Result};
use crate::parallel::{self, Buffer};
use crate::storage::{Storage, Writeback, copy_range};
use crate::units::ByteRange;
use crate::zeros::{BLOCK, BLOCK_BYTES, runs_of_data};

/// What a thread takes at a time, unless a hole must be larger.
const PIECE: u64 = 2 << 20;
/// What it reads at a time: small enough to be still in the processor's cache when it is written.
const STEP: u64 = 256 << 10;
/// Smaller runs of data are taken together, but never with a larger one: the kernel may copy that alone.
const SMALL: u64 = 128 << 10;
/// What is taken at a time where nothing is copied.
const SHARED: u64 = 256 << 20;

/// How bytes are copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// So many zeros become a hole; none, where it is 0.
    pub(super) sparse: usize,
    /// The kernel may copy, without anybody looking for zeros.
    pub(super) offload: bool,
    pub(super) threads: usize,
}

/// What was done, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) written: u64,
    pub(super) shared: u64,
}

struct Copy<'c> {
    source: &'c Disk,
    target: &'c Target,
    how: How,
    /// The source's blocks can be shared; nobody knows before it was tried.
    shares: AtomicBool,
    shared_before: AtomicBool,
    written: AtomicU64,
    shared: AtomicU64,
}

/// Makes the first bytes of `target` those of `source`.
pub(super) fn copy(source: &Disk, target: &Target, how: How, progress: &mut Progress<'_>) -> Result<Copied> {
    let total = source.length();
    let copy = Copy {
        source,
        target,
        how,
        shares: AtomicBool::new(how.sparse > 0 && target.plain().is_some()),
        shared_before: AtomicBool::new(false),
        written: AtomicU64::new(0),
        shared: AtomicU64::new(0),
    };
    let mut extents = Extents::new(source);
    let mut at = 0;
    let next = || {
        if at >= total {
            return Ok(None);
        }
        let piece = copy.piece(&mut extents, at, total)?;
        at = piece.range.end();
        Ok(Some(piece))
    };
    let mut writeback = Writeback::default();
    let told = |piece: Piece, ()| {
        let end = piece.range.end();
        if let Some(to) = target.plain() {
            writeback.reached(to, end);
        }
        if progress(end, total).is_break() {
            return Err(canceled());
        }
        Ok(())
    };
    parallel::in_order_by(
        how.threads,
        next,
        |piece, [buffer, _]| copy.work(piece, buffer),
        told,
    )?;
    Ok(Copied {
        written: copy.written.into_inner(),
        shared: copy.shared.into_inner(),
    })
}

pub(super) fn canceled() -> Error {
    Error::new(ErrorCode::Canceled, "the caller ended it")
}

/// What one thread does at a time.
struct Piece {
    range: ByteRange,
    what: What,
}

impl Copy<'_> {
    fn piece(&self, extents: &mut Extents<'_>, at: u64, total: u64) -> Result<Piece> {
        let (what, end) = extents.at(at)?;
        let (mut what, mut end) = (what.clone(), end.min(total));
        let piece = |what, end| {
            Ok(Piece {
                range: ByteRange::between(at, end),
                what,
            })
        };
        if !what.is_data() {
            return piece(what, end);
        }
        if end - at < SMALL {
            while end < total && end - at < SMALL {
                let (next, stop) = extents.at(end)?;
                let stop = stop.min(total);
                if !next.is_data() || stop - end >= SMALL {
                    break;
                }
                what = What::Data(None);
                end = stop;
            }
        }
        let most = if self.shared_before.load(Ordering::Relaxed) && self.shares.load(Ordering::Relaxed) {
            SHARED
        } else {
            PIECE.max(self.how.sparse as u64)
        };
        if end - at > most {
            // At a block's end, so that zeros are found in the same units all along.
            end = at + most - (at + most) % BLOCK;
        }
        piece(what, end)
    }

    fn work(&self, piece: &Piece, buffer: &mut Buffer) -> Result<()> {
        let range = piece.range;
        match &piece.what {
            What::Zeros => self.zeros(range),
            What::Data(place) => self.data(range, place.as_ref(), buffer),
        }
    }

    /// Sees to it that `range`, which is not copied, is zeros.
    fn zeros(&self, range: ByteRange) -> Result<()> {
        if self.target.is_new() || range.is_empty() {
            return Ok(());
        }
        self.target.zero(range, self.how.sparse > 0)
    }

    fn data(&self, range: ByteRange, place: Option<&Arc<dyn Storage>>, buffer: &mut Buffer) -> Result<()> {
        let mut rest = range;
        if let (Some(from), Some(to)) = (place, self.target.plain()) {
            if self.shares.load(Ordering::Relaxed) {
                let end = self.share(&**from, to, range);
                self.shared.fetch_add(end - range.start(), Ordering::Relaxed);
                rest = ByteRange::between(end, range.end());
            }
            if self.how.offload && !rest.is_empty() {
                let copied = copy_range(&**from, rest.start(), to, rest.start(), rest.len())
                    .map_err(|e| self.failed(rest, &e))?;
                self.written.fetch_add(copied, Ordering::Relaxed);
                rest = ByteRange::between(rest.start() + copied, rest.end());
            }
        }
        // A hole is found within what is read at a time.
        let step = STEP.max(self.how.sparse as u64);
        let mut at = rest.start();
        while at < rest.end() {
            let end = rest.end().min(at + step);
            self.bytes(ByteRange::between(at, end), buffer)?;
            at = end;
        }
        Ok(())
    }

    /// Shares as much of `range`, from its beginning on, as can be, and says where that ends.
    fn share(&self, from: &dyn Storage, to: &dyn Storage, range: ByteRange) -> u64 {
        let end = range.end() - range.end() % BLOCK;
        if !range.start().is_multiple_of(BLOCK) || end <= range.start() {
            return range.start();
        }
        if to.share(from, ByteRange::between(range.start(), end)).is_ok() {
            self.shared_before.store(true, Ordering::Relaxed);
            return end;
        }
        if !self.shared_before.load(Ordering::Relaxed) {
            // Another layer of the source may lie on another file system: only where it never worked it never will.
            self.shares.store(false, Ordering::Relaxed);
        }
        range.start()
    }

    fn failed(&self, range: ByteRange, error: &std::io::Error) -> Error {
        match self.target {
            Target::Raw(raw) => raw.failed(&format!("write {range} to"), error),
            Target::Disk(disk) => Error::io(&format!("write {range} to"), disk.path(), error),
            Target::Qcow2(_) => Error::system(error),
        }
    }

    /// Copies bytes through memory, but for the zeros among them.
    fn bytes(&self, range: ByteRange, buffer: &mut Buffer) -> Result<()> {
        // At most a step.
        let len = usize::try_from(range.len()).unwrap_or(0);
        let buffer = buffer.take(len);
        self.source.read(buffer, range.start())?;
        if self.how.sparse == 0 {
            self.written.fetch_add(range.len(), Ordering::Relaxed);
            return self.target.write(buffer, range.start());
        }
        let unit = if self.how.sparse.is_multiple_of(BLOCK_BYTES) {
            BLOCK_BYTES
        } else {
            512
        };
        let (mut before, mut written) = (0, 0);
        for run in runs_of_data(buffer, unit, self.how.sparse) {
            self.zeros(part(range, before, run.start))?;
            before = run.end;
            written += run.len() as u64;
            self.target
                .write(&buffer[run.clone()], range.start() + run.start as u64)?;
        }
        self.written.fetch_add(written, Ordering::Relaxed);
        self.zeros(part(range, before, len))
    }
}

/// What of `range` lies in these bytes of its buffer.
fn part(range: ByteRange, start: usize, end: usize) -> ByteRange {
    ByteRange::between(range.start() + start as u64, range.start() + end as u64)
}

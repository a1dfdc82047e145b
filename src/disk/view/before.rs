//! Copy before write: what a granule was before the first write to it since a backup began.
//!
//! Every writer that is about to change a granule whose old content is not kept comes here first, on the way on which
//! it also records the granule in bitmaps; those to granules that are kept pass by at the cost of one load. Invariant:
//! a bit of `kept` is set when the old content is in the scratch file, and before the granule is written to.

use std::sync::{Arc, OnceLock};

use crate::bitmap::Bits;
use crate::disk::Child;
use crate::disk::overlay::{Claims, Overlay};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Extent, Scatter, read_slice, write_slice};
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::units::{ByteRange, Granularity, GranuleIndex, GranuleRange};

/// In which unit old content is kept.
const UNIT: Granularity = Granularity::DEFAULT;

/// The most granules that are copied in one go.
const STEP: u64 = 16;

/// The old content of one disk.
pub(in crate::disk) struct BeforeWrite {
    image: Child,
    /// What is below the image. No resize, commit or emptying puts another in its place while this is here.
    overlay: Option<Arc<Overlay>>,
    length: u64,
    /// As long as the disk, with holes where nothing is kept or zeros were.
    scratch: Child,
    /// The most bytes to be in it.
    limit: u64,
    stored: AtomicU64,
    kept: Arc<Bits>,
    claims: Claims,
    /// Why content is missing that a view would need.
    failure: OnceLock<String>,
}

impl BeforeWrite {
    pub(super) fn new(
        image: Child,
        overlay: Option<Arc<Overlay>>,
        length: u64,
        scratch: Child,
        limit: u64,
    ) -> Result<Self> {
        Ok(Self {
            image,
            overlay,
            length,
            scratch,
            limit,
            stored: AtomicU64::new(0),
            kept: Arc::new(Bits::new(UNIT.granules_in(length))?),
            claims: Claims::default(),
            failure: OnceLock::new(),
        })
    }

    pub(in crate::disk) fn granularity() -> Granularity {
        UNIT
    }

    pub(in crate::disk) fn kept(&self) -> &Arc<Bits> {
        &self.kept
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Keeps what `range` is now. The caller, who is inside the gate, may change it afterwards in any case: where the
    /// old content could not be kept it is the backup that fails, not the guest.
    pub(in crate::disk) fn keep(&self, range: ByteRange) {
        let granules = UNIT.touched_by(range);
        if self.failure.get().is_none() {
            // Whoever comes second waits for the first to have copied it, and then finds the bit.
            let _claim = self.claims.claim(granules);
            if let Err(error) = self.copy(granules) {
                let _ = self.failure.set(error.message().to_owned());
            }
        }
        // After a failure nothing is kept any more, so that writers pass by. It was noted before, and a reader looks
        // for it last.
        self.kept.set(granules);
        // The bits come before the write that follows: a reader that finds none has read nothing of it.
        fence(Ordering::SeqCst);
    }

    fn copy(&self, granules: GranuleRange) -> Result<()> {
        let mut buffer = Vec::new();
        let mut at = granules.start;
        while let Some(start) = self.kept.next_clear(GranuleRange {
            start: at,
            end: granules.end,
        }) {
            let rest = GranuleRange {
                start,
                end: granules.end.min(GranuleIndex(start.0.saturating_add(STEP))),
            };
            let end = self.kept.next_set(rest).unwrap_or(rest.end);
            let run = GranuleRange { start, end };
            self.copy_bytes(UNIT.bytes_of(run, self.length), &mut buffer)?;
            self.kept.set(run);
            at = end;
        }
        Ok(())
    }

    fn copy_bytes(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let extent = self.extent(ByteRange::between(at, range.end()))?;
            let part = ByteRange::between(at, at.saturating_add(extent.len.max(1)).min(range.end()));
            at = part.end();
            if !extent.data {
                continue;
            }
            buffer.resize(usize::try_from(part.len()).unwrap_or(0), 0);
            self.read_now(buffer, part)?;
            if buffer.iter().all(|byte| *byte == 0) {
                continue;
            }
            let stored = self.stored.fetch_add(part.len(), Ordering::Relaxed) + part.len();
            if stored > self.limit {
                return Err(Error::with_errno(
                    ErrorCode::Io,
                    libc::ENOSPC,
                    format!(
                        "the guest has overwritten more than the {} bytes that may be kept for the backup",
                        self.limit
                    ),
                ));
            }
            write_slice(&*self.scratch.storage, buffer, part.start())
                .map_err(|e| self.scratch.failed("keep old content in", &e))?;
        }
        Ok(())
    }

    /// What the disk has where, without entering the gate, in which the writer is.
    fn extent(&self, range: ByteRange) -> Result<Extent> {
        let (image, range) = match &self.overlay {
            None => (&self.image, range),
            Some(overlay) => match overlay.image_of(&self.image, range)? {
                (Some(image), range) => (image, range),
                (None, range) => {
                    return Ok(Extent {
                        data: false,
                        len: range.len(),
                    });
                }
            },
        };
        image
            .storage
            .extent(range)
            .map_err(|e| image.failed("find the data in", &e))
    }

    fn read_now(&self, buffer: &mut [u8], range: ByteRange) -> Result<()> {
        match &self.overlay {
            None => read_slice(&*self.image.storage, buffer, range.start())
                .map_err(|e| self.image.failed(&format!("read {range} from"), &e)),
            Some(overlay) => overlay.read_slice(&self.image, range, buffer),
        }
    }

    /// Whether the first granule of `range` is kept, and the bytes up to where that changes.
    pub(super) fn run(&self, range: ByteRange) -> (bool, ByteRange) {
        let granules = UNIT.touched_by(range);
        let kept = self.kept.get(granules.start);
        let change = if kept {
            self.kept.next_clear(granules)
        } else {
            self.kept.next_set(granules)
        };
        let first = UNIT.start_of(GranuleIndex(granules.start.0 + 1));
        let end = change.map_or(range.end(), |at| UNIT.start_of(at).max(first));
        fence(Ordering::SeqCst);
        (kept, ByteRange::between(range.start(), end.min(range.end())))
    }

    /// The part of `range` before the first granule that is kept by now: what was found out there is of before.
    pub(super) fn unkept(&self, range: ByteRange) -> ByteRange {
        fence(Ordering::SeqCst);
        let found = self.kept.next_set(UNIT.touched_by(range));
        let end = found.map_or(range.end(), |at| UNIT.start_of(at).min(range.end()));
        ByteRange::between(range.start(), end.max(range.start()))
    }

    pub(super) fn read_kept(&self, into: Scatter<'_>, offset: u64) -> Result<()> {
        self.scratch
            .storage
            .read(into, offset)
            .map_err(|e| self.scratch.failed("read old content from", &e))
    }

    pub(super) fn kept_extent(&self, range: ByteRange) -> Result<Extent> {
        self.scratch
            .storage
            .extent(range)
            .map_err(|e| self.scratch.failed("find the data in", &e))
    }

    /// Fails where old content is missing.
    pub(super) fn check(&self) -> Result<()> {
        fence(Ordering::SeqCst);
        match self.failure.get() {
            None => Ok(()),
            Some(why) => Err(Error::with_errno(
                ErrorCode::Io,
                libc::ENOSPC,
                format!("the point in time is lost: {why}"),
            )),
        }
    }
}

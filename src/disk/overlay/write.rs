//! Writing: in place where the granule is allocated, and otherwise by allocating it.
//!
//! Invariant (A1): the bit of a granule is set when the whole granule is in the image, what the guest has not written
//! of it copied from the backing; and nobody copies into a granule that another may have written (durability trap 4).

use libc::iovec;

use super::read::in_memory;
use super::{Overlay, Source};
use crate::disk::plan::{Change, ChangePlan};
use crate::disk::{Child, Disk, blocking};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Gather, Zeroing, write_slice};
use crate::units::{ByteRange, GranuleIndex, GranuleRange};

/// The most bytes that are copied from the backing in one go.
const COPY_STEP: u64 = 1 << 20;
/// The most bytes that are hidden in one go, so that a long discard does not keep others waiting.
const HIDE_STEP: u64 = 256 << 20;

impl Disk {
    /// Carries out `plan` on a disk that has layers. The caller is inside the gate.
    #[inline(never)]
    pub(in crate::disk) fn change_layers(&self, overlay: &Overlay, plan: &ChangePlan<'_, '_>) -> Result<()> {
        if overlay.owns(plan.range) {
            blocking::change(plan)?;
        } else {
            if let Some(marks) = &plan.marks {
                marks.record()?;
            }
            let top = Top {
                disk: self,
                overlay,
                image: self.image(),
                length: self.length(),
            };
            match plan.change {
                Change::Write(from) => top.write(plan.range, from)?,
                Change::Zero(how) => top.hide(plan.range, how)?,
                Change::Discard => top.hide(
                    plan.range,
                    Zeroing {
                        may_unmap: true,
                        no_fallback: false,
                    },
                )?,
            }
        }
        let granules = overlay.own.granularity.touched_by(plan.range);
        if plan.durable || overlay.durability.owes(granules) {
            return self.sync_granules(overlay, granules);
        }
        Ok(())
    }
}

/// A disk's own image under its allocation bits.
pub(super) struct Top<'d> {
    pub(super) disk: &'d Disk,
    pub(super) overlay: &'d Overlay,
    pub(super) image: &'d Child,
    /// Of the disk, in bytes.
    pub(super) length: u64,
}

impl Top<'_> {
    /// Writes `from`, some granules of which are not allocated: the edges that are copied and all of the guest's bytes
    /// in one I/O.
    fn write(&self, range: ByteRange, from: Gather<'_>) -> Result<()> {
        let touched = self.granules(range);
        let Some(first) = self.overlay.own.bits.next_clear(touched) else {
            return self.write_at(range.start(), from);
        };
        let _claim = self.overlay.claims.claim(GranuleRange {
            start: first,
            end: touched.end,
        });
        if mutation::on(Fault::BitBeforeGranule) {
            self.publish(touched)?;
        }
        if mutation::on(Fault::ShadowBeforeGranule) {
            let len = self.overlay.own.bits.len();
            self.overlay.durability.shadow_early(len, touched);
        }
        let head = self.edge(self.before(range))?;
        let tail = self.edge(self.behind(range))?;
        if head.is_empty() && tail.is_empty() {
            self.write_at(range.start(), from)?;
        } else {
            let mut pieces: Vec<iovec> = Vec::new();
            let piece = |bytes: &[u8]| iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            pieces.extend((!head.is_empty()).then(|| piece(&head)));
            from.append_to(&mut pieces);
            pieces.extend((!tail.is_empty()).then(|| piece(&tail)));
            // SAFETY: the edges live to the end of this block, and what is between is a `Gather`.
            let whole = unsafe { Gather::new(&pieces) }.ok_or_else(too_long)?;
            self.write_at(range.start() - head.len() as u64, whole)?;
        }
        self.publish(touched)
    }

    /// Makes `range` read as zeros, whatever is below.
    fn hide(&self, range: ByteRange, how: Zeroing) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let run = self.overlay.find(ByteRange::between(at, range.end()))?;
            at = match run.source {
                Source::Own => {
                    self.zero(run.range, how)?;
                    run.range.end()
                }
                // No granule is allocated to say what is said without it.
                Source::Zeros { .. } => run.range.end(),
                // How far the bits are clear is not asked of the layers below: they are to be hidden.
                Source::Layer(_) | Source::Unopened => {
                    let (_, end) = self.overlay.own.run(at, range.end());
                    self.hide_clear(ByteRange::between(at, end), how)?
                }
            };
        }
        Ok(())
    }

    /// Allocates the first granules of `range`, which were found clear, as zeros where it covers them. Says how far it
    /// came: not far where another was quicker, which is to be looked at again.
    fn hide_clear(&self, range: ByteRange, how: Zeroing) -> Result<u64> {
        let granularity = self.overlay.own.granularity;
        let step = HIDE_STEP.max(granularity.bytes());
        let range = ByteRange::between(range.start(), range.end().min(range.start().saturating_add(step)));
        let whole = granularity.covered_by(range, self.length);
        let first = granularity.granule_of(range.start());
        let granules = if whole.start == first && !whole.is_empty() {
            whole
        } else {
            GranuleRange::one(first)
        };
        let bytes = granularity.bytes_of(granules, self.length);
        let part = ByteRange::between(range.start(), bytes.end().min(range.end()));
        let _claim = self.overlay.claims.claim(granules);
        if self.overlay.own.bits.any_set(granules) && !mutation::on(Fault::NoSecondLook) {
            return Ok(range.start());
        }
        for edge in [self.before(part), self.behind(part)] {
            let copied = self.edge(edge)?;
            self.write_bytes(edge.start(), &copied)?;
        }
        self.zero_hidden(part, how)?;
        self.publish(granules)?;
        Ok(part.end())
    }

    /// Copies what the backing shows of the granule that `range` begins in, up to the end of `range`, into the image,
    /// and allocates that granule.
    pub(super) fn copy_up(&self, range: ByteRange) -> Result<()> {
        let granule = GranuleRange::one(self.overlay.own.granularity.granule_of(range.start()));
        let _claim = self.overlay.claims.claim(granule);
        if !self.overlay.own.bits.any_set(granule) {
            let copied = self.edge(range)?;
            self.write_bytes(range.start(), &copied)?;
            self.publish(granule)?;
        }
        Ok(())
    }

    /// What of the granule that `range` begins in lies before it; nothing where that granule is allocated.
    fn before(&self, range: ByteRange) -> ByteRange {
        let granularity = self.overlay.own.granularity;
        let first = granularity.granule_of(range.start());
        self.unless_allocated(
            first,
            ByteRange::between(granularity.start_of(first), range.start()),
        )
    }

    /// What of the granule that `range` ends in lies behind it, on the disk; nothing where that granule is allocated.
    fn behind(&self, range: ByteRange) -> ByteRange {
        let granularity = self.overlay.own.granularity;
        let last = granularity.granule_of(range.end().saturating_sub(1));
        let end = granularity.bytes_of(GranuleRange::one(last), self.length).end();
        self.unless_allocated(last, ByteRange::between(range.end(), end))
    }

    fn unless_allocated(&self, granule: GranuleIndex, edge: ByteRange) -> ByteRange {
        if self.overlay.own.bits.get(granule) && !mutation::on(Fault::NoSecondLook) {
            ByteRange::between(edge.start(), edge.start())
        } else {
            edge
        }
    }

    /// The bytes of a claimed granule that a request leaves as they are, to be written with it; none where the image
    /// has them now.
    fn edge(&self, edge: ByteRange) -> Result<Vec<u8>> {
        if edge.is_empty() {
            return Ok(Vec::new());
        }
        let below = self.overlay.chain.find(edge)?;
        if matches!(below.source, Source::Zeros { .. })
            && below.range.len() == edge.len()
            && self.is_hole(edge)?
        {
            return Ok(Vec::new());
        }
        let mut bytes = buffer(edge.len().min(COPY_STEP))?;
        if edge.len() <= COPY_STEP {
            self.overlay.chain.read_below(edge, &mut bytes)?;
            return Ok(bytes);
        }
        let mut at = edge.start();
        while at < edge.end() {
            let run = self.overlay.chain.find(ByteRange::between(at, edge.end()))?;
            if let Source::Zeros { .. } = run.source {
                let how = Zeroing {
                    may_unmap: true,
                    no_fallback: false,
                };
                self.zero_hidden(run.range, how)?;
                at = run.range.end();
                continue;
            }
            let step = ByteRange::between(at, run.range.end().min(at.saturating_add(COPY_STEP)));
            let bytes = &mut bytes[..in_memory(step.len())];
            self.overlay.chain.read_below(step, bytes)?;
            self.write_bytes(at, bytes)?;
            at = step.end();
        }
        Ok(Vec::new())
    }

    /// Sets the bits of claimed granules, which are in the image as a whole now, as far as they must outlive this process
    /// (A3): where the shadow cannot take them (no room on its disk), they are made durable instead. Where that fails, too, the
    /// granules show what was written, and the caller has failed.
    pub(super) fn publish(&self, granules: GranuleRange) -> Result<()> {
        let bits = &self.overlay.own.bits;
        let mut at = granules.start;
        while let Some(start) = bits.next_clear(GranuleRange {
            start: at,
            end: granules.end,
        }) {
            let rest = GranuleRange {
                start,
                end: granules.end,
            };
            let end = bits.next_set(rest).unwrap_or(granules.end);
            let run = GranuleRange { start, end };
            // In this order, so that a flush that begins when the write has returned finds the bit pending (A2).
            self.overlay.durability.add(run);
            if !self.overlay.durability.publish(bits, run) {
                self.overlay
                    .durability
                    .publish_late(bits, run, || self.disk.flush_overlay(self.overlay))?;
            }
            at = end;
        }
        Ok(())
    }

    /// Zeros in granules that are not allocated yet: the image may have any bytes there, or a hole already.
    pub(super) fn zero_hidden(&self, range: ByteRange, how: Zeroing) -> Result<()> {
        if self.is_hole(range)? {
            return Ok(());
        }
        self.zero(range, how)
    }

    fn is_hole(&self, range: ByteRange) -> Result<bool> {
        let extent = self
            .image
            .storage
            .extent(range)
            .map_err(|e| self.image.failed("find the data in", &e))?;
        Ok(!extent.data && extent.len >= range.len())
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> Result<()> {
        self.image
            .storage
            .write_zeroes(range, how)
            .map_err(|e| self.image.failed(&format!("zero {range} of"), &e))
    }

    fn write_at(&self, offset: u64, from: Gather<'_>) -> Result<()> {
        self.image.storage.write(from, offset).map_err(|e| {
            let end = offset.saturating_add(from.len() as u64);
            let range = ByteRange::between(offset, end);
            self.image.failed(&format!("write {range} to"), &e)
        })
    }

    pub(super) fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        write_slice(&*self.image.storage, bytes, offset)
            .map_err(|e| self.image.failed("copy from the backing to", &e))
    }

    fn granules(&self, range: ByteRange) -> GranuleRange {
        self.overlay.own.granularity.touched_by(range)
    }
}

pub(super) fn buffer(len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(in_memory(len)).is_err() {
        return Err(Error::new(
            ErrorCode::NoMemory,
            format!("no memory for {len} bytes of the backing image"),
        ));
    }
    bytes.resize(in_memory(len), 0);
    Ok(bytes)
}

#[cold]
fn too_long() -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        "the lengths of the buffers add up to more than memory holds",
    )
}

//! Reading through the layers: one I/O a run, however many granules it spans.

use std::io::IoSliceMut;

use libc::iovec;

use super::{Chain, Overlay, Source};
use crate::disk::{Child, Disk, blocking, plan};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Scatter, read_slice};
use crate::units::ByteRange;

impl Disk {
    /// Reads from a disk that has layers.
    ///
    /// Enters the gate, which a read of a plain disk need not do: the bits must not change their length meanwhile, nor
    /// a granule go back to the backing.
    // Apart from the plain read, so that this takes no room on its stack.
    #[inline(never)]
    pub(in crate::disk) fn read_layers(&self, into: Scatter<'_>, offset: u64) -> Result<()> {
        let shape = self.gate.enter();
        let range = self.range(offset, into.len() as u64)?;
        match &shape.overlay {
            Some(overlay) => overlay.read(self.image(), range, into),
            None => blocking::read(&plan::read(self.image(), range), into),
        }
    }
}

impl Overlay {
    /// Reads `range`, whose bytes are those of `buffer`, without entering the gate: the caller is inside.
    pub(in crate::disk) fn read_slice(
        &self,
        image: &Child,
        range: ByteRange,
        buffer: &mut [u8],
    ) -> Result<()> {
        match Scatter::from_slices(&mut [IoSliceMut::new(buffer)]) {
            Some(into) => self.read(image, range, into),
            None => Ok(()),
        }
    }

    /// The image that has the first bytes of `range`, and how far; `None` where they are zeros.
    pub(in crate::disk) fn image_of<'o>(
        &'o self,
        image: &'o Child,
        range: ByteRange,
    ) -> Result<(Option<&'o Child>, ByteRange)> {
        let run = self.find(range)?;
        match run.source {
            Source::Own => Ok((Some(image), run.range)),
            Source::Layer(index) => Ok((Some(&self.chain.layers[index].image), run.range)),
            Source::Zeros { .. } => Ok((None, run.range)),
            Source::Unopened => Err(unopened(run.range)),
        }
    }

    fn read(&self, image: &Child, range: ByteRange, into: Scatter<'_>) -> Result<()> {
        if self.owns(range) {
            return blocking::read(&plan::read(image, range), into);
        }
        let mut room = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let run = self.find(ByteRange::between(at, range.end()))?;
            let part = part_of(range, run.range, into, &mut room);
            match run.source {
                Source::Own => blocking::read(&plan::read(image, run.range), part)?,
                other => self.chain.read(other, run.range, part)?,
            }
            at = run.range.end();
        }
        Ok(())
    }
}

impl Chain {
    /// Reads `range`, for which the disk itself has no bits, into `out`.
    pub(super) fn read_below(&self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        let mut at = range.start();
        while !rest.is_empty() {
            let run = self.find(ByteRange::between(at, range.end()))?;
            let (part, behind) = rest.split_at_mut(in_memory(run.range.len()).min(rest.len()));
            match run.source {
                Source::Layer(index) => {
                    let image = &self.layers[index].image;
                    read_slice(&*image.storage, part, at)
                        .map_err(|e| image.failed(&format!("read {} from", run.range), &e))?;
                }
                Source::Unopened => return Err(unopened(run.range)),
                Source::Own | Source::Zeros { .. } => part.fill(0),
            }
            at = run.range.end();
            rest = behind;
        }
        Ok(())
    }

    pub(super) fn read(&self, source: Source, range: ByteRange, into: Scatter<'_>) -> Result<()> {
        match source {
            Source::Layer(index) => blocking::read(&plan::read(&self.layers[index].image, range), into),
            Source::Unopened => Err(unopened(range)),
            Source::Own | Source::Zeros { .. } => {
                into.zero();
                Ok(())
            }
        }
    }
}

/// The part of `into`, which takes `whole`, for the bytes of `run`. A run that is all of it needs no list of its own.
pub(super) fn part_of<'p>(
    whole: ByteRange,
    run: ByteRange,
    into: Scatter<'p>,
    room: &'p mut Vec<iovec>,
) -> Scatter<'p> {
    if run.len() == whole.len() {
        return into;
    }
    into.part(in_memory(run.start() - whole.start()), in_memory(run.len()), room)
}

#[cold]
pub(super) fn unopened(range: ByteRange) -> Error {
    Error::new(
        ErrorCode::NotSupported,
        format!("{range} are in the backing image, and the disk was opened without it"),
    )
}

/// A number of bytes of a request, which are in memory.
#[allow(
    clippy::cast_possible_truncation,
    reason = "callers pass parts of requests, whose bytes are in memory"
)]
pub(in crate::disk) const fn in_memory(len: u64) -> usize {
    len as usize
}

//! What is where on a disk that has layers.

use super::{Chain, Overlay, Run, Source};
use crate::disk::status::{BlockStatus, StatusFlags, StatusHints};
use crate::disk::{Child, Disk};
use crate::error::Result;
use crate::format::Place;
use crate::units::ByteRange;

impl Disk {
    /// [`Disk::block_status`] of a disk that has layers.
    pub(in crate::disk) fn status_of_layers(
        &self,
        overlay: &Overlay,
        range: ByteRange,
        hints: StatusHints,
    ) -> Result<BlockStatus> {
        let deepest = deepest(hints);
        let run = overlay.find_to(range, deepest)?;
        match run.source {
            Source::Own => status_in(self.image(), run.range, 0, hints).map(|mut status| {
                status.flags |= StatusFlags::ALLOCATED;
                status
            }),
            _ => overlay.chain.status_of(run, deepest, hints),
        }
    }

    /// The same of a disk whose image names what is below it by itself.
    pub(in crate::disk) fn status_above(
        &self,
        below: &Chain,
        range: ByteRange,
        hints: StatusHints,
    ) -> Result<BlockStatus> {
        let (has, end) = self.image().run(range.start(), range.end())?;
        let range = ByteRange::between(range.start(), end);
        if has {
            let mut status = status_in(self.image(), range, 0, hints)?;
            status.flags |= StatusFlags::ALLOCATED;
            return Ok(status);
        }
        let deepest = deepest(hints);
        below.status_of(below.find_to(range, deepest)?, deepest, hints)
    }
}

/// So many images below the disk are looked at.
fn deepest(hints: StatusHints) -> usize {
    hints
        .deepest
        .map_or(usize::MAX, |depth| usize::try_from(depth).unwrap_or(usize::MAX))
}

impl Chain {
    /// What a run has that was found here, in at most `deepest` images.
    fn status_of(&self, run: Run, deepest: usize, hints: StatusHints) -> Result<BlockStatus> {
        match run.source {
            Source::Layer(index) => status_in(&self.layers[index].image, run.range, index + 1, hints),
            Source::Zeros { depth } => Ok(nowhere(run.range, StatusFlags::ZERO, depth)),
            Source::Unopened if !self.unopened => Ok(nowhere(
                run.range,
                StatusFlags::empty(),
                deepest.saturating_add(1),
            )),
            Source::Own | Source::Unopened => Ok(nowhere(run.range, StatusFlags::empty(), 0)),
        }
    }
}

/// What an image has in `range`.
pub(in crate::disk) fn status_in(
    image: &Child,
    range: ByteRange,
    depth: usize,
    hints: StatusHints,
) -> Result<BlockStatus> {
    if hints.allocation_only && image.mapped.is_none() {
        return Ok(BlockStatus {
            offset: range.start(),
            ..nowhere(range, StatusFlags::DATA | StatusFlags::OFFSET_VALID, depth)
        });
    }
    if let Some(mapped) = &image.mapped {
        let mapping = mapped
            .mapping(range)
            .map_err(|e| image.failed("find the data in", &e))?;
        let range = ByteRange::between(range.start(), range.end().min(range.start() + mapping.len));
        return Ok(match mapping.place {
            Place::Data { offset: None } => nowhere(range, StatusFlags::DATA, depth),
            Place::Data { offset: Some(offset) } => BlockStatus {
                offset,
                ..nowhere(range, StatusFlags::DATA | StatusFlags::OFFSET_VALID, depth)
            },
            Place::Zeros | Place::Below => nowhere(range, StatusFlags::ZERO, depth),
        });
    }
    let extent = image
        .storage
        .extent(range)
        .map_err(|e| image.failed("find the data in", &e))?;
    let kind = if extent.data {
        StatusFlags::DATA
    } else {
        StatusFlags::ZERO
    };
    Ok(BlockStatus {
        length: extent.len,
        offset: range.start(),
        ..nowhere(range, kind | StatusFlags::OFFSET_VALID, depth)
    })
}

/// Bytes that have no place in a file. So says the layer at `depth`.
fn nowhere(range: ByteRange, flags: StatusFlags, depth: usize) -> BlockStatus {
    // A chain is never that long.
    let depth = u32::try_from(depth).unwrap_or(u32::MAX);
    BlockStatus {
        length: range.len(),
        flags,
        depth,
        layer: depth,
        offset: 0,
    }
}

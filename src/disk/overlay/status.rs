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
            Source::Own => self.own_status(run.range, overlay.chain.layers.len(), hints),
            _ => overlay
                .chain
                .status_of(run, deepest, hints)
                .map(|status| self.numbered(status, run.source, &overlay.chain)),
        }
    }

    /// What the disk's own image, above so many others, has in `range`.
    pub(in crate::disk) fn own_status(
        &self,
        range: ByteRange,
        below: usize,
        hints: StatusHints,
    ) -> Result<BlockStatus> {
        let image = self.image();
        let mut status = status_in(image, range, 0, hints)?;
        status.flags |= StatusFlags::ALLOCATED;
        if image.nested.is_some() {
            status.layer += 1 + number(below);
        }
        Ok(status)
    }

    /// The layer's number, of what lies within an image that is a disk itself: such layers are counted behind all others.
    fn numbered(&self, mut status: BlockStatus, source: Source, below: &Chain) -> BlockStatus {
        if let Source::Layer(index) = source
            && below.layers[index].image.nested.is_some()
        {
            status.layer += 1 + self.image().parts() + below.first_part(index);
        }
        status
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
            return self.own_status(range, below.layers.len(), hints);
        }
        let deepest = deepest(hints);
        let run = below.find_to(range, deepest)?;
        let status = below.status_of(run, deepest, hints)?;
        Ok(self.numbered(status, run.source, below))
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

impl Chain {
    /// What the first bytes of `range` are, to a disk that has this as its image: depth and layer are counted from the
    /// nearest image on.
    pub(in crate::disk) fn status(&self, range: ByteRange, hints: StatusHints) -> Result<BlockStatus> {
        let run = self.find(range)?;
        let mut status = self.status_of(run, usize::MAX, hints)?;
        match run.source {
            Source::Layer(index) if self.layers[index].image.nested.is_some() => {
                status.layer += self.first_part(index);
            }
            // Its number has the disk above counted in.
            _ => status.layer = status.layer.saturating_sub(1),
        }
        Ok(status)
    }

    /// Where the layers begin, among those of all images here, of what the image `index` is made of; all images first.
    fn first_part(&self, index: usize) -> u32 {
        let before = self.layers[..index]
            .iter()
            .map(|it| it.image.parts())
            .sum::<u32>();
        number(self.layers.len()) + before
    }

    /// How many layers there are, with those that images are made of.
    pub(in crate::disk) fn count_layers(&self) -> u32 {
        self.first_part(self.layers.len())
    }
}

/// A chain is never that long.
pub(in crate::disk) fn number(layers: usize) -> u32 {
    u32::try_from(layers).unwrap_or(u32::MAX)
}

/// What an image has in `range`; of one that is a disk itself, with the layer as that disk counts.
pub(in crate::disk) fn status_in(
    image: &Child,
    range: ByteRange,
    depth: usize,
    hints: StatusHints,
) -> Result<BlockStatus> {
    if let Some(nested) = &image.nested {
        let status = nested.status(range, hints)?;
        let mut flags = status.flags;
        flags.remove(StatusFlags::ALLOCATED);
        return Ok(BlockStatus {
            flags,
            depth: number(depth),
            ..status
        });
    }
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
    let depth = number(depth);
    BlockStatus {
        length: range.len(),
        flags,
        depth,
        layer: depth,
        offset: 0,
    }
}

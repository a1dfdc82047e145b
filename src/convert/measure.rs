//! What an image would take as another format, before it is made.
//!
//! Invariant: what is told of a raw image and of a qcow2 is what qemu-img would say of the same content.

use super::Disk;
use super::extents::Extents;
use crate::descriptor::Format;
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::DEFAULT_CLUSTER;
use crate::state::STATE_FILE_BYTES;
use crate::units::MAX_LENGTH;
use crate::zeros::BLOCK;

/// What an image would take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// With the data that there is now.
    pub required: u64,
    /// When all of it has been written to.
    pub fully_allocated: u64,
    /// What the dirty bitmaps of the source would take besides, if they were taken along. Nothing takes them along yet.
    pub bitmaps: u64,
}

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub enum MeasureSource<'d> {
    /// An image with what this one shows.
    Image(&'d Disk),
    /// A new, empty image of so many bytes.
    Empty(u64),
}

/// The cluster size of a qcow2 unless another is given: QEMU's default, 64 KiB.
pub const QCOW2_CLUSTER: u64 = DEFAULT_CLUSTER;

/// What an image of `format` would take. `cluster` is of a qcow2: a power of two from 512 to 2 MiB.
///
/// A raw image takes its length, up to the next multiple of 512, whatever holes it has: that is what a file system
/// without holes, or a block device, must have. A QBM disk takes the 4 KiB blocks of its image that have data, a state
/// file and a descriptor.
pub fn measure(source: MeasureSource<'_>, format: Format, cluster: u64) -> Result<Measured> {
    let length = match source {
        MeasureSource::Image(disk) => disk.length(),
        MeasureSource::Empty(length) => length,
    };
    if length > MAX_LENGTH {
        return Err(too_large(length));
    }
    let bitmaps = match source {
        MeasureSource::Image(disk) if format == Format::Qbm => bitmaps_of(disk)?,
        _ => 0,
    };
    let (required, fully_allocated) = match format {
        Format::Raw => {
            let whole = up_to(length, 512).ok_or_else(|| too_large(length))?;
            (whole, whole)
        }
        Format::Qbm => {
            let around = BLOCK + STATE_FILE_BYTES;
            let whole = up_to(length, BLOCK).and_then(|length| length.checked_add(around));
            (
                data_in(source, BLOCK)?.saturating_add(around),
                whole.ok_or_else(|| too_large(length))?,
            )
        }
        Format::Qcow2 => qcow2(source, length, cluster)?,
        Format::Vmdk => {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "vmdk images cannot be measured; raw, qbm and qcow2 can",
            ));
        }
    };
    Ok(Measured {
        required,
        fully_allocated,
        bitmaps,
    })
}

fn bitmaps_of(disk: &Disk) -> Result<u64> {
    let mut bytes = 0;
    for info in disk.bitmap_list()? {
        bytes += disk.bitmap_serialized_len(&info.name)?;
    }
    Ok(bytes)
}

/// How many bytes the units take that have data in them.
fn data_in(source: MeasureSource<'_>, unit: u64) -> Result<u64> {
    let MeasureSource::Image(disk) = source else {
        return Ok(0);
    };
    let mut extents = Extents::new(disk);
    let (mut at, mut bytes) = (0, 0);
    while at < disk.length() {
        let (what, end) = extents.at(at)?;
        if what.is_data() {
            // All of the last unit counts, and what else is in it is not looked at.
            let start = at - at % unit;
            at = up_to(end, unit).unwrap_or(MAX_LENGTH);
            bytes += at - start;
        } else {
            at = end;
        }
    }
    Ok(bytes)
}

/// What a qcow2 of version 3 takes, with refcounts of 16 bits: its header, one level of tables for every 8 bytes' worth
/// of the next, and refcounts for all of that and for themselves.
fn qcow2(source: MeasureSource<'_>, length: u64, cluster: u64) -> Result<(u64, u64)> {
    const ENTRY: u64 = 8;
    const REFCOUNT: u64 = 2;
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("a cluster of {cluster} bytes: it must be a power of two from 512 to 2 MiB"),
        ));
    }
    let sizes = || {
        let data = up_to(length, cluster)?;
        let per_table = cluster / ENTRY;
        let l2 = up_to(data / cluster, per_table)?;
        let l1 = up_to(l2 / per_table, per_table)?;
        // QEMU opens no longer one: 32 MiB of the first level.
        if l1 * ENTRY > 32 << 20 {
            return None;
        }
        let mapped = data.checked_add(cluster + (l1 + l2) * ENTRY)?;
        let clusters = mapped / cluster;
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let before = (blocks, tables);
            blocks = (clusters + blocks + tables).div_ceil(cluster / REFCOUNT);
            tables = blocks.div_ceil(per_table);
            if (blocks, tables) == before {
                break;
            }
        }
        Some((data, mapped.checked_add((blocks + tables) * cluster)?))
    };
    let (data, fully_allocated) = sizes().ok_or_else(|| too_large(length))?;
    let required = fully_allocated - data + data_in(source, cluster)?;
    Ok((required, fully_allocated))
}

fn up_to(bytes: u64, unit: u64) -> Option<u64> {
    bytes
        .checked_next_multiple_of(unit)
        .filter(|bytes| *bytes <= MAX_LENGTH + 1)
}

fn too_large(length: u64) -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        format!("an image of {length} bytes is larger than the format can have"),
    )
}

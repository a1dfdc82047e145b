//! Reading a qcow2: what it says of itself, and the bits of its bitmaps.
//!
//! Invariant: nothing is read that does not lie in the file, and never more at once than a cluster or the directory,
//! which QEMU limits to 64 MiB.

use std::path::Path;

use super::directory::{self, BitmapRecord};
use super::fields::{Fields, invalid};
use super::header::{DataFile, FIRST_BYTES, Header};
use super::{ALL_ONES, MAX_BITMAP_BYTES, serialized_bytes};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, read_slice};
use crate::units::ByteRange;

/// The bits of a table's entry: the offset, and all the others but the lowest.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED: u64 = !(OFFSET | ALL_ONES);

/// So many entries of a table are read at once.
const ENTRIES_AT_ONCE: u64 = 1024;

/// A qcow2 that is being read.
pub(crate) struct Qcow2<'s> {
    file: File<'s>,
    header: Header,
    bitmaps: Vec<BitmapRecord>,
}

/// A part of a bitmap's serialized form.
#[derive(Debug)]
pub(crate) enum Part<'b> {
    Zeros,
    Ones,
    Bytes(&'b [u8]),
}

struct File<'s> {
    storage: &'s dyn Storage,
    path: &'s Path,
    length: u64,
}

impl<'s> Qcow2<'s> {
    /// Reads the header and the bitmap directory of the qcow2 in `storage`, which messages call `path`.
    pub(crate) fn read(storage: &'s dyn Storage, path: &'s Path) -> Result<Self> {
        let length = storage.length().map_err(|e| Error::io("measure", path, &e))?;
        let file = File {
            storage,
            path,
            length,
        };
        let first = file.bytes(0, length.min(FIRST_BYTES), "the header")?;
        let header = Header::parse(&first)?;
        let mut bitmaps = Vec::new();
        // One that is not valid any more is not read: its clusters may have become something else.
        if let Some(at) = header.directory.as_ref().filter(|_| header.bitmaps_valid) {
            check_aligned(at.offset, header.cluster_bits, "the bitmap directory")?;
            let bytes = file.bytes(at.offset, at.bytes, "the bitmap directory")?;
            bitmaps = directory::parse(&bytes, at.bitmaps)?;
        }
        Ok(Self {
            file,
            header,
            bitmaps,
        })
    }

    /// The length of the disk that it shows, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    /// Where its data is.
    pub(crate) fn data_file(&self) -> &DataFile {
        &self.header.data_file
    }

    /// Whether it had bitmaps, and a program that knows nothing of them has written to it since: they are not read.
    pub(crate) fn has_lost_bitmaps(&self) -> bool {
        self.header.directory.is_some() && !self.header.bitmaps_valid
    }

    /// Its bitmaps.
    pub(crate) fn bitmaps(&self) -> &[BitmapRecord] {
        &self.bitmaps
    }

    /// Hands out the serialized form of a bitmap in parts, in order. Each part is a multiple of 8 bytes.
    pub(crate) fn bits(
        &self,
        record: &BitmapRecord,
        each: &mut dyn FnMut(ByteRange, Part<'_>) -> Result<()>,
    ) -> Result<()> {
        self.bits_parts(record, each)
            .map_err(|e| e.context(format_args!("bitmap {:?}", record.name)))
    }

    fn bits_parts(
        &self,
        record: &BitmapRecord,
        each: &mut dyn FnMut(ByteRange, Part<'_>) -> Result<()>,
    ) -> Result<()> {
        let cluster = 1u64 << self.header.cluster_bits;
        let bytes = serialized_bytes(record.granularity.granules_in(self.header.size));
        if bytes > MAX_BITMAP_BYTES {
            return Err(invalid(format!(
                "{bytes} bytes of bits are more than the limit of {MAX_BITMAP_BYTES}"
            )));
        }
        let clusters = bytes.div_ceil(cluster);
        if u64::from(record.entries) < clusters {
            return Err(invalid(format!(
                "its table has {} entries, and the bits of the disk take {clusters} clusters",
                record.entries
            )));
        }
        check_aligned(record.table, self.header.cluster_bits, "its table")?;
        let mut table = Vec::new();
        for index in 0..clusters {
            if index % ENTRIES_AT_ONCE == 0 {
                let count = ENTRIES_AT_ONCE.min(clusters - index);
                // The table's offset lies within the file and the index is small: no overflow.
                table = self
                    .file
                    .bytes(record.table.saturating_add(8 * index), 8 * count, "its table")?;
            }
            let within = usize::try_from(index % ENTRIES_AT_ONCE * 8).unwrap_or(usize::MAX);
            let entry = Fields(table.get(within..).unwrap_or_default()).u64()?;
            let part = ByteRange::between(index * cluster, ((index + 1) * cluster).min(bytes));
            if entry & RESERVED != 0 || (entry & OFFSET != 0 && entry & ALL_ONES != 0) {
                return Err(invalid(format!(
                    "table entry {index}: {entry:#x} has bits that are unknown"
                )));
            }
            match entry {
                0 => each(part, Part::Zeros)?,
                ALL_ONES => each(part, Part::Ones)?,
                at => {
                    let what = format!("the cluster of table entry {index}");
                    check_aligned(at, self.header.cluster_bits, &what)?;
                    each(part, Part::Bytes(&self.file.bytes(at, part.len(), &what)?))?;
                }
            }
        }
        Ok(())
    }
}

impl File<'_> {
    /// `len` bytes at `offset`. The caller has bounded `len`.
    fn bytes(&self, offset: u64, len: u64, what: &str) -> Result<Vec<u8>> {
        let lies_within = ByteRange::new(offset, len).is_some_and(|range| range.end() <= self.length);
        let (Some(room), true) = (usize::try_from(len).ok(), lies_within) else {
            return Err(invalid(format!(
                "{what}: {len} bytes at offset {offset} do not lie within the file, which is {} bytes long",
                self.length
            )));
        };
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(room).map_err(|_| {
            Error::new(
                ErrorCode::NoMemory,
                format!("{what}: there is no memory for {len} bytes"),
            )
        })?;
        bytes.resize(room, 0);
        read_slice(self.storage, &mut bytes, offset).map_err(|e| Error::io("read", self.path, &e))?;
        Ok(bytes)
    }
}

fn check_aligned(offset: u64, cluster_bits: u32, what: &str) -> Result<()> {
    if offset != 0 && offset.is_multiple_of(1 << cluster_bits) {
        return Ok(());
    }
    Err(invalid(format!(
        "{what}: offset {offset} is not where a cluster of its own begins"
    )))
}

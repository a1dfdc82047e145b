//! Bitmaps in a qcow2 that is being written: their clusters, tables and directory.
//!
//! Invariant: all clusters of the file are used once; and no bit behind the disk's end is set.

use super::tables::{Clusters, low_32, numbers, numbers_32};
use super::{
    ALL_ONES, AUTO, BITMAPS_EXTENSION_BYTES, BITMAPS_VALID, DIRTY, ENTRY_BYTES, EXTENSION_BITMAPS,
    MAX_BITMAP_BYTES, MAX_BITMAPS, MAX_DIRECTORY_BYTES,
};
use crate::error::{Error, ErrorCode, Result};
use crate::units::Granularity;

/// Copies a serialized form from an offset on, as much as the slice holds.
type Serialize<'a> = Box<dyn Fn(u64, &mut [u8]) -> Result<()> + 'a>;

/// A bitmap that is to be in it.
pub(crate) struct NewBitmap<'a> {
    pub(crate) name: &'a str,
    pub(crate) granularity: Granularity,
    pub(crate) recording: bool,
    /// The length of the serialized form, in bytes.
    pub(crate) bytes: u64,
    /// Hands it out.
    pub(crate) serialize: Serialize<'a>,
}

/// Where the bitmaps of a file go.
pub(super) struct PlacedBitmaps {
    cluster_bits: u32,
    /// Of each bitmap, its table, and what is in that.
    tables: Vec<(Clusters, Vec<u64>)>,
    directory: Clusters,
    directory_bytes: u64,
}

impl PlacedBitmaps {
    /// Takes clusters for all of them.
    pub(super) fn find(
        bitmaps: &[NewBitmap<'_>],
        cluster_bits: u32,
        take: &mut dyn FnMut(u64) -> Clusters,
    ) -> Result<Self> {
        if bitmaps.len() > MAX_BITMAPS as usize {
            return Err(refused(format!(
                "{} bitmaps are more than the limit of {MAX_BITMAPS}",
                bitmaps.len()
            )));
        }
        let cluster = 1u64 << cluster_bits;
        let mut tables = Vec::with_capacity(bitmaps.len());
        for bitmap in bitmaps {
            let mut entries = entries_of(bitmap, cluster)?;
            for entry in entries.iter_mut().filter(|entry| **entry == TO_STORE) {
                *entry = take(1).first << cluster_bits;
            }
            tables.push((take((entries.len() as u64 * 8).div_ceil(cluster)), entries));
        }
        let directory_bytes = bitmaps.iter().map(entry_bytes).sum();
        if directory_bytes > MAX_DIRECTORY_BYTES {
            return Err(refused("the names of the bitmaps are too long together"));
        }
        let directory = take(u64::div_ceil(directory_bytes, cluster));
        Ok(Self {
            cluster_bits,
            tables,
            directory,
            directory_bytes,
        })
    }

    /// Writes them where they are to be. They must not have changed since their places were found.
    pub(super) fn write(
        &self,
        bitmaps: &[NewBitmap<'_>],
        put: &dyn Fn(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        for (bitmap, (table, entries)) in bitmaps.iter().zip(&self.tables) {
            write_bitmap(bitmap, entries, 1 << self.cluster_bits, put)?;
            put(&numbers(entries), self.at(table.first))?;
        }
        if self.directory.count > 0 {
            put(&self.directory_of(bitmaps), self.at(self.directory.first))?;
        }
        Ok(())
    }

    /// The header's autoclear bit for them.
    pub(super) fn autoclear(&self) -> u64 {
        if self.tables.is_empty() { 0 } else { BITMAPS_VALID }
    }

    /// The header extension that leads to them; nothing where there are none.
    pub(super) fn extension(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.tables.is_empty() {
            out.extend(numbers_32(&[EXTENSION_BITMAPS, BITMAPS_EXTENSION_BYTES]));
            out.extend(numbers_32(&[low_32(self.tables.len() as u64), 0]));
            out.extend(numbers(&[self.directory_bytes, self.at(self.directory.first)]));
        }
        out
    }

    fn directory_of(&self, bitmaps: &[NewBitmap<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for (bitmap, (table, entries)) in bitmaps.iter().zip(&self.tables) {
            out.extend(self.at(table.first).to_be_bytes());
            out.extend(low_32(entries.len() as u64).to_be_bytes());
            out.extend(if bitmap.recording { AUTO } else { 0 }.to_be_bytes());
            out.push(DIRTY);
            #[allow(
                clippy::cast_possible_truncation,
                reason = "the exponent of a number of 64 bits"
            )]
            out.push(bitmap.granularity.bytes().trailing_zeros() as u8);
            // A descriptor's bitmap has a name of at most 1023 bytes.
            out.extend(u16::try_from(bitmap.name.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(0u32.to_be_bytes());
            out.extend(bitmap.name.as_bytes());
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out
    }

    fn at(&self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }
}

/// In a table that is being planned: this cluster is stored. No entry of a file says that.
const TO_STORE: u64 = u64::MAX;

/// The table of a bitmap, its stored clusters without a place yet.
fn entries_of(bitmap: &NewBitmap<'_>, cluster: u64) -> Result<Vec<u64>> {
    if bitmap.bytes > MAX_BITMAP_BYTES {
        return Err(refused(format!(
            "bitmap {:?}: a granularity of {} bytes is too fine for QEMU on a disk of this length, which limits a bitmap \
             to {MAX_BITMAP_BYTES} bytes",
            bitmap.name,
            bitmap.granularity.bytes()
        )));
    }
    let mut entries = Vec::new();
    each_cluster(bitmap, cluster, &mut |bytes| {
        let first = bytes.first().copied().unwrap_or(0);
        let uniform = matches!(first, 0 | 0xff) && bytes.iter().all(|byte| *byte == first);
        // A last one that the bits do not fill is never all ones: those behind the disk's end are to be zero.
        entries.push(match (uniform, first) {
            (true, 0) => 0,
            (true, _) if bytes.len() as u64 == cluster => ALL_ONES,
            _ => TO_STORE,
        });
        Ok(())
    })?;
    Ok(entries)
}

fn write_bitmap(
    bitmap: &NewBitmap<'_>,
    entries: &[u64],
    cluster: u64,
    put: &dyn Fn(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut entries = entries.iter();
    each_cluster(bitmap, cluster, &mut |bytes| match entries.next() {
        Some(at) if !matches!(*at, 0 | ALL_ONES) => put(bytes, *at),
        _ => Ok(()),
    })
}

/// The serialized form, a cluster at a time; the last may be shorter.
fn each_cluster(
    bitmap: &NewBitmap<'_>,
    cluster: u64,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; usize::try_from(cluster).unwrap_or(0)];
    let mut at = 0;
    while at < bitmap.bytes {
        let len = cluster.min(bitmap.bytes - at);
        let part = &mut buffer[..usize::try_from(len).unwrap_or(0)];
        (bitmap.serialize)(at, part)?;
        each(part)?;
        at += len;
    }
    Ok(())
}

/// What the directory's entry of a bitmap takes.
fn entry_bytes(bitmap: &NewBitmap<'_>) -> u64 {
    ((ENTRY_BYTES + bitmap.name.len()) as u64).next_multiple_of(8)
}

#[cold]
fn refused(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::NotSupported, words)
}

//! Writing a thin qcow2: its data is a raw image that exists, and in it are only the tables that say so, and bitmaps.
//!
//! Invariant: all clusters of the file are used once, so each refcount is one; the header, without which it is no qcow2,
//! is written last.

use std::path::Path;

use super::tables::{COPIED, Clusters, Head, low_32, numbers, numbers_32, refcounts, write_refcounts};
use super::{
    ALL_ONES, AUTO, BITMAPS_EXTENSION_BYTES, BITMAPS_VALID, DIRTY, ENTRY_BYTES, EXTENSION_BITMAPS,
    EXTENSION_DATA_FILE, EXTENSION_END, EXTERNAL_DATA, MAX_BITMAP_BYTES, MAX_BITMAPS, MAX_DIRECTORY_BYTES,
    RAW_EXTERNAL_DATA,
};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, write_slice};
use crate::units::Granularity;

/// Clusters are 64 KiB, QEMU's default, and larger only where the tables would grow beyond [`TABLES_WANTED`].
const MIN_CLUSTER_BITS: u32 = 16;
const MAX_CLUSTER_BITS: u32 = 21;
const TABLES_WANTED: u64 = 16 << 20;
/// What the tables may take at the most: 256 TiB of disk.
const TABLES_ALLOWED: u64 = 1 << 30;

/// A qcow2 that is to be.
pub(crate) struct Thin<'a> {
    /// What messages call it.
    pub(crate) path: &'a Path,
    /// The length of the disk; a multiple of 512.
    pub(crate) size: u64,
    /// The raw image, as the header is to name it.
    pub(crate) data_file: &'a str,
    pub(crate) bitmaps: Vec<NewBitmap<'a>>,
}

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

/// Where everything goes. Cluster 0 is the header's.
struct Layout {
    cluster_bits: u32,
    l1_entries: u64,
    l1: Clusters,
    l2: Clusters,
    /// Of each bitmap, its table, and behind it the clusters that are stored.
    bitmaps: Vec<(Clusters, Vec<u64>)>,
    directory: Clusters,
    directory_bytes: u64,
    refcount_table: Clusters,
    refcount_blocks: Clusters,
    total: u64,
}

impl Thin<'_> {
    /// Writes it into an empty file. Not durable yet.
    pub(crate) fn write(&self, storage: &dyn Storage) -> Result<()> {
        let layout = self.layout()?;
        let header = self.header(&layout)?;
        let put = |bytes: &[u8], at: u64| {
            write_slice(storage, bytes, at).map_err(|e| Error::io("write to", self.path, &e))
        };
        storage
            .set_length(layout.total << layout.cluster_bits)
            .map_err(|e| Error::io("grow", self.path, &e))?;
        self.write_map(&layout, &put)?;
        for (bitmap, (table, entries)) in self.bitmaps.iter().zip(&layout.bitmaps) {
            write_bitmap(bitmap, entries, &layout, &put)?;
            put(&numbers(entries), layout.at(table.first))?;
        }
        if layout.directory.count > 0 {
            put(&self.directory(&layout), layout.at(layout.directory.first))?;
        }
        write_refcounts(
            layout.cluster_bits,
            layout.total,
            (layout.refcount_table, layout.refcount_blocks),
            &put,
        )?;
        put(&header, 0)
    }

    fn layout(&self) -> Result<Layout> {
        let cluster_bits = (MIN_CLUSTER_BITS..MAX_CLUSTER_BITS)
            .find(|bits| self.map_bytes(*bits) <= TABLES_WANTED)
            .unwrap_or(MAX_CLUSTER_BITS);
        if self.map_bytes(cluster_bits) > TABLES_ALLOWED {
            return Err(refused(format!(
                "a disk of {} bytes is too long for a qcow2",
                self.size
            )));
        }
        let cluster = 1u64 << cluster_bits;
        let mut next = 1;
        let mut take = |count: u64| {
            let first = next;
            next += count;
            Clusters { first, count }
        };
        let l2 = take(self.map_bytes(cluster_bits).div_ceil(cluster));
        // A disk of no length has a table all the same, as QEMU makes it.
        let l1_entries = l2.count.max(1);
        let l1 = take((l1_entries * 8).div_ceil(cluster));
        if self.bitmaps.len() > MAX_BITMAPS as usize {
            return Err(refused(format!(
                "{} bitmaps are more than the limit of {MAX_BITMAPS}",
                self.bitmaps.len()
            )));
        }
        let mut bitmaps = Vec::with_capacity(self.bitmaps.len());
        for bitmap in &self.bitmaps {
            let mut entries = entries_of(bitmap, cluster)?;
            for entry in entries.iter_mut().filter(|entry| **entry == TO_STORE) {
                *entry = take(1).first << cluster_bits;
            }
            bitmaps.push((take((entries.len() as u64 * 8).div_ceil(cluster)), entries));
        }
        let directory_bytes = self.bitmaps.iter().map(entry_bytes).sum();
        if directory_bytes > MAX_DIRECTORY_BYTES {
            return Err(refused("the names of the bitmaps are too long together"));
        }
        let directory = take(u64::div_ceil(directory_bytes, cluster));
        let (refcount_table, refcount_blocks) = refcounts(next, cluster);
        Ok(Layout {
            cluster_bits,
            l1_entries,
            l1,
            l2,
            bitmaps,
            directory,
            directory_bytes,
            refcount_table,
            refcount_blocks,
            total: next + refcount_table.count + refcount_blocks.count,
        })
    }

    /// What the L2 tables take, in bytes, of clusters of so many bits.
    fn map_bytes(&self, cluster_bits: u32) -> u64 {
        self.size.div_ceil(1 << cluster_bits) * 8
    }

    /// The L1 and L2 tables: every cluster of the disk is where it is in the raw image. Only clusters that a table
    /// names are read from there.
    fn write_map(&self, layout: &Layout, put: &dyn Fn(&[u8], u64) -> Result<()>) -> Result<()> {
        let cluster = 1u64 << layout.cluster_bits;
        let guest_clusters = self.size.div_ceil(cluster);
        let per_table = cluster / 8;
        for table in 0..layout.l2.count {
            let covered = table * per_table..((table + 1) * per_table).min(guest_clusters);
            let entries: Vec<u64> = covered
                .map(|index| COPIED | (index << layout.cluster_bits))
                .collect();
            put(&numbers(&entries), layout.at(layout.l2.first + table))?;
        }
        let l1: Vec<u64> = (0..layout.l2.count)
            .map(|table| COPIED | layout.at(layout.l2.first + table))
            .collect();
        put(&numbers(&l1), layout.at(layout.l1.first))
    }

    fn directory(&self, layout: &Layout) -> Vec<u8> {
        let mut out = Vec::new();
        for (bitmap, (table, entries)) in self.bitmaps.iter().zip(&layout.bitmaps) {
            out.extend(layout.at(table.first).to_be_bytes());
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

    fn header(&self, layout: &Layout) -> Result<Vec<u8>> {
        let has_bitmaps = !self.bitmaps.is_empty();
        let mut out = Head {
            cluster_bits: layout.cluster_bits,
            size: self.size,
            l1_entries: layout.l1_entries,
            l1: layout.l1,
            refcount_table: layout.refcount_table,
            incompatible: EXTERNAL_DATA,
            autoclear: RAW_EXTERNAL_DATA | if has_bitmaps { BITMAPS_VALID } else { 0 },
        }
        .fields();
        let name = self.data_file.as_bytes();
        out.extend(numbers_32(&[EXTENSION_DATA_FILE, low_32(name.len() as u64)]));
        out.extend(name);
        out.resize(out.len().next_multiple_of(8), 0);
        if has_bitmaps {
            out.extend(numbers_32(&[EXTENSION_BITMAPS, BITMAPS_EXTENSION_BYTES]));
            out.extend(numbers_32(&[low_32(self.bitmaps.len() as u64), 0]));
            out.extend(numbers(&[
                layout.directory_bytes,
                layout.at(layout.directory.first),
            ]));
        }
        out.extend(numbers_32(&[EXTENSION_END, 0]));
        if out.len() > 1 << layout.cluster_bits {
            return Err(refused(format!(
                "the name of the image is too long, with {} bytes",
                name.len()
            )));
        }
        Ok(out)
    }
}

impl Layout {
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
    layout: &Layout,
    put: &dyn Fn(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut entries = entries.iter();
    each_cluster(
        bitmap,
        1 << layout.cluster_bits,
        &mut |bytes| match entries.next() {
            Some(at) if !matches!(*at, 0 | ALL_ONES) => put(bytes, *at),
            _ => Ok(()),
        },
    )
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

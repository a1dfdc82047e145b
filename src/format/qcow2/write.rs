//! Writing a thin qcow2: its data is a raw image that exists, and in it are only the tables that say so, and bitmaps.
//!
//! Invariant: all clusters of the file are used once, so each refcount is one; the header, without which it is no qcow2,
//! is written last.

use std::path::Path;

use super::bitmaps::{NewBitmap, PlacedBitmaps};
use super::tables::{COPIED, Clusters, Head, low_32, numbers, numbers_32, refcounts, write_refcounts};
use super::{EXTENSION_DATA_FILE, EXTENSION_END, EXTERNAL_DATA, RAW_EXTERNAL_DATA};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, write_slice};

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

/// Where everything goes. Cluster 0 is the header's.
struct Layout {
    cluster_bits: u32,
    l1_entries: u64,
    l1: Clusters,
    l2: Clusters,
    bitmaps: PlacedBitmaps,
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
        layout.bitmaps.write(&self.bitmaps, &put)?;
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
        let bitmaps = PlacedBitmaps::find(&self.bitmaps, cluster_bits, &mut take)?;
        let (refcount_table, refcount_blocks) = refcounts(next, cluster);
        Ok(Layout {
            cluster_bits,
            l1_entries,
            l1,
            l2,
            bitmaps,
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

    fn header(&self, layout: &Layout) -> Result<Vec<u8>> {
        let mut out = Head {
            cluster_bits: layout.cluster_bits,
            size: self.size,
            l1_entries: layout.l1_entries,
            l1: layout.l1,
            refcount_table: layout.refcount_table,
            incompatible: EXTERNAL_DATA,
            autoclear: RAW_EXTERNAL_DATA | layout.bitmaps.autoclear(),
        }
        .fields();
        let name = self.data_file.as_bytes();
        out.extend(numbers_32(&[EXTENSION_DATA_FILE, low_32(name.len() as u64)]));
        out.extend(name);
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(layout.bitmaps.extension());
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

#[cold]
fn refused(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::NotSupported, words)
}

//! What every qcow2 that is written here has: the header's fields, and refcounts.
//!
//! Invariant: all clusters of the file are used once, so each refcount is one.

use super::{HEADER_BYTES, MAGIC};
use crate::error::Result;

/// In L1 and L2 entries: the refcount of what it points to is one.
pub(super) const COPIED: u64 = 1 << 63;

/// 16 bits a refcount.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_BYTES: u64 = 2;

/// A run of clusters.
#[derive(Clone, Copy, Default)]
pub(super) struct Clusters {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// What a header says, but for its extensions. No backing file, no encryption, no snapshots.
pub(super) struct Head {
    pub(super) cluster_bits: u32,
    /// The length of the disk; a multiple of 512.
    pub(super) size: u64,
    pub(super) l1_entries: u64,
    pub(super) l1: Clusters,
    pub(super) refcount_table: Clusters,
    pub(super) incompatible: u64,
    pub(super) autoclear: u64,
}

impl Head {
    /// Its bytes; the extensions follow.
    pub(super) fn fields(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(numbers_32(&[MAGIC, 3]));
        // No backing file.
        out.extend(0u64.to_be_bytes());
        out.extend(numbers_32(&[0, self.cluster_bits]));
        out.extend(self.size.to_be_bytes());
        // No encryption.
        out.extend(numbers_32(&[0, low_32(self.l1_entries)]));
        out.extend(numbers(&[
            self.l1.first << self.cluster_bits,
            self.refcount_table.first << self.cluster_bits,
        ]));
        // No snapshots.
        out.extend(numbers_32(&[low_32(self.refcount_table.count), 0]));
        out.extend(numbers(&[0, self.incompatible, 0, self.autoclear]));
        out.extend(numbers_32(&[REFCOUNT_ORDER, HEADER_BYTES]));
        out
    }
}

/// The refcount table and blocks for `used` clusters, which they follow, and for themselves.
pub(super) fn refcounts(used: u64, cluster: u64) -> (Clusters, Clusters) {
    let per_block = cluster / REFCOUNT_BYTES;
    let (mut table, mut blocks) = (1, 1);
    loop {
        let needed = (used + table + blocks).div_ceil(per_block);
        if needed <= blocks {
            break;
        }
        blocks = needed;
        table = (blocks * 8).div_ceil(cluster);
    }
    let table = Clusters {
        first: used,
        count: table,
    };
    let blocks = Clusters {
        first: used + table.count,
        count: blocks,
    };
    (table, blocks)
}

/// Writes the refcount table and its blocks, which say that each of the file's `total` clusters is used once.
pub(super) fn write_refcounts(
    cluster_bits: u32,
    total: u64,
    (table, blocks): (Clusters, Clusters),
    put: &dyn Fn(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let per_block = (1u64 << cluster_bits) / REFCOUNT_BYTES;
    let mut left = total;
    let mut places = Vec::new();
    for block in 0..blocks.count {
        let at = (blocks.first + block) << cluster_bits;
        let here = left.min(per_block);
        left -= here;
        let counts: Vec<u8> = (0..here).flat_map(|_| 1u16.to_be_bytes()).collect();
        put(&counts, at)?;
        places.push(at);
    }
    put(&numbers(&places), table.first << cluster_bits)
}

pub(super) fn numbers(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

pub(super) fn numbers_32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// A number that the layout's limits keep within 32 bits.
pub(super) fn low_32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

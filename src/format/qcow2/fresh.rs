//! Writing a new qcow2 that has its data in itself: clusters as data comes, and the tables when all of it is there.
//!
//! Invariant: a cluster of the disk that nothing is written to has none in the file; and the header, without which it is
//! no qcow2, is written last.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use super::bitmaps::{NewBitmap, PlacedBitmaps};
use super::tables::{COPIED, Clusters, Head, numbers, numbers_32, refcounts, write_refcounts};
use super::{EXTENSION_END, SECTOR};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, Zeroing, write_slice};
use crate::sync::{Mutex, PoisonError};
use crate::units::ByteRange;

/// QEMU's default, in bytes.
pub(crate) const DEFAULT_CLUSTER: u64 = 64 << 10;

/// The cluster sizes that there are, by their bits: 512 bytes to QEMU's most, 2 MiB.
const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;

/// QEMU opens no longer an L1 table: 32 MiB.
const MOST_TABLES: u64 = (32 << 20) / 8;

/// The file grows by so many clusters at a time, so that it does not with each of them.
const GROWTH: u64 = 1024;

/// A qcow2 that is being written, by any number of threads.
pub(crate) struct Fresh {
    storage: Arc<dyn Storage>,
    /// What messages call it.
    path: PathBuf,
    /// The length of the disk; a multiple of 512.
    size: u64,
    cluster_bits: u32,
    map: Mutex<Map>,
}

/// Which cluster of the disk is where.
struct Map {
    /// Of each L2 table that there is to be, the file's clusters by number. 0, the header's, says that there is none yet.
    /// Four bytes and not eight: with them all, 64 MiB for a TiB of data.
    tables: Vec<Option<Box<[u32]>>>,
    /// The first of the file's clusters that is free; all behind it are.
    next: u32,
    /// How many clusters the file is long.
    length: u64,
}

impl Fresh {
    /// A disk of `size` zeros in clusters of so many bytes, in an empty file.
    pub(crate) fn new(storage: Arc<dyn Storage>, path: PathBuf, size: u64, cluster: u64) -> Result<Self> {
        let cluster_bits = cluster.trailing_zeros();
        if !cluster.is_power_of_two() || !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("a cluster of {cluster} bytes: it must be a power of two from 512 to 2 MiB"),
            ));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("a qcow2 cannot be {size} bytes long: it must be a multiple of {SECTOR}"),
            ));
        }
        let tables = size.div_ceil(cluster).div_ceil(per_table(cluster_bits));
        match usize::try_from(tables) {
            Ok(tables) if tables as u64 <= MOST_TABLES => Ok(Self {
                storage,
                path,
                size,
                cluster_bits,
                map: Mutex::new(Map {
                    tables: vec![None; tables],
                    next: 1,
                    length: 0,
                }),
            }),
            _ => Err(Error::new(
                ErrorCode::NotSupported,
                format!("a disk of {size} bytes is too long for a qcow2 with clusters of {cluster} bytes"),
            )),
        }
    }

    /// The length of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Writes within the disk. Two threads may write to one cluster: what neither writes are the zeros of a new file.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut rest = bytes;
        for place in self.places(offset, bytes.len() as u64)? {
            let len = usize::try_from(place.len()).unwrap_or(usize::MAX);
            let (here, behind) = rest.split_at(len.min(rest.len()));
            self.put(here, place.start())?;
            rest = behind;
        }
        Ok(())
    }

    /// Takes the space of `range`, with zeros in it.
    pub(crate) fn take(&self, range: ByteRange) -> Result<()> {
        let how = Zeroing {
            may_unmap: false,
            no_fallback: false,
        };
        for place in self.places(range.start(), range.len())? {
            self.storage
                .write_zeroes(place, how)
                .map_err(|e| self.failed(&format!("zero {place} of"), &e))?;
        }
        Ok(())
    }

    /// Writes all that makes it a qcow2, with these bitmaps in it. Not durable yet.
    pub(crate) fn finish(&self, bitmaps: &[NewBitmap<'_>]) -> Result<()> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |cluster| self.at(cluster);
        let mut next = u64::from(map.next);
        let put = |bytes: &[u8], at: u64| self.put(bytes, at);
        let mut l1_table = vec![0; map.tables.len().max(1)];
        for (entry, table) in l1_table.iter_mut().zip(&map.tables) {
            let Some(table) = table else { continue };
            let entries: Vec<u64> = table
                .iter()
                .map(|cluster| match cluster {
                    0 => 0,
                    _ => COPIED | at(u64::from(*cluster)),
                })
                .collect();
            put(&numbers(&entries), at(next))?;
            *entry = COPIED | at(next);
            next += 1;
        }
        let l1 = Clusters {
            first: next,
            count: (l1_table.len() as u64 * 8).div_ceil(self.cluster_bytes()),
        };
        put(&numbers(&l1_table), at(l1.first))?;
        next = l1.first + l1.count;
        let placed = PlacedBitmaps::find(bitmaps, self.cluster_bits, &mut |count| {
            let first = next;
            next += count;
            Clusters { first, count }
        })?;
        placed.write(bitmaps, &put)?;
        let (table, blocks) = refcounts(next, self.cluster_bytes());
        let total = blocks.first + blocks.count;
        write_refcounts(self.cluster_bits, total, (table, blocks), &put)?;
        self.storage
            .set_length(at(total))
            .map_err(|e| self.failed("set the length of", &e))?;
        let mut header = Head {
            cluster_bits: self.cluster_bits,
            size: self.size,
            l1_entries: l1_table.len() as u64,
            l1,
            refcount_table: table,
            incompatible: 0,
            autoclear: placed.autoclear(),
        }
        .fields();
        header.extend(placed.extension());
        header.extend(numbers_32(&[EXTENSION_END, 0]));
        put(&header, 0)
    }

    /// Where in the file the bytes from `offset` on are, in order; they are given a place where they have none.
    fn places(&self, offset: u64, len: u64) -> Result<Vec<ByteRange>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places: Vec<ByteRange> = Vec::new();
        let (mut here, end) = (offset, offset + len);
        let cluster = self.cluster_bytes();
        while here < end {
            let place = self.cluster(&mut map, here / cluster)?;
            let stop = end.min((here / cluster + 1) * cluster);
            let start = self.at(place) + here % cluster;
            let place = ByteRange::between(start, start + (stop - here));
            match places.last_mut() {
                Some(last) if last.end() == place.start() => {
                    *last = ByteRange::between(last.start(), place.end());
                }
                _ => places.push(place),
            }
            here = stop;
        }
        Ok(places)
    }

    /// The place of a cluster of the disk, new or not.
    fn cluster(&self, map: &mut Map, index: u64) -> Result<u64> {
        let outside = || Error::new(ErrorCode::InvalidArgument, "it is behind the end of the disk");
        let per_table = per_table(self.cluster_bits);
        let number = |of: u64| usize::try_from(of).map_err(|_| outside());
        let (table, entry, entries) = (
            number(index / per_table)?,
            number(index % per_table)?,
            number(per_table)?,
        );
        let table = map.tables.get_mut(table).ok_or_else(outside)?;
        let table = table.get_or_insert_with(|| vec![0; entries].into_boxed_slice());
        let place = table.get_mut(entry).ok_or_else(outside)?;
        if *place == 0 {
            let behind = map.next.checked_add(1).ok_or_else(|| {
                Error::new(
                    ErrorCode::NotSupported,
                    format!(
                        "there is too much data for one qcow2 with clusters of {} bytes",
                        self.cluster_bytes()
                    ),
                )
            })?;
            if u64::from(behind) > map.length {
                let longer = map.length.max(1) + GROWTH;
                self.storage
                    .set_length(self.at(longer))
                    .map_err(|e| self.failed("grow", &e))?;
                map.length = longer;
            }
            *place = map.next;
            map.next = behind;
        }
        Ok(u64::from(*place))
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        write_slice(&*self.storage, bytes, at)
            .map_err(|e| self.failed(&format!("write {} bytes at offset {at} of", bytes.len()), &e))
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where a cluster of the file begins.
    fn at(&self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }

    fn failed(&self, action: &str, error: &std::io::Error) -> Error {
        Error::io(action, &self.path, error)
    }
}

/// How many clusters of the disk an L2 table, which is one cluster, says the places of.
fn per_table(cluster_bits: u32) -> u64 {
    1 << (cluster_bits - 3)
}

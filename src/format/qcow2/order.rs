//! The order in which a qcow2's writes become durable: no table says what is not there yet.
//!
//! The library writes in the right order, which is enough where a process is killed. After a power cut any of its writes may
//! be missing: an entry without its data would show stale bytes, and one without its refcount would have the cluster given
//! out twice. Invariant: a table's write begins when all that it relies on is durable. What is only written anew in its old
//! place relies on nothing.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::AUTOCLEAR_AT;
use super::fields::Fields;
use super::header::{FIRST_BYTES, Header, Table};
use crate::format::image::read_or_zeros;
use crate::mutation::{self, Fault};
use crate::storage::{Gather, Scatter, Storage, SyncMode, read_slice, write_slice};

/// What is written: data, with all that no table leads to yet; blocks of refcounts; L2 tables; and the L1 table, the
/// refcount table and the header.
const DATA: usize = 0;
const REFCOUNTS: usize = 1;
const L2: usize = 2;
const ROOTS: usize = 3;

/// The bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the header has the image's length.
const LENGTH_AT: usize = 24;

/// The order of one image's writes.
#[derive(Debug)]
pub(in crate::format) struct Order {
    /// The qcow2, and its data file if it has one.
    files: Vec<Arc<dyn Storage>>,
    /// How many writes of each kind there were, and how many of them are durable for certain.
    written: [AtomicU64; 4],
    durable: [AtomicU64; 4],
    /// Held for the whole of a table's write, so that no other goes out between its barrier and itself.
    places: Mutex<Places>,
    /// While an image grows.
    growth: Mutex<Option<Growth>>,
    /// What a header that is written has for autoclear bits; zero where it has none.
    mark: AtomicU64,
    /// The file may have a mark, this one or another.
    marked: AtomicBool,
    syncing: Mutex<()>,
    /// How often clusters were given free, and how often of that no table leads there any more for certain.
    freed: AtomicU64,
    settled: AtomicU64,
    dead: Arc<AtomicBool>,
}

/// The length that the header has, and the one that it is to have when all is durable that says what is there.
#[derive(Clone, Copy, Debug)]
struct Growth {
    old: [u8; 8],
    new: [u8; 8],
}

/// Where the tables are.
#[derive(Debug)]
struct Places {
    cluster: u64,
    l1: Table,
    refcounts: Table,
    l2: HashSet<u64>,
    blocks: HashSet<u64>,
}

impl Order {
    pub(in crate::format) fn new(
        file: &Arc<dyn Storage>,
        data_file: Option<&Arc<dyn Storage>>,
        dead: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let mut files = vec![Arc::clone(file)];
        files.extend(data_file.cloned());
        Ok(Self {
            places: Mutex::new(Places::read(&**file)?),
            files,
            written: Default::default(),
            durable: Default::default(),
            growth: Mutex::new(None),
            mark: AtomicU64::new(0),
            marked: AtomicBool::new(false),
            syncing: Mutex::new(()),
            freed: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            dead: Arc::clone(dead),
        })
    }

    /// The library clears the autoclear bits of others at the open; `mark` takes their place, by the same write. The file
    /// has the mark that was `found`, if that is not zero.
    pub(super) fn marking(mut self, mark: u64, found: u64) -> Self {
        self.mark = AtomicU64::new(mark);
        self.marked = AtomicBool::new(found != 0);
        self
    }

    /// Takes the mark away: the image is about to become another one. The caller makes that durable.
    pub(super) fn unmark(&self) -> io::Result<()> {
        self.mark.store(0, Ordering::Release);
        if self.marked.load(Ordering::Acquire) {
            write_slice(&*self.files[0], &[0; 8], AUTOCLEAR_AT as u64)?;
            self.marked.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Data is in a file that no table leads to yet.
    pub(in crate::format) fn wrote_data(&self) {
        self.wrote(DATA);
    }

    /// Clusters are given free, which tables may still lead to, in the file and in others' memory.
    pub(in crate::format) fn gives_free(&self) {
        self.freed.fetch_add(1, Ordering::AcqRel);
    }

    /// How often clusters were given free by now, where tables may still lead to some of them.
    pub(super) fn has_freed(&self) -> Option<u64> {
        let freed = self.freed.load(Ordering::Acquire);
        (freed > self.settled.load(Ordering::Acquire)).then_some(freed)
    }

    /// Whatever was given free until [`Self::has_freed`] said `freed` may be used again.
    pub(super) fn settled(&self, freed: u64) {
        self.settled.fetch_max(freed, Ordering::AcqRel);
    }

    fn wrote(&self, kind: usize) {
        self.written[kind].fetch_add(1, Ordering::AcqRel);
    }

    fn is_pending(&self, kind: usize) -> bool {
        self.written[kind].load(Ordering::Acquire) > self.durable[kind].load(Ordering::Acquire)
    }

    /// A write of the library to the qcow2: behind a barrier where it relies on what is not durable.
    pub(in crate::format) fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        let file = &*self.files[0];
        let changed = self.header(from, offset);
        let pieces = changed.as_deref().map(|bytes| [IoSlice::new(bytes)]);
        let from = match &pieces {
            Some(pieces) => Gather::from_slices(pieces).ok_or(io::ErrorKind::InvalidInput)?,
            None => from,
        };
        let mut places = self.places();
        let (kind, relies_on): (_, &[_]) = match places.kind(offset) {
            DATA => {
                drop(places);
                file.write(from, offset)?;
                self.wrote_data();
                return Ok(());
            }
            // Refcounts may be too high, so they rely on no data; they are lowered when no table leads there any more.
            REFCOUNTS => (REFCOUNTS, &[L2, ROOTS]),
            L2 => (L2, &[DATA, REFCOUNTS, ROOTS]),
            other => (other, &[DATA, REFCOUNTS, L2]),
        };
        let waits = relies_on.iter().any(|kind| self.is_pending(*kind));
        if waits && !mutation::on(Fault::TablesUnordered) {
            self.sync_all(SyncMode::Data)?;
        }
        // A write that fails may have come a part of the way.
        self.wrote(kind);
        file.write(from, offset)?;
        self.wrote(kind);
        if kind == ROOTS {
            places.learn(file, from, offset)?;
        }
        if offset < places.cluster && !mutation::on(Fault::TablesUnordered) {
            // Where the L1 table or the refcount table was, something else may be next.
            self.sync_all(SyncMode::Data)?;
        }
        Ok(())
    }

    /// What `change` has the library write for the image's length goes out behind all that it writes before and `flush` then
    /// does: whatever comes to light where the image was not must be what the tables say, not what they said.
    pub(in crate::format) fn length_last(
        &self,
        change: impl FnOnce() -> io::Result<()>,
        flush: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if mutation::on(Fault::TablesUnordered) {
            return change();
        }
        let file = &*self.files[0];
        let mut old = [0; 8];
        read_slice(file, &mut old, LENGTH_AT as u64)?;
        *self.growth() = Some(Growth { old, new: old });
        let changed = change().and_then(|()| flush());
        let growth = self.growth().take();
        changed?;
        self.sync_all(SyncMode::Data)?;
        if let Some(Growth { new, .. }) = growth {
            write_slice(file, &new, LENGTH_AT as u64)?;
            self.wrote(ROOTS);
        }
        Ok(())
    }

    /// The header has the new `length`, for certain, before `cut` has the library take away what lies behind it: an image of
    /// the old length has all that it had. A `cut` that fails is the end, as some of that is gone.
    pub(in crate::format) fn length_first(
        &self,
        length: u64,
        cut: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if mutation::on(Fault::TablesUnordered) {
            return cut();
        }
        let file = &*self.files[0];
        let mut old = [0; 8];
        read_slice(file, &mut old, LENGTH_AT as u64)?;
        let written = write_slice(file, &length.to_be_bytes(), LENGTH_AT as u64);
        self.wrote(ROOTS);
        if let Err(e) = written {
            // It may have come a part of the way.
            return Err(match write_slice(file, &old, LENGTH_AT as u64) {
                Ok(()) => e,
                Err(e) => self.ends_with(e),
            });
        }
        self.sync_all(SyncMode::Data)?;
        cut().map_err(|e| self.ends_with(e))
    }

    /// What is in the file is not what the library knows, from this failure on.
    fn ends_with(&self, failure: io::Error) -> io::Error {
        self.dead.store(true, Ordering::Relaxed);
        failure
    }

    fn growth(&self) -> MutexGuard<'_, Option<Growth>> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header, where it is written: with the mark, and with the old length while that grows.
    fn header(&self, from: Gather<'_>, offset: u64) -> Option<Vec<u8>> {
        let mut growth = self.growth();
        let mark = self.mark.load(Ordering::Acquire);
        if offset != 0 || (growth.is_none() && mark == 0) {
            return None;
        }
        let mut bytes = vec![0; from.len()];
        from.copy_to(0, &mut bytes);
        if let (Some(bits), true) = (bytes.get_mut(AUTOCLEAR_AT..AUTOCLEAR_AT + 8), mark != 0) {
            bits.copy_from_slice(&mark.to_be_bytes());
            self.marked.store(true, Ordering::Release);
        }
        if let (Some(growth), Some(length)) = (&mut *growth, bytes.get_mut(LENGTH_AT..LENGTH_AT + 8)) {
            growth.new.copy_from_slice(length);
            length.copy_from_slice(&growth.old);
        }
        Some(bytes)
    }

    /// Makes all durable that was written when this was called. A failure is the end: what the kernel has dropped, no
    /// later sync brings back (A2).
    pub(in crate::format) fn sync_all(&self, mode: SyncMode) -> io::Result<()> {
        // One at a time: the kernel tells but one of two callers what it has lost.
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.dead.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let written = self.written.each_ref().map(|count| count.load(Ordering::Acquire));
        // The data first, which the tables lead to.
        for file in self.files.iter().rev() {
            file.sync(mode)
                .inspect_err(|_| self.dead.store(true, Ordering::Relaxed))?;
        }
        for (durable, count) in self.durable.iter().zip(written) {
            durable.fetch_max(count, Ordering::AcqRel);
        }
        Ok(())
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn read(file: &dyn Storage) -> io::Result<Self> {
        let length = file.length()?.min(FIRST_BYTES);
        let mut first = vec![0; usize::try_from(length).unwrap_or(0)];
        read_slice(file, &mut first, 0)?;
        let header = Header::parse(&first)?;
        let mut places = Self {
            cluster: 1 << header.cluster_bits,
            l1: header.l1,
            refcounts: header.refcounts,
            l2: HashSet::new(),
            blocks: HashSet::new(),
        };
        places.l2.extend(entries(&table(file, header.l1)?));
        places.blocks.extend(entries(&table(file, header.refcounts)?));
        Ok(places)
    }

    fn kind(&self, offset: u64) -> usize {
        let within =
            |table: Table| (table.offset..table.offset.saturating_add(table.bytes)).contains(&offset);
        let cluster = offset - offset % self.cluster;
        if cluster == 0 || within(self.l1) || within(self.refcounts) {
            ROOTS
        } else if self.blocks.contains(&cluster) {
            REFCOUNTS
        } else if self.l2.contains(&cluster) {
            L2
        } else {
            DATA
        }
    }

    /// Takes up what a write to the header, the L1 table or the refcount table has changed.
    fn learn(&mut self, file: &dyn Storage, from: Gather<'_>, offset: u64) -> io::Result<()> {
        if offset < self.cluster {
            // The tables may be elsewhere now.
            *self = Self::read(file)?;
            return Ok(());
        }
        let mut bytes = vec![0; from.len()];
        from.copy_to(0, &mut bytes);
        let l1 = (self.l1.offset..self.l1.offset.saturating_add(self.l1.bytes)).contains(&offset);
        let places = if l1 { &mut self.l2 } else { &mut self.blocks };
        places.extend(entries(&bytes));
        Ok(())
    }
}

/// A table, whose length was checked when the image was opened; the library makes none that are longer.
fn table(file: &dyn Storage, at: Table) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(at.bytes).map_err(|_| io::ErrorKind::OutOfMemory)?];
    let vec = [libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }];
    // SAFETY: the one piece is `bytes`, borrowed for the call.
    let into = unsafe { Scatter::new(&vec) }.ok_or(io::ErrorKind::OutOfMemory)?;
    read_or_zeros(file, into, at.offset)?;
    Ok(bytes)
}

/// The clusters that a table's entries lead to.
fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .filter_map(|eight| Fields(eight).u64().ok())
        .map(|entry| entry & OFFSET)
        .filter(|offset| *offset != 0)
}

//! An open qcow2: the disk's bytes by way of `imago`, which knows the tables.
//!
//! Reads and writes ask the library where bytes are, and move them by the file's own storage. Invariant: while clusters
//! may be given free (a discard, a cut), nobody uses a place that was asked for before; a panic of the library ends
//! here, and from then on the image answers errors and writes nothing.

mod writing;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::{FormatAccess, ShallowMapping};

use writing::Reuse;

use super::opening::mark_in;
use super::order::Order;
use super::{AUTOCLEAR_AT, OWN_AUTOCLEAR_BYTES, SECTOR};
use crate::format::image::{FormatImage, Mapping, Place, joined, read_or_zeros, within};
use crate::format::through::Through;
use crate::mutation::{self, Fault};
use crate::storage::{
    Extent, FileIdentity, Gather, Limits, Scatter, Storage, SyncMode, Version, VersionHash, Zeroing,
    write_slice,
};
use crate::units::ByteRange;

type Access = FormatAccess<Through>;

/// What an image consists of, and what its header says of it.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) file: Arc<dyn Storage>,
    pub(super) data_file: Option<Arc<dyn Storage>>,
    /// What it does not have is read from here.
    pub(super) below: Option<Arc<dyn Storage>>,
    /// In bytes.
    pub(super) cluster: u64,
    /// The last byte of the incompatible features.
    pub(super) features: u8,
    /// Its header has autoclear bits.
    pub(super) has_autoclear: bool,
    /// It has a backing; without [`Self::below`], others read there what it does not have.
    pub(super) has_backing: bool,
}

/// An open qcow2.
#[derive(Debug)]
pub(crate) struct Qcow2Image {
    /// Shared by all who read and write; alone by those who give clusters free.
    access: ManuallyDrop<RwLock<Access>>,
    parts: Parts,
    /// Whether the header says that the image was not closed. Changed with the image alone, or on the way from false to
    /// true under `marking`.
    marked: AtomicBool,
    marking: Mutex<()>,
    dead: Arc<AtomicBool>,
    /// Shared by those who find places for new bytes; alone by those who may give clusters free doing so. Taken behind
    /// `access`.
    placing: RwLock<()>,
    /// What its files were before it was opened for writing, which makes the validity of QEMU's bitmaps end.
    found: Option<Version>,
    /// Of an image that is written to.
    order: Option<Arc<Order>>,
    /// Who reads the same file by tables of its own.
    reader: Mutex<Option<Arc<dyn FormatImage>>>,
    /// The process that opened it: a forked child has a copy of what the library has not written yet, and must not
    /// write it.
    process: u32,
}

impl Qcow2Image {
    /// Opens the image whose header was checked. Zero is no `mark`.
    pub(super) fn open(parts: Parts, writable: bool, mark: u64) -> io::Result<Self> {
        let dead = Arc::new(AtomicBool::new(false));
        let found = if writable { parts.version()? } else { None };
        let order = if writable {
            let order = Order::new(&parts.file, parts.data_file.as_ref(), &dead)?;
            // One that is made of the time of one file alone says nothing of the other.
            let mark = match &found {
                Some(found) if mark != 0 => found.mark(),
                _ => mark,
            };
            Some(Arc::new(order.marking(mark, mark_in(&*parts.file)?)))
        } else {
            None
        };
        let access = parts.open(&dead, order.as_ref())?;
        Ok(Self {
            access: ManuallyDrop::new(RwLock::new(access)),
            parts,
            marked: AtomicBool::new(false),
            marking: Mutex::new(()),
            dead,
            placing: RwLock::new(()),
            found,
            order,
            reader: Mutex::new(None),
            process: std::process::id(),
        })
    }

    fn shared(&self) -> RwLockReadGuard<'_, Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Access> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says in the header that the image is being written to, durably, before that begins: the library has table
    /// entries on disk before the refcounts of what they lead to, and whoever went on with such an image would give
    /// clusters out twice. The mark has QEMU count anew, and keeps others from writing.
    #[inline]
    fn mark(&self) -> io::Result<()> {
        if self.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.marked.load(Ordering::Acquire) && !mutation::on(Fault::ImageUnmarked) {
            if let Some(order) = self.order.as_ref().filter(|_| !mutation::on(Fault::MarkKept)) {
                order.unmark()?;
            }
            write_slice(&*self.parts.file, &[self.parts.features | DIRTY], FEATURES_AT)?;
            self.sync_files(SyncMode::Data)?;
            self.marked.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Makes all durable that the files have.
    fn sync_files(&self, mode: SyncMode) -> io::Result<()> {
        match &self.order {
            Some(order) => order.sync_all(mode),
            None => Ok(()),
        }
    }

    fn reader(&self) -> MutexGuard<'_, Option<Arc<dyn FormatImage>>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing has to be done for such bytes to be zeros.
    fn is_zeros(&self, place: Place) -> bool {
        match place {
            Place::Data { .. } => false,
            Place::Zeros => true,
            Place::Below => !self.parts.has_backing,
        }
    }

    /// Makes what lies behind the end zeros, as far as the last cluster goes: whatever was there comes to light when the image
    /// grows.
    fn clear_tail(&self, access: &mut Access, length: u64) -> io::Result<()> {
        let old = access.size();
        let tail = ByteRange::between(old, old.next_multiple_of(self.parts.cluster).min(length));
        if tail.is_empty() {
            return Ok(());
        }
        let last = self.look(access, ByteRange::between(old - 1, old))?;
        if self.is_zeros(last.place) {
            return Ok(());
        }
        if let (Some(data), Some(order)) = (&self.parts.data_file, &self.order) {
            let how = Zeroing {
                may_unmap: false,
                no_fallback: false,
            };
            data.write_zeroes(tail, how)?;
            order.wrote_data();
        }
        contained(&self.dead, || access.resize(tail.end(), PreallocateMode::Zero))
    }

    /// Makes all zeros that the tables have behind the `old` length: a cut that did not come to its end leaves it there.
    fn clear_grown(&self, access: &mut Access, old: u64) -> io::Result<()> {
        let length = access.size();
        let mut at = old.next_multiple_of(self.parts.cluster).min(length);
        while at < length {
            let rest = ByteRange::between(at, length);
            let mapping = joined(rest, |part| self.look(access, part))?;
            let part = ByteRange::between(at, length.min(at + mapping.len));
            if !self.is_zeros(mapping.place) {
                self.give_back_whole(access, part, Reuse::Settled)?;
            }
            at = part.end();
        }
        Ok(())
    }

    /// Makes all durable, and then takes the mark away. The caller has the image alone.
    fn settle(&self, access: &Access, mode: SyncMode) -> io::Result<()> {
        contained(&self.dead, || access.flush())?;
        let sync = || match mode {
            _ if mutation::on(Fault::BackingUnsynced) => Ok(()),
            mode => self.sync_files(mode),
        };
        sync()?;
        if self.marked.load(Ordering::Acquire) {
            write_slice(&*self.parts.file, &[self.parts.features], FEATURES_AT)?;
            sync()?;
            self.marked.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn look(&self, access: &Access, range: ByteRange) -> io::Result<Mapping> {
        let (place, len) = contained(&self.dead, || {
            let (mapping, len) = access.get_shallow_mapping(range.start(), range.len())?;
            let place = match mapping {
                ShallowMapping::Raw { offset, .. } => Place::Data {
                    offset: self.parts.data_file.is_none().then_some(offset),
                },
                ShallowMapping::Special { .. } => Place::Data { offset: None },
                ShallowMapping::Zero { explicit: true, .. } => Place::Zeros,
                ShallowMapping::Zero { .. } | ShallowMapping::Indirect { .. } => Place::Below,
                other => return Err(io::Error::other(format!("{other:?} within the image"))),
            };
            Ok((place, len))
        })?;
        if len == 0 {
            return Err(io::Error::other("a mapping of no bytes"));
        }
        Ok(Mapping { place, len })
    }

    /// Reads the first bytes of `range`; says how many.
    fn read_some(
        &self,
        access: &Access,
        range: ByteRange,
        into: Scatter<'_>,
        skip: usize,
    ) -> io::Result<usize> {
        contained(&self.dead, || {
            let (mapping, len) = access.get_shallow_mapping(range.start(), range.len())?;
            let len = in_memory(len.min(range.len()))?;
            let mut room = Vec::new();
            let part = into.part(skip, len, &mut room);
            match mapping {
                ShallowMapping::Raw { storage, offset, .. } => read_or_zeros(storage.file(), part, offset)?,
                ShallowMapping::Zero { .. } => part.zero(),
                ShallowMapping::Indirect { offset, .. } => match &self.parts.below {
                    Some(below) => read_or_zeros(&**below, part, offset)?,
                    None => part.zero(),
                },
                _ => {
                    // Compressed. By way of a buffer of our own, as the library wants slices, and the caller's
                    // memory may be a guest's.
                    let step = len.min(BOUNCE);
                    let mut bytes = vec![0; step];
                    access.read(bytes.as_mut_slice(), range.start())?;
                    into.copy_from(skip, &bytes);
                    return Ok(step);
                }
            }
            Ok(len)
        })
    }
}

/// Where the header has the last byte of the incompatible features, and the bit of an image that was not closed.
const FEATURES_AT: u64 = 79;
const DIRTY: u8 = 1;

/// The most bytes that are read by way of a buffer in one go: a cluster of the largest size.
const BOUNCE: usize = 2 << 20;

impl FormatImage for Qcow2Image {
    fn mapping(&self, range: ByteRange) -> io::Result<Mapping> {
        let access = self.shared();
        joined(range, |part| self.look(&access, part))
    }

    fn read_by(&self, reader: Arc<dyn FormatImage>) -> io::Result<()> {
        reader.reread()?;
        *self.reader() = Some(reader);
        Ok(())
    }

    fn version_found(&self) -> Option<Version> {
        self.found
    }

    fn reread(&self) -> io::Result<()> {
        let mut access = self.alone();
        *access = self.parts.open(&self.dead, self.order.as_ref())?;
        Ok(())
    }
}

impl Storage for Qcow2Image {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        let access = self.shared();
        let range = within(offset, into.len() as u64, access.size())?;
        let mut done = 0;
        while done < into.len() {
            let rest = ByteRange::between(range.start() + done as u64, range.end());
            done += self.read_some(&access, rest, into, done)?;
        }
        Ok(())
    }

    fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        let access = self.shared();
        self.mark()?;
        let range = within(offset, from.len() as u64, access.size())?;
        self.write_all(&access, range, from)
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        if how.may_unmap {
            return self.give_back(range, Reuse::Settled);
        }
        self.zero(range)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.give_back(range, Reuse::AtOnce)
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        if mode == SyncMode::All {
            // So ends what was begun by the first write: times are kept at a close.
            return self.settle(&self.alone(), mode);
        }
        let access = self.shared();
        // First what the library keeps, so that the files have all there is.
        self.write_back(&access)?;
        self.sync_files(mode)
    }

    fn length(&self) -> io::Result<u64> {
        // Of one that cannot go on nobody knows what the file says.
        contained(&self.dead, || Ok(self.shared().size()))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if !length.is_multiple_of(SECTOR) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a qcow2 has a length in whole sectors of {SECTOR} bytes; QEMU shows no part of one"),
            ));
        }
        let mut access = self.alone();
        self.mark()?;
        self.settle_freed(&access)?;
        let Some(order) = &self.order else {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        };
        if length <= access.size() {
            let cut = || contained(&self.dead, || access.resize(length, PreallocateMode::None));
            order.length_first(length, cut)?;
            if let Some(data) = &self.parts.data_file {
                // What stays of it takes space, and no more.
                let _ = data.set_length(length);
            }
            return Ok(());
        }
        let access = Mutex::new(access);
        let grow = || {
            let mut access = access.lock().unwrap_or_else(PoisonError::into_inner);
            self.clear_tail(&mut access, length)?;
            self.settle_freed(&access)?;
            let how = if self.parts.has_backing {
                // What is below must not come to light behind the old end.
                PreallocateMode::Zero
            } else {
                PreallocateMode::None
            };
            let old = access.size();
            contained(&self.dead, || access.resize(length, how))?;
            self.clear_grown(&mut access, old)
        };
        let flush = || {
            let access = access.lock().unwrap_or_else(PoisonError::into_inner);
            contained(&self.dead, || access.flush())
        };
        order.length_last(grow, flush)
    }

    fn allocate(&self, _range: ByteRange) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        let access = self.shared();
        let hole = |place| self.is_zeros(place);
        let there = ByteRange::between(range.start(), range.end().min(access.size()).max(range.start()));
        if there.is_empty() {
            return Ok(Extent {
                data: false,
                len: range.len(),
            });
        }
        let first = joined(there, |part| self.look(&access, part))?;
        let mut len = first.len;
        while len < there.len() {
            let rest = ByteRange::between(there.start() + len, there.end());
            let next = joined(rest, |part| self.look(&access, part))?;
            if hole(next.place) != hole(first.place) {
                break;
            }
            len += next.len;
        }
        Ok(Extent {
            data: !hole(first.place),
            len,
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let data = self
            .parts
            .data_file
            .as_ref()
            .map_or(Ok(0), |it| it.allocated_bytes())?;
        Ok(self.parts.file.allocated_bytes()?.saturating_add(data))
    }

    fn limits(&self) -> Limits {
        let file = self.parts.data_file.as_ref().unwrap_or(&self.parts.file).limits();
        Limits {
            max_discard: 0,
            max_write_zeroes: 0,
            ..file
        }
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.parts.file.identity()
    }

    fn version(&self) -> io::Result<Option<Version>> {
        self.parts.version()
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        self.parts.file.host_file()
    }
}

impl Parts {
    /// Of an image of two files: QEMU writes to the data file alone where the qcow2 has the place already.
    fn version(&self) -> io::Result<Option<Version>> {
        let Some(data) = &self.data_file else {
            return Ok(None);
        };
        let mut hash = VersionHash::default();
        hash.add_time(&*self.file)?;
        hash.add_time(&**data)?;
        Ok(Some(hash.version()))
    }

    fn open(&self, dead: &Arc<AtomicBool>, order: Option<&Arc<Order>>) -> io::Result<Access> {
        let through = |file: &Arc<dyn Storage>| Through::new(Arc::clone(file), dead);
        contained(dead, || {
            // The mark, which may be there by now, is a hint to others: the library opens nothing that has it.
            let mut tables = through(&self.file)
                .ordered(order, true)
                .showing((FEATURES_AT, self.features));
            if self.has_autoclear {
                // Nor is it to clear our own ones: it would write the header each time.
                for at in 0..OWN_AUTOCLEAR_BYTES {
                    tables = tables.showing((AUTOCLEAR_AT as u64 + at, 0));
                }
            }
            let mut qcow2 = imago::qcow2::Qcow2::<Through>::open_image(tables, order.is_some())?;
            let data = self.data_file.as_ref().map(through);
            qcow2.set_data_file(data.map(|data| data.ordered(order, false)));
            let backing = self.below.as_ref().map(|below| {
                let raw = imago::raw::Raw::open_image(through(below), false)?;
                Ok::<_, io::Error>(FormatAccess::new(raw))
            });
            qcow2.set_backing(backing.transpose()?);
            Ok(FormatAccess::new(qcow2))
        })
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        if self.marked.load(Ordering::Acquire) {
            // Where that fails the mark stays, and says so.
            let _ = self.settle(&self.shared(), SyncMode::Data);
        }
        let access = &mut self.access;
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: nothing uses it behind this.
            unsafe { ManuallyDrop::drop(access) }
        }));
        // What it had not written is lost; nobody is left to be told.
        let _ = dropped;
    }
}

/// What the library answers; a panic of it is an error, and the last thing that it did.
fn contained<T>(dead: &AtomicBool, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if dead.load(Ordering::Relaxed) {
        return Err(io::Error::other("the image met an internal error before"));
    }
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        dead.store(true, Ordering::Relaxed);
        Err(io::Error::other(
            "an internal error in reading the qcow2's tables",
        ))
    })
}

fn in_memory(len: u64) -> io::Result<usize> {
    match usize::try_from(len) {
        Ok(0) | Err(_) => Err(io::Error::other("a mapping of no bytes")),
        Ok(len) => Ok(len),
    }
}

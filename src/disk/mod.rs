//! The engine: an open QBM disk, and everything that can be done with it.
//!
//! May call `state`, `format`, `bitmap`, `descriptor` and `storage`; knows nothing of C or of the command line.
//! Requests are first *planned* (`plan`: which file, which offsets, which bits, what must be durable) and then carried
//! out (`blocking`), so that a second way of moving bytes needs no second set of rules.
//! Invariant: whatever changes what the guest sees goes through [`plan`], under the [`gate`].

mod alive;
mod bitmaps;
mod blocking;
mod check;
mod checksum;
#[cfg(any(test, fuzzing))]
pub(crate) mod crash_tests;
mod create;
mod gate;
mod info;
mod nested;
mod open;
mod overlay;
mod overwrite;
mod own_image;
mod plan;
mod qemu;
mod recovery;
mod resize;
mod rounds;
mod session;
mod snapshot;
mod status;
mod view;

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use alive::Born;
pub use bitmaps::{
    AddBitmap, BitmapAction, BitmapContent, BitmapInfo, MergeSource, OnBitmapError, Thaw, bitmap_transaction,
};
pub use check::{CheckOptions, CheckReport, Finding, FindingKind, Repair, Severity};
pub use create::{CreateOptions, Preallocation};
pub use info::{Info, Layer, OverlayInfo, StateFound, StateInfo};
pub use open::{Notice, NoticeCode, OpenOptions};
pub use overlay::{BackingFlags, Progress};
pub(crate) use qemu::bitmaps_for_qemu;
pub use qemu::{ExportOptions, Exported, ImportOptions, Imported, Merged};
pub use resize::TruncateFlags;
pub use session::{AddedBits, Recovery};
pub use status::{BlockStatus, StatusFlags, StatusHints};
pub use view::{BackupView, BackupViews, Scratch, ScratchFull, backup_begin};

use crate::bitmap::BitmapPolicy;
use crate::descriptor::Descriptor;
use crate::error::{Error, ErrorCode, Result};
use crate::format::FormatImage;
use crate::mutation::{self, Fault};
use crate::state::{Lock, Tenure};
use crate::storage::{Gather, Scatter, Shortcut, Storage, SyncMode, Zeroing};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::ByteRange;
use alive::Alive;
use bitmaps::{Excuses, Loading, Marks, Shape};
use gate::{Gate, Inside};
use nested::Nested;
use own_image::{Own, OwnImages};
use plan::Change;
use session::Session;

bitflags::bitflags! {
    /// What a write asks for besides the bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct WriteFlags: u32 {
        /// Durable when the call returns, and all that was written before it to the same granules.
        const FUA = 1;
        /// Of [`Disk::write_zeroes`]: the space may be given back to the host.
        const MAY_UNMAP = 2;
        /// Of [`Disk::write_zeroes`]: fail with `EOPNOTSUPP` rather than write zeros byte by byte.
        const NO_FALLBACK = 4;
        /// The content as the guest sees it stays the same, so no dirty bitmap records the write.
        const UNCHANGED = 8;
    }
}

/// One open file of a disk, with the name that messages use.
#[derive(Debug)]
struct Child {
    storage: Shortcut,
    path: PathBuf,
    /// The same as the storage, of an image whose format has its own idea of what is where.
    mapped: Option<Arc<dyn FormatImage>>,
    /// The same as the storage, of an image that is a disk itself.
    nested: Option<Arc<Nested>>,
}

impl Child {
    fn new(storage: Arc<dyn Storage>, path: PathBuf) -> Self {
        Self {
            storage: Shortcut::new(storage),
            path,
            mapped: None,
            nested: None,
        }
    }

    fn of_format(image: Arc<dyn FormatImage>, path: PathBuf) -> Self {
        Self {
            storage: Shortcut::new(Arc::clone(&image) as Arc<dyn Storage>),
            path,
            mapped: Some(image),
            nested: None,
        }
    }

    /// The same, for another user of it.
    fn again(&self) -> Self {
        Self {
            storage: Shortcut::new(Arc::clone(self.storage.shared())),
            path: self.path.clone(),
            mapped: self.mapped.clone(),
            nested: self.nested.clone(),
        }
    }

    fn failed(&self, action: &str, error: &std::io::Error) -> Error {
        Error::io(action, &self.path, error)
    }
}

/// An open QBM disk.
///
/// May be used from any number of threads at once. Dropping it closes it without a word, unless the thread panics;
/// [`Disk::close`] says what went wrong.
#[allow(clippy::struct_excessive_bools, reason = "facts, each by itself")]
pub struct Disk {
    alive: Alive,
    own: OwnImages,
    /// What is below the image, where that names a backing of its own.
    below: Option<Arc<overlay::Chain>>,
    length: AtomicU64,
    path: PathBuf,
    /// Whether that is a descriptor, and not an image by itself.
    described: bool,
    writable: bool,
    direct: bool,
    /// What writers look at; structural operations close the gate, wait for the writers inside, and change it.
    gate: Gate<Shape>,
    /// The descriptor as it is on disk. Held for the whole of an operation that changes the disk's structure.
    /// Taken before the gate is closed, never behind it.
    structure: Mutex<Structure>,
    place: open::Place,
    policy: BitmapPolicy,
    loading: Loading,
    notify: open::Notify,
    /// Of a disk that is open for writing and has a state file.
    session: Option<Session>,
    /// Where a bitmap that cannot be written becomes inconsistent instead of failing the write.
    excuses: Option<Arc<Excuses>>,
    /// What its state file said at the open; `None` where the descriptor names none.
    state: Option<StateInfo>,
    recovery: Option<Recovery>,
    /// What was found of its content when it was opened.
    found: recovery::Content,
    locks: Mutex<Vec<Lock>>,
    /// Its user has closed it, with whatever success, or says that he is dead.
    closed: bool,
}

/// The disk's names, as its descriptor has them.
struct Structure {
    descriptor: Descriptor,
    /// Why what is known of the images below may be wrong, where the disk hides them.
    outdated: Option<String>,
}

impl Structure {
    /// Fails where what the disk hides below could come to light other than it is.
    fn check_below(&self) -> Result<()> {
        let Some(why) = &self.outdated else {
            return Ok(());
        };
        Err(Error::new(
            ErrorCode::Failed,
            format!(
                "a commit failed, and what it has written below is not known ({why}); close and reopen the disk"
            ),
        ))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens the disk that the descriptor at `path` describes, for reading and writing.
    ///
    /// The same as [`OpenOptions::open`] with the default options.
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        OpenOptions::new().open(path)
    }

    /// The disk's length in bytes.
    #[inline]
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Reads `buf.len()` bytes from `offset` on; the whole of it lies within the disk, or nothing is done.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_vectored(&mut [IoSliceMut::new(buf)], offset)
    }

    /// Reads into several buffers, one after the other.
    pub fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.read_scatter(Scatter::from_slices(bufs).ok_or_else(too_long)?, offset)
    }

    /// Reads into the caller's raw memory.
    #[inline(always)]
    pub fn read_scatter(&self, into: Scatter<'_>, offset: u64) -> Result<()> {
        self.alive.check()?;
        let own = self.own.current();
        if own.layered {
            return self.read_layers(into, offset);
        }
        let range = self.range(offset, into.len() as u64)?;
        let plan = plan::read(&own.child, range);
        blocking::read(&plan, into)
    }

    /// Writes `buf` at `offset`; the whole of it lies within the disk, or nothing is done.
    ///
    /// Durable after [`Disk::flush`], or on return with [`WriteFlags::FUA`].
    pub fn write(&self, buf: &[u8], offset: u64, flags: WriteFlags) -> Result<()> {
        self.write_vectored(&[IoSlice::new(buf)], offset, flags)
    }

    /// Writes several buffers, one after the other.
    pub fn write_vectored(&self, bufs: &[IoSlice<'_>], offset: u64, flags: WriteFlags) -> Result<()> {
        self.write_gather(Gather::from_slices(bufs).ok_or_else(too_long)?, offset, flags)
    }

    /// Writes from the caller's raw memory.
    #[inline(always)]
    pub fn write_gather(&self, from: Gather<'_>, offset: u64, flags: WriteFlags) -> Result<()> {
        let allowed = WriteFlags::FUA.union(WriteFlags::UNCHANGED);
        self.change(Change::Write(from), offset, from.len() as u64, flags, allowed)
    }

    /// Makes a range read as zeros.
    pub fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let how = Zeroing {
            may_unmap: flags.contains(WriteFlags::MAY_UNMAP),
            no_fallback: flags.contains(WriteFlags::NO_FALLBACK),
        };
        self.change(Change::Zero(how), offset, len, flags, WriteFlags::all())
    }

    /// Gives a range's space back to the host; it reads as zeros afterwards.
    pub fn discard(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let allowed = WriteFlags::FUA.union(WriteFlags::UNCHANGED);
        self.change(Change::Discard, offset, len, flags, allowed)
    }

    /// Makes every write that completed before this call durable (A2). The first such call also what the images below have,
    /// whoever wrote that.
    ///
    /// Once a flush has failed, every later write and flush fails until the disk is reopened: the kernel has
    /// dropped what it could not write, and a repeated flush that succeeds would prove nothing.
    pub fn flush(&self) -> Result<()> {
        self.alive.check_unfailed()?;
        if !self.writable {
            return Ok(());
        }
        self.sync_written()?;
        self.retire_cold()
    }

    /// Flushes the disk, saves its bitmaps and closes it. The handle is gone in any case; the error is the first that
    /// was met.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        self.end()
    }

    /// Gives the disk up as a process does that is killed.
    #[cfg(any(test, feature = "simulated"))]
    #[doc(hidden)]
    pub fn die(mut self) {
        self.closed = true;
    }

    /// Whether closing it has anything to do.
    fn owes(&self) -> bool {
        match &self.session {
            // The disk whose image it is closes it, in its turn.
            _ if self.place.is_image() => false,
            Some(session) => session.owes(),
            None => self.writable,
        }
    }

    /// Everything that closing the disk does but for giving it up: it may go on, and be ended again. Nobody may change it
    /// meanwhile.
    fn end(&self) -> Result<()> {
        self.flush()?;
        let times = if mutation::on(Fault::StampUnsynced) {
            SyncMode::Data
        } else {
            SyncMode::All
        };
        let sync = || self.sync_image(times);
        if let (Some(session), true) = (&self.session, mutation::on(Fault::CleanFirst)) {
            session.end(self.image(), sync)?;
        }
        self.bitmap_sync(None)?;
        // Before this disk: its stamp is what the image is when it is closed, and clean is said last.
        self.image().end()?;
        match &self.session {
            Some(session) => {
                // Of one that fails nobody knows whether "clean" is in the file by now: nothing may be changed under it.
                session.end(self.image(), sync).inspect_err(|e| self.fail(e))?;
                self.alive.rest_again();
            }
            // The mark of a qcow2 that is being written to is taken away, or the caller hears why not.
            None if self.writable && self.image().mapped.is_some() => sync()?,
            None => {}
        }
        Ok(())
    }

    #[inline(always)]
    fn change(
        &self,
        change: Change<'_>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
        allowed: WriteFlags,
    ) -> Result<()> {
        self.check_writable()?;
        if !allowed.contains(flags) {
            return Err(flags_refused(flags.difference(allowed).bits()));
        }
        let flags = if mutation::on(Fault::DataOutsideGate) {
            self.mark_and_leave(offset, len)?;
            flags | WriteFlags::UNCHANGED
        } else {
            flags
        };
        let mut shape = self.enter_for_change()?;
        // Inside the gate: a resize waits outside, so the range stays within the disk for the whole request.
        let mut range = self.range(offset, len)?;
        let mut plan = plan::change(&shape, self.image(), change, range, flags);
        while let Some(before) = plan.marks.as_ref().and_then(Marks::delayed_by) {
            // Nobody else must have to wait for a writer who waits.
            let before = Arc::clone(before);
            drop(shape);
            before.keep_waiting(range);
            shape = self.enter_for_change()?;
            range = self.range(offset, len)?;
            plan = plan::change(&shape, self.image(), change, range, flags);
        }
        if let Some(overlay) = &shape.overlay {
            return self.change_layers(overlay, &plan);
        }
        blocking::change(&plan)?;
        if plan.durable {
            return self.sync_image(SyncMode::Data);
        }
        Ok(())
    }

    /// Enters the gate of a disk that may be changed. Whoever closed the gate may have failed meanwhile, and left a descriptor
    /// that nobody knows: what is recorded by the shape in here would be in the files of the wrong one (D1, A3).
    #[inline(always)]
    fn enter_for_change(&self) -> Result<Inside<'_, Shape>> {
        loop {
            self.check_for_change()?;
            let shape = self.gate.enter();
            if self.alive.may_change() || mutation::on(Fault::NoLookBehindGate) {
                return Ok(shape);
            }
        }
    }

    /// For [`Fault::DataOutsideGate`].
    #[cold]
    fn mark_and_leave(&self, offset: u64, len: u64) -> Result<()> {
        let shape = self.enter_for_change()?;
        let marks = Marks::needed(&shape, self.range(offset, len)?);
        marks.map_or(Ok(()), |marks| marks.record())
    }

    /// Makes durable what was written to the image. Callers at a time have a file description each, as far as there can be
    /// some; the rest of them share the next sync.
    fn sync_image(&self, mode: SyncMode) -> Result<()> {
        if let Some(below) = &self.below {
            self.sync_below(below)?;
        }
        let Own {
            child: image, syncs, ..
        } = self.own.current();
        let sync = |lane: &Option<Arc<dyn Storage>>| {
            // Where another's sync has failed, this one would prove nothing: the kernel may have told him alone.
            self.alive.check_unfailed()?;
            let synced = match lane {
                Some(again) => again.sync(mode),
                None => image.storage.sync(mode),
            };
            synced.map_err(|e| {
                let error = image.failed("flush", &e);
                // One that is a disk itself and has not failed has lost nothing: there was no room for its bits, say. What
                // it was asked for it can be asked for again.
                if image.disk().is_some_and(|inner| !inner.alive.has_failed()) {
                    return error;
                }
                if !mutation::on(Fault::FailedSyncForgotten) {
                    self.fail(&error);
                }
                if let Some(session) = &self.session {
                    session.image_failed();
                }
                error
            })
        };
        if mutation::on(Fault::SyncsApart) {
            return sync(&None);
        }
        let unfailed = || self.alive.check_unfailed();
        match mode {
            SyncMode::Data => syncs.join(|| image.storage.sync_apart().map(Some), sync, unfailed),
            SyncMode::All => syncs.own(sync, unfailed),
        }
    }

    /// From now on no change reports success: what was written may be lost (A2), or which of two descriptors stands.
    #[cold]
    fn fail(&self, error: &Error) {
        if self.alive.fail_changes() {
            self.notify
                .send(NoticeCode::Failed, &format!("the disk failed: {error}"));
        }
    }

    /// The bytes of a request, or an error where they do not all lie within the disk.
    #[inline]
    fn range(&self, offset: u64, len: u64) -> Result<ByteRange> {
        let length = self.length();
        match ByteRange::new(offset, len) {
            Some(range) if range.end() <= length => Ok(range),
            _ => Err(out_of_range(offset, len, length)),
        }
    }

    /// Whether the disk may be changed; prepares it for the first change.
    #[inline]
    fn check_for_change(&self) -> Result<()> {
        if self.alive.may_change() {
            return Ok(());
        }
        self.begin_changes(true, None)
    }

    /// The same for changes that leave the content as it is.
    fn check_for_arrangement(&self) -> Result<()> {
        if self.alive.may_arrange() {
            return Ok(());
        }
        self.begin_changes(false, None)
    }

    #[cold]
    fn begin_changes(&self, content: bool, tenure: Option<Tenure>) -> Result<()> {
        self.alive.check_unfailed()?;
        match &self.session {
            // An image that is a disk itself is written to even where what is seen here stays the same.
            Some(session) if !mutation::on(Fault::BegunSilently) => {
                session.begin(self.image(), content, tenure)?;
            }
            _ if self.writable => self.image().begin(None)?,
            _ => {}
        }
        self.alive.wake(content);
        Ok(())
    }

    /// The image that is the disk's own now.
    #[inline(always)]
    fn image(&self) -> &Child {
        &self.own.current().child
    }

    fn structure(&self) -> MutexGuard<'_, Structure> {
        self.structure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn check_writable(&self) -> Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(read_only(self.image()))
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // In a forked child all of it is the parent's.
        if self.alive.is_ours() {
            // Whoever leaves by an error has changed nothing that he has not heard of. But an unclean disk would not notice what
            // others write to its image before it is opened again (D1).
            if !self.closed && self.owes() && !self.alive.has_failed() && !std::thread::panicking() {
                let _ = self.end();
            }
            let locks = self.locks.get_mut().unwrap_or_else(PoisonError::into_inner);
            locks.drain(..).for_each(Lock::release);
        }
    }
}

#[cold]
fn out_of_range(offset: u64, len: u64, length: u64) -> Error {
    Error::new(
        ErrorCode::OutOfRange,
        format!("{len} bytes at offset {offset} do not lie within the disk, which is {length} bytes long"),
    )
}

#[cold]
fn read_only(image: &Child) -> Error {
    Error::new(
        ErrorCode::ReadOnly,
        format!(
            "cannot write to {}: the disk is open read-only",
            image.path.display()
        ),
    )
}

#[cold]
fn too_long() -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        "the lengths of the buffers add up to more than memory holds",
    )
}

#[cold]
fn flags_refused(bits: u32) -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        format!("flags {bits:#x} mean nothing to this call"),
    )
}

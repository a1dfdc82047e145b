//! Disks as they were at one moment, for programs that have their own way of keeping backups.

use std::ffi::{OsStr, c_char, c_int};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

use super::bitmap_arguments::{no_flags, outcome_from};
use super::boundary::{call, null, on_disks, on_either, put, string, text};
use super::structs::{self, Extensible, Plain, check_size};
use super::view::{Backup, opened};
use super::{Kind, qbm_disk};
use crate::error::{Error, ErrorCode, Result};
use crate::{BackupViews, Disk, Scratch, ScratchFull, Thaw};

/// What happens when a guest overwrites more than scratch_limit during a backup.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_on_scratch_full {
    /// The backup fails, and the guest goes on.
    QBM_ON_SCRATCH_FULL_FAIL_BACKUP = 0,
    /// The guest's write waits until there is room, as qbm_backup_release() makes it and qbm_backup() by copying, or until
    /// the end of the backup. A write that has waited for max_delay_ms fails the backup, and the guest goes on.
    QBM_ON_SCRATCH_FULL_DELAY_GUEST = 1,
}

/// A backup that has begun: the views of its disks. Made by qbm_backup_begin(),
/// ended by qbm_backup_end().
#[allow(non_camel_case_types, reason = "the name in C")]
pub struct qbm_views {
    backup: Arc<Backup>,
    /// As C has them.
    handles: Vec<*const qbm_disk>,
}

// SAFETY: the handles are of `Arc`s whose contents may be used by any thread.
unsafe impl Send for qbm_views {}

/// One disk of qbm_backup_begin().
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_backup_source {
    /// A disk that is open for writing.
    pub disk: *mut qbm_disk,
    /// Its bitmap that says what has changed, and is frozen until the end.
    pub bitmap: *const c_char,
    /// Set by qbm_backup_begin(): the disk as it was at that moment, or NULL.
    pub view: *mut qbm_disk,
}

/// Options of qbm_backup_begin(). Set struct_size to sizeof(struct
/// qbm_backup_begin_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_backup_begin_options {
    /// sizeof(struct qbm_backup_begin_options).
    pub struct_size: usize,
    /// Zero; no flags are defined yet.
    pub flags: u32,
    /// One of enum qbm_on_scratch_full.
    pub on_scratch_full: u32,
    /// The folder for the files, without a name, in which what guests overwrite
    /// is kept. NULL: the folder of each disk's descriptor, which open_file must
    /// have handed in.
    pub scratch_folder: *const c_char,
    /// The most bytes of each disk that are kept. Zero: 1 GiB.
    pub scratch_limit: u64,
    /// With QBM_ON_SCRATCH_FULL_DELAY_GUEST: how long one write waits at most,
    /// in milliseconds. Zero: 10 seconds.
    pub max_delay_ms: u64,
}

// SAFETY: `repr(C)`, and pointers only.
unsafe impl Plain for qbm_backup_source {}
// SAFETY: `repr(C)`, `struct_size` first, and integers and a pointer after it.
unsafe impl Plain for qbm_backup_begin_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_backup_begin_options {}

/// section: Backups
///
/// qbm_backup() makes one backup of one disk in a folder; the tool qbm lists,
/// verifies, prunes and restores what is in it. Programs that have their own
/// way of keeping backups take views: qbm_backup_begin(), reading what
/// qbm_bitmap_next_dirty() finds, qbm_backup_end(). Either way guests go on
/// writing, and the backup shows the disk as it was at one point between two
/// writes. The first write to each 64 KiB then copies what was there into a
/// scratch file; where that is full, the backup fails and the guest goes on, or
/// the guest waits: enum qbm_on_scratch_full.
///
/// Until the end the disk cannot be truncated, committed or emptied, nor backed
/// up a second time: -EBUSY. A process that dies meanwhile loses nothing.
///
/// A view is a handle for these: qbm_pread(), qbm_preadv(), qbm_length(),
/// qbm_get_info(), qbm_block_status(), qbm_flush() (does nothing), and for the
/// frozen bits of its bitmap qbm_bitmap_get(), _count(), _next_dirty(),
/// _next_zero(), _serialized_length(), _serialize() and _info(). What would
/// change something is -EROFS on it, and anything else -ENOTSUP. Once the point
/// in time is lost, reading is -ENOSPC.
/// ---
/// Takes all of count disks at one point between the writes to any of them.
/// Waits for the writes in flight, and flushes the disks.
///
/// sources: elements of source_size, which is sizeof(struct qbm_backup_source);
/// view is set in each, to NULL where the call fails. Views may be used from any
/// number of threads at once, until qbm_backup_end(). options: NULL is the
/// defaults. *views is set on success, and to NULL otherwise.
///
/// Returns 0. -EINVAL: no disk, or one that is named twice; a view.
/// -ENOENT: no such bitmap, or no scratch folder. -EBUSY: the bitmap is frozen,
/// or a backup of the disk is under way. -EUCLEAN: the bitmap is inconsistent.
/// -EROFS: the disk is open read-only, or open_file did not hand in the folder.
/// Any thread.
///
/// # Safety
///
/// `sources` points to `count` elements of `source_size` bytes, whose pointers are what the text says; `options` is NULL
/// or a struct as long as its first field says; `views` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup_begin(
    sources: *mut qbm_backup_source,
    count: usize,
    source_size: usize,
    options: *const qbm_backup_begin_options,
    views: *mut *mut qbm_views,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promise: a place for the answer.
        let cleared = unsafe { put(views, null_mut(), "views") };
        // SAFETY: the caller's promise: so many elements of that size.
        let places = unsafe { Places::new(sources, count, source_size) }?;
        cleared?;
        // SAFETY: the caller's promise: NULL, or a struct as long as its first field says.
        let scratch = unsafe { scratch(structs::read(options, "options")?) }?;
        let mut disks = Vec::with_capacity(count);
        let mut bitmaps = Vec::with_capacity(count);
        for index in 0..count {
            let in_source = |error: Error| error.context(format_args!("source {index}"));
            // SAFETY: the caller's promise on what the elements point to.
            let (disk, name) = unsafe { places.get(index) }.map_err(in_source)?;
            disks.push(disk);
            bitmaps.push(name);
        }
        let backup = Backup::begin(disks, |disks| {
            let named: Vec<(&'static Disk, &str)> = disks.iter().copied().zip(bitmaps).collect();
            begin(disks, &named, &scratch)
        })?;
        let handles: Vec<_> = backup.handles(count).into_iter().map(Arc::into_raw).collect();
        for (index, handle) in handles.iter().enumerate() {
            places.set(index, handle.cast_mut());
        }
        let made = Box::into_raw(Box::new(qbm_views { backup, handles }));
        // SAFETY: the caller's promise: a place for the answer.
        unsafe { put(views, made, "views") }
    })
}

fn begin(
    disks: &[&'static Disk],
    named: &[(&'static Disk, &str)],
    scratch: &Scratch,
) -> Result<BackupViews<'static>> {
    let mut views = None;
    on_disks(disks, || {
        views = Some(crate::backup_begin(named, scratch)?);
        Ok(())
    })?;
    views.ok_or_else(|| null("sources"))
}

/// Says that nobody will read these bytes of a view any more. In whole 64 KiB,
/// nothing is kept from now on of what a guest writes to them, and what was kept
/// makes room for more; reading them is -EINVAL.
///
/// A backup program that calls it for what it has copied, and first of all for
/// what is not dirty, needs little scratch space; with
/// QBM_ON_SCRATCH_FULL_DELAY_GUEST it is what guests wait for.
///
/// Returns 0. -EINVAL: no view; a range that does not lie within it. Any thread.
///
/// # Safety
///
/// `view` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup_release(view: *mut qbm_disk, offset: u64, len: u64) -> c_int {
    let no_view = |disk: &Disk| {
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{} is no view of a backup", disk.path().display()),
        ))
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { on_either(view, no_view, |view| view.release(offset, len)) }
}

/// Ends a backup at one point of all its disks, and frees its views, whatever
/// happens.
///
/// outcome: one of enum qbm_thaw. With QBM_THAW_COMMIT the bitmaps forget what
/// was dirty when the backup began: all of it must be durable by then, the name
/// of the backup in its folder, too. With QBM_THAW_ROLLBACK they keep it.
///
/// The last call on the views: no other thread may be in one on any of them.
///
/// Returns 0. -EINVAL: another outcome, or a flag, and nothing is done then.
/// Otherwise the bitmaps have all bits, and none is frozen any more but those of
/// a disk that has failed: -EINVAL (QBM_ERROR_BITMAP_STATE): a disk was closed
/// meanwhile; -EIO, -ENOSPC ...: a bitmap could not be thawed.
/// A disk that has failed by it (QBM_INFO_FAILED, QBM_NOTICE_FAILED) must be
/// reopened, and its bitmap may have forgotten all the same: keep the copy. It
/// has forgotten what was dirty if its epoch is then the next_epoch that it had
/// on the view, and has all bits otherwise.
/// -ESTALE: in a child of the process that began it; nothing is freed then.
///
/// # Safety
///
/// `views` is NULL or from `qbm_backup_begin`, and neither it nor any of its views is used by another call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup_end(views: *mut qbm_views, outcome: c_int, flags: u32) -> c_int {
    call(|| {
        no_flags(flags)?;
        let outcome = outcome_from(outcome)?;
        // SAFETY: the caller's promise: NULL or from `qbm_backup_begin`.
        let backup = &unsafe { views.as_ref() }.ok_or_else(|| null("views"))?.backup;
        let ended = backup.end(outcome == Thaw::Commit, "qbm_backup_end() was called");
        if ended
            .as_ref()
            .is_err_and(|error| error.code() == ErrorCode::Forked)
        {
            return ended;
        }
        // SAFETY: from `qbm_backup_begin`, given back by its owner.
        let owned = unsafe { Box::from_raw(views) };
        for handle in &owned.handles {
            // SAFETY: from `Arc::into_raw`, once for each, and given back with the views.
            drop(unsafe { Arc::from_raw(*handle) });
        }
        ended
    })
}

/// The elements that C handed in.
struct Places {
    first: *mut qbm_backup_source,
    size: usize,
}

impl Places {
    /// Each gets a view that is NULL.
    ///
    /// # Safety
    ///
    /// `first` is NULL or points to `count` elements of `size` bytes, which outlive what is made.
    unsafe fn new(first: *mut qbm_backup_source, count: usize, size: usize) -> Result<Self> {
        if first.is_null() {
            return Err(null("sources"));
        }
        check_size(size, "source_size")?;
        if size < offset_of!(qbm_backup_source, view) + size_of::<*mut qbm_disk>() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("source_size {size} has no room for a view"),
            ));
        }
        if count == 0 {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "no disk is to be backed up",
            ));
        }
        let places = Self { first, size };
        (0..count).for_each(|index| places.set(index, null_mut()));
        Ok(places)
    }

    fn at(&self, index: usize) -> *mut qbm_backup_source {
        self.first.wrapping_byte_add(index * self.size)
    }

    fn set(&self, index: usize, view: *mut qbm_disk) {
        // SAFETY: `new` was promised as many elements as it, and `get`, are asked for, each with room for a view.
        unsafe { (&raw mut (*self.at(index)).view).write_unaligned(view) };
    }

    /// # Safety
    ///
    /// There is an element `index`, and it points to what the header says, for as long as the call takes.
    unsafe fn get<'a>(&self, index: usize) -> Result<(Arc<qbm_disk>, &'a str)> {
        // SAFETY: the caller's promise is ours.
        let source = unsafe { structs::read_sized(self.at(index), self.size, "sources") }?;
        // SAFETY: the caller's promise: NULL or a handle.
        let disk = unsafe { source.disk.as_ref() }.ok_or_else(|| null("disk"))?;
        opened(disk)?;
        // SAFETY: the caller's promise: a string.
        let name = unsafe { text(source.bitmap, "bitmap") }?;
        debug_assert!(matches!(disk.kind, Kind::Disk(_)));
        // SAFETY: a handle is from `Arc::into_raw`, and not closed before the call returns.
        let disk = unsafe {
            Arc::increment_strong_count(source.disk);
            Arc::from_raw(source.disk)
        };
        Ok((disk, name))
    }
}

/// # Safety
///
/// The pointers of `options` are NULL or strings.
unsafe fn scratch(options: qbm_backup_begin_options) -> Result<Scratch> {
    no_flags(options.flags)?;
    let scratch = if options.scratch_folder.is_null() {
        Scratch::default()
    } else {
        // SAFETY: the caller's promise is ours.
        let folder = unsafe { string(options.scratch_folder, "options.scratch_folder") }?;
        Scratch::new(OsStr::from_bytes(folder.to_bytes()))
    };
    let scratch = scratch.when_full(when_full(options.on_scratch_full, options.max_delay_ms)?);
    Ok(match options.scratch_limit {
        0 => scratch,
        bytes => scratch.limit(bytes),
    })
}

pub(super) fn when_full(number: u32, max_delay_ms: u64) -> Result<ScratchFull> {
    use qbm_on_scratch_full as Choice;
    const MAX_DELAY_MS: u64 = 10_000;
    if number == Choice::QBM_ON_SCRATCH_FULL_DELAY_GUEST as u32 {
        let at_most = match max_delay_ms {
            0 => MAX_DELAY_MS,
            given => given,
        };
        let at_most = Duration::from_millis(at_most);
        return Ok(ScratchFull::DelayGuest { at_most });
    }
    if number != Choice::QBM_ON_SCRATCH_FULL_FAIL_BACKUP as u32 {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("options: on_scratch_full {number} is not one of QBM_ON_SCRATCH_FULL_..."),
        ));
    }
    if max_delay_ms != 0 {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            "options: max_delay_ms is set, and on_scratch_full says that no write is delayed",
        ));
    }
    Ok(ScratchFull::FailBackup)
}

//! Backups of one disk in a folder.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::ops::ControlFlow;

use super::backup_views::when_full;
use super::bitmap_arguments::no_flags;
use super::bitmap_facts::{Block, room_for};
use super::boundary::{null, on_disk, optional_text, text};
use super::commit::qbm_progress;
use super::life::path_from;
use super::qbm_disk;
use super::structs::{self, Extensible, Plain};
use crate::Granularity;
use crate::backup::{Backup, BackupFolder, BackupKind, BackupPoint, Finished};
use crate::error::{Error, ErrorCode, Result};

/// Of qbm_backup(): a full backup, whatever the bitmap says.
pub const QBM_BACKUP_FULL: u32 = 1;
/// Of qbm_backup(): the disk is the one that the folder's backups are of,
/// though it has another path now.
pub const QBM_BACKUP_MOVED: u32 = 2;

/// What a backup stores.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_backup_kind {
    /// The whole disk.
    QBM_BACKUP_KIND_FULL = 1,
    /// What has changed since another backup.
    QBM_BACKUP_KIND_INCREMENTAL = 2,
}

/// Options of qbm_backup(). Set struct_size to sizeof(struct
/// qbm_backup_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_backup_options {
    /// sizeof(struct qbm_backup_options).
    pub struct_size: usize,
    /// QBM_BACKUP_...; a flag that is not known is -EINVAL.
    pub flags: u32,
    /// One of enum qbm_on_scratch_full.
    pub on_scratch_full: u32,
    /// The backup to stand on in place of the newest one: its name, the
    /// beginning of it, or "latest". What those since have is copied again.
    /// NULL: the newest one.
    pub since: *const c_char,
    /// The granularity of the bitmap, where it has to be added. Zero: 65536.
    pub granularity: u64,
    /// The most bytes that are copied in a second. Zero: no limit.
    pub rate_limit: u64,
    /// The most bytes that guests overwrite meanwhile and that are kept in the
    /// folder, of what is not copied yet. Zero: 1 GiB.
    pub scratch_limit: u64,
    /// With QBM_ON_SCRATCH_FULL_DELAY_GUEST: how long one write waits at most,
    /// in milliseconds. Zero: 10 seconds.
    pub max_delay_ms: u64,
    /// Hears how far it is; may be NULL. It may use the disk, and write to it.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

/// What qbm_backup() has made. All of its strings are in one block of memory.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_backup_result {
    /// sizeof(struct qbm_backup_result).
    pub struct_size: usize,
    /// What the caller frees with qbm_free() when done with the strings.
    pub memory: *mut c_void,
    /// Its name in the folder, which is when it was begun, and its number
    /// there: 20261123T141339Z-7.
    pub name: *const c_char,
    /// The backup that it stands on; NULL of a full one.
    pub parent: *const c_char,
    /// Why it is a full one, or larger than it had to be; "" where there is
    /// nothing to tell.
    pub reason: *const c_char,
    /// Why the bitmap could not be told: the backup is there, and the next one
    /// only larger. NULL as a rule.
    pub not_thawed: *const c_char,
    /// The disk's length in bytes.
    pub length: u64,
    /// How many bytes are stored; zeros are not.
    pub stored: u64,
    /// One of enum qbm_backup_kind.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers, nullable pointers and nullable functions after it.
unsafe impl Plain for qbm_backup_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_backup_options {}
// SAFETY: as above.
unsafe impl Plain for qbm_backup_result {}
// SAFETY: as above.
unsafe impl Extensible for qbm_backup_result {}

/// Makes one backup of a disk that is open for writing, in a folder of its
/// backups, which is made where it does not exist: a full one the first time,
/// and what bitmap says has changed after that. A disk that has no such bitmap
/// gets it. Runs on the calling thread; the guest may write meanwhile. The
/// library opens the folder itself, not by open_file.
///
/// options: NULL is the defaults. result: NULL, or its struct_size is set by the
/// caller; as many fields as that covers are filled in; without room for memory
/// there are no strings, and nothing is to be freed.
///
/// Returns 0: the backup is durable, and the bitmap knows. Otherwise the folder
/// is as it was, and the bitmap has all bits; after a full one that failed, the
/// next is full too. Where the system fails at the very last step, the message
/// says that the backup may be there; then the next one makes sure that it stays,
/// and stands on it.
/// -EINVAL: the folder has the backups of another disk, or of another bitmap that
/// the disk has too, and QBM_BACKUP_FULL is not set; QBM_ERROR_BITMAP_STATE: the
/// bitmap is disabled. -EBUSY: the bitmap is frozen, or a backup of the disk is
/// under way, or the bitmap is changed again and again while the backup begins;
/// QBM_ERROR_LOCKED: somebody else changes the folder, or has removed the file of
/// its lock. -ENOENT: since. -ECANCELED: progress ended it. -ENOSPC: the folder is
/// full, or guests have overwritten more than scratch_limit. -EROFS,
/// -EIO ... Any thread.
///
/// # Safety
///
/// `disk` is a handle; `bitmap` and `folder` are strings; `options` and `result` are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup(
    disk: *mut qbm_disk,
    bitmap: *const c_char,
    folder: *const c_char,
    options: *const qbm_backup_options,
    result: *mut qbm_backup_result,
) -> c_int {
    let run = |disk: &crate::Disk| {
        // SAFETY: the caller's promises: strings, and NULL or structs as long as their first fields say.
        let (bitmap, folder, options) = unsafe {
            (
                text(bitmap, "bitmap")?,
                path_from(folder).map_err(|_| null("folder"))?,
                structs::read(options, "options")?,
            )
        };
        // SAFETY: as above.
        let backup = unsafe { configured(bitmap, &options) }?;
        // SAFETY: as above. Before anything is made, as there would be nobody to tell of it.
        unsafe { check_room(result) }?;
        let mut folder = BackupFolder::open_or_create(folder)?;
        let finished = backup.run(disk, &mut folder, &mut |done, total| {
            let Some(progress) = options.progress else {
                return ControlFlow::Continue(());
            };
            // SAFETY: the caller gave this function for this purpose.
            match unsafe { progress(options.progress_opaque, done, total) } {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        let finished = match finished {
            Ok(finished) => finished,
            Err(error) => {
                folder.remove_if_new();
                return Err(error);
            }
        };
        if result.is_null() {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { fill(result, &finished) }
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { on_disk(disk, run) }
}

/// One of enum qbm_backup_kind.
pub(super) fn kind_of(point: &BackupPoint) -> u32 {
    let kind = match point.kind() {
        BackupKind::Full => qbm_backup_kind::QBM_BACKUP_KIND_FULL,
        BackupKind::Incremental => qbm_backup_kind::QBM_BACKUP_KIND_INCREMENTAL,
    };
    kind as u32
}

/// # Safety
///
/// The pointers of `options` are NULL or strings.
unsafe fn configured(bitmap: &str, options: &qbm_backup_options) -> Result<Backup> {
    no_flags(options.flags & !(QBM_BACKUP_FULL | QBM_BACKUP_MOVED))?;
    let mut backup = Backup::new(bitmap)
        .full(options.flags & QBM_BACKUP_FULL != 0)
        .moved(options.flags & QBM_BACKUP_MOVED != 0)
        .scratch_full(when_full(options.on_scratch_full, options.max_delay_ms)?);
    // SAFETY: the caller's promise is ours.
    if let Some(since) = unsafe { optional_text(options.since, "options.since") }? {
        backup = backup.since(since);
    }
    if options.granularity != 0 {
        let granularity = Granularity::new(options.granularity).ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "options: granularity {} is not a power of two from 512 to 2147483648",
                    options.granularity
                ),
            )
        })?;
        backup = backup.granularity(granularity);
    }
    if options.rate_limit != 0 {
        backup = backup.limit(options.rate_limit);
    }
    if options.scratch_limit != 0 {
        backup = backup.scratch_limit(options.scratch_limit);
    }
    Ok(backup)
}

/// # Safety
///
/// `result` is NULL or begins with its size.
unsafe fn check_room(result: *mut qbm_backup_result) -> Result<()> {
    if result.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise is ours.
    structs::check_size(unsafe { result.cast::<usize>().read_unaligned() }, "result")
}

/// # Safety
///
/// `result` is a struct as long as its first field says.
unsafe fn fill(result: *mut qbm_backup_result, finished: &Finished) -> Result<()> {
    let point = &finished.point;
    let optional = [&point.parent, &finished.not_thawed];
    let room = [&point.name, &point.reason]
        .into_iter()
        .chain(optional.into_iter().flatten());
    let mut strings = Block::new(room.map(|text| room_for(text)).sum())?;
    let value = qbm_backup_result {
        struct_size: size_of::<qbm_backup_result>(),
        memory: strings.start,
        name: strings.put(Some(&point.name)),
        parent: strings.put(point.parent.as_deref()),
        reason: strings.put(Some(&point.reason)),
        not_thawed: strings.put(finished.not_thawed.as_deref()),
        length: point.length,
        stored: point.stored,
        kind: kind_of(point),
        reserved: 0,
    };
    // SAFETY: the caller's promise is ours.
    let written = unsafe { structs::write(result, &value, "result") };
    let room = offset_of!(qbm_backup_result, memory) + size_of::<*mut c_void>();
    if !written.as_ref().is_ok_and(|bytes| *bytes >= room) {
        strings.free();
    }
    written.map(drop)
}

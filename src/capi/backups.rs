//! Folders of backups: what is in them, whether it is sound, the way back, and letting old ones go.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::time::Duration;

use super::backup::kind_of;
use super::bitmap_arguments::no_flags;
use super::bitmap_facts::{Block, room_for};
use super::boundary::{call, null, optional_text, put};
use super::commit::{qbm_progress, reported};
use super::life::path_from;
use super::structs::{self, Extensible, Plain, check_reserved, check_size};
use crate::backup::{BackupFolder, BackupPoint, Keep, Restore, RestoreFormat, Verified};
use crate::error::{Error, ErrorCode, Result};

/// Of qbm_backup_prune(): says what would go, and changes nothing.
pub const QBM_PRUNE_DRY_RUN: u32 = 1;

/// What a backup is restored as.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_restore_format {
    /// A raw image, or a block device that exists.
    QBM_RESTORE_RAW = 0,
    /// A QBM disk: a descriptor, and a raw image beside it. One that exists
    /// keeps its bitmaps, which record what the restore changes.
    QBM_RESTORE_QBM = 1,
    /// A qcow2 by itself. One that exists keeps its clusters, and its backing.
    QBM_RESTORE_QCOW2 = 2,
}

/// Facts about one backup in a folder, from qbm_backup_list(). All of its
/// strings are in the list's block of memory.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_backup_facts {
    /// sizeof(struct qbm_backup_facts).
    pub struct_size: usize,
    /// Its name.
    pub name: *const c_char,
    /// Why its record cannot be read, in words; then it has a name, and nothing
    /// else. NULL as a rule.
    pub error: *const c_char,
    /// When it was begun, in UTC: 2026-11-23T14:13:39Z.
    pub time: *const c_char,
    /// The backup that it stands on; NULL of a full one.
    pub parent: *const c_char,
    /// The descriptor of the disk that was backed up.
    pub source: *const c_char,
    /// The bitmap that said what had changed.
    pub bitmap: *const c_char,
    /// Why it is a full one, or larger than it had to be; "" where there is
    /// nothing to tell.
    pub reason: *const c_char,
    /// Its place in the order in which they were made.
    pub sequence: u64,
    /// The disk's length in bytes.
    pub length: u64,
    /// How many bytes are stored; zeros are not.
    pub stored: u64,
    /// One of enum qbm_backup_kind.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// Hears of one backup that qbm_backup_verify() has looked at: code is 0 and
/// message NULL where it can be restored as it was; else code is one of enum
/// qbm_error, and message says why not. The strings are valid during the call
/// only, which must not call the library.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type qbm_verified = Option<
    unsafe extern "C" fn(opaque: *mut c_void, name: *const c_char, code: c_int, message: *const c_char),
>;

/// Options of qbm_backup_verify(). Set struct_size to sizeof(struct
/// qbm_verify_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_verify_options {
    /// sizeof(struct qbm_verify_options).
    pub struct_size: usize,
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Hears of each backup, at the end, on the caller's thread; may be NULL.
    pub verified: qbm_verified,
    /// The first argument of verified.
    pub verified_opaque: *mut c_void,
    /// Hears how far it is; may be NULL.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

/// How many backups qbm_backup_verify() has looked at.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_verify_result {
    /// sizeof(struct qbm_verify_result).
    pub struct_size: usize,
    /// Those that can be restored as they were.
    pub sound: u64,
    /// Those that cannot.
    pub damaged: u64,
}

/// Options of qbm_restore(). Set struct_size to sizeof(struct
/// qbm_restore_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_restore_options {
    /// sizeof(struct qbm_restore_options).
    pub struct_size: usize,
    /// Zero.
    pub flags: u32,
    /// One of enum qbm_restore_format.
    pub format: u32,
    /// The most bytes that are written in a second. Zero: no limit.
    pub rate_limit: u64,
    /// Hears how far it is; may be NULL.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

/// What qbm_restore() did.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_restore_result {
    /// sizeof(struct qbm_restore_result).
    pub struct_size: usize,
    /// The length of what was restored, in bytes.
    pub length: u64,
    /// How many bytes had to be written, zeros included.
    pub written: u64,
}

/// Hears of one backup that qbm_backup_prune() has removed, with removed 1; or
/// that has taken over what it needs of those, with removed 0, and parent the
/// backup that it stands on now, NULL where it is a full one now. The strings
/// are valid during the call only, which must not call the library.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type qbm_pruned = Option<
    unsafe extern "C" fn(opaque: *mut c_void, name: *const c_char, removed: c_int, parent: *const c_char),
>;

/// Options of qbm_backup_prune(): the rules by which backups stay. Set
/// struct_size to sizeof(struct qbm_prune_options) and all that you do not use
/// to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_prune_options {
    /// sizeof(struct qbm_prune_options).
    pub struct_size: usize,
    /// QBM_PRUNE_...; a flag that is not known is -EINVAL.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// So many of the newest stay.
    pub keep_last: u64,
    /// The newest of each of the last so many days that have one stays; of
    /// weeks, from Monday; and of months; all in UTC.
    pub keep_daily: u64,
    /// See keep_daily.
    pub keep_weekly: u64,
    /// See keep_daily.
    pub keep_monthly: u64,
    /// All stay that are no older than so many seconds, counted from the newest
    /// backup, not from now. Zero: no such rule.
    pub keep_within: u64,
    /// Hears of each backup that is another than before, at the end, on the
    /// caller's thread; may be NULL.
    pub pruned: qbm_pruned,
    /// The first argument of pruned.
    pub pruned_opaque: *mut c_void,
    /// Hears how far it is; may be NULL.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

/// What qbm_backup_prune() did, or would do.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_prune_result {
    /// sizeof(struct qbm_prune_result).
    pub struct_size: usize,
    /// How many backups went.
    pub removed: u64,
    /// How many of those that stay took over what they need of these.
    pub merged: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers, nullable pointers and nullable functions after it.
unsafe impl Plain for qbm_backup_facts {}
// SAFETY: as above.
unsafe impl Extensible for qbm_backup_facts {}
// SAFETY: as above.
unsafe impl Plain for qbm_verify_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_verify_options {}
// SAFETY: as above.
unsafe impl Plain for qbm_verify_result {}
// SAFETY: as above.
unsafe impl Extensible for qbm_verify_result {}
// SAFETY: as above.
unsafe impl Plain for qbm_restore_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_restore_options {}
// SAFETY: as above.
unsafe impl Plain for qbm_restore_result {}
// SAFETY: as above.
unsafe impl Extensible for qbm_restore_result {}
// SAFETY: as above.
unsafe impl Plain for qbm_prune_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_prune_options {}
// SAFETY: as above.
unsafe impl Plain for qbm_prune_result {}
// SAFETY: as above.
unsafe impl Extensible for qbm_prune_result {}

/// section: Folders of backups
/// ---
/// The backups in a folder, from the oldest on; and then those whose record
/// cannot be read. Nothing is changed, and no data read.
///
/// facts_size: sizeof(struct qbm_backup_facts). *list: an array of *count
/// elements of that size, which the caller frees with qbm_free(), strings and
/// all; NULL where there are none. Returns 0. -EINVAL, -ENOMEM; -ENOENT: there
/// is no such folder; -EIO ...; then *list is NULL and *count 0. Any thread.
///
/// # Safety
///
/// `folder` is a string; `list` and `count` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup_list(
    folder: *const c_char,
    facts_size: usize,
    list: *mut *mut qbm_backup_facts,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promise: places for the answer.
        unsafe {
            put(list, std::ptr::null_mut(), "list")?;
            put(count, 0, "count")?;
        }
        check_size(facts_size, "facts_size")?;
        // SAFETY: the caller's promise: a string.
        let folder = unsafe { open(folder) }?;
        let entries: Vec<Entry<'_>> = entries(&folder);
        if entries.is_empty() {
            return Ok(());
        }
        let strings = entries.iter().map(Entry::room).sum();
        let block = Block::list(&entries, facts_size, strings, Entry::convert)?;
        // SAFETY: as above.
        unsafe {
            put(list, block.cast(), "list")?;
            put(count, entries.len(), "count")
        }
    })
}

/// Reads all that is stored in a folder of backups, and compares it with the
/// checksums of when it was made. A backup is sound only where all that it
/// stands on is. Nothing is changed.
///
/// options: NULL is the defaults. *result: its struct_size is set by the caller;
/// as many fields as that covers are filled in; NULL: not wanted.
///
/// Returns 0 when all was looked at, whatever was found. -EINVAL: an option.
/// -ENOENT: there is no such folder. -ECANCELED: progress ended it. -EIO ... Any
/// thread.
///
/// # Safety
///
/// `folder` is a string; the other pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup_verify(
    folder: *const c_char,
    options: *const qbm_verify_options,
    result: *mut qbm_verify_result,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promises: NULL, or structs as long as their first fields say.
        let options = unsafe {
            check_result(result)?;
            structs::read(options, "options")?
        };
        no_flags(options.flags)?;
        check_reserved(options.reserved)?;
        // SAFETY: the caller's promise: a string.
        let folder = unsafe { open(folder) }?;
        // SAFETY: the caller's promise: a function that may be called with that argument.
        let mut progress = unsafe { reported(options.progress, options.progress_opaque) };
        let verified = folder.verify(&mut progress)?;
        let found = verified
            .iter()
            .map(|Verified { name, error }| (name, error.as_ref()));
        let damaged = folder.damaged().iter().map(|(name, error)| (name, Some(error)));
        let found: Vec<_> = found.chain(damaged).collect();
        if let Some(hear) = options.verified {
            for (name, error) in &found {
                let name = words(name);
                let message = error.map(|error| words(error.message()));
                let message = message.as_ref().map_or(std::ptr::null(), |it| it.as_ptr());
                let code = error.map_or(0, |error| error.code() as c_int);
                // SAFETY: the caller gave this function for this purpose; the strings live through the call.
                unsafe { hear(options.verified_opaque, name.as_ptr(), code, message) };
            }
        }
        let damaged = found.iter().filter(|(_, error)| error.is_some()).count() as u64;
        let value = qbm_verify_result {
            struct_size: size_of::<qbm_verify_result>(),
            sound: found.len() as u64 - damaged,
            damaged,
        };
        // SAFETY: as above.
        unsafe { answer(result, &value) }
    })
}

/// Restores a backup to the file that `to` names, which is made where it does
/// not exist. Of all that the backup stands on every byte is compared with its
/// checksum. A new file gets its name when all of it was found good and is
/// durable. One that exists is written only where it differs, and nothing is
/// written if a checksum is wrong; its length becomes the backup's, but for a
/// block device's.
///
/// point: the backup's name, the beginning of it, or "latest"; NULL: the newest
/// one. options: NULL is the defaults: a raw image. *result: its struct_size is
/// set by the caller; as many fields as that covers are filled in; NULL: not
/// wanted.
///
/// Returns 0: it is durable. Otherwise there is no new file; one that existed
/// may be part old and part new, and the same call again does the rest. -EINVAL:
/// an option; a qcow2 of a length that is no multiple of 512;
/// QBM_ERROR_FILE_INVALID: something is damaged. -ENOENT: the folder, or the
/// backup. -EBUSY (QBM_ERROR_LOCKED): somebody uses the file. -ECANCELED:
/// progress ended it. -ENOSPC, -EROFS, -EIO ... Any thread.
///
/// # Safety
///
/// `folder` and `to` are strings; the other pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_restore(
    folder: *const c_char,
    point: *const c_char,
    to: *const c_char,
    options: *const qbm_restore_options,
    result: *mut qbm_restore_result,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promises: strings, and NULL or structs as long as their first fields say.
        let (point, to, options) = unsafe {
            check_result(result)?;
            (
                optional_text(point, "point")?,
                path_from(to).map_err(|_| null("to"))?,
                structs::read(options, "options")?,
            )
        };
        no_flags(options.flags)?;
        let mut restore = Restore::new().format(format_of(options.format)?);
        if options.rate_limit != 0 {
            restore = restore.limit(options.rate_limit);
        }
        // SAFETY: as above.
        let folder = unsafe { open(folder) }?;
        let point = folder.find(point.unwrap_or("latest"))?;
        // SAFETY: the caller's promise: a function that may be called with that argument.
        let mut progress = unsafe { reported(options.progress, options.progress_opaque) };
        let restored = restore.run(&folder, point, to, &mut progress)?;
        let value = qbm_restore_result {
            struct_size: size_of::<qbm_restore_result>(),
            length: restored.length,
            written: restored.written,
        };
        // SAFETY: as above.
        unsafe { answer(result, &value) }
    })
}

/// Removes backups from a folder: those that no rule keeps. The newest one
/// always stays. One that stays and stands on one that goes takes over what it
/// needs of it first; for that there must be room, for a time.
///
/// options: at least one rule. *result: its struct_size is set by the caller; as
/// many fields as that covers are filled in; NULL: not wanted.
///
/// Returns 0: it is durable. Otherwise every backup that was not to go is there,
/// and maybe some that were; the same call again does the rest. -EINVAL: an
/// option, or no rule; QBM_ERROR_FILE_INVALID: something is damaged that a
/// backup would have to take over, or a record, and nothing is removed. -ENOENT:
/// there is no such folder. -EBUSY (QBM_ERROR_LOCKED): a backup or a prune is at
/// work in it. -ECANCELED: progress ended it. -ENOSPC, -EROFS, -EIO ... Any
/// thread.
///
/// # Safety
///
/// `folder` is a string; the other pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_backup_prune(
    folder: *const c_char,
    options: *const qbm_prune_options,
    result: *mut qbm_prune_result,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promises: NULL, or structs as long as their first fields say.
        let options = unsafe {
            check_result(result)?;
            structs::read(options, "options")?
        };
        no_flags(options.flags & !QBM_PRUNE_DRY_RUN)?;
        check_reserved(options.reserved)?;
        let keep = rules(&options);
        // SAFETY: the caller's promise: a string.
        let mut folder = unsafe { open(folder) }?;
        // SAFETY: the caller's promise: a function that may be called with that argument.
        let mut progress = unsafe { reported(options.progress, options.progress_opaque) };
        let pruned = if options.flags & QBM_PRUNE_DRY_RUN != 0 {
            folder.would_prune(&keep)?
        } else {
            folder.prune(&keep, &mut progress)?
        };
        if let Some(hear) = options.pruned {
            let merged = pruned.merged.iter().map(|it| (&it.name, 0, it.parent.as_deref()));
            let removed = pruned.removed.iter().map(|name| (name, 1, None));
            for (name, removed, parent) in merged.chain(removed) {
                let (name, parent) = (words(name), parent.map(words));
                let parent = parent.as_ref().map_or(std::ptr::null(), |it| it.as_ptr());
                // SAFETY: the caller gave this function for this purpose; the strings live through the call.
                unsafe { hear(options.pruned_opaque, name.as_ptr(), removed, parent) };
            }
        }
        let value = qbm_prune_result {
            struct_size: size_of::<qbm_prune_result>(),
            removed: pruned.removed.len() as u64,
            merged: pruned.merged.len() as u64,
        };
        // SAFETY: as above.
        unsafe { answer(result, &value) }
    })
}

/// # Safety
///
/// `folder` is NULL or a string.
unsafe fn open(folder: *const c_char) -> Result<BackupFolder> {
    // SAFETY: the caller's promise is ours.
    BackupFolder::open(unsafe { path_from(folder) }.map_err(|_| null("folder"))?)
}

/// A string for C.
fn words(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// Before anything is done, as there would be nobody to tell of it.
///
/// # Safety
///
/// `result` is NULL or begins with its size.
unsafe fn check_result<T: Extensible>(result: *mut T) -> Result<()> {
    if result.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise is ours.
    check_size(unsafe { result.cast::<usize>().read_unaligned() }, "result")
}

/// # Safety
///
/// `result` is NULL or a struct as long as its first field says.
unsafe fn answer<T: Extensible>(result: *mut T, value: &T) -> Result<()> {
    if result.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise is ours.
    unsafe { structs::write(result, value, "result") }.map(drop)
}

fn format_of(number: u32) -> Result<RestoreFormat> {
    let known = [
        (qbm_restore_format::QBM_RESTORE_RAW as u32, RestoreFormat::Raw),
        (qbm_restore_format::QBM_RESTORE_QBM as u32, RestoreFormat::Qbm),
        (qbm_restore_format::QBM_RESTORE_QCOW2 as u32, RestoreFormat::Qcow2),
    ];
    known
        .into_iter()
        .find(|(known, _)| *known == number)
        .map(|(_, format)| format)
        .ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("options: format {number} is not one of QBM_RESTORE_..."),
            )
        })
}

fn rules(options: &qbm_prune_options) -> Keep {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let keep = Keep::new()
        .last(count(options.keep_last))
        .daily(count(options.keep_daily))
        .weekly(count(options.keep_weekly))
        .monthly(count(options.keep_monthly));
    match options.keep_within {
        0 => keep,
        seconds => keep.within(Duration::from_secs(seconds)),
    }
}

/// What the folder has: a backup, or something with the name of one.
enum Entry<'f> {
    Point(&'f BackupPoint),
    Damaged(&'f str, &'f Error),
}

fn entries(folder: &BackupFolder) -> Vec<Entry<'_>> {
    let damaged = folder.damaged().iter();
    let damaged = damaged.map(|(name, error)| Entry::Damaged(name, error));
    folder.points().iter().map(Entry::Point).chain(damaged).collect()
}

impl Entry<'_> {
    /// The bytes that its strings take as C has them.
    fn room(&self) -> usize {
        match self {
            Self::Point(point) => [
                &point.name,
                &point.time,
                &point.source,
                &point.bitmap,
                &point.reason,
            ]
            .into_iter()
            .chain(&point.parent)
            .map(|text| room_for(text))
            .sum(),
            Self::Damaged(name, error) => room_for(name) + room_for(error.message()),
        }
    }

    fn convert(&self, strings: &mut Block) -> qbm_backup_facts {
        let none = qbm_backup_facts {
            struct_size: size_of::<qbm_backup_facts>(),
            name: std::ptr::null(),
            error: std::ptr::null(),
            time: std::ptr::null(),
            parent: std::ptr::null(),
            source: std::ptr::null(),
            bitmap: std::ptr::null(),
            reason: std::ptr::null(),
            sequence: 0,
            length: 0,
            stored: 0,
            kind: 0,
            reserved: 0,
        };
        match self {
            Self::Point(point) => qbm_backup_facts {
                name: strings.put(Some(&point.name)),
                time: strings.put(Some(&point.time)),
                parent: strings.put(point.parent.as_deref()),
                source: strings.put(Some(&point.source)),
                bitmap: strings.put(Some(&point.bitmap)),
                reason: strings.put(Some(&point.reason)),
                sequence: point.sequence,
                length: point.length,
                stored: point.stored,
                kind: kind_of(point),
                ..none
            },
            Self::Damaged(name, error) => qbm_backup_facts {
                name: strings.put(Some(name)),
                error: strings.put(Some(error.message())),
                ..none
            },
        }
    }
}

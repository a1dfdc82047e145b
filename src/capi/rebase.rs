//! Putting a disk on another backing image.

use std::ffi::{c_char, c_int, c_void};

use super::boundary::{optional_text, to_change};
use super::commit::{qbm_progress, reported};
use super::life::unknown_flags;
use super::qbm_disk;
use super::structs::{self, Extensible, Plain};
use crate::BackingFlags;
use crate::descriptor::BackingEntry;
use crate::error::{Error, ErrorCode, Result};

/// Of qbm_change_backing(): the new image shows what the old one showed, so no
/// dirty bitmap records the change. The caller's promise.
pub const QBM_BACKING_UNCHANGED: u32 = 1;

const _: () = assert!(QBM_BACKING_UNCHANGED == BackingFlags::UNCHANGED.bits());

/// Options of qbm_rebase(). Set struct_size to sizeof(struct
/// qbm_rebase_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_rebase_options {
    /// sizeof(struct qbm_rebase_options).
    pub struct_size: usize,
    /// Zero; no flags are defined yet.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Hears how far it is; may be NULL.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers, nullable pointers and nullable functions after it.
unsafe impl Plain for qbm_rebase_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_rebase_options {}

/// Puts the disk on another backing image, or on none, so that it shows what it
/// showed before, also after a crash in the middle: what the two images differ
/// in is copied into the disk's own image first. On none, that is all that the
/// backing has (QEMU calls it streaming); on an image that is deeper in the
/// disk's own chain, what the images above that one have. What reads as zeros
/// from both is not copied, and holes stay holes. No dirty bitmap records
/// anything. Requests go on meanwhile, but for a moment at the end; truncating,
/// bitmap changes and qbm_chain_info() of layer 0 wait until it is over.
///
/// backing_file: goes into the descriptor as it is (UTF-8); a relative name is
/// relative to the descriptor's folder. NULL or "": none. backing_format: what
/// it is, "raw", "qbm", "qcow2" or "vmdk"; it is never guessed. NULL with no
/// file. The image may be longer or shorter than the old one. It and all below
/// it are opened for reading, with open_file if the disk was opened with that.
/// options: NULL is the defaults.
///
/// Returns 0; all is durable then. After an error the disk is on the image that
/// it was on; what was copied up takes room, and is found there when it is tried
/// again. -ECANCELED: progress ended it. -ENOTSUP: the disk has no allocation
/// bitmap, or was opened without its backing; a format that cannot be a backing.
/// -EINVAL: the chain would lead back to the disk, or a file be in it twice.
/// -EBUSY: a backup is under way, or another process writes to the image. -ENOENT,
/// -EACCES: the image does not open. -EROFS, -ENOSPC, -EIO ... Any thread.
///
/// # Safety
///
/// `disk` is a handle; the pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_rebase(
    disk: *mut qbm_disk,
    backing_file: *const c_char,
    backing_format: *const c_char,
    options: *const qbm_rebase_options,
) -> c_int {
    let rebase = |disk: &crate::Disk| {
        // SAFETY: the caller's promise: NULL, or a struct as long as its first field says.
        let options = unsafe { structs::read(options, "options") }?;
        if options.flags != 0 {
            return Err(unknown_flags(options.flags));
        }
        structs::check_reserved(options.reserved)?;
        // SAFETY: the caller's promise: NULL or strings.
        let backing = unsafe { backing(backing_file, backing_format) }?;
        // SAFETY: the caller's promise: a function for this purpose.
        let mut progress = unsafe { reported(options.progress, options.progress_opaque) };
        disk.rebase(backing, &mut progress)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, rebase) }
}

/// Puts the disk on another backing image, or on none, by the name alone: no
/// byte is copied, and what is not in the disk's own image reads as the new
/// image, or as zeros, from now on. qbm_rebase() keeps the content instead.
/// Waits for requests in flight.
///
/// backing_file and backing_format: as for qbm_rebase(). The image and all below
/// it must open; where the disk was opened with QBM_OPEN_NO_BACKING, they are
/// tried out and closed again, and reading what is there stays an error.
///
/// flags: QBM_BACKING_UNCHANGED. Without it, what may read otherwise now is
/// dirty in every bitmap that records: all that is not in the disk's own image,
/// as far as either backing goes; nothing where the chain is made of the same
/// files under other names.
///
/// Returns 0; it is durable then. Fails as qbm_rebase() does, and has changed
/// nothing then, unless it says that a power cut may leave the old descriptor or
/// the new one. Any thread.
///
/// # Safety
///
/// `disk` is a handle; the pointers are NULL or strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_change_backing(
    disk: *mut qbm_disk,
    backing_file: *const c_char,
    backing_format: *const c_char,
    flags: u32,
) -> c_int {
    let change = |disk: &crate::Disk| {
        let flags = BackingFlags::from_bits(flags).ok_or_else(|| unknown_flags(flags))?;
        // SAFETY: the caller's promise: NULL or strings.
        let backing = unsafe { backing(backing_file, backing_format) }?;
        disk.change_backing(backing, flags)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, change) }
}

/// A backing image from C; none without a name.
///
/// # Safety
///
/// Each is NULL or a string.
unsafe fn backing(file: *const c_char, format: *const c_char) -> Result<Option<BackingEntry>> {
    // SAFETY: the caller's promise is ours.
    let file = unsafe { optional_text(file, "backing_file") }?.filter(|name| !name.is_empty());
    // SAFETY: as above.
    let format = unsafe { optional_text(format, "backing_format") }?;
    match (file, format) {
        (None, None) => Ok(None),
        (Some(file), Some(format)) => Ok(Some(BackingEntry {
            file: file.to_owned(),
            format: format.parse().map_err(|e: Error| {
                Error::new(e.code(), format!("backing_format {format:?} {}", e.message()))
            })?,
        })),
        (Some(_), None) => Err(Error::new(
            ErrorCode::InvalidArgument,
            "backing_format is not set, and a format is never guessed",
        )),
        (None, Some(_)) => Err(Error::new(
            ErrorCode::InvalidArgument,
            "backing_format is set, and there is no backing_file",
        )),
    }
}

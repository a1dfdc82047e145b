//! Taking an external snapshot.

use std::ffi::{c_char, c_int};

use super::boundary::{text, to_change};
use super::life::{granularity, unknown_flags};
use super::qbm_disk;
use super::structs::{self, Extensible, Plain};

/// Options of qbm_snapshot(). Set struct_size to sizeof(struct
/// qbm_snapshot_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_snapshot_options {
    /// sizeof(struct qbm_snapshot_options).
    pub struct_size: usize,
    /// Zero; no flags are defined yet.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The unit in which the disk takes things from now on: a power of two from
    /// 512 to 2147483648 bytes. 0: as before, or 65536.
    pub granularity: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers after it.
unsafe impl Plain for qbm_snapshot_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_snapshot_options {}

/// Keeps the disk as it is now under another name, and goes on in a new image
/// above it. name: a file to be made in the descriptor's folder, without any
/// folder in it: a descriptor of the image that was the disk's and of what is
/// below it, to be opened read-only. The disk's own descriptor keeps its name,
/// its dirty bitmaps, none of which records anything, and its state file; it
/// names a new image, with an allocation bitmap over the snapshot.
///
/// Requests go on, but for a moment in which all that was written is made
/// durable: each comes whole before the snapshot or whole behind it. Nobody may
/// write to the old image from now on; it is locked against that while the disk
/// is open. qbm_commit() puts into the snapshot what came behind it, and
/// qbm_rebase() leaves it. options: NULL is the defaults.
///
/// Returns 0; all is durable then. After an error the disk is as it was, unless
/// the error says that a power cut may leave the old descriptor or the new one.
/// A crash in the middle leaves the old disk or the new one; the old one,
/// maybe, beside a file of that name that nothing uses. -EEXIST: the name is
/// taken. -ENOTSUP: the disk was opened without its backing. -EBUSY: a backup
/// is under way. -EROFS: the disk or its folder is read-only. -EINVAL, -ENOSPC,
/// -EIO ... Any thread.
///
/// # Safety
///
/// `disk` is a handle; `name` is NULL or a string; `options` is NULL or points to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_snapshot(
    disk: *mut qbm_disk,
    name: *const c_char,
    options: *const qbm_snapshot_options,
) -> c_int {
    let snapshot = |disk: &crate::Disk| {
        // SAFETY: the caller's promise: NULL, or a struct as long as its first field says.
        let options = unsafe { structs::read(options, "options") }?;
        if options.flags != 0 {
            return Err(unknown_flags(options.flags));
        }
        structs::check_reserved(options.reserved)?;
        // SAFETY: the caller's promise: NULL or a string.
        let name = unsafe { text(name, "name") }?;
        let unit = match options.granularity {
            0 => None,
            bytes => Some(granularity(bytes)?),
        };
        disk.snapshot(name, unit)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, snapshot) }
}

//! Dirty bitmaps: what they are, and their life.

use std::ffi::{c_char, c_int};

use super::bitmap_arguments::{add_options, no_flags, on_bitmap};
use super::boundary::{optional_text, text, to_change};
use super::qbm_disk;
use super::structs::{Extensible, Plain};
use crate::{BitmapPolicy, Disk};

/// In qbm_bitmap_options.flags: no file; the bitmap ends with the open disk.
pub const QBM_BITMAP_ADD_TRANSIENT: u32 = 1;
/// In qbm_bitmap_options.flags: writes do not set its bits until it is enabled.
pub const QBM_BITMAP_ADD_DISABLED: u32 = 2;

/// When the bits that writes set get into the files of persistent bitmaps.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_bitmap_policy {
    /// Before the write itself: the bits survive the end of the process.
    QBM_BITMAP_POLICY_WRITE_THROUGH = 0,
    /// With qbm_bitmap_sync() and qbm_close(). A process that ends in another
    /// way leaves files that miss changes.
    QBM_BITMAP_POLICY_LAZY = 1,
}

const _: () = {
    assert!(qbm_bitmap_policy::QBM_BITMAP_POLICY_WRITE_THROUGH as i32 == BitmapPolicy::WriteThrough as i32);
    assert!(qbm_bitmap_policy::QBM_BITMAP_POLICY_LAZY as i32 == BitmapPolicy::Lazy as i32);
};

/// What a new bitmap is to be. Set struct_size to sizeof(struct
/// qbm_bitmap_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_bitmap_options {
    /// sizeof(struct qbm_bitmap_options).
    pub struct_size: usize,
    /// QBM_BITMAP_ADD_... Zero: persistent and recording.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The bytes that one bit stands for: a power of two from 512 to 2 GiB.
    /// Zero: 65536.
    pub granularity: u64,
}

// SAFETY: `repr(C)`, and integers only.
unsafe impl Plain for qbm_bitmap_options {}
// SAFETY: `struct_size` first.
unsafe impl Extensible for qbm_bitmap_options {}

/// section: Bitmaps
///
/// A dirty bitmap has a bit for each granule of the disk (64 KiB unless said
/// otherwise): set where something was written since the bitmap's starting
/// point. A backup copies what is set and nothing else. The rules are QEMU's.
///
/// Flags of a bitmap, each independent of the others:
///
/// - recording: writes set its bits. qbm_bitmap_enable() and _disable().
/// - persistent: it is a file, named by the descriptor. Without it a bitmap is
///   transient and ends with the open disk, as does all that is added to a
///   disk that is open read-only.
/// - busy: frozen for a backup, from qbm_bitmap_freeze() to _thaw(), or from
///   qbm_backup_begin() to qbm_backup_end(), which no thaw ends. Reading
///   shows the frozen bits, while new writes are recorded in a successor.
///   Everything else is -EBUSY (QBM_ERROR_BITMAP_BUSY), merging from it, too.
/// - inconsistent: changes may be missing in it. It may only be removed, or
///   repaired by setting every bit. Everything else is -EUCLEAN
///   (QBM_ERROR_BITMAP_INCONSISTENT), but for qbm_bitmap_info() and _list().
///
/// Bits are set before the write that they are for goes out; a write that then
/// fails leaves them set. QBM_REQ_UNCHANGED writes set none. A resize keeps
/// them; new granules are clean.
///
/// Names are UTF-8, 1 to 1023 bytes. Offsets and lengths are bytes of the
/// disk, any of them; a range that the text does not say to be cut must lie
/// within the disk, else -EINVAL (QBM_ERROR_OUT_OF_RANGE).
///
/// What changes a bitmap happens at one point between writes: it waits for
/// those in flight, and later ones wait for it. It is durable when the call
/// returns 0, and an error leaves all as it was. (Where the system fails in the
/// very last step, the error says that a power cut may leave the old descriptor
/// or the new one, and the disk has failed; epochs tell which it is when it is
/// opened again.) A starting point (add, clear, enable, freeze, thaw with
/// QBM_THAW_COMMIT, reset, deserialize) flushes the disk first: a backup must
/// not drop the bit of a write that a power cut can still take back. For the
/// same reason there is none above a QBM disk whose user was killed and that has
/// not been recovered since (QBM_ERROR_FILE_INVALID), where some of what it
/// shows is not durable.
///
/// Bits that writes set are in the file before the write is, and survive the
/// end of the process; they are durable after qbm_bitmap_sync() or
/// qbm_close(). (With QBM_BITMAP_POLICY_LAZY they are only then in the file.)
/// After a power cut the next open sets all bits of the regions that were being
/// written to, as the files may miss some; see qbm_open().
///
/// Any thread, any number of them at once. Errors of every call: -EINVAL, a
/// NULL pointer, a name that is not UTF-8, a flag that is not known (flags are
/// zero unless the text names some); -ENOENT (QBM_ERROR_BITMAP_NOT_FOUND), no
/// bitmap has the name; -ENOMEM, also beyond max_bitmap_memory of
/// qbm_open_options; -ESTALE in a forked child. Of every call that changes
/// something also: -EROFS, a persistent bitmap of a disk that is open
/// read-only, or a folder where no file can be made (see open_file; setting,
/// merging, freezing and rolling back need none); -EIO, -ENOSPC ..., what the
/// system said; -EIO (QBM_ERROR_FAILED) once the disk has failed.
/// ---
/// Adds a bitmap, all clean. Its starting point is now.
///
/// options: NULL is the defaults: 64 KiB, persistent, recording. Returns 0.
/// -EEXIST (QBM_ERROR_BITMAP_EXISTS): the name is taken. -EINVAL: a name of 0
/// or over 1023 bytes, a granularity. -ENOTSUP: there are 65535 already.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `options` is NULL or a struct as long as its first field says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_add(
    disk: *mut qbm_disk,
    name: *const c_char,
    options: *const qbm_bitmap_options,
) -> c_int {
    // SAFETY: the caller's promises: a handle, a string, and a struct.
    unsafe {
        on_bitmap(disk, name, 0, |disk, name| {
            disk.bitmap_add(name, add_options(options)?)
        })
    }
}

/// Removes a bitmap, whatever its bits say, and its file.
///
/// Returns 0, or -EBUSY.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_remove(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, Disk::bitmap_remove) }
}

/// Makes all granules clean: a new starting point.
///
/// Returns 0, or -EBUSY, -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_clear(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, Disk::bitmap_clear) }
}

/// Lets writes set its bits: a new starting point, as writes may have gone by
/// unseen. Does nothing to a bitmap that records.
///
/// Returns 0, or -EBUSY, -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_enable(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, Disk::bitmap_enable) }
}

/// Lets writes no longer set its bits; those that are set stay.
///
/// Returns 0, or -EBUSY, -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_disable(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, Disk::bitmap_disable) }
}

/// Gives a bitmap another name. Its file keeps its own.
///
/// Returns 0. -EEXIST (QBM_ERROR_BITMAP_EXISTS), -EBUSY, -EUCLEAN. -EINVAL: a
/// new name of 0 or over 1023 bytes.
///
/// # Safety
///
/// `disk` is a handle; `name` and `new_name` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_rename(
    disk: *mut qbm_disk,
    name: *const c_char,
    new_name: *const c_char,
    flags: u32,
) -> c_int {
    let rename = |disk: &Disk, name: &str| {
        // SAFETY: the caller's promise: a string.
        let to = unsafe { text(new_name, "new_name") }?;
        disk.bitmap_rename(name, to)
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, rename) }
}

/// Gives a bitmap a file (persistent is not zero), or takes it away.
///
/// Returns 0, also where it is so already. -EBUSY, -EUCLEAN. -EROFS: the disk
/// is open read-only.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_set_persistent(
    disk: *mut qbm_disk,
    name: *const c_char,
    persistent: c_int,
    flags: u32,
) -> c_int {
    let set = |disk: &Disk, name: &str| disk.bitmap_set_persistent(name, persistent != 0);
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, set) }
}

/// Makes the bits of every write that completed before this call durable, in
/// the file of a bitmap, or with name NULL in those of all. Writes go on
/// meanwhile. There is nothing to do for transient bitmaps, nor on a disk that
/// is open read-only.
///
/// Returns 0, or what the system said; once syncing a file has failed, the
/// disk has failed, as after a failed flush.
///
/// # Safety
///
/// `disk` is a handle; `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_sync(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    let sync = |disk: &Disk| {
        // SAFETY: the caller's promise: NULL or a string.
        let name = unsafe { optional_text(name, "name") }?;
        no_flags(flags)?;
        disk.bitmap_sync(name)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, sync) }
}

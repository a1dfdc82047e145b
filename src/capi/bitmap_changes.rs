//! What changes a bitmap's bits other than by writes, and who has them meanwhile.

use std::ffi::{c_char, c_int};

use super::bitmap_arguments::{handle, merge_source, no_flags, on_bitmap, outcome_from};
use super::boundary::{call, on_disks, text};
use super::qbm_disk;
use crate::{Disk, MergeSource, Thaw};

/// How the backup went that a frozen bitmap was for. None is zero, so that what
/// was never set drops no bits.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_thaw {
    /// It succeeded: the frozen bits go; what was written since the freeze stays.
    QBM_THAW_COMMIT = 1,
    /// It failed: the bitmap has the frozen bits and what was written since.
    QBM_THAW_ROLLBACK = 2,
}

const _: () = {
    assert!(qbm_thaw::QBM_THAW_COMMIT as i32 == Thaw::Commit as i32);
    assert!(qbm_thaw::QBM_THAW_ROLLBACK as i32 == Thaw::Rollback as i32);
};

/// Makes every granule dirty that has one of len bytes from offset on.
///
/// Returns 0, or -EBUSY, -EUCLEAN, -EINVAL (QBM_ERROR_OUT_OF_RANGE).
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_set(
    disk: *mut qbm_disk,
    name: *const c_char,
    offset: u64,
    len: u64,
    flags: u32,
) -> c_int {
    let set = |disk: &Disk, name: &str| disk.bitmap_set(name, offset, len);
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, set) }
}

/// Makes every granule clean that lies wholly in len bytes from offset on; the
/// last granule of the disk may be shorter. If any was dirty, this is a new
/// starting point.
///
/// Returns 0, or -EBUSY, -EUCLEAN, -EINVAL (QBM_ERROR_OUT_OF_RANGE).
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_reset(
    disk: *mut qbm_disk,
    name: *const c_char,
    offset: u64,
    len: u64,
    flags: u32,
) -> c_int {
    let reset = |disk: &Disk, name: &str| disk.bitmap_reset(name, offset, len);
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, reset) }
}

/// Makes everything dirty in target that is dirty in source. The granularities
/// may differ: no dirty byte is lost, clean ones may become dirty.
///
/// source_disk: the disk that has source, as long as disk is; NULL: disk
/// itself. It is not changed, and may be open read-only.
///
/// Returns 0. -EBUSY, -EUCLEAN: of either. -EINVAL: disks of other lengths.
///
/// # Safety
///
/// `disk` is a handle; `source_disk` is NULL or a handle; `target` and `source` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_merge(
    disk: *mut qbm_disk,
    target: *const c_char,
    source_disk: *mut qbm_disk,
    source: *const c_char,
    flags: u32,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promises: handles, and strings.
        let (disk, target, from) = unsafe {
            let disk = handle(disk, "disk")?;
            (
                disk,
                text(target, "target")?,
                merge_source(source_disk, source, "source")?,
            )
        };
        no_flags(flags)?;
        let other = match from {
            MergeSource::Other { disk, .. } => disk,
            _ => disk,
        };
        on_disks(&[disk, other], || disk.bitmap_merge(target, &[from]))
    })
}

/// Hands the bits of a bitmap to a backup. From now on reading shows them as
/// they are, and a successor records new writes, until qbm_bitmap_thaw().
///
/// A disk that is closed, or a process that ends, meanwhile: as rolled back.
/// Returns 0. -EBUSY: it is frozen already. -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_freeze(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, Disk::bitmap_freeze) }
}

/// Ends a freeze.
///
/// outcome: one of enum qbm_thaw. QBM_THAW_COMMIT drops the frozen bits, so the
/// backup must be durable by then, its name in its folder, too.
///
/// Returns 0. -EINVAL: another outcome; QBM_ERROR_BITMAP_STATE: it is not
/// frozen. -EBUSY: it was frozen by qbm_backup_begin() or qbm_backup(), whose
/// backup alone thaws it, when it ends.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_thaw(
    disk: *mut qbm_disk,
    name: *const c_char,
    outcome: c_int,
    flags: u32,
) -> c_int {
    let thaw = |disk: &Disk, name: &str| disk.bitmap_thaw(name, outcome_from(outcome)?);
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, thaw) }
}

/// Makes an inconsistent bitmap one to be trusted again, by making every
/// granule dirty.
///
/// Returns 0. -EINVAL (QBM_ERROR_BITMAP_STATE): it is not inconsistent.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_repair(disk: *mut qbm_disk, name: *const c_char, flags: u32) -> c_int {
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, Disk::bitmap_repair) }
}

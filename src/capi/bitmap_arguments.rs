//! What C hands in about bitmaps, checked and converted.

use std::ffi::{c_char, c_int};

use super::bitmaps::{QBM_BITMAP_ADD_DISABLED, QBM_BITMAP_ADD_TRANSIENT, qbm_bitmap_options};
use super::boundary::{null, on_either, text, to_change};
use super::life::unknown_flags;
use super::view::opened;
use super::{qbm_disk, structs};
use crate::error::{Error, ErrorCode, Result};
use crate::{AddBitmap, BackupView, Disk, Granularity, MergeSource, Thaw};

/// Runs the body of a C function on a bitmap that takes no flags.
///
/// # Safety
///
/// `disk` is NULL or a handle; `name` is NULL or a string.
pub(super) unsafe fn on_bitmap(
    disk: *const qbm_disk,
    name: *const c_char,
    flags: u32,
    body: impl FnOnce(&Disk, &str) -> Result<()>,
) -> c_int {
    let named = |disk: &Disk| {
        // SAFETY: the caller's promise is ours.
        let name = unsafe { text(name, "name") }?;
        no_flags(flags)?;
        body(disk, name)
    };
    // SAFETY: the caller's promise is ours.
    unsafe { to_change(disk, named) }
}

/// Runs the body of a C function that reads a bitmap: of a disk, or the one that a view has, frozen.
///
/// # Safety
///
/// `disk` is NULL or a handle; `name` is NULL or a string.
pub(super) unsafe fn reading(
    disk: *const qbm_disk,
    name: *const c_char,
    body: impl Fn(&Disk, &str) -> Result<()>,
) -> c_int {
    let on_disk = |disk: &Disk| {
        // SAFETY: the caller's promise is ours.
        body(disk, unsafe { text(name, "name") }?)
    };
    let on_view = |view: &BackupView<'_>| {
        // SAFETY: the caller's promise is ours.
        let name = unsafe { text(name, "name") }?;
        if name == view.bitmap() {
            return body(view.disk(), name);
        }
        Err(Error::new(
            ErrorCode::BitmapNotFound,
            format!("the view has the bitmap {:?} alone, not {name:?}", view.bitmap()),
        ))
    };
    // SAFETY: the caller's promise is ours.
    unsafe { on_either(disk, on_disk, on_view) }
}

pub(super) fn no_flags(flags: u32) -> Result<()> {
    if flags == 0 {
        Ok(())
    } else {
        Err(unknown_flags(flags))
    }
}

/// # Safety
///
/// `disk` is NULL or a handle that outlives `'a`.
pub(super) unsafe fn handle<'a>(disk: *const qbm_disk, argument: &str) -> Result<&'a Disk> {
    // SAFETY: the caller's promise is ours.
    let handle = unsafe { disk.as_ref() }.ok_or_else(|| null(argument))?;
    Ok(&opened(handle)?.disk)
}

/// # Safety
///
/// `disk` is NULL or a handle, `name` NULL or a string, and both outlive `'a`.
pub(super) unsafe fn merge_source<'a>(
    disk: *const qbm_disk,
    name: *const c_char,
    argument: &str,
) -> Result<MergeSource<'a>> {
    // SAFETY: the caller's promises are ours.
    let (disk, name) = unsafe { (disk.as_ref(), text(name, argument)?) };
    Ok(match disk {
        Some(other) => MergeSource::Other {
            disk: &opened(other)?.disk,
            name,
        },
        None => MergeSource::Bitmap(name),
    })
}

/// # Safety
///
/// `options` is NULL or a struct as long as its first field says.
pub(super) unsafe fn add_options(options: *const qbm_bitmap_options) -> Result<AddBitmap> {
    // SAFETY: the caller's promise is ours.
    let options = unsafe { structs::read(options, "options") }?;
    let unknown = options.flags & !(QBM_BITMAP_ADD_TRANSIENT | QBM_BITMAP_ADD_DISABLED);
    no_flags(unknown)?;
    structs::check_reserved(options.reserved)?;
    let granularity = match options.granularity {
        0 => Granularity::DEFAULT,
        bytes => Granularity::new(bytes).ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "options: granularity {bytes} is not a power of two from {} to {}",
                    Granularity::MIN.bytes(),
                    Granularity::MAX.bytes()
                ),
            )
        })?,
    };
    Ok(AddBitmap {
        granularity,
        persistent: options.flags & QBM_BITMAP_ADD_TRANSIENT == 0,
        recording: options.flags & QBM_BITMAP_ADD_DISABLED == 0,
    })
}

pub(super) fn outcome_from(number: c_int) -> Result<Thaw> {
    [Thaw::Commit, Thaw::Rollback]
        .into_iter()
        .find(|outcome| *outcome as c_int == number)
        .ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("outcome {number} is not one of QBM_THAW_..."),
            )
        })
}

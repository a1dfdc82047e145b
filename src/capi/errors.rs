//! Version and errors.

use std::ffi::{c_char, c_int, c_void};

use super::boundary::{last_code, last_message};

/// What kind of failure qbm_error_code() tells of. The numbers never change their
/// meaning; new ones may come.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_error {
    /// An argument that no disk could accept: a NULL pointer, an unknown flag, a malformed option.
    QBM_ERROR_INVALID_ARGUMENT = 1,
    /// A range that does not lie within the disk.
    QBM_ERROR_OUT_OF_RANGE = 2,
    /// Memory could not be had, or a limit that the caller set would be exceeded.
    QBM_ERROR_NO_MEMORY = 3,
    /// A system call on one of the disk's files failed; the errno is the system's.
    QBM_ERROR_IO = 4,
    /// A file does not exist.
    QBM_ERROR_FILE_NOT_FOUND = 5,
    /// A file exists already and is never overwritten.
    QBM_ERROR_FILE_EXISTS = 6,
    /// The system denied access to a file.
    QBM_ERROR_PERMISSION_DENIED = 7,
    /// The disk, or its folder, may not be changed.
    QBM_ERROR_READ_ONLY = 8,
    /// The descriptor is not one: malformed, incomplete, or with a value out of its range.
    QBM_ERROR_DESCRIPTOR_INVALID = 9,
    /// A file of the disk does not fit the descriptor: missing bits, wrong kind, used twice.
    QBM_ERROR_FILE_INVALID = 10,
    /// A feature, format or operation that this library or this image cannot do.
    QBM_ERROR_NOT_SUPPORTED = 11,
    /// The disk has failed before and refuses further use until it is reopened.
    QBM_ERROR_FAILED = 12,
    /// The handle was opened by the parent process and is dead in this forked child.
    QBM_ERROR_FORKED = 13,
    /// Another process, or another handle, uses the disk.
    QBM_ERROR_LOCKED = 14,
    /// The caller's callback ended the operation.
    QBM_ERROR_CANCELED = 15,
    /// No bitmap has that name.
    QBM_ERROR_BITMAP_NOT_FOUND = 16,
    /// A bitmap has that name already.
    QBM_ERROR_BITMAP_EXISTS = 17,
    /// The bitmap is frozen: a backup uses it.
    QBM_ERROR_BITMAP_BUSY = 18,
    /// The bitmap can no longer be trusted; it may only be removed or repaired.
    QBM_ERROR_BITMAP_INCONSISTENT = 19,
    /// The bitmap is not in the state that the operation needs.
    QBM_ERROR_BITMAP_STATE = 20,
    /// A struct from a newer header sets a field that this library does not know.
    QBM_ERROR_STRUCT_TOO_LARGE = 21,
}

const _: () = {
    use crate::ErrorCode;
    assert!(qbm_error::QBM_ERROR_INVALID_ARGUMENT as i32 == ErrorCode::InvalidArgument as i32);
    assert!(qbm_error::QBM_ERROR_OUT_OF_RANGE as i32 == ErrorCode::OutOfRange as i32);
    assert!(qbm_error::QBM_ERROR_NO_MEMORY as i32 == ErrorCode::NoMemory as i32);
    assert!(qbm_error::QBM_ERROR_IO as i32 == ErrorCode::Io as i32);
    assert!(qbm_error::QBM_ERROR_FILE_NOT_FOUND as i32 == ErrorCode::FileNotFound as i32);
    assert!(qbm_error::QBM_ERROR_FILE_EXISTS as i32 == ErrorCode::FileExists as i32);
    assert!(qbm_error::QBM_ERROR_PERMISSION_DENIED as i32 == ErrorCode::PermissionDenied as i32);
    assert!(qbm_error::QBM_ERROR_READ_ONLY as i32 == ErrorCode::ReadOnly as i32);
    assert!(qbm_error::QBM_ERROR_DESCRIPTOR_INVALID as i32 == ErrorCode::DescriptorInvalid as i32);
    assert!(qbm_error::QBM_ERROR_FILE_INVALID as i32 == ErrorCode::FileInvalid as i32);
    assert!(qbm_error::QBM_ERROR_NOT_SUPPORTED as i32 == ErrorCode::NotSupported as i32);
    assert!(qbm_error::QBM_ERROR_FAILED as i32 == ErrorCode::Failed as i32);
    assert!(qbm_error::QBM_ERROR_FORKED as i32 == ErrorCode::Forked as i32);
    assert!(qbm_error::QBM_ERROR_LOCKED as i32 == ErrorCode::Locked as i32);
    assert!(qbm_error::QBM_ERROR_CANCELED as i32 == ErrorCode::Canceled as i32);
    assert!(qbm_error::QBM_ERROR_BITMAP_NOT_FOUND as i32 == ErrorCode::BitmapNotFound as i32);
    assert!(qbm_error::QBM_ERROR_BITMAP_EXISTS as i32 == ErrorCode::BitmapExists as i32);
    assert!(qbm_error::QBM_ERROR_BITMAP_BUSY as i32 == ErrorCode::BitmapBusy as i32);
    assert!(qbm_error::QBM_ERROR_BITMAP_INCONSISTENT as i32 == ErrorCode::BitmapInconsistent as i32);
    assert!(qbm_error::QBM_ERROR_BITMAP_STATE as i32 == ErrorCode::BitmapState as i32);
    assert!(qbm_error::QBM_ERROR_STRUCT_TOO_LARGE as i32 == ErrorCode::StructTooLarge as i32);
};

/// section: Version and errors
///
/// Every function that returns int returns 0, or a negative errno where it
/// failed; then nothing was done, unless its text says otherwise. The words
/// that belong to a failure are in qbm_error_message(), and a stable number
/// that is finer than an errno in qbm_error_code(). Nothing is ever printed.
/// ---
/// The version of the library that is running, such as "0.1.0".
///
/// Returns a static string. Any thread, any time.
#[unsafe(no_mangle)]
pub extern "C" fn qbm_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The calling thread's last failure in words: what was tried, on which file,
/// and why it failed.
///
/// Returns a string that is valid until the thread's next call into the
/// library; "" where the thread has met no failure. Never NULL. A call that
/// succeeds leaves it as it is.
#[unsafe(no_mangle)]
pub extern "C" fn qbm_error_message() -> *const c_char {
    last_message()
}

/// The calling thread's last failure as one of enum qbm_error; 0 where the
/// thread has met no failure.
#[unsafe(no_mangle)]
pub extern "C" fn qbm_error_code() -> c_int {
    last_code()
}

/// Frees a string that the library returned for the caller to free.
///
/// NULL is fine. Any thread.
///
/// # Safety
///
/// `memory` is NULL or from a function whose text names this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_free(memory: *mut c_void) {
    // SAFETY: what this library returns for freeing comes from malloc.
    unsafe { libc::free(memory) }
}

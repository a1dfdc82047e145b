//! Long operations on a disk's layers, and the one kind of callback that they report to.

use std::ffi::{c_int, c_void};
use std::ops::ControlFlow;

use super::boundary::to_change;
use super::life::unknown_flags;
use super::qbm_disk;
use super::structs::{self, Extensible, Plain};
use crate::error::{Error, ErrorCode};

/// Hears how far a long operation is: done of total bytes; total may grow.
///
/// Called on the thread that runs the operation, after each piece of work. It
/// must not use the disk. Returns 0 to go on; anything else ends the operation,
/// which then returns -ECANCELED.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type qbm_progress = Option<unsafe extern "C" fn(opaque: *mut c_void, done: u64, total: u64) -> c_int>;

/// Options of qbm_commit(). Set struct_size to sizeof(struct
/// qbm_commit_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_commit_options {
    /// sizeof(struct qbm_commit_options).
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
unsafe impl Plain for qbm_commit_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_commit_options {}

/// Writes all that the disk has in its own image into its backing, and then
/// takes it out of the image, as qbm_make_empty() does. The disk shows what it
/// showed before, also after a crash in the middle. Requests go on meanwhile,
/// but for a moment at the end; truncating, bitmap changes and qbm_chain_info()
/// of layer 0 wait.
///
/// options: NULL is the defaults. The backing is opened for writing (with
/// open_file: asked for again), and grown where it is shorter than the disk;
/// holes stay holes. Nothing else may use it as a backing: after an error, too,
/// it may have some of the bytes.
///
/// Returns 0; all is durable then. -ENOTSUP: there is no backing, or it was not
/// opened. -ECANCELED: progress ended it. -EROFS, -ENOSPC, -EIO ...
///
/// # Safety
///
/// `disk` is a handle; `options` is NULL or points to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_commit(disk: *mut qbm_disk, options: *const qbm_commit_options) -> c_int {
    let commit = |disk: &crate::Disk| {
        // SAFETY: the caller's promise: NULL, or a struct as long as its first field says.
        let options = unsafe { structs::read(options, "options") }?;
        if options.flags != 0 {
            return Err(unknown_flags(options.flags));
        }
        if options.reserved != 0 {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("options: reserved is {:#x}, not zero", options.reserved),
            ));
        }
        disk.commit(&mut |done, total| {
            let Some(progress) = options.progress else {
                return ControlFlow::Continue(());
            };
            // SAFETY: the caller gave this function for this purpose.
            match unsafe { progress(options.progress_opaque, done, total) } {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, commit) }
}

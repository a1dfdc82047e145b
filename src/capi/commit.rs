//! Long operations on a disk's layers, and the one kind of callback that they report to.

use std::ffi::{c_int, c_void};
use std::ops::ControlFlow;

use super::boundary::to_change;
use super::life::unknown_flags;
use super::qbm_disk;
use super::structs::{self, Extensible, Plain};

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
    /// The layer that it goes into, as qbm_chain_info() counts: 1 is the nearest
    /// backing image, and so is zero.
    pub layer: u32,
    /// Hears how far it is; may be NULL.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers, nullable pointers and nullable functions after it.
unsafe impl Plain for qbm_commit_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_commit_options {}

/// Writes all that the disk has above a layer into that layer, the nearest
/// backing image unless options name another, and goes on as an empty overlay
/// on it, as after qbm_make_empty(). The disk shows what it showed before, also
/// after a crash in the middle. Requests go on meanwhile, but for a moment at
/// the end; truncating, bitmap changes and qbm_chain_info() of layer 0 wait
/// until it is over.
///
/// options: NULL is the defaults. The layer's file is opened for writing (with
/// open_file: asked for again), and grown where it is shorter than the disk;
/// holes stay holes. Nothing else may use it as a backing: after an error, too,
/// it may have some of the bytes. Of a deeper layer, those between give what
/// they have and leave the chain: the descriptor names the layer from then on.
/// Their files stay as they are, and what they show as disks of their own
/// changes where they take from the layer. It may be raw, qbm or qcow2; a qcow2
/// whose commit was killed wants "qemu-img check -r all" before it opens again.
///
/// Returns 0; all is durable then. -ENOTSUP: there is no backing, or it was not
/// opened, or it is of a format that cannot be written to. -EINVAL
/// (QBM_ERROR_OUT_OF_RANGE): there is no such layer. -ECANCELED: progress ended
/// it. -EBUSY: another process uses the layer. -EROFS, -ENOSPC, -EIO ... Any
/// thread.
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
        // SAFETY: the caller's promise: a function for this purpose.
        let mut progress = unsafe { reported(options.progress, options.progress_opaque) };
        disk.commit_into(options.layer.max(1), &mut progress)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, commit) }
}

/// What tells a caller's function how far an operation is.
///
/// # Safety
///
/// `progress` is a function that may be called with `opaque` for as long as the result lives.
pub(super) unsafe fn reported(
    progress: qbm_progress,
    opaque: *mut c_void,
) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    move |done, total| {
        let Some(progress) = progress else {
            return ControlFlow::Continue(());
        };
        // SAFETY: the caller's promise.
        match unsafe { progress(opaque, done, total) } {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

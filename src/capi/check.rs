//! Checking and repairing disks that nobody uses.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ops::ControlFlow;

use super::boundary::call;
use super::commit::qbm_progress;
use super::life::{path_from, unknown_flags};
use super::structs::{self, Extensible, Plain};
use crate::error::{Error, ErrorCode};
use crate::{CheckOptions, Repair, Severity};

/// Of qbm_check(): the image is read and compared with the descriptor's
/// checksum.
pub const QBM_CHECK_CHECKSUM: u32 = 1;
/// Of qbm_check(): looks without a lock, at a disk that may be in use; not with
/// a repair.
pub const QBM_CHECK_NO_LOCK: u32 = 2;

/// What qbm_check() may change. No repair takes anything from an image.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_repair {
    /// Nothing.
    QBM_REPAIR_NONE = 0,
    /// Files that no descriptor names are removed.
    QBM_REPAIR_LEAKS = 1,
    /// That; bits behind the disk's end are cleared; a disk that was not closed is recovered; a state file that is
    /// damaged or missing is made anew, and every bit of every bitmap set, as nothing is known of the last user.
    QBM_REPAIR_ALL = 2,
    /// Every bit is set in bitmaps that are inconsistent, or are so since others wrote to the image; and in those whose
    /// file is missing or too short, which get a new one.
    QBM_REPAIR_DIRTY = 3,
    /// That others wrote to the image since it was closed, or made it longer, does not count; bitmaps that an open for
    /// writing has made inconsistent since stay so, as writes may have gone by unrecorded.
    QBM_REPAIR_TRUST = 4,
}

/// How bad a finding of qbm_check() is.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_severity {
    /// Files, bytes or bits are missing, or cannot be trusted.
    QBM_SEVERITY_CORRUPTION = 1,
    /// A file that no descriptor names takes space.
    QBM_SEVERITY_LEAK = 2,
    /// Worth knowing, and no fault.
    QBM_SEVERITY_NOTE = 3,
    /// Something could not be looked at, or could not be repaired.
    QBM_SEVERITY_ERROR = 4,
}

const _: () = {
    assert!(qbm_repair::QBM_REPAIR_NONE as i32 == Repair::None as i32);
    assert!(qbm_repair::QBM_REPAIR_LEAKS as i32 == Repair::Leaks as i32);
    assert!(qbm_repair::QBM_REPAIR_ALL as i32 == Repair::All as i32);
    assert!(qbm_repair::QBM_REPAIR_DIRTY as i32 == Repair::Dirty as i32);
    assert!(qbm_repair::QBM_REPAIR_TRUST as i32 == Repair::Trust as i32);
    assert!(qbm_severity::QBM_SEVERITY_CORRUPTION as i32 == Severity::Corruption as i32);
    assert!(qbm_severity::QBM_SEVERITY_LEAK as i32 == Severity::Leak as i32);
    assert!(qbm_severity::QBM_SEVERITY_NOTE as i32 == Severity::Note as i32);
    assert!(qbm_severity::QBM_SEVERITY_ERROR as i32 == Severity::Error as i32);
};

/// Hears of one thing that qbm_check() found: severity is one of enum
/// qbm_severity, fixed is 1 where it has been repaired, kind is one stable word
/// ("leftover"; docs/durability.md lists all of them, and what repairs each),
/// message says it in words. Both strings are valid during the call only, which
/// must not call the library.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type qbm_finding = Option<
    unsafe extern "C" fn(
        opaque: *mut c_void,
        severity: c_int,
        fixed: c_int,
        kind: *const c_char,
        message: *const c_char,
    ),
>;

/// Options of qbm_check(). Set struct_size to sizeof(struct qbm_check_options)
/// and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_check_options {
    /// sizeof(struct qbm_check_options).
    pub struct_size: usize,
    /// QBM_CHECK_...; a flag that is not known is -EINVAL.
    pub flags: u32,
    /// One of enum qbm_repair.
    pub repair: u32,
    /// Hears of each finding, at the end, on the caller's thread; may be NULL.
    pub finding: qbm_finding,
    /// The first argument of finding.
    pub finding_opaque: *mut c_void,
    /// Hears how far the reading for a checksum is; may be NULL.
    pub progress: qbm_progress,
    /// The first argument of progress.
    pub progress_opaque: *mut c_void,
}

/// How many findings qbm_check() had.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_check_result {
    /// sizeof(struct qbm_check_result).
    pub struct_size: usize,
    /// Corruptions that are there still.
    pub corruptions: u64,
    /// Leaks that are there still.
    pub leaks: u64,
    /// What could not be looked at, or not repaired.
    pub errors: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Notes, repaired or not.
    pub notes: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers, nullable pointers and nullable functions after it.
unsafe impl Plain for qbm_check_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_check_options {}
// SAFETY: as above.
unsafe impl Plain for qbm_check_result {}
// SAFETY: as above.
unsafe impl Extensible for qbm_check_result {}

/// section: Check
/// ---
/// Checks a disk that nobody writes to, file by file, also one that cannot be
/// opened; and repairs what options.repair says. Looked at are the descriptor,
/// the files that it names, the bits in them, the state file, whether others
/// wrote to the image, the images below, and files that a crash left behind.
///
/// options: NULL changes nothing. *result: its struct_size is set by the
/// caller; as many fields as that covers are filled in; NULL: not wanted.
///
/// Returns 0 when it was checked, whatever was found. -EINVAL: an option. -EBUSY
/// (QBM_ERROR_LOCKED): the disk is being written to, or for a repair, is in use.
/// -ECANCELED: progress ended it. -ENOENT, -EIO ...: there could be no check. Any
/// thread.
///
/// # Safety
///
/// The pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_check(
    path: *const c_char,
    options: *const qbm_check_options,
    result: *mut qbm_check_result,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promise: a string.
        let path = unsafe { path_from(path) }?;
        // SAFETY: the caller's promise: NULL, or a struct as long as its first field says.
        let options = unsafe { structs::read(options, "options") }?;
        let unknown = options.flags & !(QBM_CHECK_CHECKSUM | QBM_CHECK_NO_LOCK);
        if unknown != 0 {
            return Err(unknown_flags(unknown));
        }
        if !result.is_null() {
            // SAFETY: the caller's promise: it begins with its size.
            structs::check_size(unsafe { result.cast::<usize>().read_unaligned() }, "result")?;
        }
        let report = CheckOptions::new()
            .repair(repair(options.repair)?)
            .checksum(options.flags & QBM_CHECK_CHECKSUM != 0)
            .no_lock(options.flags & QBM_CHECK_NO_LOCK != 0)
            .check(path, &mut |done, total| {
                let Some(progress) = options.progress else {
                    return ControlFlow::Continue(());
                };
                // SAFETY: the caller gave this function for this purpose.
                match unsafe { progress(options.progress_opaque, done, total) } {
                    0 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        if let Some(hear) = options.finding {
            for it in &report.findings {
                let text = |text: &str| CString::new(text.replace('\0', "")).unwrap_or_default();
                let (kind, message) = (text(it.kind.word()), text(&it.message));
                let (severity, fixed) = (it.severity as c_int, c_int::from(it.fixed));
                // SAFETY: the caller gave this function for this purpose; the strings live through the call.
                unsafe {
                    hear(
                        options.finding_opaque,
                        severity,
                        fixed,
                        kind.as_ptr(),
                        message.as_ptr(),
                    );
                }
            }
        }
        if result.is_null() {
            return Ok(());
        }
        let value = qbm_check_result {
            struct_size: size_of::<qbm_check_result>(),
            corruptions: report.remaining(Severity::Corruption),
            leaks: report.remaining(Severity::Leak),
            errors: report.remaining(Severity::Error),
            corruptions_fixed: report.fixed(Severity::Corruption),
            leaks_fixed: report.fixed(Severity::Leak),
            notes: report.remaining(Severity::Note) + report.fixed(Severity::Note),
        };
        // SAFETY: the caller's promise: a struct as long as its first field says.
        unsafe { structs::write(result, &value, "result") }.map(drop)
    })
}

fn repair(number: u32) -> crate::error::Result<Repair> {
    [
        Repair::None,
        Repair::Leaks,
        Repair::All,
        Repair::Dirty,
        Repair::Trust,
    ]
    .into_iter()
    .find(|repair| *repair as u32 == number)
    .ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidArgument,
            format!("options: repair {number} is not one of QBM_REPAIR_..."),
        )
    })
}

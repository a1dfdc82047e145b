//! The line that no panic crosses, and the calling thread's last failure.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::view::{self, View};
use super::{Kind, qbm_disk};
use crate::error::{Error, ErrorCode, Result};

struct Failure {
    code: ErrorCode,
    words: CString,
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
    /// A call into the library runs on this thread, and catches its panics.
    static SHELTERED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps `error` as the thread's last failure. Returns what the C function returns: a negative errno.
#[cold]
#[inline(never)]
pub(super) fn fail(error: &Error) -> c_int {
    let words: Vec<u8> = error.message().bytes().filter(|byte| *byte != 0).collect();
    let failure = Failure {
        code: error.code(),
        words: CString::new(words).unwrap_or_default(),
    };
    // Where the thread is ending and its memory is gone, the return value alone must do.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Some(failure);
        }
    });
    -error.errno()
}

pub(super) fn last_message() -> *const c_char {
    const NOTHING: &CStr = c"";
    LAST.try_with(|last| match last.try_borrow() {
        Ok(last) => last
            .as_ref()
            .map_or(NOTHING.as_ptr(), |failure| failure.words.as_ptr()),
        Err(_) => NOTHING.as_ptr(),
    })
    .unwrap_or(NOTHING.as_ptr())
}

pub(super) fn last_code() -> c_int {
    LAST.try_with(|last| {
        last.try_borrow()
            .ok()
            .and_then(|last| last.as_ref().map(|failure| failure.code as c_int))
    })
    .ok()
    .flatten()
    .unwrap_or(0)
}

fn to_c(result: &Result<()>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => fail(error),
    }
}

/// Runs the body of a C function that has no disk yet.
pub(super) fn call(body: impl FnOnce() -> Result<()>) -> c_int {
    silence_panics();
    let result = sheltered(body);
    to_c(&result.unwrap_or_else(|_| Err(internal_error())))
}

/// Runs the body of a C function on a disk. A panic breaks the disk: nothing it knows can be relied on.
///
/// # Safety
///
/// `disk` is NULL or a handle from `qbm_open` that is not closed before the call returns.
#[inline]
pub(super) unsafe fn on_disk(disk: *const qbm_disk, body: impl FnOnce(&crate::Disk) -> Result<()>) -> c_int {
    // SAFETY: the caller's promise is ours.
    unsafe { on_either(disk, body, |view| Err(view::no_disk(view))) }
}

/// The same, for what changes the disk.
///
/// # Safety
///
/// As [`on_disk`].
#[inline]
pub(super) unsafe fn to_change(
    disk: *const qbm_disk,
    body: impl FnOnce(&crate::Disk) -> Result<()>,
) -> c_int {
    // SAFETY: the caller's promise is ours.
    unsafe { on_either(disk, body, |view| Err(view::read_only(view))) }
}

/// Runs the one body on a disk, or the other on a view.
///
/// # Safety
///
/// `disk` is NULL or a handle that is not closed, nor its backup ended, before the call returns.
#[inline]
pub(super) unsafe fn on_either(
    disk: *const qbm_disk,
    body: impl FnOnce(&crate::Disk) -> Result<()>,
    on_view: impl FnOnce(&crate::BackupView<'_>) -> Result<()>,
) -> c_int {
    // SAFETY: the caller's promise is ours.
    let Some(handle) = (unsafe { disk.as_ref() }) else {
        return fail(&null("disk"));
    };
    match &handle.kind {
        Kind::Disk(open) => match sheltered(|| body(&open.disk)) {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => fail(&error),
            Err(_) => panicked(&open.disk),
        },
        Kind::View(view) => looked(view, on_view),
    }
}

#[cold]
#[inline(never)]
fn looked(view: &View, body: impl FnOnce(&crate::BackupView<'_>) -> Result<()>) -> c_int {
    call(|| view.look(|view| on_disks(&[view.disk()], || body(view))))
}

#[cold]
#[inline(never)]
fn panicked(disk: &crate::Disk) -> c_int {
    disk.break_down();
    fail(&internal_error())
}

/// Runs what a C function, inside of its `call`, does to several disks. A panic breaks all of them.
pub(super) fn on_disks(disks: &[&crate::Disk], body: impl FnOnce() -> Result<()>) -> Result<()> {
    sheltered(body).unwrap_or_else(|_| {
        for disk in disks {
            disk.break_down();
        }
        Err(internal_error())
    })
}

/// Runs `body` and catches its panic, which is not printed.
#[inline]
fn sheltered<T>(body: impl FnOnce() -> T) -> std::thread::Result<T> {
    let outer = SHELTERED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    SHELTERED.set(outer);
    result
}

/// The default hook prints a panic on stderr, and a library has no business there. Panics that no call of ours will
/// catch, such as those of a Rust program that links the crate, still reach the hook that was there.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SHELTERED.get() {
                other(info);
            }
        }));
    });
}

#[cold]
fn internal_error() -> Error {
    Error::new(
        ErrorCode::Failed,
        "internal error: the library caught a panic of its own; please report it",
    )
}

#[cold]
pub(super) fn null(argument: &str) -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        format!("the argument {argument} is NULL"),
    )
}

/// A string from C, as a path or a name.
///
/// # Safety
///
/// `text` is NULL or a NUL-terminated string that outlives `'a`.
pub(super) unsafe fn string<'a>(text: *const c_char, argument: &str) -> Result<&'a CStr> {
    if text.is_null() {
        return Err(null(argument));
    }
    // SAFETY: not NULL, and the rest is the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// The same where NULL stands for "not given", and where the text must be UTF-8.
///
/// # Safety
///
/// As [`string`].
pub(super) unsafe fn optional_text<'a>(text: *const c_char, argument: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise is ours.
    unsafe { self::text(text, argument) }.map(Some)
}

/// A string from C that must be UTF-8, such as a bitmap's name.
///
/// # Safety
///
/// As [`string`].
pub(super) unsafe fn text<'a>(text: *const c_char, argument: &str) -> Result<&'a str> {
    // SAFETY: the caller's promise is ours.
    unsafe { string(text, argument) }?.to_str().map_err(|_| {
        Error::new(
            ErrorCode::InvalidArgument,
            format!("the argument {argument} is not UTF-8"),
        )
    })
}

/// Puts a value where C wants it.
///
/// # Safety
///
/// `to` is NULL or points to writable memory for a `T`.
pub(super) unsafe fn put<T>(to: *mut T, value: T, argument: &str) -> Result<()> {
    check_out(to, argument)?;
    // SAFETY: not NULL, and the rest is the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Fails where there is no place for a value, before any is looked for.
pub(super) fn check_out<T>(to: *mut T, argument: &str) -> Result<()> {
    if to.is_null() {
        return Err(null(argument));
    }
    Ok(())
}

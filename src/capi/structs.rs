//! Structs that grow: each begins with `size_t struct_size`, so that an old caller and a new library, or the other
//! way round, understand each other.
//!
//! Invariant: no byte beyond the caller's `struct_size` is read or written.

use std::mem::size_of;

use super::boundary::null;
use crate::error::{Error, ErrorCode, Result};

/// A struct of the C surface.
///
/// # Safety
///
/// The type is `repr(C)`, and all-zero bytes are a value of it, as is any other combination that C can store in its
/// fields.
pub(super) unsafe trait Plain: Copy {}

/// A struct that begins with its size.
///
/// # Safety
///
/// The first field is a `usize`.
pub(super) unsafe trait Extensible: Plain {}

/// What the caller set, with defaults (zeros) for what it does not know. NULL is all defaults.
///
/// # Safety
///
/// `from` is NULL or points to as many readable bytes as its first `size_t` says.
pub(super) unsafe fn read<T: Extensible>(from: *const T, what: &str) -> Result<T> {
    if from.is_null() {
        // SAFETY: all zeros is a value of a `Plain`.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: the struct begins with its size; the caller promised that much is there.
    unsafe { read_sized(from, from.cast::<usize>().read_unaligned(), what) }
}

/// Fails where a field that has no meaning yet is not zero, so that it may get one.
pub(super) fn check_reserved(value: u32) -> Result<()> {
    if value == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::InvalidArgument,
        format!("options: reserved is {value:#x}, not zero"),
    ))
}

/// The same of a struct without its size in front, such as an element of an array.
///
/// # Safety
///
/// `from` points to `size` readable bytes.
pub(super) unsafe fn read_sized<T: Plain>(from: *const T, size: usize, what: &str) -> Result<T> {
    // SAFETY: all zeros is a value of a `Plain`.
    let mut value: T = unsafe { std::mem::zeroed() };
    check_size(size, what)?;
    let known = size.min(size_of::<T>());
    // SAFETY: `known` bytes are readable (the caller's promise) and fit into `value`.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), known) };
    // SAFETY: the bytes behind what we know are within the size that the caller promised.
    let tail = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
    if tail.iter().any(|byte| *byte != 0) {
        return Err(Error::new(
            ErrorCode::StructTooLarge,
            format!(
                "{what}: struct_size {size} is more than the {} bytes that this library knows, and a field beyond \
                 them is set",
                size_of::<T>()
            ),
        ));
    }
    Ok(value)
}

/// Gives the caller as much of `value` as its struct has room for, and zeros behind what this library knows. Returns
/// how many bytes of `value` the caller has now.
///
/// # Safety
///
/// `to` is NULL or points to as many writable bytes as its first `size_t` says.
pub(super) unsafe fn write<T: Extensible>(to: *mut T, value: &T, what: &str) -> Result<usize> {
    if to.is_null() {
        return Err(null(what));
    }
    // SAFETY: the struct begins with its size; the caller promised that much is there.
    let size = unsafe { to.cast::<usize>().read_unaligned() };
    check_size(size, what)?;
    let head = size_of::<usize>();
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are writable; the first field keeps the caller's own size; source and target are distinct.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>().add(head),
            to.cast::<u8>().add(head),
            known - head,
        );
        std::ptr::write_bytes(to.cast::<u8>().add(known), 0, size - known);
    }
    Ok(known)
}

pub(super) fn check_size(size: usize, what: &str) -> Result<()> {
    // A size beyond a page of fields is no size at all but memory that was never set.
    const MOST: usize = 4096;
    if (size_of::<usize>()..=MOST).contains(&size) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::InvalidArgument,
        format!("{what}: struct_size is {size}; set it to sizeof of the struct"),
    ))
}

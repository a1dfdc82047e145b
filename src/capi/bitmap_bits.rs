//! What a bitmap's bits say, and bits as bytes.

use std::ffi::{c_char, c_int, c_void};

use super::bitmap_arguments::{on_bitmap, reading};
use super::boundary::{call, check_out, null, put};
use super::qbm_disk;
use crate::error::{Error, ErrorCode, Result};
use crate::{BitmapContent, ByteRange, Disk};

/// Bits apart from any bitmap. Made by qbm_bits_new(), ended by qbm_bits_free().
#[allow(non_camel_case_types, reason = "the name in C")]
pub struct qbm_bits {
    content: BitmapContent,
}

/// section: Bitmaps: what they say
///
/// These change nothing and wait for nobody: what other threads are just
/// writing may or may not be seen. Of a frozen bitmap they show the frozen
/// bits. -EUCLEAN (QBM_ERROR_BITMAP_INCONSISTENT): the bits of an inconsistent
/// bitmap say nothing.
/// ---
/// Whether the granule is dirty that the byte at offset lies in.
///
/// *dirty: 1 or 0. Returns 0. -EINVAL (QBM_ERROR_OUT_OF_RANGE), -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `dirty` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_get(
    disk: *mut qbm_disk,
    name: *const c_char,
    offset: u64,
    dirty: *mut c_int,
) -> c_int {
    let get = |disk: &Disk, name: &str| {
        check_out(dirty, "dirty")?;
        let value = disk.bitmap_get(name, offset)?;
        // SAFETY: the caller's promise: a place for the answer.
        unsafe { put(dirty, c_int::from(value), "dirty") }
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, get) }
}

/// How many granules are dirty.
///
/// Returns 0, or -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `count` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_count(
    disk: *mut qbm_disk,
    name: *const c_char,
    count: *mut u64,
) -> c_int {
    let ask = |disk: &Disk, name: &str| {
        check_out(count, "count")?;
        let value = disk.bitmap_count(name)?;
        // SAFETY: the caller's promise: a place for the answer.
        unsafe { put(count, value, "count") }
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, ask) }
}

/// The first run of dirty bytes among len bytes from offset on. Walk a bitmap
/// by asking again behind what was answered.
///
/// A len that goes beyond the disk's end is cut there (UINT64_MAX is "up to the
/// end"), and so is the answer. *start, *length: the run, in bytes, not
/// reaching out of the bytes that were asked for. Where none is dirty: *start
/// is UINT64_MAX, *length is 0.
///
/// Returns 0, also where none is dirty. -EINVAL (QBM_ERROR_OUT_OF_RANGE):
/// offset is behind the disk's end. -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `start` and `length` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_next_dirty(
    disk: *mut qbm_disk,
    name: *const c_char,
    offset: u64,
    len: u64,
    start: *mut u64,
    length: *mut u64,
) -> c_int {
    let find = |disk: &Disk, name: &str| {
        check_out(start, "start")?;
        check_out(length, "length")?;
        let run = disk.bitmap_next_dirty(name, offset, len)?;
        let (from, bytes) = run.map_or((u64::MAX, 0), |run| (run.start(), run.len()));
        // SAFETY: the caller's promise: places for the answer.
        unsafe {
            put(start, from, "start")?;
            put(length, bytes, "length")
        }
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, find) }
}

/// The first clean byte among len bytes from offset on; len as for
/// qbm_bitmap_next_dirty().
///
/// *start: UINT64_MAX where none is clean. Returns 0, also then. -EINVAL
/// (QBM_ERROR_OUT_OF_RANGE): offset is behind the disk's end. -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `start` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_next_zero(
    disk: *mut qbm_disk,
    name: *const c_char,
    offset: u64,
    len: u64,
    start: *mut u64,
) -> c_int {
    let find = |disk: &Disk, name: &str| {
        check_out(start, "start")?;
        let clean = disk.bitmap_next_zero(name, offset, len)?;
        // SAFETY: the caller's promise: a place for the answer.
        unsafe { put(start, clean.unwrap_or(u64::MAX), "start") }
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, find) }
}

/// section: Bitmaps: bits as bytes
///
/// The serialized form of a bitmap is that of its file, of qcow2 and of QEMU's
/// migration: little-endian 64-bit words, granule i in bit i % 8 of byte i / 8.
/// It is taken out and put in by parts, whose offsets and lengths are bytes of
/// that form and multiples of 8. The one for granules of g bytes on a disk of n
/// bytes has as many words as it takes for n / g bits, rounded up.
///
/// To put one in: qbm_bits_new(), qbm_bits_write() or _fill() for the parts in
/// any order, qbm_bitmap_deserialize(), qbm_bits_free(). Nothing is seen of the
/// parts until qbm_bitmap_deserialize(), which puts all in place at once.
/// ---
/// The length of a bitmap's serialized form in bytes.
///
/// Returns 0, or -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `length` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_serialized_length(
    disk: *mut qbm_disk,
    name: *const c_char,
    length: *mut u64,
) -> c_int {
    let ask = |disk: &Disk, name: &str| {
        check_out(length, "length")?;
        let value = disk.bitmap_serialized_len(name)?;
        // SAFETY: the caller's promise: a place for the answer.
        unsafe { put(length, value, "length") }
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, ask) }
}

/// Copies len bytes of the serialized form from offset on into buf.
///
/// Parts belong together only if the bitmap does not record meanwhile, or is
/// frozen.
///
/// Returns 0. -EINVAL: offset or len is no multiple of 8; the part is not
/// within the form (QBM_ERROR_OUT_OF_RANGE). -EUCLEAN. What buf holds then is
/// undefined.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `buf` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_serialize(
    disk: *mut qbm_disk,
    name: *const c_char,
    offset: u64,
    buf: *mut c_void,
    len: usize,
) -> c_int {
    let copy = |disk: &Disk, name: &str| {
        let out: &mut [u8] = if len == 0 {
            &mut []
        } else {
            check_len(buf, len)?;
            // SAFETY: not NULL, and room for `len` bytes by the caller's promise, which are set before they are lent.
            unsafe {
                std::ptr::write_bytes(buf.cast::<u8>(), 0, len);
                std::slice::from_raw_parts_mut(buf.cast::<u8>(), len)
            }
        };
        disk.bitmap_serialize(name, offset, out)
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, copy) }
}

/// Bits to be put in the place of a bitmap's: of its granularity and for the
/// disk's length as they are now, all clean.
///
/// *bits is set on success, and to NULL otherwise. They are memory of their own
/// and outlive the disk; one thread at a time. Returns 0. -EBUSY, -EUCLEAN.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `bits` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bits_new(
    disk: *mut qbm_disk,
    name: *const c_char,
    bits: *mut *mut qbm_bits,
) -> c_int {
    if !bits.is_null() {
        // SAFETY: not NULL, and writable by the caller's promise.
        unsafe { bits.write(std::ptr::null_mut()) };
    }
    let new = |disk: &Disk, name: &str| {
        check_out(bits, "bits")?;
        let content = disk.bitmap_blank(name)?;
        let made = Box::into_raw(Box::new(qbm_bits { content }));
        // SAFETY: the caller's promise: a place for the answer.
        unsafe { put(bits, made, "bits") }
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, 0, new) }
}

/// Takes the part of a serialized form that begins at offset, in place of what
/// was there. Bits past the disk's end are ignored.
///
/// Returns 0. -EINVAL: as qbm_bitmap_serialize(). -ENOMEM.
///
/// # Safety
///
/// `bits` is from `qbm_bits_new` and used by no other thread; `buf` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bits_write(
    bits: *mut qbm_bits,
    offset: u64,
    buf: *const c_void,
    len: usize,
) -> c_int {
    call(|| {
        // SAFETY: the caller's promise: made by `qbm_bits_new`, and this thread's alone.
        let bits = unsafe { bits.as_mut() }.ok_or_else(|| null("bits"))?;
        if len == 0 {
            return bits.content.deserialize(offset, &[]);
        }
        check_len(buf, len)?;
        // SAFETY: not NULL, and `len` readable bytes by the caller's promise.
        let part = unsafe { std::slice::from_raw_parts(buf.cast::<u8>(), len) };
        bits.content.deserialize(offset, part)
    })
}

/// As qbm_bits_write() of len bytes that are all ones (dirty is not zero), or
/// all zeros.
///
/// Returns 0. -EINVAL: as qbm_bitmap_serialize(). -ENOMEM.
///
/// # Safety
///
/// `bits` is from `qbm_bits_new` and used by no other thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bits_fill(bits: *mut qbm_bits, offset: u64, len: u64, dirty: c_int) -> c_int {
    call(|| {
        // SAFETY: the caller's promise: made by `qbm_bits_new`, and this thread's alone.
        let bits = unsafe { bits.as_mut() }.ok_or_else(|| null("bits"))?;
        let part = ByteRange::new(offset, len).ok_or_else(|| {
            Error::new(
                ErrorCode::OutOfRange,
                format!("{len} bytes at offset {offset} have no end"),
            )
        })?;
        if dirty == 0 {
            bits.content.deserialize_zeros(part)
        } else {
            bits.content.deserialize_ones(part)
        }
    })
}

/// Puts bits in the place of a bitmap's, all at once: a new starting point. The
/// bits stay the caller's, and can be used again.
///
/// Returns 0. -EBUSY, -EUCLEAN. -EINVAL: the bits are for another granularity,
/// or for a disk of another length.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `bits` is from `qbm_bits_new`, and no thread changes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_deserialize(
    disk: *mut qbm_disk,
    name: *const c_char,
    bits: *const qbm_bits,
    flags: u32,
) -> c_int {
    let replace = |disk: &Disk, name: &str| {
        // SAFETY: the caller's promise: NULL or made by `qbm_bits_new`.
        disk.bitmap_replace(name, unsafe { content(bits) }?)
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { on_bitmap(disk, name, flags, replace) }
}

/// Frees bits. NULL is fine. Any thread.
///
/// # Safety
///
/// `bits` is NULL or from `qbm_bits_new`, and used by no other call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bits_free(bits: *mut qbm_bits) {
    if !bits.is_null() {
        // SAFETY: from `qbm_bits_new`, given back by its owner.
        drop(unsafe { Box::from_raw(bits) });
    }
}

/// # Safety
///
/// `bits` is NULL or from `qbm_bits_new`, and outlives `'a`.
pub(super) unsafe fn content<'a>(bits: *const qbm_bits) -> Result<&'a BitmapContent> {
    // SAFETY: the caller's promise is ours.
    let bits = unsafe { bits.as_ref() }.ok_or_else(|| null("bits"))?;
    Ok(&bits.content)
}

/// Whether a buffer of `len` bytes, at least one, can be one.
fn check_len(buf: *const c_void, len: usize) -> Result<()> {
    if buf.is_null() {
        return Err(null("buf"));
    }
    if isize::try_from(len).is_err() {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("a buffer of {len} bytes is more than memory holds"),
        ));
    }
    Ok(())
}

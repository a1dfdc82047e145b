//! Reading and writing.

use std::ffi::{c_int, c_void};

use libc::iovec;

use super::boundary::{null, on_either, to_change};
use super::life::unknown_flags;
use super::qbm_disk;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Gather, Scatter};
use crate::{Disk, TruncateFlags, WriteFlags};

/// Of writes: durable when the call returns.
pub const QBM_REQ_FUA: u32 = 1;
/// Of qbm_write_zeroes(): the space may be given back to the host.
pub const QBM_REQ_MAY_UNMAP: u32 = 2;
/// Of qbm_write_zeroes(): -EOPNOTSUPP rather than writing zeros byte by byte.
pub const QBM_REQ_NO_FALLBACK: u32 = 4;
/// Of writes: the content as the guest sees it stays the same, so no dirty
/// bitmap records the write.
pub const QBM_REQ_UNCHANGED: u32 = 8;

/// Of qbm_truncate(): bytes may be cut off.
pub const QBM_TRUNCATE_SHRINK: u32 = 1;

const _: () = {
    assert!(QBM_REQ_FUA == WriteFlags::FUA.bits());
    assert!(QBM_REQ_MAY_UNMAP == WriteFlags::MAY_UNMAP.bits());
    assert!(QBM_REQ_NO_FALLBACK == WriteFlags::NO_FALLBACK.bits());
    assert!(QBM_REQ_UNCHANGED == WriteFlags::UNCHANGED.bits());
    assert!(QBM_TRUNCATE_SHRINK == TruncateFlags::SHRINK.bits());
};

/// section: Bytes
///
/// Offsets and lengths are in bytes, any of them: alignment is the library's
/// work. A transfer is whole or an error. A range that does not lie within the
/// disk is -EINVAL (QBM_ERROR_OUT_OF_RANGE), and nothing is done. A write that
/// failed may have reached the image in part.
///
/// Writes are durable after the next qbm_flush() that returns 0, or at once
/// with QBM_REQ_FUA. After a flush has failed, writes and flushes are -EIO
/// (QBM_ERROR_FAILED) until the disk is reopened: what was written before may
/// be lost, and a flush that "succeeds" later would prove nothing. Any thread;
/// two writes at once to the same bytes leave either.
/// ---
/// Reads len bytes from offset on into buf.
///
/// Returns 0, or -EINVAL, -EIO, ...
///
/// # Safety
///
/// `disk` is a handle; `buf` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_pread(disk: *mut qbm_disk, buf: *mut c_void, len: usize, offset: u64) -> c_int {
    // SAFETY: the caller's promise: a handle, and a buffer of `len` bytes.
    unsafe {
        let piece = [iovec {
            iov_base: buf,
            iov_len: len,
        }];
        on_either(
            disk,
            |disk| disk.read_scatter(scatter(&piece)?, offset),
            |view| view.read_scatter(scatter(&piece)?, offset),
        )
    }
}

/// Writes len bytes from buf at offset.
///
/// flags: QBM_REQ_FUA, QBM_REQ_UNCHANGED. Returns 0, or -EINVAL, -EROFS (the
/// disk is open read-only), -EIO, -ENOSPC, ...
///
/// # Safety
///
/// `disk` is a handle; `buf` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_pwrite(
    disk: *mut qbm_disk,
    buf: *const c_void,
    len: usize,
    offset: u64,
    flags: u32,
) -> c_int {
    // SAFETY: the caller's promise: a handle, and a buffer of `len` bytes, which is only read.
    unsafe {
        to_change(disk, |disk| {
            write(
                disk,
                &[iovec {
                    iov_base: buf.cast_mut(),
                    iov_len: len,
                }],
                offset,
                flags,
            )
        })
    }
}

/// Reads into several buffers, one after the other. iovcnt may be any number.
///
/// Returns as qbm_pread().
///
/// # Safety
///
/// `disk` is a handle; `iov` points to `iovcnt` pieces of writable memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_preadv(
    disk: *mut qbm_disk,
    iov: *const iovec,
    iovcnt: c_int,
    offset: u64,
) -> c_int {
    // SAFETY: the caller's promise: a handle, and a list of `iovcnt` pieces.
    unsafe {
        on_either(
            disk,
            |disk| disk.read_scatter(scatter(list(iov, iovcnt)?)?, offset),
            |view| view.read_scatter(scatter(list(iov, iovcnt)?)?, offset),
        )
    }
}

/// Writes several buffers, one after the other. iovcnt may be any number.
///
/// flags and returns as qbm_pwrite().
///
/// # Safety
///
/// `disk` is a handle; `iov` points to `iovcnt` pieces of readable memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_pwritev(
    disk: *mut qbm_disk,
    iov: *const iovec,
    iovcnt: c_int,
    offset: u64,
    flags: u32,
) -> c_int {
    // SAFETY: the caller's promise: a handle, and a list of `iovcnt` pieces.
    unsafe { to_change(disk, |disk| write(disk, list(iov, iovcnt)?, offset, flags)) }
}

/// Makes len bytes from offset on read as zeros.
///
/// flags: QBM_REQ_FUA, QBM_REQ_MAY_UNMAP, QBM_REQ_NO_FALLBACK,
/// QBM_REQ_UNCHANGED. Returns as qbm_pwrite(), and -EOPNOTSUPP with
/// QBM_REQ_NO_FALLBACK where the image has no faster way than writing zeros.
///
/// # Safety
///
/// `disk` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_write_zeroes(disk: *mut qbm_disk, offset: u64, len: u64, flags: u32) -> c_int {
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, |disk| disk.write_zeroes(offset, len, write_flags(flags)?)) }
}

/// Gives the space of len bytes from offset on back to the host, where it can
/// be; they read as zeros afterwards in any case.
///
/// flags: QBM_REQ_FUA, QBM_REQ_UNCHANGED. Returns as qbm_pwrite().
///
/// # Safety
///
/// `disk` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_discard(disk: *mut qbm_disk, offset: u64, len: u64, flags: u32) -> c_int {
    // SAFETY: the caller's promise: a handle.
    unsafe { to_change(disk, |disk| disk.discard(offset, len, write_flags(flags)?)) }
}

/// Makes every write that completed before this call durable; the first such
/// call of an open disk also what the images below it have, whoever wrote that.
///
/// Returns 0, or what the system said; then see above on the disk's failure.
/// On a disk that is open read-only, and on a view, there is nothing to do: 0.
///
/// # Safety
///
/// `disk` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_flush(disk: *mut qbm_disk) -> c_int {
    // SAFETY: the caller's promise: a handle.
    unsafe { on_either(disk, Disk::flush, |_| Ok(())) }
}

/// section: Shape
/// ---
/// Makes the disk length bytes long. New bytes read as zeros, whatever a longer
/// backing has there. Waits for requests in flight.
///
/// flags: QBM_TRUNCATE_SHRINK, without which a shorter length is -EINVAL.
/// Returns 0; the new length is durable then. -EOPNOTSUPP: a block device.
///
/// # Safety
///
/// `disk` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_truncate(disk: *mut qbm_disk, length: u64, flags: u32) -> c_int {
    // SAFETY: the caller's promise: a handle.
    unsafe {
        to_change(disk, |disk| {
            let flags = TruncateFlags::from_bits(flags).ok_or_else(|| unknown_flags(flags))?;
            disk.truncate(length, flags)
        })
    }
}

/// Takes every granule out of the disk's own image, so that it shows its
/// backing again, or zeros where it has none. What is taken out is dirty in
/// every bitmap that records. Waits for requests in flight.
///
/// flags: zero. Returns 0; it is durable then. -ENOTSUP: the disk has no
/// allocation bitmap, so all of it is its own. -EROFS: the disk or its folder
/// is read-only.
///
/// # Safety
///
/// `disk` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_make_empty(disk: *mut qbm_disk, flags: u32) -> c_int {
    // SAFETY: the caller's promise: a handle.
    unsafe {
        to_change(disk, |disk| {
            if flags != 0 {
                return Err(unknown_flags(flags));
            }
            disk.make_empty()
        })
    }
}

#[inline]
fn write_flags(flags: u32) -> Result<WriteFlags> {
    WriteFlags::from_bits(flags).ok_or_else(|| unknown_flags(flags))
}

/// # Safety
///
/// The pieces are writable memory of the caller's.
#[inline(always)]
unsafe fn scatter(pieces: &[iovec]) -> Result<Scatter<'_>> {
    check_pieces(pieces)?;
    // SAFETY: the caller's promise is ours.
    unsafe { Scatter::new(pieces) }.ok_or_else(too_long)
}

/// # Safety
///
/// The pieces are readable memory of the caller's.
#[inline(always)]
unsafe fn write(disk: &Disk, pieces: &[iovec], offset: u64, flags: u32) -> Result<()> {
    check_pieces(pieces)?;
    // SAFETY: the caller's promise is ours.
    let from = unsafe { Gather::new(pieces) }.ok_or_else(too_long)?;
    disk.write_gather(from, offset, write_flags(flags)?)
}

/// A list of pieces from C.
///
/// # Safety
///
/// `iov` is NULL or points to `iovcnt` pieces that outlive `'a`.
unsafe fn list<'a>(iov: *const iovec, iovcnt: c_int) -> Result<&'a [iovec]> {
    let Ok(count) = usize::try_from(iovcnt) else {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("iovcnt is {iovcnt}"),
        ));
    };
    if count == 0 {
        return Ok(&[]);
    }
    if iov.is_null() {
        return Err(null("iov"));
    }
    // SAFETY: not NULL, and the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(iov, count) })
}

/// No piece with bytes is at NULL.
#[inline]
fn check_pieces(pieces: &[iovec]) -> Result<()> {
    if pieces
        .iter()
        .any(|piece| piece.iov_base.is_null() && piece.iov_len != 0)
    {
        return Err(null("buf"));
    }
    Ok(())
}

#[cold]
fn too_long() -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        "the lengths of the buffers add up to more than memory holds",
    )
}

//! The system calls that the standard library has no safe face for, one small function each.
//!
//! Every libc call of the storage layer is here; nothing here decides anything. Invariant: a call that a signal
//! interrupted is made again, and every other failure is the errno as the system gave it.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use libc::{c_int, c_uint, iovec};

/// The most pieces that one system call takes.
pub const IOV_MAX: usize = 1024;

/// `BLKGETSIZE64` is declared with `size_t`, so that its number depends on the word size.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<usize>(0x12, 114);
const BLKZEROOUT: libc::Ioctl = libc::_IO(0x12, 127);

/// The errno where `result` is negative.
#[inline]
fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[inline]
fn check_int(result: c_int) -> io::Result<usize> {
    check(result as isize)
}

/// `call`, made again for as long as signals interrupt it.
pub fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// An offset as the system takes it. Those beyond `i64::MAX` become negative, which every call refuses with
/// `EINVAL`: so that the check costs the fast path nothing.
#[inline]
fn off(offset: u64) -> libc::off64_t {
    offset.cast_signed()
}

/// Reads into `pieces` (at most [`IOV_MAX`]) from `offset` on, as far as one system call does; not retried.
///
/// # Safety
///
/// Each piece must be writable.
#[inline]
pub unsafe fn read(fd: BorrowedFd<'_>, pieces: &[iovec], offset: u64) -> io::Result<usize> {
    // SAFETY: the caller's promise is ours.
    check(unsafe { read_once(fd, pieces, offset) })
}

/// The same, with the system call's own answer: how many bytes, or -1.
///
/// # Safety
///
/// Each piece must be writable.
#[inline]
pub unsafe fn read_once(fd: BorrowedFd<'_>, pieces: &[iovec], offset: u64) -> isize {
    let fd = fd.as_raw_fd();
    // SAFETY: the caller vouches for the pieces; the kernel checks the rest.
    unsafe {
        match pieces {
            [one] => libc::pread64(fd, one.iov_base, one.iov_len, off(offset)),
            _ => libc::preadv64(fd, pieces.as_ptr(), count(pieces), off(offset)),
        }
    }
}

/// Writes `pieces` (at most [`IOV_MAX`]) at `offset`, as far as one system call does; not retried.
///
/// # Safety
///
/// Each piece must be readable.
#[inline]
pub unsafe fn write(fd: BorrowedFd<'_>, pieces: &[iovec], offset: u64) -> io::Result<usize> {
    // SAFETY: the caller's promise is ours.
    check(unsafe { write_once(fd, pieces, offset) })
}

/// The same, with the system call's own answer: how many bytes, or -1.
///
/// # Safety
///
/// Each piece must be readable.
#[inline]
pub unsafe fn write_once(fd: BorrowedFd<'_>, pieces: &[iovec], offset: u64) -> isize {
    let fd = fd.as_raw_fd();
    // SAFETY: the caller vouches for the pieces; the kernel checks the rest.
    unsafe {
        match pieces {
            [one] => libc::pwrite64(fd, one.iov_base, one.iov_len, off(offset)),
            _ => libc::pwritev64(fd, pieces.as_ptr(), count(pieces), off(offset)),
        }
    }
}

/// How many pieces, as the system takes it; too many stay too many.
#[inline]
fn count(pieces: &[iovec]) -> c_int {
    c_int::try_from(pieces.len()).unwrap_or(c_int::MAX)
}

/// Stands for the folder that the process works in, where a call takes a folder.
pub fn working_folder() -> BorrowedFd<'static> {
    // SAFETY: `AT_FDCWD` is no descriptor that could be closed, but the system's own word for that folder.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

/// Opens `name`, relative to `dir`. A name that is absolute stands for itself.
pub fn open_at(dir: BorrowedFd<'_>, name: &CStr, flags: c_int, mode: c_uint) -> io::Result<OwnedFd> {
    retry(|| {
        // SAFETY: `name` is a terminated string that outlives the call.
        let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode) };
        check_int(fd)?;
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// Opens `name`, which must not lead out of `dir` by any link, `..` or root: that is `EXDEV`.
pub fn open_beneath(dir: BorrowedFd<'_>, name: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: all zeros is a valid `open_how`.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    retry(|| {
        // SAFETY: `name` is a terminated string, and `how` a struct of the size given; both outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        let fd = c_int::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        check_int(fd)?;
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// The file mode (type and permissions) of `name`, following links.
pub fn mode_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<u32> {
    let mut stat = MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: `name` is a terminated string, and `stat` has room for the answer.
    check_int(unsafe { libc::fstatat64(dir.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), 0) })?;
    // SAFETY: the call succeeded, so it filled `stat`.
    Ok(unsafe { stat.assume_init() }.st_mode)
}

/// What kind of file system a file lies on.
pub fn file_system_magic(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut answer = MaybeUninit::<libc::statfs64>::uninit();
    // SAFETY: `answer` has room for the answer.
    retry(|| check_int(unsafe { libc::fstatfs64(fd.as_raw_fd(), answer.as_mut_ptr()) }))?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "magic numbers have 32 bits, whatever the field's type on this machine"
    )]
    // SAFETY: the call succeeded, so it filled `answer`.
    let magic = unsafe { answer.assume_init() }.f_type as u32;
    Ok(magic)
}

/// Renames `from` to `to`, both relative to `dir`.
pub fn rename_at(dir: BorrowedFd<'_>, from: &CStr, to: &CStr) -> io::Result<()> {
    let dir = dir.as_raw_fd();
    // SAFETY: both names are terminated strings that outlive the call.
    retry(|| check_int(unsafe { libc::renameat(dir, from.as_ptr(), dir, to.as_ptr()) })).map(drop)
}

/// Takes the name `name`, relative to `dir`, away.
pub fn unlink_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is a terminated string that outlives the call.
    retry(|| check_int(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) })).map(drop)
}

/// Whether this process (by its effective ids) may use `dir` itself for `how` (`W_OK` and the like).
pub fn access(dir: BorrowedFd<'_>, how: c_int) -> io::Result<()> {
    // SAFETY: the name is a terminated string.
    check_int(unsafe { libc::faccessat(dir.as_raw_fd(), c".".as_ptr(), how, libc::AT_EACCESS) }).map(drop)
}

/// Whether the file system of `fd` is mounted read-only.
pub fn on_read_only_mount(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut answer = MaybeUninit::<libc::statvfs64>::uninit();
    // SAFETY: `answer` has room for the answer.
    retry(|| check_int(unsafe { libc::fstatvfs64(fd.as_raw_fd(), answer.as_mut_ptr()) }))?;
    // SAFETY: the call succeeded, so it filled `answer`.
    Ok(unsafe { answer.assume_init() }.f_flag & libc::ST_RDONLY != 0)
}

/// Asks the standard library about a descriptor that someone else owns.
pub fn with_file<T>(fd: BorrowedFd<'_>, ask: impl FnOnce(&File) -> T) -> T {
    // SAFETY: the descriptor lives for the call, and the `File` that never owned it is never dropped.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) });
    ask(&file)
}

/// The status flags of an open file description, with its access mode.
pub fn status_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: a plain call on a live descriptor.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check_int(flags).map(|_| flags)
}

/// Changes the status flags of an open file description.
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    // SAFETY: a plain call on a live descriptor.
    check_int(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Keeps a descriptor from being inherited through `exec`.
pub fn set_close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain calls on a live descriptor.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFD);
        check_int(flags)?;
        check_int(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFD,
            flags | libc::FD_CLOEXEC,
        ))
        .map(drop)
    }
}

/// `fallocate` of `len` bytes from `offset` on.
pub fn fallocate(fd: BorrowedFd<'_>, mode: c_int, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: a plain call on a live descriptor.
    retry(|| check_int(unsafe { libc::fallocate64(fd.as_raw_fd(), mode, off(offset), off(len)) })).map(drop)
}

/// Copies bytes within the kernel, as far as one `copy_file_range` does.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: usize,
) -> io::Result<usize> {
    let (mut from_offset, mut to_offset) = (off(from_offset), off(to_offset));
    retry(|| {
        // SAFETY: both offsets are variables that outlive the call.
        check(unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                &raw mut from_offset,
                to.as_raw_fd(),
                &raw mut to_offset,
                len,
                0,
            )
        })
    })
}

/// Has the kernel begin to write a range out, and does not wait for it. Promises nothing about durability.
pub fn start_writeback(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: a plain call on a live descriptor.
    check_int(unsafe {
        libc::sync_file_range(fd.as_raw_fd(), off(offset), off(len), libc::SYNC_FILE_RANGE_WRITE)
    })
    .map(drop)
}

/// Gives an open file that has no name the name `name`, relative to `dir`, which must be free.
pub fn link_at(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let Ok(file) = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    retry(|| {
        // SAFETY: both names are terminated strings that outlive the call.
        check_int(unsafe {
            libc::linkat(
                libc::AT_FDCWD,
                file.as_ptr(),
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_FOLLOW,
            )
        })
    })
    .map(drop)
}

/// Renames `from` to `to`, both relative to `dir`; `to` must be free.
pub fn rename_to_free(dir: BorrowedFd<'_>, from: &CStr, to: &CStr) -> io::Result<()> {
    let dir = dir.as_raw_fd();
    retry(|| {
        // SAFETY: both names are terminated strings that outlive the call.
        check_int(unsafe { libc::renameat2(dir, from.as_ptr(), dir, to.as_ptr(), libc::RENAME_NOREPLACE) })
    })
    .map(drop)
}

/// Where `SEEK_DATA` or `SEEK_HOLE` leads from `offset`. It moves the file position, which nothing here uses.
pub fn seek(fd: BorrowedFd<'_>, offset: u64, whence: c_int) -> io::Result<u64> {
    // SAFETY: a plain call on a live descriptor.
    let found = unsafe { libc::lseek64(fd.as_raw_fd(), off(offset), whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// What a file wants of direct transfers, by `statx`: the alignments of memory and of offsets. `None` where the
/// kernel or the file system does not tell.
pub fn direct_alignment(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name is a terminated string, and `answer` has room for the answer.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    check_int(result).ok()?;
    // SAFETY: all zeros is a valid `statx`, and the call only writes valid ones.
    let answer = unsafe { answer.assume_init() };
    let told = answer.stx_mask & libc::STATX_DIOALIGN != 0;
    let (memory, request) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    // Zeros say that direct transfers fall back to the page cache, which takes any alignment.
    (told && memory.is_power_of_two() && request.is_power_of_two()).then_some((memory, request))
}

/// The size of a block device, in bytes.
pub fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the request writes one `u64`, whatever its declared type.
    check_int(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut size) }).map(|_| size)
}

/// A block device's answer to one of the requests that give an `unsigned int` of bytes.
pub fn device_number(fd: BorrowedFd<'_>, request: libc::Ioctl) -> Option<u32> {
    let mut value: c_uint = 0;
    // SAFETY: callers pass only requests that write one `unsigned int`.
    check_int(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })
        .ok()
        .map(|_| value)
}

/// `BLKZEROOUT`: zeros on a block device, by whatever the device does best, the space kept.
pub fn device_zero(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the request reads two `u64`.
    retry(|| check_int(unsafe { libc::ioctl(fd.as_raw_fd(), BLKZEROOUT, range.as_ptr()) })).map(drop)
}

/// Gives `len` bytes of `to` at `offset` the blocks that `from` has there, where the file system can.
pub fn share(to: BorrowedFd<'_>, from: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: the request reads such a struct, which lives through the call.
    retry(|| check_int(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) }))
        .map(drop)
}

/// The names of a file's extended attributes, each terminated by a zero.
pub fn xattr_names(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    sized(|buf| {
        // SAFETY: the list goes into `buf`, whose length is given.
        check(unsafe { libc::flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) })
    })
}

/// The value of one extended attribute.
pub fn xattr(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    sized(|buf| {
        // SAFETY: `name` is a terminated string; the value goes into `buf`, whose length is given.
        check(unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })
    })
}

/// Sets one extended attribute.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` is a terminated string, and `value` is read only within its length.
    check_int(unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
    .map(drop)
}

/// Removes one extended attribute.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is a terminated string.
    check_int(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// What `call` fills a buffer with: it is asked for the size first, and again while the answer outgrows it.
fn sized(mut call: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<u8>> {
    loop {
        let mut buf = vec![0; call(&mut [])?];
        if buf.is_empty() {
            return Ok(buf);
        }
        match call(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The names in an open folder, without `.` and `..`.
pub fn names(dir: OwnedFd) -> io::Result<Vec<OsString>> {
    let fd = dir.into_raw_fd();
    // SAFETY: the descriptor is ours to give; where the call fails it stays ours.
    let stream = unsafe { libc::fdopendir(fd) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // SAFETY: nobody else knows the descriptor.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        return Err(error);
    }
    let listed = read_names(stream);
    // SAFETY: the stream is open, and not used afterwards.
    unsafe { libc::closedir(stream) };
    listed
}

fn read_names(stream: *mut libc::DIR) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    loop {
        // The end and a failure look alike but for the errno.
        // SAFETY: the place of this thread's errno.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the caller's stream is open, and no other thread knows it.
        let entry = unsafe { libc::readdir64(stream) };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(0) => Ok(names),
                _ => Err(error),
            };
        }
        // SAFETY: an entry's name is terminated, and stays until the next call.
        let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) };
        if name != c"." && name != c".." {
            names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
    }
}

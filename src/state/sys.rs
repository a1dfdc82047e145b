//! The system calls that only this layer makes: locks, facts about file systems, the coarse clock.
//!
//! As `storage::sys`: one small function each, and nothing decided. Invariant: a failure is the errno as the system
//! gave it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_short};

/// What `call` returns, which is made again for as long as signals interrupt it.
fn check(mut call: impl FnMut() -> c_int) -> io::Result<()> {
    loop {
        if call() >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A run of bytes of a file, for a lock; a length of 0 is "to the end, wherever that will be".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes {
    pub start: i64,
    pub len: i64,
}

/// `F_RDLCK`, `F_WRLCK` or `F_UNLCK` as the field of `flock` takes it.
fn flock_of(kind: c_int, bytes: Bytes) -> libc::flock64 {
    // SAFETY: all zeros is a valid `flock64`; the process id must be 0 for these commands.
    let mut lock: libc::flock64 = unsafe { MaybeUninit::zeroed().assume_init() };
    #[allow(clippy::cast_possible_truncation, reason = "the kinds are 0 to 2")]
    let kind = kind as c_short;
    lock.l_type = kind;
    #[allow(clippy::cast_possible_truncation, reason = "SEEK_SET is 0")]
    let whence = libc::SEEK_SET as c_short;
    lock.l_whence = whence;
    lock.l_start = bytes.start;
    lock.l_len = bytes.len;
    lock
}

/// Takes (`F_RDLCK`, `F_WRLCK`) or gives up (`F_UNLCK`) a lock of the open file description; never waits.
pub(super) fn set_lock(fd: BorrowedFd<'_>, kind: c_int, bytes: Bytes) -> io::Result<()> {
    let lock = flock_of(kind, bytes);
    // SAFETY: the command reads one `flock64`.
    check(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// A lock that stands against taking one: the first that the kernel finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// The process, where the lock is one of a process; those of an open file description tell nothing.
    pub pid: Option<i32>,
}

/// What stands against an exclusive lock; `None` where nothing does. Locks of the same description never do.
pub(super) fn test_exclusive(fd: BorrowedFd<'_>, bytes: Bytes) -> io::Result<Option<Obstacle>> {
    test(fd, libc::F_WRLCK, bytes)
}

/// What stands against a shared lock.
pub(super) fn test_shared(fd: BorrowedFd<'_>, bytes: Bytes) -> io::Result<Option<Obstacle>> {
    test(fd, libc::F_RDLCK, bytes)
}

fn test(fd: BorrowedFd<'_>, kind: c_int, bytes: Bytes) -> io::Result<Option<Obstacle>> {
    let mut lock = flock_of(kind, bytes);
    // SAFETY: the command reads one `flock64` and writes it.
    check(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok((c_int::from(lock.l_type) != libc::F_UNLCK).then_some(Obstacle {
        pid: (lock.l_pid > 0).then_some(lock.l_pid),
    }))
}

/// What `statfs` says of the file system that a file lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub magic: u32,
    pub id: u64,
}

pub(super) fn file_system(fd: BorrowedFd<'_>) -> io::Result<FileSystem> {
    let mut answer = MaybeUninit::<libc::statfs64>::uninit();
    // SAFETY: `answer` has room for the answer.
    check(|| unsafe { libc::fstatfs64(fd.as_raw_fd(), answer.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled `answer`.
    let answer = unsafe { answer.assume_init() };
    // SAFETY: the id is two 32-bit integers whose names C keeps to itself.
    let [low, high] = unsafe { std::mem::transmute::<libc::fsid_t, [u32; 2]>(answer.f_fsid) };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "magic numbers have 32 bits, whatever the field's type on this machine"
    )]
    let magic = answer.f_type as u32;
    Ok(FileSystem {
        magic,
        id: u64::from(high) << 32 | u64::from(low),
    })
}

/// When a file was made, as seconds and nanoseconds; `None` where the file system does not keep it.
pub(super) fn birth_time(fd: BorrowedFd<'_>) -> io::Result<Option<(i64, u32)>> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name is a terminated string, and `answer` has room for the answer.
    check(|| unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_BTIME,
            answer.as_mut_ptr(),
        )
    })?;
    // SAFETY: all zeros is a valid `statx`, and the call only writes valid ones.
    let answer = unsafe { answer.assume_init() };
    let told = answer.stx_mask & libc::STATX_BTIME != 0;
    Ok(told.then_some((answer.stx_btime.tv_sec, answer.stx_btime.tv_nsec)))
}

/// The head of the kernel's `struct btrfs_ioctl_fs_info_args`, padded to its whole.
#[repr(C)]
struct BtrfsFsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

const BTRFS_IOC_FS_INFO: libc::Ioctl = libc::_IOR::<BtrfsFsInfo>(0x94, 31);

/// The UUID of the btrfs that a file lies on: its name under `/sys/fs/btrfs`.
pub(super) fn btrfs_uuid(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut info = MaybeUninit::<BtrfsFsInfo>::zeroed();
    // SAFETY: the request writes one struct of the size that is part of its number.
    check(|| unsafe { libc::ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, info.as_mut_ptr()) })?;
    // SAFETY: all zeros is a valid value of plain integers.
    Ok(unsafe { info.assume_init() }.fsid)
}

/// The clock that file systems stamp files with, as seconds and nanoseconds: it moves with the kernel's tick.
pub(super) fn coarse_clock() -> io::Result<(i64, i64)> {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `now` has room for the answer.
    check(|| unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, now.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled `now`.
    let now = unsafe { now.assume_init() };
    Ok((now.tv_sec, now.tv_nsec))
}

//! Who may use a disk's files at the same time: locks of open file descriptions, on the state file and on the image.
//!
//! May call `storage`. Invariant: of two openers that do not bear each other, in whatever order their calls come, at most
//! one gets both locks.
//!
//! On the image they are QEMU's own: one byte from 100 on is locked, shared, for each thing that is done to the image,
//! and one from 200 on for each thing that nobody else may do. Whoever comes first locks its bytes and then asks whether
//! somebody has locked the counterpart of one: so many may agree on a use without any of them having to be the owner.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sys::{self, Bytes};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::Storage;

/// What an opener does with a file, and so bears of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Reads, and bears other readers.
    Read,
    /// Writes, and bears nobody who does, nor anybody who wants what is read to stay.
    Write,
}

/// A lock that is held until the open file description is closed, or until [`Self::release`].
///
/// It is not given up when dropped: a forked child that drops its copy of a handle would take the lock from its parent,
/// whose description is the same one.
#[derive(Debug)]
#[must_use = "the lock is held as long as the file is open"]
pub(crate) struct Lock {
    storage: Arc<dyn Storage>,
    of_image: bool,
}

/// What can be done to an image, in QEMU's order: the byte of each is its number here behind the base.
const PERMISSIONS: [(i64, &str); 4] = [
    (CONSISTENT_READ, "reads it"),
    (WRITE, "writes to it"),
    (WRITE_UNCHANGED, "rewrites it"),
    (RESIZE, "may resize it"),
];
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const WRITE_UNCHANGED: i64 = 2;
const RESIZE: i64 = 3;

/// The bytes of what is done.
const DONE: i64 = 100;
/// The bytes of what nobody else may do.
const REFUSED: i64 = 200;

const WHOLE: Bytes = Bytes { start: 0, len: 0 };

impl Sharing {
    fn does(self) -> &'static [i64] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    /// Both refuse the same, as QEMU's own users of a raw image do.
    const REFUSES: [i64; 2] = [WRITE, RESIZE];

    fn words(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write => "writing",
        }
    }
}

impl Lock {
    /// Locks a state file: readers share it, a writer has it alone. `None` where the file is none of the host.
    pub(crate) fn state(storage: &Arc<dyn Storage>, path: &Path, sharing: Sharing) -> Result<Option<Self>> {
        let Some(fd) = storage.host_file() else {
            return Ok(None);
        };
        let kind = match sharing {
            Sharing::Read => libc::F_RDLCK,
            Sharing::Write => libc::F_WRLCK,
        };
        match sys::set_lock(fd, kind, WHOLE) {
            Ok(()) => Ok(Some(Self {
                storage: Arc::clone(storage),
                of_image: false,
            })),
            Err(e) => Err(refused(fd, path, sharing, WHOLE, "has the disk open", &e)),
        }
    }

    /// Locks an image, so that QEMU's programs see it and are seen. `None` where the file is none of the host.
    pub(crate) fn image(storage: &Arc<dyn Storage>, path: &Path, sharing: Sharing) -> Result<Option<Self>> {
        let Some(fd) = storage.host_file() else {
            return Ok(None);
        };
        let lock = Self {
            storage: Arc::clone(storage),
            of_image: true,
        };
        match lock_image(fd, path, sharing) {
            Ok(()) => Ok(Some(lock)),
            Err(error) => {
                lock.release();
                Err(error)
            }
        }
    }

    /// Whether somebody else has locked a state file to write; no, too, where that cannot be found out. Takes no lock.
    pub(crate) fn is_written(storage: &dyn Storage) -> bool {
        let found = storage.host_file().map(|fd| sys::test_shared(fd, WHOLE));
        matches!(found, Some(Ok(Some(_))))
    }

    /// Who has locked a state file to write, in words; nobody, too, where that cannot be found out. Takes no lock.
    pub(crate) fn writer(storage: &dyn Storage) -> Option<String> {
        let fd = storage.host_file()?;
        let obstacle = sys::test_shared(fd, WHOLE).ok()??;
        let who = match obstacle.pid {
            Some(pid) => Some(named(pid)),
            None => holders(fd, WHOLE),
        };
        Some(who.unwrap_or_else(|| "another process".to_owned()))
    }

    /// Whether it is on an image, not on a state file.
    pub(crate) fn is_of_image(&self) -> bool {
        self.of_image
    }

    /// Gives the lock up, in the process that took it.
    pub(crate) fn release(self) {
        if let Some(fd) = self.storage.host_file() {
            // It can only fail for a descriptor that is none; the close that follows gives the lock up anyway.
            let _ = sys::set_lock(fd, libc::F_UNLCK, WHOLE);
        }
    }
}

fn lock_image(fd: BorrowedFd<'_>, path: &Path, sharing: Sharing) -> Result<()> {
    let byte = |base, permission| Bytes {
        start: base + permission,
        len: 1,
    };
    // Our own bytes first, then the question: of two that come at once, each sees the other.
    let done = sharing.does().iter().map(|it| byte(DONE, *it));
    let refuses = Sharing::REFUSES.iter().map(|it| byte(REFUSED, *it));
    for byte in done.chain(refuses) {
        sys::set_lock(fd, libc::F_RDLCK, byte)
            .map_err(|e| refused(fd, path, sharing, byte, "has locked it", &e))?;
    }
    for (permission, words) in PERMISSIONS {
        let mut conflicts = Vec::new();
        if sharing.does().contains(&permission) {
            conflicts.push((
                byte(REFUSED, permission),
                format!("allows nobody else who {words}"),
            ));
        }
        if Sharing::REFUSES.contains(&permission) {
            conflicts.push((byte(DONE, permission), words.to_owned()));
        }
        for (byte, why) in conflicts {
            let obstacle = sys::test_exclusive(fd, byte).map_err(|e| unlockable(path, &e))?;
            if let Some(obstacle) = obstacle {
                return Err(conflict(fd, path, sharing, obstacle.pid, byte, &why));
            }
        }
    }
    Ok(())
}

/// A lock that could not be taken: somebody has it, or the file system has no locks.
fn refused(
    fd: BorrowedFd<'_>,
    path: &Path,
    sharing: Sharing,
    bytes: Bytes,
    why: &str,
    error: &io::Error,
) -> Error {
    if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
        return unlockable(path, error);
    }
    let obstacle = sys::test_exclusive(fd, bytes).ok().flatten();
    conflict(fd, path, sharing, obstacle.and_then(|it| it.pid), bytes, why)
}

fn unlockable(path: &Path, error: &io::Error) -> Error {
    Error::io("lock", path, error).context(
        "the file system does not do the locks that keep two users apart (an open without locks is possible)",
    )
}

fn conflict(
    fd: BorrowedFd<'_>,
    path: &Path,
    sharing: Sharing,
    pid: Option<i32>,
    bytes: Bytes,
    why: &str,
) -> Error {
    let who = match pid {
        Some(pid) => named(pid),
        None => {
            holders(fd, bytes).unwrap_or_else(|| "another process, or another handle of this one,".to_owned())
        }
    };
    Error::new(
        ErrorCode::Locked,
        format!(
            "cannot lock {} for {}: {who} {why}",
            path.display(),
            sharing.words()
        ),
    )
}

fn named(pid: i32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// Who has a lock of an open file description on this byte. The kernel keeps no process for such a lock, but shows it to
/// whoever may look at the open files of the process.
fn holders(fd: BorrowedFd<'_>, bytes: Bytes) -> Option<String> {
    let ours = identity(
        &std::fs::File::from(fd.try_clone_to_owned().ok()?)
            .metadata()
            .ok()?,
    );
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|it| it.parse::<i32>().ok()) else {
            continue;
        };
        if holds(&process.path(), ours, fd, bytes) {
            found.push(pid);
        }
    }
    let own = i32::try_from(std::process::id()).ok();
    let mut said = String::new();
    for pid in found {
        let who = if Some(pid) == own {
            "another handle of this process".to_owned()
        } else {
            named(pid)
        };
        // Writing to a string cannot fail.
        let _ = write!(said, "{}{who}", if said.is_empty() { "" } else { " or " });
    }
    (!said.is_empty()).then_some(said)
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether a process has such a lock, by an open file other than `fd`.
fn holds(process: &Path, ours: (u64, u64), fd: BorrowedFd<'_>, bytes: Bytes) -> bool {
    let own = i32::try_from(std::process::id()).is_ok_and(|pid| process.ends_with(pid.to_string()));
    let Ok(infos) = std::fs::read_dir(process.join("fdinfo")) else {
        return false;
    };
    infos.flatten().any(|info| {
        let number: PathBuf = info.file_name().into();
        if own && number == Path::new(&fd.as_fd().as_raw_fd().to_string()) {
            return false;
        }
        let Ok(text) = std::fs::read_to_string(info.path()) else {
            return false;
        };
        text.lines().any(|line| covers(line, bytes))
            && std::fs::metadata(process.join("fd").join(&number)).is_ok_and(|it| identity(&it) == ours)
    })
}

/// Whether a line of `fdinfo` tells of a lock on one of these bytes: `lock: 1: OFDLCK ADVISORY READ -1 fe:00:12 100 100`.
fn covers(line: &str, bytes: Bytes) -> bool {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["lock:", _, "OFDLCK", .., first, last] = words[..] else {
        return false;
    };
    let end = if bytes.len == 0 {
        i64::MAX
    } else {
        bytes.start + bytes.len
    };
    let last = if last == "EOF" { Ok(i64::MAX) } else { last.parse() };
    matches!((first.parse::<i64>(), last), (Ok(first), Ok(last)) if first < end && last >= bytes.start)
}

#[cfg(test)]
mod tests;

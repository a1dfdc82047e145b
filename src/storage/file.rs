//! [`FileStorage`]: a regular file or a block device of the host.
//!
//! Invariant: every transfer is positional and, through the page cache, is one system call without a lock, an
//! allocation or a look at anything but the descriptor; the rest (short transfers, `O_DIRECT`, zeros) is off that path.

mod direct;
mod limits;
#[cfg(test)]
mod tests;
mod transfer;
mod zero;

use std::ffi::{CStr, CString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use libc::{O_ACCMODE, O_APPEND, O_DIRECT, O_NOCTTY, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, S_IFMT};

use self::direct::Direct;
use self::transfer::{Stuck, whole};
use self::zero::Unsupported;
use super::{Access, Extent, FileIdentity, Gather, Limits, Scatter, Storage, SyncMode, Zeroing, sys};
use crate::units::ByteRange;

/// XFS, Btrfs, tmpfs. Of a failed write-back the kernel itself tells every open file description there, and a sync waits for
/// what another has begun to write.
const LOCAL: [u32; 3] = [0x5846_5342, 0x9123_683e, 0x0102_1994];
/// ext2 to ext4. The same, but only with a journal: without one, of two syncs at a time one takes what leads to the file's blocks
/// upon itself, and the other does not wait for that to be written.
const EXT: u32 = 0xef53;

/// One open regular file or block device. Any thread may use it at any time.
#[derive(Debug)]
pub struct FileStorage {
    /// Not a `File`: that one hands its number out by a call, which the fast path would pay for.
    fd: OwnedFd,
    /// There when the file is used around the page cache.
    direct: Option<Box<Direct>>,
    limits: Limits,
    identity: FileIdentity,
    unsupported: Unsupported,
}

impl FileStorage {
    /// Opens a file that exists.
    ///
    /// Never waits for the other end of a FIFO, and opens nothing but regular files and block devices: to open a
    /// character device can do something already.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        Self::open_at(sys::working_folder(), &terminated(path)?, access)
    }

    /// Opens a file that exists, by a name relative to `dir`.
    pub(super) fn open_at(dir: BorrowedFd<'_>, name: &CStr, access: Access) -> io::Result<Self> {
        refuse_other_kinds(sys::mode_at(dir, name)?)?;
        let rights = if access.write { O_RDWR } else { O_RDONLY };
        let around = if access.direct { O_DIRECT } else { 0 };
        // Another kind may have taken the name by now: so a FIFO must not block, and `from_fd` looks again.
        let fd =
            sys::open_at(dir, name, rights | around | O_NONBLOCK | O_NOCTTY, 0).map_err(
                |error| match error.raw_os_error() {
                    Some(libc::EINVAL) if access.direct => no_direct(),
                    _ => error,
                },
            )?;
        Self::from_fd(fd, access)
    }

    /// Opens a file that exists, by a name that must not lead out of `dir`.
    pub(super) fn open_beneath(dir: BorrowedFd<'_>, name: &CStr, access: Access) -> io::Result<Self> {
        let place = sys::open_beneath(dir, name, O_PATH).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => io::Error::new(
                io::ErrorKind::Unsupported,
                "this system cannot keep an open within a folder (openat2 came with Linux 5.6)",
            ),
            _ => error,
        })?;
        refuse_other_kinds(sys::with_file(place.as_fd(), File::metadata)?.mode())?;
        let rights = if access.write { O_RDWR } else { O_RDONLY };
        let around = if access.direct { O_DIRECT } else { 0 };
        let flags = rights | around | O_NONBLOCK | O_NOCTTY;
        let fd = sys::open_beneath(dir, name, flags).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if access.direct => no_direct(),
            _ => error,
        })?;
        Self::from_fd(fd, access)
    }

    /// Takes an open file. It should be an open file description of its own: its flags are changed, and locks on it
    /// count for all who share it.
    ///
    /// Refuses what is neither a regular file nor a block device, what is in `/proc` or its like, and a descriptor that
    /// cannot be read, or not be written where `access` asks for that. One that was opened with `O_DIRECT` stays so, whatever `access` says;
    /// `O_APPEND`, which would move every write to the end, is taken off.
    pub fn from_fd(fd: OwnedFd, access: Access) -> io::Result<Self> {
        let metadata = sys::with_file(fd.as_fd(), File::metadata)?;
        refuse_other_kinds(metadata.mode())?;
        if !is_block_device(metadata.mode()) {
            refuse_kernel_files(fd.as_fd())?;
        }
        sys::set_close_on_exec(fd.as_fd())?;
        let direct = prepare(fd.as_fd(), access)?;
        let block_device = is_block_device(metadata.mode());
        let limits = if block_device {
            limits::of_block_device(fd.as_fd(), &metadata, direct)
        } else {
            limits::of_regular_file(fd.as_fd(), &metadata, direct)
        };
        Ok(Self {
            direct: direct.then(|| Box::new(Direct::new(limits.memory_alignment, limits.request_alignment))),
            limits,
            identity: identity_of(&metadata),
            unsupported: Unsupported::default(),
            fd,
        })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        sys::with_file(self.as_fd(), File::metadata)
    }

    /// Whether syncs of the file through two open file descriptions may run at a time. Not on file systems that do more at a
    /// sync than Linux demands of them, which may look at who has written: those of the network, FUSE, layers of others.
    #[cold]
    fn syncs_apart(&self) -> io::Result<bool> {
        if self.limits.block_device {
            return Ok(true);
        }
        match sys::file_system_magic(self.as_fd())? {
            EXT => Ok(has_journal(self.identity.device)),
            magic => Ok(LOCAL.contains(&magic)),
        }
    }

    /// An open file description of the same file, whatever its name is by now. `None` where syncs must not meet.
    #[cold]
    fn again(&self) -> io::Result<Option<Self>> {
        if !self.syncs_apart()? {
            return Ok(None);
        }
        let name = CString::new(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?;
        // It syncs as well as one that may write, and nobody writes through it by mistake.
        let fd = sys::open_at(sys::working_folder(), &name, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)?;
        let again = Self::from_fd(fd, Access::default())?;
        Ok((again.identity == self.identity).then_some(again))
    }

    #[cold]
    fn read_direct(&self, direct: &Direct, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        direct.read(self.fd.as_fd(), into, offset)
    }

    #[cold]
    fn write_direct(&self, direct: &Direct, from: Gather<'_>, offset: u64) -> io::Result<()> {
        direct.write(self.fd.as_fd(), from, offset)
    }
}

impl AsFd for FileStorage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Storage for FileStorage {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            return self.read_direct(direct, into, offset);
        }
        let fd = self.fd.as_fd();
        whole(
            into.as_iovecs(),
            into.len(),
            offset,
            Stuck::EndOfFile,
            // SAFETY: the pieces are (the rest of) a `Scatter`.
            |pieces, at| unsafe { sys::read(fd, pieces, at) },
        )
    }

    fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            return self.write_direct(direct, from, offset);
        }
        let fd = self.fd.as_fd();
        whole(
            from.as_iovecs(),
            from.len(),
            offset,
            Stuck::NoProgress,
            // SAFETY: the pieces are (the rest of) a `Gather`.
            |pieces, at| unsafe { sys::write(fd, pieces, at) },
        )
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        self.zero(range, how)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        let how = Zeroing {
            may_unmap: true,
            no_fallback: false,
        };
        self.zero(range, how)
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        sys::with_file(self.as_fd(), |file| match mode {
            SyncMode::Data => sys::retry(|| file.sync_data()),
            SyncMode::All => sys::retry(|| file.sync_all()),
        })
    }

    fn sync_apart(&self) -> Option<Arc<dyn Storage>> {
        let again = self.again().ok()??;
        Some(Arc::new(again))
    }

    fn length(&self) -> io::Result<u64> {
        if self.limits.block_device {
            // Asked each time: a device can be resized under its users.
            sys::device_size(self.fd.as_fd())
        } else {
            Ok(self.metadata()?.len())
        }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if self.limits.block_device {
            let size = self.length()?;
            if size == length {
                return Ok(());
            }
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a block device of {size} bytes cannot be made {length} bytes long"),
            ));
        }
        sys::with_file(self.as_fd(), |file| sys::retry(|| file.set_len(length)))
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        sys::fallocate(self.fd.as_fd(), 0, range.start(), range.len())
    }

    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        let data = |len| Ok(Extent { data: true, len });
        let hole = |len| Ok(Extent { data: false, len });
        if range.is_empty() || self.limits.block_device {
            return data(range.len());
        }
        let fd = self.fd.as_fd();
        let (start, len) = (range.start(), range.len());
        match sys::seek(fd, start, libc::SEEK_DATA) {
            Ok(found) if found > start => return hole(len.min(found - start)),
            Ok(_) => {}
            Err(error) => {
                return match error.raw_os_error() {
                    // No data from here to the end of the file, or the end is before here.
                    Some(libc::ENXIO) => hole(len),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ESPIPE) => data(len),
                    _ => Err(error),
                };
            }
        }
        match sys::seek(fd, start, libc::SEEK_HOLE) {
            Ok(found) if found > start => data(len.min(found - start)),
            // The file changed between the two calls: "data" is right whatever it is now.
            Ok(_) => data(len),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => data(len),
            Err(error) => Err(error),
        }
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        if self.limits.block_device {
            return self.length();
        }
        // The unit of `st_blocks` is 512 bytes, whatever the file system's block.
        Ok(self.metadata()?.blocks().saturating_mul(512))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn identity(&self) -> Option<FileIdentity> {
        Some(self.identity)
    }

    fn share(&self, source: &dyn Storage, range: ByteRange) -> io::Result<()> {
        let source = source.blocks().ok_or(io::ErrorKind::Unsupported)?;
        sys::share(self.fd.as_fd(), source, range.start(), range.len())
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn blocks(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn plain_file(&self) -> Option<BorrowedFd<'_>> {
        self.direct.is_none().then(|| self.fd.as_fd())
    }
}

/// Checks that an open file allows what `access` asks for, and sets its flags right. Says whether it is used
/// around the page cache.
fn prepare(fd: BorrowedFd<'_>, access: Access) -> io::Result<bool> {
    let flags = sys::status_flags(fd)?;
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let mode = flags & O_ACCMODE;
    if flags & O_PATH != 0 {
        return refuse("the descriptor was opened with O_PATH, which allows no reading");
    }
    if mode != O_RDWR && access.write {
        return refuse("the descriptor must be open for both reading and writing (O_RDWR)");
    }
    if mode != O_RDWR && mode != O_RDONLY {
        return refuse("the descriptor is not open for reading");
    }
    let direct = access.direct || flags & O_DIRECT != 0;
    let wanted = flags & !(O_APPEND | O_NONBLOCK) | if direct { O_DIRECT } else { 0 };
    if wanted != flags {
        sys::set_status_flags(fd, wanted).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if wanted & !flags & O_DIRECT != 0 => no_direct(),
            _ => error,
        })?;
    }
    Ok(direct)
}

/// Whether the ext4 on `device` has a journal; no, too, where the kernel does not tell.
fn has_journal(device: u64) -> bool {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let task = link.ok().and_then(|device| {
        let folder = Path::new("/sys/fs/ext4").join(device.file_name()?);
        std::fs::read_to_string(folder.join("journal_task")).ok()
    });
    task.is_some_and(|task| task.trim_end() != "<none>")
}

fn no_direct() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the file system cannot bypass the page cache (O_DIRECT)",
    )
}

/// `path` as the system takes it.
pub(super) fn terminated(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the file name has a zero byte in it"))
}

fn is_block_device(mode: u32) -> bool {
    mode & S_IFMT == libc::S_IFBLK
}

/// An error in words where a file of this mode can hold no bytes of a disk.
fn refuse_other_kinds(mode: u32) -> io::Result<()> {
    let kind = match mode & S_IFMT {
        libc::S_IFREG | libc::S_IFBLK => return Ok(()),
        libc::S_IFDIR => "a directory",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFCHR => "a character device",
        libc::S_IFSOCK => "a socket",
        _ => "of an unknown kind",
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {kind}; only regular files and block devices can be used"),
    ))
}

/// What the kernel makes up as it is read is no part of a disk, and an image that names `/proc/self/mem` wants no good.
fn refuse_kernel_files(fd: BorrowedFd<'_>) -> io::Result<()> {
    const REFUSED: [(u32, &str); 6] = [
        (0x9fa0, "proc"),
        (0x6265_6572, "sysfs"),
        (0x6462_6720, "debugfs"),
        (0x7472_6163, "tracefs"),
        (0x7363_6673, "securityfs"),
        (0x6367_7270, "cgroup"),
    ];
    let magic = sys::file_system_magic(fd)?;
    match REFUSED.iter().find(|(refused, _)| *refused == magic) {
        None => Ok(()),
        Some((_, name)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "it is the kernel's, of a file system of type {name}; only files that are stored can be used"
            ),
        )),
    }
}

fn identity_of(metadata: &Metadata) -> FileIdentity {
    if is_block_device(metadata.mode()) {
        // Every device node of one device is the same device.
        FileIdentity {
            device: metadata.rdev(),
            inode: 0,
        }
    } else {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

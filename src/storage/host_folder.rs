//! [`HostFolder`]: a folder of the host, held open, so that its files are found even when it is renamed.
//!
//! Invariant: every name is looked up from the open folder, never from the path that it once had.

#[cfg(test)]
mod tests;

use std::ffi::{CStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libc::{O_CREAT, O_DIRECTORY, O_EXCL, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, R_OK, W_OK, X_OK};

use super::file::{FileStorage, terminated};
use super::{Access, Folder, Role, Storage, sys};

/// The access control list, which a file can also inherit from its folder.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// Attributes that are checksums of the file's content: wrong on any other content.
const CHECKSUMS: [&CStr; 2] = [c"security.ima", c"security.evm"];

/// An open folder. Names are relative to it; a name that is absolute stands for itself.
#[derive(Debug)]
pub struct HostFolder {
    dir: OwnedFd,
    path: PathBuf,
    /// Whether the descriptor can do more than look names up. If not, the folder cannot be synced.
    readable: bool,
    /// Whether files outside of it are refused.
    confined: bool,
}

impl HostFolder {
    /// Opens a folder. One that may be searched but not read will do for reading files in it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let (here, name) = (sys::working_folder(), terminated(name)?);
        let dir = match sys::open_at(here, &name, O_RDONLY | O_DIRECTORY, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                sys::open_at(here, &name, O_PATH | O_DIRECTORY, 0)?
            }
            other => other?,
        };
        Self::from_fd(dir, path.to_owned())
    }

    /// Takes an open folder; `path` is what messages call it.
    pub fn from_fd(dir: OwnedFd, path: PathBuf) -> io::Result<Self> {
        if !sys::with_file(dir.as_fd(), File::metadata)?.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        sys::set_close_on_exec(dir.as_fd())?;
        let readable = sys::status_flags(dir.as_fd())? & O_PATH == 0;
        let path = if path.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            path
        };
        Ok(Self {
            dir,
            path,
            readable,
            confined: false,
        })
    }

    /// The same folder, in which [`Folder::open`] opens nothing that a root, a `..` or a link leads to outside of it:
    /// that is `EXDEV`. On kernels before Linux 5.6, which cannot tell, every open is [`io::ErrorKind::Unsupported`].
    #[must_use]
    pub fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    /// What messages call the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file only to ask about it and to set what it is, not what is in it.
    fn open_for_attributes(&self, name: &Path) -> io::Result<File> {
        sys::open_at(self.dir.as_fd(), &terminated(name)?, O_RDONLY | O_NONBLOCK, 0).map(File::from)
    }

    fn create_with_mode(&self, name: &Path, mode: libc::mode_t) -> io::Result<Arc<dyn Storage>> {
        let flags = O_RDWR | O_CREAT | O_EXCL;
        let name = terminated(name)?;
        let fd = sys::open_at(self.dir.as_fd(), &name, flags, mode)?;
        let access = Access {
            write: true,
            direct: false,
        };
        match FileStorage::from_fd(fd, access) {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) => {
                // To the caller there is none, so nobody else would remove it.
                let _ = sys::unlink_at(self.dir.as_fd(), &name);
                Err(error)
            }
        }
    }

    fn read_only(&self, why: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::ReadOnlyFilesystem,
            format!(
                "names in the folder {} cannot be changed: {why}",
                self.path.display()
            ),
        )
    }
}

impl AsFd for HostFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Folder for HostFolder {
    fn open(&self, _role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let name = terminated(name)?;
        let file = if self.confined {
            FileStorage::open_beneath(self.dir.as_fd(), &name, access)?
        } else {
            FileStorage::open_at(self.dir.as_fd(), &name, access)?
        };
        Ok(Arc::new(file))
    }

    fn create(&self, _role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.create_with_mode(name, 0o666)
    }

    fn create_private(&self, _role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.create_with_mode(name, 0o600)
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.open_for_attributes(from)?, self.open_for_attributes(to)?);
        let metadata = from.metadata()?;
        let mut mode = metadata.mode() & 0o7777;
        // The owner first: to change it takes set-id bits away.
        if !copy_owner(&to, metadata.uid(), metadata.gid())? {
            // Whoever owns it now must not lend his rights to a file that another made.
            mode &= 0o0777;
        }
        allowed(to.set_permissions(Permissions::from_mode(mode)))?;
        copy_xattrs(&from, &to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        sys::rename_at(self.dir.as_fd(), &terminated(from)?, &terminated(to)?)
    }

    fn remove(&self, name: &Path) -> io::Result<()> {
        let name = terminated(name)?;
        let mode = sys::mode_at(self.dir.as_fd(), &name)?;
        // A bitmap may lie on a block device: its name is not ours to take away, nor is a link to it.
        if mode & libc::S_IFMT != libc::S_IFREG {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file, and others are not removed",
            ));
        }
        sys::unlink_at(self.dir.as_fd(), &name)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        // Another open one, as the place up to which a folder was listed belongs to what was opened.
        let dir = sys::open_at(self.dir.as_fd(), c".", O_RDONLY | O_DIRECTORY, 0)?;
        sys::names(dir)
    }

    fn sync(&self) -> io::Result<()> {
        if !self.readable {
            return Err(self.read_only("it may be searched, but not read, and so not be synced"));
        }
        sys::with_file(self.dir.as_fd(), |dir| sys::retry(|| dir.sync_all()))
    }

    fn sync_name(&self) -> io::Result<()> {
        // From the open folder: its path may be a link, and then leads to another one above.
        let above = sys::open_at(self.dir.as_fd(), c"..", O_RDONLY | O_DIRECTORY, 0)?;
        sys::with_file(above.as_fd(), |dir| sys::retry(|| dir.sync_all()))
    }

    fn check_writable(&self) -> io::Result<()> {
        if !self.readable {
            return Err(self.read_only("it may be searched, but not read, and so not be synced"));
        }
        if sys::on_read_only_mount(self.dir.as_fd())? {
            return Err(self.read_only("its file system is mounted read-only"));
        }
        sys::access(self.dir.as_fd(), R_OK | W_OK | X_OK).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => self.read_only("this process may not write to it"),
            Some(libc::EROFS) => self.read_only("it is read-only"),
            _ => error,
        })
    }
}

/// Gives `to` an owner and a group, or the group alone, or neither: what this process may. Says whether it was both.
fn copy_owner(to: &File, uid: u32, gid: u32) -> io::Result<bool> {
    let now = to.metadata()?;
    if (now.uid(), now.gid()) == (uid, gid) {
        return Ok(true);
    }
    if allowed(sys::retry(|| fchown(to, Some(uid), Some(gid))))? {
        return Ok(true);
    }
    allowed(sys::retry(|| fchown(to, None, Some(gid))))?;
    Ok(false)
}

/// Copies every extended attribute that this process may read and set.
fn copy_xattrs(from: &File, to: &File) -> io::Result<()> {
    let names = match sys::xattr_names(from.as_fd()) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut has_access_list = false;
    for name in names.split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        has_access_list |= name == ACCESS_LIST;
        if CHECKSUMS.contains(&name) {
            continue;
        }
        allowed(sys::xattr(from.as_fd(), name).and_then(|value| sys::set_xattr(to.as_fd(), name, &value)))?;
    }
    if !has_access_list {
        // One that came from the folder would let in whom `from` keeps out.
        allowed(sys::remove_xattr(to.as_fd(), ACCESS_LIST))?;
    }
    Ok(())
}

/// Whether an attribute could be set; an error where the reason is neither the system's rules nor its lack of it.
fn allowed(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOTSUP | libc::ENODATA | libc::EINVAL) => Ok(false),
            _ => Err(error),
        },
    }
}

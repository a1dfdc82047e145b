//! `open_file`: the caller hands in the files of a disk, so that the library opens no path itself.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::{Access, FileStorage, Folder, HostFolder, Role, Storage};

/// What qbm_open() and qbm_create() call for every file instead of open(2).
pub type OpenFile = unsafe extern "C" fn(*mut c_void, c_int, *const c_char, c_int) -> c_int;

/// The caller's callback and what it wants passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Callback {
    pub(super) function: OpenFile,
    pub(super) opaque: *mut c_void,
}

// SAFETY: the header demands a callback that may be called from any thread that uses the disk.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

impl Callback {
    fn fetch(self, role: Role, path: &Path, flags: c_int) -> io::Result<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the caller gave this function for this purpose; the string lives through the call.
        let fd = unsafe { (self.function)(self.opaque, role as c_int, path.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(
                fd.checked_neg().unwrap_or(libc::EIO),
            ));
        }
        // SAFETY: the header says that a descriptor that is returned becomes the library's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A folder whose files the caller opens. Names change through the open folder that the caller hands in, if it does.
#[derive(Debug)]
pub(super) struct HandedFolder {
    callback: Callback,
    /// The path that the caller gave, without the descriptor's name: what the callback's paths begin with.
    path: PathBuf,
    folder: Option<HostFolder>,
}

impl HandedFolder {
    pub(super) fn new(callback: Callback, descriptor: &Path) -> crate::Result<Arc<Self>> {
        let path = descriptor.parent().unwrap_or(Path::new("")).to_owned();
        let shown = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &path
        };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let folder =
            match callback.fetch(Role::Folder, shown, flags) {
                Ok(fd) => {
                    let folder = HostFolder::from_fd(fd, path.clone());
                    Some(folder.map_err(|e| {
                        crate::Error::io("use what open_file returned for the folder", shown, &e)
                    })?)
                }
                // A disk can be read and written without its folder; only its structure cannot be changed.
                Err(_) => None,
            };
        Ok(Arc::new(Self {
            callback,
            path,
            folder,
        }))
    }

    fn structural(&self) -> io::Result<&HostFolder> {
        self.folder.as_ref().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                "open_file did not hand in the folder of the descriptor, so no names can be changed in it",
            )
        })
    }
}

impl Folder for HandedFolder {
    fn open(&self, role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let mut flags = libc::O_CLOEXEC
            | if access.write {
                libc::O_RDWR
            } else {
                libc::O_RDONLY
            };
        if access.direct {
            flags |= libc::O_DIRECT;
        }
        let fd = self.callback.fetch(role, &self.path.join(name), flags)?;
        Ok(Arc::new(FileStorage::from_fd(fd, access)?))
    }

    fn create(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.structural()?.create(role, name)
    }

    fn create_private(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.structural()?.create_private(role, name)
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.structural()?.copy_attributes(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.structural()?.rename(from, to)
    }

    fn remove(&self, name: &Path) -> io::Result<()> {
        self.structural()?.remove(name)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        self.structural()?.names()
    }

    fn sync(&self) -> io::Result<()> {
        self.structural()?.sync()
    }

    fn sync_name(&self) -> io::Result<()> {
        self.structural()?.sync_name()
    }

    fn check_writable(&self) -> io::Result<()> {
        self.structural()?.check_writable()
    }
}

//! [`NewFile`]: a file that gets its name when it is whole.
//!
//! Invariant: under the name that it is to have there is nothing, or all of it; and nothing that exists is replaced.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libc::{O_RDWR, O_TMPFILE};

use super::file::{FileStorage, terminated};
use super::{Access, Folder as _, HostFolder, Role, Storage, SyncMode, sys};

/// A new file. Dropped before it is [published](Self::publish), it is gone.
#[derive(Debug)]
pub(crate) struct NewFile {
    folder: HostFolder,
    file: Arc<FileStorage>,
    /// The name that it has meanwhile, on file systems where a file must have one. Only there something is left behind
    /// when this process is killed.
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// An empty file in `folder`, open for reading and writing.
    pub(crate) fn create(folder: HostFolder) -> io::Result<Self> {
        let access = Access {
            write: true,
            direct: false,
        };
        // Without /proc it could never be given a name.
        if Path::new("/proc/self/fd").exists() {
            match sys::open_at(folder.as_fd(), c".", O_TMPFILE | O_RDWR, 0o666) {
                Ok(fd) => {
                    let file = Arc::new(FileStorage::from_fd(fd, access)?);
                    return Ok(Self {
                        folder,
                        file,
                        temporary: None,
                    });
                }
                Err(error) if knows_no_unnamed(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|e| io::Error::other(format!("no random bytes for a name: {e}")))?;
        let temporary = PathBuf::from(format!(".qbm-new-{:016x}", u64::from_ne_bytes(id)));
        let flags = O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let fd = sys::open_at(folder.as_fd(), &terminated(&temporary)?, flags, 0o666)?;
        let file = Arc::new(FileStorage::from_fd(fd, access)?);
        Ok(Self {
            folder,
            file,
            temporary: Some(temporary),
        })
    }

    /// What its bytes are written to.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.file) as Arc<dyn Storage>
    }

    /// Makes what is in it durable, gives it the name `name`, and makes that durable. [`io::ErrorKind::AlreadyExists`]
    /// where the name is taken; then it may be given another.
    pub(crate) fn publish(&mut self, name: &Path) -> io::Result<()> {
        self.file.sync(SyncMode::All)?;
        let new = terminated(name)?;
        let dir = self.folder.as_fd();
        match &self.temporary {
            None => sys::link_at(self.file.as_fd(), dir, &new)?,
            Some(temporary) => match sys::rename_to_free(dir, &terminated(temporary)?, &new) {
                // Not every file system can say so in one step.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    if self.folder.open(Role::Image, name, Access::default()).is_ok() {
                        return Err(io::Error::from_raw_os_error(libc::EEXIST));
                    }
                    self.folder.rename(temporary, name)?;
                }
                done => done?,
            },
        }
        self.temporary = None;
        self.folder.sync().inspect_err(|_| {
            // It may be there after a power cut or not; the caller is told that it is not.
            let _ = self.folder.remove(name);
        })
    }

    /// Takes a name that it was given away again.
    pub(crate) fn take_back(&self, name: &Path) {
        let _ = self.folder.remove(name);
        let _ = self.folder.sync();
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = self.folder.remove(temporary);
        }
    }
}

/// What systems say that know no files without a name: old kernels take the flag for that of a folder.
fn knows_no_unnamed(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL | libc::ENOENT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::write_slice;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn named(folder: &Path) -> NewFile {
        let opened = HostFolder::open(folder).unwrap();
        let storage = opened.create(Role::Image, Path::new(".qbm-new-1")).unwrap();
        drop(storage);
        let access = Access {
            write: true,
            direct: false,
        };
        NewFile {
            file: Arc::new(FileStorage::open(&folder.join(".qbm-new-1"), access).unwrap()),
            folder: opened,
            temporary: Some(".qbm-new-1".into()),
        }
    }

    #[test]
    fn it_has_its_name_only_when_it_is_published_and_takes_none_from_another() {
        for create in [
            (|folder: &Path| NewFile::create(HostFolder::open(folder).unwrap()).unwrap()) as fn(&Path) -> _,
            named,
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("taken"), "mine").unwrap();
            let mut file = create(dir.path());
            write_slice(&*file.storage(), b"all of it", 0).unwrap();
            assert!(!names(dir.path()).contains(&"name".to_owned()));
            let refused = file.publish(Path::new("taken")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(dir.path().join("taken")).unwrap(), b"mine");
            file.publish(Path::new("name")).unwrap();
            drop(file);
            assert_eq!(names(dir.path()), ["name", "taken"]);
            assert_eq!(std::fs::read(dir.path().join("name")).unwrap(), b"all of it");
        }
    }

    #[test]
    fn dropped_it_is_gone() {
        for create in [
            (|folder: &Path| NewFile::create(HostFolder::open(folder).unwrap()).unwrap()) as fn(&Path) -> _,
            named,
        ] {
            let dir = tempfile::tempdir().unwrap();
            drop(create(dir.path()));
            assert_eq!(names(dir.path()), [""; 0]);
        }
    }
}
